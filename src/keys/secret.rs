//! The Secret format: what StorageOS keeps for an encrypted volume, unchanged.
//!
//! | Secret | field | bytes | what |
//! | --- | --- | --- | --- |
//! | namespace key | `key` | 32 | random, one a namespace |
//! | | `next` | 32 | only while the key is rotated: the key that comes next |
//! | volume key | `key` | 64 | the XTS key; may be left out, then it is there only wrapped |
//! | | `iv` | 32 | random: HKDF salt and HMAC key |
//! | | `vuk` | 80 | 16-byte CBC IV ‖ AES-256-CBC of `key` without padding, under HKDF-SHA256(namespace key, salt `iv`, no info) |
//! | | `hmac` | 32 | HMAC-SHA256 of `key` under `iv` |
//!
//! Invariant: a key leaves here only if its `hmac` is right and its halves differ, whichever way it
//! was opened. A Secret that lacks a field or has one of the wrong length is refused whole, even
//! when the field would not be needed: a damaged Secret should be noticed while there is a copy.

use std::path::Path;

use aes::Aes256;
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::{Zeroizing, zeroize_stack};

use super::error::{KeyError, Origin};
use super::manifest::Secret;
use super::names::{self, ObjectName};
use crate::crypto::Locked;
use crate::crypto::xts::{XtsKey, XtsKeyError};

/// Length of a volume key.
pub const VOLUME_KEY_BYTES: usize = crate::crypto::xts::KEY_BYTES;

/// Length of a namespace key.
pub const NAMESPACE_KEY_BYTES: usize = 32;

/// The key of a namespace, which opens the wrapped keys of its volumes; in locked memory.
pub struct NamespaceKey {
    bytes: Locked<[u8; NAMESPACE_KEY_BYTES]>,
}

impl NamespaceKey {
    /// Draws a new one.
    ///
    /// # Errors
    ///
    /// [`KeyError::Random`] and [`KeyError::Memory`].
    pub fn generate() -> Result<NamespaceKey, KeyError> {
        let mut bytes = Locked::new([0; NAMESPACE_KEY_BYTES])?;
        getrandom::fill(&mut *bytes).map_err(KeyError::Random)?;
        Ok(NamespaceKey { bytes })
    }

    /// The 32 bytes.
    pub fn bytes(&self) -> &[u8; NAMESPACE_KEY_BYTES] {
        &self.bytes
    }

    /// Copies a key of the right length into locked memory.
    pub(super) fn new(raw: &[u8]) -> Result<NamespaceKey, KeyError> {
        let mut bytes = Locked::new([0; NAMESPACE_KEY_BYTES])?;
        bytes.copy_from_slice(raw);
        Ok(NamespaceKey { bytes })
    }
}

impl std::fmt::Debug for NamespaceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NamespaceKey([redacted])")
    }
}

/// What opens the wrapped keys of a namespace: its key and, while that is rotated, the one that comes
/// next, under which its volume keys are being wrapped anew one after the other.
#[derive(Debug)]
pub struct NamespaceKeys {
    /// The namespace's key.
    pub current: NamespaceKey,
    /// The key that the namespace is on its way to.
    pub next: Option<NamespaceKey>,
}

impl NamespaceKeys {
    /// The key that a new volume key is wrapped under.
    pub fn for_wrapping(&self) -> &NamespaceKey {
        self.next.as_ref().unwrap_or(&self.current)
    }

    /// The keys that a wrapped key may open under.
    pub fn for_opening(&self) -> impl Iterator<Item = &NamespaceKey> {
        std::iter::once(&self.current).chain(&self.next)
    }
}

impl From<NamespaceKey> for NamespaceKeys {
    fn from(current: NamespaceKey) -> NamespaceKeys {
        NamespaceKeys { current, next: None }
    }
}

/// What a volume key's Secret holds beside the key itself. None of it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrapping {
    /// HKDF salt and HMAC key.
    pub iv: [u8; IV_BYTES],
    /// The wrapped key.
    pub vuk: [u8; VUK_BYTES],
    /// What a clear key is checked against.
    pub hmac: [u8; HMAC_BYTES],
}

