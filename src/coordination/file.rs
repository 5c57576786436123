//! Views in a folder, for volumes whose processes all run on one machine.
//!
//! | file | what it is |
//! | --- | --- |
//! | `UUID.json` | the view of a volume, replaced by a rename |
//! | `UUID.lock` | what `flock` is taken on to change it; empty, and never removed |
//! | `UUID.json.new` | a view about to replace the other one; left over only by a crash |
//!
//! A change holds the lock from reading the view to replacing it, so nobody else changes it in between.
//! Removing the lock file would break that: a process that waits for the old file and one that made a new
//! one would both hold "the" lock. Reading needs no lock, because a rename shows the old file or the new
//! one; but what it shows may not be durable yet, so a reader syncs the folder before it believes it.
//!
//! `flock` and a rename mean what they should on local file systems. Do not put the folder on one that
//! machines share.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use uuid::Uuid;

use super::record::{self, RECORD_BYTES_MAX};
use super::{Swap, ViewStore, ViewStoreError, check_next, check_storable};
use crate::replication::View;
use crate::replication::view::ViewNumber;
use crate::store::replace::{ReplaceError, replace};

/// The view of one volume, in a folder on this machine.
#[derive(Clone, Debug)]
pub struct FileViews {
    dir: PathBuf,
    volume: Uuid,
    lock_wait: Duration,
}

impl FileViews {
    /// The view of `volume` in the folder `dir`, which must exist when it is used. A change waits at most
    /// `lock_wait` for others that change the same view.
    pub fn new(dir: &Path, volume: Uuid, lock_wait: Duration) -> FileViews {
        FileViews { dir: dir.to_owned(), volume, lock_wait }
    }

    fn store(&self, view: &View) -> Result<(), ViewStoreError> {
        replace(&self.dir, &self.file_name(), &record::render(view)).map_err(|error| match error {
            ReplaceError::Untouched { .. } => self.unavailable(error),
            ReplaceError::Uncertain { .. } => ViewStoreError::Unknown { place: self.place(), source: error.into() },
        })
    }

    /// Waits for the lock; it goes when the file is dropped.
    fn lock(&self) -> Result<File, ViewStoreError> {
        let path = self.dir.join(format!("{}.lock", self.volume.hyphenated()));
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(|error| self.unavailable(error))?;
        let start = Instant::now();
        let mut pause = LOCK_PAUSE_MIN;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(errno) => return Err(self.unavailable(io::Error::from(errno))),
            }
            let left = self.lock_wait.saturating_sub(start.elapsed());
            if left.is_zero() {
                let message = format!("{} has been locked for {:?}", path.display(), self.lock_wait);
                return Err(self.unavailable(io::Error::new(io::ErrorKind::TimedOut, message)));
            }
            thread::sleep(pause.min(left));
            pause = (pause * 2).min(LOCK_PAUSE_MAX);
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.join(self.file_name())
    }

    fn file_name(&self) -> String {
        format!("{}.json", self.volume.hyphenated())
    }

    fn place(&self) -> String {
        self.path().display().to_string()
    }

    fn unavailable(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ViewStoreError {
        ViewStoreError::Unavailable { place: self.place(), source: source.into() }
    }
}

impl ViewStore for FileViews {
    fn create(&mut self, first: &View) -> Result<(), ViewStoreError> {
        check_storable(self.volume, first)?;
        let _lock = self.lock()?;
        match self.path().symlink_metadata() {
            Ok(_) => Err(ViewStoreError::Exists { place: self.place() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.store(first),
            Err(error) => Err(self.unavailable(error)),
        }
    }

    fn load(&mut self) -> Result<View, ViewStoreError> {
        // Opened first, so that a folder that is not there is told from a file that is not.
        let folder = File::open(&self.dir).map_err(|error| self.unavailable(error))?;
        let mut content = Vec::new();
        let limit = RECORD_BYTES_MAX as u64;
        match File::open(self.path()).and_then(|file| file.take(limit).read_to_end(&mut content)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ViewStoreError::NotFound { place: self.place() });
            }
            Err(error) => return Err(self.unavailable(error)),
        }
        // Whoever put it there may have been killed before it was durable.
        folder.sync_all().map_err(|error| self.unavailable(error))?;
        let parsed = record::parse(&content, self.volume);
        parsed.map_err(|reason| ViewStoreError::Damaged { place: self.place(), reason })
    }

    fn swap(&mut self, current: ViewNumber, next: &View) -> Result<Swap, ViewStoreError> {
        check_next(self.volume, current, next)?;
        let _lock = self.lock()?;
        let stored = self.load()?;
        if stored.number != current {
            return Ok(Swap::Conflict(stored));
        }
        self.store(next)?;
        Ok(Swap::Stored)
    }
}

const LOCK_PAUSE_MIN: Duration = Duration::from_millis(1);
const LOCK_PAUSE_MAX: Duration = Duration::from_millis(16);

#[cfg(test)]
mod tests;
