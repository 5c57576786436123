//! Nodes with certificates and replicas, and a volume that has a copy on each.
//!
//! Node 0 is `node-a`, node 1 is `node-b`, and so on. Each has a folder for its copies and listens in its own
//! network; a writer may be started on any of them, over the copy there. The last nodes may have no copy and no
//! replica: a writer there stores nothing.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber};
use rustix::fs::FlockOperation;
use rustix::process::Signal;
use sealblk::replication::primary::status::{CopyState, Status};
use sealblk::replication::region::{Regions, Row};
use sealblk::store::RegionTable;
use tempfile::TempDir;
use uuid::Uuid;
use x509_parser::pem::parse_x509_pem;

use super::network::Network;
use super::proxy::Proxy;
use super::support::confined::confined;
use super::support::mounted::Mounted;
use super::support::nodes::{self, Nodes, PKI};
pub use super::support::nodes::{Writer, name, succeed};
use super::support::process::Process;
use super::support::volume::SEALBLK;

/// What a cluster and its volume are like.
pub struct Plan {
    /// Nodes with a copy.
    pub nodes: usize,
    /// More nodes, whose replicas have none yet.
    pub spares: usize,
    /// More nodes, without replicas.
    pub diskless: usize,
    pub size_bytes: u64,
    pub failure_mode: &'static str,
    /// For how long a successor waits that cannot reach everybody.
    pub lease: &'static str,
    /// Whether nodes are given revocation lists.
    pub revocation: bool,
    /// Whether replicas run as in a container: certificates are in folders as a cluster mounts them, and there are no
    /// privileges.
    pub mounted: bool,
    /// Nodes that may write the volume, which is then not encrypted, beside its members.
    pub writers: &'static [usize],
    pub encrypted: bool,
    /// Whether writers reach nodes through proxies.
    pub proxies: bool,
}

/// The nodes, and the volume. What is dropped first is stopped first.
pub struct Cluster {
    nodes: Nodes,
    /// One for each node, if there are any.
    proxies: Vec<Proxy>,
    pub network: Arc<Network>,
    volume: Uuid,
    regions: Regions,
    revocation: bool,
    /// Of each node: its certificate with its key, and whom it trusts. None if it has what `tls bootstrap` makes.
    mounts: Vec<[Mounted; 2]>,
    encrypted: bool,
    /// The socket of the newest writer of each node.
    monitors: Vec<PathBuf>,
}

impl Plan {
    /// Three nodes, of which two must be in sync.
    pub const USUAL: Plan = Plan {
        nodes: 3,
        spares: 0,
        diskless: 0,
        size_bytes: 64 << 20,
        failure_mode: "soft",
        lease: "3s",
        revocation: false,
        mounted: false,
        writers: &[],
        encrypted: true,
        proxies: false,
    };
}

impl Cluster {
    /// With every replica running and a new volume.
    pub fn start(plan: &Plan) -> Cluster {
        let keepers = plan.nodes + plan.spares;
        let all = keepers + plan.diskless;
        let network = Arc::new(Network::new(all));
        let proxied = if plan.proxies { keepers } else { 0 };
        let proxies = (0..proxied).map(|node| Proxy::start(&network, node, PROXY_PORT, PORT)).collect();
        let mut cluster = Cluster {
            nodes: Nodes::new(keepers),
            proxies,
            network,
            volume: Uuid::nil(),
            regions: Regions::of(plan.size_bytes),
            revocation: plan.revocation,
            mounts: Vec::new(),
            encrypted: plan.encrypted,
            monitors: vec![PathBuf::new(); all],
        };
        fs::create_dir(cluster.path("views")).expect("a folder for views");
        cluster.certify((0..all).collect::<Vec<_>>().as_slice());
        (keepers..all).for_each(|node| fs::create_dir(cluster.path(&name(node))).expect("a folder without copies"));
        (0..all).for_each(|node| cluster.revoke(node, &[]));
        if plan.mounted {
            (0..all).for_each(|node| cluster.mount(node));
        }
        (0..keepers).for_each(|node| cluster.start_replica(node));
        cluster.create_volume(plan);
        cluster
    }

    /// Makes new certificates for nodes.
    pub fn certify(&self, nodes: &[usize]) {
        self.certify_from(PKI, nodes);
    }

    /// The same, by the authority of another folder, which is made if it is not there.
    pub fn certify_from(&self, pki: &str, nodes: &[usize]) {
        self.nodes.certify(pki, nodes.iter().map(|&node| format!("{},{}", name(node), self.network.address(node))));
    }

