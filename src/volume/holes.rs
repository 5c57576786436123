//! Holes: a data unit that is all zero on disk reads as zeros, without the cipher.
//!
//! Real ciphertext of a unit is all zero with a probability of 2^-4096 at best, so nothing records
//! where the holes are and no record can go stale. What this module adds to the cipher is only that
//! rule, for whole buffers.

use std::ops::Range;

use crate::crypto::xts::Xts;

/// Turns what lies on disk into what the guest reads, in place. `data` is a whole number of units of
/// `unit_bytes`, the first of which is unit `first_unit` of the device.
///
/// # Panics
///
/// When `data` is not a whole number of units.
pub fn decrypt(cipher: &Xts, data: &mut [u8], unit_bytes: usize, first_unit: u64) {
    let mut from = 0;
    while let Some(run) = next_run(&data[from..], unit_bytes) {
        let range = from + run.range.start..from + run.range.end;
        from = range.end;
        if !run.hole {
            let unit = first_unit + (range.start / unit_bytes) as u64;
            cipher.decrypt(&mut data[range], unit_bytes, unit);
        }
    }
}

/// A longest run of units that are all holes, or that all hold data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Bytes of the buffer, whole units.
    pub range: Range<usize>,
    /// Whether every byte of the run is zero.
    pub hole: bool,
}

/// The runs of a buffer of whole units, in order and without gaps.
///
/// # Panics
///
/// When `data` is not a whole number of units.
pub fn runs(data: &[u8], unit_bytes: usize) -> impl Iterator<Item = Run> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let run = next_run(&data[from..], unit_bytes)?;
        let range = from + run.range.start..from + run.range.end;
        from = range.end;
        Some(Run { range, hole: run.hole })
    })
}

/// Whether every byte is zero.
pub fn is_zero(data: &[u8]) -> bool {
    // In wide pieces, so that the compiler uses vector registers, with an early way out.
    let mut pieces = data.chunks_exact(PIECE_BYTES);
    pieces.all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
        && pieces.remainder().iter().all(|byte| *byte == 0)
}

fn next_run(data: &[u8], unit_bytes: usize) -> Option<Run> {
    assert!(data.len().is_multiple_of(unit_bytes), "whole units");
    let hole = is_zero(data.get(..unit_bytes)?);
    let units = data.chunks_exact(unit_bytes);
    let count = units.take_while(|unit| is_zero(unit) == hole).count();
    Some(Run { range: 0..count * unit_bytes, hole })
}

const PIECE_BYTES: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::xts::XtsKey;

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
    }

    #[test]
    fn any_single_bit_makes_data_nonzero() {
        for length in [1, 127, 128, 129, 512, 4096 + 3] {
            let mut data = vec![0; length];
            assert!(is_zero(&data));
            for position in 0..length {
                data[position] = 0x80;
                assert!(!is_zero(&data), "byte {position} of {length}");
                data[position] = 0;
            }
        }
    }

    #[test]
    fn holes_stay_zeros_and_the_rest_is_decrypted() {
        let cipher = Xts::new(&XtsKey::generate().unwrap()).unwrap();
        let plain: Vec<u8> = (0..5 * 512u32).map(|n| (n % 251) as u8).collect();
        let mut disk = plain.clone();
        cipher.encrypt(&mut disk, 512, 77);
        disk[512..1536].fill(0);
        decrypt(&cipher, &mut disk, 512, 77);
        assert_eq!(disk[..512], plain[..512]);
        assert!(is_zero(&disk[512..1536]));
        assert_eq!(disk[1536..], plain[1536..]);
    }
}
