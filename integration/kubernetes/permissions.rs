//! Neither the controller nor a node can do more than it has to, and a replica nothing at all, by the word of the
//! authorizer of a real API server.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::json;

use crate::controller::{CONTROLLER_ACCOUNT, Controller, NODE_ACCOUNT, SYSTEM, encrypted};
use crate::replicas::{self, REPLICAS};
use crate::support::cluster::Cluster;
use crate::tenant::assert_success;

/// What somebody tries, and with what.
struct Account<'a> {
    cluster: &'a Cluster,
    kubeconfig: PathBuf,
}

#[test]
fn the_controller_can_neither_list_nor_delete_secrets_nor_give_itself_more() {
    let cluster = Cluster::shared();
    let controller = Controller::start(cluster, &[]);
    let account = Account { cluster, kubeconfig: controller.kubeconfig.clone() };
    let namespace = controller.namespace("controller-may");
    cluster.kubectl(&["-n", &namespace, "create", "secret", "generic", "known", "--from-literal=a=b"]);

    account.is_allowed(&["-n", &namespace, "get", "secret", "known"]);
    for denied in [
        &["-n", &namespace, "get", "secrets"][..],
        &["get", "secrets", "--all-namespaces"],
        &["get", "--raw", &format!("/api/v1/namespaces/{namespace}/secrets?watch=1&timeoutSeconds=1")],
        &["-n", &namespace, "delete", "secret", "known"],
        &["-n", &namespace, "delete", "pvc", "disk"],
        &["-n", &namespace, "get", "configmaps"],
        &["-n", &namespace, "get", "pods"],
        &["get", "nodes"],
        &["get", "clusterroles"],
        &["get", "mutatingwebhookconfigurations"],
        &["get", "mutatingwebhookconfiguration", "another"],
        &["delete", "mutatingwebhookconfiguration", "sealblk"],
    ] {
        account.is_forbidden(denied);
    }
    let role = |verbs: serde_json::Value, resource: &str| {
        let rules = json!([{ "apiGroups": [""], "resources": [resource], "verbs": verbs }]);
        let metadata = json!({ "name": "more", "namespace": namespace });
        json!({ "apiVersion": RBAC, "kind": "Role", "metadata": metadata, "rules": rules }).to_string()
    };
    for (verbs, resource) in
        [(json!(["list"]), "secrets"), (json!(["get", "delete"]), "secrets"), (json!(["get"]), "pods")]
    {
        account.creation_is_forbidden(&role(verbs, resource));
    }
    // A Role that somebody else has made cannot be bound either.
    let name = format!("admin-of-{namespace}");
    let binding = json!({
        "apiVersion": RBAC, "kind": "RoleBinding", "metadata": { "name": name, "namespace": namespace },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
        "subjects": [{ "kind": "ServiceAccount", "name": CONTROLLER_ACCOUNT, "namespace": SYSTEM }],
    });
    account.creation_is_forbidden(&binding.to_string());
    let binding = binding.to_string().replace("\"RoleBinding\"", "\"ClusterRoleBinding\"");
    account.creation_is_forbidden(&binding.replace(&format!(",\"namespace\":\"{namespace}\""), ""));
}

#[test]
fn the_controller_can_be_kept_to_some_namespaces() {
    let cluster = Cluster::start(&[]);
    let controller = Controller::start(&cluster, &[]);
    let (inside, outside) = (controller.namespace("inside"), controller.namespace("outside"));
    cluster.apply(
        &json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": "plain" },
            "provisioner": "example.com/none",
        })
        .to_string(),
    );
    cluster.kubectl(&["delete", "clusterrolebinding", KEYS]);
    let account = format!("--serviceaccount={SYSTEM}:{CONTROLLER_ACCOUNT}");
    cluster.kubectl(&["-n", &inside, "create", "rolebinding", "keys", "--clusterrole", KEYS, &account]);
    let account = Account { cluster: &cluster, kubeconfig: controller.kubeconfig.clone() };
    account.is_allowed(&["-n", &inside, "auth", "can-i", "create", "secrets"]);
    account.is_no_longer_allowed(&["-n", &outside, "auth", "can-i", "create", "secrets"]);

    assert_success(&controller.try_claim(&inside, "sealed", &encrypted(), Some("")));
    let refused = controller.try_claim(&outside, "sealed", &encrypted(), Some(""));
    let reason = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && reason.contains("forbidden"), "{reason}");
    // Which class a claim is of it still sees everywhere.
    assert_success(&controller.try_claim(&outside, "plain", &json!({}), Some("plain")));
}

