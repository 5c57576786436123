//! A namespace with the key of one volume in it, and an account that may read what it needs and no
//! more, as the controller arranges it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::cluster::{Cluster, Request};
use crate::support::volume::SEALBLK;

/// How the volume's Secret holds the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Clear,
    Wrapped,
}

/// A namespace with its keys.
pub struct Tenant<'a> {
    pub cluster: &'a Cluster,
    pub namespace: String,
    /// The volume key's Secret.
    pub secret: String,
    /// The 64 bytes of the volume's key.
    pub key: Vec<u8>,
    /// The 32 bytes of the namespace's.
    pub namespace_key: Vec<u8>,
    /// The kubeconfig of the account `node`.
    pub kubeconfig: PathBuf,
    folder: TempDir,
}

impl<'a> Tenant<'a> {
    pub fn new(cluster: &'a Cluster, prefix: &str, form: Form) -> Tenant<'a> {
        let namespace = cluster.namespace(prefix);
        let output = run(&["key", "generate", "--namespace", &namespace, "--pvc", "disk"]);
        let manifest = String::from_utf8(output.stdout).expect("a manifest");
        let (volume, namespace_secret) = manifest.split_once("---\n").expect("two Secrets");
        let mut volume: Value = serde_norway::from_str(volume).expect("a Secret");
        let namespace_secret: Value = serde_norway::from_str(namespace_secret).expect("a Secret");
        let (key, namespace_key) = (bytes(&volume, "key"), bytes(&namespace_secret, "key"));
        if form == Form::Wrapped {
            volume["data"].as_object_mut().expect("the data").remove("key");
        }
        cluster.apply(&list(&[&volume, &namespace_secret]));
        let secret = volume["metadata"]["name"].as_str().expect("a name").to_owned();
        cluster.service_account(&namespace, "node");
        let kubeconfig = cluster.kubeconfig(&namespace, "node");
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for volumes");
        let tenant = Tenant { cluster, namespace, secret, key, namespace_key, kubeconfig, folder };
        tenant.grant("secrets", &tenant.secret);
        if form == Form::Wrapped {
            tenant.grant("secrets", NAMESPACE_KEY);
        }
        tenant
    }

    /// Lets the account get one object.
    pub fn grant(&self, resource: &str, name: &str) {
        let (namespace, role) = (&self.namespace, format!("{resource}-{name}"));
        let account = json!([{"kind": "ServiceAccount", "name": "node", "namespace": namespace}]);
        let rule = json!([{"apiGroups": [""], "resources": [resource], "resourceNames": [name], "verbs": ["get"]}]);
        let role_ref = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role});
        let metadata = json!({"name": role, "namespace": namespace});
        let api = "rbac.authorization.k8s.io/v1";
        let role = json!({"apiVersion": api, "kind": "Role", "metadata": metadata, "rules": rule});
        let binding = json!({
            "apiVersion": api, "kind": "RoleBinding", "metadata": metadata, "roleRef": role_ref, "subjects": account,
        });
        self.cluster.apply(&list(&[&role, &binding]));
        // The authorizer learns of it a moment later.
        let can = ["-n", namespace, "auth", "can-i", "get", &format!("{resource}/{name}")];
        let deadline = std::time::Instant::now() + crate::support::PATIENCE;
        while !self.cluster.try_kubectl_as(&self.kubeconfig, &can).status.success() {
            assert!(std::time::Instant::now() < deadline, "what was granted is still denied");
        }
    }

    /// Makes a claim with these annotations, which the account may get.
    pub fn claim(&self, name: &str, annotations: &Value) {
        let claim = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": self.namespace, "annotations": annotations},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        });
        self.cluster.apply(&claim.to_string());
        self.grant("persistentvolumeclaims", name);
    }

    /// `kubernetes:NAMESPACE/SECRET`.
    pub fn source(&self) -> String {
        format!("kubernetes:{}/{}", self.namespace, self.secret)
    }

    /// The volume key's Secret as it is.
    pub fn get(&self) -> Value {
        let json = self.cluster.kubectl(&["-n", &self.namespace, "get", "secret", &self.secret, "-o", "json"]);
        serde_json::from_str(&json).expect("a Secret")
    }

    /// Changes what the volume key's Secret holds; `null` takes a field away.
    pub fn patch(&self, data: &Value) {
        self.patch_secret(&self.secret, data);
    }

    /// The same for another Secret of the namespace.
    pub fn patch_secret(&self, secret: &str, data: &Value) {
        let patch = json!({ "data": data }).to_string();
        self.cluster.kubectl(&["-n", &self.namespace, "patch", "secret", secret, "--type=merge", "-p", &patch]);
    }

    /// A folder for a volume that is not there yet.
    pub fn directory(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `sealblk volume create` of a small volume with the key from `source`.
    pub fn create(&self, name: &str, source: &str, more: &[&str]) -> Command {
        let mut command = self.create_without_access(name, source, more);
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command
    }

    /// The same without a word of where the cluster is.
    pub fn create_without_access(&self, name: &str, source: &str, more: &[&str]) -> Command {
        let mut command = Command::new(SEALBLK);
        command.args(["volume", "create"]).arg(self.directory(name)).args(["--size", "1M", "--key", source]);
        command.args(more).stdin(Stdio::null()).env_remove("KUBECONFIG").env_remove("KUBERNETES_SERVICE_HOST");
        command
    }

    /// What the account has asked the API server for objects of its namespace, `kubectl` aside.
    pub fn requests(&self) -> Vec<Request> {
        let user = format!("system:serviceaccount:{}:node", self.namespace);
        let path = format!("/api/v1/namespaces/{}/", self.namespace);
        let requests = self.cluster.requests().into_iter();
        requests.filter(|request| request.user == user && request.uri.starts_with(&path)).collect()
    }

    /// Verb, kind and status of each of those.
    pub fn asked(&self) -> Vec<String> {
        let requests = self.requests();
        let kind = |uri: &str| uri.split('/').nth(5).unwrap_or_default().to_owned();
        requests.iter().map(|request| format!("{} {} {}", request.verb, kind(&request.uri), request.status)).collect()
    }
}

fn list(objects: &[&Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}

/// A kubeconfig like `kubeconfig`, with `from` replaced by `to`.
pub fn altered(kubeconfig: &Path, name: &str, from: &str, to: &str) -> PathBuf {
    let text = fs::read_to_string(kubeconfig).expect("a kubeconfig");
    assert!(text.contains(from), "{from} is not in the kubeconfig");
    let path = kubeconfig.with_extension(name);
    fs::write(&path, text.replace(from, to)).expect("writing a kubeconfig");
    path
}

/// Runs sealblk, which must succeed.
pub fn run(arguments: &[&str]) -> Output {
    let output = Command::new(SEALBLK).args(arguments).output().expect("running sealblk");
    assert_success(&output);
    output
}

/// Fails the test unless the command has succeeded.
pub fn assert_success(output: &Output) {
    assert!(output.status.success(), "{}", stderr(output));
}

/// What it wrote to standard error.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A field of a Secret, decoded.
pub fn bytes(secret: &Value, field: &str) -> Vec<u8> {
    STANDARD.decode(secret["data"][field].as_str().expect("a field")).expect("base64")
}

/// The Secret of a namespace's key.
pub const NAMESPACE_KEY: &str = "storageos-namespace-key";
