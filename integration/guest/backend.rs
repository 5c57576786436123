//! The disk under test: a volume, and the `sealblk serve` that serves it.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const TIME_LIMIT: Duration = Duration::from_secs(60);

/// An encrypted volume and its key, in a folder of their own.
pub struct Disk {
    folder: TempDir,
}

impl Disk {
    /// A new volume under a new key.
    pub fn create(size_mib: u64, sector_size_bytes: u32) -> Disk {
        Disk::create_in(Path::new(env!("CARGO_TARGET_TMPDIR")), size_mib, sector_size_bytes)
    }

    /// The same, with its folder in another one.
    pub fn create_in(folder: &Path, size_mib: u64, sector_size_bytes: u32) -> Disk {
        let folder = tempfile::tempdir_in(folder).expect("a folder for the volume");
        let disk = Disk { folder };
        let manifest = run(sealblk().args(["key", "generate"]));
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(disk.manifest())
            .and_then(|mut file| file.write_all(manifest.as_bytes()))
            .expect("the key is kept");
        run(sealblk()
            .args(["volume", "create"])
            .arg(disk.volume())
            .args(["--size", &format!("{size_mib}M")])
            .args(["--sector-size", &sector_size_bytes.to_string()])
            .args(disk.key_arguments()));
        disk
    }

    /// Replaces what the volume holds by a raw image.
    pub fn import(&self, image: &Path) {
        run(sealblk().args(["volume", "import"]).arg(self.volume()).arg(image).args(self.key_arguments()));
    }

    /// What the volume takes of the host's disk.
    pub fn allocated_bytes(&self) -> u64 {
        let info = run(sealblk().args(["volume", "info"]).arg(self.volume()).arg("--json"));
        let info: serde_json::Value = serde_json::from_str(&info).expect("volume info prints JSON");
        info["allocated_bytes"].as_u64().expect("the number of bytes allocated")
    }

    fn volume(&self) -> PathBuf {
        self.folder.path().join("volume")
    }

    fn manifest(&self) -> PathBuf {
        self.folder.path().join("key.yaml")
    }

    fn key_arguments(&self) -> [String; 2] {
        ["--key".to_owned(), format!("file:{}", self.manifest().display())]
    }
}

/// The engine that serves a volume.
#[derive(Clone, Copy, Debug)]
pub enum Engine {
    /// io_uring with direct I/O.
    IoUring,
    /// A pool of threads.
    Threads,
}

impl Engine {
    fn argument(self) -> &'static str {
        match self {
            Engine::IoUring => "io-uring",
            Engine::Threads => "threads",
        }
    }
}

/// The process that serves a [`Disk`].
pub struct Backend {
    child: Child,
    command: Command,
    folder: TempDir,
}

impl Backend {
    /// Starts the process, with more `arguments`, and returns once its socket listens.
    pub fn start<A: AsRef<OsStr>>(disk: &Disk, engine: Engine, arguments: &[A]) -> Backend {
        // Not in the target folder, whose path may be longer than a socket address holds.
        let folder = tempfile::tempdir().expect("a folder for the socket");
        let socket = folder.path().join("disk");
        let log = fs::File::create(folder.path().join("log")).expect("a log for sealblk serve");
        let mut command = sealblk();
        command
            .arg("serve")
            .arg(disk.volume())
            .arg("--socket")
            .arg(&socket)
            .args(disk.key_arguments())
            .args(["--engine", engine.argument()])
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(log);
        let child = command.spawn().expect("sealblk serve starts");
        let mut backend = Backend { child, command, folder };
        backend.wait_until_it_listens();
        backend
    }

    /// Kills the process as `kill -9` does. It ends when the kernel lets go of it.
    pub fn kill(&mut self) {
        self.child.kill().expect("sealblk serve can be killed");
    }

    /// Starts another one in the place of one that was killed.
    pub fn start_again(&mut self) {
        self.child.wait().expect("sealblk serve can be waited for");
        self.child = self.command.spawn().expect("sealblk serve starts");
    }

    /// Where a virtual machine connects.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Asks the process to end, and expects that it ends well.
    pub fn stop(mut self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).expect("sealblk serve can be asked to end");
        let deadline = Instant::now() + TIME_LIMIT;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("sealblk serve can be waited for") {
                break status;
            }
            assert!(Instant::now() < deadline, "sealblk serve does not end on SIGTERM");
            thread::sleep(Duration::from_millis(20));
        };
        assert!(status.success(), "sealblk serve ended with {status} on SIGTERM");
    }

    /// Waits for the socket's file, which is there when connections are accepted.
    fn wait_until_it_listens(&mut self) {
        let deadline = Instant::now() + TIME_LIMIT;
        while !self.socket().exists() {
            if let Some(status) = self.child.try_wait().expect("sealblk serve can be waited for") {
                panic!("sealblk serve ended with {status} before it listened");
            }
            assert!(Instant::now() < deadline, "sealblk serve does not listen");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            eprintln!("--- sealblk serve ---\n{log}");
        }
    }
}

fn sealblk() -> Command {
    Command::new(env!("CARGO_BIN_EXE_sealblk"))
}

/// Runs a command that has to succeed; what it printed.
fn run(command: &mut Command) -> String {
    let output = command.output().expect("sealblk runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {errors}", output.status);
    String::from_utf8(output.stdout).expect("sealblk prints text")
}
