//! The blocks of a region table: 504 bytes and their checksum.
//!
//! A block is the unit in which a disk tears: it is there whole, as it was or as it is written, or its
//! checksum is wrong. The checksum covers the block's place too, so a block that was written to the
//! wrong one is not taken for what belongs there.

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 512;
/// Rows in a block.
pub const ROWS_PER_BLOCK: usize = COVERED_BYTES / ROW_BYTES;
/// The format version of the table.
pub const FORMAT: u32 = 1;

/// A block, as it lies on the disk.
pub type Block = [u8; BLOCK_BYTES];
/// The rows of a block.
pub type BlockRows = [u64; ROWS_PER_BLOCK];

/// What a table says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Grows by one each time the header changes.
    pub generation: u64,
    /// Whose table it is.
    pub volume: Uuid,
    /// Bytes of a region.
    pub region_bytes: u64,
    /// How many regions there are.
    pub count: u32,
    /// The highest view that the copy has accepted.
    pub accepted: u64,
}

impl Header {
    /// The header as the block at a place.
    pub fn to_block(self, place: u64) -> Block {
        let mut block = [0; BLOCK_BYTES];
        let mut fields = Vec::with_capacity(BLOCK_BYTES);
        fields.extend_from_slice(MAGIC);
        fields.extend_from_slice(&FORMAT.to_le_bytes());
        fields.extend_from_slice(&self.generation.to_le_bytes());
        fields.extend_from_slice(self.volume.as_bytes());
        fields.extend_from_slice(&self.region_bytes.to_le_bytes());
        fields.extend_from_slice(&self.count.to_le_bytes());
        fields.extend_from_slice(&self.accepted.to_le_bytes());
        block[..fields.len()].copy_from_slice(&fields);
        seal(&mut block, place);
        block
    }

    /// The header in the block at a place; none if the block is damaged or no header.
    ///
    /// # Errors
    ///
    /// The format version of the table, when it is one that this code does not read.
    pub fn from_block(block: &Block, place: u64) -> Result<Option<Header>, u32> {
        if !is_intact(block, place) {
            return Ok(None);
        }
        let mut fields = Fields(block);
        if fields.take::<8>() != *MAGIC {
            return Ok(None);
        }
        let format = u32::from_le_bytes(fields.take());
        if format != FORMAT {
            return Err(format);
        }
        let header = Header {
            generation: u64::from_le_bytes(fields.take()),
            volume: Uuid::from_bytes(fields.take()),
            region_bytes: u64::from_le_bytes(fields.take()),
            count: u32::from_le_bytes(fields.take()),
            accepted: u64::from_le_bytes(fields.take()),
        };
        // No row could be of another view, and none is ever accepted.
        Ok((header.accepted <= VIEW_MAX).then_some(header))
    }
}

/// Rows as the block at a place.
pub fn rows_to_block(rows: &BlockRows, place: u64) -> Block {
    let mut block = [0; BLOCK_BYTES];
    for (bytes, row) in block.chunks_exact_mut(ROW_BYTES).zip(rows) {
        bytes.copy_from_slice(&row.to_le_bytes());
    }
    seal(&mut block, place);
    block
}

/// The rows in the block at a place; none if the block is damaged. A block that was never written is all
/// zero, and so are its rows.
pub fn rows_from_block(block: &Block, place: u64) -> Option<BlockRows> {
    let mut rows = [0; ROWS_PER_BLOCK];
    if *block == [0; BLOCK_BYTES] {
        return Some(rows);
    }
    if !is_intact(block, place) {
        return None;
    }
    let mut fields = Fields(block);
    for row in &mut rows {
        *row = u64::from_le_bytes(fields.take());
    }
    Some(rows)
}

/// What is left to read of a block. Nothing takes more than a block has.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("the fields fit a block");
        self.0 = rest;
        *field
    }
}

/// Gives a block the checksum that makes it the one at a place.
pub fn seal(block: &mut Block, place: u64) {
    let checksum = checksum(block, place);
    block[COVERED_BYTES..].copy_from_slice(&checksum);
}

fn is_intact(block: &Block, place: u64) -> bool {
    block[COVERED_BYTES..] == checksum(block, place)
}