/// The claim's key, and nothing else, in the namespace or anywhere.
#[test]
fn a_node_can_get_the_keys_of_volumes_and_nothing_else() {
    let cluster = Cluster::shared();
    let controller = Controller::start(cluster, &[]);
    let account = Account { cluster, kubeconfig: cluster.kubeconfig(SYSTEM, NODE_ACCOUNT) };
    let namespace = controller.namespace("node-may");
    cluster.kubectl(&["-n", &namespace, "create", "secret", "generic", "other", "--from-literal=a=b"]);
    let output = controller.try_claim(&namespace, "disk", &encrypted(), Some(""));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let annotation = r"jsonpath={.metadata.annotations.storageos\.com/encryption-secret-name}";
    let secret = cluster.kubectl(&["-n", &namespace, "get", "pvc", "disk", "-o", annotation]);
    assert!(secret.starts_with("storageos-volume-key-"), "{secret}");

    account.is_allowed(&["-n", &namespace, "get", "pvc", "disk"]);
    account.is_allowed(&["-n", &namespace, "get", "secret", &secret]);
    let patch = ["-n", &namespace, "patch", "secret", &secret, "--type=merge", "-p", r#"{"data":{"key":"AAAA"}}"#];
    for denied in [
        &["-n", &namespace, "get", "secret", "other"][..],
        &["-n", &namespace, "get", "secrets"],
        &["get", "secrets", "--all-namespaces"],
        &["-n", SYSTEM, "get", "secret", "sealblk-controller-tls"],
        &["-n", &namespace, "delete", "secret", &secret],
        &patch,
        &["-n", &namespace, "get", "pvc"],
        &["-n", &namespace, "delete", "pvc", "disk"],
        &["-n", &namespace, "get", "roles"],
        &["-n", &namespace, "create", "secret", "generic", "more"],
    ] {
        account.is_forbidden(denied);
    }
}

/// No more than anybody who has a token.
#[test]
fn the_account_of_replicas_may_do_nothing() {
    let cluster = Cluster::shared();
    replicas::apply();
    cluster.service_account(REPLICAS, "nobody");
    let rights = |account: &str| {
        let output = cluster.try_kubectl_as(&cluster.kubeconfig(REPLICAS, account), &["auth", "can-i", "--list"]);
        assert_success(&output);
        String::from_utf8(output.stdout).expect("text")
    };
    assert!(rights("nobody").contains("selfsubjectaccessreviews"), "{}", rights("nobody"));
    assert_eq!(rights("sealblk-replica"), rights("nobody"));

    let account = Account { cluster, kubeconfig: cluster.kubeconfig(REPLICAS, "sealblk-replica") };
    for denied in [
        &["get", "secrets", "--all-namespaces"][..],
        &["get", "--raw", "/apis/sealblk.io/v1alpha1/volumes"],
        &["-n", REPLICAS, "get", "configmap", "sealblk-authorities"],
        &["-n", REPLICAS, "get", "pods"],
        &["get", "nodes"],
    ] {
        account.is_forbidden(denied);
    }
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": { "name": "event", "namespace": REPLICAS },
        "involvedObject": { "kind": "Volume", "namespace": REPLICAS, "name": "disk" },
    });
    account.creation_is_forbidden(&event.to_string());

    // Nor may the node's account do anything where the replicas are: whoever makes a pod there is root on a node.
    Controller::start(cluster, &[]);
    let account = Account { cluster, kubeconfig: cluster.kubeconfig(SYSTEM, NODE_ACCOUNT) };
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "more", "namespace": REPLICAS },
        "spec": { "containers": [{ "name": "more", "image": "more" }] },
    });
    account.creation_is_forbidden(&pod.to_string());
    account.is_forbidden(&["-n", REPLICAS, "get", "secret", "sealblk-ca"]);
}

impl Account<'_> {
    fn is_allowed(&self, arguments: &[&str]) {
        let deadline = std::time::Instant::now() + crate::support::PATIENCE;
        loop {
            // The authorizer learns of a grant a moment later.
            let output = self.run(&self.kubeconfig, arguments);
            if output.status.success() {
                return;
            }
            let reason = String::from_utf8_lossy(&output.stderr);
            assert!(std::time::Instant::now() < deadline, "{arguments:?}: {reason}");
        }
    }

    fn is_no_longer_allowed(&self, arguments: &[&str]) {
        crate::support::wait_until("the authorizer's word", || !self.run(&self.kubeconfig, arguments).status.success());
    }

    fn is_forbidden(&self, arguments: &[&str]) {
        assert_forbidden(arguments, &self.run(&self.kubeconfig, arguments));
    }

    fn creation_is_forbidden(&self, manifest: &str) {
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
        std::fs::write(file.path(), manifest).expect("writing a manifest");
        let arguments = ["create", "--validate=false", "-f", &file.path().display().to_string()];
        assert_forbidden(&[manifest], &self.run(&self.kubeconfig, &arguments));
    }

    fn run(&self, kubeconfig: &Path, arguments: &[&str]) -> Output {
        self.cluster.try_kubectl_as(kubeconfig, arguments)
    }
}

fn assert_forbidden(what: &[&str], output: &Output) {
    let reason = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && reason.to_lowercase().contains("forbidden"), "{what:?}: {reason}");
}

const RBAC: &str = "rbac.authorization.k8s.io/v1";
/// The ClusterRole of what the controller may do with keys.
const KEYS: &str = "sealblk-controller-keys";
