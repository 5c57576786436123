//! What `kubectl apply -k deploy/replicas` makes, and what goes with it: a real API server accepts all of it, and its
//! command line is one by which a replica serves its node's copies.
//!
//! There is no kubelet, so the test is one: it puts folders in the place of the mounts, says what the node's address
//! is, and takes the privileges away that the pod does not ask for. cert-manager is not there either: its objects are
//! only read.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime};

use sealblk::replication::transport::describe;
use sealblk::store::Superblock;
use sealblk::tls::{Configs, TlsPaths};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use crate::admission::get;
use crate::controller::DEPLOY;
use crate::support::PATIENCE;
use crate::support::cluster::{Cluster, Program};
use crate::support::confined::confined;
use crate::support::mounted::Mounted;
use crate::support::pattern::pattern;
use crate::support::volume::SEALBLK;
use crate::tenant::{assert_success, stderr};

#[test]
fn an_api_server_accepts_every_manifest() {
    let cluster = Cluster::start(&[]);
    cluster.kubectl(&["apply", "-k", DEPLOY]);
    cluster.kubectl(&["apply", "-k", &path("replicas")]);
    cluster.kubectl(&["apply", "-f", &path("network-policies.yaml")]);
    cluster.kubectl(&["apply", "-f", &path("priority-quotas.yaml")]);
    cluster.kubectl(&["apply", "-k", &path("cert-manager/node-a")]);
    for (namespace, object) in [
        (REPLICAS, "serviceaccount/sealblk-replica"),
        (REPLICAS, "daemonset/sealblk-replica"),
        (REPLICAS, "daemonset/sealblk-replica-node-a"),
        (REPLICAS, "networkpolicy/sealblk-replica"),
        ("sealblk-system", "networkpolicy/sealblk-controller"),
        ("sealblk-system", "resourcequota/sealblk-critical"),
        (REPLICAS, "resourcequota/sealblk-critical"),
    ] {
        get(&cluster, namespace, object);
    }
    // Older servers have budgets in the version before, which is the same but for what an empty selector means.
    for file in ["disruption-budget.yaml", "replicas/disruption-budget.yaml"] {
        let mut budget = documents(&read(file)).pop().expect("a budget");
        if Cluster::is_older_than(1, 21) {
            budget["apiVersion"] = "policy/v1beta1".into();
        }
        cluster.apply(&budget.to_string());
    }
}

/// Each policy and budget is for pods that there are, by the labels and ports that they have.
#[test]
fn policies_and_budgets_mean_the_pods_of_their_manifests() {
    let controller = documents(&read("controller.yaml")).remove(0);
    let replica = documents(&read("replicas/daemonset/daemonset.yaml")).remove(0);
    let labels = |workload: &Value| workload["spec"]["template"]["metadata"]["labels"].clone();
    for (quota, workload) in documents(&read("priority-quotas.yaml")).iter().zip([&controller, &replica]) {
        assert_eq!(quota["metadata"]["namespace"], workload["metadata"]["namespace"]);
        let classes = &quota["spec"]["scopeSelector"]["matchExpressions"][0]["values"];
        assert_eq!(classes[0], workload["spec"]["template"]["spec"]["priorityClassName"]);
    }
    let port = |workload: &Value| workload["spec"]["template"]["spec"]["containers"][0]["ports"][0].clone();
    let policies = documents(&read("network-policies.yaml"));
    let [of_controller, of_replica] = &policies[..] else { panic!("{policies:#?}") };

    for (workload, selecting) in [
        (&controller, &of_controller["spec"]["podSelector"]),
        (&controller, &documents(&read("disruption-budget.yaml"))[0]["spec"]["selector"]),
        (&replica, &documents(&read("replicas/disruption-budget.yaml"))[0]["spec"]["selector"]),
    ] {
        let selected = selecting["matchLabels"].as_object().expect("labels");
        assert!(!selected.is_empty() && selected.iter().all(|(key, value)| labels(workload)[key] == *value));
    }
    assert_eq!(of_controller["metadata"]["namespace"], controller["metadata"]["namespace"]);
    assert_eq!(of_controller["spec"]["ingress"][0]["ports"][0]["port"], port(&controller)["name"]);
    assert_eq!(of_replica["spec"]["podSelector"], json!({}), "every pod of the namespace");
    assert_eq!(of_replica["metadata"]["namespace"], replica["metadata"]["namespace"]);
    assert_eq!(of_replica["spec"]["ingress"][0]["ports"][0]["port"], port(&replica)["containerPort"]);
    assert_eq!(of_replica["spec"]["egress"], json!([]));
}

