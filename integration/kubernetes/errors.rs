//! What stands in the way of a key is said in one plain sentence of its own, and what does not pass by
//! waiting is asked for exactly once.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::proxy::Proxy;
use super::tenant::{Form, NAMESPACE_KEY, Tenant, altered, assert_success, bytes, stderr};
use crate::support::PATIENCE;
use crate::support::cluster::Cluster;
use crate::support::pattern::pattern;
use crate::support::volume::SEALBLK;

/// One refusal: what it must say, and what the API server must have been asked for it.
fn assert_refused(tenant: &Tenant<'_>, mut command: Command, says: &[&str], asked: &[&str]) -> String {
    let before = tenant.asked().len();
    let begin = Instant::now();
    let output = command.output().expect("running sealblk");
    let reason = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{reason}");
    assert!(begin.elapsed() < Duration::from_secs(8), "it took {:?} to say: {reason}", begin.elapsed());
    assert_eq!(reason.lines().count(), 1, "more than one line: {reason}");
    for word in says {
        assert!(reason.contains(word), "no word of {word}: {reason}");
    }
    assert_eq!(tenant.asked()[before..], *asked, "{reason}");
    reason.replace(&tenant.secret, "SECRET").replace(&tenant.namespace, "NAMESPACE")
}

#[test]
fn every_obstacle_has_a_sentence_of_its_own_and_is_met_once() {
    let cluster = Cluster::shared();
    let tenant = Tenant::new(cluster, "obstacles", Form::Clear);
    let (namespace, secret) = (tenant.namespace.as_str(), tenant.secret.as_str());
    let source = tenant.source();
    let named = format!("Secret {namespace}/{secret}");
    let whole = tenant.get();
    let create = || tenant.create("d", &source, &[]);
    let got = ["get secrets 200"];
    let mut sentences = BTreeSet::new();
    let mut met = |reason: String| assert!(sentences.insert(reason.clone()), "said before: {reason}");

    for field in ["iv", "vuk", "hmac"] {
        tenant.patch(&json!({ field: null }));
        met(assert_refused(&tenant, create(), &[&named, field, "no field"], &got));
        tenant.patch(&json!({ field: STANDARD.encode([7; 31]) }));
        met(assert_refused(&tenant, create(), &[&named, field, "31 bytes"], &got));
        tenant.patch(&whole["data"]);
    }
    tenant.patch(&json!({ "key": null, "vuk": null }));
    met(assert_refused(&tenant, create(), &[&named, "`key`", "no field"], &got));
    tenant.patch(&whole["data"]);

    let mut changed = tenant.key.clone();
    changed[63] ^= 1;
    tenant.patch(&json!({ "key": STANDARD.encode(&changed) }));
    met(assert_refused(&tenant, create(), &[&named, "does not match its `hmac`"], &got));

    let equal = [5; 64];
    tenant
        .patch(&json!({ "key": STANDARD.encode(equal), "hmac": STANDARD.encode(hmac(&bytes(&whole, "iv"), &equal)) }));
    met(assert_refused(&tenant, create(), &[&named, "halves are equal"], &got));
    tenant.patch(&whole["data"]);

    tenant.grant("secrets", "missing");
    let missing = tenant.create("d", &format!("kubernetes:{namespace}/missing"), &[]);
    met(assert_refused(&tenant, missing, &["there is no Secret", "missing", "copy"], &["get secrets 404"]));

    let forbidden = tenant.create("d", &format!("kubernetes:{namespace}/other"), &[]);
    let says = ["forbids", "other", "Role", "`get`", "`secrets`", "system:serviceaccount"];
    met(assert_refused(&tenant, forbidden, &says, &["get secrets 403"]));

    // Nothing was made by any of these, and with the whole Secret it works.
    assert!(!tenant.directory("d").exists());
    assert_success(&create().output().expect("running sealblk"));
    assert_eq!(tenant.asked().last().map(String::as_str), Some("get secrets 200"));
}

#[test]
fn wrapped_keys_have_obstacles_of_their_own() {
    let tenant = Tenant::new(Cluster::shared(), "wrapped-obstacles", Form::Wrapped);
    let source = tenant.source();
    let create = || tenant.create("d", &source, &[]);
    tenant.patch_secret(NAMESPACE_KEY, &json!({ "key": STANDARD.encode([7; 31]) }));
    let both = ["get secrets 200", "get secrets 200"];
    assert_refused(&tenant, create(), &[NAMESPACE_KEY, "`key`", "31 bytes"], &both);

    // Another namespace's: read again in case a rotation has come between, and no more often.
    tenant.patch_secret(NAMESPACE_KEY, &json!({ "key": STANDARD.encode([7; 32]) }));
    assert_refused(&tenant, create(), &[&tenant.secret, "`vuk`"], &["get secrets 200"; 4]);

    tenant.cluster.kubectl(&["-n", &tenant.namespace, "delete", "secret", NAMESPACE_KEY]);
    let says = [&tenant.secret, "only wrapped", NAMESPACE_KEY];
    assert_refused(&tenant, create(), &says, &["get secrets 200", "get secrets 404"]);
}

