//! A key management service protects the keys at rest: what etcd holds can be opened only with its
//! help.

use std::fs;
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

use crate::admission::{get, secret_name};
use crate::controller::{Controller, NODE_ACCOUNT, SYSTEM, encrypted};
use crate::support::cluster::Cluster;
use crate::support::cluster::kms::KmsPlugin;
use crate::support::volume::SEALBLK;
use crate::tenant::{assert_success, bytes, stderr};

#[test]
fn what_etcd_holds_is_an_envelope_that_only_the_service_opens() {
    let folder = TempDir::new().expect("a folder for the plugin");
    let mut plugin = KmsPlugin::start();
    let cluster = cluster_with(&plugin, folder.path());
    let controller = Controller::start(&cluster, &[]);
    let namespace = controller.namespace("kms");
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for a volume");
    let volume = |command: &[&str], patience: &str, further: &[&str]| {
        Command::new(SEALBLK)
            .args(command)
            .args(["--key", &format!("pvc:{namespace}/disk"), "--key-timeout", patience, "--kubeconfig"])
            .arg(cluster.kubeconfig(SYSTEM, NODE_ACCOUNT))
            .arg(folder.path().join("volume"))
            .args(further)
            .output()
            .expect("running sealblk")
    };

    let sealed = plugin.encryptions();
    assert_success(&controller.try_claim(&namespace, "disk", &encrypted(), Some("")));
    assert!(plugin.encryptions() >= sealed + 2, "the plugin was not asked to seal two Secrets");
    let secret = secret_name(&get(&cluster, &namespace, "pvc/disk"));
    let key = bytes(&get(&cluster, &namespace, &format!("secret/{secret}")), "key");
    let etcd = everything_in(&cluster.etcd_folder());
    assert!(holds(&etcd, format!("/registry/secrets/{namespace}/{secret}").as_bytes()));
    assert!(holds(&etcd, format!("k8s:enc:kms:{}:test:", version()).as_bytes()));
    assert_not_in(&etcd, &key);
    let opened = plugin.decryptions();
    assert_success(&volume(&["volume", "create", "--size", "1M"], "5s", &[]));
    assert!(plugin.decryptions() > opened, "the plugin was not asked to open the Secret");

    plugin.stop();
    let refused = volume(&["volume", "export"], "5s", &["/dev/null"]);
    let reason = stderr(&refused);
    assert_eq!(refused.status.code(), Some(1), "{reason}");
    assert!(reason.contains(plugin.socket()), "no word of the plugin: {reason}");
    let refused = controller.try_claim(&namespace, "refused", &encrypted(), Some(""));
    assert!(!refused.status.success(), "a claim was admitted without the plugin");
    assert!(stderr(&refused).contains(plugin.socket()), "no word of the plugin: {}", stderr(&refused));

    plugin.resume();
    // The API server waits longer and longer before it dials the plugin again, up to two minutes.
    assert_success(&volume(&["volume", "export"], "150s", &["/dev/null"]));
    assert_success(&controller.try_claim(&namespace, "refused", &encrypted(), Some("")));
}

/// The search would find a key that is not protected.
#[test]
fn without_a_service_the_key_lies_in_etcd_as_it_is() {
    let cluster = Cluster::shared();
    let controller = Controller::start(cluster, &[]);
    let namespace = controller.namespace("no-kms");
    assert_success(&controller.try_claim(&namespace, "disk", &encrypted(), Some("")));
    let secret = secret_name(&get(cluster, &namespace, "pvc/disk"));
    let key = bytes(&get(cluster, &namespace, &format!("secret/{secret}")), "key");
    assert!(holds(&everything_in(&cluster.etcd_folder()), &key));
}

fn cluster_with(plugin: &KmsPlugin, folder: &Path) -> Cluster {
    let version = version();
    // A cache, which version 2 does not have, would let the server answer with the plugin away.
    let cache = if version == "v1" { ", cachesize: -1" } else { "" };
    let configuration = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
         - resources: [secrets]\n  providers:\n  \
         - kms: {{apiVersion: {version}, name: test, endpoint: \"{}\", timeout: 1s{cache}}}\n",
        plugin.endpoint()
    );
    let configuration = match version {
        // Before version 2 there was no field to say so.
        "v1" => configuration.replace("apiVersion: v1, ", ""),
        _ => configuration,
    };
    let path = folder.join("encryption.yaml");
    fs::write(&path, configuration).expect("writing the configuration");
    Cluster::start(&[&format!("--encryption-provider-config={}", path.display())])
}

/// Of the protocol between the API server and the plugin.
fn version() -> &'static str {
    if Cluster::is_older_than(1, 28) { "v1" } else { "v2" }
}

/// The content of every file under a folder, one after the other.
fn everything_in(folder: &Path) -> Vec<u8> {
    let mut content = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("the entry's type").is_dir() {
            content.extend(everything_in(&entry.path()));
        } else {
            content.extend(fs::read(entry.path()).expect("a file"));
        }
    }
    content
}

/// No eight bytes of the key in a row, and no nine of them in base64.
fn assert_not_in(content: &[u8], key: &[u8]) {
    for window in key.windows(8) {
        assert!(!holds(content, window), "a part of the key is there");
    }
    for window in key.windows(9) {
        assert!(!holds(content, STANDARD.encode(window).as_bytes()), "a part of the key is there, encoded");
    }
}

fn holds(content: &[u8], wanted: &[u8]) -> bool {
    content.windows(wanted.len()).any(|window| window == wanted)
}
