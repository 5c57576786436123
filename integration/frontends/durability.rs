//! When writes are durable: the cache mode decides, and a flush settles it.
//!
//! Durable means that the disk under the volume has been told to empty its own cache. The volume
//! lies on a loop device, whose flush counter is read before and after: what a file system or the
//! kernel does of its own accord only adds to it, so the counts below are bounds.

use std::sync::Arc;

use sealblk::io::buffer::{BUFFER_BYTES_MAX, BufferPool};
use sealblk::io::file::{BlockFile, Caching};
use sealblk::io::segments::Segment;
use sealblk::io::{Completion, Engine, Engines, Kind, Operation};
use tempfile::TempDir;
use vhost::vhost_user::message::VhostUserConfigFlags;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH};

use crate::support::configuration::Configuration;
use crate::support::guest::{Guest, Options, bit};
use crate::support::loopback::{LoopDevice, Mount, SmallMemory};
use crate::support::pattern::pattern;
use crate::support::request::{DISCARD, OK, WRITE_ZEROES};
use crate::support::served::Served;
use crate::support::volume::Volume;

const SIZE: u64 = 16 << 20;
const WRITES: u64 = 20;

under_every_engine!(
    written_through_when_the_cache_is_off,
    written_through_by_the_next_process_too,
    written_through_when_flush_was_not_taken,
    written_back_until_a_flush,
);

/// A volume on its own disk.
struct Disk {
    // Dropped in this order: the server, then the volume, then what it lies on.
    served: Served,
    volume: Volume,
    mount: Mount,
    _folder: TempDir,
}

impl Disk {
    fn new(configuration: Configuration) -> Self {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let device = LoopDevice::attach(folder.path(), 128 << 20, 512);
        let mount = Mount::ext4(device, folder.path());
        let volume = Volume::create_in(&mount.path, configuration, SIZE);
        Self { served: Served::start(&volume), volume, mount, _folder: folder }
    }

    /// Kills the server; another goes on.
    fn serve_anew(&mut self, guest: &mut Guest) {
        self.served.kill();
        self.served = Served::start(&self.volume);
        guest.reconnect(self.served.socket());
    }

    fn flushes(&self) -> u64 {
        self.mount.device.flushes()
    }

    /// Checks that each of some writes reaches the disk before it completes.
    fn assert_written_through(&self, guest: &mut Guest) {
        for index in 0..WRITES {
            let before = self.flushes();
            guest.write(index * 4096, &pattern(index, 4096));
            assert!(self.flushes() > before, "write {index} was only cached");
        }
        for kind in [DISCARD, WRITE_ZEROES] {
            let before = self.flushes();
            assert_eq!(guest.ranges(kind, &[(8, 8, 0)]), OK);
            assert!(self.flushes() > before, "request {kind} was only cached");
        }
    }
}

fn written_through_when_the_cache_is_off(configuration: Configuration) {
    let disk = Disk::new(configuration);
    let mut guest = disk.served.guest();
    guest.write(0, &pattern(1, 128 << 10));
    guest.set_writeback(0, VhostUserConfigFlags::WRITABLE);
    disk.assert_written_through(&mut guest);
    // And back: fewer flushes than writes.
    guest.set_writeback(1, VhostUserConfigFlags::WRITABLE);
    assert_cached(&disk, &mut guest);
}

/// Whoever turned the cache off sends no flushes, and no front end says again what its driver has set.
fn written_through_by_the_next_process_too(configuration: Configuration) {
    let mut disk = Disk::new(configuration);
    let mut guest = disk.served.guest();
    guest.write(0, &pattern(1, 128 << 10));
    guest.set_writeback(0, VhostUserConfigFlags::WRITABLE);
    for _ in 0..2 {
        disk.serve_anew(&mut guest);
        disk.assert_written_through(&mut guest);
    }
    // And what is turned on stays on.
    guest.set_writeback(1, VhostUserConfigFlags::WRITABLE);
    disk.serve_anew(&mut guest);
    assert_cached(&disk, &mut guest);
}

