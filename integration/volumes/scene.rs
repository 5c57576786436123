//! A cluster with three nodes, and a volume in it.

use std::fs::{self, File};
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::Process;
use crate::support::cluster::{Cluster, Request};
use crate::support::volume::SEALBLK;

/// What is dropped first is stopped first.
pub struct Scene {
    replicas: Vec<Option<Process>>,
    pub cluster: Cluster,
    pub namespace: String,
    /// That of the nodes' account.
    kubeconfig: PathBuf,
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
    /// With what `deploy/` makes, replicas, and the volume's key as a Secret. The volume itself is not there yet.
    pub fn start() -> Scene {
        let cluster = Cluster::start(&[]);
        cluster.kubectl(&["apply", "-k", DEPLOY]);
        cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd/volumes.sealblk.io"]);
        let namespace = cluster.namespace("vms");
        let kubeconfig = cluster.kubeconfig("sealblk-system", "sealblk-node");
        let mut scene = Scene {
            replicas: (0..NODES).map(|_| None).collect(),
            cluster,
            namespace,
            kubeconfig,
            ports: free_ports(),
            folder: TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the nodes"),
            sockets: TempDir::new().expect("a folder for sockets, whose paths have to be short"),
            writers: 0,
        };
        scene.make_key();
        let mut command = scene.command("tls");
        command.args(["bootstrap", "pki"]);
        for node in 0..=NODES {
            command.args(["--node", &name(node)]);
        }
        succeed(&mut command);
        for node in 0..NODES {
            fs::create_dir(scene.folder.path().join(name(node))).expect("a folder for copies");
            scene.start_replica(node);
        }
        scene
    }

    /// The same with a volume, which somebody has described and made.
    pub fn with_volume() -> Scene {
        let scene = Scene::start();
        scene.cluster.apply(&scene.manifest().to_string());
        succeed(&mut scene.create(&[]));
        scene
    }

    /// What somebody wants the volume to be.
    pub fn manifest(&self) -> Value {
        let member = |node: usize| json!({"node": name(node), "address": self.address(node)});
        json!({
            "apiVersion": "sealblk.io/v1alpha1",
            "kind": "Volume",
            "metadata": {"namespace": self.namespace, "name": VOLUME},
            "spec": {
                "size": "64Mi", "sectorSize": 4096, "key": {"secretName": SECRET},
                "members": (0..NODES).map(member).collect::<Vec<_>>(),
            },
        })
    }

    /// `sealblk volume create` as an administrator.
    pub fn create(&self, more: &[&str]) -> Command {
        let mut command = self.command("volume");
        command.args(["create", "--view", &self.volume()]).args(more);
        command.arg("--kubeconfig").arg(self.cluster.admin_kubeconfig());
        self.identify(0, &mut command);
        command
    }

    /// `kubernetes:NAMESPACE/NAME` of the volume.
    pub fn volume(&self) -> String {
        format!("kubernetes:{}/{VOLUME}", self.namespace)
    }

    /// That of the nodes' account.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Where the replica of a node listens.
    pub fn address(&self, node: usize) -> String {
        format!("127.0.0.1:{}", self.ports[node])
    }

    pub fn start_replica(&mut self, node: usize) {
        let mut command = self.command("replica");
        command.args(["--root", &name(node), "--listen", &self.address(node)]);
        self.identify(node, &mut command);
        let mut process = Process::start(&format!("replica-{}", name(node)), self.folder.path(), &mut command);
        process.await_line("listening on ");
        self.replicas[node] = Some(process);
    }

    /// As `kill -9` does.
    pub fn kill_replica(&mut self, node: usize) {
        self.replicas[node].take().expect("it runs").kill();
    }

    /// Starts a writer on a node and waits until a guest can connect.
    pub fn serve(&mut self, node: usize) -> Writer {
        let mut writer = self.begin_to_serve(node);
        let socket = writer.socket.clone();
        writer.process.await_that("serves", LONG, |_| socket.exists());
        writer
    }

    pub fn begin_to_serve(&mut self, node: usize) -> Writer {
        self.writers += 1;
        let socket = self.sockets.path().join(format!("{}.sock", self.writers));
        let mut command = self.command("serve");
        command.args(["--volume", &self.volume(), "--root", &name(node)]).arg("--socket").arg(&socket);
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        self.identify(node, &mut command);
        let process = Process::start(&format!("writer-{}", name(node)), self.folder.path(), &mut command);
        Writer { process, socket }
    }

    /// The object as the API server has it.
    pub fn object(&self) -> Value {
        let text = self.cluster.kubectl(&["-n", &self.namespace, "get", "volumes.sealblk.io", VOLUME, "-o", "json"]);
        serde_json::from_str(&text).expect("a Volume")
    }

    /// The columns of `kubectl get volumes`, by their headings.
    pub fn columns(&self) -> Vec<(String, String)> {
        let text = self.cluster.kubectl(&["-n", &self.namespace, "get", "volumes"]);
        let mut lines = text.lines().map(|line| line.split_whitespace().map(str::to_owned));
        let (heads, values) = (lines.next().expect("headings"), lines.next().expect("a volume"));
        heads.zip(values).collect()
    }

    /// The reasons of the volume's events, oldest first.
    pub fn events(&self) -> Vec<String> {
        let get = ["-n", &self.namespace, "get", "events", "-o", "json"];
        let version = |event: &Value| event["metadata"]["resourceVersion"].as_str().map(str::parse::<u64>);
        let list: Value = serde_json::from_str(&self.cluster.kubectl(&get)).expect("a list");
        let mut events = list["items"].as_array().expect("events").clone();
        events.sort_by_key(|event| version(event).expect("a version").expect("a number"));
        assert!(events.iter().all(|event| event["involvedObject"]["name"] == VOLUME), "{events:#?}");
        events.iter().filter_map(|event| event["reason"].as_str()).map(str::to_owned).collect()
    }

