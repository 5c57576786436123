//! Real guests on a sealblk disk: Linux under QEMU writes, checks, reboots, loses its power,
//! discards, and boots from the disk itself.
//!
//! The guest's side of each story is a shell script beside this file, in `guest/`; what they run
//! on is built by `vm-images/` from Debian packages. Needs those of `.ci/packages.txt`.

#[path = "guest/backend.rs"]
mod backend;
#[path = "guest/images.rs"]
mod images;
// Other programs need more of it.
#[allow(dead_code)]
#[path = "support/loopback.rs"]
mod loopback;
#[path = "guest/machine.rs"]
mod machine;

use std::fs;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use backend::{Backend, Disk, Engine};
use images::Images;
use loopback::{Frozen, LoopDevice, Mount};
use machine::{Machine, RunningMachine, Start};
use sha2::{Digest, Sha256};

const MIB: u64 = 1 << 20;
const SERIAL: &str = "guest-disk-0001";

// Every pair of queue count, sector size and engine occurs in one of the four.

#[test]
fn disk_with_one_queue_512_byte_sectors_and_io_uring() {
    a_disk_keeps_what_its_guests_write(1, 512, Engine::IoUring);
}

#[test]
fn disk_with_one_queue_4096_byte_sectors_and_threads() {
    a_disk_keeps_what_its_guests_write(1, 4096, Engine::Threads);
}

#[test]
fn disk_with_four_queues_512_byte_sectors_and_threads() {
    a_disk_keeps_what_its_guests_write(4, 512, Engine::Threads);
}

#[test]
fn disk_with_four_queues_4096_byte_sectors_and_io_uring() {
    a_disk_keeps_what_its_guests_write(4, 4096, Engine::IoUring);
}

/// A guest fills the disk, reboots, and finds everything; loses its power, and a new machine on
/// the same back end finds everything again, then gives all the space back.
fn a_disk_keeps_what_its_guests_write(queues: u16, sector_size: u32, engine: Engine) {
    let disk = Disk::create(768, sector_size);
    let backend = Backend::start(&disk, engine, &["--serial", SERIAL]);
    let socket = backend.socket();
    let machine = Machine { disk: &socket, queues, start: Start::Kernel, job: include_str!("guest/disk.sh") };

    let mut guest = machine.boot();
    guest.booted();
    guest.answer_to("stage", "fill");
    let written = fill(&mut guest, queues, sector_size);
    guest.answer_to("then", "reboot");

    guest.booted();
    guest.answer_to("stage", "verify");
    verify(&mut guest, &written);
    guest.answer_to("then", "reboot");

    guest.booted();
    guest.answer_to("stage", "fall");
    guest.all_ok(&["ext4-mount", "xfs-mount"]);
    guest.asked("fall");
    guest.kill();

    let mut guest = machine.boot();
    guest.booted();
    guest.answer_to("stage", "verify");
    verify(&mut guest, &written);
    guest.answer_to("then", "reboot");

    guest.booted();
    guest.answer_to("stage", "give_back");
    give_back(&mut guest, &disk);
    guest.answer_to("then", "end");
    guest.done();
    backend.stop();
}

/// What a guest found on the file systems that it made.
struct Written {
    ext4_digest: String,
    xfs_digest: String,
}

fn fill(guest: &mut RunningMachine, queues: u16, sector_size: u32) -> Written {
    assert_eq!(guest.ok("serial"), SERIAL);
    assert_eq!(guest.ok("sector"), sector_size.to_string());
    assert_eq!(guest.ok("queues"), queues.to_string());
    assert_eq!(guest.ok("read-only"), "0");

    assert_eq!(guest.ok("cache"), "write back");
    assert_eq!(guest.ok("cache-through"), "write through, write through");
    guest.ok("fio-through");
    assert_eq!(guest.ok("cache-back"), "write back, write back");

    guest.all_ok(&["partitions", "fio-4k", "fio-mixed"]);
    guest.all_ok(&["ext4-make", "ext4-mount", "ext4-copy", "ext4-compare", "ext4-random"]);
    let ext4_digest = guest.ok("ext4-digest");
    guest.all_ok(&["ext4-unmount", "ext4-fsck"]);
    guest.all_ok(&["xfs-make", "xfs-mount", "xfs-copy", "xfs-compare", "xfs-random"]);
    let xfs_digest = guest.ok("xfs-digest");
    guest.all_ok(&["xfs-unmount", "xfs-fsck"]);
    Written { ext4_digest, xfs_digest }
}

fn verify(guest: &mut RunningMachine, written: &Written) {
    guest.ok("ext4-mount");
    assert_eq!(guest.ok("ext4-digest"), written.ext4_digest);
    guest.all_ok(&["ext4-unmount", "ext4-fsck", "xfs-mount"]);
    assert_eq!(guest.ok("xfs-digest"), written.xfs_digest);
    guest.all_ok(&["xfs-unmount", "xfs-fsck"]);
}