/// 5.2.6.2: FLUSH was offered, and neither it nor CONFIG_WCE was taken.
fn written_through_when_flush_was_not_taken(configuration: Configuration) {
    let disk = Disk::new(configuration);
    let untaken = bit(VIRTIO_BLK_F_FLUSH) | bit(VIRTIO_BLK_F_CONFIG_WCE);
    for options in [Options::CLOUD_HYPERVISOR, Options::FIRECRACKER] {
        let mut guest = disk.served.guest_as(options.without(untaken));
        guest.write(0, &pattern(2, 128 << 10));
        disk.assert_written_through(&mut guest);
    }
}

fn written_back_until_a_flush(configuration: Configuration) {
    let disk = Disk::new(configuration);
    for options in [Options::CLOUD_HYPERVISOR, Options::FIRECRACKER] {
        let mut guest = disk.served.guest_as(options);
        guest.write(0, &pattern(3, 1 << 20));
        guest.flush();
        assert_cached(&disk, &mut guest);
        for index in 0..5 {
            guest.write(index * 4096, &pattern(index, 4096));
            let before = disk.flushes();
            guest.flush();
            assert!(disk.flushes() > before, "flush {index} reached no disk");
        }
    }
    // The last front end left without a flush: ending the server is one.
    disk.served.guest().write(0, &pattern(9, 4096));
    let before = disk.flushes();
    disk.served.terminate().assert_clean();
    assert!(disk.mount.device.flushes() > before);
    disk.volume.assert_holds(0, &pattern(9, 4096));
}

/// Checks that writes over what is allocated are not all written through.
fn assert_cached(disk: &Disk, guest: &mut Guest) {
    let before = disk.flushes();
    for index in 0..4 * WRITES {
        guest.write(index % 16 * 4096, &pattern(index, 4096));
    }
    let flushed = disk.flushes() - before;
    assert!(flushed < WRITES, "{flushed} flushes in {} writes", 4 * WRITES);
}

/// The page cache takes what the disk then refuses, and the kernel tells each open file of it once.
#[test]
fn every_queue_hears_that_cached_writes_are_lost() {
    for kind in [Kind::Uring, Kind::Threads, Kind::Inline] {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let memory = SmallMemory::mount(folder.path().to_owned(), 1 << 20);
        let device = LoopDevice::attach(&memory.path, 16 << 20, 4096);
        memory.fill();
        let file = Arc::new(BlockFile::open(&device.path, false, 512).expect("the device"));
        assert_eq!(file.caching(), Caching::Buffered);
        let engines = Engines::new(kind, file).expect("the engine works here");
        let mut queues = [(); 2].map(|()| engines.engine(8).expect("an engine"));
        let mut buffer = BufferPool::new(BUFFER_BYTES_MAX).take(4096).expect("a buffer");
        // SAFETY: the buffer holds as much, and lives until `ended` has returned.
        let written = unsafe {
            queues[0].submit(
                Operation::Write { offset: 0, durable: false },
                &[Segment::new(buffer.as_mut_ptr(), 4096)],
                0,
            );
            ended(&mut *queues[0])
        };
        assert_eq!(written.result, Ok(()), "{kind}: the cache takes it");
        for queue in &mut queues {
            // SAFETY: no memory is involved.
            unsafe { queue.submit(Operation::Sync, &[], 1) };
            let flushed = ended(&mut **queue);
            assert!(flushed.result.is_err(), "{kind}: a flush ended well: {flushed:?}");
        }
    }
}

/// How the operation in flight ends.
fn ended(queue: &mut dyn Engine) -> Completion {
    let mut completions = Vec::new();
    while completions.is_empty() {
        queue.wait(&[]).expect("waiting for it");
        queue.drive(&mut completions).expect("what has ended");
    }
    completions[0]
}
