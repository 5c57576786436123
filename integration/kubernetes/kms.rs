//! A key management service protects the keys at rest: what etcd holds can be opened only with its
//! help.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

use crate::support::cluster::Cluster;
use crate::support::cluster::kms::KmsPlugin;
use crate::support::volume::SEALBLK;

#[test]
fn what_etcd_holds_is_an_envelope_that_only_the_service_opens() {
    let folder = TempDir::new().expect("a folder for the plugin");
    let mut plugin = KmsPlugin::start();
    let cluster = cluster_with(&plugin, folder.path());
    let namespace = cluster.namespace("kms");
    let volume = Volume { folder: folder.path(), cluster: &cluster, namespace: &namespace };

    let sealed = plugin.encryptions();
    let secret = volume.make_key();
    assert!(plugin.encryptions() >= sealed + 2, "the plugin was not asked to seal two Secrets");
    let key = volume.clear_key(&secret);
    let etcd = everything_in(&cluster.etcd_folder());
    assert!(holds(&etcd, format!("/registry/secrets/{namespace}/{secret}").as_bytes()));
    assert!(holds(&etcd, format!("k8s:enc:kms:{}:test:", version()).as_bytes()));
    assert_not_in(&etcd, &key);
    let attached = volume.create(&secret, &[]);
    assert!(attached.status.success(), "{}", stderr(&attached));

    plugin.stop();
    let refused = volume.info(&secret);
    let reason = stderr(&refused);
    assert_eq!(refused.status.code(), Some(1), "{reason}");
    assert!(reason.contains(plugin.socket()), "no word of the plugin: {reason}");
    let manifest = volume.manifest();
    let refused = cluster.try_with_manifest("apply", &manifest);
    assert!(!refused.status.success(), "a Secret was made without the plugin");
    assert!(stderr(&refused).contains(plugin.socket()), "{}", stderr(&refused));

    plugin.resume();
    let attached = volume.info(&secret);
    assert!(attached.status.success(), "{}", stderr(&attached));
    cluster.apply(&manifest);
}

/// The search would find a key that is not protected.
#[test]
fn without_a_service_the_key_lies_in_etcd_as_it_is() {
    let folder = TempDir::new().expect("a folder");
    let cluster = Cluster::shared();
    let namespace = cluster.namespace("no-kms");
    let volume = Volume { folder: folder.path(), cluster, namespace: &namespace };
    let secret = volume.make_key();
    let key = volume.clear_key(&secret);
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

/// A volume whose key is in the cluster.
struct Volume<'a> {
    folder: &'a Path,
    cluster: &'a Cluster,
    namespace: &'a str,
}

impl Volume<'_> {
    /// A namespace key and a volume key, as manifests.
    fn manifest(&self) -> String {
        let generated = Command::new(SEALBLK).args(["key", "generate", "--namespace", self.namespace]).output();
        let generated = generated.expect("running sealblk key generate");
        assert!(generated.status.success(), "{}", stderr(&generated));
        String::from_utf8(generated.stdout).expect("a manifest")
    }

    /// Puts a namespace key and a volume key into the cluster, and returns the latter's name.
    fn make_key(&self) -> String {
        let printed = self.cluster.apply(&self.manifest());
        let names = printed.lines().filter_map(|line| line.strip_prefix("secret/")?.split(' ').next());
        let mut names = names.filter(|name| name.starts_with("storageos-volume-key-"));
        names.next().expect("a volume key's Secret").to_owned()
    }

    fn clear_key(&self, secret: &str) -> Vec<u8> {
        let arguments = ["-n", self.namespace, "get", "secret", secret, "-o", "jsonpath={.data.key}"];
        STANDARD.decode(self.cluster.kubectl(&arguments)).expect("base64")
    }

    fn create(&self, secret: &str, further: &[&str]) -> Output {
        self.run(&["volume", "create", "--size", "1M"], secret, further)
    }

    /// Opens the volume with its key and reads all of it.
    fn info(&self, secret: &str) -> Output {
        self.run(&["volume", "export", "--key-timeout", "5s"], secret, &["/dev/null"])
    }

    fn run(&self, command: &[&str], secret: &str, further: &[&str]) -> Output {
        Command::new(SEALBLK)
            .args(command)
            .arg("--kubeconfig")
            .arg(self.cluster.admin_kubeconfig())
            .arg("--key")
            .arg(format!("kubernetes:{}/{secret}", self.namespace))
            .arg(self.folder.join("volume"))
            .args(further)
            .output()
            .expect("running sealblk")
    }
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

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
