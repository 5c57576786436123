//! Tests that no key is left behind on the stack.
//!
//! Locked memory would be in vain if the compiler spilled round keys to a worker's stack, which
//! can be swapped and dumped. These tests run the cipher on a thread whose stack they own, and
//! search that stack afterwards.

use std::hint::black_box;
use std::ptr;

use super::*;

#[test]
fn the_search_finds_a_key_that_is_left() {
    let key = key();
    let left = residue(&key, || {
        let mut frame = [0u8; 4096];
        frame[1001..1001 + 32].copy_from_slice(key.tweak_key());
        black_box(&mut frame);
    });
    assert!(left >= 2, "found {left} round keys");
}

#[test]
fn making_a_key_and_expanding_it_leave_none() {
    let bytes = *key().bytes();
    for &implementation in Implementation::available() {
        let left = residue(&key(), || {
            let key = XtsKey::from_bytes(&bytes).unwrap();
            black_box(Xts::with_implementation(&key, implementation).unwrap());
        });
        assert_eq!(left, 0, "{implementation}");
    }
}

#[test]
fn encrypting_and_decrypting_leave_none() {
    let key = key();
    for &implementation in Implementation::available() {
        let xts = Xts::with_implementation(&key, implementation).unwrap();
        for unit_size in [512, 4096, 1008] {
            for units in [1, 6, 12, 70] {
                for direction in [Direction::Encrypt, Direction::Decrypt] {
                    let mut data = vec![0; unit_size * units];
                    let left = residue(&key, || {
                        xts.apply_in_place(direction, &mut data, unit_size, 5);
                    });
                    assert_eq!(left, 0, "{implementation}: {direction} {units} of {unit_size} bytes");
                }
            }
        }
    }
}

#[test]
fn deriving_and_testing_leave_none() {
    let key = key();
    let volume = uuid::Uuid::from_u128(7);
    let left = residue(&key, || {
        black_box(crate::crypto::derive::key_check(&key, volume));
        black_box(crate::crypto::derive::writer_public_key(&key, volume));
    });
    assert_eq!(left, 0, "derive");
    let xts = Xts::new(&key).unwrap();
    let left = residue(&key, || crate::crypto::self_test::run(&xts, &key).unwrap());
    assert_eq!(left, 0, "self_test");
}

/// The key schedule that these tests search with, held to the standard's example (appendix A.3).
#[test]
fn round_keys_are_those_of_the_standard() {
    let key = 0x603deb1015ca71be2b73aef0857d7781_u128.to_be_bytes();
    let rest = 0x1f352c073b6108d72d9810a30914dff4_u128.to_be_bytes();
    let keys = expanded(&[key, rest].concat().try_into().unwrap());
    assert_eq!(keys.len(), 15);
    assert_eq!(u128::from_be_bytes(keys[2]), 0x9ba354118e6925afa51a8b5f2067fcde);
    assert_eq!(u128::from_be_bytes(keys[14]), 0xfe4890d1e6188d0b046df344706c631e);
    // The example of MixColumns in appendix B, backwards.
    let mixed = 0x046681e5e0cb199a48f8d37a2806264c_u128.to_be_bytes();
    assert_eq!(u128::from_be_bytes(inverse_mix_columns(mixed)), 0xd4bf5d30e0b452aeb84111f11e2798e5);
}

fn key() -> XtsKey {
    XtsKey::from_bytes(&std::array::from_fn::<u8, 64, _>(|index| (index as u8).wrapping_mul(37) ^ 0x6b)).unwrap()
}

/// How many places of the stack hold a round key of `key` after `work` has run on it. The key
/// itself is its own first round keys.
fn residue(key: &XtsKey, work: impl FnOnce() + Send) -> usize {
    let keys = round_keys(key);
    let stack = stack_after(work);
    stack.windows(16).filter(|window| keys.iter().any(|key| key == window)).count()
}

/// All round keys of both halves (FIPS 197 §5.2), and, for decryption in the form of the equivalent
/// inverse cipher (§5.3.5), those of the data key through InvMixColumns.
fn round_keys(key: &XtsKey) -> Vec<[u8; 16]> {
    let [data, tweak] = [key.data_key(), key.tweak_key()].map(expanded);
    let inverse: Vec<_> = data[1..14].iter().map(|key| inverse_mix_columns(*key)).collect();
    [data, tweak, inverse].concat()
}

fn expanded(key: &[u8; 32]) -> Vec<[u8; 16]> {
    let mut words = key.as_chunks::<4>().0.to_vec();
    let mut constant = 1;
    for index in 8..60 {
        let mut word: [u8; 4] = words[index - 1];
        if index % 8 == 0 {
            word.rotate_left(1);
        }
        if index % 4 == 0 {
            word = word.map(substitute);
        }
        if index % 8 == 0 {
            word[0] ^= constant;
            constant = product(constant, 2);
        }
        words.push(std::array::from_fn(|byte| word[byte] ^ words[index - 8][byte]));
    }
    words.as_flattened().as_chunks().0.to_vec()
}

/// The S-box (§5.1.1): the inverse in GF(2^8), which is the 254th power, through an affine map.
fn substitute(byte: u8) -> u8 {
    let inverse = (0..254).fold(1, |power, _| product(power, byte));
    (1..5).fold(0x63 ^ inverse, |sum, by| sum ^ inverse.rotate_left(by))
}

fn inverse_mix_columns(mut key: [u8; 16]) -> [u8; 16] {
    for column in key.as_chunks_mut::<4>().0 {
        let old = *column;
        *column = std::array::from_fn(|row| {
            [14, 11, 13, 9].iter().enumerate().fold(0, |sum, (by, factor)| sum ^ product(old[(row + by) % 4], *factor))
        });
    }
    key
}

/// In GF(2^8) modulo x^8 + x^4 + x^3 + x + 1 (§4.2).
fn product(a: u8, b: u8) -> u8 {
    (0..8).rev().fold(0, |sum: u8, bit| {
        let doubled = (sum << 1) ^ ((sum >> 7) * 0x1b);
        doubled ^ ((b >> bit & 1) * a)
    })
}

/// Runs `work` on a thread of its own and returns what its stack then holds.
fn stack_after<W: FnOnce() + Send>(work: W) -> Vec<u8> {
    extern "C" fn run<W: FnOnce()>(work: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: the pointer to the `Option` that the spawner keeps alive until it has joined.
        let work = unsafe { &mut *work.cast::<Option<W>>() };
        (work.take().expect("given once"))();
        ptr::null_mut()
    }

    let mut work = Some(work);
    let mut stack = vec![0u128; STACK_BYTES / 16];
    // SAFETY: the stack and `work` outlive the thread, which is joined before either is touched
    // again; all return values are checked.
    unsafe {
        let mut attributes = std::mem::zeroed();
        let mut thread = 0;
        assert_eq!(libc::pthread_attr_init(&mut attributes), 0);
        assert_eq!(libc::pthread_attr_setstack(&mut attributes, stack.as_mut_ptr().cast(), STACK_BYTES), 0);
        let argument = (&raw mut work).cast();
        assert_eq!(libc::pthread_create(&mut thread, &attributes, run::<W>, argument), 0);
        assert_eq!(libc::pthread_join(thread, ptr::null_mut()), 0);
        assert_eq!(libc::pthread_attr_destroy(&mut attributes), 0);
    }
    stack.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

const STACK_BYTES: usize = 512 * 1024;
