//! The controller as a cluster runs it: one or more processes of `sealblk controller` under the
//! ServiceAccount and with the permissions that `deploy/` gives it, behind something that spreads
//! connections as a Service does, and known to the API server by the webhook configuration of `deploy/`.
//!
//! Two things differ from `deploy/`, because tests share a cluster without a network: the configuration
//! names an address instead of a Service, and is for namespaces of one test only.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::balancer::Balancer;
use crate::https;
use crate::support::PATIENCE;
use crate::support::cluster::{Cluster, Program};
use crate::support::volume::SEALBLK;

/// The namespace that `deploy/` makes, with the accounts in it.
pub const SYSTEM: &str = "sealblk-system";
pub const CONTROLLER_ACCOUNT: &str = "sealblk-controller";
pub const NODE_ACCOUNT: &str = "sealblk-node";

/// Where the webhook's certificate comes from.
pub enum Certificate {
    /// Files, which the test has written. The configuration trusts their authority.
    Files(https::Pair),
    /// The controller, with this `--certificate-life`.
    Own(&'static str),
}

/// A controller that the API server asks about the claims of the test's namespaces.
pub struct Controller<'a> {
    pub cluster: &'a Cluster,
    /// Its MutatingWebhookConfiguration.
    pub configuration: String,
    /// Its kubeconfig.
    pub kubeconfig: PathBuf,
    balancer: Balancer,
    replicas: Vec<Replica>,
    arguments: Vec<String>,
    folder: TempDir,
}

/// One process of it.
pub struct Replica {
    pub program: Program,
    pub port: u16,
}

impl<'a> Controller<'a> {
    /// One process, whose certificate is valid as long as the test takes.
    pub fn start(cluster: &'a Cluster, options: &[&str]) -> Controller<'a> {
        Controller::start_with(cluster, 1, https::Pair::make(Duration::from_secs(3600)).into(), options)
    }

    /// So many processes, with more of the command's options.
    pub fn start_with(
        cluster: &'a Cluster,
        count: usize,
        certificate: Certificate,
        options: &[&str],
    ) -> Controller<'a> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        permit(cluster);
        let configuration = format!("sealblk-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the controller");
        let kubeconfig = cluster.kubeconfig(SYSTEM, CONTROLLER_ACCOUNT);
        let balancer = Balancer::start();
        let mut arguments: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let bundle = match &certificate {
            Certificate::Files(pair) => {
                pair.write(folder.path());
                for (option, file) in [("--tls-cert", "tls.crt"), ("--tls-key", "tls.key")] {
                    arguments.extend([option.to_owned(), folder.path().join(file).display().to_string()]);
                }
                Some(STANDARD.encode(&pair.authority))
            }
            Certificate::Own(life) => {
                permit_configuration(cluster, &configuration);
                let secret = format!("{SYSTEM}/{configuration}-tls");
                let own = ["--tls-secret", &secret, "--service-name", "127.0.0.1", "--certificate-life", life];
                arguments.extend(own.map(str::to_owned));
                arguments.extend(["--webhook-configuration".to_owned(), configuration.clone()]);
                None
            }
        };
        let url = format!("https://127.0.0.1:{}/mutate", balancer.port());
        let mut object = deployed("MutatingWebhookConfiguration").pop().expect("a webhook configuration");
        object["metadata"]["name"] = configuration.as_str().into();
        for webhook in object["webhooks"].as_array_mut().expect("webhooks") {
            webhook["clientConfig"] = json!({ "url": url, "caBundle": bundle });
            webhook["namespaceSelector"] = json!({ "matchLabels": { LABEL: configuration } });
        }
        cluster.apply(&object.to_string());
        let mut controller =
            Controller { cluster, configuration, kubeconfig, balancer, replicas: Vec::new(), arguments, folder };
        (0..count).for_each(|_| controller.add_replica());
        controller
    }

    /// Starts one more process, and waits until it is ready.
    pub fn add_replica(&mut self) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let folder = self.folder.path().join(COUNT.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir(&folder).expect("a folder");
        let replica = start_process(&self.kubeconfig, &self.arguments, &folder);
        self.balancer.add(replica.port);
        self.replicas.push(replica);
    }

    /// Ends the oldest process in order, as when a pod is replaced, and returns its log.
    pub fn remove_replica(&mut self) -> String {
        let replica = self.replicas.remove(0);
        self.balancer.remove(replica.port);
        let (status, log) = replica.program.terminate(PATIENCE);
        assert!(status.success(), "{status}:\n{log}");
        log
    }

    /// The processes, oldest first.
    pub fn replicas(&self) -> &[Replica] {
        &self.replicas
    }

    /// What all processes have written.
    pub fn log(&self) -> String {
        self.replicas.iter().map(|replica| replica.program.log()).collect()
    }

    /// A new namespace, about whose claims this controller is asked.
    pub fn namespace(&self, prefix: &str) -> String {
        let namespace = self.cluster.namespace(prefix);
        self.cluster.kubectl(&["label", "namespace", &namespace, &format!("{LABEL}={}", self.configuration)]);
        namespace
    }

