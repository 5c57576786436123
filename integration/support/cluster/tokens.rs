//! Tokens of ServiceAccounts.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openssl::ecdsa::EcdsaSig;
use openssl::pkey::PKey;
use serde_json::{Value, json};

use super::{Cluster, succeeded};

/// Who tokens say that they come from.
pub const ISSUER: &str = "https://kubernetes.default.svc";

/// Asks the API server for one, as the kubelet does for a pod.
pub fn request(cluster: &Cluster, namespace: &str, service_account: &str) -> String {
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token");
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": 3600},
    });
    let arguments = ["create", "--raw", &path, "-f", "-"];
    let answer = succeeded(&arguments, cluster.feed(&arguments, &body.to_string()));
    let answer: Value = serde_json::from_str(&answer).expect("a TokenRequest");
    answer["status"]["token"].as_str().expect("a token").to_owned()
}

/// Signs one (RFC 7515, ES256) whose time is over. The API server gives none for less than ten
/// minutes.
pub fn expired(cluster: &Cluster, key: &Path, namespace: &str, service_account: &str) -> String {
    let account = cluster.kubectl(&["-n", namespace, "get", "serviceaccount", service_account, "-o", "json"]);
    let account: Value = serde_json::from_str(&account).expect("a ServiceAccount");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_secs();
    let claims = json!({
        "aud": [ISSUER],
        "iss": ISSUER,
        "sub": format!("system:serviceaccount:{namespace}:{service_account}"),
        "iat": now - 7200, "nbf": now - 7200, "exp": now - 3600,
        "kubernetes.io": {
            "namespace": namespace,
            "serviceaccount": {"name": service_account, "uid": account["metadata"]["uid"]},
        },
    });
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let text = format!("{}.{}", encode(&json!({"alg": "ES256", "typ": "JWT"})), encode(&claims));

    let key = PKey::private_key_from_pem(&fs::read(key).expect("the key for tokens")).expect("a private key");
    let digest = openssl::sha::sha256(text.as_bytes());
    let signature = EcdsaSig::sign(&digest, &key.ec_key().expect("an elliptic key")).expect("a signature");
    let half = |number: &openssl::bn::BigNumRef| number.to_vec_padded(32).expect("256 bits");
    let signature = [half(signature.r()), half(signature.s())].concat();
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}
