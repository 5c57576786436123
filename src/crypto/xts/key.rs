//! The key of a volume: 64 bytes, data key first, tweak key second.

use std::fmt;

use zeroize::Zeroize;

use crate::crypto::{Locked, LockedError};

/// Length of an AES-256-XTS key in bytes.
pub const KEY_BYTES: usize = 64;

/// An AES-256-XTS key: data key ‖ tweak key, the order of IEEE 1619-2007 §5.1, in locked memory.
///
/// The halves always differ. Keys with equal halves are refused: with them the tweak of data unit
/// *n* is also the ciphertext of *n* as a plaintext block, which breaks XTS's security proof
/// (FIPS 140-3 implementation guidance C.I requires the check).
pub struct XtsKey {
    bytes: Locked<[u8; KEY_BYTES]>,
}

/// Why some bytes cannot be an XTS key. No variant carries a key byte.
#[derive(Debug, thiserror::Error)]
pub enum XtsKeyError {
    /// Not 64 bytes.
    #[error(
        "the key is {0} bytes long but AES-256-XTS takes {KEY_BYTES}; use the raw key, neither hex nor base64, without a trailing newline"
    )]
    Length(usize),
    /// Both halves are the same.
    #[error("the two halves of the key are equal, which XTS forbids; generate a key of 64 random bytes")]
    EqualHalves,
    /// No locked memory for the key.
    #[error(transparent)]
    Memory(#[from] LockedError),
    /// The kernel's random number generator failed.
    #[error("cannot draw a random key: {0}; check that getrandom(2) is allowed in this sandbox")]
    Random(getrandom::Error),
}

impl XtsKey {
    /// Copies a key of exactly 64 bytes into locked memory. Wiping `bytes` is up to the caller.
    ///
    /// # Errors
    ///
    /// [`XtsKeyError::Length`], [`XtsKeyError::EqualHalves`] or [`XtsKeyError::Memory`].
    pub fn from_bytes(bytes: &[u8]) -> Result<XtsKey, XtsKeyError> {
        if bytes.len() != KEY_BYTES {
            return Err(XtsKeyError::Length(bytes.len()));
        }
        let mut key = XtsKey::blank()?;
        key.bytes.copy_from_slice(bytes);
        key.checked()
    }

    /// Draws a new key from the kernel's random number generator, straight into locked memory.
    ///
    /// # Errors
    ///
    /// [`XtsKeyError::Random`] or [`XtsKeyError::Memory`].
    pub fn generate() -> Result<XtsKey, XtsKeyError> {
        let mut key = XtsKey::blank()?;
        getrandom::fill(&mut *key.bytes).map_err(XtsKeyError::Random)?;
        key.checked()
    }

    /// The 64 bytes: data key ‖ tweak key.
    pub fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.bytes
    }

    /// The first half, which encrypts data (Key1 of the standard).
    pub(super) fn data_key(&self) -> &[u8; KEY_BYTES / 2] {
        self.halves().0
    }

    /// The second half, which encrypts unit indices (Key2 of the standard).
    pub(super) fn tweak_key(&self) -> &[u8; KEY_BYTES / 2] {
        self.halves().1
    }

    fn halves(&self) -> (&[u8; KEY_BYTES / 2], &[u8; KEY_BYTES / 2]) {
        let (data, tweak) = self.bytes.split_at(KEY_BYTES / 2);
        (data.try_into().expect("half of 64"), tweak.try_into().expect("half of 64"))
    }

    fn blank() -> Result<XtsKey, XtsKeyError> {
        let bytes = Locked::new([0; KEY_BYTES])?;
        Ok(XtsKey { bytes })
    }

    fn checked(self) -> Result<XtsKey, XtsKeyError> {
        let (data, tweak) = self.halves();
        // Folded rather than compared: the time must not tell where the halves first differ.
        let mut difference = data.iter().zip(tweak).fold(0, |difference, (a, b)| difference | (a ^ b));
        let equal = difference == 0;
        difference.zeroize();
        if equal {
            return Err(XtsKeyError::EqualHalves);
        }
        Ok(self)
    }
}

impl fmt::Debug for XtsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("XtsKey([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting() -> [u8; KEY_BYTES] {
        std::array::from_fn(|index| index as u8)
    }

    #[test]
    fn keeps_its_bytes_in_order() {
        let key = XtsKey::from_bytes(&counting()).unwrap();
        assert_eq!(key.bytes(), &counting());
        assert_eq!(key.data_key()[..], counting()[..32]);
        assert_eq!(key.tweak_key()[..], counting()[32..]);
    }

    #[test]
    fn refuses_other_lengths() {
        for length in [0, 1, 32, 63, 65, 128] {
            match XtsKey::from_bytes(&vec![1; length]) {
                Err(XtsKeyError::Length(told)) => assert_eq!(told, length),
                other => panic!("{length} bytes gave {other:?}"),
            }
        }
    }

    #[test]
    fn refuses_equal_halves_and_only_those() {
        let mut bytes = [7; KEY_BYTES];
        assert!(matches!(XtsKey::from_bytes(&bytes), Err(XtsKeyError::EqualHalves)));
        for index in 0..KEY_BYTES {
            bytes[index] ^= 0x80;
            assert!(XtsKey::from_bytes(&bytes).is_ok(), "byte {index} differs");
            bytes[index] ^= 0x80;
        }
    }

    #[test]
    fn generated_keys_differ() {
        let [a, b] = [XtsKey::generate().unwrap(), XtsKey::generate().unwrap()];
        assert_ne!(a.bytes(), b.bytes());
    }

    #[test]
    fn prints_no_byte() {
        let key = XtsKey::from_bytes(&counting()).unwrap();
        assert_eq!(format!("{key:?}"), "XtsKey([redacted])");
    }
}
