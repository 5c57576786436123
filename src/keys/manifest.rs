//! Secret manifests in YAML or JSON, as `kubectl` writes and reads them.
//!
//! Only what names a Secret and what it holds is read; all else is ignored. Values stay encoded, in
//! wiped memory, until a field is asked for. As in Kubernetes a field of `stringData` overrides the
//! one of the same name in `data`.
//!
//! A parser's own messages quote the value they stumble over, so none is passed on: an error tells
//! the line and the column.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serializer;
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use zeroize::Zeroizing;

use super::error::{KeyError, Origin};
use super::names::{Namespace, ObjectName};

/// One Secret of a manifest.
pub struct Secret {
    origin: Origin,
    resource_version: Option<String>,
    uid: Option<String>,
    deleting: bool,
    data: BTreeMap<String, Value>,
    string_data: BTreeMap<String, Value>,
}

impl Secret {
    /// What errors call this Secret.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Whether it is being deleted, and only stays until whoever holds it lets it go.
    pub fn is_being_deleted(&self) -> bool {
        self.deleting
    }

    /// What the API server calls this state of the Secret.
    pub fn resource_version(&self) -> Option<&str> {
        self.resource_version.as_deref()
    }

    /// What tells this Secret from others that had or will have its name.
    pub fn uid(&self) -> Option<&str> {
        self.uid.as_deref()
    }

    /// Whether the field is there, whatever it holds.
    pub fn has(&self, field: &str) -> bool {
        self.string_data.contains_key(field) || self.data.contains_key(field)
    }

    /// The bytes of a field, decoded.
    ///
    /// # Errors
    ///
    /// [`KeyError::Base64`] and [`KeyError::NotText`].
    pub fn field(&self, field: &'static str) -> Result<Option<Zeroizing<Vec<u8>>>, KeyError> {
        let not_text = || KeyError::NotText { origin: self.origin.clone(), field };
        if let Some(value) = self.string_data.get(field) {
            let text = value.text().ok_or_else(not_text)?;
            return Ok(Some(Zeroizing::new(text.as_bytes().to_vec())));
        }
        let Some(value) = self.data.get(field) else {
            return Ok(None);
        };
        let decoded = decode(value.text().ok_or_else(not_text)?);
        decoded.map(Some).ok_or_else(|| KeyError::Base64 { origin: self.origin.clone(), field })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [redacted]", self.origin)
    }
}

/// Reads the Secrets of a manifest; documents of other kinds are passed over when there is at least
/// one Secret.
///
/// # Errors
///
/// [`KeyError`] when this is no manifest or has no Secret. `raw_key_bytes` is the length that would
/// have made the file a raw key, for the error's advice.
pub fn parse(path: &Path, content: &[u8], raw_key_bytes: usize) -> Result<Vec<Secret>, KeyError> {
    let not_a_key =
        || KeyError::NotAKey { path: path.to_owned(), length_bytes: content.len(), expected_bytes: raw_key_bytes };
    if std::str::from_utf8(content).is_err() {
        return Err(not_a_key());
    }
    let documents = documents(content).map_err(|(line, column)| KeyError::Syntax {
        path: path.to_owned(),
        length_bytes: content.len(),
        expected_bytes: raw_key_bytes,
        line,
        column,
    })?;

    let mut secrets = Vec::new();
    let mut other_kind = None;
    for manifest in documents.into_iter().flatten() {
        match manifest.kind.as_deref() {
            Some("Secret") => secrets.push(manifest.into_secret(path)),
            Some(kind) => other_kind = Some(printable(kind)),
            None => {}
        }
    }
    match (secrets.is_empty(), other_kind) {
        (false, _) => Ok(secrets),
        (true, Some(kind)) => Err(KeyError::WrongKind { path: path.to_owned(), kind }),
        (true, None) => Err(not_a_key()),
    }
}

/// Reads a Secret as the API server gives it. None if it is anything else.
pub fn parse_object(origin: Origin, content: &[u8]) -> Option<Secret> {
    let manifest: Manifest = serde_json::from_slice(content).ok()?;
    let is_secret = manifest.kind.as_deref() == Some("Secret");
    is_secret.then(|| manifest.with_origin(origin))
}

/// One page of a namespace's Secrets.
pub struct Page {
    /// Those whose names are names.
    pub secrets: Vec<(ObjectName, Secret)>,
    /// What to ask for the next page with; empty on the last one.
    pub next: String,
}

/// Reads a list of Secrets as the API server gives it. None if it is anything else.
pub fn parse_page(namespace: &Namespace, content: &[u8]) -> Option<Page> {
    let list: List = serde_json::from_slice(content).ok()?;
    if list.kind != "SecretList" {
        return None;
    }
    let named = list.items.into_iter().filter_map(|item| {
        let name: ObjectName = item.metadata.as_ref()?.name.as_deref()?.parse().ok()?;
        let secret = item.with_origin(Origin::cluster(namespace, &name));
        Some((name, secret))
    });
    Some(Page { secrets: named.collect(), next: list.metadata.next })
}

