//! What `kubectl apply -k deploy/` makes is all that it takes.

use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::admission::{get, secret_name};
use crate::controller::{CONTROLLER_ACCOUNT, DEPLOY, NODE_ACCOUNT, SYSTEM, claim, encrypted, start_process};
use crate::support::PATIENCE;
use crate::support::cluster::Cluster;
use crate::support::volume::SEALBLK;
use crate::tenant::{assert_success, stderr};

/// There is no node to run the Deployment's pods, so the test runs their command, and no network for
/// the Service, so it says the address in its place.
#[test]
fn a_claim_gets_a_key_once_the_manifests_are_applied() {
    let cluster = Cluster::start(&[]);
    cluster.kubectl(&["apply", "-k", DEPLOY]);

    let deployment = get(&cluster, SYSTEM, "deployment/sealblk-controller");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["command"], json!(["sealblk"]));
    let arguments = container["args"].as_array().expect("arguments").iter();
    let mut arguments: Vec<_> = arguments.map(|argument| argument.as_str().expect("text").to_owned()).collect();
    assert_eq!(arguments.remove(0), "controller");
    arguments.retain(|argument| !argument.starts_with("--listen"));
    arguments.push("--service-name=127.0.0.1".to_owned());
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let account = cluster.kubeconfig(SYSTEM, CONTROLLER_ACCOUNT);
    let replica = start_process(&account, &arguments, folder.path());

    let url = format!("https://127.0.0.1:{}/mutate", replica.port);
    let address = |index: usize| {
        let path = format!("/webhooks/{index}/clientConfig");
        [
            json!({"op": "remove", "path": format!("{path}/service")}),
            json!({"op": "add", "path": format!("{path}/url"), "value": url}),
        ]
    };
    let patch = Value::from([address(0), address(1)].concat()).to_string();
    cluster.kubectl(&["patch", "mutatingwebhookconfiguration", "sealblk", "--type=json", "-p", &patch]);

    let namespace = cluster.namespace("deployed");
    let manifest = claim(&namespace, "disk", &encrypted(), Some("")).to_string();
    let deadline = Instant::now() + PATIENCE;
    loop {
        // The API server takes a moment to see where to ask, and until then lets no such claim through.
        let output = cluster.feed(&["create", "-f", "-"], &manifest);
        if output.status.success() {
            break;
        }
        assert!(Instant::now() < deadline, "{}\n{}", stderr(&output), replica.program.log());
    }
    let secret = secret_name(&get(&cluster, &namespace, "pvc/disk"));
    get(&cluster, &namespace, &format!("secret/{secret}"));
    let attached = Command::new(SEALBLK)
        .args(["volume", "create", "--size", "1M", "--key", &format!("pvc:{namespace}/disk"), "--kubeconfig"])
        .arg(cluster.kubeconfig(SYSTEM, NODE_ACCOUNT))
        .arg(folder.path().join("volume"))
        .output();
    assert_success(&attached.expect("running sealblk"));
}
