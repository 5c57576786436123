//! What OpenSSL makes of a volume's plaintext: the independent implementation that the data file
//! is held against, sector by sector.

use openssl::symm::{Cipher, Crypter, Mode};

/// Seals `plaintext`, whose first byte is the first of data unit `first_unit`, with AES-256-XTS:
/// units of `unit_size` bytes, the unit's index as a little-endian 128-bit tweak (IEEE 1619).
pub fn seal(key: &[u8], unit_size: usize, first_unit: u64, plaintext: &[u8]) -> Vec<u8> {
    assert_eq!(plaintext.len() % unit_size, 0, "whole data units only");
    let cipher = Cipher::aes_256_xts();
    let mut sealed = Vec::with_capacity(plaintext.len());
    for (index, unit) in (first_unit..).zip(plaintext.chunks(unit_size)) {
        let tweak = u128::from(index).to_le_bytes();
        let mut crypter = Crypter::new(cipher, Mode::Encrypt, key, Some(&tweak)).expect("a cipher");
        crypter.pad(false);
        let mut output = vec![0; unit.len() + cipher.block_size()];
        let length = crypter.update(unit, &mut output).expect("encryption");
        let tail = crypter.finalize(&mut output[length..]).expect("encryption");
        sealed.extend_from_slice(&output[..length + tail]);
    }
    sealed
}
