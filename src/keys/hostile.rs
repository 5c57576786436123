//! Anything in the place of a key file, of a Secret, or of a claim.

use std::error::Error;
use std::path::Path;

use super::cluster::{Claim, secret_of_answer};
use super::names::{KEY_FIELD, Namespace, ObjectName};
use super::{Origin, manifest, namespace_keys, secret, volume_key, wiping};

/// Reads `bytes` as the content of a key file, and as an API server's answer: the entry of the fuzz target `keys`.
/// Whether there is a key in them, or the name of one.
///
/// # Panics
///
/// When one key is two, a page of Secrets has one without a name, or an error is more than a line.
pub fn open_hostile(bytes: &[u8]) -> bool {
    let _wiping = wiping::Wiping::start();
    let path = Path::new("key");
    let namespace = checked(namespace_keys(path, bytes));
    let key = checked(volume_key(path, bytes, None));
    let unwrapped = namespace.as_ref().and_then(|keys| checked(volume_key(path, bytes, Some(keys))));
    if let (Some(key), Some(unwrapped)) = (&key, &unwrapped) {
        assert!(key.bytes() == unwrapped.bytes(), "a Secret holds two keys");
    }
    let is_file = key.is_some() || unwrapped.is_some() || namespace.is_some();
    is_file | is_answer(bytes).unwrap_or(false)
}

fn is_answer(bytes: &[u8]) -> Option<bool> {
    let (vms, disk): (Namespace, ObjectName) = ("vms".parse().ok()?, "disk".parse().ok()?);
    let object = manifest::parse_object(Origin::cluster(&vms, &disk), bytes);
    let opened = object.is_some_and(|object| {
        let keys = checked(secret::open_namespace_keys(&object));
        checked(secret::open_volume_key(&object, keys.as_ref())).is_some() || keys.is_some()
    });
    let page = manifest::parse_page(&vms, bytes);
    let listed = page.is_some_and(|page| {
        for (name, secret) in &page.secrets {
            assert_eq!(name.as_str().parse(), Ok(name.clone()));
            let _ = (secret::has_wrapping(secret), secret::is_wrapped(secret), checked(secret.field(KEY_FIELD)));
        }
        !page.secrets.is_empty()
    });
    let claim = Claim { namespace: vms, name: disk };
    let named = secret_of_answer(claim, bytes).and_then(checked);
    Some(opened || listed || named.is_some())
}

/// What a person reads of an error is one line.
fn checked<T, E: Error>(result: Result<T, E>) -> Option<T> {
    let text = result.as_ref().err().map(E::to_string).unwrap_or_default();
    assert!(!text.contains(char::is_control), "{text:?} is no line");
    result.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus;

    /// The seeds are of `sealblk key generate`, whose keys are new each time.
    #[test]
    fn the_fuzzing_corpus_passes() {
        assert!(corpus::taken("keys", open_hostile) >= 7);
    }
}
