//! Every way a key can be given, right and wrong, through [`Source::load`].

use std::fs;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::generate::{Request, generate};
use super::*;

/// A folder with one key file in it.
struct KeyFile {
    dir: tempfile::TempDir,
}

impl KeyFile {
    fn new(content: impl AsRef<[u8]>) -> KeyFile {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("key"), content).unwrap();
        KeyFile { dir }
    }

    fn source(&self) -> Source {
        Source::File(self.dir.path().join("key"))
    }

    fn load(&self) -> Result<XtsKey, KeyError> {
        self.source().load(None, &Cluster::default())
    }

    fn load_with(&self, namespace_key: &KeyFile) -> Result<XtsKey, KeyError> {
        self.source().load(Some(&namespace_key.source()), &Cluster::default())
    }

    fn load_namespace_keys(&self) -> Result<NamespaceKeys, KeyError> {
        self.source().load_namespace_keys(&Cluster::default())
    }
}

/// The two Secrets that `generate` makes, as editable values: the volume's and the namespace's.
fn generated() -> (Value, Value) {
    let text = generate(&Request::default()).unwrap();
    let (volume, namespace) = text.split_once("---\n").unwrap();
    (serde_norway::from_str(volume).unwrap(), serde_norway::from_str(namespace).unwrap())
}

fn bytes(secret: &Value, field: &str) -> Vec<u8> {
    STANDARD.decode(secret["data"][field].as_str().unwrap()).unwrap()
}

fn set(secret: &mut Value, field: &str, bytes: &[u8]) {
    secret["data"][field] = STANDARD.encode(bytes).into();
}

fn without(mut secret: Value, field: &str) -> Value {
    secret["data"].as_object_mut().unwrap().remove(field).unwrap();
    secret
}

/// Gives a Secret another clear key, with the `hmac` that belongs to it.
fn with_key(mut secret: Value, key: &[u8]) -> Value {
    let iv = openssl::pkey::PKey::hmac(&bytes(&secret, "iv")).unwrap();
    let mut signer = openssl::sign::Signer::new(openssl::hash::MessageDigest::sha256(), &iv).unwrap();
    let hmac = signer.sign_oneshot_to_vec(key).unwrap();
    set(&mut secret, "key", key);
    set(&mut secret, "hmac", &hmac);
    secret
}

#[test]
fn sources_are_parsed_and_unknown_ones_refused() {
    assert_eq!("file:/a:b".parse(), Ok(Source::File("/a:b".into())));
    assert_eq!("file:".parse::<Source>(), Err(SourceError::NoPath));
    let (namespace, name): (Namespace, ObjectName) = ("vms".parse().unwrap(), "a.b-1".parse().unwrap());
    assert_eq!("pvc:vms/a.b-1".parse(), Ok(Source::Pvc { namespace: namespace.clone(), name: name.clone() }));
    assert_eq!("kubernetes:vms/a.b-1".parse(), Ok(Source::Kubernetes { namespace, name }));
    for text in ["kubernetes:", "kubernetes:vms", "pvc:vms/", "pvc:/a"] {
        assert_eq!(text.parse::<Source>(), Err(SourceError::NoObject), "{text}");
    }
    for text in ["kubernetes:VMS/a", "kubernetes:a.b/a", "pvc:vms/a/b", "pvc:vms/../a", "kubernetes:vms/c2VjcmV0"] {
        let error = text.parse::<Source>().unwrap_err();
        assert!(matches!(error, SourceError::Name(_)), "{text}: {error}");
        assert!(!error.to_string().contains("c2Vj"), "{error}");
    }
    for text in ["", "/a", "Kubernetes:a/b", "FILE:/a", "c2VjcmV0"] {
        let error = text.parse::<Source>().unwrap_err();
        assert_eq!(error, SourceError::UnknownScheme);
        assert!(error.to_string().contains("file:PATH"));
    }
}

#[test]
fn sixty_four_raw_bytes_are_a_key() {
    let raw: Vec<u8> = (0..64).collect();
    assert_eq!(KeyFile::new(&raw).load().unwrap().bytes()[..], raw);
}

