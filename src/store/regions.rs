//! The region table of one copy: for each region of the volume a row of 64 bits, and the highest view
//! that the copy has accepted.
//!
//! Replication decides from the rows what has to be made equal after a crash or an absence, and refuses
//! views below the accepted one. Both hold only if the table never forgets: what a change wrote is on
//! the disk when the change returns. What the rows and views mean belongs to the rooms above; here they
//! are numbers, except that a row holds a view number shifted left by one, and the intent in the lowest
//! bit.
//!
//! The file `regions` has two blocks with the same header and then the blocks of the rows, sparse until
//! they are written. `docs/format.md` has the bytes. How it can fail, and what follows:
//!
//! - A crash during a change: each block is old or new, and so is each row. The headers are written one
//!   after the other, each durable before the next, so one of them is always whole, and no single damaged
//!   block takes the accepted view back.
//! - A damaged block of rows: its regions count as written in the accepted view with intent, so that they
//!   are compared. This is never wrong, because no row is of a view that the copy has not accepted.
//! - A process that ended between a write and its sync, or whose sync failed: the next one reads from
//!   memory what may not be on the disk. So opening a table writes again what it read.
//! - A write or sync that fails is final. What is on the disk is not known any more, and the table takes
//!   no further change until it is opened again.

mod block;
mod error;
mod hostile;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use block::{BLOCK_BYTES, Block, Header, ROWS_PER_BLOCK, VIEW_MAX, rows_from_block, rows_to_block};

pub use error::RegionTableError;
pub(super) use hostile::read_hostile;
#[cfg(test)]
pub(super) use hostile::seeds;

/// The open region table of a copy. Whoever has one holds the [`Store`](super::Store) of the folder
/// exclusively.
#[derive(Debug)]
pub struct RegionTable {
    path: PathBuf,
    medium: Box<dyn Medium>,
    header: Header,
    rows: Vec<u64>,
    /// A change failed: what is on the disk may differ from `header` and `rows`.
    has_failed: bool,
}