    /// The folder where `tls.crt` and `tls.key` are, if they are files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Creates a claim, without an opinion on how that ends.
    pub fn try_claim(&self, namespace: &str, name: &str, metadata: &Value, class: Option<&str>) -> Output {
        self.cluster.try_with_manifest("create", &claim(namespace, name, metadata, class).to_string())
    }
}

/// A claim; `metadata` may have labels and annotations.
pub fn claim(namespace: &str, name: &str, metadata: &Value, class: Option<&str>) -> Value {
    let mut claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata,
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } },
    });
    claim["metadata"]["namespace"] = namespace.into();
    claim["metadata"]["name"] = name.into();
    if let Some(class) = class {
        claim["spec"]["storageClassName"] = class.into();
    }
    claim
}

/// Metadata of a claim that asks for encryption.
pub fn encrypted() -> Value {
    json!({ "labels": { "storageos.com/encryption": "true" } })
}

/// Starts a process of the controller, and waits until it is ready.
pub fn start_process(kubeconfig: &Path, arguments: &[String], folder: &Path) -> Replica {
    let mut command = Command::new(SEALBLK);
    command.args(["controller", "--listen", "127.0.0.1:0", "--drain", "500ms", "--kubeconfig"]).arg(kubeconfig);
    command.args(arguments).env("RUST_LOG", "info").env_remove("KUBECONFIG");
    let mut program = Program::start("controller", command, folder);
    let deadline = Instant::now() + PATIENCE;
    let mut port = None;
    while !port.is_some_and(|port| https::get(port, "/readyz").is_ok_and(|answer| answer.contains(" 200 "))) {
        program.assert_alive();
        assert!(Instant::now() < deadline, "the controller is not ready:\n{}", program.log());
        std::thread::sleep(Duration::from_millis(50));
        let log = program.log();
        let address = log.split("serving reviews on 127.0.0.1:").nth(1).and_then(|rest| rest.lines().next());
        port = address.and_then(|port| port.trim().parse().ok());
    }
    Replica { program, port: port.expect("a port") }
}

/// The objects of a kind that `kubectl apply -k deploy/` makes.
pub fn deployed(kind: &str) -> Vec<Value> {
    static OBJECTS: LazyLock<Vec<Value>> = LazyLock::new(|| {
        let manifests = Cluster::shared().kubectl(&["kustomize", DEPLOY]);
        let documents = serde_norway::Deserializer::from_str(&manifests);
        documents.map(|document| Value::deserialize(document).expect("a manifest")).collect()
    });
    OBJECTS.iter().filter(|object| object["kind"] == kind).cloned().collect()
}

/// Makes the accounts of `deploy/` with their permissions, once for a cluster.
fn permit(cluster: &Cluster) {
    static DONE: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let mut done = DONE.lock().expect("the clusters");
    if !done.get_or_insert_default().insert(cluster.url()) {
        return;
    }
    let kinds = ["Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];
    apply(cluster, kinds.iter().flat_map(|kind| deployed(kind)).collect());
    let kubeconfig = cluster.kubeconfig(SYSTEM, CONTROLLER_ACCOUNT);
    await_permission(cluster, &kubeconfig, &["list", "roles", "--all-namespaces"]);
}

/// Grants for one more webhook configuration what `deploy/` grants for its own.
fn permit_configuration(cluster: &Cluster, configuration: &str) {
    let is_it = |object: &Value| object["metadata"]["name"] == "sealblk-controller-webhooks";
    let mut objects: Vec<_> = ["ClusterRole", "ClusterRoleBinding"].iter().flat_map(|kind| deployed(kind)).collect();
    objects.retain(is_it);
    assert_eq!(objects.len(), 2);
    for object in &mut objects {
        object["metadata"]["name"] = configuration.into();
    }
    objects[0]["rules"][0]["resourceNames"] = json!([configuration]);
    objects[1]["roleRef"]["name"] = configuration.into();
    apply(cluster, objects);
    let resource = format!("mutatingwebhookconfigurations/{configuration}");
    await_permission(cluster, &cluster.kubeconfig(SYSTEM, CONTROLLER_ACCOUNT), &["patch", &resource]);
}

fn apply(cluster: &Cluster, objects: Vec<Value>) {
    cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string());
}

/// The authorizer learns of a grant a moment later.
fn await_permission(cluster: &Cluster, kubeconfig: &Path, what: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    while !cluster.try_kubectl_as(kubeconfig, &[&["auth", "can-i"], what].concat()).status.success() {
        assert!(Instant::now() < deadline, "what was granted is still denied: {what:?}");
    }
}

impl From<https::Pair> for Certificate {
    fn from(pair: https::Pair) -> Certificate {
        Certificate::Files(pair)
    }
}

/// The folder of the manifests.
pub const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");

/// Of a namespace: the webhook configuration that is for it.
const LABEL: &str = "sealblk-test";