    /// Gives a node folders for its certificate and for those whom it trusts.
    fn mount(&mut self, node: usize) {
        let mounted = |what: &str| Mounted::create(self.path(&format!("{what}-{}", name(node))));
        let (tls, authorities) = (mounted("tls"), mounted("authorities"));
        self.nodes.identify_by(node, [tls.file("tls.crt"), tls.file("tls.key"), authorities.file("ca.crt")]);
        self.mounts.push([tls, authorities]);
        self.mount_certificate(node, PKI);
        self.mount_authorities(node, &[PKI]);
    }

    /// Puts the certificate and the key that a node has in a folder of an authority where the node looks for them.
    pub fn mount_certificate(&self, node: usize, pki: &str) {
        let read = |file: &str| fs::read(self.path(&format!("{pki}/{}/{file}", name(node)))).expect("its file");
        self.mounts[node][0].write(&[("tls.crt", read("cert.pem")), ("tls.key", read("key.pem"))]);
    }

    /// Has a node trust the authorities of these folders and no others.
    pub fn mount_authorities(&self, node: usize, pkis: &[&str]) {
        let read = |pki: &&str| fs::read(self.path(&format!("{pki}/ca.pem"))).expect("an authority");
        self.mounts[node][1].write(&[("ca.crt", pkis.iter().flat_map(read).collect())]);
    }

