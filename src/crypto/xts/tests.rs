//! Every implementation against the standard's vectors, OpenSSL, and the `xts-mode` crate.

use aes::Aes256;
use aes::cipher::KeyInit;
use openssl::symm::{Cipher, Crypter, Mode};
use proptest::prelude::*;
use xts_mode::{Xts128, get_tweak_default};

use super::*;

#[test]
fn vectors_of_the_standard() {
    let key = key_from_hex(concat!(
        "2718281828459045235360287471352662497757247093699959574966967627",
        "3141592653589793238462643383279502884197169399375105820974944592",
    ));
    let plaintext: Vec<u8> = (0..512).map(|index| index as u8).collect();
    let mut vectors = 0;
    for line in include_str!("ieee1619.txt").lines() {
        let Some((unit, ciphertext)) = line.split_once(' ').filter(|_| !line.starts_with('#')) else {
            continue;
        };
        let unit = u64::from_str_radix(unit, 16).unwrap();
        let ciphertext = bytes_from_hex(ciphertext);
        for xts in every_implementation(&key) {
            let mut data = plaintext.clone();
            xts.encrypt(&mut data, 512, unit);
            assert_eq!(data, ciphertext, "{xts:?}, unit {unit:#x}");
            xts.decrypt(&mut data, 512, unit);
            assert_eq!(data, plaintext, "{xts:?}, unit {unit:#x}");
        }
        vectors += 1;
    }
    assert_eq!(vectors, 5);
}

/// One call: its shape, where its buffers start, and what it should give.
#[derive(Debug)]
struct Call {
    seed: u8,
    unit_size: usize,
    units: usize,
    first_unit: u64,
    src_offset: usize,
    dst_offset: usize,
}