#[test]
fn a_claim_must_name_a_secret_of_its_own_namespace() {
    let tenant = Tenant::new(Cluster::shared(), "claim-obstacles", Form::Clear);
    let namespace = tenant.namespace.clone();
    let create = |claim: &str| tenant.create("d", &format!("pvc:{namespace}/{claim}"), &[]);
    let claim = ["get persistentvolumeclaims 200"];
    let name = "storageos.com/encryption-secret-name";

    tenant.claim("plain", &json!({}));
    assert_refused(&tenant, create("plain"), &["claim", "plain", name], &claim);
    let elsewhere = json!({ name: tenant.secret, "storageos.com/encryption-secret-namespace": "kube-system" });
    tenant.claim("foreign", &elsewhere);
    assert_refused(&tenant, create("foreign"), &["foreign", "outside of its namespace"], &claim);
    tenant.claim("odd", &json!({ name: "../secrets/x" }));
    assert_refused(&tenant, create("odd"), &["odd", "do not hold the name"], &claim);
    tenant.grant("persistentvolumeclaims", "missing");
    assert_refused(&tenant, create("missing"), &["no claim"], &["get persistentvolumeclaims 404"]);
    let says = ["forbids", "Role", "`persistentvolumeclaims`"];
    assert_refused(&tenant, create("other"), &says, &["get persistentvolumeclaims 403"]);
}

#[test]
fn credentials_and_certificates_that_are_not_good_are_told_apart() {
    let cluster = Cluster::shared();
    let mut tenant = Tenant::new(cluster, "credentials", Form::Clear);
    let (namespace, source) = (tenant.namespace.clone(), tenant.source());
    let good = tenant.kubeconfig.clone();
    let proxy = Proxy::start(cluster.port(), || {});
    let mut refused = |kubeconfig: std::path::PathBuf, more: &[&str], says: &[&str], connections: usize| {
        tenant.kubeconfig = altered(&kubeconfig, "proxied", &cluster.url(), &proxy.url());
        let before = proxy.connections();
        let reason = assert_refused(&tenant, tenant.create("d", &source, more), says, &[]);
        assert_eq!(proxy.connections() - before, connections, "{reason}");
    };

    let expired = cluster.kubeconfig_with_token(&cluster.expired_token(&namespace, "node"));
    refused(expired, &[], &["401", "token"], 1);
    refused(cluster.kubeconfig_with_token("nonsense"), &[], &["401", "token"], 1);

    let other = Cluster::start(&[]);
    let ca = altered(&good, "other-ca", &cluster.ca().display().to_string(), &other.ca().display().to_string());
    refused(ca, &[], &["certificate", "authority"], 1);
    let name = altered(&good, "other-name", "server:", "tls-server-name: example.org, server:");
    refused(name, &[], &["certificate", "example.org"], 1);

    refused(good.clone(), &["--context", "nowhere"], &["no context `nowhere`", "--context"], 0);
    let cut = altered(&good, "no-current", "current-context: test", "current-context: gone");
    refused(cut, &[], &["no context `gone`"], 0);
    let broken = altered(&good, "broken", "contexts: [", "contexts: [[");
    refused(broken, &[], &["not valid", "line"], 0);
    let missing = altered(&good, "no-ca", &cluster.ca().display().to_string(), "/nonexistent/ca.crt");
    refused(missing, &[], &["certificate-authority", "/nonexistent/ca.crt"], 0);

    let mut named = tenant.create_without_access("d", &source, &[]);
    named.env("KUBECONFIG", "/nonexistent/kubeconfig");
    assert_refused(&tenant, named, &["/nonexistent/kubeconfig", "cannot be read"], &[]);
    let mut nothing = tenant.create_without_access("d", &source, &[]);
    nothing.env("HOME", "/nonexistent");
    assert_refused(&tenant, nothing, &["no kubeconfig", "--kubeconfig"], &[]);
}

