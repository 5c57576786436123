//! XTS on the `aes` crate, for every CPU.
//!
//! What makes a plain XTS loop slow is that it hands the cipher one block at a time, so that each
//! block waits for the whole latency of the one before. Here the first tweaks of many units, and
//! then the blocks of a whole batch, go to the cipher together: the crate interleaves them as
//! widely as the CPU allows, with AES instructions, or with bit slicing where there are none.

use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes256, Aes256Enc, Block};
use zeroize::{Zeroize, zeroize_stack};

use super::{BLOCK_BYTES, Direction, XtsKey};
use crate::crypto::{Locked, LockedError};

/// The `aes` crate's expanded keys.
pub(super) struct Portable {
    keys: Locked<Keys>,
}

impl Portable {
    pub(super) fn new(key: &XtsKey) -> Result<Portable, LockedError> {
        let mut keys = Locked::new(Keys::blank())?;
        keys.expand(key);
        // The crate expands on the stack and returns by value.
        zeroize_stack::<EXPAND_STACK_BYTES>();
        Ok(Portable { keys })
    }

    /// Runs XTS over `len` bytes of whole units.
    ///
    /// # Safety
    ///
    /// As [`Xts::encrypt_raw`](super::Xts::encrypt_raw), and `len` is a multiple of `unit_size`,
    /// which is a multiple of 16.
    pub(super) unsafe fn apply(
        &self,
        direction: Direction,
        src: *const u8,
        dst: *mut u8,
        len: usize,
        unit_size: usize,
        first_unit: u64,
    ) {
        // SAFETY: the caller's promise, passed on.
        unsafe { self.apply_within_frame(direction, src, dst, len, unit_size, first_unit) };
        // The crate's vector code copies the round keys to the stack.
        zeroize_stack::<APPLY_STACK_BYTES>();
    }

    /// # Safety
    ///
    /// As [`apply`](Portable::apply).
    #[inline(never)]
    unsafe fn apply_within_frame(
        &self,
        direction: Direction,
        src: *const u8,
        dst: *mut u8,
        len: usize,
        unit_size: usize,
        first_unit: u64,
    ) {
        let blocks_in_unit = unit_size / BLOCK_BYTES;
        let mut tweaks = Tweaks::new(&self.keys.tweak, blocks_in_unit, len / unit_size, first_unit);
        let mut masks = [0; BATCH_BLOCKS];
        let mut batch = [Block::default(); BATCH_BLOCKS];
        let mut done = 0;
        while done < len {
            let bytes = (len - done).min(BATCH_BLOCKS * BLOCK_BYTES);
            let batch = &mut batch[..bytes / BLOCK_BYTES];
            let masks = &mut masks[..bytes / BLOCK_BYTES];
            // SAFETY: `done + bytes` is at most `len`, for which the caller vouches; the batch is
            // `bytes` long and ours alone.
            unsafe {
                std::ptr::copy_nonoverlapping(src.add(done), batch.as_mut_ptr().cast(), bytes);
            }
            tweaks.fill(masks);
            mask(batch, masks);
            match direction {
                Direction::Encrypt => self.keys.data.encrypt_blocks(batch),
                Direction::Decrypt => self.keys.data.decrypt_blocks(batch),
            }
            mask(batch, masks);
            // SAFETY: as above, for the destination.
            unsafe {
                std::ptr::copy_nonoverlapping(batch.as_ptr().cast(), dst.add(done), bytes);
            }
            done += bytes;
        }
    }
}

struct Keys {
    data: Aes256,
    tweak: Aes256Enc,
}

impl Keys {
    fn blank() -> Keys {
        let zero = Array([0; 32]);
        Keys { data: Aes256::new(&zero), tweak: Aes256Enc::new(&zero) }
    }

    // Its own frame, so that what it leaves on the stack lies below the caller's and can be wiped.
    #[inline(never)]
    fn expand(&mut self, key: &XtsKey) {
        self.data = Aes256::new(key.data_key().into());
        self.tweak = Aes256Enc::new(key.tweak_key().into());
    }
}

impl Zeroize for Keys {
    /// The crate's types wipe themselves where they stand when they are dropped, which assigning
    /// over them does.
    fn zeroize(&mut self) {
        *self = Keys::blank();
    }
}

/// The tweaks of consecutive blocks of consecutive units.
///
/// The order of IEEE 1619's byte strings makes a tweak a little-endian 128-bit number.
struct Tweaks<'a> {
    cipher: &'a Aes256Enc,
    blocks_in_unit: usize,
    /// Units whose first tweak has not been computed yet, and the number of the next of them.
    units_ahead: usize,
    next_unit: u128,
    /// First tweaks of the units that follow the current one.
    first: [Block; TWEAKS_AHEAD],
    first_taken: usize,
    first_ready: usize,
    /// The next tweak of the current unit, and how many blocks that unit has left.
    current: u128,
    blocks_left: usize,
}

