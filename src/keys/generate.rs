//! New keys, as Secret manifests ready for `kubectl apply` or for the API server.
//!
//! The text holds keys in the clear (base64 is not a cover), so it is kept in wiped memory and meant
//! for a file that only its owner may read, or for a pipe.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::error::KeyError;
use super::names::{self, ObjectName};
use super::secret::{self, NamespaceKey, NamespaceKeys};
use super::wiping::Wiping;
use crate::crypto::xts::{XtsKey, XtsKeyError};

pub use super::names::{NameError, Namespace};

/// What to make.
#[derive(Debug, Default)]
pub struct Request {
    /// The namespace the Secrets go to; without one `kubectl` decides.
    pub namespace: Option<Namespace>,
    /// The claim that the volume key is for, recorded as a label.
    pub pvc: Option<Pvc>,
    /// The namespace's keys. Without them a fresh one is made and is part of the manifest.
    pub namespace_keys: Option<NamespaceKeys>,
    /// Whether to leave the clear key out, so that the volume's Secret alone reveals nothing.
    pub wrapped_only: bool,
}

/// Makes a volume key and returns its manifest in YAML, followed by the one of the namespace key if
/// that was made too.
///
/// # Errors
///
/// [`KeyError::Random`] and [`KeyError::Memory`].
pub fn generate(request: &Request) -> Result<Zeroizing<String>, KeyError> {
    let _wiping = Wiping::start();
    let key = new_volume_key()?;
    let fresh = match request.namespace_keys {
        Some(_) => None,
        None => Some(NamespaceKey::generate()?),
    };
    let namespace_key =
        request.namespace_keys.as_ref().map(NamespaceKeys::for_wrapping).or(fresh.as_ref()).expect("one or the other");
    let wrapping = secret::wrap(&key, namespace_key)?;

    let mut text = Zeroizing::new(String::with_capacity(TEXT_BYTES));
    let name = format!("{}{}", names::VOLUME_KEY_SECRET_PREFIX, Uuid::new_v4());
    write_head(&mut text, &name, names::VOLUME_KEY_COMPONENT, request, request.pvc.as_ref());
    if !request.wrapped_only {
        write_field(&mut text, "key", key.bytes());
    }
    write_field(&mut text, "iv", &wrapping.iv);
    write_field(&mut text, "vuk", &wrapping.vuk);
    write_field(&mut text, "hmac", &wrapping.hmac);
    if let Some(fresh) = &fresh {
        text.push_str("---\n");
        text.push_str(WARNING);
        write_head(&mut text, names::NAMESPACE_KEY_SECRET, names::NAMESPACE_KEY_COMPONENT, request, None);
        write_field(&mut text, "key", fresh.bytes());
    }
    Ok(text)
}

/// What whoever looks at the manifest before using it should know.
const WARNING: &str = "\
# A new key for the namespace. Never let it replace one that is there already: what is wrapped under that one would be\n\
# unreadable. kubectl create leaves it alone, kubectl apply does not; --namespace-key makes a manifest without this.\n";

/// A new volume key's Secret as the API server takes it, in JSON, with its clear key unless it is
/// `wrapped_only`. The caller must wipe what it frees.
///
/// # Errors
///
/// [`KeyError::Random`] and [`KeyError::Memory`].
pub fn volume_secret(
    name: &ObjectName,
    pvc: Option<&Pvc>,
    wrapped_only: bool,
    namespace_keys: &NamespaceKeys,
) -> Result<Vec<u8>, KeyError> {
    let key = new_volume_key()?;
    let wrapping = secret::wrap(&key, namespace_keys.for_wrapping())?;
    let clear = [(names::KEY_FIELD, Some(&key.bytes()[..]))];
    let fields = clear.iter().take(usize::from(!wrapped_only)).copied().chain(wrapping.fields());
    let data: BTreeMap<_, _> =
        fields.map(|(field, value)| (field, value.map(|value| STANDARD.encode(value)))).collect();
    let mut labels = BTreeMap::from(labels(names::VOLUME_KEY_COMPONENT));
    let pvc = pvc.map(|Pvc(pvc)| pvc.as_str());
    labels.extend(pvc.map(|pvc| (names::PVC_LABEL, pvc)));
    let metadata = json!({"name": name.as_str(), "labels": labels});
    Ok(object(&metadata, &json!(data)))
}

/// A new namespace key's Secret, likewise.
///
/// # Errors
///
/// [`KeyError::Random`] and [`KeyError::Memory`].
pub fn namespace_secret() -> Result<Vec<u8>, KeyError> {
    let key = NamespaceKey::generate()?;
    let labels = BTreeMap::from(labels(names::NAMESPACE_KEY_COMPONENT));
    let metadata = json!({"name": names::NAMESPACE_KEY_SECRET, "labels": labels});
    Ok(object(&metadata, &json!({names::KEY_FIELD: STANDARD.encode(key.bytes())})))
}

fn object(metadata: &Value, data: &Value) -> Vec<u8> {
    let object = json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": data});
    object.to_string().into_bytes()
}

