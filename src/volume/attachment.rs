//! A volume in service: opened, unlocked, and with engines that move its sectors.
//!
//! What all queues share stands here: the cipher, how ranges are zeroed on this file system, and
//! the memory that a failed flush leaves behind. A failed `fdatasync` is final: the kernel may have
//! dropped the pages that it could not write, so that a second call would report success for data
//! that is gone. From then on every write and flush fails; reads go on.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use super::Volume;
use super::lane::Lane;
use crate::crypto::xts::Xts;
use crate::io::file::BlockFile;
use crate::io::{Engines, Errno, Kind, ZeroMethod};

/// A volume in service.
pub struct Attachment {
    volume: Volume,
    engines: Engines,
    read_only: bool,
    zeroing: AtomicU8,
    flush_failed: AtomicBool,
    errors: AtomicU64,
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
        Self {
            volume,
            engines,
            read_only,
            zeroing: AtomicU8::new(Zeroing::PunchHole as u8),
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

    /// The file that holds the sectors.
    pub fn file(&self) -> &BlockFile {
        self.engines.file()
    }

    /// A lane for the calling thread, with at most `depth` requests in flight.
    pub fn lane(self: &Arc<Self>, depth: usize) -> io::Result<Lane> {
        // A request of several pieces has more than one operation in flight: leave room for them.
        Ok(Lane::new(self.clone(), self.engines.engine(depth * 2)?))
    }

    /// Makes everything that was written durable. For the end of service, when no lane is left.
    pub fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        if self.flush_failed() {
            return Err(io::Error::other("an earlier flush has failed"));
        }
        // SAFETY: no memory is involved.
        match unsafe { libc::fdatasync(self.file().as_raw_fd()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub(super) fn cipher(&self) -> Option<&Xts> {
        self.volume.cipher()
    }

    pub(super) fn flush_failed(&self) -> bool {
        self.flush_failed.load(Ordering::Acquire)
    }

    /// Notes that what was acknowledged may be lost.
    pub(super) fn poison(&self, error: Errno) {
        if !self.flush_failed.swap(true, Ordering::AcqRel) {
            log::error!(
                "{}: a flush failed ({error}): what was written since the last flush may be lost; every write and \
                 flush fails from now on. Check the disk, then detach and attach again",
                self.file().path().display(),
            );
        }
    }

    /// Logs a failed request; of many, only some.
    pub(super) fn report(&self, what: &str, offset: u64, error: Errno) {
        let count = self.errors.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            let path = self.file().path().display();
            log::error!("{path}: {what} at byte {offset} failed: {error} (failed requests so far: {count})");
        }
    }

    pub(super) fn zeroing(&self) -> Zeroing {
        match self.zeroing.load(Ordering::Relaxed) {
            value if value == Zeroing::PunchHole as u8 => Zeroing::PunchHole,
            value if value == Zeroing::ZeroRange as u8 => Zeroing::ZeroRange,
            _ => Zeroing::Write,
        }
    }

    /// Notes that the file system cannot do `method`; what to try instead.
    pub(super) fn degrade_zeroing(&self, method: Zeroing) -> Zeroing {
        let next = match method {
            Zeroing::PunchHole => Zeroing::ZeroRange,
            Zeroing::ZeroRange | Zeroing::Write => Zeroing::Write,
        };
        if self.zeroing.fetch_max(next as u8, Ordering::Relaxed) < next as u8 {
            log::info!("{}: {method:?} is not supported here: using {next:?}", self.file().path().display());
        }
        next
    }
}

/// How a range is made to read as zeros, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zeroing {
    PunchHole = 0,
    ZeroRange = 1,
    /// Zeros are written: on disk they mean zeros.
    Write = 2,
}

impl Zeroing {
    pub(super) fn method(self) -> Option<ZeroMethod> {
        match self {
            Self::PunchHole => Some(ZeroMethod::PunchHole),
            Self::ZeroRange => Some(ZeroMethod::ZeroRange),
            Self::Write => None,
        }
    }
}
