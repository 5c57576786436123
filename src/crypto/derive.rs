//! What is derived from a volume's key, and may be known to those who must not know the key.
//!
//! Both derivations are HKDF-SHA256 (RFC 5869) with the key as input, the volume's UUID (its 16
//! bytes) as salt, and a label of their own as info: neither says anything about the key, the
//! other, or the same derivation for another volume. They are part of the disk format; a test pins
//! their values. The private half of the writer's identity is a [`WriterKey`]; it must not be known.

use std::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use hkdf::Hkdf;
use sha2::Sha256;
use uuid::Uuid;
use zeroize::{Zeroizing, zeroize_stack};

use super::xts::XtsKey;
use super::{Locked, LockedError};

/// The key check value of a volume: 32 bytes that `volume.json` keeps, by which a wrong key is
/// known before it touches the data.
pub fn key_check(key: &XtsKey, volume: Uuid) -> [u8; 32] {
    let mut check = [0; 32];
    expand(key, volume, KEY_CHECK_LABEL, &mut check);
    zeroize_stack::<STACK_BYTES>();
    check
}

/// The Ed25519 public key (RFC 8032) by which others know a holder of the volume's key.
pub fn writer_public_key(key: &XtsKey, volume: Uuid) -> [u8; 32] {
    let public = writer_public_key_inner(key, volume);
    zeroize_stack::<STACK_BYTES>();
    public
}

#[inline(never)]
fn writer_public_key_inner(key: &XtsKey, volume: Uuid) -> [u8; 32] {
    let mut seed = Zeroizing::new([0; 32]);
    expand(key, volume, WRITER_LABEL, &mut seed);
    SigningKey::from_bytes(&seed).verifying_key().to_bytes()
}

/// Proves that its holder has the volume's key, to those who know [`writer_public_key`].
///
/// Only the 32 bytes that the Ed25519 key grows from are kept, in locked memory; the key itself is there
/// for the time of one signature.
pub struct WriterKey {
    seed: Locked<[u8; 32]>,
}

impl WriterKey {
    /// Derives the one of a volume.
    ///
    /// # Errors
    ///
    /// When there is no locked memory for it.
    pub fn derive(key: &XtsKey, volume: Uuid) -> Result<WriterKey, LockedError> {
        let mut seed = Locked::new([0; 32])?;
        expand(key, volume, WRITER_LABEL, &mut seed);
        zeroize_stack::<STACK_BYTES>();
        Ok(WriterKey { seed })
    }

    /// The Ed25519 signature (RFC 8032) of a message.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let signature = self.sign_inner(message);
        zeroize_stack::<STACK_BYTES>();
        signature
    }

    #[inline(never)]
    fn sign_inner(&self, message: &[u8]) -> [u8; 64] {
        SigningKey::from_bytes(&self.seed).sign(message).to_bytes()
    }
}

impl fmt::Debug for WriterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WriterKey([redacted])")
    }
}

/// Whether a signature over a message is by the holder of the volume's key, of which `public` is the
/// [`writer_public_key`]. Weak public keys and signatures in another than the one canonical form are
/// refused.
pub fn verify_writer(public: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    let Ok(public) = VerifyingKey::from_bytes(public) else { return false };
    public.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
}

// Its own frame, so that what it leaves on the stack lies below the callers' and can be wiped.
#[inline(never)]
fn expand(key: &XtsKey, volume: Uuid, label: &str, out: &mut [u8; 32]) {
    Hkdf::<Sha256>::new(Some(volume.as_bytes()), key.bytes())
        .expand(label.as_bytes(), out)
        .expect("HKDF-SHA256 gives up to 8160 bytes");
}

const KEY_CHECK_LABEL: &str = "sealblk v1 key check";
const WRITER_LABEL: &str = "sealblk v1 writer ed25519";
const STACK_BYTES: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: Uuid = Uuid::from_u128(0x00112233_4455_4677_8899_aabbccddeeff);

    fn key(first: u8) -> XtsKey {
        let mut bytes: [u8; 64] = std::array::from_fn(|index| index as u8);
        bytes[0] = first;
        XtsKey::from_bytes(&bytes).unwrap()
    }

    /// Computed with another implementation (Python's `hmac` and `cryptography`). A change here
    /// is a change of the disk format: existing volumes would refuse their keys.
    #[test]
    fn values_are_pinned() {
        assert_eq!(
            hex(&key_check(&key(0), VOLUME)),
            "1a320abc5dbb7b863e99c85d3a9f9bcf8680807b52c0172196429929692ac7c2"
        );
        assert_eq!(
            hex(&writer_public_key(&key(0), VOLUME)),
            "cf2db6474bc242b3d7568d56fb1b8206f48d86f9cd800c78ea406a7c3f304801"
        );
    }

    /// By the same other implementation.
    #[test]
    fn a_signature_is_pinned_and_holds_for_its_message_only() {
        let writer = WriterKey::derive(&key(0), VOLUME).unwrap();
        let signature = writer.sign(b"a message");
        assert_eq!(
            hex(&signature),
            "06de7b912ddfe8dda9e767ff3217857b2216c0e6eeafbb824a6251245c425242\
             ee1bd5b36c9186967ea035bb57776408d7ce734b433c4cd481c933d5dc1eca0d"
        );
        let public = writer_public_key(&key(0), VOLUME);
        assert!(verify_writer(&public, b"a message", &signature));
        assert!(!verify_writer(&public, b"another message", &signature));
        assert!(!verify_writer(&writer_public_key(&key(1), VOLUME), b"a message", &signature));
        for bit in 0..512 {
            let mut damaged = signature;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(!verify_writer(&public, b"a message", &damaged), "bit {bit}");
        }
    }

    /// The neutral element as public key and as R, with S = 0, fits every message in the plain check.
    #[test]
    fn a_weak_public_key_proves_nothing() {
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let mut signature = [0; 64];
        signature[0] = 1;
        assert!(!verify_writer(&neutral, b"a message", &signature));
    }

    #[test]
    fn a_writer_key_is_redacted() {
        let writer = WriterKey::derive(&key(0), VOLUME).unwrap();
        assert_eq!(format!("{writer:?}"), "WriterKey([redacted])");
    }

    #[test]
    fn another_key_or_volume_gives_other_values() {
        let other = Uuid::from_u128(VOLUME.as_u128() ^ 1);
        for derive in [key_check, writer_public_key] {
            let value = derive(&key(0), VOLUME);
            assert_ne!(value, derive(&key(1), VOLUME));
            assert_ne!(value, derive(&key(0), other));
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
