//! The fast cipher against an independent one, on this machine, before a volume trusts it.
//!
//! A faulty CPU or a miscompiled build would write sectors that nothing can decrypt, and would
//! read its own writing back without complaint. So each attach first compares the implementation
//! in use with the `xts-mode` crate, which works block by block and shares no XTS code with it, on
//! random data under the volume's own key: both directions (each against the reference, so that
//! two faults cannot cancel out), 512 and 4096-byte units, from one unit to a 64 KiB batch, in
//! place and from buffer to buffer, aligned and not. It takes a few milliseconds.

use aes::Aes256;
use aes::cipher::KeyInit;
use xts_mode::{Xts128, get_tweak_default};
use zeroize::zeroize_stack;

use super::xts::{Direction, Implementation, Xts, XtsKey};

/// What the self-test found. Either way the volume must not be attached.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// The implementation and the reference disagree.
    #[error(
        "the {implementation} cipher is wrong on this machine: {direction} of {units} units of {unit_size} bytes ({buffers}) differs from the reference at byte {offset}; the CPU or this build is faulty, serve the volume elsewhere"
    )]
    Mismatch {
        /// The implementation at fault.
        implementation: Implementation,
        /// What was computed.
        direction: Direction,
        /// Bytes in a unit.
        unit_size: usize,
        /// Number of units in the batch.
        units: usize,
        /// Where the batch was.
        buffers: &'static str,
        /// First byte that differs. At or past the end of the batch when bytes behind it were
        /// touched.
        offset: usize,
    },
    /// No random data to test with.
    #[error(
        "cannot draw random data for the cipher's self-test: {0}; check that getrandom(2) is allowed in this sandbox"
    )]
    Random(getrandom::Error),
}

/// Compares `xts`, made from `key`, with the `xts-mode` crate.
///
/// # Errors
///
/// [`SelfTestError::Mismatch`] at the first difference.
pub fn run(xts: &Xts, key: &XtsKey) -> Result<(), SelfTestError> {
    compare(key, xts.implementation(), |batch| match batch.buffers {
        Buffers::InPlace(data) => {
            xts.apply_in_place(batch.direction, data, batch.unit_size, batch.first_unit);
        }
        Buffers::Apart(src, dst) => {
            assert_eq!(src.len(), dst.len());
            // SAFETY: two slices of one length, one of them exclusive, so they do not overlap.
            unsafe {
                xts.apply_raw(
                    batch.direction,
                    src.as_ptr(),
                    dst.as_mut_ptr(),
                    src.len(),
                    batch.unit_size,
                    batch.first_unit,
                );
            }
        }
    })
}

/// One call of the implementation under test.
struct Batch<'a> {
    direction: Direction,
    unit_size: usize,
    first_unit: u64,
    buffers: Buffers<'a>,
}

enum Buffers<'a> {
    InPlace(&'a mut [u8]),
    /// Source and destination.
    Apart(&'a [u8], &'a mut [u8]),
}

fn compare(key: &XtsKey, implementation: Implementation, mut subject: impl FnMut(Batch)) -> Result<(), SelfTestError> {
    let mut first_unit = [0; 8];
    let mut data = vec![0; BATCH_BYTES];
    getrandom::fill(&mut first_unit).map_err(SelfTestError::Random)?;
    getrandom::fill(&mut data).map_err(SelfTestError::Random)?;
    let first_unit = u64::from_le_bytes(first_unit);
    let mut work = vec![0; SHIFT_MAX + BATCH_BYTES + MARGIN_BYTES];

    for unit_size in UNIT_SIZES {
        for direction in [Direction::Encrypt, Direction::Decrypt] {
            // Units are independent, so the result of a short batch is the start of this one.
            let expected = reference(key, direction, &data, unit_size, first_unit);
            // The reference expands the key on the stack.
            zeroize_stack::<REFERENCE_STACK_BYTES>();
            for units in batch_units(unit_size) {
                let bytes = units * unit_size;
                for (buffers, in_place, shift) in PLACES {
                    let work = &mut work[shift..][..bytes + MARGIN_BYTES];
                    let (result, margin) = work.split_at_mut(bytes);
                    margin.fill(MARGIN);
                    let mut run = |buffers| {
                        subject(Batch { direction, unit_size, first_unit, buffers });
                    };
                    if in_place {
                        result.copy_from_slice(&data[..bytes]);
                        run(Buffers::InPlace(result));
                    } else {
                        // Not the result of the case before: a subject that writes nothing fails.
                        result.fill(MARGIN);
                        run(Buffers::Apart(&data[..bytes], result));
                    }
                    if let Some(offset) = first_difference(work, &expected[..bytes]) {
                        return Err(SelfTestError::Mismatch {
                            implementation,
                            direction,
                            unit_size,
                            units,
                            buffers,
                            offset,
                        });
                    }
                }
            }
        }
    }
    Ok(())
}

/// What `data` becomes according to the `xts-mode` crate.
// Its own frame, so that what it leaves on the stack lies below the caller's and can be wiped.
#[inline(never)]
fn reference(key: &XtsKey, direction: Direction, data: &[u8], unit_size: usize, first_unit: u64) -> Vec<u8> {
    let (data_key, tweak_key) = key.bytes().split_at(32);
    let cipher = |half: &[u8]| Aes256::new_from_slice(half).expect("half of 64 bytes");
    let xts = Xts128::new(cipher(data_key), cipher(tweak_key));
    let mut data = data.to_vec();
    let first_unit = first_unit.into();
    match direction {
        Direction::Encrypt => xts.encrypt_area(&mut data, unit_size, first_unit, get_tweak_default),
        Direction::Decrypt => xts.decrypt_area(&mut data, unit_size, first_unit, get_tweak_default),
    }
    data
}

