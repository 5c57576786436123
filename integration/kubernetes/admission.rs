//! Claims are created, and those that ask for encryption come with a key.

use std::process::{Command, Output};
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::controller::{Certificate, Controller, NODE_ACCOUNT, SYSTEM, claim, encrypted};
use crate::https::Pair;
use crate::support::cluster::Cluster;
use crate::support::volume::SEALBLK;
use crate::tenant::{NAMESPACE_KEY, assert_success, bytes, stderr};

#[test]
fn a_claim_that_asks_gets_a_key_that_nodes_can_read() {
    let cluster = Cluster::shared();
    let controller = Controller::start(cluster, &[]);
    for (form, fields) in [("clear", &["hmac", "iv", "key", "vuk"][..]), ("wrapped", &["hmac", "iv", "vuk"])] {
        let namespace = controller.namespace("claims");
        let labels = json!({"storageos.com/encryption": "true", "sealblk.io/key-form": form});
        assert_success(&controller.try_claim(&namespace, "disk", &json!({"labels": labels}), PRESENT));
        let claim = get(cluster, &namespace, "pvc/disk");
        let annotations = &claim["metadata"]["annotations"];
        assert_eq!(annotations["storageos.com/encryption-secret-namespace"], namespace.as_str());
        let name = secret_name(&claim);
        let id = name.strip_prefix("storageos-volume-key-").expect("the name of a volume key");
        assert_eq!(uuid::Uuid::parse_str(id).expect("a UUID").get_version_num(), 4);

        let secret = get(cluster, &namespace, &format!("secret/{name}"));
        assert_eq!(secret["metadata"]["labels"]["storageos.com/pvc"], "disk");
        assert_eq!(secret["metadata"]["labels"]["app.kubernetes.io/managed-by"], "sealblk");
        let held: Vec<_> = secret["data"].as_object().expect("the data").keys().map(String::as_str).collect();
        assert_eq!(held, fields);
        let namespace_secret = get(cluster, &namespace, &format!("secret/{NAMESPACE_KEY}"));
        assert_eq!(bytes(&namespace_secret, "key").len(), 32);

        let node = cluster.kubeconfig(SYSTEM, NODE_ACCOUNT);
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for a volume");
        let attached = Command::new(SEALBLK)
            .args(["volume", "create", "--size", "1M", "--key", &format!("pvc:{namespace}/disk"), "--kubeconfig"])
            .arg(&node)
            .arg(folder.path().join("volume"))
            .output();
        assert_success(&attached.expect("running sealblk"));

        // That Secret and, for a wrapped key, the namespace's: nothing else.
        let other =
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "other", "namespace": namespace}});
        cluster.apply(&other.to_string());
        let may = |what: &[&str]| {
            let question = [&["-n", &namespace, "auth", "can-i"], what].concat();
            cluster.try_kubectl_as(&node, &question).status.success()
        };
        assert!(may(&["get", &format!("secret/{name}")]));
        assert_eq!(may(&["get", &format!("secret/{NAMESPACE_KEY}")]), form == "wrapped");
        assert!(!may(&["get", "secret/other"]) && !may(&["list", "secrets"]) && !may(&["watch", "secrets"]));
        for verb in ["update", "patch", "delete", "create"] {
            assert!(!may(&[verb, &format!("secret/{name}")]), "a node may {verb} a key");
        }
    }
}

#[test]
fn twenty_claims_at_once_end_with_one_namespace_key_and_twenty_volume_keys() {
    let cluster = Cluster::shared();
    let pair = Pair::make(std::time::Duration::from_secs(3600));
    let controller = Controller::start_with(cluster, 2, Certificate::Files(pair), &[]);
    let namespace = controller.namespace("twenty");
    thread::scope(|scope| {
        for number in 0..20 {
            let (controller, namespace) = (&controller, &namespace);
            scope.spawn(move || {
                // Every second one only wrapped, which opens with no other namespace key.
                let form = if number % 2 == 0 { "clear" } else { "wrapped" };
                let labels = json!({"storageos.com/encryption": "1", "sealblk.io/key-form": form});
                let name = format!("disk-{number}");
                assert_success(&controller.try_claim(namespace, &name, &json!({"labels": labels}), PRESENT));
            });
        }
    });
    let claims = list(cluster, &namespace, "pvc");
    let mut named: Vec<_> = claims.iter().map(secret_name).collect();
    named.sort();
    let secrets = list(cluster, &namespace, "secret");
    let names = secrets.iter().map(|secret| secret["metadata"]["name"].as_str().expect("a name").to_owned());
    let (namespace_keys, mut volume_keys): (Vec<_>, Vec<_>) = names.partition(|name| name == NAMESPACE_KEY);
    volume_keys.sort();
    assert_eq!((namespace_keys.len(), volume_keys.len()), (1, 20));
    assert_eq!(volume_keys, named);
    assert_verified(cluster, &namespace, 20);
}

