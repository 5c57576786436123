//! A namespace's key is replaced while volumes are attached with it; and every volume key can be
//! checked.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::proxy::{Gate, Proxy};
use crate::support::PATIENCE;
use crate::support::cluster::Cluster;
use crate::support::volume::SEALBLK;
use crate::tenant::{NAMESPACE_KEY, altered, assert_success, bytes, stderr};

#[test]
fn stopped_after_any_request_it_leaves_every_volume_attachable_and_goes_on() {
    let cluster = Cluster::shared();
    let tenant = Volumes::new(cluster, "rotation");
    let mut stops = 0;
    for allowed in 1.. {
        assert!(allowed < 100, "the rotation does not come to an end");
        let before = tenant.secrets();
        let gate = Arc::new(Gate::default());
        let seen = Arc::new(AtomicUsize::new(0));
        let (held, counter) = (gate.clone(), seen.clone());
        // A request is at least one piece, so that one of the stops is after every request.
        let proxy = Proxy::start(cluster.port(), move || {
            if counter.fetch_add(1, Ordering::SeqCst) >= allowed {
                held.pass();
            }
        });
        let admin = cluster.admin_kubeconfig();
        let kubeconfig = altered(&admin, &format!("through-{allowed}"), &cluster.url(), &proxy.url());
        let mut rotation = spawn(&["key", "rotate-namespace", &tenant.namespace], kubeconfig);
        let finished = ends_before(&mut rotation, || seen.load(Ordering::SeqCst) > allowed);
        rotation.kill().expect("killing the rotation");
        let output = rotation.wait_with_output().expect("the rotation's end");
        gate.open();
        tenant.assert_attachable();
        if finished {
            assert_success(&output);
            assert_replaced(&before, &tenant.secrets());
            break;
        }
        stops += 1;
        assert_success(&sealblk(cluster, &["key", "rotate-namespace", &tenant.namespace]));
        assert_replaced(&before, &tenant.secrets());
        tenant.assert_attachable();
    }
    // The namespace's key and the volume keys are read and written, and looked at once more.
    assert!(stops >= 4 + tenant.volumes.len(), "only {stops} stops");
}

#[test]
fn two_at_once_come_to_one_end_while_volumes_are_attached() {
    let cluster = Cluster::shared();
    let tenant = Volumes::new(cluster, "rotations");
    for _ in 0..5 {
        let before = tenant.secrets();
        let start = Barrier::new(3);
        thread::scope(|scope| {
            let rotate = || {
                start.wait();
                assert_success(&sealblk(cluster, &["key", "rotate-namespace", &tenant.namespace]));
            };
            let runs = [scope.spawn(rotate), scope.spawn(rotate)];
            start.wait();
            while !runs.iter().all(|run| run.is_finished()) {
                tenant.assert_attachable();
            }
        });
        assert_replaced(&before, &tenant.secrets());
        assert_success(&sealblk(cluster, &["key", "verify", &tenant.namespace]));
    }
}

