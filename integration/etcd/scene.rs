//! An etcd, and three nodes with certificates and replicas.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::Signal;
use sealblk::coordination::etcd::{Endpoints, EtcdTls};
use sealblk::replication::primary::status::{CopyState, Status};
use tempfile::TempDir;
use uuid::Uuid;

use crate::process::Process;
use crate::support::pattern::pattern;
use crate::support::volume::SEALBLK;
use crate::support::wait_until;

/// What is dropped first is stopped first.
pub struct Scene {
    replicas: Vec<Option<Process>>,
    etcd: Option<Process>,
    /// Those of the nodes, and two of etcd's.
    ports: Vec<u16>,
    folder: TempDir,
    sockets: TempDir,
    writers: usize,
}

/// A `sealblk serve` on a node.
pub struct Writer {
    pub process: Process,
    pub socket: PathBuf,
}

impl Scene {
    /// With an etcd that is ready, and nodes whose replicas do not run yet.
    pub fn start() -> Scene {
        let listeners: Vec<_> =
            (0..NODES + 2).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let ports = listeners.iter().map(|listener| listener.local_addr().expect("its address").port()).collect();
        drop(listeners);
        let mut scene = Scene {
            replicas: (0..NODES).map(|_| None).collect(),
            etcd: None,
            ports,
            folder: TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the nodes"),
            sockets: TempDir::new().expect("a folder for sockets, whose paths have to be short"),
            writers: 0,
        };
        let mut command = scene.command("tls");
        command.args(["bootstrap", "pki", "--node", "etcd,127.0.0.1"]);
        (0..=NODES).for_each(|node| _ = command.args(["--node", &name(node)]));
        succeed(&mut command);
        fs::write(scene.path("key"), pattern(1, 64)).expect("the key file");
        fs::set_permissions(scene.path("key"), Permissions::from_mode(0o600)).expect("the key file's mode");
        scene.start_etcd();
        scene
    }

    /// The same with running replicas, and a volume with a copy on each node.
    pub fn with_volume() -> Scene {
        let mut scene = Scene::start();
        (0..NODES).for_each(|node| {
            fs::create_dir(scene.path(&name(node))).expect("a folder for copies");
            scene.start_replica(node);
        });
        let mut command = scene.command("volume");
        command.args(["create", "--size", "64M", "--sector-size", "4096", "--key", "file:key"]);
        for node in 0..NODES {
            command.args(["--member", &format!("{}=127.0.0.1:{}", name(node), scene.ports[node])]);
        }
        scene.identify(0, &mut command);
        scene.view(0, &mut command);
        succeed(&mut command);
        scene
    }

