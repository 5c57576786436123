//! One copy of a volume, opened to take part in replication.
//!
//! An [`OpenCopy`] is what a process holds of a copy for one life of it: the folder under its lock, the
//! region table, the data file with its engines, and the [`Replica`] that decides what may happen. It
//! is shared by threads, each of which moves bytes with an [`Executor`] of its own. No socket is seen
//! here: the server of a node drives copies for writers elsewhere, and a writer drives its own in the
//! same way.
//!
//! Whoever calls the replica carries out its actions, and this room has the means: `Apply` is
//! [`Executor::apply`], `Persist` is [`OpenCopy::persist`].
//!
//! Invariant: what the folder says of views is made whole before anybody is let in. A crash may have
//! left a recorded view that the region table had yet to accept; it is accepted at the next opening.
//! A sync that fails is final: from then on writes and flushes fail, and the replica fails with them.

mod error;
pub mod executor;
mod plan;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::message::{ROWS_MAX, Request};
use super::region::{RegionIndex, Regions, Row};
use super::replica::Replica;
use super::view::{Incarnation, View, ViewNumber};
use crate::coordination::record;
use crate::io::file::BlockFile;
use crate::io::zeroing::KnownZeroing;
use crate::io::{Engines, Errno, Kind};
use crate::store::{
    Access, Holder, RegionTable, RegionTableError, Store, Superblock, read_view_record, replace_view_record,
};

pub use error::CopyError;
pub use executor::{Ended, Executor, Payload};
use plan::Piece;

/// A copy in one life of it.
pub struct OpenCopy {
    regions: Regions,
    incarnation: Incarnation,
    engines: Engines,
    replica: Mutex<Replica>,
    table: Mutex<RegionTable>,
    zeroing: KnownZeroing,
    sync_failed: AtomicBool,
    complaints: Mutex<Complaints>,
    /// Before the store: the note of the holder goes before its lock.
    _holder: Holder,
    store: Store,
}

impl OpenCopy {
    /// Opens the copy in the folder `dir`, exclusively and in a new incarnation. A copy that has no region
    /// table yet gets one. Without a `kind`, the engine that suits the file is used.
    ///
    /// # Errors
    ///
    /// [`CopyError`], whose sentence names the folder or file and says what to do.
    pub fn open(dir: &Path, kind: Option<Kind>) -> Result<Arc<OpenCopy>, CopyError> {
        let store = Store::open(dir, Access::Exclusive)?;
        let holder = Holder::record(dir)?;
        let superblock = store.superblock();
        let regions = Regions::of(superblock.size_bytes);
        let view = recorded_view(dir, superblock.id)?;
        let mut table = open_table(dir, superblock.id, &regions, view.is_some())?;
        settle_view(dir, &mut table, view.as_ref())?;

        let data = |source| CopyError::Data { path: store.data_path().to_owned(), source };
        let unit = superblock.sector_size.bytes() as usize;
        let file = Arc::new(BlockFile::open(store.data_path(), false, unit).map_err(data)?);
        let kind = kind.unwrap_or_else(|| Kind::detect(store.data_path()).0);
        let engines = Engines::new(kind, file).map_err(data)?;

        let incarnation = Incarnation(Uuid::new_v4());
        let rows = table.rows().iter().map(|&bits| Row::from_bits(bits)).collect();
        let replica = Replica::new(regions, incarnation, view.as_ref(), rows);
        Ok(Arc::new(OpenCopy {
            regions,
            incarnation,
            engines,
            replica: Mutex::new(replica),
            table: Mutex::new(table),
            zeroing: KnownZeroing::default(),
            sync_failed: AtomicBool::new(false),
            complaints: Mutex::default(),
            _holder: holder,
            store,
        }))
    }

    /// Identity and geometry of the volume.
    pub fn superblock(&self) -> &Superblock {
        self.store.superblock()
    }

    /// The folder of the copy.
    pub fn dir(&self) -> &Path {
        self.store.dir()
    }

    /// The file, or link to a device, that holds the sectors.
    pub fn data_path(&self) -> &Path {
        self.store.data_path()
    }

    /// How the volume is divided.
    pub fn regions(&self) -> Regions {
        self.regions
    }

    /// By which engine it is read and written; none for one that others make.
    pub fn engine(&self) -> Option<Kind> {
        self.engines.kind()
    }