#[test]
fn an_api_server_that_is_down_is_waited_for_as_long_as_was_said() {
    let cluster = Cluster::shared();
    let mut tenant = Tenant::new(cluster, "down", Form::Clear);
    let closed = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("its address");
    tenant.kubeconfig = altered(&tenant.kubeconfig, "closed", &cluster.url(), &format!("https://{closed}"));
    let begin = Instant::now();
    let output = tenant.create("d", &tenant.source(), &["--key-timeout", "3s"]).output().expect("running sealblk");
    let (reason, took) = (stderr(&output), begin.elapsed());
    assert_eq!(output.status.code(), Some(1), "{reason}");
    assert!(took > Duration::from_millis(2500) && took < Duration::from_secs(6), "{took:?}: {reason}");
    // One line when waiting begins, and the reason in the end.
    assert_eq!(reason.lines().count(), 2, "{reason}");
    assert!(reason.lines().all(|line| line.contains("cannot be reached")), "{reason}");
    assert!(reason.contains("trying again for up to"), "{reason}");

    // A server that takes the connection and says nothing is no better.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("https://{}", silent.local_addr().expect("its address"));
    tenant.kubeconfig = altered(&tenant.kubeconfig, "silent", &format!("https://{closed}"), &url);
    let begin = Instant::now();
    let output = tenant.create("d", &tenant.source(), &["--key-timeout", "1500ms"]).output().expect("running sealblk");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert!(stderr(&output).contains("no answer within"), "{}", stderr(&output));
}

#[test]
fn an_attach_that_waits_goes_on_when_the_api_server_is_back() {
    let cluster = Cluster::start(&[]);
    let tenant = Tenant::new(&cluster, "back", Form::Clear);
    cluster.stop_api_server();
    let mut waiting = tenant.create("d", &tenant.source(), &["--key-timeout", "2m"]);
    let child = waiting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("running sealblk");
    thread::sleep(Duration::from_secs(2));
    cluster.start_api_server();
    let output = child.wait_with_output().expect("the end of sealblk");
    let said = stderr(&output);
    assert_success(&output);
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(said.contains("trying again") && said.contains("got Secret"), "{said}");
}

#[test]
fn serve_stops_waiting_when_it_is_told_to_end() {
    let cluster = Cluster::shared();
    let tenant = Tenant::new(cluster, "stop", Form::Clear);
    assert_success(&tenant.create("d", &tenant.source(), &[]).output().expect("running sealblk"));
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("https://{}", silent.local_addr().expect("its address"));
    let kubeconfig = altered(&tenant.kubeconfig, "silent", &cluster.url(), &url);
    let mut child = Command::new(SEALBLK)
        .arg("serve")
        .arg(tenant.directory("d"))
        .arg("--socket")
        .arg(tenant.directory("blk.sock"))
        .args(["--key", &tenant.source(), "--kubeconfig"])
        .arg(kubeconfig)
        .stderr(Stdio::piped())
        .spawn()
        .expect("running sealblk");
    let (_connection, _) = silent.accept().expect("a connection");
    let pid = i32::try_from(child.id()).expect("a process id");
    let begin = Instant::now();
    // SAFETY: no memory is involved; the child has not been waited for, so the id is its own.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    while child.try_wait().expect("the state of sealblk").is_none() {
        assert!(begin.elapsed() < PATIENCE, "it did not end");
        thread::sleep(Duration::from_millis(5));
    }
    assert!(begin.elapsed() < Duration::from_secs(1), "it took {:?}", begin.elapsed());
    let output = child.wait_with_output().expect("the end of sealblk");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("stopped before the key was read"), "{}", stderr(&output));
}

/// No byte of a key in what is said, even when everything is.
#[test]
fn nothing_that_is_said_at_any_level_holds_a_key_or_the_token() {
    let tenant = Tenant::new(Cluster::shared(), "silence", Form::Clear);
    let other = STANDARD.encode(pattern(3, 64));
    let token = std::fs::read_to_string(&tenant.kubeconfig).expect("a kubeconfig");
    let token = token.rsplit("token: ").next().expect("a token")[..40].to_owned();
    let key = STANDARD.encode(&tenant.key);
    for wrong in [false, true] {
        if wrong {
            tenant.patch(&json!({ "key": other }));
        }
        let mut command = tenant.create("d", &tenant.source(), &[]);
        let output = command.env("RUST_LOG", "trace,kube_client=trace").output().expect("running sealblk");
        assert_eq!(output.status.success(), !wrong);
        let said = stderr(&output);
        assert!(said.lines().count() > 10, "a client that says nothing proves nothing: {said}");
        for secret in [&key, &other, &token] {
            let pieces = (0..secret.len() - 12).map(|at| &secret[at..at + 12]);
            pieces.for_each(|piece| assert!(!said.contains(piece), "{piece} is in: {said}"));
        }
    }
}

fn hmac(iv: &[u8], key: &[u8]) -> Vec<u8> {
    let iv = openssl::pkey::PKey::hmac(iv).expect("a key");
    let mut signer = openssl::sign::Signer::new(openssl::hash::MessageDigest::sha256(), &iv).expect("HMAC");
    signer.sign_oneshot_to_vec(key).expect("a digest")
}