#[test]
fn a_generated_manifest_loads_whole_and_as_its_first_document_in_yaml_and_json() {
    let text = generate(&Request::default()).unwrap();
    let (volume, _) = text.split_once("---\n").unwrap();
    let value: Value = serde_norway::from_str(volume).unwrap();
    let key = bytes(&value, "key");
    for content in [text.as_str(), volume, &value.to_string(), &serde_json::to_string_pretty(&value).unwrap()] {
        assert_eq!(KeyFile::new(content).load().unwrap().bytes()[..], key);
    }
}

#[test]
fn a_key_in_string_data_loads() {
    let (volume, _) = generated();
    let key = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-";
    let mut secret = without(with_key(volume, key.as_bytes()), "key");
    secret["stringData"] = json!({ "key": key });
    assert_eq!(KeyFile::new(secret.to_string()).load().unwrap().bytes()[..], *key.as_bytes());
}

#[test]
fn a_wrapped_key_opens_with_the_namespace_key_from_a_manifest_or_raw() {
    let (volume, namespace) = generated();
    let key = bytes(&volume, "key");
    let wrapped = KeyFile::new(without(volume, "key").to_string());
    for content in [namespace.to_string().into_bytes(), bytes(&namespace, "key")] {
        let namespace = KeyFile::new(content);
        assert_eq!(wrapped.load_with(&namespace).unwrap().bytes()[..], key);
    }
}

#[test]
fn the_namespace_key_is_found_beside_the_volume_key() {
    let text = generate(&Request::default()).unwrap();
    let (_, namespace) = text.split_once("---\n").unwrap();
    let key = bytes(&serde_norway::from_str(namespace).unwrap(), "key");
    assert_eq!(KeyFile::new(text.as_str()).load_namespace_keys().unwrap().current.bytes()[..], key);
}

/// Prevents a volume from being lost to its owner while the keys of its namespace are replaced.
#[test]
fn during_a_rotation_both_keys_open_and_new_ones_are_wrapped_under_the_next() {
    let (volume, mut namespace) = generated();
    let wrapped = without(volume.clone(), "key");
    let next = NamespaceKey::generate().unwrap();
    set(&mut namespace, "next", next.bytes());
    let rotated = KeyFile::new(namespace.to_string());
    let old = KeyFile::new(wrapped.to_string());
    assert_eq!(old.load_with(&rotated).unwrap().bytes()[..], bytes(&volume, "key"));

    let namespace_keys = Some(rotated.load_namespace_keys().unwrap());
    let text = generate(&Request { namespace_keys, wrapped_only: true, ..Request::default() }).unwrap();
    let new = KeyFile::new(text.as_bytes());
    let after = KeyFile::new(next.bytes());
    let key = new.load_with(&rotated).unwrap();
    assert_eq!(new.load_with(&after).unwrap().bytes(), key.bytes());
    let before = KeyFile::new(bytes(&namespace, "key"));
    assert!(matches!(new.load_with(&before), Err(KeyError::UnwrapMismatch { .. })));

    set(&mut namespace, "next", &[1; 31]);
    let error = KeyFile::new(namespace.to_string()).load_namespace_keys().unwrap_err();
    assert!(matches!(error, KeyError::FieldLength { field: "next", length_bytes: 31, .. }), "{error}");
}

#[test]
fn the_namespace_key_of_another_namespace_is_refused() {
    let (volume, _) = generated();
    let other = KeyFile::new(NamespaceKey::generate().unwrap().bytes());
    for secret in [volume.clone(), without(volume, "key")] {
        let error = KeyFile::new(secret.to_string()).load_with(&other).unwrap_err();
        assert!(matches!(error, KeyError::UnwrapMismatch { .. }), "{error}");
    }
}

