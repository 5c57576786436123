//! A `sealblk serve` process.

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::PATIENCE;
use super::guest::{Guest, Options};
use super::volume::{SEALBLK, Volume};

/// A running server; killed on drop.
pub struct Served {
    child: Child,
    socket: PathBuf,
    stderr: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    _folder: TempDir,
}

/// How a server ended.
#[derive(Debug)]
pub struct Exit {
    /// Its exit status.
    pub status: ExitStatus,
    /// All that it wrote to stderr.
    pub stderr: String,
}

impl Served {
    /// Serves `volume` the way its configuration says.
    pub fn start(volume: &Volume) -> Self {
        Self::start_with(volume, &[])
    }

    /// The same with further arguments.
    pub fn start_with(volume: &Volume, arguments: &[&str]) -> Self {
        // The usual folder for temporary files: a socket's path has to be short.
        let folder = TempDir::new().expect("a folder for the socket");
        let socket = folder.path().join("blk.sock");
        let mut child =
            command(volume, &socket).args(arguments).stderr(Stdio::piped()).spawn().expect("starting sealblk serve");
        let stderr = Arc::new(Mutex::new(String::new()));
        let reader = {
            let mut pipe = child.stderr.take().expect("a piped stderr");
            let stderr = Arc::clone(&stderr);
            thread::spawn(move || {
                let mut chunk = [0; 4096];
                while let Ok(length @ 1..) = pipe.read(&mut chunk) {
                    let text = String::from_utf8_lossy(&chunk[..length]);
                    stderr.lock().expect("the stderr buffer").push_str(&text);
                }
            })
        };
        let mut served = Self { child, socket, stderr, reader: Some(reader), _folder: folder };
        served.wait_for("the socket", |served| served.socket.exists());
        served
    }

    /// Where the server listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A front end with one queue.
    pub fn guest(&self) -> Guest {
        Guest::connect(&self.socket)
    }

    /// A front end with these options.
    pub fn guest_as(&self, options: Options) -> Guest {
        Guest::connect_as(&self.socket, options)
    }

    /// What the server has written to stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.lock().expect("the stderr buffer").clone()
    }

    /// Fails the test if the server has ended.
    pub fn assert_alive(&mut self) {
        let ended = self.child.try_wait().expect("the server's state");
        assert!(ended.is_none(), "the server died ({ended:?}):\n{}", self.stderr());
    }

    /// Waits until `condition` holds, while the server lives.
    pub fn wait_for(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            self.assert_alive();
            assert!(Instant::now() < deadline, "{what} did not come:\n{}", self.stderr());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        // SAFETY: no memory is involved; the child has not been waited for, so the id is its own.
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0, "the signal was not sent");
    }

    /// Kills the server, and leaves its socket where it is.
    pub fn kill(&mut self) {
        self.child.kill().expect("killing the server");
        self.child.wait().expect("the server's end");
    }

    /// Asks the server to end, and waits until it has.
    pub fn terminate(self) -> Exit {
        self.signal(libc::SIGTERM);
        self.wait()
    }

    /// Waits until the server has ended.
    pub fn wait(mut self) -> Exit {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("the server's state") {
                break status;
            }
            assert!(Instant::now() < deadline, "the server did not end:\n{}", self.stderr());
            thread::sleep(Duration::from_millis(2));
        };
        let reader = self.reader.take().expect("a reader of stderr");
        reader.join().expect("the reader of stderr");
        Exit { status, stderr: self.stderr() }
    }

    /// How many file descriptors the server has open.
    pub fn open_files(&self) -> usize {
        let files = fs::read_dir(format!("/proc/{}/fd", self.pid()));
        files.expect("the server's descriptors").count()
    }

    /// A size of the server's from `/proc/PID/status`, in KiB: `VmRSS`, `VmSize`, …
    pub fn memory_kib(&self, field: &str) -> u64 {
        status_field(self.pid(), field)
    }

    /// How many threads the server has.
    pub fn threads(&self) -> u64 {
        status_field(self.pid(), "Threads")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("stderr of the server:\n{}", self.stderr());
        }
    }
}

impl Exit {
    /// Fails the test unless the server ended by itself with exit status 0.
    pub fn assert_clean(&self) {
        assert_eq!((self.status.code(), self.status.signal()), (Some(0), None), "{self:?}");
    }
}

/// The command that serves `volume` on `socket`, without stdin and stdout.
pub fn command(volume: &Volume, socket: &Path) -> Command {
    let mut command = Command::new(SEALBLK);
    command
        .arg("serve")
        .arg(volume.directory())
        .arg("--socket")
        .arg(socket)
        .args(volume.key_arguments())
        .args(["--engine", volume.configuration.engine])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

fn status_field(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the server's status");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .unwrap_or_else(|| panic!("no {field} in the process status"));
    let number = line.split_whitespace().next().expect("a number");
    number.parse().expect("a number")
}