#[test]
fn a_replica_starts_as_the_daemon_set_says_and_a_peer_reaches_it() {
    let cluster = Cluster::shared();
    apply();
    let daemon_set = get(cluster, REPLICAS, "daemonset/sealblk-replica");
    let node = Node::new(&daemon_set);
    node.certify("node-b");
    let (status, log) = node.start().await_end(PATIENCE);
    assert!(!status.success() && log.contains("the certificate is of node-b"), "a mix-up is found: {log}");
    node.certify(NODE);

    // Nothing answers yet, so neither probe does.
    for probe in ["livenessProbe", "readinessProbe"] {
        let output = node.probe(probe);
        assert!(!output.status.success() && stderr(&output).contains("no replica"), "{}", stderr(&output));
    }
    let mut replica = node.start();
    for probe in ["livenessProbe", "readinessProbe"] {
        node.await_probe(probe, &mut replica);
    }

    // Another node of the cluster finds out what a volume is that was made here.
    let tls = node.issued("node-a");
    let mut command = Command::new(SEALBLK);
    command.args(["volume", "create", "--size", "1M", "--key", "file:key", "--view", "file:views"]);
    command.arg("--member").arg(format!("node-a={}", node.address)).current_dir(node.folder.path());
    command.arg("--tls-cert").arg(&tls.cert).arg("--tls-key").arg(&tls.key).arg("--tls-ca").arg(&tls.ca);
    let made = command.output().expect("running sealblk");
    assert_success(&made);
    let made = String::from_utf8_lossy(&made.stdout);
    let volume: Uuid = made.split_whitespace().find_map(|word| word.parse().ok()).expect("the volume's id");
    assert!(replica.log().contains("threads engine"), "io_uring is forbidden:\n{}", replica.log());
    let ask = |paths: &TlsPaths, called: &str| {
        let configs = Configs::load(paths, SystemTime::now()).expect("the peer's certificate");
        let (address, called) = (node.address.to_string(), called.parse().expect("a name"));
        describe(&address, &called, &configs, volume, Instant::now() + PATIENCE)
    };
    let superblock = ask(&node.issued("node-b"), "node-a").expect("mutual TLS");
    assert_eq!(Superblock::parse(&superblock).expect("a superblock").id, volume);
    node.await_probe("readinessProbe", &mut replica);

    // Who asks for another node does not take it for that, and who has no certificate of the cluster hears nothing.
    let refused = ask(&node.issued("node-b"), "node-c").expect_err("another name").to_string();
    assert!(refused.contains("node-c"), "{refused}");
    let stranger = Node::new(&daemon_set);
    let stranger = TlsPaths { ca: tls.ca, ..stranger.issued("node-b") };
    let refused = ask(&stranger, "node-a").expect_err("another authority").to_string();
    assert!(replica.log().contains("is not from our authority"), "{refused}\n{}", replica.log());

    // The certificate is renewed: the same process takes it up.
    node.certify(NODE);
    let shown = node.mounts[1].file("tls.crt");
    let deadline = Instant::now() + PATIENCE;
    while !replica.log().contains("was read again") {
        assert!(Instant::now() < deadline, "{} is not read again:\n{}", shown.display(), replica.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    ask(&node.issued("node-b"), "node-a").expect("mutual TLS");

    let (status, log) = replica.terminate(PATIENCE);
    assert!(status.success() && log.contains("everything is durable"), "{status}:\n{log}");
    assert!(!node.probe("livenessProbe").status.success());
}

/// What cert-manager's documentation names, and no more: the objects were not given to a real one.
#[test]
fn the_example_for_cert_manager_asks_for_what_nodes_need() {
    let [self_signed, authority, issuer] = &documents(&read("cert-manager/authority.yaml"))[..] else { panic!() };
    for object in [self_signed, authority, issuer] {
        assert_eq!(object["apiVersion"], "cert-manager.io/v1");
        assert_eq!(object["metadata"]["namespace"], REPLICAS);
    }
    assert_eq!((&self_signed["kind"], &issuer["kind"]), (&json!("Issuer"), &json!("Issuer")));
    assert_eq!(self_signed["spec"], json!({ "selfSigned": {} }));
    assert_eq!((&authority["kind"], &authority["spec"]["isCA"]), (&json!("Certificate"), &json!(true)));
    assert_eq!(authority["spec"]["issuerRef"]["name"], self_signed["metadata"]["name"]);
    assert_eq!(issuer["spec"]["ca"]["secretName"], authority["spec"]["secretName"]);

    let built = Cluster::shared().kubectl(&["kustomize", &path("cert-manager/node-a")]);
    let daemon_set = documents(&built).pop().expect("a DaemonSet");
    let pod = &daemon_set["spec"]["template"]["spec"];
    let terms = &pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
    let node = json!([{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["node-a"] }] }]);
    assert_eq!(*terms, node);
    assert_eq!(daemon_set["spec"]["updateStrategy"], json!({ "type": "OnDelete" }));
    assert_eq!(daemon_set["spec"]["selector"]["matchLabels"]["sealblk.io/node"], "node-a", "it has pods of its own");
    let volumes = pod["volumes"].as_array().expect("volumes");
    let tls = volumes.iter().find(|volume| volume["name"] == "tls").expect("the certificate's volume");
    assert_eq!(tls.as_object().expect("a volume").len(), 2, "one source: {tls}");
    assert_eq!((&tls["csi"]["driver"], &tls["csi"]["readOnly"]), (&json!("csi.cert-manager.io"), &json!(true)));
    let attributes = tls["csi"]["volumeAttributes"].as_object().expect("attributes");
    let attribute = |name: &str| attributes[&format!("csi.cert-manager.io/{name}")].as_str().expect("text");
    assert_eq!(attribute("issuer-name"), issuer["metadata"]["name"]);
    assert_eq!(attribute("issuer-kind"), "Issuer");
    assert_eq!(attribute("dns-names"), "node-a", "the name of the member, which no variable of the driver's can give");
    assert_eq!(attribute("key-usages"), "digital signature,client auth,server auth");
    let known = ["issuer-name", "issuer-kind", "dns-names", "key-usages", "duration", "renew-before"];
    let known = [&known[..], &["key-algorithm", "key-size", "key-encoding"]].concat();
    let names = attributes.keys().map(|key| key.strip_prefix("csi.cert-manager.io/").expect("the driver's own"));
    assert!(names.into_iter().all(|name| known.contains(&name)), "{attributes:?}");
    // The files that the driver writes are called what the command line names: `tls.crt` and `tls.key`.
    let arguments = pod["containers"][0]["args"].as_array().expect("arguments");
    for argument in ["--tls-cert=/tls/tls.crt", "--tls-key=/tls/tls.key", "--tls-ca=/authorities/ca.crt"] {
        assert!(arguments.contains(&json!(argument)), "{arguments:?}");
    }
}

