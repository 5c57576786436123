//! A volume in service: opened, unlocked, and with engines that move its sectors.
//!
//! What all queues share stands here: the cipher, how ranges are zeroed on this file system, and
//! the memory that a failed flush leaves behind. A failed `fdatasync` is final: the kernel may have
//! dropped the pages that it could not write, so that a second call would report success for data
//! that is gone. From then on every write and flush fails; reads go on.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Volume;
use super::lane::Lane;
use crate::crypto::xts::Xts;
use crate::io::file::BlockFile;
use crate::io::zeroing::KnownZeroing;
use crate::io::{Engines, Errno, Kind};
use crate::replication::primary::Primary;

/// A volume in service.
pub struct Attachment {
    volume: Volume,
    backing: Backing,
    read_only: bool,
    zeroing: KnownZeroing,
    flush_failed: AtomicBool,
    errors: AtomicU64,
}

/// Where the sectors are.
enum Backing {
    /// In one file.
    File(Engines),
    /// On every copy.
    Copies(Primary),
}

impl Attachment {
    /// Opens the data file of `volume` and starts engines of `kind` on it.
    pub fn new(volume: Volume, kind: Kind, read_only: bool) -> io::Result<Self> {
        let file = Arc::new(BlockFile::open(volume.data_path(), read_only, volume.sector_size_bytes() as usize)?);
        Ok(Self::with_engines(volume, Engines::new(kind, file)?, read_only))
    }

    /// Puts `volume` in service over engines that may not store anything in its data file: what
    /// the rest costs can be measured so.
    pub fn with_engines(volume: Volume, engines: Engines, read_only: bool) -> Self {
        Self::over(volume, Backing::File(engines), read_only)
    }

    /// Puts `volume` in service on all its copies.
    pub fn replicated(volume: Volume, primary: Primary) -> Self {
        Self::over(volume, Backing::Copies(primary), false)
    }

    fn over(volume: Volume, backing: Backing, read_only: bool) -> Self {
        Self {
            volume,
            backing,
            read_only,
            zeroing: KnownZeroing::default(),
            flush_failed: AtomicBool::new(false),
            errors: AtomicU64::new(0),
        }
    }

    /// The volume.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// The file that holds the sectors; none if they are on several copies.
    pub fn file(&self) -> Option<&BlockFile> {
        self.engines().map(|engines| &**engines.file())
    }

    /// What moves the sectors; none if they are on several copies.
    pub fn engines(&self) -> Option<&Engines> {
        match &self.backing {
            Backing::File(engines) => Some(engines),
            Backing::Copies(_) => None,
        }
    }

    /// Ends in order. No lane may be left.
    pub fn close(self) {
        if let Backing::Copies(primary) = self.backing {
            primary.close();
        }
    }

    /// A lane for the calling thread, with at most `depth` requests in flight.
    pub fn lane(self: &Arc<Self>, depth: usize) -> io::Result<Lane> {
        // A request of several pieces has more than one operation in flight: leave room for them.
        let engine = match &self.backing {
            Backing::File(engines) => engines.engine(depth * 2)?,
            Backing::Copies(primary) => primary.engine(depth * 2)?,
        };
        Ok(Lane::new(self.clone(), engine))
    }

    /// Makes everything that was written durable. For the end of service, when no lane is left.
    pub fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        if self.flush_failed() {
            return Err(io::Error::other("an earlier flush has failed"));
        }
        match &self.backing {
            // SAFETY: no memory is involved.
            Backing::File(engines) => match unsafe { libc::fdatasync(engines.file().as_raw_fd()) } {
                0 => Ok(()),
                _ => {
                    let error = Errno::last();
                    // The kernel tells of it once: the next flush, of whoever connects then, would end well.
                    self.poison(error);
                    Err(io::Error::from_raw_os_error(error.0))
                }
            },
            Backing::Copies(primary) => primary.flush(),
        }
    }

    pub(super) fn cipher(&self) -> Option<&Xts> {
        self.volume.cipher()
    }

    pub(super) fn flush_failed(&self) -> bool {
        self.flush_failed.load(Ordering::Acquire)
    }

    /// Notes that what was acknowledged may be lost. Where there are several copies, the writer knows which of
    /// them have lost something, and stops by itself if all have.
    pub(super) fn poison(&self, error: Errno) {
        if self.file().is_some() && !self.flush_failed.swap(true, Ordering::AcqRel) {
            log::error!(
                "{}: a flush failed ({error}): what was written since the last flush may be lost; every write and \
                 flush fails from now on. Check the disk, then detach and attach again",
                self.volume.data_path().display(),
            );
        }
    }

    /// Logs a failed request; of many, only some.
    pub(super) fn report(&self, what: &str, offset: u64, error: Errno) {
        let count = self.errors.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            let path = self.volume.data_path().display();
            log::error!("{path}: {what} at byte {offset} failed: {error} (failed requests so far: {count})");
        }
    }

    /// How ranges of the file are zeroed.
    pub(super) fn zeroing(&self) -> &KnownZeroing {
        &self.zeroing
    }
}
