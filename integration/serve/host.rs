//! The host's file systems: direct I/O in units of 4096 bytes under a guest of 512, and memory
//! file systems that know no direct I/O.

use std::fs::{self, OpenOptions};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use tempfile::TempDir;

use crate::support::configuration::Configuration;
use crate::support::guest::Guest;
use crate::support::loopback::{Frozen, LoopDevice, Mount};
use crate::support::pattern::pattern;
use crate::support::request::{DISCARD, Layout, OK, Request, WRITE_ZEROES};
use crate::support::served::{Served, command};
use crate::support::volume::{SEALBLK, Volume};
use crate::support::wait_until;

const SIZE: u64 = 16 << 20;

under_every_configuration!(disk_with_sectors_of_4096, memory_file_system);
under_every_engine!(hangs_up_when_all_is_given_back);

fn disk_with_sectors_of_4096(configuration: Configuration) {
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let device = LoopDevice::attach(folder.path(), 128 << 20, 4096);
    let mount = Mount::ext4(device, folder.path());
    exercise(configuration, &mount.path);
}

fn memory_file_system(configuration: Configuration) {
    exercise(configuration, Path::new("/dev/shm"));
}

/// A front end that saw the end before would note how far the rings are while they still move.
fn hangs_up_when_all_is_given_back(configuration: Configuration) {
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let mount = Mount::ext4(LoopDevice::attach(folder.path(), 128 << 20, 512), folder.path());
    let volume = Volume::create_in(&mount.path, configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    let data = pattern(3, 4096);
    let frozen = Frozen::freeze(&mount.path);
    let request = |slot: u64| Request::write(slot * 4096, &data);
    let writes: Vec<_> = (0..8).map(|slot| guest.submit(0, &request(slot), &Layout::usual(&request(slot)))).collect();
    guest.kick(0);
    thread::sleep(Duration::from_millis(100));
    served.signal(libc::SIGTERM);
    thread::sleep(Duration::from_millis(500));
    assert!(!is_hung_up(&guest), "its writes are still with the disk");
    drop(frozen);
    wait_until("the server hangs up", || is_hung_up(&guest));
    let given_back = guest.rings[0].used_index(&guest.memory);
    assert!(given_back > 0, "none was given back");
    served.wait().assert_clean();
    assert_eq!(guest.rings[0].used_index(&guest.memory), given_back, "more were given back later");
    for pending in &writes[..given_back.into()] {
        assert_eq!(guest.finish(pending).status, OK);
    }
    drop(volume);
}

fn is_hung_up(guest: &Guest) -> bool {
    // SAFETY: the descriptor is open for as long as the guest is there.
    let socket = unsafe { BorrowedFd::borrow_raw(guest.frontend.as_raw_fd()) };
    let mut polled = [PollFd::new(&socket, PollFlags::RDHUP)];
    rustix::event::poll(&mut polled, Some(&Timespec::default())).expect("the state of the socket") > 0
}

#[test]
fn a_block_device_is_written_by_one_alone() {
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let device = LoopDevice::attach(folder.path(), SIZE, 512);
    let volume = Volume::create(Configuration::USUAL, SIZE);
    fs::remove_file(volume.data_path()).expect("removing the file");
    symlink(&device.path, volume.data_path()).expect("a link to the device");
    // As the kernel has it for a process that is gone, as long as the disk has not done what that had asked for.
    let claim = || OpenOptions::new().write(true).custom_flags(libc::O_EXCL).open(&device.path);
    let claimed = claim().expect("the device");
    let held = thread::spawn(move || {
        thread::sleep(Duration::from_secs(1));
        drop(claimed);
    });
    let served = Served::start(&volume);
    assert!(held.is_finished(), "it was written to by two");
    held.join().expect("the thread");
    served.guest().done(0, &Request::write(0, &pattern(1, 4096)));
    assert!(claim().is_err(), "it can be mounted meanwhile");
    served.terminate().assert_clean();

    let mut claimed = None;
    wait_until("the kernel lets go of the device", || {
        claimed = claim().ok();
        claimed.is_some()
    });
    let socket = folder.path().join("blk.sock");
    let output = command(&volume, &socket).output().expect("running sealblk");
    let reason = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && reason.contains("resource busy") && reason.contains("lsblk"), "{reason}");

    let image = folder.path().join("image");
    fs::write(&image, pattern(2, 4096)).expect("an image");
    let before = fs::read(&device.path).expect("reading the device");
    let mut import = Command::new(SEALBLK);
    import.args(["volume", "import"]).arg(volume.directory()).arg(&image).args(volume.key_arguments());
    let output = import.output().expect("running sealblk");
    let reason = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && reason.contains("resource busy"), "{reason}");
    assert!(fs::read(&device.path).expect("reading the device") == before, "it was written to");
    drop(claimed);
    assert!(import.status().expect("running sealblk").success());
}

/// Single sectors, and runs of them that begin and end anywhere in a block of the host's.
fn exercise(configuration: Configuration, parent: &Path) {
    let volume = Volume::create_in(parent, configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    let block = configuration.sector_size as usize;
    let mut model = vec![0; 1 << 20];
    for first in 0..9 {
        for count in [1, 2, 7, 8, 9, 17] {
            let data = pattern((first * 100 + count) as u64, count * block);
            let start = (first + 3 * count) * block;
            guest.done(0, &Request::write(start as u64, &data));
            model[start..start + data.len()].copy_from_slice(&data);
            let read = guest.done(0, &Request::read(start as u64, data.len()));
            assert!(read == data, "{count} sectors at sector {first}");
        }
    }
    for (kind, first) in [(DISCARD, 5), (WRITE_ZEROES, 23)] {
        let per_block = block as u64 / 512;
        let segment = (first * per_block, 9 * per_block as u32, 0);
        assert_eq!(guest.ranges(kind, &[segment]), OK);
        let start = first as usize * block;
        model[start..start + 9 * block].fill(0);
    }
    guest.flush();
    assert!(guest.read(0, model.len()) == model);
    drop(guest);
    served.terminate().assert_clean();
    volume.assert_holds(0, &model);
}
