//! The disk under test: a volume, and the process that serves it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const SERIAL: &str = "guest-test-0001";
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// An encrypted volume in a folder of its own.
pub struct Disk {
    folder: TempDir,
    sector_size: u32,
}

impl Disk {
    /// A new volume under a new key.
    pub fn create(size_mib: u64, sector_size: u32) -> Disk {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let data = fs::File::create(folder.path().join("data")).expect("data");
        data.set_len(size_mib << 20).expect("data has its length");
        Disk {
            folder,
            sector_size,
        }
    }

    /// Writes a raw image into the volume.
    pub fn import(&self, image: &Path) {
        let status = Command::new("dd")
            .arg(format!("if={}", image.display()))
            .arg(format!("of={}", self.data().display()))
            .args(["bs=1M", "conv=notrunc,sparse", "status=none"])
            .status()
            .expect("dd");
        assert!(status.success());
    }

    /// What the volume takes of the host's disk.
    pub fn allocated_bytes(&self) -> u64 {
        fs::metadata(self.data()).expect("data").blocks() * 512
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}

/// The engine that serves a volume.
#[derive(Clone, Copy, Debug)]
pub enum Engine {
    IoUring,
    Threads,
}

impl Engine {
    fn name(self) -> &'static str {
        match self {
            Engine::IoUring => "io_uring",
            Engine::Threads => "threads",
        }
    }
}

/// The process that serves a [`Disk`].
pub struct Backend {
    child: Child,
    folder: TempDir,
}

impl Backend {
    pub const SERIAL: &str = "vhost_user_blk";

    /// Serves `disk`, and returns once its socket listens.
    pub fn start(disk: &Disk, engine: Engine, read_only: bool) -> Backend {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let _ = SERIAL;
        let mut child = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!(
                "driver=file,node-name=d,filename={},discard=unmap,aio={},read-only={}",
                disk.data().display(),
                engine.name(),
                if read_only { "on" } else { "off" },
            ))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path={},writable={},num-queues=4,logical-block-size={}",
                folder.path().join("disk").display(),
                if read_only { "off" } else { "on" },
                disk.sector_size
            ))
            .spawn()
            .expect("qsd starts");
        wait_for_listener(&mut child, &folder.path().join("disk"));
        Backend { child, folder }
    }

    /// Where a virtual machine connects.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Asks the process to end, and expects that it ends well.
    pub fn stop(mut self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).expect("the back end can be asked to end");
        let deadline = Instant::now() + TIME_LIMIT;
        let status = loop {
            if let Some(status) = self
                .child
                .try_wait()
                .expect("the back end can be waited for")
            {
                break status;
            }
            assert!(Instant::now() < deadline, "the back end ignores SIGTERM");
            thread::sleep(Duration::from_millis(20));
        };
        assert!(status.success(), "the back end ended with {status}");
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until the kernel lists the socket as one that accepts connections. Connecting to find out
/// would be a front end that comes and goes.
fn wait_for_listener(child: &mut Child, socket: &Path) {
    const ACCEPTS_CONNECTIONS: &str = "00010000";
    let deadline = Instant::now() + TIME_LIMIT;
    let socket = socket.to_str().expect("a path of text");
    loop {
        let sockets = fs::read_to_string("/proc/net/unix").expect("the list of sockets");
        let listens = sockets.lines().any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.get(3) == Some(&ACCEPTS_CONNECTIONS) && fields.last() == Some(&socket)
        });
        if listens {
            return;
        }
        if let Some(status) = child.try_wait().expect("the back end can be waited for") {
            panic!("the back end ended with {status} before it listened");
        }
        assert!(Instant::now() < deadline, "the back end does not listen");
        thread::sleep(Duration::from_millis(20));
    }
}