#[test]
fn a_damaged_key_is_named_and_holds_back_no_other() {
    let cluster = Cluster::shared();
    let tenant = Volumes::new(cluster, "damaged");
    let (damaged, directory) = tenant.volumes[1].clone();
    let secret = get(cluster, &tenant.namespace, &damaged);
    let mut vuk = bytes(&secret, "vuk");
    vuk[40] ^= 1;
    let whole = secret["data"]["vuk"].clone();
    let patch = |vuk: Value| {
        let patch = json!({"data": {"vuk": vuk}}).to_string();
        cluster.kubectl(&["-n", &tenant.namespace, "patch", "secret", &damaged, "--type=merge", "-p", &patch]);
    };
    patch(encoded(&vuk));

    let report = sealblk(cluster, &["key", "verify", &tenant.namespace]);
    assert_eq!(report.status.code(), Some(1));
    let text = String::from_utf8_lossy(&report.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with(&damaged)).expect("a line for each Secret");
    assert!(line.contains("`vuk`") && line.contains("wrapped"), "{text}");
    assert_eq!(text.lines().filter(|line| line.ends_with("opens")).count(), tenant.volumes.len() - 1, "{text}");
    let report = sealblk(cluster, &["key", "verify", &tenant.namespace, "--json"]);
    let report: Value = serde_json::from_slice(&report.stdout).expect("JSON");
    assert_eq!(report["volume_keys"].as_array().map(Vec::len), Some(tenant.volumes.len()));

    let stuck = sealblk(cluster, &["key", "rotate-namespace", &tenant.namespace]);
    assert_eq!(stuck.status.code(), Some(1));
    assert!(stderr(&stuck).contains(&damaged), "{}", stderr(&stuck));
    for (secret, directory) in tenant.volumes.iter().filter(|(secret, _)| *secret != damaged) {
        assert_success(&tenant.attach(secret, directory));
    }
    assert!(!tenant.attach(&damaged, &directory).status.success());

    // From its copy it opens under the old key, which has stayed; then the rotation ends.
    patch(whole);
    tenant.assert_attachable();
    let ended = sealblk(cluster, &["key", "rotate-namespace", &tenant.namespace]);
    assert_success(&ended);
    assert!(String::from_utf8_lossy(&ended.stdout).contains("under way"), "{ended:?}");
    tenant.assert_attachable();
    assert_success(&sealblk(cluster, &["key", "verify", &tenant.namespace]));
}

/// More volume keys than the API server is asked for at once, among Secrets of other programs: some so large that an
/// answer cannot hold as many, and one with a field that a volume key has, too.
#[test]
fn a_namespace_of_many_volumes_is_verified_and_rotated_whole() {
    const COUNT: usize = 520;
    let cluster = Cluster::shared();
    let tenant = Volumes::new(cluster, "many");
    let data = get(cluster, &tenant.namespace, &tenant.volumes[1].0)["data"].clone();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let number @ 0..COUNT = next.fetch_add(1, Ordering::Relaxed) {
                    let metadata = json!({"name": format!("copy-{number}"), "namespace": tenant.namespace});
                    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data});
                    let path = format!("/api/v1/namespaces/{}/secrets", tenant.namespace);
                    assert_success(&cluster.feed(&["create", "--raw", &path, "-f", "-"], &secret.to_string()));
                }
            });
        }
    });
    let large = json!({"release": STANDARD.encode(vec![b'x'; 900 << 10])});
    let others = (0..5).map(|number| (format!("copy-99-{number}"), large.clone()));
    for (name, data) in others.chain([("copy-hmac-token".to_owned(), json!({"hmac": STANDARD.encode("a token")}))]) {
        let metadata = json!({"name": name, "namespace": tenant.namespace});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data});
        let path = format!("/api/v1/namespaces/{}/secrets", tenant.namespace);
        assert_success(&cluster.feed(&["create", "--raw", &path, "-f", "-"], &secret.to_string()));
    }
    let all = COUNT + tenant.volumes.len();
    let output = sealblk(cluster, &["key", "rotate-namespace", &tenant.namespace]);
    assert_success(&output);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(&format!("wrapped anew: {all}\n")), "{text}");
    let output = sealblk(cluster, &["key", "verify", &tenant.namespace]);
    assert_success(&output);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(&format!("{all} volume keys, of which 0 ")), "{text}");
    tenant.assert_attachable();
}

/// Volumes whose keys are in one namespace: of the first in the clear as well, of the others only
/// wrapped.
struct Volumes<'a> {
    cluster: &'a Cluster,
    namespace: String,
    /// Secret and folder of each.
    volumes: Vec<(String, PathBuf)>,
    _folder: TempDir,
}

