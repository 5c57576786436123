//! Sealing and opening runs of data units in scattered memory.
//!
//! A data unit that is all zero on disk is a hole (see [`crate::io::holes`]) and opens to zeros.

use crate::crypto::xts::Xts;
use crate::io::holes::is_zero_raw;
use crate::io::segments::{Cursor, Segment};

/// Seals the next `len` bytes of `segments` into `target`, in one pass over the source: each byte
/// of guest memory is read once. `first_unit` is the index of the data unit that they begin.
///
/// # Safety
///
/// At least `len` readable bytes must remain after `cursor`, `target` must have room for them and
/// not overlap them. `len` is a multiple of `unit_bytes`.
pub unsafe fn seal(
    xts: &Xts,
    segments: &[Segment],
    cursor: &mut Cursor,
    target: *mut u8,
    len: usize,
    unit_bytes: usize,
    first_unit: u64,
) {
    let mut done = 0;
    while done < len {
        let unit = first_unit + (done / unit_bytes) as u64;
        let Some(piece) = cursor.peek(segments) else { return };
        // SAFETY: `done < len`, and `target` has room for `len` bytes.
        let out = unsafe { target.add(done) };
        let whole = piece.len.min(len - done) / unit_bytes * unit_bytes;
        if whole > 0 {
            cursor.take(segments, whole);
            // SAFETY: the piece is readable for `whole` bytes and `out` has room for them.
            unsafe { xts.encrypt_raw(piece.base, out, whole, unit_bytes, unit) };
            done += whole;
        } else {
            // A unit that is split over segments: collect it where it goes, then seal it there.
            // SAFETY: a unit remains in the segments, as `len` is a multiple of it, and `out` has
            // room for it.
            unsafe {
                cursor.gather(segments, out, unit_bytes);
                xts.encrypt_raw(out, out, unit_bytes, unit_bytes, unit);
            }
            done += unit_bytes;
        }
    }
}

/// Opens data units in place, leaving holes as zeros.
///
/// # Safety
///
/// `base` must be readable and writable for `len` bytes, a multiple of `unit_bytes`.
pub unsafe fn open(xts: &Xts, base: *mut u8, len: usize, unit_bytes: usize, first_unit: u64) {
    let mut done = 0;
    while done < len {
        // SAFETY: all addresses are below `base + len`.
        unsafe {
            let mut run = done;
            while run < len && !is_zero_raw(base.add(run), unit_bytes) {
                run += unit_bytes;
            }
            if run > done {
                let unit = first_unit + (done / unit_bytes) as u64;
                xts.decrypt_raw(base.add(done), base.add(done), run - done, unit_bytes, unit);
            }
            done = run + unit_bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::xts::XtsKey;

    fn xts() -> Xts {
        let key: Vec<u8> = (0..64).collect();
        Xts::new(&XtsKey::from_bytes(&key).unwrap()).unwrap()
    }

    #[test]
    fn every_split_of_the_source_seals_to_the_same_bytes() {
        let xts = xts();
        let mut plain: Vec<u8> = (0..2048u32).map(|index| (index * 7) as u8).collect();
        let mut expected = plain.clone();
        xts.encrypt(&mut expected, 512, 40);
        let base = plain.as_mut_ptr();
        for lengths in [&[2048][..], &[512, 1536], &[1, 2047], &[511, 2, 1535], &[700, 0, 700, 648], &[100; 20]] {
            let mut at = 0;
            let mut segments = Vec::new();
            for len in lengths.iter().copied().chain([2048 - lengths.iter().sum::<usize>()]) {
                segments.push(Segment::new(base.wrapping_add(at), len));
                at += len;
            }
            let mut sealed = vec![0u8; 2048];
            let mut cursor = Cursor::default();
            // SAFETY: the segments cover `plain`; `sealed` is as long.
            unsafe {
                seal(&xts, &segments, &mut cursor, sealed.as_mut_ptr(), 1024, 512, 40);
                seal(&xts, &segments, &mut cursor, sealed[1024..].as_mut_ptr(), 1024, 512, 42);
            }
            assert_eq!(sealed, expected, "{lengths:?}");
        }
    }

    #[test]
    fn holes_open_to_zeros_between_sealed_units() {
        let xts = xts();
        let plain: Vec<u8> = (0..4 * 512u32).map(|index| (index % 251) as u8).collect();
        let mut disk = plain.clone();
        xts.encrypt(&mut disk, 512, 0);
        disk[512..1024].fill(0);
        // A unit with a single byte set is no hole.
        disk[1536..2048].fill(0);
        disk[2047] = 1;
        let mut expected = plain;
        expected[512..1024].fill(0);
        let mut lonely = vec![0u8; 512];
        lonely[511] = 1;
        xts.decrypt(&mut lonely, 512, 3);
        expected[1536..].copy_from_slice(&lonely);
        // SAFETY: `disk` has four units.
        unsafe { open(&xts, disk.as_mut_ptr(), disk.len(), 512, 0) };
        assert_eq!(disk, expected);
    }
}