fn checksum(block: &Block, place: u64) -> [u8; CHECKSUM_BYTES] {
    let digest = Sha256::new().chain_update(place.to_le_bytes()).chain_update(&block[..COVERED_BYTES]).finalize();
    let mut checksum = [0; CHECKSUM_BYTES];
    checksum.copy_from_slice(&digest[..CHECKSUM_BYTES]);
    checksum
}

/// The highest view: a row has 63 bits for it.
pub const VIEW_MAX: u64 = u64::MAX >> 1;
const MAGIC: &[u8; 8] = b"sealblkR";
const ROW_BYTES: usize = 8;
const CHECKSUM_BYTES: usize = 8;
const COVERED_BYTES: usize = BLOCK_BYTES - CHECKSUM_BYTES;

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            generation: 0x0102_0304_0506_0708,
            volume: Uuid::from_bytes([0xaa; 16]),
            region_bytes: 4 << 20,
            count: 0x0a0b_0c0d,
            accepted: 9,
        }
    }

    #[test]
    fn the_bytes_of_a_header_are_pinned() {
        let block = header().to_block(1);
        assert_eq!(block[..8], *b"sealblkR");
        assert_eq!(block[8..12], [1, 0, 0, 0]);
        assert_eq!(block[12..20], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(block[20..36], [0xaa; 16]);
        assert_eq!(block[36..44], [0, 0, 0x40, 0, 0, 0, 0, 0]);
        assert_eq!(block[44..48], [0x0d, 0x0c, 0x0b, 0x0a]);
        assert_eq!(block[48..56], [9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(block[56..504], [0; 448]);
        let covered = [&[1, 0, 0, 0, 0, 0, 0, 0], &block[..504]].concat();
        assert_eq!(block[504..], openssl::sha::sha256(&covered)[..8]);
        assert_eq!(Header::from_block(&block, 1), Ok(Some(header())));
    }

    #[test]
    fn no_changed_bit_and_no_other_place_passes() {
        let mut rows = [0; ROWS_PER_BLOCK];
        rows[0] = 7;
        rows[62] = u64::MAX;
        let good_header = header().to_block(0);
        let good_rows = rows_to_block(&rows, 5);
        assert_eq!(good_rows[..8], [7, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(rows_from_block(&good_rows, 5), Some(rows));
        for bit in 0..BLOCK_BYTES * 8 {
            for (good, place) in [(good_header, 0), (good_rows, 5)] {
                let mut bad = good;
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Header::from_block(&bad, place), Ok(None), "bit {bit}");
                assert_eq!(rows_from_block(&bad, place), None, "bit {bit}");
            }
        }
        assert_eq!(Header::from_block(&good_header, 1), Ok(None));
        assert_eq!(rows_from_block(&good_rows, 6), None);
    }

    #[test]
    fn a_header_whose_view_no_row_could_be_of_is_none() {
        for (accepted, is_one) in [(VIEW_MAX, true), (VIEW_MAX + 1, false), (u64::MAX, false)] {
            let block = Header { accepted, ..header() }.to_block(0);
            assert_eq!(Header::from_block(&block, 0).unwrap().is_some(), is_one, "{accepted}");
        }
    }

    #[test]
    fn another_format_is_told_from_damage() {
        let mut block = header().to_block(0);
        block[8] = 2;
        assert_eq!(Header::from_block(&block, 0), Ok(None));
        seal(&mut block, 0);
        assert_eq!(Header::from_block(&block, 0), Err(2));
        block[0] = b'S';
        seal(&mut block, 0);
        assert_eq!(Header::from_block(&block, 0), Ok(None));
    }

    #[test]
    fn a_block_that_was_never_written_has_rows_of_zero() {
        assert_eq!(rows_from_block(&[0; BLOCK_BYTES], 9), Some([0; ROWS_PER_BLOCK]));
        let written = rows_to_block(&[0; ROWS_PER_BLOCK], 9);
        assert_ne!(written, [0; BLOCK_BYTES]);
        assert_eq!(rows_from_block(&written, 9), Some([0; ROWS_PER_BLOCK]));
    }
}