/// Batch sizes, in units: the least, a few, an odd number past the width of any implementation,
/// and all.
fn batch_units(unit_size: usize) -> [usize; 4] {
    let all = BATCH_BYTES / unit_size;
    [1, 5, all - 3, all]
}

/// Where `work` is not `expected` followed by an untouched margin.
fn first_difference(work: &[u8], expected: &[u8]) -> Option<usize> {
    let (result, margin) = work.split_at(expected.len());
    let in_result = result.iter().zip(expected).position(|(a, b)| a != b);
    let in_margin = || margin.iter().position(|&byte| byte != MARGIN);
    in_result.or_else(|| in_margin().map(|index| expected.len() + index))
}

const UNIT_SIZES: [usize; 2] = [512, 4096];
/// The largest batch, in bytes.
const BATCH_BYTES: usize = 64 * 1024;
/// Bytes behind each result that must keep their value.
const MARGIN_BYTES: usize = 64;
const MARGIN: u8 = 0x5a;
/// Name, in place or not, offset of the result from the start of its buffer.
const PLACES: [(&str, bool, usize); 4] = [
    ("in place", true, 0),
    ("in place, unaligned", true, SHIFT_MAX),
    ("buffer to buffer", false, 0),
    ("buffer to buffer, unaligned", false, SHIFT_MAX),
];
const SHIFT_MAX: usize = 7;
const REFERENCE_STACK_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> XtsKey {
        XtsKey::from_bytes(&std::array::from_fn::<u8, 64, _>(|index| index as u8)).unwrap()
    }

    /// A right implementation that `fault` may spoil after each call.
    fn run_with_fault(fault: impl Fn(Direction, usize, bool, &mut [u8])) -> Option<SelfTestError> {
        let key = key();
        compare(&key, Implementation::Portable, |batch| {
            let (result, in_place) = match batch.buffers {
                Buffers::InPlace(data) => (data, true),
                Buffers::Apart(src, dst) => {
                    dst.copy_from_slice(src);
                    (dst, false)
                }
            };
            let right = reference(&key, batch.direction, result, batch.unit_size, batch.first_unit);
            result.copy_from_slice(&right);
            fault(batch.direction, batch.unit_size, in_place, result);
        })
        .err()
    }

    #[test]
    fn every_implementation_passes() {
        let key = XtsKey::generate().unwrap();
        for &implementation in Implementation::available() {
            let xts = Xts::with_implementation(&key, implementation).unwrap();
            run(&xts, &key).unwrap();
        }
    }

    #[test]
    fn a_right_implementation_passes() {
        assert!(run_with_fault(|_, _, _, _| ()).is_none());
    }

    #[test]
    fn the_wrong_key_is_a_mismatch() {
        let xts = Xts::new(&XtsKey::generate().unwrap()).unwrap();
        let error = run(&xts, &key()).unwrap_err();
        assert!(matches!(error, SelfTestError::Mismatch { .. }), "{error:?}");
    }

    #[test]
    fn one_flipped_bit_in_any_single_mode_is_found() {
        for direction in [Direction::Encrypt, Direction::Decrypt] {
            for unit_size in UNIT_SIZES {
                for in_place in [true, false] {
                    let error = run_with_fault(|its_direction, its_unit, its_place, result| {
                        if (its_direction, its_unit, its_place) == (direction, unit_size, in_place) {
                            result[100] ^= 1;
                        }
                    });
                    match error {
                        Some(SelfTestError::Mismatch {
                            direction: told_direction,
                            unit_size: told_unit,
                            buffers,
                            offset,
                            ..
                        }) => {
                            assert_eq!((told_direction, told_unit), (direction, unit_size));
                            assert_eq!(buffers.starts_with("in place"), in_place);
                            assert_eq!(offset, 100);
                        }
                        other => panic!("{direction} {unit_size} {in_place}: {other:?}"),
                    }
                }
            }
        }
    }

    #[test]
    fn a_fault_in_the_last_byte_of_the_longest_batch_is_found() {
        let error = run_with_fault(|_, _, _, result| {
            if result.len() == BATCH_BYTES {
                result[BATCH_BYTES - 1] ^= 0x80;
            }
        });
        let Some(SelfTestError::Mismatch { offset, .. }) = error else {
            panic!("{error:?}");
        };
        assert_eq!(offset, BATCH_BYTES - 1);
    }

    #[test]
    fn a_cipher_that_does_nothing_is_found() {
        let error = compare(&key(), Implementation::Portable, |_| ());
        assert!(matches!(error, Err(SelfTestError::Mismatch { .. })));
    }

    #[test]
    fn bytes_touched_behind_the_batch_are_a_difference() {
        let mut work = vec![1, 2, 3, MARGIN, MARGIN];
        assert_eq!(first_difference(&work, &[1, 2, 3]), None);
        work[4] = 0;
        assert_eq!(first_difference(&work, &[1, 2, 3]), Some(4));
    }

    #[test]
    fn the_message_says_what_differs_and_what_to_do() {
        let error = run_with_fault(|_, _, _, result| result[0] ^= 1).unwrap();
        let text = error.to_string();
        for part in ["portable", "encrypt of 1 units of 512", "byte 0", "elsewhere"] {
            assert!(text.contains(part), "{part:?} is missing in {text}");
        }
    }
}