fn labels(component: &'static str) -> [(&'static str, &'static str); 3] {
    [
        (names::COMPONENT_LABEL, component),
        (names::MANAGED_BY_LABEL, names::SEALBLK),
        (names::NAME_LABEL, names::SEALBLK),
    ]
}

fn new_volume_key() -> Result<XtsKey, KeyError> {
    XtsKey::generate().map_err(|error| match error {
        XtsKeyError::Memory(error) => KeyError::Memory(error),
        XtsKeyError::Random(error) => KeyError::Random(error),
        // 64 bytes are 64 bytes, and halves of 256 random bits are equal only where the random
        // number generator is broken.
        XtsKeyError::Length(_) | XtsKeyError::EqualHalves => KeyError::Random(getrandom::Error::UNEXPECTED),
    })
}

/// Name of a persistent volume claim, as far as it fits a label's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pvc(ObjectName);

impl FromStr for Pvc {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Pvc, NameError> {
        let name: ObjectName = text.parse().map_err(|_| NameError::Pvc)?;
        if text.len() <= names::LABEL_LENGTH_MAX { Ok(Pvc(name)) } else { Err(NameError::Pvc) }
    }
}

fn write_head(text: &mut String, name: &str, component: &'static str, request: &Request, pvc: Option<&Pvc>) {
    text.push_str("apiVersion: v1\nkind: Secret\nmetadata:\n");
    let _ = writeln!(text, "  name: {name}");
    // In quotes, because names such as `1234` or `true` are not text without.
    if let Some(namespace) = &request.namespace {
        let _ = writeln!(text, "  namespace: \"{namespace}\"");
    }
    text.push_str("  labels:\n");
    for (label, value) in labels(component) {
        let _ = writeln!(text, "    {label}: {value}");
    }
    if let Some(Pvc(pvc)) = pvc {
        let _ = writeln!(text, "    {}: \"{pvc}\"", names::PVC_LABEL);
    }
    text.push_str("type: Opaque\ndata:\n");
}

fn write_field(text: &mut String, field: &str, bytes: &[u8]) {
    let _ = write!(text, "  {field}: ");
    STANDARD.encode_string(bytes, text);
    text.push('\n');
}

/// More than two manifests take, so that the text never moves while it grows.
const TEXT_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_has_names_labels_and_fields() {
        let request = Request {
            namespace: Some("vms".parse().unwrap()),
            pvc: Some("1234".parse().unwrap()),
            ..Request::default()
        };
        let text = generate(&request).unwrap();
        let documents: Vec<&str> = text.split("---\n").collect();
        assert_eq!(documents.len(), 2);

        let volume: serde_json::Value = serde_norway::from_str(documents[0]).unwrap();
        let name = volume["metadata"]["name"].as_str().unwrap();
        let id = Uuid::parse_str(name.strip_prefix("storageos-volume-key-").unwrap()).unwrap();
        assert_eq!(id.get_version_num(), 4);
        assert_eq!(volume["apiVersion"], "v1");
        assert_eq!(volume["kind"], "Secret");
        assert_eq!(volume["metadata"]["namespace"], "vms");
        assert_eq!(volume["metadata"]["labels"]["storageos.com/pvc"], "1234");
        assert_eq!(volume["metadata"]["labels"]["app.kubernetes.io/managed-by"], "sealblk");
        let bytes = |value: &serde_json::Value| STANDARD.decode(value.as_str().unwrap()).unwrap().len();
        let lengths = ["key", "iv", "vuk", "hmac"].map(|field| bytes(&volume["data"][field]));
        assert_eq!(lengths, [64, 32, 80, 32]);

        let namespace: serde_json::Value = serde_norway::from_str(documents[1]).unwrap();
        assert_eq!(namespace["metadata"]["name"], "storageos-namespace-key");
        assert_eq!(namespace["metadata"]["namespace"], "vms");
        assert_eq!(bytes(&namespace["data"]["key"]), 32);
        assert!(text.len() <= TEXT_BYTES, "{} bytes: the text has moved", text.len());
    }

    #[test]
    fn a_wrapped_only_secret_has_no_clear_key() {
        let namespace_keys = Some(NamespaceKey::generate().unwrap().into());
        let text = generate(&Request { namespace_keys, wrapped_only: true, ..Request::default() }).unwrap();
        let volume: serde_json::Value = serde_norway::from_str(&text).unwrap();
        assert!(volume["data"]["key"].is_null());
        assert!(volume["data"]["vuk"].is_string());
        assert!(!text.contains("storageos-namespace-key"));
    }

    #[test]
    fn names_that_kubernetes_refuses_are_refused() {
        let long = "a".repeat(64);
        for name in ["", "-a", "a-", "A", "a_b", "a b", "a\nb", "a\"b", "ä", &long] {
            assert_eq!(name.parse::<Namespace>(), Err(NameError::Namespace), "{name:?}");
            assert_eq!(name.parse::<Pvc>(), Err(NameError::Pvc), "{name:?}");
        }
        assert!("a.b".parse::<Namespace>().is_err());
        assert!("a.b".parse::<Pvc>().is_ok());
        assert!("a-1".parse::<Namespace>().is_ok());
    }
}
