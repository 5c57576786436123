//! A cluster with three nodes, and a volume in it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::cluster::{Cluster, Request};
use crate::support::nodes::{self, Nodes, PKI, free_ports};
pub use crate::support::nodes::{LONG, Writer, fail, name, succeed};

/// What is dropped first is stopped first.
pub struct Scene {
    nodes: Nodes,
    pub cluster: Cluster,
    pub namespace: String,
    /// That of the nodes' account.
    kubeconfig: PathBuf,
    ports: Vec<u16>,
}

impl Scene {
    /// With what `deploy/` makes, replicas, and the volume's key as a Secret. The volume itself is not there yet.
    pub fn start() -> Scene {
        let cluster = Cluster::start(&[]);
        cluster.kubectl(&["apply", "-k", DEPLOY]);
        cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd/volumes.sealblk.io"]);
        let namespace = cluster.namespace("vms");
        let kubeconfig = cluster.kubeconfig("sealblk-system", "sealblk-node");
        let mut scene = Scene { nodes: Nodes::new(NODES), cluster, namespace, kubeconfig, ports: free_ports(NODES) };
        scene.make_key();
        scene.nodes.certify(PKI, (0..=NODES).map(name));
        (0..NODES).for_each(|node| scene.start_replica(node));
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
        self.nodes.identify(0, &mut command);
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
        self.nodes.start_replica(node, self.command("replica"), &self.address(node));
    }

    /// As `kill -9` does.
    pub fn kill_replica(&mut self, node: usize) {
        self.nodes.kill_replica(node);
    }

    /// Starts a writer on a node and waits until a guest can connect.
    pub fn serve(&mut self, node: usize) -> Writer {
        self.begin_to_serve(node).serving()
    }

    pub fn begin_to_serve(&mut self, node: usize) -> Writer {
        let mut command = self.command("serve");
        command.args(["--volume", &self.volume(), "--root", &name(node)]);
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        self.nodes.begin_to_serve(node, command)
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
        self.nodes.path(&name(node)).join(id)
    }

    /// Checks that every copy has the same bytes.
    pub fn assert_equal(&self) {
        nodes::assert_equal(&self.copy(0), (1..NODES).map(|node| self.copy(node)));
    }

    /// Whether there is a folder for copies on a node.
    pub fn has_folder(&self, node: usize) -> bool {
        self.nodes.path(&name(node)).exists()
    }

    pub fn command(&self, subcommand: &str) -> Command {
        let mut command = self.nodes.command(subcommand);
        command.env_remove("KUBECONFIG").env_remove("KUBERNETES_SERVICE_HOST");
        command
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

/// The folder of the manifests.
pub fn deployed(file: &str) -> PathBuf {
    Path::new(DEPLOY).join(file)
}

/// Nodes that are members of the volume; the next one is none.
pub const NODES: usize = 3;
pub const VOLUME: &str = "disk-0";
pub const SECRET: &str = "disk-0-key";
pub const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");