impl<'a> Tweaks<'a> {
    fn new(cipher: &'a Aes256Enc, blocks_in_unit: usize, units: usize, first_unit: u64) -> Self {
        Tweaks {
            cipher,
            blocks_in_unit,
            units_ahead: units,
            next_unit: first_unit.into(),
            first: [Block::default(); TWEAKS_AHEAD],
            first_taken: 0,
            first_ready: 0,
            current: 0,
            blocks_left: 0,
        }
    }

    fn fill(&mut self, mut masks: &mut [u128]) {
        while !masks.is_empty() {
            if self.blocks_left == 0 {
                self.current = self.next_first();
                self.blocks_left = self.blocks_in_unit;
            }
            let (now, later) = masks.split_at_mut(self.blocks_left.min(masks.len()));
            self.blocks_left -= now.len();
            for mask in now {
                *mask = self.current;
                self.current = times_x(self.current);
            }
            masks = later;
        }
    }

    /// The tweak of block 0 of the next unit.
    fn next_first(&mut self) -> u128 {
        if self.first_taken == self.first_ready {
            self.first_taken = 0;
            self.first_ready = self.units_ahead.min(TWEAKS_AHEAD);
            self.units_ahead -= self.first_ready;
            // Whole groups, even where fewer are needed: the cipher takes leftovers one by one,
            // which is slower than a group.
            let group = self.first_ready.next_multiple_of(TWEAKS_GROUP);
            for first in &mut self.first[..group] {
                *first = Array(self.next_unit.to_le_bytes());
                self.next_unit += 1;
            }
            self.cipher.encrypt_blocks(&mut self.first[..group]);
        }
        let first = u128::from_le_bytes(self.first[self.first_taken].0);
        self.first_taken += 1;
        first
    }
}

/// Times x in GF(2^128) modulo x^128 + x^7 + x^2 + x + 1 (IEEE 1619-2007 §5.2), without a branch.
fn times_x(tweak: u128) -> u128 {
    let overflow = (tweak >> 127) as u64;
    (tweak << 1) ^ u128::from(overflow.wrapping_neg() & 0x87)
}

fn mask(batch: &mut [Block], masks: &[u128]) {
    for (block, mask) in batch.iter_mut().zip(masks) {
        let masked = u128::from_le_bytes(block.0) ^ mask;
        block.0 = masked.to_le_bytes();
    }
}

/// Blocks handed to the cipher at once: the widest group that the `aes` crate interleaves.
const BATCH_BLOCKS: usize = 64;
/// Units whose first tweaks are computed at once: at least a 32 KiB request of 512-byte units.
const TWEAKS_AHEAD: usize = 64;
/// What the crate interleaves on a CPU with plain AES instructions.
const TWEAKS_GROUP: usize = 8;
/// Stack that the crate's key expansion, and its encryption with our own frame, may use.
const EXPAND_STACK_BYTES: usize = 8 * 1024;
const APPLY_STACK_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_x_reduces_by_the_polynomial_of_the_standard() {
        assert_eq!(times_x(1), 2);
        assert_eq!(times_x(1 << 63), 1 << 64);
        assert_eq!(times_x(1 << 127), 0x87);
        assert_eq!(times_x(u128::MAX), (u128::MAX << 1) ^ 0x87);
    }

    #[test]
    fn tweaks_do_not_depend_on_how_they_are_asked_for() {
        let cipher = Aes256Enc::new(&Array([3; 32]));
        let tweaks = || Tweaks::new(&cipher, 5, 200, u64::MAX - 70);
        let mut whole = [0; 1000];
        tweaks().fill(&mut whole);
        let mut pieces = [0; 1000];
        let mut source = tweaks();
        for piece in pieces.chunks_mut(7) {
            source.fill(piece);
        }
        assert_eq!(whole, pieces);

        // Unit 71 is number 2^64: the carry must reach the upper half.
        let mut first = Array((1u128 << 64).to_le_bytes());
        cipher.encrypt_block(&mut first);
        assert_eq!(whole[71 * 5], u128::from_le_bytes(first.0));
        assert_eq!(whole[71 * 5 + 1], times_x(whole[71 * 5]));
    }

    #[test]
    fn wiped_keys_are_the_blank_ones() {
        let key = XtsKey::generate().unwrap();
        let mut portable = Portable::new(&key).unwrap();
        let encrypt = |keys: &Keys| {
            let mut block = Block::default();
            keys.data.encrypt_block(&mut block);
            block
        };
        assert_ne!(encrypt(&portable.keys), encrypt(&Keys::blank()));
        portable.keys.zeroize();
        assert_eq!(encrypt(&portable.keys), encrypt(&Keys::blank()));
    }
}