#[test]
fn keys_made_during_rotations_open_after_them() {
    let cluster = Cluster::shared();
    let pair = Pair::make(std::time::Duration::from_secs(3600));
    let controller = Controller::start_with(cluster, 2, Certificate::Files(pair), &[]);
    let namespace = controller.namespace("rotated");
    assert_success(&controller.try_claim(&namespace, "first", &encrypted(), PRESENT));
    let labels = json!({"storageos.com/encryption": "true", "sealblk.io/key-form": "wrapped"});
    thread::scope(|scope| {
        let makers = [0, 1].map(|maker| {
            let (controller, namespace, labels) = (&controller, &namespace, &labels);
            scope.spawn(move || {
                for number in 0..15 {
                    let name = format!("disk-{maker}-{number}");
                    assert_success(&controller.try_claim(namespace, &name, &json!({"labels": labels}), PRESENT));
                }
            })
        });
        while !makers.iter().all(|maker| maker.is_finished()) {
            assert_success(&sealblk(cluster, &["key", "rotate-namespace", &namespace]));
        }
    });
    assert_verified(cluster, &namespace, 31);
}

#[test]
fn what_does_not_ask_is_left_alone_and_nonsense_is_refused() {
    let cluster = Cluster::shared();
    let controller = Controller::start(cluster, &[]);
    let namespace = controller.namespace("asking");
    class(cluster, "asking-ours", "csi.sealblk.io", "true");
    class(cluster, "asking-theirs", "example.com/csi", "true");
    class(cluster, "asking-nonsense", "csi.storageos.com", "maybe");
    let label = |value: &str| json!({"labels": {"storageos.com/encryption": value}});
    let plain = json!({});
    let cases = [
        ("plain", &plain, None, Ok(false)),
        ("label-false", &label("F"), None, Ok(false)),
        ("label-true", &label("T"), PRESENT, Ok(true)),
        ("label-but-no-class", &label("true"), None, Err("no default StorageClass")),
        ("label-but-no-name-of-a-class", &label("true"), Some("../../secrets"), Err("StorageClass")),
        ("label-but-no-such-class", &label("true"), Some("asking-nobody"), Err("asking-nobody")),
        ("label-nonsense", &label("yes"), None, Err("`yes`")),
        ("class", &plain, Some("asking-ours"), Ok(true)),
        ("class-but-not-the-claim", &label("false"), Some("asking-ours"), Ok(false)),
        ("class-of-others", &plain, Some("asking-theirs"), Ok(false)),
        ("label-but-class-of-others", &label("true"), Some("asking-theirs"), Err("example.com/csi")),
        ("no-label-and-no-such-class", &plain, Some("asking-nobody"), Ok(false)),
        ("class-nonsense", &plain, Some("asking-nonsense"), Err("`maybe`")),
        ("claim-over-class-nonsense", &label("true"), Some("asking-nonsense"), Ok(true)),
    ];
    let mut keys = 0;
    for (name, metadata, class, expected) in cases {
        let output = controller.try_claim(&namespace, name, metadata, class);
        match expected {
            Ok(has_key) => {
                assert_success(&output);
                let claim = get(cluster, &namespace, &format!("pvc/{name}"));
                let annotation = &claim["metadata"]["annotations"]["storageos.com/encryption-secret-name"];
                assert_eq!(annotation.is_string(), has_key, "{name}");
                keys += usize::from(has_key);
            }
            Err(value) => {
                assert!(!output.status.success(), "{name}");
                assert!(stderr(&output).contains(value) && stderr(&output).contains("storageos.com/encryption"));
            }
        }
    }
    // Those keys and the namespace's.
    assert_eq!(list(cluster, &namespace, "secret").len(), keys + 1);
}