    /// As after [`stop_etcd`](Self::stop_etcd), with what it had.
    pub fn start_etcd(&mut self) {
        let [client, peer] = [NODES, NODES + 1].map(|index| self.ports[index]);
        let (client, peer) = (format!("https://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let mut command = Command::new("etcd");
        command
            .current_dir(self.folder.path())
            .args(["--data-dir", "etcd-data", "--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--logger", "zap"])
            .args(["--cert-file", "pki/etcd/cert.pem", "--key-file", "pki/etcd/key.pem"])
            .args(["--client-cert-auth", "--trusted-ca-file", "pki/ca.pem"]);
        let mut process = Process::start("etcd", self.folder.path(), &mut command);
        process.await_line("serving client traffic");
        self.etcd = Some(process);
    }

    /// As `kill -9` does.
    pub fn stop_etcd(&mut self) {
        self.etcd.take().expect("it runs").kill();
    }

    pub fn signal_etcd(&self, signal: Signal) {
        self.etcd.as_ref().expect("it runs").signal(signal);
    }

    pub fn endpoints(&self) -> Endpoints {
        self.url().parse().expect("an address")
    }

    /// What a node is to etcd.
    pub fn tls(&self, node: usize) -> EtcdTls {
        let file = |file: &str| self.path(&format!("pki/{}/{file}.pem", name(node)));
        EtcdTls { authorities: Some(file("ca")), identity: Some((file("cert"), file("key"))) }
    }

    pub fn start_replica(&mut self, node: usize) {
        let mut command = self.command("replica");
        command.args(["--root", &name(node), "--listen", &format!("127.0.0.1:{}", self.ports[node])]);
        self.identify(node, &mut command);
        let mut process = Process::start(&format!("replica-{}", name(node)), self.folder.path(), &mut command);
        process.await_line("listening on ");
        self.replicas[node] = Some(process);
    }

    /// As `kill -9` does.
    pub fn kill_replica(&mut self, node: usize) {
        self.replicas[node].take().expect("it runs").kill();
    }

    /// Starts a writer on a node, of the copy there.
    pub fn begin_to_serve(&mut self, node: usize) -> Writer {
        let copy = self.copy(node).into_os_string();
        self.begin_to_serve_as(node, &[copy])
    }

    /// The same by the volume's id, whether there is a copy or not.
    pub fn begin_to_serve_by_id(&mut self, node: usize) -> Writer {
        let id = self.copy(0).file_name().expect("its id").to_owned();
        self.begin_to_serve_as(node, &["--id".into(), id, "--root".into(), name(node).into()])
    }

    fn begin_to_serve_as(&mut self, node: usize, volume: &[OsString]) -> Writer {
        self.writers += 1;
        let socket = self.sockets.path().join(format!("{}.sock", self.writers));
        let mut command = self.command("serve");
        command.args(volume).arg("--socket").arg(&socket).args(["--key", "file:key"]);
        command.args(["--peer-timeout", "2s"]);
        self.identify(node, &mut command);
        self.view(node, &mut command);
        let process = Process::start(&format!("writer-{}", name(node)), self.folder.path(), &mut command);
        Writer { process, socket }
    }

    /// The same, and waits until a guest can connect.
    pub fn serve(&mut self, node: usize) -> Writer {
        let mut writer = self.begin_to_serve(node);
        writer.await_socket();
        writer
    }

    /// Waits until so many copies are in sync, as the writer on a node says.
    pub fn await_in_sync(&self, node: usize, count: usize) {
        self.await_in_sync_at(&self.copy(node), count);
    }

    /// The same, as the process says that serves the volume at a place.
    pub fn await_in_sync_at(&self, place: &Path, count: usize) {
        wait_until(&format!("{count} copies are in sync"), || {
            let output = succeed(self.command("volume").args(["status", "--json"]).arg(place));
            let status: Status = serde_json::from_slice(&output.stdout).expect("a status in JSON");
            status.members.iter().filter(|member| member.state == CopyState::InSync).count() == count
        });
    }

    /// Checks that every copy has the same bytes.
    pub fn assert_equal(&self) {
        let read = |node: usize| {
            let mut bytes = Vec::new();
            File::open(self.copy(node).join("data")).and_then(|mut file| file.read_to_end(&mut bytes)).expect("a copy");
            bytes
        };
        let first = read(0);
        (1..NODES).for_each(|node| assert!(read(node) == first, "the copies of {} and node-a differ", name(node)));
    }

    /// Adds where the view is and who a node is to etcd.
    fn view(&self, node: usize, command: &mut Command) {
        command.args(["--view", &format!("etcd:{}", self.url()), "--etcd-ca", "pki/ca.pem"]);
        command.arg("--etcd-cert").arg(format!("pki/{}/cert.pem", name(node)));
        command.arg("--etcd-key").arg(format!("pki/{}/key.pem", name(node)));
    }

    fn identify(&self, node: usize, command: &mut Command) {
        for argument in ["cert", "key", "ca"] {
            command.arg(format!("--tls-{argument}")).arg(format!("pki/{}/{argument}.pem", name(node)));
        }
    }

    /// Where etcd listens.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports[NODES])
    }

    /// The only copy on a node.
    fn copy(&self, node: usize) -> PathBuf {
        let entries = fs::read_dir(self.path(&name(node))).expect("a node's folder");
        let is_copy =
            |path: &PathBuf| path.file_name().is_some_and(|name| Uuid::try_parse(&name.to_string_lossy()).is_ok());
        entries.map(|entry| entry.expect("an entry").path()).find(is_copy).expect("a copy")
    }

    fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(SEALBLK);
        command.arg(subcommand).current_dir(self.folder.path());
        command
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Writer {
    /// Waits until a guest can connect.
    pub fn await_socket(&mut self) {
        self.process.await_that("serves", LONG, |_| self.socket.exists());
    }
}

/// The name of a node.
pub fn name(node: usize) -> String {
    format!("node-{}", char::from(b'a' + node as u8))
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().expect("running sealblk");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Nodes that are members of the volume; the next one is none.
pub const NODES: usize = 3;
pub const LONG: Duration = Duration::from_secs(90);