    /// Tells a node which nodes' certificates are revoked: those that they have now.
    pub fn revoke(&self, node: usize, revoked: &[usize]) {
        let read = |file: &str| fs::read_to_string(self.path(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let key = KeyPair::from_pem(&read("pki/ca-key.pem")).expect("the authority's key");
        let authority = Issuer::from_ca_cert_pem(&read("pki/ca.pem"), key).expect("the authority");
        let now = SystemTime::now();
        let revoked = revoked.iter().map(|&node| {
            let (_, pem) = parse_x509_pem(read(&format!("pki/{}/cert.pem", name(node))).as_bytes()).expect("PEM");
            let serial = pem.parse_x509().expect("a certificate").raw_serial().to_vec();
            RevokedCertParams {
                serial_number: SerialNumber::from_slice(&serial),
                revocation_time: now.into(),
                reason_code: None,
                invalidity_date: None,
            }
        });
        let parameters = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + HOUR).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = parameters.signed_by(&authority).expect("a revocation list").pem().expect("PEM");
        let (new, old) = (self.path("crl.new"), self.path(&format!("pki/{}/crl.pem", name(node))));
        fs::write(&new, list).expect("writing a revocation list");
        fs::rename(new, old).expect("putting it into its place");
    }

    /// A file or folder of the cluster.
    pub fn path(&self, name: &str) -> PathBuf {
        self.nodes.path(name)
    }

    /// The 64 bytes of the volume's key.
    pub fn key(&self) -> Vec<u8> {
        nodes::key()
    }

    /// The folder of the copy on a node.
    pub fn copy(&self, node: usize) -> PathBuf {
        self.path(&name(node)).join(self.volume.to_string())
    }

    /// Starts a node's replica and waits until it listens.
    pub fn start_replica(&mut self, node: usize) {
        let mut command = self.command(node, "replica");
        if !self.mounts.is_empty() {
            // Such nodes run it in a container.
            command = confined(SEALBLK);
            command.arg("replica");
            self.network.enter(node, &mut command);
        }
        self.check_revocation(node, &mut command);
        self.nodes.start_replica(node, command, &self.listening(node));
    }

    /// Kills a node's replica as `kill -9` does.
    pub fn kill_replica(&mut self, node: usize) {
        self.nodes.kill_replica(node);
    }

    /// What leads to a node.
    pub fn proxy(&self, node: usize) -> &Proxy {
        &self.proxies[node]
    }

    /// A running replica.
    pub fn replica(&mut self, node: usize) -> &mut Process {
        self.nodes.replica(node)
    }

    /// `sealblk replica status` on a node.
    pub fn replica_status(&self, node: usize, arguments: &[&str]) -> Output {
        let mut command = self.command(node, "replica");
        command.args(["status", &name(node)]).args(arguments).output().expect("running sealblk")
    }

    /// Sends a node's replica a signal.
    pub fn signal_replica(&self, node: usize, signal: Signal) {
        self.nodes.signal_replica(node, signal);
    }

    /// Starts a writer on a node and waits until a guest can connect.
    pub fn serve(&mut self, node: usize, arguments: &[&str]) -> Writer {
        self.begin_to_serve(node, arguments).serving()
    }

    /// Starts a writer on a node.
    pub fn begin_to_serve(&mut self, node: usize, arguments: &[&str]) -> Writer {
        if node < self.nodes.count() {
            let copy = self.copy(node).into_os_string().into_string().expect("text");
            return self.begin_to_serve_as(node, &[&[copy.as_str()][..], key_of(self.encrypted), arguments].concat());
        }
        let id = self.volume.to_string();
        let volume = ["--id", &id, "--root", &name(node)];
        self.begin_to_serve_as(node, &[&volume, key_of(self.encrypted), arguments].concat())
    }

    /// The same; the arguments say which volume, and name its key.
    pub fn begin_to_serve_as(&mut self, node: usize, arguments: &[&str]) -> Writer {
        let mut command = self.command(node, "serve");
        command.args(["--view", "file:views", "--queues", "4"]).args(arguments);
        if !arguments.contains(&"--peer-timeout") {
            command.args(["--peer-timeout", PEER_TIMEOUT]);
        }
        self.check_revocation(node, &mut command);
        let writer = self.nodes.begin_to_serve(node, command);
        self.monitors[node] = writer.socket.clone();
        writer
    }

    /// By what a process that serves the volume on a node is asked for: the copy there, or else the guest's socket.
    fn place(&self, node: usize) -> PathBuf {
        if node < self.nodes.count() { self.copy(node) } else { self.monitors[node].clone() }
    }

    /// Runs `sealblk volume` on a node, about the volume that is served there; what it prints, or what it fails with.
    pub fn volume(&self, node: usize, subcommand: &str, arguments: &[&str]) -> Result<String, String> {
        self.volume_at(node, &self.place(node), subcommand, arguments)
    }

    /// The same, of the process that is asked at a place.
    pub fn volume_at(&self, node: usize, place: &Path, subcommand: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = self.command(node, "volume");
        let output = command.arg(subcommand).arg(place).args(arguments).output().expect("running sealblk");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// A node as it is named when it is to be a member.
    pub fn member(&self, node: usize) -> String {
        format!("{}={}", name(node), self.reached(node))
    }

    /// How the volume stands, as a node knows it.
    pub fn status(&self, node: usize) -> Status {
        nodes::status(&mut self.ask_for_status(node))
    }

    /// The command that says how the volume stands, as a node knows it.
    pub fn ask_for_status(&self, node: usize) -> Command {
        let mut command = self.command(node, "volume");
        command.arg("status").arg(self.place(node));
        command
    }

    /// The volume's id.
    pub fn id(&self) -> Uuid {
        self.volume
    }

    /// The view as it is stored.
    pub fn stored_view(&self) -> Vec<u8> {
        fs::read(self.path("views").join(format!("{}.json", self.volume))).expect("the view")
    }

    /// A comparison of the copies by the writer on a node.
    pub fn verify(&self, node: usize, arguments: &[&str]) -> Command {
        let mut command = self.command(node, "volume");
        command.args(["verify", "--json"]).args(arguments).arg(self.place(node));
        command
    }

    /// Waits until the writer on a node says that something is so.
    pub fn await_status(&self, node: usize, what: &str, patience: Duration, is_so: impl Fn(&Status) -> bool) -> Status {
        let deadline = Instant::now() + patience;
        loop {
            let status = self.status(node);
            if is_so(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "not within {patience:?}: {what}:\n{status:#?}");
            thread::sleep(LOOK);
        }
    }

    /// Waits until the process that is asked at a place says that something is so.
    pub fn await_status_at(&self, place: &Path, what: &str, is_so: impl Fn(&Status) -> bool) {
        let deadline = Instant::now() + LONG;
        loop {
            let said = self.volume_at(0, place, "status", &["--json"]);
            let status = said.as_ref().ok().map(|text| serde_json::from_str::<Status>(text).expect("a status in JSON"));
            if status.is_some_and(|status| is_so(&status)) {
                return;
            }
            assert!(Instant::now() < deadline, "not within {LONG:?}: {what}: {said:?}");
            thread::sleep(LOOK);
        }
    }

    /// Waits until a member is out of the in-sync set.
    pub fn await_behind(&self, node: usize, member: usize, patience: Duration) {
        let what = format!("{} is behind", name(member));
        self.await_status(node, &what, patience, |status| {
            matches!(status.members[member].state, CopyState::Behind | CopyState::Resyncing)
        });
    }

    /// Waits until every copy is in sync and known to be equal.
    pub fn await_in_sync(&self, node: usize) {
        self.await_status(node, "all are in sync", LONG, |status| {
            status.members.iter().all(|member| member.state == CopyState::InSync && member.connected)
        });
    }

    /// Keeps everybody from changing the view until the file is dropped.
    pub fn lock_view(&self) -> File {
        let file = File::open(self.path("views").join(format!("{}.lock", self.volume))).expect("the view's lock");
        rustix::fs::flock(&file, FlockOperation::LockExclusive).expect("the view's lock");
        file
    }

    /// Waits until no copy has a region with an intent: all have flushed everything, and know of each other that
    /// they have.
    pub fn await_settled(&self, node: usize) {
        self.await_status(node, "no region has an intent", LONG, |_| {
            (0..self.nodes.count()).all(|node| !self.nodes.has_replica(node) || self.intents(node) == 0)
        });
    }

    /// How many regions of a copy have an intent, as its table says.
    fn intents(&self, node: usize) -> usize {
        // A copy of the table: to open the table itself is for whoever has the volume.
        let folder = TempDir::new().expect("a folder for a copy of the table");
        fs::copy(self.copy(node).join("regions"), folder.path().join("regions")).expect("copying the table");
        let (bytes, count) = (self.regions.region_bytes(), self.regions.count());
        let table = RegionTable::open(folder.path(), self.volume, bytes, count).expect("the table");
        table.rows().iter().filter(|&&bits| Row::from_bits(bits).intent).count()
    }

    /// Checks that every copy has the same bytes.
    pub fn assert_equal(&self) {
        self.assert_equal_with(&(1..self.nodes.count()).collect::<Vec<_>>());
    }

    /// Checks that these nodes' copies have the same bytes as that of node 0.
    pub fn assert_equal_with(&self, nodes: &[usize]) {
        nodes::assert_equal(&self.copy(0), nodes.iter().map(|&node| self.copy(node)));
    }

    fn create_volume(&mut self, plan: &Plan) {
        let mut command = self.command(0, "volume");
        command.args(["create", "--size", &plan.size_bytes.to_string(), "--sector-size", "4096"]);
        command.args(key_of(plan.encrypted)).args(["--view", "file:views", "--failure-mode", plan.failure_mode]);
        for &node in plan.writers {
            command.args(["--writer", &name(node)]);
        }
        command.args(["--lease", plan.lease]);
        for node in 0..plan.nodes {
            command.args(["--member", &format!("{}={}", name(node), self.reached(node))]);
        }
        self.nodes.identify(0, &mut command);
        self.check_revocation(0, &mut command);
        let output = succeed(&mut command);
        let text = String::from_utf8(output.stdout).expect("text");
        self.volume = text.split_whitespace().find_map(|word| word.parse().ok()).expect("created volume ID on ...");
    }

    fn command(&self, node: usize, subcommand: &str) -> Command {
        let mut command = self.nodes.command(subcommand);
        self.network.enter(node, &mut command);
        command
    }

    fn check_revocation(&self, node: usize, command: &mut Command) {
        if self.revocation {
            command.arg("--tls-crl").arg(format!("pki/{}/crl.pem", name(node)));
        }
    }

    /// The certificate that a node's replica shows to a client that is none of ours, in PEM.
    pub fn shown_certificate(&self, node: usize) -> String {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-alpn", "sealblk/1", "-servername", &name(node), "-connect", &self.listening(node)]);
        self.network.enter(0, &mut command);
        let output = command.stdin(Stdio::null()).output().expect("running openssl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (begin, end) = (text.find("-----BEGIN CERT"), text.find(END_OF_CERTIFICATE));
        let (begin, end) = begin.zip(end).unwrap_or_else(|| panic!("no certificate: {text}"));
        text[begin..end + END_OF_CERTIFICATE.len()].to_owned()
    }

    /// The ports of a writer's connections with replicas.
    pub fn connections(&self, writer: &Writer) -> BTreeSet<u16> {
        let path = format!("/proc/{}/net/tcp", writer.process.pid());
        let text = fs::read_to_string(path).expect("the connections of its network");
        let port =
            |address: &str| address.split_once(':').map(|(_, port)| u16::from_str_radix(port, 16).expect("a port"));
        let established = text.lines().skip(1).map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
        let established = established.filter(|fields| fields[3] == ESTABLISHED && port(fields[2]) == Some(PORT));
        established.filter_map(|fields| port(fields[1])).collect()
    }

    fn listening(&self, node: usize) -> String {
        format!("{}:{PORT}", self.network.address(node))
    }

    /// Where others reach a node.
    fn reached(&self, node: usize) -> String {
        let port = if self.proxies.is_empty() { PORT } else { PROXY_PORT };
        format!("{}:{port}", self.network.address(node))
    }
}

fn key_of(encrypted: bool) -> &'static [&'static str] {
    if encrypted { &["--key", "file:key"] } else { &["--no-encryption"] }
}

/// How long a copy may take to answer before the volume goes on without it.
pub const PEER_TIMEOUT_TIME: Duration = Duration::from_secs(2);
const PEER_TIMEOUT: &str = "2s";
/// For what takes a resync.
pub const LONG: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const LOOK: Duration = Duration::from_millis(25);
const PORT: u16 = 7420;
const END_OF_CERTIFICATE: &str = "-----END CERTIFICATE-----";
/// As `/proc/net/tcp` has it.
const ESTABLISHED: &str = "01";
const PROXY_PORT: u16 = 7421;
