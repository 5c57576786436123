//! virtio-blk itself (virtio 1.2 §5.2): what is offered, what requests mean, and the workers that
//! serve them.
//!
//! A [`Disk`] is what all queues share: the attached volume and what was negotiated for it. Each
//! started queue has a [`worker`] of its own, a thread that takes requests from its [`ring`], checks
//! them in [`request`] and passes them to the volume. What the guest puts in memory is hostile:
//! every length, offset and address is checked, read once, and never trusted to stay the same.

pub mod config;
pub mod features;
pub mod inflight;
pub mod request;
pub mod ring;
pub mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vm_memory::GuestMemoryMmap;

use crate::volume::attachment::Attachment;
use request::Limits;

/// The guest's memory as the front end maps it.
pub type GuestMemory = GuestMemoryMmap<()>;

/// A virtio-blk device over an attached volume.
pub struct Disk {
    attachment: Arc<Attachment>,
    serial: Serial,
    queues_max: u16,
    features: AtomicU64,
    writeback: AtomicBool,
}

impl Disk {
    /// A device of at most `queues_max` queues.
    pub fn new(attachment: Arc<Attachment>, serial: Serial, queues_max: u16) -> Self {
        Self { attachment, serial, queues_max, features: AtomicU64::new(0), writeback: AtomicBool::new(true) }
    }

    /// The volume behind it.
    pub fn attachment(&self) -> &Arc<Attachment> {
        &self.attachment
    }

    /// The most queues that a driver may use.
    pub fn queues_max(&self) -> u16 {
        self.queues_max
    }

    /// The feature bits offered (virtio 1.2 §5.2.3 and §6).
    pub fn offered_features(&self) -> u64 {
        features::offered(self.attachment.read_only())
    }

    /// Takes the feature bits that the driver accepted. What the write cache was set to stays: QEMU reads the
    /// configuration space once, answers drivers out of what it has read and set, and sends no setting twice. So after a
    /// guest has started again its next driver is told, and sends flushes or not, by what the one before it has set.
    pub fn negotiate(&self, accepted: u64) {
        self.features.store(accepted & self.offered_features(), Ordering::Relaxed);
    }

    /// Forgets what was negotiated, for the next driver.
    pub fn reset(&self) {
        self.features.store(0, Ordering::Relaxed);
        self.writeback.store(true, Ordering::Relaxed);
    }

    /// The feature bits that the driver accepted.
    pub fn accepted_features(&self) -> u64 {
        self.features.load(Ordering::Relaxed)
    }

    /// The configuration space (§5.2.4) as it is now.
    pub fn config(&self) -> [u8; config::CONFIG_BYTES] {
        let volume = self.attachment.volume();
        config::Config {
            size_bytes: volume.size_bytes(),
            sector_size_bytes: volume.sector_size_bytes(),
            queues: self.queues_max,
            writeback: self.writeback.load(Ordering::Relaxed) && !self.lacks_flush(),
        }
        .to_bytes()
    }

    /// Sets the `writeback` field of the configuration space (§5.2.5.2): with false, each write is
    /// durable before it completes.
    pub fn set_writeback(&self, writeback: bool) {
        if self.writeback.swap(writeback, Ordering::Relaxed) != writeback {
            log::info!("write cache: {}", if writeback { "write back" } else { "write through" });
        }
    }

    /// What the write cache was set to.
    pub fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Relaxed)
    }

    /// Whether a write must be durable before it completes (§5.2.6.2): also for a driver that accepted nothing, or
    /// turned the cache on and cannot flush it.
    pub fn writes_through(&self) -> bool {
        !self.writeback.load(Ordering::Relaxed) || !features::has(self.accepted_features(), features::FLUSH)
    }

    /// Whether a driver has accepted features, and not the one by which it could make a cached write stable (§5.2.5.2).
    fn lacks_flush(&self) -> bool {
        let accepted = self.accepted_features();
        accepted != 0 && !features::has(accepted, features::FLUSH)
    }

    /// What requests are checked against.
    pub fn limits(&self, queue_size: u16) -> Limits {
        let volume = self.attachment.volume();
        Limits {
            size_bytes: volume.size_bytes(),
            sector_size_bytes: volume.sector_size_bytes(),
            read_only: self.attachment.read_only(),
            descriptors_max: usize::from(queue_size).max(config::SEGMENTS_MAX as usize + 2),
        }
    }

    /// The device ID string of GET_ID.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }
}

/// The 20 bytes that GET_ID returns: ASCII, padded with zeros (§5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serial([u8; Serial::BYTES]);

/// A text that cannot be a serial.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the serial {0:?} is not 1 to 20 printable ASCII characters: choose a shorter or plainer one")]
pub struct SerialError(String);

impl Serial {
    /// The length of the field.
    pub const BYTES: usize = 20;

    /// The field's bytes.
    pub fn bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl std::str::FromStr for Serial {
    type Err = SerialError;

    fn from_str(text: &str) -> Result<Self, SerialError> {
        let printable = text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        if text.is_empty() || text.len() > Self::BYTES || !printable {
            return Err(SerialError(text.to_owned()));
        }
        let mut bytes = [0; Self::BYTES];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Kind;
    use crate::store::{Access, SectorSize};
    use crate::volume::{Creation, Volume};

    #[test]
    fn the_write_cache_stays_as_it_was_set_while_drivers_come_and_go() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("disk");
        let creation = Creation { size_bytes: 1 << 20, sector_size: SectorSize::Bytes512, device: None };
        Volume::create(&dir, creation, None).unwrap();
        let volume = Volume::open(&dir, None, Access::Exclusive).unwrap();
        let attachment = Attachment::new(volume, Kind::Inline, false).unwrap();
        let disk = Disk::new(Arc::new(attachment), "disk".parse().unwrap(), 1);
        let shown = || disk.config()[config::WRITEBACK_OFFSET];
        let all = disk.offered_features();
        assert_eq!(shown(), 1, "what a front end reads before there is a driver");
        disk.negotiate(all);
        assert!(!disk.writes_through());
        disk.set_writeback(false);
        // A guest starts again: its firmware takes little, its system everything, and believes what QEMU has kept.
        for accepted in [0, all & !(1 << features::FLUSH), all] {
            disk.negotiate(accepted);
            assert!(disk.writes_through(), "{accepted:#x}");
            assert_eq!(shown(), 0, "{accepted:#x}");
        }
        disk.set_writeback(true);
        disk.negotiate(all & !(1 << features::FLUSH));
        assert_eq!((shown(), disk.writes_through()), (0, true), "it could not flush");
        disk.negotiate(all);
        assert_eq!((shown(), disk.writes_through()), (1, false));
    }

    #[test]
    fn serials_are_padded_and_checked() {
        let serial: Serial = "disk 7".parse().unwrap();
        assert_eq!(serial.bytes(), b"disk 7\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert!("x".repeat(20).parse::<Serial>().is_ok());
        for bad in ["", &"x".repeat(21), "ü", "a\n"] {
            assert!(bad.parse::<Serial>().is_err(), "{bad:?}");
        }
    }
}
