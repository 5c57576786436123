//! The memory that tells the next process what this one had in flight (GET_INFLIGHT_FD, SET_INFLIGHT_FD).
//!
//! It is made here, kept by the front end, and comes back when the front end connects again. Behind the parts of the
//! rings stands what else the next process has to know and no front end says twice: how the driver has set the write
//! cache.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::{FileOffset, MmapRegion};

use super::SessionError;
use super::rings::QUEUE_SIZE_MAX;
use crate::device::inflight::Inflight;

/// The memory of all rings of a device.
pub struct InflightMemory {
    mapping: Arc<MmapRegion<()>>,
    queues: u16,
    entries: u16,
    /// Where the write cache's setting stands; nowhere in memory that another back end has made.
    write_cache: Option<usize>,
}

impl InflightMemory {
    /// New memory for so many rings of so many descriptors, as a file that no one can shrink.
    ///
    /// # Errors
    ///
    /// [`SessionError::Inflight`] for numbers that no device here has, and when there is no memory.
    pub fn create(wanted: &VhostUserInflight, queues_max: u16) -> Result<(VhostUserInflight, File), SessionError> {
        check(wanted, queues_max)?;
        let bytes = bytes_of_rings(wanted) + DEVICE_BYTES;
        let make = || -> io::Result<File> {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = File::from(rustix::fs::memfd_create("sealblk-inflight", flags)?);
            file.set_len(bytes)?;
            rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
            Ok(file)
        };
        let file = make().map_err(|error| SessionError::Inflight(error.to_string()))?;
        Ok((VhostUserInflight::new(bytes, 0, wanted.num_queues, wanted.queue_size), file))
    }

    /// The memory that the front end brings.
    ///
    /// # Errors
    ///
    /// [`SessionError::Inflight`] if it is not what it is said to be, or could be taken away while it is in use.
    pub fn map(brought: &VhostUserInflight, file: File, queues_max: u16) -> Result<InflightMemory, SessionError> {
        check(brought, queues_max)?;
        let refused = |error: &dyn std::fmt::Display| SessionError::Inflight(error.to_string());
        let of_rings = bytes_of_rings(brought);
        if brought.mmap_size < of_rings {
            return Err(refused(&"it is too small"));
        }
        let is_ours = brought.mmap_size >= of_rings + DEVICE_BYTES;
        let seals = rustix::fs::fcntl_get_seals(&file).map_err(|error| refused(&error))?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(refused(&"it is not sealed against being shrunk"));
        }
        let end = brought.mmap_offset.checked_add(brought.mmap_size);
        let len = file.metadata().map_err(|error| refused(&error))?.len();
        if end.is_none_or(|end| end > len) {
            return Err(refused(&"its file is shorter"));
        }
        let offset = FileOffset::new(file, brought.mmap_offset);
        let bytes = of_rings + if is_ours { DEVICE_BYTES } else { 0 };
        let mapping = MmapRegion::from_file(offset, bytes as usize).map_err(|error| refused(&error))?;
        Ok(InflightMemory {
            mapping: Arc::new(mapping),
            queues: brought.num_queues,
            entries: brought.queue_size,
            write_cache: is_ours.then_some(of_rings as usize),
        })
    }

    /// Whether writes are cached, as whoever had this memory before has noted it; none if nobody has.
    pub fn writeback(&self) -> Option<bool> {
        match self.write_cache()?.load(Ordering::Acquire) {
            UNSET => None,
            // Whatever else a front end may have put there: to write through is wrong for nobody.
            value => Some(value == WRITE_BACK),
        }
    }

    /// Notes whether writes are cached.
    pub fn note_writeback(&self, writeback: bool) {
        if let Some(cache) = self.write_cache() {
            cache.store(if writeback { WRITE_BACK } else { WRITE_THROUGH }, Ordering::Release);
        }
    }

    fn write_cache(&self) -> Option<&AtomicU8> {
        let offset = self.write_cache?;
        // SAFETY: a byte inside the mapping, which lives as long as `self`; nobody touches it in another way.
        Some(unsafe { AtomicU8::from_ptr(self.mapping.as_ptr().add(offset)) })
    }

    /// The part of one ring; none if there is none.
    pub fn of_queue(&self, index: u16) -> Option<Inflight> {
        let offset = usize::from(index) * Inflight::bytes(self.entries);
        (index < self.queues).then(|| Inflight::new(self.mapping.clone(), offset, self.entries)).flatten()
    }
}

fn check(inflight: &VhostUserInflight, queues_max: u16) -> Result<(), SessionError> {
    let (queues, entries) = (inflight.num_queues, inflight.queue_size);
    if queues == 0 || queues > queues_max || entries == 0 || entries > QUEUE_SIZE_MAX {
        return Err(SessionError::Inflight(format!(
            "{queues} queues of {entries} are asked for, and there are {queues_max} of {QUEUE_SIZE_MAX} at most"
        )));
    }
    Ok(())
}

fn bytes_of_rings(inflight: &VhostUserInflight) -> u64 {
    u64::from(inflight.num_queues) * Inflight::bytes(inflight.queue_size) as u64
}

/// What stands behind the parts of the rings: one byte, and room for more.
const DEVICE_BYTES: u64 = 64;
// How the write cache is set. New memory is zero.
const UNSET: u8 = 0;
const WRITE_BACK: u8 = 1;
const WRITE_THROUGH: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(inflight: &VhostUserInflight, file: &File) -> InflightMemory {
        InflightMemory::map(inflight, file.try_clone().unwrap(), 2).unwrap()
    }

    #[test]
    fn the_write_cache_is_found_as_it_was_noted() {
        let wanted = VhostUserInflight::new(0, 0, 2, 128);
        let (inflight, file) = InflightMemory::create(&wanted, 2).unwrap();
        assert_eq!(mapped(&inflight, &file).writeback(), None);
        for writeback in [false, true] {
            mapped(&inflight, &file).note_writeback(writeback);
            assert_eq!(mapped(&inflight, &file).writeback(), Some(writeback));
        }
        assert!(mapped(&inflight, &file).of_queue(1).is_some());
    }

    #[test]
    fn what_cannot_be_right_means_writing_through() {
        let (inflight, file) = InflightMemory::create(&VhostUserInflight::new(0, 0, 1, 8), 1).unwrap();
        let memory = mapped(&inflight, &file);
        memory.write_cache().unwrap().store(0xff, Ordering::Relaxed);
        assert_eq!(memory.writeback(), Some(false));
    }

    #[test]
    fn memory_of_another_back_end_has_rings_and_no_more() {
        let (ours, file) = InflightMemory::create(&VhostUserInflight::new(0, 0, 2, 128), 2).unwrap();
        let theirs = VhostUserInflight::new(ours.mmap_size - DEVICE_BYTES, 0, 2, 128);
        let memory = mapped(&theirs, &file);
        memory.note_writeback(false);
        assert_eq!(memory.writeback(), None);
        assert!(memory.of_queue(1).is_some());
    }
}