/// In a cluster of its own: there is only one default class for all namespaces.
#[test]
fn the_default_class_is_the_one_that_kubernetes_takes() {
    let cluster = Cluster::start(&["--disable-admission-plugins=ServiceAccount,DefaultStorageClass"]);
    let controller = Controller::start(&cluster, &[]);
    let namespace = controller.namespace("defaults");
    let is_default = json!({"storageclass.kubernetes.io/is-default-class": "true"});
    class(&cluster, "old", "csi.sealblk.io", "false");
    annotate(&cluster, "old", &is_default);
    assert_success(&controller.try_claim(&namespace, "before", &json!({}), None));
    thread::sleep(std::time::Duration::from_millis(1100));
    class(&cluster, "new", "csi.sealblk.io", "true");
    annotate(&cluster, "new", &json!({"storageclass.beta.kubernetes.io/is-default-class": "true"}));
    assert_success(&controller.try_claim(&namespace, "after", &json!({}), None));
    assert_success(&controller.try_claim(&namespace, "named", &json!({}), Some("old")));
    assert_success(&controller.try_claim(&namespace, "none", &json!({}), Some("")));
    let beta = json!({"annotations": {"volume.beta.kubernetes.io/storage-class": "old"}});
    assert_success(&controller.try_claim(&namespace, "named-in-the-old-way", &beta, None));
    for (name, has_key) in
        [("before", false), ("after", true), ("named", false), ("none", false), ("named-in-the-old-way", false)]
    {
        let claim = get(&cluster, &namespace, &format!("pvc/{name}"));
        let annotation = &claim["metadata"]["annotations"]["storageos.com/encryption-secret-name"];
        assert_eq!(annotation.is_string(), has_key, "{name}");
    }
}

#[test]
fn a_secret_that_the_claim_names_is_used_or_made_and_checked_at_once() {
    let cluster = Cluster::shared();
    let controller = Controller::start(cluster, &[]);
    let namespace = controller.namespace("named");
    let naming = |name: &str| {
        let mut metadata = encrypted();
        metadata["annotations"] = json!({"storageos.com/encryption-secret-name": name});
        metadata
    };
    // Made, then used.
    assert_success(&controller.try_claim(&namespace, "one", &naming("mine"), PRESENT));
    let made = get(cluster, &namespace, "secret/mine");
    assert_success(&controller.try_claim(&namespace, "two", &naming("mine"), PRESENT));
    assert_eq!(get(cluster, &namespace, "secret/mine")["data"], made["data"]);
    let claim = get(cluster, &namespace, "pvc/two");
    assert_eq!(claim["metadata"]["annotations"]["storageos.com/encryption-secret-namespace"], namespace.as_str());

    let damaged = |name: &str, change: Value| {
        let mut secret =
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}});
        secret["data"] = made["data"].clone();
        for (field, value) in change.as_object().expect("fields") {
            secret["data"][field] = value.clone();
        }
        secret["data"].as_object_mut().expect("the data").retain(|_, value| !value.is_null());
        cluster.apply(&secret.to_string());
    };
    damaged("no-iv", json!({"iv": null}));
    damaged("other-hmac", json!({"hmac": made["data"]["iv"]}));
    damaged("short-key", json!({"key": made["data"]["iv"]}));
    damaged("does-not-open", json!({"key": null, "iv": made["data"]["hmac"]}));
    let before = list(cluster, &namespace, "secret").len();
    for (name, reason) in [
        ("no-iv", "`iv`"),
        ("other-hmac", "`hmac`"),
        ("short-key", "`key`"),
        ("does-not-open", "`vuk`"),
        (NAMESPACE_KEY, "encryption-secret-name"),
        ("Not_A_Name", "encryption-secret-name"),
    ] {
        let refused = controller.try_claim(&namespace, "refused", &naming(name), PRESENT);
        assert!(!refused.status.success(), "{name}");
        assert!(stderr(&refused).contains(reason), "{name}: {}", stderr(&refused));
    }
    // One that is being deleted will be gone before its volume is.
    damaged("dying", json!({}));
    let patch = json!({"metadata": {"finalizers": ["example.com/other"]}}).to_string();
    cluster.kubectl(&["-n", &namespace, "patch", "secret", "dying", "--type=merge", "-p", &patch]);
    cluster.kubectl(&["-n", &namespace, "delete", "secret", "dying", "--wait=false"]);
    let refused = controller.try_claim(&namespace, "refused", &naming("dying"), PRESENT);
    assert!(!refused.status.success(), "a key that is being deleted was taken");
    assert!(stderr(&refused).contains("is being deleted"), "{}", stderr(&refused));
    let patch = json!({"metadata": {"finalizers": null}}).to_string();
    cluster.kubectl(&["-n", &namespace, "patch", "secret", "dying", "--type=merge", "-p", &patch]);

    let mut foreign = naming("mine");
    foreign["annotations"]["storageos.com/encryption-secret-namespace"] = "kube-system".into();
    let refused = controller.try_claim(&namespace, "refused", &foreign, PRESENT);
    assert!(!refused.status.success() && stderr(&refused).contains("namespace"), "{}", stderr(&refused));
    // As a claim of a backup does that is restored before its key.
    let lost = "storageos-volume-key-9e107d9d-372b-4eb6-9826-bd817d542a41";
    let refused = controller.try_claim(&namespace, "refused", &naming(lost), PRESENT);
    assert!(!refused.status.success() && stderr(&refused).contains("restore it"), "{}", stderr(&refused));
    assert_eq!(list(cluster, &namespace, "secret").len(), before);

    // Nor may one be named that only other claims still keep from going.
    cluster.kubectl(&["-n", &namespace, "delete", "secret", "mine", "--wait=false"]);
    let refused = controller.try_claim(&namespace, "three", &naming("mine"), PRESENT);
    assert!(!refused.status.success() && stderr(&refused).contains("is being deleted"), "{}", stderr(&refused));
}

