//! The memory that tells the next process what this one had in flight (GET_INFLIGHT_FD, SET_INFLIGHT_FD).
//!
//! It is made here, kept by the front end, and comes back when the front end connects again.

use std::fs::File;
use std::io;
use std::sync::Arc;

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
}

impl InflightMemory {
    /// New memory for so many rings of so many descriptors, as a file that no one can shrink.
    ///
    /// # Errors
    ///
    /// [`SessionError::Inflight`] for numbers that no device here has, and when there is no memory.
    pub fn create(wanted: &VhostUserInflight, queues_max: u16) -> Result<(VhostUserInflight, File), SessionError> {
        check(wanted, queues_max)?;
        let bytes = bytes(wanted);
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
        if brought.mmap_size < bytes(brought) {
            return Err(refused(&"it is too small"));
        }
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
        let mapping = MmapRegion::from_file(offset, bytes(brought) as usize).map_err(|error| refused(&error))?;
        Ok(InflightMemory { mapping: Arc::new(mapping), queues: brought.num_queues, entries: brought.queue_size })
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

fn bytes(inflight: &VhostUserInflight) -> u64 {
    u64::from(inflight.num_queues) * Inflight::bytes(inflight.queue_size) as u64
}
