//! `sealblk replica` processes, and the certificates of the cluster that they are in.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use sealblk::tls::{Configs, TlsPaths};
use tempfile::TempDir;

/// A folder with certificates of `sealblk tls bootstrap` for node-a and node-b, and one for copies.
pub struct Cluster {
    folder: TempDir,
}

impl Cluster {
    pub fn new() -> Cluster {
        let folder = TempDir::new().unwrap();
        let made = sealblk(["tls", "bootstrap", "pki", "--node", "node-a", "--node", "node-b"], folder.path());
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        std::fs::create_dir(folder.path().join("copies")).unwrap();
        Cluster { folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The folder of node-b's copies.
    pub fn copies(&self) -> PathBuf {
        self.path().join("copies")
    }

    /// The files of a node.
    pub fn files(&self, node: &str) -> TlsPaths {
        let file = |name: &str| self.path().join("pki").join(node).join(name);
        TlsPaths { cert: file("cert.pem"), key: file("key.pem"), ca: file("ca.pem"), crl: None }
    }

    /// How a node connects.
    pub fn configs(&self, node: &str) -> Configs {
        Configs::load(&self.files(node), SystemTime::now()).unwrap()
    }

    /// The command that keeps node-b's copies, listening on `address`.
    pub fn command(&self, address: &str) -> Command {
        let TlsPaths { cert, key, ca, .. } = self.files("node-b");
        let mut command = Command::new(SEALBLK);
        command.args(["replica", "--listen", address]).arg("--root").arg(self.copies());
        command.arg("--tls-cert").arg(cert).arg("--tls-key").arg(key).arg("--tls-ca").arg(ca);
        command.stdin(Stdio::null()).current_dir(self.path());
        command
    }

    /// The command that asks how the replica of node-b's copies stands.
    pub fn status(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(SEALBLK);
        command.args(["replica", "status"]).arg(self.copies()).args(arguments).stdin(Stdio::null());
        command
    }
}

/// A running one, which is killed if it has not ended before.
pub struct Node {
    child: Child,
    /// What it says, line by line.
    lines: Receiver<String>,
    said: Vec<String>,
    address: SocketAddr,
}

impl Node {
    /// Starts it and waits until it listens.
    pub fn start(cluster: &Cluster) -> Node {
        let mut child = cluster.command("127.0.0.1:0").stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut node = Node { child, lines, said: Vec::new(), address };
        let line = node.await_line("listening on ");
        node.address = line.rsplit(' ').next().unwrap().parse().unwrap();
        node
    }

    /// Where it listens, as it has said itself.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How much memory it has resident, and how many descriptors open.
    pub fn footprint(&self) -> (usize, usize) {
        let folder = Path::new("/proc").join(self.child.id().to_string());
        let status = std::fs::read_to_string(folder.join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let resident_kib: usize = line.trim().trim_end_matches(" kB").parse().unwrap();
        (resident_kib << 10, std::fs::read_dir(folder.join("fd")).unwrap().count())
    }

    /// The next line that has `part`.
    pub fn await_line(&mut self, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.said.push(line.clone());
                    if line.contains(part) {
                        return line;
                    }
                }
                Err(error) => panic!("no line with {part:?} ({error}); it has said:\n{}", self.said.join("\n")),
            }
        }
    }

    /// Asks it to end; how it does, and all that it has said.
    pub fn terminate(mut self) -> (ExitStatus, String) {
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: no memory is involved; the child has not been waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
        let deadline = Instant::now() + PATIENCE;
        // Its standard error ends with it.
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.said.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end:\n{}", self.said.join("\n")),
            }
        }
        (self.child.wait().unwrap(), self.said.join("\n"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            self.said.extend(self.lines.iter());
            eprintln!("the replica has said:\n{}", self.said.join("\n"));
        }
    }
}

/// Runs a command to its end.
fn sealblk<const N: usize>(arguments: [&str; N], dir: &Path) -> Output {
    Command::new(SEALBLK).args(arguments).current_dir(dir).stdin(Stdio::null()).output().unwrap()
}

const SEALBLK: &str = env!("CARGO_BIN_EXE_sealblk");
pub const PATIENCE: Duration = Duration::from_secs(30);
