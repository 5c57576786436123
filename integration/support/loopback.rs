//! Loop devices: a block device with the sector size that a test wants, which counts the flushes
//! that reach it, and a file system on it. Needs root.

use std::fs;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// A loop device over a sparse file; detached on drop.
pub struct LoopDevice {
    /// The device node.
    pub path: PathBuf,
    backing: PathBuf,
}

impl LoopDevice {
    /// A device of `size` bytes whose backing file lies in `folder`.
    pub fn attach(folder: &Path, size: u64, sector_size: u32) -> Self {
        let backing = folder.join(format!("loop-{sector_size}"));
        let file = File::create(&backing).expect("a backing file");
        file.set_len(size).expect("sizing the backing file");
        let output = run(Command::new("losetup")
            .args(["--find", "--show", "--direct-io=off", "--sector-size"])
            .arg(sector_size.to_string())
            .arg(&backing));
        Self { path: PathBuf::from(output.trim()), backing }
    }

    /// Loses the last bytes: they cannot be read until they are written again.
    pub fn lose_end(&self, bytes: u64) {
        // Not even the kernel knows them any more.
        run(Command::new("blockdev").arg("--flushbufs").arg(&self.path));
        let file = File::options().write(true).open(&self.backing).expect("the backing file");
        file.set_len(self.backing_bytes() - bytes).expect("cutting the backing file");
    }

    /// How many bytes it has.
    pub fn backing_bytes(&self) -> u64 {
        self.backing.metadata().expect("the backing file").len()
    }

    /// How many flush requests the device has completed.
    pub fn flushes(&self) -> u64 {
        let name = self.path.file_name().expect("a device name");
        let path = Path::new("/sys/block").join(name).join("stat");
        let stat = fs::read_to_string(path).expect("the device's statistics");
        // The sixteenth number, of the kernel's Documentation/block/stat.rst.
        let flushes = stat.split_whitespace().nth(15).expect("a flush counter");
        flushes.parse().expect("a number")
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.path).output();
        let _ = fs::remove_file(&self.backing);
    }
}

/// A mounted ext4; unmounted on drop, before its device is detached.
pub struct Mount {
    /// Where it is mounted.
    pub path: PathBuf,
    /// The device it is on.
    pub device: LoopDevice,
}

impl Mount {
    /// Makes a file system on `device` and mounts it on a new folder in `folder`.
    pub fn ext4(device: LoopDevice, folder: &Path) -> Self {
        let path = folder.join("mount");
        fs::create_dir(&path).expect("a mount point");
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-b", "4096"]).arg(&device.path));
        run(Command::new("mount").arg(&device.path).arg(&path));
        Self { path, device }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // The kernel closes the files of an io_uring process a moment after the process has ended.
        let deadline = Instant::now() + RELEASE_TIME;
        while !Command::new("umount").arg(&self.path).output().is_ok_and(|output| output.status.success()) {
            if Instant::now() > deadline {
                eprintln!("{} could not be unmounted", self.path.display());
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A file system in memory that has room for little; unmounted on drop.
pub struct SmallMemory {
    /// Where it is mounted.
    pub path: PathBuf,
}

// Of the programs that share this, those need it whose disks run full.
#[allow(dead_code)]
impl SmallMemory {
    /// Mounts one of `bytes` bytes at a folder.
    pub fn mount(at: PathBuf, bytes: u64) -> Self {
        let options = format!("size={bytes},mode=700");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&at));
        Self { path: at }
    }

    /// Changes how much it has room for.
    pub fn resize(&self, bytes: u64) {
        run(Command::new("mount").args(["-o", &format!("remount,size={bytes}")]).arg(&self.path));
    }

    /// Takes what is free, so that nothing more can be stored.
    pub fn fill(&self) {
        let mut file = File::create(self.path.join("filling")).expect("a file");
        let error = loop {
            if let Err(error) = file.write_all(&[0; 4096]) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    }
}

impl Drop for SmallMemory {
    fn drop(&mut self) {
        // Processes may still be using it.
        run(Command::new("umount").arg("--lazy").arg(&self.path));
    }
}

/// A file system that lets nothing be written, until this is dropped.
pub struct Frozen<'a>(&'a Path);

impl Frozen<'_> {
    /// Freezes what is mounted there.
    pub fn freeze(mount: &Path) -> Frozen<'_> {
        run(Command::new("fsfreeze").arg("--freeze").arg(mount));
        Frozen(mount)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        run(Command::new("fsfreeze").arg("--unfreeze").arg(self.0));
    }
}

/// Runs a command that must succeed, and returns its stdout.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}"));
    assert!(output.status.success(), "{command:?} failed: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What the kernel may take to let a file system go.
const RELEASE_TIME: Duration = Duration::from_secs(20);