#[test]
fn a_secret_must_have_every_field_in_its_length() {
    let (volume, _) = generated();
    for (field, length) in [("iv", 32), ("vuk", 80), ("hmac", 32)] {
        let error = KeyFile::new(without(volume.clone(), field).to_string()).load().unwrap_err();
        assert!(matches!(error, KeyError::MissingField { field: found, .. } if found == field), "{error}");
        for wrong in [0, length - 1, length + 1] {
            let mut secret = volume.clone();
            set(&mut secret, field, &vec![1; wrong]);
            let error = KeyFile::new(secret.to_string()).load().unwrap_err();
            assert!(
                matches!(error, KeyError::FieldLength { field: found, length_bytes, .. }
                    if found == field && length_bytes == wrong),
                "{error}"
            );
        }
    }
    let short = with_key(volume.clone(), &[1; 63]);
    let error = KeyFile::new(short.to_string()).load().unwrap_err();
    assert!(matches!(error, KeyError::FieldLength { field: "key", length_bytes: 63, .. }), "{error}");

    let error = KeyFile::new(without(volume.clone(), "key").to_string()).load().unwrap_err();
    assert!(matches!(error, KeyError::Wrapped { .. }), "{error}");
    let error = KeyFile::new(without(without(volume, "key"), "vuk").to_string()).load().unwrap_err();
    assert!(matches!(error, KeyError::MissingField { field: "key", .. }), "{error}");
}

#[test]
fn any_changed_bit_of_the_key_or_its_hmac_is_found() {
    let (volume, _) = generated();
    for field in ["key", "iv", "hmac"] {
        let good = bytes(&volume, field);
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 1 << (position % 8);
            let mut secret = volume.clone();
            set(&mut secret, field, &bad);
            let error = KeyFile::new(secret.to_string()).load().unwrap_err();
            assert!(matches!(error, KeyError::HmacMismatch { .. }), "{error}");
        }
    }
}

#[test]
fn equal_halves_are_refused_raw_and_in_a_secret() {
    let equal = [7; 64];
    let (volume, _) = generated();
    for content in [equal.to_vec(), with_key(volume, &equal).to_string().into_bytes()] {
        let error = KeyFile::new(content).load().unwrap_err();
        assert!(matches!(error, KeyError::EqualHalves { .. }), "{error}");
    }
}

#[test]
fn a_file_with_two_volume_keys_or_none_is_refused() {
    let (first, namespace) = generated();
    let (second, _) = generated();
    let join = |secrets: &[&Value]| secrets.iter().map(|secret| format!("---\n{secret}\n")).collect::<String>();
    for (content, count) in [(join(&[&first, &second, &namespace]), 2), (join(&[&namespace, &namespace]), 0)] {
        let error = KeyFile::new(content).load().unwrap_err();
        assert!(matches!(error, KeyError::NotOne { found, .. } if found == count), "{error}");
    }
}

#[test]
fn files_that_cannot_be_keys_are_refused() {
    let missing = Source::File("/nonexistent/key".into()).load(None, &Cluster::default()).unwrap_err();
    assert!(matches!(missing, KeyError::Read { .. }), "{missing}");
    let folder = Source::File("/".into()).load(None, &Cluster::default()).unwrap_err();
    assert!(matches!(folder, KeyError::Read { .. }), "{folder}");
    let endless = Source::File("/dev/zero".into()).load(None, &Cluster::default()).unwrap_err();
    assert!(matches!(endless, KeyError::TooLarge { .. }), "{endless}");
    for length in [0, 32, 63, 65, 128] {
        let error = KeyFile::new(vec![0xf5; length]).load().unwrap_err();
        assert!(matches!(error, KeyError::NotAKey { length_bytes, .. } if length_bytes == length), "{error}");
    }
}

