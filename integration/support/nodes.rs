//! Nodes of a volume, as processes on one machine: a folder with certificates and a folder of copies for each, their
//! replicas, and the writers on them.
//!
//! Node 0 is `node-a`, node 1 is `node-b`, and so on.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::Signal;
use sealblk::replication::primary::status::Status;
use tempfile::TempDir;

use super::pattern::pattern;
use super::process::Process;
use super::volume::SEALBLK;

/// What is dropped first is stopped first.
pub struct Nodes {
    replicas: Vec<Option<Process>>,
    folder: TempDir,
    sockets: TempDir,
    writers: usize,
    /// Of nodes that have other certificates than `tls bootstrap` makes.
    identities: BTreeMap<usize, [PathBuf; 3]>,
}

/// A `sealblk serve` on a node.
pub struct Writer {
    pub process: Process,
    pub socket: PathBuf,
}

impl Nodes {
    /// So many, whose replicas do not run yet. Their folder holds the file `key` too.
    pub fn new(replicas: usize) -> Nodes {
        let nodes = Nodes {
            replicas: (0..replicas).map(|_| None).collect(),
            folder: TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the nodes"),
            sockets: TempDir::new().expect("a folder for sockets, whose paths have to be short"),
            writers: 0,
            identities: BTreeMap::new(),
        };
        (0..replicas).for_each(|node| fs::create_dir(nodes.path(&name(node))).expect("a folder for copies"));
        fs::write(nodes.path("key"), key()).expect("the key file");
        fs::set_permissions(nodes.path("key"), Permissions::from_mode(0o600)).expect("the key file's mode");
        nodes
    }

    /// How many have a replica.
    pub fn count(&self) -> usize {
        self.replicas.len()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `sealblk SUBCOMMAND` in the folder.
    pub fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(SEALBLK);
        command.arg(subcommand).current_dir(self.folder.path());
        command
    }

    /// Starts a process in the folder, where its log is too.
    pub fn start(&self, name: &str, command: &mut Command) -> Process {
        Process::start(name, self.folder.path(), command.current_dir(self.folder.path()))
    }

    /// Makes new certificates, each for NAME or NAME,ADDRESS, by the authority of a folder, which is made if it is not
    /// there.
    pub fn certify(&self, pki: &str, nodes: impl IntoIterator<Item = String>) {
        let mut command = self.command("tls");
        command.args(["bootstrap", pki, "--renew"]);
        nodes.into_iter().for_each(|node| _ = command.args(["--node", &node]));
        succeed(&mut command);
    }

    /// Has a node use these files from now on: its certificate, its key, and those whom it trusts.
    pub fn identify_by(&mut self, node: usize, files: [PathBuf; 3]) {
        self.identities.insert(node, files);
    }

    /// The files of a node's certificate, its key, and those whom it trusts.
    pub fn identity(&self, node: usize) -> [PathBuf; 3] {
        let made = || ["cert", "key", "ca"].map(|file| format!("{PKI}/{}/{file}.pem", name(node)).into());
        self.identities.get(&node).cloned().unwrap_or_else(made)
    }

    /// Adds who a node is to others.
    pub fn identify(&self, node: usize, command: &mut Command) {
        for (argument, file) in ["cert", "key", "ca"].into_iter().zip(self.identity(node)) {
            command.arg(format!("--tls-{argument}")).arg(file);
        }
    }

    /// Starts a node's replica, of which `command` says what is particular, and waits until it listens.
    pub fn start_replica(&mut self, node: usize, mut command: Command, address: &str) {
        assert!(self.replicas[node].is_none(), "it runs already");
        command.args(["--root", &name(node), "--listen", address]);
        self.identify(node, &mut command);
        let mut process = self.start(&format!("replica-{}", name(node)), &mut command);
        process.await_line("listening on ");
        self.replicas[node] = Some(process);
    }

    /// A running replica.
    pub fn replica(&mut self, node: usize) -> &mut Process {
        self.replicas[node].as_mut().expect("it runs")
    }

    pub fn signal_replica(&self, node: usize, signal: Signal) {
        self.replicas[node].as_ref().expect("it runs").signal(signal);
    }

    /// Whether a replica was started and not killed.
    pub fn has_replica(&self, node: usize) -> bool {
        self.replicas[node].is_some()
    }

    /// As `kill -9` does.
    pub fn kill_replica(&mut self, node: usize) {
        self.replicas[node].take().expect("it runs").kill();
    }

    /// Starts a writer on a node, of which `command` says what it serves.
    pub fn begin_to_serve(&mut self, node: usize, mut command: Command) -> Writer {
        self.writers += 1;
        let socket = self.sockets.path().join(format!("{}.sock", self.writers));
        command.arg("--socket").arg(&socket);
        self.identify(node, &mut command);
        let process = self.start(&format!("writer-{}", name(node)), &mut command);
        Writer { process, socket }
    }
}

impl Writer {
    /// Waits until a guest can connect.
    pub fn await_socket(&mut self) {
        self.process.await_that("serves", LONG, |_| self.socket.exists());
    }

    /// The same, of one that has just been started.
    pub fn serving(mut self) -> Writer {
        self.await_socket();
        self
    }
}

/// The name of a node.
pub fn name(node: usize) -> String {
    format!("node-{}", char::from(b'a' + node as u8))
}

/// The 64 bytes in the file `key`.
pub fn key() -> Vec<u8> {
    pattern(0x005e_a1b1, 64)
}

/// Ports that nobody listens on, all different.
pub fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    listeners.iter().map(|listener| listener.local_addr().expect("its address").port()).collect()
}

/// What a command that must succeed has printed.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().expect("running sealblk");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// What a command that must fail says.
pub fn fail(command: &mut Command) -> String {
    let output = command.output().expect("running sealblk");
    assert!(!output.status.success(), "{command:?} has succeeded");
    String::from_utf8(output.stderr).expect("text")
}

/// What a `volume status` tells.
pub fn status(command: &mut Command) -> Status {
    serde_json::from_slice(&succeed(command.arg("--json")).stdout).expect("a status in JSON")
}

/// Checks that copies, given by their folders, have the same bytes as a first one.
pub fn assert_equal(first: &Path, others: impl IntoIterator<Item = PathBuf>) {
    for other in others {
        if let Some(offset) = first_difference(&first.join("data"), &other.join("data")) {
            panic!("the copies {} and {} differ at byte {offset}", first.display(), other.display());
        }
    }
}

fn first_difference(one: &Path, other: &Path) -> Option<u64> {
    let open = |path: &Path| File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (mut one, mut other) = (open(one), open(other));
    assert_eq!(one.metadata().unwrap().len(), other.metadata().unwrap().len(), "the copies have different lengths");
    let (mut mine, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    loop {
        let length = one.read(&mut mine).expect("reading a copy");
        if length == 0 {
            return None;
        }
        other.read_exact(&mut theirs[..length]).expect("reading a copy");
        if let Some(at) = mine[..length].iter().zip(&theirs[..length]).position(|(mine, theirs)| mine != theirs) {
            return Some(offset + at as u64);
        }
        offset += length as u64;
    }
}

/// For what takes a resync, or a machine that has much else to do.
pub const LONG: Duration = Duration::from_secs(90);
/// The folder of the authority of the nodes.
pub const PKI: &str = "pki";