#[test]
fn a_lost_namespace_key_is_asked_for_and_not_made_anew() {
    let cluster = Cluster::shared();
    let controller = Controller::start(cluster, &[]);
    let namespace = controller.namespace("lost");
    assert_success(&controller.try_claim(&namespace, "one", &encrypted(), PRESENT));
    let key = get(cluster, &namespace, &format!("secret/{NAMESPACE_KEY}"));
    cluster.kubectl(&["-n", &namespace, "delete", "secret", NAMESPACE_KEY]);
    let before = list(cluster, &namespace, "secret").len();
    let refused = controller.try_claim(&namespace, "two", &encrypted(), PRESENT);
    assert!(!refused.status.success() && stderr(&refused).contains(NAMESPACE_KEY), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("restore it"), "{}", stderr(&refused));
    assert_eq!(list(cluster, &namespace, "secret").len(), before);

    let metadata = json!({"name": NAMESPACE_KEY, "namespace": namespace});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": key["data"]});
    cluster.apply(&secret.to_string());
    assert_success(&controller.try_claim(&namespace, "two", &encrypted(), PRESENT));

    // Where it was destroyed on purpose, another is made once nothing is left that was wrapped under it. Roles go with
    // the Secrets that own them, by a controller that does not run here.
    cluster.kubectl(&["-n", &namespace, "delete", "secret", NAMESPACE_KEY]);
    assert!(!controller.try_claim(&namespace, "three", &encrypted(), PRESENT).status.success());
    cluster.kubectl(&["-n", &namespace, "delete", "role", "--all"]);
    assert_success(&controller.try_claim(&namespace, "three", &encrypted(), PRESENT));
    assert_ne!(get(cluster, &namespace, &format!("secret/{NAMESPACE_KEY}"))["data"], key["data"]);
}

#[test]
fn a_dry_run_makes_nothing_and_refuses_the_same() {
    let cluster = Cluster::shared();
    let controller = Controller::start(cluster, &[]);
    let namespace = controller.namespace("dry");
    let dry = |metadata: &Value| {
        let claim = claim(&namespace, "disk", metadata, PRESENT).to_string();
        cluster.feed(&["create", "--dry-run=server", "-o", "json", "-f", "-"], &claim)
    };
    let output = dry(&encrypted());
    assert_success(&output);
    let claim: Value = serde_json::from_slice(&output.stdout).expect("a claim");
    assert!(secret_name(&claim).starts_with("storageos-volume-key-"));
    assert!(!dry(&json!({"labels": {"storageos.com/encryption": "perhaps"}})).status.success());
    for kind in ["secret", "role", "rolebinding", "pvc"] {
        assert_eq!(list(cluster, &namespace, kind).len(), 0, "a dry run made a {kind}");
    }
}

#[test]
fn with_the_webhook_down_no_claim_that_asks_is_admitted_and_every_other_is() {
    let cluster = Cluster::shared();
    let mut controller = Controller::start(cluster, &[]);
    let namespace = controller.namespace("down");
    controller.remove_replica();
    let refused = controller.try_claim(&namespace, "asks", &encrypted(), PRESENT);
    assert!(!refused.status.success(), "a claim was admitted without a key");
    assert!(stderr(&refused).contains("encryption.sealblk.io"), "{}", stderr(&refused));
    assert_success(&controller.try_claim(&namespace, "plain", &json!({}), None));
    assert_eq!(list(cluster, &namespace, "pvc").len(), 1);
    controller.add_replica();
    assert_success(&controller.try_claim(&namespace, "asks", &encrypted(), PRESENT));
}