/// Each way to give space back does, by the host's count.
fn give_back(guest: &mut RunningMachine, disk: &Disk) {
    let allocated_at = |guest: &mut RunningMachine, question: &str| {
        guest.asked(question);
        let allocated = disk.allocated_bytes();
        guest.answer("go on");
        allocated
    };

    for kind in ["ext4", "xfs"] {
        guest.ok(&format!("{kind}-mount"));
        let full = allocated_at(guest, &format!("{kind}-full"));
        guest.ok(&format!("{kind}-trim"));
        let trimmed = allocated_at(guest, &format!("{kind}-trimmed"));
        guest.all_ok(&[&format!("{kind}-unmount"), &format!("{kind}-fsck")]);
        // The files are the guest's libraries, over 70 MiB, and 8 MiB of random bytes.
        assert!(trimmed + 64 * MIB < full, "fstrim on {kind}: {full} bytes allocated before, {trimmed} after");
    }

    guest.ok("random");
    let full = allocated_at(guest, "random-full");
    guest.ok("zero");
    let zeroed = allocated_at(guest, "random-zeroed");
    assert!(zeroed + 15 * MIB < full, "16 MiB of WRITE_ZEROES: {full} bytes allocated before, {zeroed} after");
    guest.all_ok(&["zero-reads", "discard"]);
    let discarded = allocated_at(guest, "random-discarded");
    assert!(discarded + 15 * MIB < zeroed, "16 MiB of DISCARD: {zeroed} bytes allocated before, {discarded} after");
    guest.all_ok(&["discard-reads", "all"]);
    let empty = allocated_at(guest, "all-discarded");
    assert!(empty < MIB, "{empty} bytes allocated on an empty disk");
}

#[test]
fn a_bios_boots_from_the_disk() {
    let image = Images::get().boot_disk();
    let disk = Disk::create(256, 512);
    disk.import(&image);
    let image = fs::read(&image).expect("the boot disk");
    let digest = hexadecimal(&Sha256::digest(&image));
    let megabytes = (image.len() as u64 / MIB).to_string();

    let backend = Backend::start(&disk, Engine::IoUring, &[] as &[&str]);
    let mut guest =
        Machine { disk: &backend.socket(), queues: 1, start: Start::Firmware, job: include_str!("guest/firmware.sh") }
            .boot();
    for then in ["reboot", "end"] {
        guest.booted();
        let command_line = guest.ok("kernel");
        assert!(command_line.contains("BOOT_IMAGE=(hd0,msdos1)/vmlinuz"), "{command_line}");
        guest.answer_to("megabytes", &megabytes);
        assert_eq!(guest.ok("digest"), digest);
        guest.answer_to("then", then);
    }
    guest.done();
    backend.stop();
}

#[test]
fn a_guest_does_not_notice_that_its_back_end_was_killed() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mount = Mount::ext4(LoopDevice::attach(folder.path(), 256 << 20, 512), folder.path());
    let place = mount.path.clone();
    let disk = Disk::create_in(&place, 128, 512);
    let mut backend = Backend::start(&disk, Engine::IoUring, &[] as &[&str]);
    let socket = backend.socket();
    let machine = Machine { disk: &socket, queues: 2, start: Start::Kernel, job: include_str!("guest/killed.sh") };
    let mut guest = machine.boot();
    guest.booted();
    guest.asked("begun");
    let (over, is_over) = channel();
    let killer = thread::spawn(move || {
        let mut kills = 0;
        while is_over.recv_timeout(Duration::from_millis(2500)) == Err(RecvTimeoutError::Timeout) {
            // Meanwhile reads end, and writes that came before them do not.
            let frozen = Frozen::freeze(&place);
            thread::sleep(Duration::from_millis(500));
            backend.kill();
            drop(frozen);
            backend.start_again();
            kills += 1;
        }
        (backend, kills)
    });
    guest.answer("go on");
    guest.ok("fio");
    over.send(()).unwrap();
    let (backend, kills) = killer.join().unwrap();
    assert!(kills >= 3, "it was killed {kills} times only");
    guest.ok("fio-again");
    guest.done();
    backend.stop();
    drop(disk);
    drop(mount);
}

#[test]
fn a_read_only_disk_takes_no_write() {
    let disk = Disk::create(64, 512);
    let image = fs::read(Images::get().boot_disk()).expect("the boot disk");
    assert_eq!(image.len() as u64, 64 * MIB);
    disk.import(&Images::get().boot_disk());
    let backend = Backend::start(&disk, Engine::Threads, &["--read-only"]);
    let mut guest =
        Machine { disk: &backend.socket(), queues: 1, start: Start::Kernel, job: include_str!("guest/read_only.sh") }
            .boot();
    guest.booted();
    assert_eq!(guest.ok("read-only"), "1");
    assert_eq!(guest.ok("digest"), hexadecimal(&Sha256::digest(&image)));
    guest.ok("write-refused");
    guest.done();
    backend.stop();
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