/// Makes what `deploy/replicas` says in the cluster that tests share.
pub fn apply() {
    static DONE: LazyLock<String> = LazyLock::new(|| Cluster::shared().kubectl(&["apply", "-k", &path("replicas")]));
    assert!(DONE.contains("sealblk-replica"), "{}", *DONE);
}

/// A node on which the pod of a DaemonSet is to run.
struct Node {
    container: Value,
    /// Where the copies, the certificate and the authorities are mounted, and what is mounted there.
    places: Vec<String>,
    mounts: Vec<Mounted>,
    address: SocketAddr,
    folder: TempDir,
}

impl Node {
    fn new(daemon_set: &Value) -> Node {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the node");
        let pod = &daemon_set["spec"]["template"]["spec"];
        let container = pod["containers"][0].clone();
        let mount = |name: &str| {
            let mounts = container["volumeMounts"].as_array().expect("mounts");
            let mount = mounts.iter().find(|mount| mount["name"] == name).expect("the mount");
            mount["mountPath"].as_str().expect("a path").to_owned()
        };
        let names = ["copies", "tls", "authorities"];
        let places = names.map(mount).to_vec();
        let mounts = names.map(|name| Mounted::create(folder.path().join(name))).to_vec();
        // The port that the DaemonSet names may be taken here.
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        fs::write(folder.path().join("key"), pattern(1, 64)).expect("a key");
        fs::set_permissions(folder.path().join("key"), fs::Permissions::from_mode(0o600)).expect("the key's mode");
        fs::create_dir(folder.path().join("views")).expect("a folder for views");
        Node { container, places, mounts, address, folder }
    }

