//! What a disk must hold, by what its guest was told.
//!
//! The disk is divided into blocks. A write stamps every sector of a block with the block's number and the
//! write's version, so that whatever is read says what it is. A block that is being written may hold the old
//! version or the new one, sector by sector, and what it holds is known again when it has been read.
//!
//! The last blocks are **contested**: they are written by several requests at once, and all that is asked of them
//! is that they hold what was written to them at some time. That copies are equal there as well shows that
//! overlapping writes reach all of them in one order.

use super::pattern::next;

/// What each block must hold.
#[derive(Debug)]
pub struct Model {
    blocks: Vec<Block>,
    next_version: u64,
}

/// What one block may hold.
#[derive(Clone, Copy, Debug, Default)]
struct Block {
    /// The version that was acknowledged last; 0 is zeros.
    acknowledged: u64,
    /// One that may be there, wholly or partly: its write has not been acknowledged.
    uncertain: Option<u64>,
}

impl Model {
    /// Of a new disk with so many blocks.
    pub fn new(blocks: usize) -> Model {
        Model { blocks: vec![Block::default(); blocks], next_version: 1 }
    }

    /// How many blocks there are.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// The first block that is contested.
    pub fn first_contested(&self) -> usize {
        self.blocks.len() - CONTESTED
    }

    /// Whether one write of a block may have been made and another not.
    pub fn is_uncertain(&self, block: usize) -> bool {
        self.blocks[block].uncertain.is_some()
    }

    /// Begins to write blocks of which none is uncertain: the version to write, or 0 for zeros.
    pub fn begin(&mut self, first: usize, count: usize, zeros: bool) -> u64 {
        let version = if zeros { 0 } else { self.next_version };
        self.next_version += u64::from(!zeros);
        if first >= self.first_contested() {
            return version;
        }
        for block in &mut self.blocks[first..first + count] {
            assert_eq!(block.uncertain, None, "one write of a block at a time");
            block.uncertain = Some(version);
        }
        version
    }

    /// The write was acknowledged.
    pub fn acknowledge(&mut self, first: usize, count: usize) {
        if first >= self.first_contested() {
            return;
        }
        for block in &mut self.blocks[first..first + count] {
            block.acknowledged = block.uncertain.take().expect("a write has begun");
        }
    }

    /// Holds what was read of blocks against what they may hold.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn check(&self, first: usize, data: &[u8]) -> Result<(), String> {
        for (number, data) in (first..).zip(data.chunks(BLOCK)) {
            let block = self.blocks[number];
            for (sector, data) in data.chunks(SECTOR).enumerate() {
                let found = version_of(number, sector, data)
                    .map_err(|what| format!("block {number}, sector {sector}: {what}; it should have {block:?}"))?;
                if number >= self.first_contested() {
                    continue;
                }
                if found != block.acknowledged && Some(found) != block.uncertain {
                    return Err(format!("block {number}, sector {sector}: version {found}; it should have {block:?}"));
                }
            }
        }
        Ok(())
    }

    /// A block that was uncertain has been read, and nobody writes it any more: it has to stay as it is. If it is
    /// torn it stays uncertain, and has to be written anew.
    pub fn settle(&mut self, number: usize, data: &[u8]) {
        let versions = data.chunks(SECTOR).enumerate().map(|(sector, data)| version_of(number, sector, data));
        let versions: Vec<u64> = versions.map(|version| version.expect("it has been checked")).collect();
        if versions.iter().all(|&version| version == versions[0]) {
            self.blocks[number] = Block { acknowledged: versions[0], uncertain: None };
        }
    }

    /// How many blocks hold something else than zeros.
    pub fn written(&self) -> usize {
        self.blocks.iter().filter(|block| block.acknowledged != 0).count()
    }
}

/// The bytes of a version of blocks.
pub fn content(first: usize, count: usize, version: u64) -> Vec<u8> {
    let mut bytes = vec![0; count * BLOCK];
    if version != 0 {
        for (index, sector) in bytes.chunks_mut(SECTOR).enumerate() {
            stamp(first + index * SECTOR / BLOCK, index % (BLOCK / SECTOR), version, sector);
        }
    }
    bytes
}

/// Mark, number of the block, number of the sector in it, version, and bytes that follow from those.
fn stamp(block: usize, sector: usize, version: u64, target: &mut [u8]) {
    let words = [MARK, block as u64, sector as u64, version];
    let mut state = words.iter().fold(0, |state: u64, word| state.rotate_left(17) ^ word);
    for (index, target) in target.chunks_mut(8).enumerate() {
        let word = words.get(index).copied().unwrap_or_else(|| next(&mut state));
        target.copy_from_slice(&word.to_le_bytes());
    }
}

fn version_of(block: usize, sector: usize, data: &[u8]) -> Result<u64, String> {
    if data.iter().all(|&byte| byte == 0) {
        return Ok(0);
    }
    let word = |index: usize| u64::from_le_bytes(data[index * 8..][..8].try_into().expect("eight bytes"));
    let mut expected = vec![0; data.len()];
    stamp(block, sector, word(3), &mut expected);
    match data == expected {
        true => Ok(word(3)),
        false if word(0) == MARK => {
            Err(format!("what was written to block {}, sector {}, version {}, or a mixture", word(1), word(2), word(3)))
        }
        false => Err(format!("no stamp but {:02x?}", &data[..16])),
    }
}

/// How many blocks are contested.
pub const CONTESTED: usize = 64;
/// What is written and checked as a whole.
pub const BLOCK: usize = 4096;
const SECTOR: usize = 512;
/// The plaintext that every sector begins with: `sealed??`.
pub const MARK: u64 = u64::from_le_bytes(*b"sealed??");
