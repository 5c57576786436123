//! Which copies of this node are open, and for how many connections.
//!
//! A copy is opened for the first connection that asks for it, and closed when nobody has used it for a
//! while, when it has failed, or when it is asked for by whoever is to serve it directly. Opening and
//! closing are done by one thread at a time for each copy, outside the lock of this list; others wait.
//!
//! Invariant: a connection is counted for as long as it holds anything of the copy, so a copy without
//! connections can be synced and its lock given up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::denied::Denied;
use super::error::ServerError;
use super::fence;
use super::served::Served;
use crate::io::Kind;
use crate::replication::copy::{CopyError, OpenCopy};
use crate::replication::replica::Refusal;
use crate::replication::view::{Incarnation, ViewNumber};
use crate::store::{Access, Holder, RegionTable, Store, StoreError};

/// The copies below one folder.
pub struct Copies {
    root: PathBuf,
    engine: Option<Kind>,
    write_behind_bytes: u64,
    /// So many stay open for nobody.
    idle_max: usize,
    list: Mutex<List>,
    changed: Condvar,
}

#[derive(Default)]
struct List {
    volumes: BTreeMap<Uuid, Slot>,
    connections: usize,
    stopping: bool,
    /// Copies whose last sync failed, since the process is to end.
    unsynced: usize,
}

impl List {
    /// The copy that nobody has used for longest, if there are more than so many such.
    fn longest_idle_beyond(&self, count: usize) -> Option<Uuid> {
        let idle = self.volumes.iter().filter_map(|(&volume, slot)| match slot {
            Slot::Open { connections: 0, closing: false, idle_since, .. } => Some((*idle_since, volume)),
            _ => None,
        });
        let mut idle: Vec<_> = idle.collect();
        idle.sort_unstable();
        (idle.len() > count).then(|| idle[0].1)
    }
}

enum Slot {
    /// A thread is opening or closing it.
    Busy,
    Open {
        served: Arc<Served>,
        connections: usize,
        closing: bool,
        idle_since: Instant,
    },
    /// It was given up for somebody who is about to take it, and to claim the volume then. Until that has been
    /// seen, or could have been, writers in a higher view wait.
    Released {
        until: Instant,
    },
}

/// What a writer that may have a copy has shown of itself.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// Whose copy.
    pub volume: Uuid,
    /// In which view it writes.
    pub view: ViewNumber,
    /// That it has the volume's key. Without that no process is ended for it.
    pub has_key: bool,
}

/// A copy that is open, as it was at a moment.
pub struct OpenNow {
    /// Whose copy.
    pub volume: Uuid,
    /// The last view that it accepted.
    pub accepted: ViewNumber,
    /// The life that it is in.
    pub incarnation: Incarnation,
    /// Whether it has failed.
    pub has_failed: bool,
    /// Its connections.
    pub connections: usize,
}

/// The right of one connection to a copy.
pub struct Lease {
    copies: Arc<Copies>,
    volume: Uuid,
    served: Option<Arc<Served>>,
}

impl Lease {
    /// The copy.
    pub fn served(&self) -> &Arc<Served> {
        self.served.as_ref().expect("a lease has it until it is dropped")
    }
}

impl Copies {
    /// The copies in folders below `root` that are named for their volumes.
    pub fn new(root: PathBuf, engine: Option<Kind>, write_behind_bytes: u64) -> Copies {
        Copies { root, engine, write_behind_bytes, idle_max: IDLE_MAX, list: Mutex::default(), changed: Condvar::new() }
    }

    /// Where the copies are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a volume's copy.
    pub fn dir(&self, volume: Uuid) -> PathBuf {
        self.root.join(volume.hyphenated().to_string())
    }