    /// Gives the node a new certificate, and whom to trust.
    fn certify(&self, name: &str) {
        let issued = self.issued(name);
        let read = |path: &Path| fs::read(path).expect("a file of the authority's");
        self.mounts[1].write(&[("tls.crt", read(&issued.cert)), ("tls.key", read(&issued.key))]);
        self.mounts[2].write(&[("ca.crt", read(&issued.ca))]);
    }

    /// A new certificate of the cluster's authority.
    fn issued(&self, name: &str) -> TlsPaths {
        let mut command = Command::new(SEALBLK);
        command.args(["tls", "bootstrap", "pki", "--renew", "--node", name]).current_dir(self.folder.path());
        assert_success(&command.output().expect("running sealblk"));
        let file = |file: &str| self.folder.path().join("pki").join(name).join(file);
        TlsPaths { cert: file("cert.pem"), key: file("key.pem"), ca: file("ca.pem"), crl: None }
    }

    /// The container's command and arguments as they are here.
    fn command(&self, words: &Value) -> Vec<String> {
        let words = words.as_array().expect("words").iter().map(|word| word.as_str().expect("text"));
        words.map(|word| self.here(word)).collect()
    }

    fn here(&self, word: &str) -> String {
        let port = format!("$(NODE_ADDRESS):{}", self.container["ports"][0]["containerPort"]);
        let mut word = word.replace(&port, &self.address.to_string()).replace("$(NODE_NAME)", NODE);
        for (place, mount) in self.places.iter().zip(&self.mounts) {
            let is_path = |start: usize| word[..start].is_empty() || word[..start].ends_with('=');
            if let Some(start) = word.find(place.as_str()).filter(|&start| is_path(start)) {
                word.replace_range(start..start + place.len(), &mount.path().display().to_string());
                break;
            }
        }
        word
    }

    /// What runs it with the container's privileges.
    fn confined(&self, words: &[String]) -> Command {
        let context = &self.container["securityContext"];
        let expected = json!({
            "runAsUser": 0, "runAsGroup": 0, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" },
        });
        assert_eq!(*context, expected, "what `confined` stands for");
        let (program, arguments) = words.split_first().expect("a program");
        assert_eq!(program, "sealblk");
        let mut command = confined(SEALBLK);
        command.args(arguments).stdin(Stdio::null()).env("RUST_LOG", "info");
        command
    }

    fn start(&self) -> Program {
        let field = |name: &str, path: &str| {
            let reference = json!({ "apiVersion": "v1", "fieldPath": path });
            json!({ "name": name, "valueFrom": { "fieldRef": reference } })
        };
        let env = json!([field("NODE_NAME", "spec.nodeName"), field("NODE_ADDRESS", "status.hostIP")]);
        assert_eq!(self.container["env"], env, "what is put in its place here");
        let words = [self.command(&self.container["command"]), self.command(&self.container["args"])].concat();
        assert!(words.iter().all(|word| !word.contains('$')), "{words:?}");
        Program::start("replica", self.confined(&words), self.folder.path())
    }

    fn probe(&self, probe: &str) -> Output {
        let words = self.command(&self.container[probe]["exec"]["command"]);
        self.confined(&words).output().expect("running the probe")
    }

    fn await_probe(&self, probe: &str, replica: &mut Program) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.probe(probe);
            if output.status.success() {
                return;
            }
            replica.assert_alive();
            assert!(Instant::now() < deadline, "{probe}: {}\n{}", stderr(&output), replica.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn path(file: &str) -> String {
    PathBuf::from(DEPLOY).join(file).display().to_string()
}

fn read(file: &str) -> String {
    fs::read_to_string(path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn documents(text: &str) -> Vec<Value> {
    let documents = serde_norway::Deserializer::from_str(text);
    documents.map(|document| Value::deserialize(document).expect("a manifest")).collect()
}

/// The node that runs the pod.
const NODE: &str = "node-a";

/// The namespace that `deploy/replicas` makes.
pub const REPLICAS: &str = "sealblk-replicas";
