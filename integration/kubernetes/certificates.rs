//! The webhook's certificate is renewed without a moment in which an API server does not trust it,
//! whoever makes it.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::controller::{Certificate, Controller, SYSTEM, claim, encrypted, start_process};
use crate::https::{self, Pair};
use crate::support::cluster::Cluster;
use crate::support::wait_until;

/// Three renewals, seen from an API server that always has claims to ask about and from clients that
/// trust what the configuration says and connect anew each time.
#[test]
fn claims_are_admitted_while_two_replicas_renew_their_certificate() {
    let controller = Controller::start_with(Cluster::shared(), 2, Certificate::Own("12s"), &[]);
    let namespace = controller.namespace("renewal");
    let mut seen = HashSet::new();
    let mut most_trusted = 0;
    while_claims_are_created(controller.cluster, &namespace, |claims| {
        let deadline = Instant::now() + RENEWALS_PATIENCE;
        while seen.len() < 4 || claims.load(Ordering::Relaxed) < 20 {
            let (shown, claims) = (seen.len(), claims.load(Ordering::Relaxed));
            assert!(Instant::now() < deadline, "{shown} certificates, {claims} claims:\n{}", controller.log());
            for replica in controller.replicas() {
                let bundle = trusted(&controller);
                most_trusted = most_trusted.max(authorities(&bundle));
                match https::certificate_trusted_by(replica.port, &bundle) {
                    Ok(certificate) => seen.insert(certificate),
                    Err(error) => panic!("a replica is not trusted: {error}\n{}", controller.log()),
                };
            }
        }
    });
    // What is no longer shown is no longer trusted: the one that is shown, and one before or after it.
    assert_eq!(most_trusted, 2);
}

/// The files change one after the other, so that for a moment they do not fit.
#[test]
fn claims_are_admitted_while_files_with_the_certificate_are_replaced() {
    let first = Pair::make(Duration::from_secs(3600));
    let mut trusted = vec![first.authority.clone()];
    let controller = Controller::start_with(Cluster::shared(), 1, first.into(), &[]);
    let namespace = controller.namespace("files");
    let port = controller.replicas()[0].port;
    while_claims_are_created(controller.cluster, &namespace, |_| {
        for _ in 0..2 {
            let next = Pair::make(Duration::from_secs(3600));
            trusted.push(next.authority.clone());
            set_trusted(&controller, trusted.concat().as_bytes());
            thread::sleep(Duration::from_millis(500));
            fs::write(controller.folder().join("tls.crt"), &next.certificate).expect("writing a certificate");
            thread::sleep(Duration::from_secs(3));
            assert!(https::certificate_trusted_by(port, next.authority.as_bytes()).is_err());
            fs::write(controller.folder().join("tls.key"), &next.key).expect("writing a key");
            wait_until("the new certificate", || {
                https::certificate_trusted_by(port, next.authority.as_bytes()).is_ok()
            });
        }
    });
    assert!(controller.log().contains("the private key is not the certificate's"), "{}", controller.log());
}