impl RegionTable {
    /// Makes the table of a volume whose folder is `dir` and opens it: every row 0, no view accepted. It
    /// takes hardly any space, however many regions there are.
    ///
    /// # Errors
    ///
    /// [`RegionTableError::Exists`], [`RegionTableError::TooManyRegions`], and
    /// [`RegionTableError::Io`] when a file cannot be written. A creation that failed or was interrupted
    /// can be tried again.
    pub fn create(dir: &Path, volume: Uuid, region_bytes: u64, count: u32) -> Result<RegionTable, RegionTableError> {
        let header = first_header(volume, region_bytes, count)?;
        let path = dir.join(REGIONS_FILE);
        if path.symlink_metadata().is_ok() {
            return Err(RegionTableError::Exists { path });
        }
        let new_path = dir.join(NEW_REGIONS_FILE);
        let make = || {
            let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new_path)?;
            file.set_len(table_bytes(count))?;
            for place in HEADER_PLACES {
                file.write_all_at(&header.to_block(place), offset_of(place))?;
            }
            file.sync_all()?;
            std::fs::rename(&new_path, &path)?;
            File::open(dir)?.sync_all()
        };
        make().map_err(RegionTableError::io(&new_path, "make"))?;
        Self::open(dir, volume, region_bytes, count)
    }

    /// Opens the table in the folder `dir`, and makes what it read durable.
    ///
    /// # Errors
    ///
    /// [`RegionTableError`] when there is no table, it is of another volume or division, or it cannot be
    /// trusted; its sentence says what to do.
    pub fn open(dir: &Path, volume: Uuid, region_bytes: u64, count: u32) -> Result<RegionTable, RegionTableError> {
        let path = dir.join(REGIONS_FILE);
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => Self::load(Box::new(file), path, first_header(volume, region_bytes, count)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(RegionTableError::Missing { path }),
            Err(error) => Err(RegionTableError::io(&path, "open")(error)),
        }
    }

    /// The highest view that the copy in `dir` has accepted, read while another process may hold it; 0 if
    /// none, or if there is no table. May be old by the time it returns, and then it is too low.
    ///
    /// # Errors
    ///
    /// [`RegionTableError`] when the table is of another volume or cannot be trusted.
    pub fn peek_accepted(dir: &Path, volume: Uuid) -> Result<u64, RegionTableError> {
        let path = dir.join(REGIONS_FILE);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(RegionTableError::io(&path, "open")(error)),
        };
        let (header, _) = read_header(&file, &path)?;
        if header.volume != volume {
            return Err(RegionTableError::OtherVolume { path, found: header.volume, expected: volume });
        }
        Ok(header.accepted)
    }

    /// The rows, one a region.
    pub fn rows(&self) -> &[u64] {
        &self.rows
    }

    /// The highest view that the copy has accepted; 0 if none.
    pub fn accepted(&self) -> u64 {
        self.header.accepted
    }

    /// Sets rows, each given as the number of its region and its bits; the last one counts where a region
    /// is named twice. They are durable when this returns, at the price of one sync. No row may be of a
    /// view above [`accepted`](Self::accepted).
    ///
    /// # Errors
    ///
    /// `InvalidInput`, and nothing changed, when there is no such region. Any other error is final: rows
    /// are as they were in memory, may be either on the disk, and every later change fails.
    pub fn set_rows(&mut self, changes: &[(u32, u64)]) -> io::Result<()> {
        self.refuse_after_failure()?;
        if let Some((region, _)) = changes.iter().find(|(region, _)| *region as usize >= self.rows.len()) {
            let message = format!("{} has {} rows and none of region {region}", self.path.display(), self.rows.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        if changes.is_empty() {
            return Ok(());
        }
        let mut touched = BTreeMap::new();
        for &(region, row) in changes {
            let region = region as usize;
            let number = region / ROWS_PER_BLOCK;
            touched.entry(number).or_insert_with(|| block_rows(&self.rows, number))[region % ROWS_PER_BLOCK] = row;
        }
        let blocks = touched.iter().map(|(&number, rows)| (place_of(number), rows_to_block(rows, place_of(number))));
        let result = write_blocks(self.medium.as_ref(), blocks).and_then(|()| self.medium.sync());
        self.has_failed |= result.is_err();
        result?;
        for &(region, row) in changes {
            self.rows[region as usize] = row;
        }
        Ok(())
    }

    /// Raises the accepted view to `view`, after setting rows as [`set_rows`](Self::set_rows) does; these
    /// may be of `view`. All is durable when this returns. After a crash in between, rows may be of the
    /// new view while the old one is the accepted one.
    ///
    /// # Errors
    ///
    /// [`RegionTableError::Lower`] and [`RegionTableError::ViewTooLarge`], and nothing changed, when the
    /// view is not to be accepted; [`RegionTableError::Damaged`] likewise when no change can follow. Others as those of [`set_rows`](Self::set_rows).
    pub fn set_accepted(&mut self, view: u64, rows: &[(u32, u64)]) -> Result<(), RegionTableError> {
        let accepted = self.header.accepted;
        if view < accepted {
            return Err(RegionTableError::Lower { path: self.path.clone(), accepted, view });
        }
        if view > VIEW_MAX {
            return Err(RegionTableError::ViewTooLarge { path: self.path.clone(), view });
        }
        // Nobody ever counts to the last generation: it was written by somebody else.
        let generation = self.header.generation.checked_add(1);
        let generation = generation.ok_or_else(|| RegionTableError::Damaged { path: self.path.clone() })?;
        self.refuse_after_failure().map_err(RegionTableError::io(&self.path, "change"))?;
        self.set_rows(rows).map_err(RegionTableError::io(&self.path, "change"))?;
        if view == accepted {
            return Ok(());
        }
        let header = Header { generation, accepted: view, ..self.header };
        let result = write_headers(self.medium.as_ref(), header, HEADER_PLACES);
        self.has_failed |= result.is_err();
        result.map_err(RegionTableError::io(&self.path, "change"))?;
        self.header = header;
        Ok(())
    }

    fn refuse_after_failure(&self) -> io::Result<()> {
        if self.has_failed {
            Err(io::Error::other("an earlier change of it failed: open the copy again"))
        } else {
            Ok(())
        }
    }

    /// Reads a table that is to have the identity and division of `expected`, and writes it again.
    fn load(medium: Box<dyn Medium>, path: PathBuf, expected: Header) -> Result<RegionTable, RegionTableError> {
        let length_bytes = medium.length_bytes().map_err(RegionTableError::io(&path, "measure"))?;
        if length_bytes < table_bytes(0) {
            return Err(RegionTableError::TooShort { path, length_bytes, table_bytes: table_bytes(expected.count) });
        }
        let (header, place) = read_header(medium.as_ref(), &path)?;
        if header.volume != expected.volume {
            return Err(RegionTableError::OtherVolume { path, found: header.volume, expected: expected.volume });
        }
        if (header.region_bytes, header.count) != (expected.region_bytes, expected.count) {
            return Err(RegionTableError::OtherDivision {
                path,
                found: (header.count, header.region_bytes),
                expected: (expected.count, expected.region_bytes),
            });
        }
        if length_bytes < table_bytes(header.count) {
            return Err(RegionTableError::TooShort { path, length_bytes, table_bytes: table_bytes(header.count) });
        }
        let Loaded { rows, written } =
            read_rows(medium.as_ref(), &header, &path).map_err(RegionTableError::io(&path, "read"))?;
        let blocks = written.into_iter().map(|number| {
            let place = place_of(number);
            (place, rows_to_block(&block_rows(&rows, number), place))
        });
        // The header that was read is overwritten last, when the other one says the same.
        let [first, second] = HEADER_PLACES;
        let other = if place == first { second } else { first };
        write_blocks(medium.as_ref(), blocks)
            .and_then(|()| write_headers(medium.as_ref(), header, [other, place]))
            .map_err(RegionTableError::io(&path, "write again"))?;
        Ok(RegionTable { path, medium, header, rows, has_failed: false })
    }
}

/// What a table lies on: a file, or in tests one that is watched and fails on request.
trait Medium: fmt::Debug + Send {
    fn length_bytes(&self) -> io::Result<u64>;
    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
}

impl Medium for File {
    fn length_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// The newer header, and where it was found.
fn read_header(medium: &dyn Medium, path: &Path) -> Result<(Header, u64), RegionTableError> {
    let mut newest: Option<(Header, u64)> = None;
    for place in HEADER_PLACES {
        let mut block = [0; BLOCK_BYTES];
        medium.read(&mut block, offset_of(place)).map_err(RegionTableError::io(path, "read"))?;
        let found = Header::from_block(&block, place)
            .map_err(|found| RegionTableError::UnknownFormat { path: path.to_owned(), found })?;
        match (found, newest) {
            (None, _) => log::warn!("{}: the header at {} is damaged", path.display(), offset_of(place)),
            (Some(header), Some((other, _))) if header.generation <= other.generation => {}
            (Some(header), _) => newest = Some((header, place)),
        }
    }
    newest.ok_or_else(|| RegionTableError::Damaged { path: path.to_owned() })
}

struct Loaded {
    rows: Vec<u64>,
    /// The numbers of the blocks that were ever written.
    written: Vec<usize>,
}

fn read_rows(medium: &dyn Medium, header: &Header, path: &Path) -> io::Result<Loaded> {
    let count = header.count as usize;
    let mut loaded = Loaded { rows: Vec::with_capacity(count), written: Vec::new() };
    let unknown = header.accepted << 1 | 1;
    let mut damaged = 0_u64;
    let mut first_damaged = 0;
    let blocks = count.div_ceil(ROWS_PER_BLOCK);
    let mut run = vec![0; RUN_BYTES_MAX.min(blocks * BLOCK_BYTES)];
    for start in (0..blocks).step_by(RUN_BYTES_MAX / BLOCK_BYTES) {
        let run_bytes = run.len().min((blocks - start) * BLOCK_BYTES);
        medium.read(&mut run[..run_bytes], offset_of(place_of(start)))?;
        let (whole, _) = run[..run_bytes].as_chunks::<BLOCK_BYTES>();
        for (number, block) in (start..).zip(whole) {
            let rows = rows_from_block(block, place_of(number)).unwrap_or_else(|| {
                if damaged == 0 {
                    first_damaged = offset_of(place_of(number));
                }
                damaged += 1;
                [unknown; ROWS_PER_BLOCK]
            });
            if *block != [0; BLOCK_BYTES] {
                loaded.written.push(number);
            }
            let wanted = ROWS_PER_BLOCK.min(count - loaded.rows.len());
            loaded.rows.extend_from_slice(&rows[..wanted]);
        }
    }
    if damaged > 0 {
        log::warn!(
            "{}: blocks of rows are damaged, {damaged} of them, the first at {first_damaged}: \
             their regions will be compared with the other copies",
            path.display()
        );
    }
    Ok(loaded)
}

/// Writes blocks in the order of their places, those that touch in one piece. Not yet durable.
fn write_blocks(medium: &dyn Medium, blocks: impl Iterator<Item = (u64, Block)>) -> io::Result<()> {
    let mut run = Vec::new();
    let mut run_offset = 0;
    for (place, block) in blocks {
        let touches = offset_of(place) == run_offset + run.len() as u64;
        if !run.is_empty() && (!touches || run.len() >= RUN_BYTES_MAX) {
            medium.write(&run, run_offset)?;
            run.clear();
        }
        if run.is_empty() {
            run_offset = offset_of(place);
        }
        run.extend_from_slice(&block);
    }
    if run.is_empty() { Ok(()) } else { medium.write(&run, run_offset) }
}

/// Writes the header to both places, durable in the first before the second is touched. Makes all that
/// was written before durable too.
fn write_headers(medium: &dyn Medium, header: Header, places: [u64; 2]) -> io::Result<()> {
    for place in places {
        medium.write(&header.to_block(place), offset_of(place))?;
        medium.sync()?;
    }
    Ok(())
}

/// The rows of one block; the last block is filled up with rows of no region.
fn block_rows(rows: &[u64], number: usize) -> block::BlockRows {
    let start = number * ROWS_PER_BLOCK;
    let end = rows.len().min(start + ROWS_PER_BLOCK);
    let mut of_block = [0; ROWS_PER_BLOCK];
    of_block[..end - start].copy_from_slice(&rows[start..end]);
    of_block
}

fn first_header(volume: Uuid, region_bytes: u64, count: u32) -> Result<Header, RegionTableError> {
    if count > REGIONS_MAX {
        return Err(RegionTableError::TooManyRegions { count });
    }
    Ok(Header { generation: 1, volume, region_bytes, count, accepted: 0 })
}

fn place_of(number: usize) -> u64 {
    (HEADER_PLACES.len() + number) as u64
}

fn offset_of(place: u64) -> u64 {
    place * BLOCK_BYTES as u64
}

fn table_bytes(count: u32) -> u64 {
    offset_of(place_of((count as usize).div_ceil(ROWS_PER_BLOCK)))
}

const REGIONS_FILE: &str = "regions";
const NEW_REGIONS_FILE: &str = "regions.new";
const HEADER_PLACES: [u64; 2] = [0, 1];
const REGIONS_MAX: u32 = 1 << 20;
/// The most bytes that are read or written at once; a whole number of blocks.
const RUN_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests;