/// A JSON merge patch (RFC 7386) that changes fields of the Secret that was read as
/// `resource_version`; a field of `None` is taken away. The caller must wipe what it frees.
pub fn merge_patch(resource_version: &str, fields: &[(&str, Option<&[u8]>)]) -> Vec<u8> {
    let data: BTreeMap<&str, Option<Zeroizing<String>>> = fields
        .iter()
        .map(|&(field, value)| (field, value.map(|value| Zeroizing::new(STANDARD.encode(value)))))
        .collect();
    let patch = Patch { metadata: PatchMetadata { resource_version }, data };
    serde_json::to_vec(&patch).expect("text by name is JSON")
}

/// The documents of the file, of which some may be empty; or the line and column where it is wrong.
fn documents(content: &[u8]) -> Result<Vec<Option<Manifest>>, (usize, usize)> {
    // JSON first: its reader lends values out of the file's own buffer and copies nothing.
    if let Ok(document) = serde_json::from_slice(content) {
        return Ok(vec![document]);
    }
    serde_norway::Deserializer::from_slice(content)
        .map(|document| {
            Option::deserialize(document).map_err(|error| {
                let location = error.location();
                location.map_or((1, 1), |location| (location.line(), location.column()))
            })
        })
        .collect()
}

/// A name or kind as it may stand in an error. Anything that could not be one is left out: a file
/// may have anything at all in that place.
fn printable(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if name.len() <= NAME_LENGTH_MAX && name.chars().all(plain) { name.to_owned() } else { "(unprintable)".to_owned() }
}

/// Standard base64, in which line breaks are passed over as Kubernetes does.
fn decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut compact = Zeroizing::new(Vec::with_capacity(text.len()));
    compact.extend(text.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n')));
    let mut bytes = Zeroizing::new(vec![0; compact.len() / 4 * 3 + 3]);
    let length = STANDARD.decode_slice(&compact[..], &mut bytes).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

#[derive(serde::Serialize)]
struct Patch<'a> {
    metadata: PatchMetadata<'a>,
    #[serde(serialize_with = "as_text")]
    data: BTreeMap<&'a str, Option<Zeroizing<String>>>,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct PatchMetadata<'a> {
    resource_version: &'a str,
}

fn as_text<S: Serializer>(data: &BTreeMap<&str, Option<Zeroizing<String>>>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(data.iter().map(|(field, value)| (field, value.as_ref().map(|value| value.as_str()))))
}

#[derive(serde::Deserialize)]
struct List {
    kind: String,
    metadata: ListMetadata,
    items: Vec<Manifest>,
}

#[derive(serde::Deserialize)]
struct ListMetadata {
    #[serde(default, rename = "continue")]
    next: String,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    kind: Option<String>,
    metadata: Option<Metadata>,
    #[serde(default)]
    data: Fields,
    #[serde(default)]
    string_data: Fields,
}

impl Manifest {
    fn into_secret(self, path: &Path) -> Secret {
        let metadata = self.metadata.as_ref();
        let name = metadata.and_then(|metadata| metadata.name.as_deref()).map(printable);
        let namespace = metadata.and_then(|metadata| metadata.namespace.as_deref()).map(printable);
        let origin = Origin::secret(path, namespace.as_deref(), name.as_deref());
        self.with_origin(origin)
    }

    fn with_origin(self, origin: Origin) -> Secret {
        let Metadata { resource_version, uid, deletion_timestamp, .. } = self.metadata.unwrap_or_default();
        let deleting = deletion_timestamp.is_some();
        Secret { origin, resource_version, uid, deleting, data: self.data.0, string_data: self.string_data.0 }
    }
}

#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
    uid: Option<String>,
    deletion_timestamp: Option<String>,
}

/// The fields of `data` or `stringData`. A field given twice is refused: which one counts would
/// depend on the reader.
#[derive(Default)]
struct Fields(BTreeMap<String, Value>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fields, D::Error> {
        struct FieldsVisitor;

        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("fields by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if fields.insert(name, value).is_some() {
                        return Err(de::Error::custom("a field is given twice"));
                    }
                }
                Ok(Fields(fields))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Fields, E> {
                Ok(Fields::default())
            }
        }

        deserializer.deserialize_any(FieldsVisitor)
    }
}

/// What a field holds, still encoded.
enum Value {
    Text(Zeroizing<String>),
    Other,
}

impl Value {
    fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            Value::Other => None,
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        struct ValueVisitor;

