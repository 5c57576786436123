//! Holes: runs of units that are all zero and need not be stored.
//!
//! Whole buffers are taken apart here into the runs that are holes and those that are not. Nothing
//! records where the holes are, so no record can go stale: a unit that is all zero is one, also to those
//! who seal what they store, as real ciphertext of a unit is all zero with a probability of 2^-4096 at best.

use std::ops::Range;

/// A longest run of units that are all holes, or that all hold data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Bytes of the buffer, whole units.
    pub range: Range<usize>,
    /// Whether every byte of the run is zero.
    pub hole: bool,
}

/// The runs of a buffer, in order and without gaps. The last unit may be cut short.
pub fn runs(data: &[u8], unit_bytes: usize) -> impl Iterator<Item = Run> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let mut units = data[start..].chunks(unit_bytes);
        let first = units.next()?;
        let hole = is_zero(first);
        let rest = units.take_while(|unit| is_zero(unit) == hole).map(<[u8]>::len).sum::<usize>();
        let range = start..start + first.len() + rest;
        start = range.end;
        Some(Run { range, hole })
    })
}

/// Whether every byte is zero.
pub fn is_zero(data: &[u8]) -> bool {
    // SAFETY: a slice is readable.
    unsafe { is_zero_raw(data.as_ptr(), data.len()) }
}

/// Whether `len` bytes from `base` on are zero.
///
/// # Safety
///
/// `base` must be readable for `len` bytes. They may be guest memory that changes meanwhile: any
/// value that it then yields is as good as any other.
pub unsafe fn is_zero_raw(base: *const u8, len: usize) -> bool {
    // SAFETY: whoever calls one of these stays below `len`.
    let word = |at: usize| unsafe { base.add(at).cast::<u64>().read_unaligned() };
    // SAFETY: as above.
    let byte = |at: usize| unsafe { base.add(at).read() };
    // Ciphertext ends here but once in 2^64.
    if len >= WORD_BYTES && word(0) != 0 {
        return false;
    }
    // In wide pieces, so that the compiler uses vector registers.
    let pieces_end = len / PIECE_BYTES * PIECE_BYTES;
    (0..pieces_end)
        .step_by(PIECE_BYTES)
        .all(|piece| (0..PIECE_BYTES).step_by(WORD_BYTES).fold(0, |all, at| all | word(piece + at)) == 0)
        && (pieces_end..len).all(|at| byte(at) == 0)
}

const WORD_BYTES: usize = 8;
const PIECE_BYTES: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_the_buffer_and_tell_holes() {
        let mut data = vec![0; 6 * 512];
        data[512] = 1;
        data[3 * 512 - 1] = 1;
        data[5 * 512 + 300] = 1;
        let runs: Vec<Run> = runs(&data, 512).collect();
        let expected = [(0..512, true), (512..1536, false), (1536..2560, true), (2560..3072, false)];
        assert_eq!(runs, expected.map(|(range, hole)| Run { range, hole }));
        assert_eq!(super::runs(&[], 512).count(), 0);
        data.extend([0; 100]);
        assert_eq!(super::runs(&data, 512).last(), Some(Run { range: 3072..3172, hole: true }));
    }

    #[test]
    fn any_single_bit_makes_data_nonzero() {
        for length in [0, 1, 7, 8, 9, 127, 128, 129, 512, 4096 + 3] {
            let mut data = vec![0; length];
            assert!(is_zero(&data));
            for position in 0..length {
                data[position] = 0x80;
                assert!(!is_zero(&data), "byte {position} of {length}");
                data[position] = 0;
            }
        }
    }
}