/// Both find no Secret and make one.
#[test]
fn two_replicas_that_start_at_once_show_the_same_certificate() {
    let controller = Controller::start_with(Cluster::shared(), 1, Certificate::Own("1h"), &[]);
    // One stands idle, and has given the configuration and the permissions; these two begin anew.
    let secret = format!("{SYSTEM}/{}-race", controller.configuration);
    let arguments = ["--tls-secret", &secret, "--service-name", "127.0.0.1", "--webhook-configuration"];
    let mut arguments: Vec<String> = arguments.map(str::to_owned).into();
    arguments.push(controller.configuration.clone());
    let folders: Vec<_> = (0..2).map(|_| TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder")).collect();
    let start = |folder: &Path| start_process(&controller.kubeconfig, &arguments, folder);
    let replicas: Vec<_> = thread::scope(|scope| {
        let starts: Vec<_> = folders.iter().map(|folder| scope.spawn(|| start(folder.path()))).collect();
        starts.into_iter().map(|start| start.join().expect("a process")).collect()
    });
    let secret = secret_of(&controller, "race");
    let authority = decoded(&secret, "ca.crt");
    let shown = replicas.iter().map(|replica| https::certificate_trusted_by(replica.port, &authority));
    let shown: HashSet<_> = shown.map(|certificate| certificate.expect("a trusted certificate")).collect();
    assert_eq!(shown.len(), 1);
}

/// What somebody deletes, damages or overwrites is mended, and claims are admitted again.
#[test]
fn a_certificate_that_is_lost_or_damaged_is_made_anew() {
    let controller = Controller::start_with(Cluster::shared(), 2, Certificate::Own("30s"), &[]);
    let namespace = controller.namespace("mended");
    let name = format!("{}-tls", controller.configuration);
    let damages: [&dyn Fn(); 4] = [
        &|| drop(controller.cluster.kubectl(&["-n", SYSTEM, "delete", "secret", &name])),
        &|| patch(&controller, &name, &json!({ "data": { "tls.crt": STANDARD.encode("nonsense") } })),
        &|| patch(&controller, &name, &json!({ "data": { "tls.key": STANDARD.encode(Pair::make(HOUR).key) } })),
        &|| set_trusted(&controller, Pair::make(HOUR).authority.as_bytes()),
    ];
    for (number, damage) in damages.iter().enumerate() {
        damage();
        wait_until("a mended certificate", || {
            let name = format!("claim-{number}-{}", unused());
            controller.try_claim(&namespace, &name, &encrypted(), Some("")).status.success()
                && controller
                    .replicas()
                    .iter()
                    .all(|replica| https::certificate_trusted_by(replica.port, &trusted(&controller)).is_ok())
        });
    }
    let log = controller.log();
    assert!(log.contains("was of no use and is replaced"), "{log}");
    assert!(!log.contains("PRIVATE") && !log.contains("forbid"), "{log}");
}

/// Creates claims one after another until `work`, which is told how many there are, is done. Each has to
/// succeed.
pub fn while_claims_are_created(cluster: &Cluster, namespace: &str, work: impl FnOnce(&AtomicUsize)) {
    let (done, claims) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let count = claims.load(Ordering::Relaxed);
                let manifest = claim(namespace, &format!("claim-{count}"), &encrypted(), Some(""));
                let output = cluster.try_with_manifest("create", &manifest.to_string());
                assert!(output.status.success(), "claim {count}: {}", String::from_utf8_lossy(&output.stderr));
                claims.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _finished = Finished(&done);
        work(&claims);
    });
}

/// Ends the creation of claims also when the work fails.
struct Finished<'a>(&'a AtomicBool);

impl Drop for Finished<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What the configuration tells API servers to trust, the same for all webhooks.
fn trusted(controller: &Controller<'_>) -> Vec<u8> {
    let path = "jsonpath={.webhooks[*].clientConfig.caBundle}";
    let arguments = ["get", "mutatingwebhookconfiguration", &controller.configuration, "-o", path];
    let bundles = controller.cluster.kubectl(&arguments);
    let bundles: HashSet<_> = bundles.split_whitespace().collect();
    assert_eq!(bundles.len(), 1, "{bundles:?}");
    STANDARD.decode(bundles.iter().next().expect("a bundle")).expect("base64")
}

fn set_trusted(controller: &Controller<'_>, bundle: &[u8]) {
    let bundle = STANDARD.encode(bundle);
    let patches = [0, 1].map(|webhook| {
        json!({ "op": "replace", "path": format!("/webhooks/{webhook}/clientConfig/caBundle"), "value": bundle })
    });
    let patches = json!(patches).to_string();
    let configuration = &controller.configuration;
    let arguments = ["patch", "mutatingwebhookconfiguration", configuration, "--type=json", "-p", &patches];
    controller.cluster.kubectl(&arguments);
}

fn authorities(bundle: &[u8]) -> usize {
    String::from_utf8_lossy(bundle).matches("BEGIN CERTIFICATE").count()
}

fn secret_of(controller: &Controller<'_>, suffix: &str) -> Value {
    let name = format!("{}-{suffix}", controller.configuration);
    let text = controller.cluster.kubectl(&["-n", SYSTEM, "get", "secret", &name, "-o", "json"]);
    serde_json::from_str(&text).expect("a Secret")
}

fn decoded(secret: &Value, field: &str) -> Vec<u8> {
    STANDARD.decode(secret["data"][field].as_str().expect("a field")).expect("base64")
}

fn patch(controller: &Controller<'_>, secret: &str, patch: &Value) {
    let arguments = ["-n", SYSTEM, "patch", "secret", secret, "--type=merge", "-p", &patch.to_string()];
    controller.cluster.kubectl(&arguments);
}

/// A number that no other claim of the test has.
fn unused() -> u32 {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

const HOUR: Duration = Duration::from_secs(3600);
const RENEWALS_PATIENCE: Duration = Duration::from_secs(150);