        impl<'de> Visitor<'de> for ValueVisitor {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
                Ok(Value::Text(Zeroizing::new(text.to_owned())))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Value::Other)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Value::Other)
            }

            fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
                Ok(Value::Other)
            }

            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Value, E> {
                Ok(Value::Other)
            }

            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Value, E> {
                Ok(Value::Other)
            }

            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Value, E> {
                Ok(Value::Other)
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Value, E> {
                Ok(Value::Other)
            }
        }

        deserializer.deserialize_any(ValueVisitor)
    }
}

const NAME_LENGTH_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Secret>, KeyError> {
        parse(Path::new("k.yaml"), text.as_bytes(), 64)
    }

    fn only(text: &str) -> Secret {
        let mut secrets = parsed(text).unwrap();
        assert_eq!(secrets.len(), 1);
        secrets.pop().unwrap()
    }

    #[test]
    fn yaml_and_json_hold_the_same() {
        let yaml = only("kind: Secret\nmetadata: {name: a, namespace: b}\ndata:\n  key: aGVsbG8=\n");
        let json = only(r#"{"kind":"Secret","metadata":{"name":"a","namespace":"b"},"data":{"key":"aGVsbG8="}}"#);
        for secret in [yaml, json] {
            assert_eq!(secret.field("key").unwrap().unwrap().as_slice(), b"hello");
            assert!(secret.field("iv").unwrap().is_none());
            assert_eq!(secret.origin().to_string(), "Secret b/a in k.yaml");
            assert_eq!(format!("{secret:?}"), "Secret b/a in k.yaml [redacted]");
        }
    }

    #[test]
    fn string_data_overrides_data() {
        let secret = only("kind: Secret\ndata: {key: aGVsbG8=, iv: aGVsbG8=}\nstringData: {key: \"w\\u00f6\"}\n");
        assert_eq!(secret.field("key").unwrap().unwrap().as_slice(), "wö".as_bytes());
        assert_eq!(secret.field("iv").unwrap().unwrap().as_slice(), b"hello");
    }

    #[test]
    fn base64_may_be_folded_and_nothing_else() {
        let secret = only("kind: Secret\ndata:\n  key: |\n    aGVs\n    bG8=\n  iv: 'aGVs bG8='\n  vuk: aGVsbG8\n");
        assert_eq!(secret.field("key").unwrap().unwrap().as_slice(), b"hello");
        assert!(matches!(secret.field("iv"), Err(KeyError::Base64 { .. })));
        assert!(matches!(secret.field("vuk"), Err(KeyError::Base64 { .. })));
    }

    #[test]
    fn values_that_are_no_text_are_told() {
        for value in ["12", "-1", "1.5", "true", "~", "[a]", "{a: b}"] {
            let secret = only(&format!("kind: Secret\ndata:\n  key: {value}\n"));
            let error = secret.field("key").unwrap_err();
            assert!(matches!(error, KeyError::NotText { .. }), "{value}: {error}");
        }
    }

    #[test]
    fn documents_of_other_kinds_and_empty_ones_are_passed_over() {
        let text = "---\n---\nkind: ConfigMap\ndata: {a: b}\n---\nkind: Secret\n---\nkind: Secret\ndata: ~\n";
        assert_eq!(parsed(text).unwrap().len(), 2);
        let error = parsed("kind: ConfigMap\ndata: {a: b}\n").unwrap_err();
        assert!(matches!(error, KeyError::WrongKind { ref kind, .. } if kind == "ConfigMap"), "{error}");
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        for text in ["", "---\n", "a: b", "{}"] {
            let error = parsed(text).unwrap_err();
            assert!(matches!(error, KeyError::NotAKey { .. }), "{text:?}: {error}");
        }
        for text in ["hello", "[1, 2]", "kind: [", "kind: Secret\ndata: 5", "kind: Secret\n\tdata: {}", "{\"kind\":"] {
            let error = parsed(text).unwrap_err();
            assert!(matches!(error, KeyError::Syntax { .. }), "{text:?}: {error}");
        }
        let error = parse(Path::new("k"), &[0xff; 63], 64).unwrap_err();
        assert!(matches!(error, KeyError::NotAKey { length_bytes: 63, expected_bytes: 64, .. }), "{error}");
    }

    #[test]
    fn a_field_given_twice_is_refused_with_its_place() {
        let error = parsed("kind: Secret\ndata:\n  key: YQ==\n  key: Yg==\n").unwrap_err();
        assert!(matches!(error, KeyError::Syntax { line: 3 | 4, .. }), "{error}");
    }

    #[test]
    fn names_that_are_none_are_not_repeated() {
        let secret = only("kind: Secret\nmetadata: {name: \"c2VjcmV0/+==\"}\n");
        assert_eq!(secret.origin().to_string(), "Secret (unprintable) in k.yaml");
    }
}