impl<'a> Volumes<'a> {
    fn new(cluster: &'a Cluster, prefix: &str) -> Volumes<'a> {
        let namespace = cluster.namespace(prefix);
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for volumes");
        let in_cluster = format!("kubernetes:{namespace}/{NAMESPACE_KEY}");
        let wrapped = ["--wrapped-only", "--namespace-key", &in_cluster];
        let mut tenant = Volumes { cluster, namespace, volumes: Vec::new(), _folder: folder };
        for (index, further) in [&[][..], &wrapped, &wrapped].into_iter().enumerate() {
            let arguments = [&["key", "generate", "--namespace", &tenant.namespace][..], further].concat();
            let manifest = sealblk(cluster, &arguments);
            assert_success(&manifest);
            let printed = cluster.apply(&String::from_utf8(manifest.stdout).expect("a manifest"));
            let mut names = printed.lines().filter_map(|line| line.strip_prefix("secret/")?.split(' ').next());
            let secret = names.find(|name| *name != NAMESPACE_KEY).expect("a volume key").to_owned();
            let directory = tenant._folder.path().join(index.to_string());
            let path = directory.to_str().expect("a path in UTF-8");
            let key = format!("kubernetes:{}/{secret}", tenant.namespace);
            assert_success(&sealblk(cluster, &["volume", "create", path, "--size", "1M", "--key", &key]));
            tenant.volumes.push((secret, directory));
        }
        tenant
    }

    /// Opens each volume with its key.
    fn assert_attachable(&self) {
        for (secret, directory) in &self.volumes {
            assert_success(&self.attach(secret, directory));
        }
    }

    fn attach(&self, secret: &str, directory: &std::path::Path) -> Output {
        let path = directory.to_str().expect("a path in UTF-8");
        let key = format!("kubernetes:{}/{secret}", self.namespace);
        sealblk(self.cluster, &["volume", "export", path, "/dev/null", "--key", &key])
    }

    /// The namespace's Secret and those of the volumes.
    fn secrets(&self) -> Vec<Value> {
        let names = std::iter::once(NAMESPACE_KEY).chain(self.volumes.iter().map(|(secret, _)| secret.as_str()));
        names.map(|name| get(self.cluster, &self.namespace, name)).collect()
    }
}

/// The namespace has another key, only that one, and every volume key is wrapped anew but the same.
fn assert_replaced(before: &[Value], after: &[Value]) {
    assert_ne!(bytes(&before[0], "key"), bytes(&after[0], "key"), "the namespace has its old key");
    assert!(after[0]["data"]["next"].is_null(), "the rotation is not finished");
    for (before, after) in before.iter().zip(after).skip(1) {
        for field in ["iv", "vuk", "hmac"] {
            assert_ne!(before["data"][field], after["data"][field], "{field} is the old one");
        }
        assert_eq!(before["data"]["key"], after["data"]["key"]);
    }
}

/// Whether a process ends before something happens.
fn ends_before(process: &mut Child, happened: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if process.try_wait().expect("the process's state").is_some() {
            return true;
        }
        if happened() {
            return false;
        }
        assert!(Instant::now() < deadline, "neither came");
        thread::sleep(std::time::Duration::from_millis(1));
    }
}

fn sealblk(cluster: &Cluster, arguments: &[&str]) -> Output {
    let child = spawn(arguments, cluster.admin_kubeconfig());
    child.wait_with_output().expect("running sealblk")
}

fn spawn(arguments: &[&str], kubeconfig: PathBuf) -> Child {
    let mut command = Command::new(SEALBLK);
    command.args(arguments).arg("--kubeconfig").arg(kubeconfig);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("running sealblk")
}

fn get(cluster: &Cluster, namespace: &str, secret: &str) -> Value {
    let json = cluster.kubectl(&["-n", namespace, "get", "secret", secret, "-o", "json"]);
    serde_json::from_str(&json).expect("a Secret")
}

fn encoded(bytes: &[u8]) -> Value {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes).into()
}