    /// The life that the copy is in.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The gatekeeper. Hold it for the length of a call and no longer: never while anything is written.
    pub fn replica(&self) -> MutexGuard<'_, Replica> {
        lock(&self.replica)
    }

    /// The hands of the calling thread, for at most `depth` operations of the engine at once.
    ///
    /// # Errors
    ///
    /// What the engine says.
    pub fn executor(self: &Arc<Self>, depth: usize) -> io::Result<Executor> {
        Executor::new(self.clone(), depth)
    }

    /// Carries out a `Persist` of the replica, whose [`persisted`](Replica::persisted) is to be told whether
    /// this succeeded. Waits for the disk; the replica must not be locked meanwhile.
    ///
    /// # Errors
    ///
    /// [`CopyError`]; the table then takes no more changes, and the copy has to be opened again.
    pub fn persist(&self, rows: &[(RegionIndex, Row)], view: Option<&View>) -> Result<(), CopyError> {
        let rows: Vec<(u32, u64)> = rows.iter().map(|(region, row)| (region.0, row.to_bits())).collect();
        let mut table = lock(&self.table);
        match view {
            Some(view) => {
                // A lower view is refused by the table, and must not be on record then.
                if view.number.0 >= table.accepted() {
                    record_view(self.dir(), view)?;
                }
                Ok(table.set_accepted(view.number.0, &rows)?)
            }
            None => {
                let dir = self.dir().to_owned();
                table.set_rows(&rows).map_err(|source| CopyError::Rows { dir, source })
            }
        }
    }

    /// Whether a request, asked in `view`, is one that this volume can have: to be asked before the replica
    /// is given it. One that is not is answered with `EINVAL`.
    pub fn covers(&self, view: ViewNumber, request: &Request) -> bool {
        match *request {
            Request::Write { offset, len, .. } | Request::Read { offset, len } | Request::Digest { offset, len } => {
                self.has_range(offset, len.into())
            }
            Request::Zero { offset, len, .. } => self.has_range(offset, len),
            Request::Rows { first, count } => {
                let end = first.0.checked_add(count);
                (1..=ROWS_MAX).contains(&count) && end.is_some_and(|end| end <= self.regions.count())
            }
            Request::Settle(ref settled) => {
                settled.iter().all(|(region, written)| region.0 < self.regions.count() && *written <= view)
            }
            Request::Accept(ref view) => view.volume == self.superblock().id,
            Request::Flush | Request::Ping => true,
        }
    }

    /// Makes everything that was written durable, for the end of service. Waits for the disk.
    ///
    /// # Errors
    ///
    /// What the kernel says; also when an earlier sync has failed.
    pub fn sync(&self) -> io::Result<()> {
        if self.has_lost() {
            return Err(io::Error::other("an earlier sync has failed"));
        }
        // SAFETY: no memory is involved.
        match unsafe { libc::fdatasync(self.engines.file().as_raw_fd()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn has_range(&self, offset: u64, len: u64) -> bool {
        let sector = u64::from(self.superblock().sector_size.bytes());
        let end = offset.checked_add(len);
        len > 0
            && offset.is_multiple_of(sector)
            && len.is_multiple_of(sector)
            && end.is_some_and(|end| end <= self.regions.size_bytes())
    }

    /// Whether a sync has failed, so that what was written before it may be gone.
    fn has_lost(&self) -> bool {
        self.sync_failed.load(Ordering::Acquire)
    }

    fn note_loss(&self, error: Errno) {
        if !self.sync_failed.swap(true, Ordering::AcqRel) {
            log::error!(
                "{}: a sync failed ({error}): what was written since the last one may be lost, and this copy is \
                 given up until it is opened again. Check the disk",
                self.dir().display()
            );
        }
    }

    /// Says in the log that the disk did not do something, but not each time of many.
    fn complain(&self, piece: Piece, error: Errno) {
        let mut complaints = lock(&self.complaints);
        if complaints.last.is_some_and(|last| last.elapsed() < COMPLAINT_PAUSE) {
            complaints.withheld += 1;
            return;
        }
        let withheld = std::mem::take(&mut complaints.withheld);
        let more = if withheld > 0 { format!("; and {withheld} more like this before") } else { String::new() };
        log::error!("{}: cannot {piece}: {error}{more}", self.data_path().display());
        complaints.last = Some(Instant::now());
    }

    fn zeroing(&self) -> &KnownZeroing {
        &self.zeroing
    }
}

/// What the log was told of failures of the disk.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    withheld: u64,
}

/// The view that the copy in `dir` has recorded; none if it never accepted one.
///
/// # Errors
///
/// [`CopyError`] when the record cannot be read or is of another volume.
pub fn recorded_view(dir: &Path, volume: Uuid) -> Result<Option<View>, CopyError> {
    let Some(record) = read_view_record(dir)? else { return Ok(None) };
    record::parse(&record, volume).map(Some).map_err(|damage| CopyError::ViewRecord { dir: dir.to_owned(), damage })
}

/// Records a view. The region table is to accept it afterwards.
///
/// # Errors
///
/// [`CopyError`] when it cannot be written.
pub fn record_view(dir: &Path, view: &View) -> Result<(), CopyError> {
    Ok(replace_view_record(dir, &record::render(view))?)
}

/// The table; a new one for a copy that was made before it became one of several. One that has accepted a view had a
/// table: without it, what it holds would pass for as old as can be, and what other copies lack would not be sent to
/// them.
fn open_table(dir: &Path, volume: Uuid, regions: &Regions, accepted: bool) -> Result<RegionTable, CopyError> {
    match RegionTable::open(dir, volume, regions.region_bytes(), regions.count()) {
        Err(RegionTableError::Missing { .. }) if !accepted => {
            Ok(RegionTable::create(dir, volume, regions.region_bytes(), regions.count())?)
        }
        opened => Ok(opened?),
    }
}

/// Finishes the acceptance of a view that was recorded and not yet in the table, as the replica would
/// have: what may differ from other copies may differ in the new view.
fn settle_view(dir: &Path, table: &mut RegionTable, view: Option<&View>) -> Result<(), CopyError> {
    let recorded = view.map_or(ViewNumber::NONE, |view| view.number);
    let accepted = table.accepted();
    if recorded.0 < accepted {
        return Err(CopyError::ViewLost { dir: dir.to_owned(), accepted: ViewNumber(accepted), recorded });
    }
    if let Some(view) = view.filter(|_| recorded.0 > accepted) {
        // The end may have come before its name was durable.
        record_view(dir, view)?;
        let open = (0u32..).zip(table.rows()).filter(|(_, bits)| Row::from_bits(**bits).intent);
        let marked = Row { written: recorded, intent: true }.to_bits();
        let rows: Vec<(u32, u64)> = open.map(|(region, _)| (region, marked)).collect();
        table.set_accepted(recorded.0, &rows)?;
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const COMPLAINT_PAUSE: Duration = Duration::from_secs(1);
