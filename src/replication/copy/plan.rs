//! How a request is cut into operations of the file.

use std::fmt;

use crate::io::holes::{Run, runs};

/// Something to do on the file for a request. Offsets are in bytes of the file; `at` is a byte of the
/// request's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    Read { offset: u64, len: usize },
    Write { offset: u64, at: usize, len: usize, durable: bool },
    Zero { offset: u64, len: u64 },
    WriteZeros { offset: u64, len: u64 },
    Sync,
}

impl fmt::Display for Piece {
    /// As what could not be done.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Read { offset, len } => write!(f, "read {len} bytes at {offset}"),
            Self::Write { offset, len, .. } => write!(f, "write {len} bytes at {offset}"),
            Self::Zero { offset, len } | Self::WriteZeros { offset, len } => write!(f, "zero {len} bytes at {offset}"),
            Self::Sync => f.write_str("make what was written durable"),
        }
    }
}

/// The pieces of a write that leaves runs of zeros to holes: those that fill whole blocks of the file.
pub fn sparse_write(offset: u64, data: &[u8]) -> Vec<Piece> {
    let head = (offset.next_multiple_of(HOLE_BYTES as u64) - offset).min(data.len() as u64) as usize;
    let tail = (data.len() - head) % HOLE_BYTES;
    let blocks = &data[head..data.len() - tail];
    let mut pieces = Vec::new();
    let mut written = 0;
    for Run { range, hole } in runs(blocks, HOLE_BYTES) {
        if hole {
            let (start, end) = (head + range.start, head + range.end);
            push_write(&mut pieces, offset, written, start);
            pieces.push(Piece::Zero { offset: offset + start as u64, len: (end - start) as u64 });
            written = end;
        }
    }
    push_write(&mut pieces, offset, written, data.len());
    pieces
}

fn push_write(pieces: &mut Vec<Piece>, offset: u64, start: usize, end: usize) {
    if start < end {
        pieces.push(Piece::Write { offset: offset + start as u64, at: start, len: end - start, durable: false });
    }
}

/// The blocks of common file systems: a smaller hole saves nothing.
const HOLE_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_blocks_of_zeros_become_holes() {
        let write = |offset, at, len| Piece::Write { offset, at, len, durable: false };
        let zero = |offset, len| Piece::Zero { offset, len };

        assert_eq!(sparse_write(4096, &[0; 8192]), [zero(4096, 8192)]);
        assert_eq!(sparse_write(0, &[1; 8192]), [write(0, 0, 8192)]);
        assert_eq!(sparse_write(512, &[0; 512]), [write(512, 0, 512)]);
        assert_eq!(sparse_write(512, &[0; 4096]), [write(512, 0, 4096)]);
        // From 512 to 12800: the two whole blocks in between, and what is left on both sides.
        assert_eq!(sparse_write(512, &[0; 12288]), [write(512, 0, 3584), zero(4096, 8192), write(12288, 11776, 512)]);

        let mut data = vec![0; 5 * 4096];
        data[2 * 4096] = 1;
        assert_eq!(sparse_write(8192, &data), [zero(8192, 8192), write(16384, 8192, 4096), zero(20480, 8192)]);
        data[4 * 4096 - 1] = 1;
        assert_eq!(sparse_write(8192, &data), [zero(8192, 8192), write(16384, 8192, 8192), zero(24576, 4096)]);
    }
}