    /// Lets a connection in that has shown what it must, and opens the copy if it is closed. A process of this
    /// node that holds it is ended if the view is above the one that the copy has accepted, and stays above it for
    /// as long as that process may need to claim the volume itself.
    ///
    /// # Errors
    ///
    /// [`Denied`]; [`Denied::Busy`] also when `deadline` comes first.
    pub fn enter(self: &Arc<Self>, claim: Claim, deadline: Instant) -> Result<Lease, Denied> {
        let Claim { volume, view, .. } = claim;
        let mut list = self.lock();
        loop {
            if list.stopping || list.connections >= CONNECTIONS_MAX {
                return Err(Denied::Busy);
            }
            match list.volumes.get_mut(&volume) {
                Some(Slot::Open { served, connections, closing: false, .. })
                    if !served.copy().replica().has_failed() =>
                {
                    if *connections >= CONNECTIONS_PER_VOLUME_MAX {
                        return Err(Denied::Busy);
                    }
                    *connections += 1;
                    let served = Some(served.clone());
                    list.connections += 1;
                    return Ok(Lease { copies: self.clone(), volume, served });
                }
                Some(slot @ (Slot::Busy | Slot::Open { .. })) => {
                    // One that has failed is opened again when all have let go of it, also those who did not listen.
                    if let Slot::Open { served, .. } = slot {
                        served.close();
                    }
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(Denied::Busy);
                    }
                    list = self.wait(list, left);
                }
                Some(Slot::Released { until }) if Instant::now() < *until => {
                    // The disk may be slow, and others come for copies on others.
                    drop(list);
                    let accepted = peek_accepted(&self.dir(volume), volume)?;
                    if view <= accepted {
                        return Err(held(view, accepted, None));
                    }
                    list = self.lock();
                    if Instant::now() >= deadline {
                        return Err(Denied::Busy);
                    }
                    list = self.wait(list, NEW_STEP);
                }
                Some(Slot::Released { .. }) | None => {
                    list.volumes.insert(volume, Slot::Busy);
                    drop(list);
                    let opened = self.open(claim);
                    list = self.lock();
                    list.volumes.remove(&volume);
                    self.changed.notify_all();
                    let served = Arc::new(Served::new(opened?));
                    let slot = Slot::Open { served, connections: 0, closing: false, idle_since: Instant::now() };
                    list.volumes.insert(volume, slot);
                }
            }
        }
    }

    /// Closes a copy in order, so that whoever asks can take it. Its connections finish what is in flight.
    ///
    /// # Errors
    ///
    /// [`Denied::Busy`] when that is not done by the deadline.
    pub fn release(&self, volume: Uuid, deadline: Instant) -> Result<(), Denied> {
        let mut list = self.lock();
        loop {
            match list.volumes.get_mut(&volume) {
                None | Some(Slot::Released { .. }) => {
                    let until = Instant::now() + RELEASED;
                    list.volumes.insert(volume, Slot::Released { until });
                    return Ok(());
                }
                Some(Slot::Open { connections: 0, .. }) => {
                    list = self.shut(list, volume);
                    continue;
                }
                Some(Slot::Open { served, closing: closing @ false, .. }) => {
                    *closing = true;
                    served.close();
                }
                Some(Slot::Busy | Slot::Open { .. }) => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Denied::Busy);
            }
            list = self.wait(list, left);
        }
    }

    /// Closes a copy whose folder is gone: what is open of it is nobody's any more, and another is about to be made in
    /// its place.
    ///
    /// # Errors
    ///
    /// [`Denied::Busy`] when that is not done by the deadline.
    pub fn close_gone(&self, volume: Uuid, deadline: Instant) -> Result<(), Denied> {
        if self.dir(volume).symlink_metadata().is_ok() {
            return Ok(());
        }
        if matches!(self.lock().volumes.get(&volume), Some(Slot::Open { .. })) {
            log::warn!("{}: the folder of a copy that was open is gone", self.dir(volume).display());
            self.release(volume, deadline)?;
        }
        // It is not released for anybody, or was for somebody who has given it up since.
        let mut list = self.lock();
        if matches!(list.volumes.get(&volume), Some(Slot::Released { .. })) {
            list.volumes.remove(&volume);
        }
        self.changed.notify_all();
        Ok(())
    }

    /// Closes copies that nobody has used for a while.
    pub fn close_idle(&self, now: Instant) {
        let mut list = self.lock();
        let idle = |slot: &Slot| match slot {
            Slot::Open { connections: 0, idle_since, .. } => now.saturating_duration_since(*idle_since) >= IDLE,
            _ => false,
        };
        while let Some(volume) = list.volumes.iter().find(|(_, slot)| idle(slot)).map(|(volume, _)| *volume) {
            list = self.shut(list, volume);
        }
        list.volumes.retain(|_, slot| !matches!(slot, Slot::Released { until } if *until <= now));
    }

    /// Asks every connection for memory that it does not use.
    pub fn ask_for_memory(&self) {
        for slot in self.lock().volumes.values() {
            if let Slot::Open { served, .. } = slot {
                served.ask_for_memory();
            }
        }
    }

    /// Lets nobody in any more, and closes everything.
    ///
    /// # Errors
    ///
    /// [`ServerError::Stuck`] if the deadline comes first, [`ServerError::Unsynced`] if not everything is on the disk.
    pub fn close_all(&self, deadline: Instant) -> Result<(), ServerError> {
        let mut list = self.lock();
        list.stopping = true;
        loop {
            let mut idle = None;
            for (volume, slot) in &mut list.volumes {
                match slot {
                    Slot::Open { connections: 0, .. } => idle = Some(*volume),
                    Slot::Open { served, closing: closing @ false, .. } => {
                        *closing = true;
                        served.close();
                    }
                    _ => {}
                }
            }
            list.volumes.retain(|_, slot| !matches!(slot, Slot::Released { .. }));
            if let Some(volume) = idle {
                list = self.shut(list, volume);
                continue;
            }
            if list.volumes.is_empty() {
                let copies = list.unsynced;
                return if copies == 0 { Ok(()) } else { Err(ServerError::Unsynced { copies }) };
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ServerError::Stuck);
            }
            list = self.wait(list, left);
        }
    }

    /// How many copies are open, and how many connections they have together.
    pub fn counts(&self) -> (usize, usize) {
        let list = self.lock();
        (list.volumes.values().filter(|slot| matches!(slot, Slot::Open { .. })).count(), list.connections)
    }

    /// The copies that are open.
    pub fn open_now(&self) -> Vec<OpenNow> {
        let list = self.lock();
        let open = list.volumes.iter().filter_map(|(&volume, slot)| match slot {
            Slot::Open { served, connections, .. } => {
                let (replica, connections) = (served.copy().replica(), *connections);
                let (accepted, incarnation) = (replica.accepted(), replica.incarnation());
                Some(OpenNow { volume, accepted, incarnation, has_failed: replica.has_failed(), connections })
            }
            _ => None,
        });
        open.collect()
    }

    /// Syncs and closes a copy that has no connections.
    fn shut<'a>(&'a self, mut list: MutexGuard<'a, List>, volume: Uuid) -> MutexGuard<'a, List> {
        let slot = list.volumes.insert(volume, Slot::Busy);
        drop(list);
        let mut synced = true;
        if let Some(Slot::Open { served, .. }) = slot {
            served.finish_persisting();
            if !served.copy().replica().has_failed()
                && let Err(error) = served.copy().sync()
            {
                log::error!("{}: the last sync before closing failed: {error}", served.copy().dir().display());
                synced = false;
            }
            log::info!("{}: closed", served.copy().dir().display());
        }
        let mut list = self.lock();
        list.unsynced += usize::from(list.stopping && !synced);
        list.volumes.remove(&volume);
        self.changed.notify_all();
        list
    }

    fn open(&self, claim: Claim) -> Result<Arc<OpenCopy>, Denied> {
        let dir = self.dir(claim.volume);
        let mut opened = OpenCopy::open(&dir, self.engine);
        while is_in_use(&opened) && claim.has_key && claim.view > peek_accepted(&dir, claim.volume)? && is_new(&dir) {
            thread::sleep(NEW_STEP);
            opened = OpenCopy::open(&dir, self.engine);
        }
        if is_in_use(&opened) {
            self.take_over(claim, &dir)?;
            opened = OpenCopy::open(&dir, self.engine);
        }
        let copy = opened?;
        copy.replica().write_behind(self.write_behind_bytes);
        let engine = copy.engine().map_or(String::new(), |engine| format!(", {engine} engine"));
        log::info!("{}: opened, in incarnation {}{engine}", dir.display(), copy.incarnation().0);
        Ok(copy)
    }

    /// Makes the process that holds a copy give it up, if it has been replaced and who comes has shown that.
    fn take_over(&self, claim: Claim, dir: &Path) -> Result<(), Denied> {
        let accepted = peek_accepted(dir, claim.volume)?;
        if claim.view <= accepted || !claim.has_key {
            let holder = Holder::read(dir).ok().flatten().filter(Holder::is_alive);
            return Err(held(claim.view, accepted, holder.map(|holder| holder.pid())));
        }
        let data = Store::open(dir, Access::Inspect)?.data_path().to_owned();
        Ok(fence::end_holder(dir, &data)?)
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, list: MutexGuard<'a, List>, time: Duration) -> MutexGuard<'a, List> {
        self.changed.wait_timeout(list, time).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(served) = self.served.take() else { return };
        let failed = served.copy().replica().has_failed();
        drop(served);
        let mut list = self.copies.lock();
        list.connections -= 1;
        let mut shut = false;
        if let Some(Slot::Open { connections, idle_since, .. }) = list.volumes.get_mut(&self.volume) {
            *connections -= 1;
            *idle_since = Instant::now();
            shut = *connections == 0 && failed;
        }
        if shut {
            list = self.copies.shut(list, self.volume);
        }
        while let Some(volume) = list.longest_idle_beyond(self.copies.idle_max) {
            list = self.copies.shut(list, volume);
        }
        drop(list);
        self.copies.changed.notify_all();
    }
}

