//! A volume whose key is in the cluster is attached with it, by as few requests as that takes, in each
//! form of Secret and by each way of finding the API server.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::proxy::Proxy;
use super::tenant::{Form, NAMESPACE_KEY, Tenant, altered, assert_success, bytes, run};
use crate::support::ciphertext::seal;
use crate::support::cluster::Cluster;
use crate::support::guest::Guest;
use crate::support::pattern::pattern;
use crate::support::serving::Serving;
use crate::support::volume::SEALBLK;

const SECRET: &str = "get secrets 200";
const CLAIM: &str = "get persistentvolumeclaims 200";

/// Makes a volume and serves it, and checks that what a guest writes is sealed with the tenant's key.
/// Returns what one attach asked the API server.
fn attach(tenant: &Tenant<'_>, source: &str, more: &[&str]) -> Vec<String> {
    assert_success(&tenant.create("d", source, more).output().expect("running sealblk"));
    let before = tenant.asked().len();
    let kubeconfig = tenant.kubeconfig.display().to_string();
    let arguments = [&["--key", source, "--kubeconfig", &kubeconfig], more].concat();
    let serving = Serving::start(&tenant.directory("d"), &arguments);
    let mut guest = Guest::connect(serving.socket());
    let data = pattern(7, 65536);
    guest.write(4096, &data);
    guest.flush();
    drop(guest);
    // A second front end: the key is not read again for it.
    let mut guest = Guest::connect(serving.socket());
    assert!(guest.read(4096, data.len()) == data);
    drop(guest);
    serving.terminate();
    let stored = fs::read(tenant.directory("d").join("data")).expect("the data file");
    assert!(stored[4096..][..data.len()] == seal(&tenant.key, 512, 8, &data), "it is sealed with another key");
    tenant.asked().split_off(before)
}

#[test]
fn a_clear_key_is_read_in_one_request_for_all_front_ends() {
    let tenant = Tenant::new(Cluster::shared(), "clear", Form::Clear);
    assert_eq!(attach(&tenant, &tenant.source(), &[]), [SECRET]);
}

#[test]
fn a_wrapped_key_takes_the_key_of_its_namespace() {
    let tenant = Tenant::new(Cluster::shared(), "wrapped", Form::Wrapped);
    assert_eq!(attach(&tenant, &tenant.source(), &[]), [SECRET, SECRET]);
}

#[test]
fn a_claim_leads_to_its_secret() {
    for (form, asked) in [(Form::Clear, &[CLAIM, SECRET][..]), (Form::Wrapped, &[CLAIM, SECRET, SECRET])] {
        let tenant = Tenant::new(Cluster::shared(), "claim", form);
        let annotations = json!({
            "storageos.com/encryption-secret-name": tenant.secret,
            "storageos.com/encryption-secret-namespace": tenant.namespace,
        });
        tenant.claim("disk", &annotations);
        assert_eq!(attach(&tenant, &format!("pvc:{}/disk", tenant.namespace), &[]), asked, "{form:?}");
    }
}

#[test]
fn a_namespace_key_may_be_named_and_then_checks_a_clear_key_too() {
    let tenant = Tenant::new(Cluster::shared(), "named", Form::Clear);
    tenant.grant("secrets", NAMESPACE_KEY);
    let named = format!("kubernetes:{}/{NAMESPACE_KEY}", tenant.namespace);
    assert_eq!(attach(&tenant, &tenant.source(), &["--namespace-key", &named]), [SECRET, SECRET]);

    // A file works as well, for either of the two.
    let file = tenant.directory("namespace-key");
    fs::write(&file, &tenant.namespace_key).expect("a key file");
    let source = tenant.source();
    let mut command = tenant.create("e", &source, &["--namespace-key", &format!("file:{}", file.display())]);
    assert_success(&command.output().expect("running sealblk"));
    let wrapped = tenant.directory("wrapped.json");
    let mut secret = tenant.get();
    secret["data"].as_object_mut().expect("data").remove("key");
    fs::write(&wrapped, secret.to_string()).expect("a Secret");
    let source = format!("file:{}", wrapped.display());
    let mut command = tenant.create("f", &source, &["--namespace-key", &named]);
    assert_success(&command.output().expect("running sealblk"));
}