    /// Waits until the volume's events, oldest first, have these reasons among them, in this order.
    pub fn await_events(&self, reasons: &[&str]) {
        let deadline = Instant::now() + LONG;
        loop {
            let told = self.events();
            let mut rest = told.iter();
            if reasons.iter().all(|reason| rest.any(|other| other == reason)) {
                return;
            }
            assert!(Instant::now() < deadline, "not {reasons:?}: {told:?}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until a column of `kubectl get volumes` says something.
    pub fn await_column(&self, head: &str, value: &str) {
        let deadline = Instant::now() + LONG;
        while !self.columns().contains(&(head.to_owned(), value.to_owned())) {
            assert!(Instant::now() < deadline, "{head} is not {value}: {:?}", self.columns());
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// The status of a condition and since when it has that.
    pub fn condition(&self, kind: &str) -> (String, String) {
        let object = self.object();
        let conditions = object["status"]["conditions"].as_array().expect("conditions").clone();
        let found = conditions.into_iter().find(|condition| condition["type"] == kind).expect("the condition");
        let text = |field: &str| found[field].as_str().expect("text").to_owned();
        (text("status"), text("lastTransitionTime"))
    }

    /// The number of the view that is in force.
    pub fn view_number(&self) -> u64 {
        self.object()["status"]["view"]["number"].as_u64().expect("a number")
    }

    /// How many requests the nodes have made, without those that tell events.
    pub fn asked(&self) -> usize {
        self.requests().len()
    }

    /// What the nodes asked for and how it ended. Events are told whenever there is time.
    pub fn requests(&self) -> Vec<String> {
        let user = "system:serviceaccount:sealblk-system:sealblk-node";
        let is_meant = |request: &Request| request.user == user && !request.uri.contains("/events");
        let requests = self.cluster.requests().into_iter().filter(is_meant);
        requests.map(|request| format!("{} {} {}", request.verb, request.uri, request.status)).collect()
    }

    /// The folder of the copy on a node.
    pub fn copy(&self, node: usize) -> PathBuf {
        let id = self.object()["status"]["view"]["volume"].as_str().expect("an id").to_owned();
        self.folder.path().join(name(node)).join(id)
    }

    /// Checks that every copy has the same bytes.
    pub fn assert_equal(&self) {
        let read = |node: usize| {
            let mut bytes = Vec::new();
            let path = self.copy(node).join("data");
            File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).expect("a copy");
            bytes
        };
        let first = read(0);
        for node in 1..NODES {
            assert!(read(node) == first, "the copies of {} and {} differ", name(0), name(node));
        }
    }

    /// Whether there is a folder for copies on a node.
    pub fn has_folder(&self, node: usize) -> bool {
        self.folder.path().join(name(node)).exists()
    }

    pub fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(SEALBLK);
        command.arg(subcommand).current_dir(self.folder.path());
        command.env_remove("KUBECONFIG").env_remove("KUBERNETES_SERVICE_HOST");
        command
    }

    fn identify(&self, node: usize, command: &mut Command) {
        for (argument, file) in [("cert", "cert"), ("key", "key"), ("ca", "ca")] {
            command.arg(format!("--tls-{argument}")).arg(format!("pki/{}/{file}.pem", name(node)));
        }
    }

    /// The volume's key, which the nodes may read, as the controller arranges it.
    fn make_key(&self) {
        let manifest = String::from_utf8(succeed(self.command("key").arg("generate")).stdout).expect("a manifest");
        let volume_key = manifest.split("---\n").next().expect("a Secret");
        let mut secret: Value = serde_norway::from_str(volume_key).expect("a Secret");
        secret["metadata"] = json!({"namespace": self.namespace, "name": SECRET});
        self.cluster.apply(&secret.to_string());
        let (n, role) = (&self.namespace, ["create", "role", "key", "--verb=get", "--resource=secrets"]);
        self.cluster.kubectl(&[&["-n", n][..], &role, &["--resource-name", SECRET]].concat());
        let account = "--serviceaccount=sealblk-system:sealblk-node";
        self.cluster.kubectl(&["-n", n, "create", "rolebinding", "key", "--role=key", account]);
        let can = ["-n", n, "auth", "can-i", "get", &format!("secrets/{SECRET}")];
        let deadline = Instant::now() + LONG;
        while !self.cluster.try_kubectl_as(&self.kubeconfig, &can).status.success() {
            assert!(Instant::now() < deadline, "what was granted is still denied");
        }
    }
}

/// Ports that nobody listens on, all different.
fn free_ports() -> Vec<u16> {
    let listeners: Vec<_> = (0..NODES).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    listeners.iter().map(|listener| listener.local_addr().expect("its address").port()).collect()
}

/// The name of a node.
pub fn name(node: usize) -> String {
    format!("node-{}", char::from(b'a' + node as u8))
}

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

/// The folder of the manifests.
pub fn deployed(file: &str) -> PathBuf {
    Path::new(DEPLOY).join(file)
}

/// Nodes that are members of the volume; the next one is none.
pub const NODES: usize = 3;
pub const VOLUME: &str = "disk-0";
pub const SECRET: &str = "disk-0-key";
pub const LONG: Duration = Duration::from_secs(90);
pub const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");