/// Why a writer in `view` does not get a copy that another process has: it has been replaced, or it comes too
/// early.
fn held(view: ViewNumber, accepted: ViewNumber, pid: Option<u32>) -> Denied {
    if view < accepted { Refusal::Superseded(accepted).into() } else { Denied::InUse { pid } }
}

fn is_in_use(opened: &Result<Arc<OpenCopy>, CopyError>) -> bool {
    matches!(opened, Err(CopyError::Store(StoreError::InUse { .. })))
}

/// Whether the process that holds a copy has only just taken it. It may be about to claim the volume in a view
/// above that of the writer who comes for the copy, and is not yet to be told from one that was replaced.
fn is_new(dir: &Path) -> bool {
    let holder = Holder::read(dir).ok().flatten().filter(Holder::is_alive);
    holder.and_then(|holder| holder.held_for()).is_some_and(|time| time < CLAIM_PATIENCE)
}

/// The view that a copy has accepted, without its lock.
fn peek_accepted(dir: &Path, volume: Uuid) -> Result<ViewNumber, Denied> {
    RegionTable::peek_accepted(dir, volume).map(ViewNumber).map_err(|error| Denied::Copy(error.into()))
}

const CONNECTIONS_MAX: usize = 4096;
const CONNECTIONS_PER_VOLUME_MAX: usize = 128;
/// How long a copy stays open for nobody.
const IDLE: Duration = Duration::from_secs(30);
/// So many stay open for nobody, for less than that.
const IDLE_MAX: usize = 1024;
/// How long a copy that was released is left alone.
const RELEASED: Duration = Duration::from_secs(5);
/// What a process has from taking a copy to having claimed the volume.
const CLAIM_PATIENCE: Duration = Duration::from_secs(5);
const NEW_STEP: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{SectorSize, Superblock};

    #[test]
    fn of_copies_that_nobody_uses_so_many_stay_open_and_those_used_last() {
        let root = tempfile::tempdir().unwrap();
        let copies = Copies { idle_max: 2, ..Copies::new(root.path().to_owned(), Some(Kind::Inline), 0) };
        let copies = Arc::new(copies);
        let volumes: Vec<_> = (0..4).map(|_| Uuid::new_v4()).collect();
        let enter = |volume: Uuid| {
            let claim = Claim { volume, view: ViewNumber(1), has_key: false };
            copies.enter(claim, Instant::now() + Duration::from_secs(10)).unwrap()
        };
        for &volume in &volumes {
            let superblock = Superblock::plain(volume, 1 << 20, SectorSize::Bytes512).unwrap();
            drop(Store::create(&copies.dir(volume), &superblock, None).unwrap());
        }
        let used = enter(volumes[0]);
        for &volume in &volumes[1..] {
            drop(enter(volume));
        }
        let open = |volume: &Uuid| copies.open_now().iter().any(|copy| copy.volume == *volume);
        assert_eq!(volumes.iter().map(open).collect::<Vec<_>>(), [true, false, true, true]);
        drop(used);
        assert_eq!(volumes.iter().map(open).collect::<Vec<_>>(), [true, false, false, true]);
    }
}
