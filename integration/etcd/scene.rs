//! An etcd, and three nodes with certificates and replicas.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use sealblk::coordination::etcd::{Endpoints, EtcdTls};
use sealblk::replication::primary::status::CopyState;
use uuid::Uuid;

use crate::process::Process;
use crate::support::nodes::{self, Nodes, PKI, free_ports, status, succeed};
pub use crate::support::nodes::{LONG, Writer, name};
use crate::support::wait_until;

/// What is dropped first is stopped first.
pub struct Scene {
    etcd: Option<Process>,
    nodes: Nodes,
    /// Those of the nodes, and two of etcd's.
    ports: Vec<u16>,
}

impl Scene {
    /// With an etcd that is ready, and nodes whose replicas do not run yet.
    pub fn start() -> Scene {
        let mut scene = Scene { etcd: None, nodes: Nodes::new(NODES), ports: free_ports(NODES + 2) };
        scene.nodes.certify(PKI, (0..=NODES).map(name).chain(["etcd,127.0.0.1".to_owned()]));
        scene.start_etcd();
        scene
    }

    /// The same with running replicas, and a volume with a copy on each node.
    pub fn with_volume() -> Scene {
        let mut scene = Scene::start();
        (0..NODES).for_each(|node| scene.start_replica(node));
        let mut command = scene.nodes.command("volume");
        command.args(["create", "--size", "64M", "--sector-size", "4096", "--key", "file:key"]);
        for node in 0..NODES {
            command.args(["--member", &format!("{}={}", name(node), scene.address(node))]);
        }
        scene.nodes.identify(0, &mut command);
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
            .args(["--data-dir", "etcd-data", "--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--logger", "zap"])
            .args(["--cert-file", "pki/etcd/cert.pem", "--key-file", "pki/etcd/key.pem"])
            .args(["--client-cert-auth", "--trusted-ca-file", "pki/ca.pem"]);
        let mut process = self.nodes.start("etcd", &mut command);
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
        self.nodes.start_replica(node, self.nodes.command("replica"), &self.address(node));
    }

    /// As `kill -9` does.
    pub fn kill_replica(&mut self, node: usize) {
        self.nodes.kill_replica(node);
    }

    /// Starts a writer on a node, of the copy there.
    pub fn begin_to_serve(&mut self, node: usize) -> Writer {
        let mut command = self.nodes.command("serve");
        command.arg(self.copy(node));
        self.begin_to_serve_as(node, command)
    }

    /// The same by the volume's id, whether there is a copy or not.
    pub fn begin_to_serve_by_id(&mut self, node: usize) -> Writer {
        let mut command = self.nodes.command("serve");
        command.arg("--id").arg(self.copy(0).file_name().expect("its id")).args(["--root", &name(node)]);
        self.begin_to_serve_as(node, command)
    }

    fn begin_to_serve_as(&mut self, node: usize, mut command: Command) -> Writer {
        command.args(["--key", "file:key", "--peer-timeout", "2s"]);
        self.view(node, &mut command);
        self.nodes.begin_to_serve(node, command)
    }

    /// Starts a writer on a node, of the copy there, and waits until a guest can connect.
    pub fn serve(&mut self, node: usize) -> Writer {
        self.begin_to_serve(node).serving()
    }

    /// Waits until so many copies are in sync, as the writer on a node says.
    pub fn await_in_sync(&self, node: usize, count: usize) {
        self.await_in_sync_at(&self.copy(node), count);
    }

    /// The same, as the process says that serves the volume at a place.
    pub fn await_in_sync_at(&self, place: &Path, count: usize) {
        wait_until(&format!("{count} copies are in sync"), || {
            let status = status(self.nodes.command("volume").arg("status").arg(place));
            status.members.iter().filter(|member| member.state == CopyState::InSync).count() == count
        });
    }

    /// Checks that every copy has the same bytes.
    pub fn assert_equal(&self) {
        nodes::assert_equal(&self.copy(0), (1..NODES).map(|node| self.copy(node)));
    }

    /// Adds where the view is and who a node is to etcd.
    fn view(&self, node: usize, command: &mut Command) {
        command.args(["--view", &format!("etcd:{}", self.url()), "--etcd-ca", "pki/ca.pem"]);
        command.arg("--etcd-cert").arg(format!("pki/{}/cert.pem", name(node)));
        command.arg("--etcd-key").arg(format!("pki/{}/key.pem", name(node)));
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

    fn address(&self, node: usize) -> String {
        format!("127.0.0.1:{}", self.ports[node])
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.nodes.path(name)
    }
}

/// Nodes that are members of the volume; the next one is none.
pub const NODES: usize = 3;
