//! A key that a claim needs cannot be deleted by accident, and one that none needs can. Each story has a
//! cluster of its own: the controllers of other tests would take part.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::admission::{get, secret_name};
use crate::controller::{Controller, encrypted};
use crate::support::PATIENCE;
use crate::support::cluster::Cluster;
use crate::tenant::assert_success;

const FINALIZER: &str = "sealblk.io/pvc-protection";

#[test]
fn a_deleted_key_stays_until_its_claim_is_gone() {
    let cluster = &Cluster::start(&[]);
    let controller = Controller::start(cluster, &["--orphan-grace", "1s"]);
    let namespace = controller.namespace("deleted");
    assert_success(&controller.try_claim(&namespace, "disk", &encrypted(), Some("")));
    let secret = secret_name(&get(cluster, &namespace, "pvc/disk"));
    cluster.kubectl(&["-n", &namespace, "delete", "secret", &secret, "--wait=false"]);
    std::thread::sleep(Duration::from_secs(3));
    let kept = get(cluster, &namespace, &format!("secret/{secret}"));
    assert!(kept["metadata"]["deletionTimestamp"].is_string());
    assert!(kept["data"]["key"].is_string(), "the key is gone");
    delete_claim(cluster, &namespace, "disk");
    await_that(|| !exists(cluster, &namespace, &secret), "the Secret is still there");
}

/// Prevents a namespace from being stuck in its deletion: all in it goes at once, and its Roles before
/// its claims, which have a finalizer.
#[test]
fn a_key_goes_with_its_namespace_whatever_goes_first() {
    let cluster = &Cluster::start(&[]);
    let controller = Controller::start(cluster, &["--orphan-grace", "1h"]);
    let namespace = controller.namespace("leaving");
    assert_success(&controller.try_claim(&namespace, "disk", &encrypted(), Some("")));
    let secret = secret_name(&get(cluster, &namespace, "pvc/disk"));
    let all = ["role", "rolebinding", "secret"].map(|kind| format!("{kind}/{secret}"));
    let delete = ["-n", &namespace, "delete", "--wait=false"];
    cluster.kubectl(&[&delete[..], &all.each_ref().map(String::as_str)].concat());
    await_that(
        || !cluster.try_kubectl(&["-n", &namespace, "get", &all[0]]).status.success(),
        "the Role is still there",
    );
    std::thread::sleep(Duration::from_secs(1));
    assert!(exists(cluster, &namespace, &secret), "the key went before its claim");
    delete_claim(cluster, &namespace, "disk");
    await_that(|| !exists(cluster, &namespace, &secret), "the Secret is still there");
}

#[test]
fn the_key_of_a_deleted_claim_stays_can_be_deleted_and_is_protected_again_by_another() {
    let cluster = &Cluster::start(&[]);
    let mut controller = Controller::start(cluster, &["--orphan-grace", "1s"]);
    let namespace = controller.namespace("orphans");
    assert_success(&controller.try_claim(&namespace, "disk", &encrypted(), Some("")));
    let secret = secret_name(&get(cluster, &namespace, "pvc/disk"));
    // The finalizers of others are none of ours.
    let patch = json!({"metadata": {"finalizers": [FINALIZER, "example.com/other"]}}).to_string();
    cluster.kubectl(&["-n", &namespace, "patch", "secret", &secret, "--type=merge", "-p", &patch]);

    // The claim goes while no controller runs: the next one finds that out.
    controller.remove_replica();
    delete_claim(cluster, &namespace, "disk");
    assert_eq!(finalizers(cluster, &namespace, &secret), [FINALIZER, "example.com/other"]);
    controller.add_replica();
    await_that(|| finalizers(cluster, &namespace, &secret) == ["example.com/other"], "the Secret is still protected");

    // A new claim may name the Secret.
    let mut metadata = encrypted();
    metadata["annotations"] = json!({"storageos.com/encryption-secret-name": secret});
    assert_success(&controller.try_claim(&namespace, "again", &metadata, Some("")));
    assert!(finalizers(cluster, &namespace, &secret).contains(&FINALIZER.to_owned()));
    std::thread::sleep(Duration::from_secs(2));
    assert!(finalizers(cluster, &namespace, &secret).contains(&FINALIZER.to_owned()));
    delete_claim(cluster, &namespace, "again");
    await_that(|| finalizers(cluster, &namespace, &secret) == ["example.com/other"], "the Secret is still protected");
    assert!(exists(cluster, &namespace, &secret), "the key was deleted with its claim");
}

/// Deletes a claim for good. The plugin StorageObjectInUseProtection gives it a finalizer, which a
/// controller manager would take away.
fn delete_claim(cluster: &Cluster, namespace: &str, name: &str) {
    cluster.kubectl(&["-n", namespace, "delete", "pvc", name, "--wait=false"]);
    let patch = json!({"metadata": {"finalizers": null}}).to_string();
    cluster.try_kubectl(&["-n", namespace, "patch", "pvc", name, "--type=merge", "-p", &patch]);
    await_that(
        || !cluster.try_kubectl(&["-n", namespace, "get", "pvc", name]).status.success(),
        "the claim is still there",
    );
}

fn finalizers(cluster: &Cluster, namespace: &str, secret: &str) -> Vec<String> {
    let secret = get(cluster, namespace, &format!("secret/{secret}"));
    let finalizers = secret["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    finalizers.iter().map(|name: &Value| name.as_str().expect("a name").to_owned()).collect()
}

fn exists(cluster: &Cluster, namespace: &str, secret: &str) -> bool {
    cluster.try_kubectl(&["-n", namespace, "get", "secret", secret]).status.success()
}

fn await_that(condition: impl Fn() -> bool, otherwise: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{otherwise}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