/// An answer that came too late is asked for again, under the same id.
#[test]
fn a_review_that_is_asked_again_finds_the_key_of_the_first_time() {
    let cluster = Cluster::shared();
    let controller = Controller::start(cluster, &[]);
    let namespace = cluster.namespace("again");
    let uid = uuid::Uuid::new_v4().to_string();
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": uid, "operation": "CREATE", "namespace": namespace,
            "resource": {"group": "", "version": "v1", "resource": "persistentvolumeclaims"},
            "object": claim(&namespace, "disk", &encrypted(), PRESENT),
        },
    });
    let review = review.to_string();
    let request = format!(
        "POST /mutate HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{review}",
        review.len()
    );
    let port = controller.replicas()[0].port;
    let answers = [0, 1, 2].map(|_| crate::https::request(port, &request).expect("an answer"));
    for answer in &answers {
        let body: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).expect("a body")).expect("JSON");
        assert_eq!(body["response"]["uid"], uid.as_str());
        assert_eq!(body["response"]["allowed"], true, "{body}");
    }
    let mut names: Vec<_> = list(cluster, &namespace, "secret")
        .iter()
        .map(|secret| secret["metadata"]["name"].as_str().expect("a name").to_owned())
        .collect();
    names.sort();
    assert_eq!(names, [NAMESPACE_KEY.to_owned(), format!("storageos-volume-key-{uid}")]);
}

/// Claims whose names Kubernetes makes up, and such as no label can carry.
#[test]
fn a_claim_of_any_name_gets_a_key() {
    let cluster = Cluster::shared();
    let controller = Controller::start(cluster, &[]);
    let namespace = controller.namespace("names");
    let mut generated = claim(&namespace, "", &encrypted(), PRESENT);
    generated["metadata"].as_object_mut().expect("metadata").remove("name");
    generated["metadata"]["generateName"] = "disk-".into();
    assert_success(&cluster.feed(&["create", "-f", "-"], &generated.to_string()));
    assert_success(&controller.try_claim(&namespace, "long-".repeat(30).trim_end_matches('-'), &encrypted(), PRESENT));
    for claim in list(cluster, &namespace, "pvc") {
        get(cluster, &namespace, &format!("secret/{}", secret_name(&claim)));
    }
    assert_verified(cluster, &namespace, 2);
}

fn assert_verified(cluster: &Cluster, namespace: &str, keys: usize) {
    let output = sealblk(cluster, &["key", "verify", namespace]);
    assert_success(&output);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(&format!("{keys} volume keys, of which 0 do not open")), "{text}");
}

fn sealblk(cluster: &Cluster, arguments: &[&str]) -> Output {
    let mut command = Command::new(SEALBLK);
    command.args(arguments).arg("--kubeconfig").arg(cluster.admin_kubeconfig());
    command.output().expect("running sealblk")
}

/// Makes a class of this provisioner, with this value of the parameter.
fn class(cluster: &Cluster, name: &str, provisioner: &str, encryption: &str) {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": provisioner, "parameters": {"storageos.com/encryption": encryption},
    });
    cluster.apply(&class.to_string());
}

fn annotate(cluster: &Cluster, class: &str, annotations: &Value) {
    let patch = json!({"metadata": {"annotations": annotations}}).to_string();
    cluster.kubectl(&["patch", "storageclass", class, "--type=merge", "-p", &patch]);
}

/// The class of a claim whose volume is there already: no class of the shared cluster matters.
const PRESENT: Option<&str> = Some("");

/// The Secret that a claim's annotation names.
pub fn secret_name(claim: &Value) -> String {
    let name = &claim["metadata"]["annotations"]["storageos.com/encryption-secret-name"];
    name.as_str().unwrap_or_else(|| panic!("no annotation: {claim}")).to_owned()
}

pub fn get(cluster: &Cluster, namespace: &str, object: &str) -> Value {
    let json = cluster.kubectl(&["-n", namespace, "get", object, "-o", "json"]);
    serde_json::from_str(&json).expect("an object")
}

fn list(cluster: &Cluster, namespace: &str, kind: &str) -> Vec<Value> {
    let json = cluster.kubectl(&["-n", namespace, "get", kind, "-o", "json"]);
    let list: Value = serde_json::from_str(&json).expect("a list");
    list["items"].as_array().expect("items").clone()
}