/// Prevents an error or its source from quoting what it stumbled over, as the messages of YAML and
/// JSON readers do.
#[test]
fn no_error_contains_anything_of_a_key() {
    let (volume, namespace) = generated();
    let key = bytes(&volume, "key");
    let encoded = STANDARD.encode(&key);
    let other = with_key(volume.clone(), &key[..63]);
    let mut wrong_hmac = volume.clone();
    set(&mut wrong_hmac, "hmac", &key[..32]);
    let half = with_key(volume.clone(), &[&key[..32], &key[..32]].concat());
    let mut list = volume.clone();
    list["data"]["key"] = json!([encoded]);
    let mut cut = volume.clone();
    cut["data"]["key"] = encoded[..encoded.len() - 1].into();
    let contents = [
        encoded.clone(),
        format!("{encoded}\n{encoded}"),
        format!("kind: {encoded}"),
        format!("kind: Secret\ndata: {encoded}"),
        format!("kind: Secret\nmetadata: {encoded}"),
        format!("kind: Secret\nmetadata: {{name: {encoded}}}\ndata: {{key: {encoded}}}"),
        format!("kind: Secret\ndata: [{encoded}]"),
        format!("kind: Secret\ndata:\n  key: {encoded}\n {encoded}"),
        format!("kind: Secret\ndata:\n  key: \"{encoded}"),
        format!("{{\"kind\": \"Secret\", \"data\": \"{encoded}\"}}"),
        format!("{{\"kind\": \"Secret\", \"data\": {{\"key\": \"{encoded}\"}}"),
        other.to_string(),
        wrong_hmac.to_string(),
        half.to_string(),
        list.to_string(),
        cut.to_string(),
        without(volume.clone(), "key").to_string(),
        without(volume.clone(), "iv").to_string(),
        namespace.to_string(),
        format!("{volume}\n---\n{volume}\n"),
    ];
    let forbidden: Vec<String> = [encoded, STANDARD.encode(&key[..32]), STANDARD.encode(bytes(&namespace, "key"))]
        .iter()
        .flat_map(|text| text.as_bytes().chunks(12).map(|piece| String::from_utf8_lossy(piece).into_owned()))
        .filter(|piece| piece.len() == 12)
        .collect();
    let other_key = KeyFile::new(NamespaceKey::generate().unwrap().bytes());
    for content in contents {
        let file = KeyFile::new(&content);
        let volume_error = file.load().expect_err(&content);
        let wrapped_error = file.load_with(&other_key).expect_err(&content);
        let mut said = format!("{volume_error} {volume_error:?} {wrapped_error} {wrapped_error:?}");
        if let Err(error) = file.load_namespace_keys() {
            said += &format!("{error} {error:?}");
        }
        for piece in &forbidden {
            assert!(!said.contains(piece.as_str()), "{said} tells {piece} of {content}");
        }
    }
}

/// Prevents copies of the key, encoded or not, from staying in freed memory. The buffers of the YAML
/// reader are the ones that only the wiping allocator reaches.
#[test]
fn loading_a_key_leaves_no_encoded_copy_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key.yaml");
    // What is looked for is kept inverted, so that the search does not find itself.
    let inverted: Vec<u8> = {
        let _wiping = wiping::Wiping::start();
        let text = generate(&Request::default()).unwrap();
        fs::write(&path, text.as_bytes()).unwrap();
        let start = text.find("  key: ").unwrap() + 7;
        text.as_bytes()[start..start + 40].iter().map(|byte| !byte).collect()
    };
    let key = Source::File(path).load(None, &Cluster::default()).unwrap();
    assert_eq!(copies_in_memory(&inverted), 0, "encoded copies of the key were left behind");

    // The search itself works: it finds a text that is there.
    let planted = String::from("a text that lies once on the heap, once!");
    let inverted: Vec<u8> = planted.bytes().map(|byte| !byte).collect();
    assert!(copies_in_memory(&inverted) >= 1, "{planted}");
    drop(key);
}

/// Counts how often a text, given inverted, occurs in this process's writable memory.
fn copies_in_memory(inverted: &[u8]) -> usize {
    use std::os::unix::fs::FileExt;
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let memory = File::open("/proc/self/mem").unwrap();
    let mut page = vec![0; 64 * 1024];
    let own = page.as_ptr() as u64;
    let mut count = 0;
    for line in maps.lines().filter(|line| line.contains(" rw-p ")) {
        let (range, _) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let end = u64::from_str_radix(end, 16).unwrap();
        let mut at = u64::from_str_radix(start, 16).unwrap();
        while at < end {
            let length = page.len().min((end - at) as usize);
            // Other tests may unmap memory meanwhile, and this buffer must not find itself.
            if let Ok(read) = memory.read_at(&mut page[..length], at) {
                count += (at..)
                    .zip(page[..read].windows(inverted.len()))
                    .filter(|(address, _)| !(own..own + page.len() as u64).contains(address))
                    .filter(|(_, window)| window.iter().zip(inverted).all(|(byte, inverse)| *byte == !inverse))
                    .count();
            }
            at += (length - inverted.len().min(length - 1)) as u64;
        }
    }
    count
}