impl Wrapping {
    /// The fields of a Secret.
    pub fn fields(&self) -> [(&'static str, Option<&[u8]>); 3] {
        [("iv", Some(&self.iv)), ("vuk", Some(&self.vuk)), ("hmac", Some(&self.hmac))]
    }
}

/// Wraps a volume key under a namespace key, with fresh random values.
///
/// # Errors
///
/// [`KeyError::Random`].
pub fn wrap(key: &XtsKey, namespace_key: &NamespaceKey) -> Result<Wrapping, KeyError> {
    let mut iv = [0; IV_BYTES];
    let mut cbc_iv = [0; CBC_IV_BYTES];
    getrandom::fill(&mut iv).map_err(KeyError::Random)?;
    getrandom::fill(&mut cbc_iv).map_err(KeyError::Random)?;
    let mut vuk = [0; VUK_BYTES];
    vuk[..CBC_IV_BYTES].copy_from_slice(&cbc_iv);
    encrypt(key.bytes(), namespace_key, &iv, &cbc_iv, &mut vuk[CBC_IV_BYTES..]);
    let hmac = mac(&iv, key.bytes()).finalize().into_bytes().into();
    zeroize_stack::<STACK_BYTES>();
    Ok(Wrapping { iv, vuk, hmac })
}

/// Whether it takes the namespace's key to open a volume key's Secret.
pub fn is_wrapped(secret: &Secret) -> bool {
    secret.has("vuk") && !secret.has(names::KEY_FIELD)
}

/// Whether the wrapped key of a Secret opens under this namespace key. Not if it is damaged.
pub fn is_wrapped_under(secret: &Secret, namespace_key: &NamespaceKey) -> bool {
    let field = |name, length| optional(secret, name, length).ok().flatten();
    let fields = (field("iv", IV_BYTES), field("vuk", VUK_BYTES), field("hmac", HMAC_BYTES));
    let (Some(iv), Some(vuk), Some(hmac)) = fields else { return false };
    let opens = mac(&iv, &decrypt(&vuk, namespace_key, &iv)).verify_slice(&hmac).is_ok();
    zeroize_stack::<STACK_BYTES>();
    opens
}

/// Opens the volume key that a Secret holds, in the clear or wrapped.
///
/// # Errors
///
/// [`KeyError`] naming the Secret and the field that is not right.
pub fn open_volume_key(secret: &Secret, namespace_keys: Option<&NamespaceKeys>) -> Result<XtsKey, KeyError> {
    let origin = || secret.origin().clone();
    let clear = optional(secret, names::KEY_FIELD, VOLUME_KEY_BYTES)?;
    if clear.is_none() && !secret.has("vuk") {
        return Err(KeyError::MissingField { origin: origin(), field: names::KEY_FIELD });
    }
    let iv = required(secret, "iv", IV_BYTES)?;
    let vuk = required(secret, "vuk", VUK_BYTES)?;
    let hmac = required(secret, "hmac", HMAC_BYTES)?;
    let matches = |key: &[u8]| mac(&iv, key).verify_slice(&hmac).is_ok();

    let unwrapped = namespace_keys.map(|keys| {
        let mut candidates = keys.for_opening().map(|key| decrypt(&vuk, key, &iv));
        candidates.find(|candidate| matches(candidate))
    });
    let key = match (clear, unwrapped) {
        (Some(clear), _) if !matches(&clear) => Err(KeyError::HmacMismatch { origin: origin() }),
        (Some(clear), Some(Some(unwrapped))) if bool::from(clear.ct_eq(&unwrapped)) => Ok(clear),
        (None, Some(Some(unwrapped))) => Ok(unwrapped),
        (_, Some(_)) => Err(KeyError::UnwrapMismatch { origin: origin() }),
        (Some(clear), None) => Ok(clear),
        (None, None) => Err(KeyError::Wrapped { origin: origin() }),
    };
    zeroize_stack::<STACK_BYTES>();
    xts_key(&key?, origin)
}

/// Opens the namespace keys that a Secret holds: the one in use and, during a rotation, the next.
///
/// # Errors
///
/// [`KeyError`] naming the Secret and the field that is not right.
pub fn open_namespace_keys(secret: &Secret) -> Result<NamespaceKeys, KeyError> {
    let current = required(secret, names::KEY_FIELD, NAMESPACE_KEY_BYTES)?;
    let next = optional(secret, names::NEXT_KEY_FIELD, NAMESPACE_KEY_BYTES)?;
    Ok(NamespaceKeys {
        current: NamespaceKey::new(&current)?,
        next: next.as_deref().map(|next| NamespaceKey::new(next)).transpose()?,
    })
}

/// Moves a volume key into protected memory.
///
/// # Errors
///
/// [`KeyError::EqualHalves`], [`KeyError::FieldLength`] and [`KeyError::Memory`].
pub fn xts_key(bytes: &[u8], origin: impl FnOnce() -> Origin) -> Result<XtsKey, KeyError> {
    XtsKey::from_bytes(bytes).map_err(|error| match error {
        XtsKeyError::EqualHalves => KeyError::EqualHalves { origin: origin() },
        XtsKeyError::Length(length_bytes) => {
            KeyError::FieldLength { origin: origin(), field: "key", length_bytes, expected_bytes: VOLUME_KEY_BYTES }
        }
        XtsKeyError::Memory(error) => KeyError::Memory(error),
        XtsKeyError::Random(error) => KeyError::Random(error),
    })
}

/// The Secret of a file that holds the volume key. A file with several, as `key generate` writes it,
/// must have one with a wrapping's fields; a file with a single Secret means that one.
///
/// # Errors
///
/// [`KeyError::NotOne`].
pub fn pick_volume_secret(path: &Path, secrets: Vec<Secret>) -> Result<Secret, KeyError> {
    pick(path, secrets, "volume", has_wrapping)
}

/// The Secret of a file that holds the namespace key.
///
/// # Errors
///
/// [`KeyError::NotOne`].
pub fn pick_namespace_secret(path: &Path, secrets: Vec<Secret>) -> Result<Secret, KeyError> {
    pick(path, secrets, "namespace", |secret| secret.has("key") && !has_wrapping(secret))
}

fn pick(
    path: &Path,
    mut secrets: Vec<Secret>,
    wanted: &'static str,
    fits: impl Fn(&Secret) -> bool,
) -> Result<Secret, KeyError> {
    if secrets.len() > 1 {
        secrets.retain(fits);
    }
    let found = secrets.len();
    match (secrets.pop(), found) {
        (Some(secret), 1) => Ok(secret),
        _ => Err(KeyError::NotOne { path: path.to_owned(), found, wanted }),
    }
}

/// Whether a Secret has any field of those that only a volume key's has.
pub fn has_wrapping(secret: &Secret) -> bool {
    wrapping_fields(secret) > 0
}

/// Whether a Secret of a namespace is a volume's key. One field alone, such as `hmac`, may also be what another program
/// calls a secret of its own.
pub fn is_of_volume(name: &ObjectName, secret: &Secret) -> bool {
    let least = if name.as_str().starts_with(names::VOLUME_KEY_SECRET_PREFIX) { 1 } else { 2 };
    wrapping_fields(secret) >= least
}

fn wrapping_fields(secret: &Secret) -> usize {
    ["iv", "vuk", "hmac"].into_iter().filter(|field| secret.has(field)).count()
}

fn required(secret: &Secret, field: &'static str, expected_bytes: usize) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    optional(secret, field, expected_bytes)?
        .ok_or_else(|| KeyError::MissingField { origin: secret.origin().clone(), field })
}

fn optional(
    secret: &Secret,
    field: &'static str,
    expected_bytes: usize,
) -> Result<Option<Zeroizing<Vec<u8>>>, KeyError> {
    match secret.field(field)? {
        Some(value) if value.len() != expected_bytes => {
            let origin = secret.origin().clone();
            Err(KeyError::FieldLength { origin, field, length_bytes: value.len(), expected_bytes })
        }
        value => Ok(value),
    }
}

// The functions below keep frames of their own, so that what they leave on the stack lies below
// their callers' and can be wiped there.

#[inline(never)]
fn mac(iv: &[u8], key: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(iv).expect("HMAC takes a key of any length");
    mac.update(key);
    mac
}

#[inline(never)]
fn encrypt(
    key: &[u8; VOLUME_KEY_BYTES],
    namespace_key: &NamespaceKey,
    iv: &[u8],
    cbc_iv: &[u8; CBC_IV_BYTES],
    wrapped: &mut [u8],
) {
    let mut blocks = Zeroizing::new(*key);
    let wrapping_key = wrapping_key(namespace_key, iv);
    let mut cipher = cbc::Encryptor::<Aes256>::new((&*wrapping_key).into(), cbc_iv.into());
    for block in blocks.as_chunks_mut::<CBC_IV_BYTES>().0 {
        cipher.encrypt_block(block.into());
    }
    wrapped.copy_from_slice(&*blocks);
}

#[inline(never)]
fn decrypt(vuk: &[u8], namespace_key: &NamespaceKey, iv: &[u8]) -> Zeroizing<Vec<u8>> {
    let (cbc_iv, wrapped) = vuk.split_first_chunk::<CBC_IV_BYTES>().expect("the length is checked");
    let mut blocks = Zeroizing::new(wrapped.to_vec());
    let wrapping_key = wrapping_key(namespace_key, iv);
    let mut cipher = cbc::Decryptor::<Aes256>::new((&*wrapping_key).into(), cbc_iv.into());
    for block in blocks.as_chunks_mut::<CBC_IV_BYTES>().0 {
        cipher.decrypt_block(block.into());
    }
    blocks
}

fn wrapping_key(namespace_key: &NamespaceKey, iv: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(Some(iv), namespace_key.bytes())
        .expand(&[], &mut *key)
        .expect("HKDF-SHA256 gives up to 8160 bytes");
    key
}

const IV_BYTES: usize = 32;
const CBC_IV_BYTES: usize = 16;
const VUK_BYTES: usize = CBC_IV_BYTES + VOLUME_KEY_BYTES;
const HMAC_BYTES: usize = 32;
const STACK_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use openssl::hash::MessageDigest;
    use openssl::md::Md;
    use openssl::pkey::{Id, PKey};
    use openssl::pkey_ctx::PkeyCtx;
    use openssl::sign::Signer;
    use openssl::symm::{Cipher, Crypter, Mode};