fn call() -> impl Strategy<Value = Call> {
    let unit_size = prop_oneof![
        3 => Just(512usize),
        3 => Just(4096usize),
        2 => (1usize..=256).prop_map(|blocks| blocks * BLOCK_BYTES),
    ];
    let first_unit = prop_oneof![
        any::<u64>(),
        0u64..100,
        (0u64..200).prop_map(|below| u64::MAX - below),
        (0u64..200).prop_map(|above| (1 << 32) - 100 + above),
    ];
    (unit_size, first_unit, any::<u8>(), 0usize..64, 0usize..64).prop_flat_map(
        |(unit_size, first_unit, seed, src_offset, dst_offset)| {
            let units_max = (70_000 / unit_size).min(150);
            (0..=units_max).prop_map(move |units| Call { seed, unit_size, units, first_unit, src_offset, dst_offset })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_implementation_agrees_with_xts_mode_and_openssl(call in call()) {
        check(&call)?;
    }
}

/// Every number of units up to some, so that no width of any inner loop is left to chance.
#[test]
fn every_short_length_agrees() {
    for unit_size in [16, 32, 48, 64, 80, 496, 512, 528, 1024, 4096] {
        for units in 0..=70 {
            let call = Call {
                seed: units as u8,
                unit_size,
                units,
                first_unit: u64::MAX - 3,
                src_offset: units % 64,
                dst_offset: (units * 5) % 64,
            };
            check(&call).unwrap();
        }
    }
}

#[test]
fn a_long_unit_agrees() {
    let call = Call { seed: 9, unit_size: 1 << 20, units: 2, first_unit: 77, src_offset: 3, dst_offset: 0 };
    check(&call).unwrap();
}

#[test]
fn lengths_that_are_not_whole_units_are_refused() {
    let key = key_from_seed(1);
    for xts in every_implementation(&key) {
        for (bytes, unit_size) in [(512, 0), (512, 8), (512, 100), (500, 512), (768, 512)] {
            let attempt = std::panic::catch_unwind(|| {
                xts.encrypt(&mut vec![0; bytes], unit_size, 0);
            });
            assert!(attempt.is_err(), "{bytes} bytes in units of {unit_size}");
        }
    }
    let xts = Xts::new(&key).unwrap();
    let above = UNIT_BYTES_MAX + BLOCK_BYTES;
    assert!(std::panic::catch_unwind(|| xts.encrypt(&mut vec![0; above], above, 0)).is_err());
}

#[test]
fn the_default_is_the_first_available() {
    let key = key_from_seed(2);
    let available = Implementation::available();
    assert_eq!(Xts::new(&key).unwrap().implementation(), available[0]);
    assert!(available.contains(&Implementation::Portable));
}

#[test]
fn implementations_have_short_names() {
    assert_eq!(Implementation::VaesAvx512.to_string(), "vaes-avx512");
    assert_eq!(Implementation::VaesAvx2.to_string(), "vaes-avx2");
    assert_eq!(Implementation::Portable.to_string(), "portable");
    assert_eq!(format!("{:>12}", Implementation::Portable), "    portable");
    assert_eq!(Direction::Decrypt.to_string(), "decrypt");
}

#[test]
fn what_is_not_available_is_refused_by_name() {
    let key = key_from_seed(4);
    for implementation in [Implementation::VaesAvx512, Implementation::VaesAvx2, Implementation::Portable] {
        let made = Xts::with_implementation(&key, implementation);
        if Implementation::available().contains(&implementation) {
            assert_eq!(made.unwrap().implementation(), implementation);
        } else {
            let text = made.unwrap_err().to_string();
            assert!(text.contains(implementation.name()), "{text}");
        }
    }
}

#[test]
fn debug_prints_the_implementation_and_no_key() {
    let xts = Xts::with_implementation(&key_from_seed(3), Implementation::Portable).unwrap();
    assert_eq!(format!("{xts:?}"), "Xts(portable, [redacted])");
}

fn check(call: &Call) -> Result<(), TestCaseError> {
    let key = key_from_seed(call.seed);
    let len = call.units * call.unit_size;
    let source: Vec<u8> = (0..len).map(|index| (index * 31 + index / 256 * 7) as u8 ^ call.seed).collect();

    for direction in [Direction::Encrypt, Direction::Decrypt] {
        let expected = by_xts_mode(&key, direction, &source, call);
        prop_assert_eq!(&expected, &by_openssl(&key, direction, &source, call));
        for xts in every_implementation(&key) {
            let mut src = Guarded::new(&source, call.src_offset);
            let mut dst = Guarded::new(&vec![0; len], call.dst_offset);
            // SAFETY: two buffers of `len` bytes, apart from each other.
            unsafe {
                xts.apply_raw(
                    direction,
                    src.data().as_ptr(),
                    dst.data().as_mut_ptr(),
                    len,
                    call.unit_size,
                    call.first_unit,
                );
            }
            prop_assert!(dst.data() == expected, "{direction} by {xts:?}");
            prop_assert!(src.data() == source, "source changed by {xts:?}");
            xts.apply_in_place(direction, src.data(), call.unit_size, call.first_unit);
            prop_assert!(src.data() == expected, "{direction} in place by {xts:?}");
            prop_assert!(src.intact() && dst.intact(), "{xts:?} wrote outside");
        }
    }
    Ok(())
}

/// A buffer that starts at a given offset from a 64-byte boundary, between bytes that must stay.
struct Guarded {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Guarded {
    fn new(data: &[u8], offset: usize) -> Guarded {
        let mut bytes = vec![GUARD; data.len() + 256];
        let start = 64 + bytes.as_ptr().align_offset(64) + offset;
        bytes[start..start + data.len()].copy_from_slice(data);
        Guarded { bytes, start, len: data.len() }
    }

    fn data(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.len]
    }

    fn intact(&self) -> bool {
        let (before, rest) = self.bytes.split_at(self.start);
        let after = &rest[self.len..];
        before.iter().chain(after).all(|&byte| byte == GUARD)
    }
}

const GUARD: u8 = 0xc3;

fn by_xts_mode(key: &XtsKey, direction: Direction, data: &[u8], call: &Call) -> Vec<u8> {
    let cipher = |half: &[u8]| Aes256::new_from_slice(half).unwrap();
    let xts = Xts128::new(cipher(key.data_key()), cipher(key.tweak_key()));
    let (mut data, first) = (data.to_vec(), u128::from(call.first_unit));
    match direction {
        Direction::Encrypt => xts.encrypt_area(&mut data, call.unit_size, first, get_tweak_default),
        Direction::Decrypt => xts.decrypt_area(&mut data, call.unit_size, first, get_tweak_default),
    }
    data
}

fn by_openssl(key: &XtsKey, direction: Direction, data: &[u8], call: &Call) -> Vec<u8> {
    let mode = match direction {
        Direction::Encrypt => Mode::Encrypt,
        Direction::Decrypt => Mode::Decrypt,
    };
    let mut out = vec![0; data.len()];
    let units = data.chunks_exact(call.unit_size).zip(out.chunks_exact_mut(call.unit_size));
    for (index, (unit, out)) in units.enumerate() {
        let number = u128::from(call.first_unit) + index as u128;
        let iv = number.to_le_bytes();
        let mut crypter = Crypter::new(Cipher::aes_256_xts(), mode, key.bytes(), Some(&iv)).unwrap();
        // The binding wants room for one block more than it fills.
        let mut padded = vec![0; unit.len() + BLOCK_BYTES];
        assert_eq!(crypter.update(unit, &mut padded).unwrap(), unit.len());
        out.copy_from_slice(&padded[..unit.len()]);
    }
    out
}

fn every_implementation(key: &XtsKey) -> impl Iterator<Item = Xts> {
    Implementation::available().iter().map(|&implementation| Xts::with_implementation(key, implementation).unwrap())
}

fn key_from_seed(seed: u8) -> XtsKey {
    let bytes: [u8; KEY_BYTES] = std::array::from_fn(|index| (index as u8 + 1).wrapping_mul(seed | 1));
    XtsKey::from_bytes(&bytes).unwrap()
}

fn key_from_hex(hex: &str) -> XtsKey {
    XtsKey::from_bytes(&bytes_from_hex(hex)).unwrap()
}

fn bytes_from_hex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|index| u8::from_str_radix(&hex[index..index + 2], 16).unwrap()).collect()
}