/// Prevents an attach from failing, or from taking a wrong key, because it fell into a rotation.
#[test]
fn a_key_opens_at_every_moment_of_a_rotation() {
    let tenant = Tenant::new(Cluster::shared(), "rotation", Form::Wrapped);
    assert_success(&tenant.create("d", &tenant.source(), &[]).output().expect("running sealblk"));
    let next = pattern(11, 32);
    let before = tenant.get()["data"].clone();
    let after = rewrapped(&tenant, &next);
    let open = || {
        let mut command = Command::new(SEALBLK);
        command.args(["volume", "export"]).arg(tenant.directory("d")).args(["/dev/null", "--key", &tenant.source()]);
        assert_success(&command.arg("--kubeconfig").arg(&tenant.kubeconfig).output().expect("running sealblk"));
    };
    tenant.patch_secret(NAMESPACE_KEY, &json!({ "next": STANDARD.encode(&next) }));
    open();
    tenant.patch(&after);
    open();
    tenant.patch_secret(NAMESPACE_KEY, &json!({ "key": STANDARD.encode(&next), "next": null }));
    open();
    tenant.patch(&before);
    tenant.patch_secret(NAMESPACE_KEY, &json!({ "key": STANDARD.encode(&tenant.namespace_key) }));
    open();
}

/// The volume's Secret is read before a rotation and the namespace's after it.
#[test]
fn a_rotation_between_two_requests_is_noticed() {
    let tenant = Tenant::new(Cluster::shared(), "between", Form::Wrapped);
    let next = pattern(12, 32);
    let after = rewrapped(&tenant, &next);
    let rotation = Mutex::new(Some((tenant.namespace.clone(), tenant.secret.clone(), after, next)));
    let proxy = Proxy::start(tenant.cluster.port(), move || {
        let mut rotation = rotation.lock().expect("the rotation");
        let tenant = Cluster::shared();
        let Some((namespace, secret, ..)) = &*rotation else { return };
        let path = format!("/api/v1/namespaces/{namespace}/secrets/{secret}");
        let user = format!("system:serviceaccount:{namespace}:node");
        if !tenant.requests().iter().any(|request| request.uri == path && request.user == user) {
            return;
        }
        let (namespace, secret, volume, key) = rotation.take().expect("not taken yet");
        let patch = |secret: &str, data: &Value| {
            let patch = json!({ "data": data }).to_string();
            tenant.kubectl(&["-n", &namespace, "patch", "secret", secret, "--type=merge", "-p", &patch]);
        };
        patch(&secret, &volume);
        patch(NAMESPACE_KEY, &json!({ "key": STANDARD.encode(key) }));
    });
    let kubeconfig = altered(&tenant.kubeconfig, "proxied", &tenant.cluster.url(), &proxy.url());
    let mut command = tenant.create_without_access("d", &tenant.source(), &[]);
    let output = command.arg("--kubeconfig").arg(kubeconfig).output().expect("running sealblk");
    assert_success(&output);
    assert_eq!(tenant.asked(), [SECRET; 4]);
}

#[test]
fn the_api_server_is_found_as_kubectl_finds_it() {
    let tenant = Tenant::new(Cluster::shared(), "access", Form::Clear);
    let source = tenant.source();
    let two = altered(&tenant.kubeconfig, "two", "contexts: [", "contexts: [{name: bad, context: {cluster: none}}, ");
    let current = altered(&two, "current", "current-context: test", "current-context: bad");
    let mut command = tenant.create_without_access("a", &source, &["--context", "test", "--kubeconfig"]);
    assert_success(&command.arg(&current).output().expect("running sealblk"));

    let mut command = tenant.create_without_access("b", &source, &[]);
    assert_success(&command.env("KUBECONFIG", &tenant.kubeconfig).output().expect("running sealblk"));

    let home = tenant.directory("home");
    fs::create_dir_all(home.join(".kube")).expect("a folder");
    fs::copy(&tenant.kubeconfig, home.join(".kube/config")).expect("a kubeconfig");
    let mut command = tenant.create_without_access("c", &source, &[]);
    command.env("HOME", &home).env("HTTPS_PROXY", "http://127.0.0.1:1");
    assert_success(&command.output().expect("running sealblk"));
}