    use super::*;

    /// HKDF, CBC and HMAC of OpenSSL, put together from the format's description.
    fn openssl_unwrap(wrapping: &Wrapping, namespace_key: &[u8]) -> Vec<u8> {
        let mut wrapping_key = [0; 32];
        let mut hkdf = PkeyCtx::new_id(Id::HKDF).unwrap();
        hkdf.derive_init().unwrap();
        hkdf.set_hkdf_md(Md::sha256()).unwrap();
        hkdf.set_hkdf_key(namespace_key).unwrap();
        hkdf.set_hkdf_salt(&wrapping.iv).unwrap();
        hkdf.derive(Some(&mut wrapping_key)).unwrap();

        let cipher = Cipher::aes_256_cbc();
        let mut crypter = Crypter::new(cipher, Mode::Decrypt, &wrapping_key, Some(&wrapping.vuk[..16])).unwrap();
        crypter.pad(false);
        let mut key = vec![0; 64 + 16];
        let mut length = crypter.update(&wrapping.vuk[16..], &mut key).unwrap();
        length += crypter.finalize(&mut key[length..]).unwrap();
        key.truncate(length);
        key
    }

    #[test]
    fn openssl_opens_what_is_wrapped_here() {
        let key = XtsKey::generate().unwrap();
        let namespace_key = NamespaceKey::generate().unwrap();
        let wrapping = wrap(&key, &namespace_key).unwrap();
        assert_eq!(openssl_unwrap(&wrapping, namespace_key.bytes()), key.bytes());

        let hmac_key = PKey::hmac(&wrapping.iv).unwrap();
        let mut signer = Signer::new(MessageDigest::sha256(), &hmac_key).unwrap();
        signer.update(key.bytes()).unwrap();
        assert_eq!(signer.sign_to_vec().unwrap(), wrapping.hmac);
    }

    #[test]
    fn what_is_wrapped_unwraps_under_the_same_namespace_key_only() {
        let key = XtsKey::generate().unwrap();
        let namespace_key = NamespaceKey::generate().unwrap();
        let wrapping = wrap(&key, &namespace_key).unwrap();
        assert_eq!(decrypt(&wrapping.vuk, &namespace_key, &wrapping.iv)[..], key.bytes()[..]);
        let other = NamespaceKey::generate().unwrap();
        assert_ne!(decrypt(&wrapping.vuk, &other, &wrapping.iv)[..], key.bytes()[..]);
    }

    #[test]
    fn each_wrapping_is_fresh() {
        let key = XtsKey::generate().unwrap();
        let namespace_key = NamespaceKey::generate().unwrap();
        let first = wrap(&key, &namespace_key).unwrap();
        let second = wrap(&key, &namespace_key).unwrap();
        assert_ne!(first.iv, second.iv);
        assert_ne!(first.vuk[..16], second.vuk[..16]);
    }

    #[test]
    fn a_namespace_key_is_redacted() {
        assert_eq!(format!("{:?}", NamespaceKey::generate().unwrap()), "NamespaceKey([redacted])");
    }
}
