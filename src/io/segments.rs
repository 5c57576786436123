//! Scattered memory: the pieces of guest memory, or of a buffer, that one transfer covers.
//!
//! A segment is a raw address because guest memory is shared with a guest that writes to it at any
//! time: no Rust reference to it may exist. Whoever makes a [`Segment`] has checked that it lies in
//! mapped memory; whoever uses one takes the duty of the `unsafe` functions here.

use std::ptr;

use super::sigbus;

/// A piece of memory. Same layout as `struct iovec`, so that a slice of segments can be handed to
/// the kernel as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// First byte.
    pub base: *mut u8,
    /// Length in bytes.
    pub len: usize,
}

// SAFETY: a segment is an address and a length; sending it sends no access, the functions that
// dereference it are unsafe and state what they need.
unsafe impl Send for Segment {}

impl Segment {
    /// A segment over ordinary memory.
    pub fn new(base: *mut u8, len: usize) -> Self {
        Self { base, len }
    }

    /// Whether address and length are multiples of `memory` and `offset` (powers of two).
    pub fn is_aligned(&self, memory: usize, offset: usize) -> bool {
        self.base.addr() & (memory - 1) == 0 && self.len & (offset - 1) == 0
    }

    /// Whether part of it is guest memory that has vanished.
    pub fn is_lost(&self) -> bool {
        sigbus::is_lost(self.base.addr(), self.len)
    }
}

/// The total length in bytes.
pub fn total(segments: &[Segment]) -> usize {
    segments.iter().map(|segment| segment.len).sum()
}

/// A position in a list of segments that only moves forward.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    index: usize,
    consumed: usize,
}

impl Cursor {
    /// The next contiguous piece, of at most `len` bytes; `None` when the segments are used up.
    pub fn take(&mut self, segments: &[Segment], len: usize) -> Option<Segment> {
        let piece = self.peek(segments)?;
        let len = piece.len.min(len);
        self.consumed += len;
        Some(Segment::new(piece.base, len))
    }

    /// What remains of the segment that the cursor stands in.
    pub fn peek(&mut self, segments: &[Segment]) -> Option<Segment> {
        loop {
            let segment = segments.get(self.index)?;
            if self.consumed < segment.len {
                // `wrapping_add` keeps the address arithmetic free of safety conditions; it stays
                // inside the segment because `consumed` is below its length.
                let base = segment.base.wrapping_add(self.consumed);
                return Some(Segment::new(base, segment.len - self.consumed));
            }
            self.index += 1;
            self.consumed = 0;
        }
    }

    /// Copies the next `len` bytes of the segments to `target`.
    ///
    /// # Safety
    ///
    /// The segments must be readable and `target` writable for `len` bytes, without overlap, and at
    /// least `len` bytes must remain.
    pub unsafe fn gather(&mut self, segments: &[Segment], mut target: *mut u8, mut len: usize) {
        while len > 0 {
            let Some(piece) = self.take(segments, len) else { return };
            // SAFETY: the caller vouches for both sides; `piece` is within one segment.
            unsafe {
                ptr::copy_nonoverlapping(piece.base, target, piece.len);
                target = target.add(piece.len);
            }
            len -= piece.len;
        }
    }

    /// Copies `len` bytes from `source` to the next bytes of the segments.
    ///
    /// # Safety
    ///
    /// The segments must be writable and `source` readable for `len` bytes, without overlap, and at
    /// least `len` bytes must remain.
    pub unsafe fn scatter(&mut self, segments: &[Segment], mut source: *const u8, mut len: usize) {
        while len > 0 {
            let Some(piece) = self.take(segments, len) else { return };
            // SAFETY: the caller vouches for both sides; `piece` is within one segment.
            unsafe {
                ptr::copy_nonoverlapping(source, piece.base, piece.len);
                source = source.add(piece.len);
            }
            len -= piece.len;
        }
    }
}

/// Fills all segments with zeros.
///
/// # Safety
///
/// The segments must be writable.
pub unsafe fn clear(segments: &[Segment]) {
    for segment in segments {
        // SAFETY: the caller vouches that the segment is writable.
        unsafe { ptr::write_bytes(segment.base, 0, segment.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(bytes: &mut [u8], lengths: &[usize]) -> Vec<Segment> {
        let mut base = bytes.as_mut_ptr();
        lengths
            .iter()
            .map(|&len| {
                let segment = Segment::new(base, len);
                base = base.wrapping_add(len);
                segment
            })
            .collect()
    }

    #[test]
    fn layout_is_that_of_iovec() {
        assert_eq!(size_of::<Segment>(), size_of::<libc::iovec>());
        assert_eq!(std::mem::offset_of!(Segment, base), std::mem::offset_of!(libc::iovec, iov_base));
        assert_eq!(std::mem::offset_of!(Segment, len), std::mem::offset_of!(libc::iovec, iov_len));
    }

    #[test]
    fn gather_and_scatter_cross_segment_borders_and_skip_empty_ones() {
        let mut guest: Vec<u8> = (0..10).collect();
        let segments = split(&mut guest, &[3, 0, 1, 6]);
        let mut out = [0u8; 10];
        let mut cursor = Cursor::default();
        // SAFETY: the segments cover `guest`, which lives on; `out` has ten bytes.
        unsafe {
            cursor.gather(&segments, out.as_mut_ptr(), 5);
            cursor.gather(&segments, out[5..].as_mut_ptr(), 5);
        }
        assert_eq!(out, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(cursor.peek(&segments), None);

        let mut cursor = Cursor::default();
        // SAFETY: as above.
        unsafe { cursor.scatter(&segments, [9u8, 8, 7, 6, 5].as_ptr(), 5) };
        assert_eq!(guest, [9, 8, 7, 6, 5, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn clear_touches_the_segments_only() {
        let mut bytes = [1u8; 8];
        let segments = split(&mut bytes[2..], &[1, 2]);
        // SAFETY: the segments cover `bytes[2..5]`.
        unsafe { clear(&segments) };
        assert_eq!(bytes, [1, 1, 0, 0, 0, 1, 1, 1]);
    }
}