/// In a mount namespace of its own, with the files that a kubelet mounts into a pod.
#[test]
fn in_a_pod_its_service_account_is_used() {
    let tenant = Tenant::new(Cluster::shared(), "pod", Form::Clear);
    let account = tenant.directory("account");
    fs::create_dir(&account).expect("a folder");
    fs::write(account.join("token"), tenant.cluster.token(&tenant.namespace, "node")).expect("a token");
    fs::write(account.join("namespace"), &tenant.namespace).expect("a namespace");
    fs::copy(tenant.cluster.ca(), account.join("ca.crt")).expect("a certificate");
    let create = tenant.create_without_access("d", &tenant.source(), &[]);
    let script = "mount -t tmpfs none /var/run && mkdir -p /var/run/secrets/kubernetes.io/serviceaccount \
                  && cp \"$0\"/* /var/run/secrets/kubernetes.io/serviceaccount/ && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(&account).arg(create.get_program()).args(create.get_args());
    command.env_remove("KUBECONFIG").env("HOME", "/nonexistent");
    command.env("KUBERNETES_SERVICE_HOST", "127.0.0.1");
    command.env("KUBERNETES_SERVICE_PORT", tenant.cluster.port().to_string());
    assert_success(&command.output().expect("running unshare"));
    assert_eq!(tenant.asked(), [SECRET]);
}

/// The data of the volume's Secret under another namespace key.
fn rewrapped(tenant: &Tenant<'_>, namespace_key: &[u8]) -> Value {
    // With OpenSSL, from the description of the format.
    let secret = tenant.get();
    let iv = bytes(&secret, "iv");
    let mut wrapping_key = [0; 32];
    let mut hkdf = openssl::pkey_ctx::PkeyCtx::new_id(openssl::pkey::Id::HKDF).expect("HKDF");
    hkdf.derive_init().expect("HKDF");
    hkdf.set_hkdf_md(openssl::md::Md::sha256()).expect("SHA-256");
    hkdf.set_hkdf_key(namespace_key).expect("a key");
    hkdf.set_hkdf_salt(&iv).expect("a salt");
    hkdf.derive(Some(&mut wrapping_key)).expect("32 bytes");
    let cipher = openssl::symm::Cipher::aes_256_cbc();
    let cbc_iv = pattern(13, 16);
    let mode = openssl::symm::Mode::Encrypt;
    let mut crypter = openssl::symm::Crypter::new(cipher, mode, &wrapping_key, Some(&cbc_iv)).expect("AES");
    crypter.pad(false);
    let mut wrapped = vec![0; 80];
    let length = crypter.update(&tenant.key, &mut wrapped).expect("room");
    wrapped.truncate(length);
    json!({ "vuk": STANDARD.encode([cbc_iv, wrapped].concat()) })
}

#[test]
fn key_generate_takes_a_namespace_key_of_the_cluster() {
    let tenant = Tenant::new(Cluster::shared(), "generate", Form::Wrapped);
    let kubeconfig = tenant.kubeconfig.display().to_string();
    let named = format!("kubernetes:{}/{NAMESPACE_KEY}", tenant.namespace);
    let arguments = ["key", "generate", "--wrapped-only", "--namespace", &tenant.namespace, "--namespace-key", &named];
    let output = run(&[&arguments[..], &["--kubeconfig", &kubeconfig]].concat());
    let manifest = String::from_utf8(output.stdout).expect("a manifest");
    tenant.cluster.apply(&manifest);
    let secret: Value = serde_norway::from_str(&manifest).expect("a Secret");
    let name = secret["metadata"]["name"].as_str().expect("a name");
    tenant.grant("secrets", name);
    let source = format!("kubernetes:{}/{name}", tenant.namespace);
    assert_success(&tenant.create("d", &source, &[]).output().expect("running sealblk"));
    assert!(Path::new(&tenant.directory("d")).exists());
}
