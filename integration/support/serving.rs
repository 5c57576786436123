//! A `sealblk serve` process over any volume, with any arguments.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::PATIENCE;
use super::volume::SEALBLK;

/// A process that serves, or is about to; killed on drop.
pub struct Serving {
    child: Child,
    socket: PathBuf,
    folder: TempDir,
}

impl Serving {
    /// Starts it and waits until it listens.
    pub fn start(volume: &Path, arguments: &[&str]) -> Serving {
        let mut serving = Serving::begin(volume, arguments);
        serving.wait_for_socket();
        serving
    }

    /// Starts it and does not wait.
    pub fn begin(volume: &Path, arguments: &[&str]) -> Serving {
        // The usual folder for temporary files: a socket's path has to be short.
        let folder = TempDir::new().expect("a folder for the socket");
        let socket = folder.path().join("blk.sock");
        let log = File::create(folder.path().join("log")).expect("a log file");
        let child = Command::new(SEALBLK)
            .arg("serve")
            .arg(volume)
            .arg("--socket")
            .arg(&socket)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("starting sealblk serve");
        Serving { child, socket, folder }
    }

    /// Waits until it listens.
    pub fn wait_for_socket(&mut self) {
        self.wait_for_socket_within(PATIENCE);
    }

    /// The same on a machine that has much else to do.
    pub fn wait_for_socket_within(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while !self.socket.exists() {
            assert!(self.child.try_wait().expect("its state").is_none(), "it has ended:\n{}", self.log());
            assert!(Instant::now() < deadline, "no socket came:\n{}", self.log());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).expect("its log")
    }

    /// Asks it to end.
    pub fn ask_to_end(&self) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        // SAFETY: no memory is involved; the child has not been waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0, "the signal was not sent");
    }

    /// Asks it to end, which it must do by itself and with exit status 0.
    pub fn terminate(mut self) {
        self.ask_to_end();
        self.assert_ends();
    }

    /// Waits until it has ended with exit status 0.
    pub fn assert_ends(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("its state") {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.log());
            thread::sleep(Duration::from_millis(2));
        };
        assert!(status.success(), "{status}:\n{}", self.log());
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("stderr of the server:\n{}", self.log());
        }
    }
}
