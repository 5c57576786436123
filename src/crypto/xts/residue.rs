//! Tests that no key is left behind on the stack.
//!
//! Locked memory would be in vain if the compiler spilled round keys to a worker's stack, which
//! can be swapped and dumped. These tests run the cipher on a thread whose stack they own, and
//! search that stack afterwards.

use std::hint::black_box;
use std::ptr;

use super::schedule::Schedule;
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

fn key() -> XtsKey {
    XtsKey::from_bytes(&std::array::from_fn::<u8, 64, _>(|index| (index as u8).wrapping_mul(37) ^ 0x6b)).unwrap()
}

/// How many places of the stack hold a round key of `key` after `work` has run on it. The key
/// itself is its own first round keys.
fn residue(key: &XtsKey, work: impl FnOnce() + Send) -> usize {
    assert!(is_x86_feature_detected!("aes"), "these tests need AES-NI");
    // SAFETY: asserted above.
    let schedule = unsafe { Schedule::expand(key) }.unwrap();
    let keys = schedule.round_keys();
    let stack = stack_after(work);
    stack.windows(16).filter(|window| keys.iter().any(|key| key == window)).count()
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
