//! XTS on the `aes` crate, for every CPU.
//!
//! What makes a plain XTS loop slow is that it hands the cipher one block at a time, so that each
//! block waits for the whole latency of the one before. Here the first tweaks of many units go to
//! the cipher together, and then their blocks, in groups as wide as the crate interleaves them on
//! this CPU: with AES instructions, or with bit slicing where there are none.
//!
//! The loop over the groups is handed to the crate as a closure, which is how it wants modes to be
//! written: the compiler then sees loop, masks and rounds in one function, compiled for the
//! instructions that the crate has found.

use std::slice;

use aes::cipher::array::ArraySize;
use aes::cipher::consts::U16;
use aes::cipher::{
    Array, BlockCipherDecBackend, BlockCipherDecClosure, BlockCipherDecrypt, BlockCipherEncBackend,
    BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, KeyInit,
};
use aes::{Aes256, Aes256Enc, Block};
use zeroize::{Zeroize, zeroize_stack};

use super::area::Area;
use super::tweak::Tweak;
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

    /// Runs XTS over the area.
    ///
    /// # Safety
    ///
    /// The area's memory is as [`Area`] says.
    pub(super) unsafe fn apply(&self, direction: Direction, area: Area) {
        // SAFETY: the caller's promise, passed on.
        unsafe { self.apply_within_frame(direction, area) };
        // The crate's vector code copies the round keys to the stack.
        zeroize_stack::<APPLY_STACK_BYTES>();
    }

    /// # Safety
    ///
    /// As [`apply`](Portable::apply).
    #[inline(never)]
    unsafe fn apply_within_frame(&self, direction: Direction, mut area: Area) {
        let mut first = [Block::default(); UNITS_AHEAD];
        while let Some(part) = area.split_off(UNITS_AHEAD) {
            let first = self.keys.first_tweaks(&mut first, &part);
            // The pointers of `part` are good for its units, by the caller's promise.
            let units = Units { area: part, first };
            match direction {
                Direction::Encrypt => self.keys.data.encrypt_with_backend(units),
                Direction::Decrypt => self.keys.data.decrypt_with_backend(units),
            }
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

    /// The tweaks of block 0 of each unit of the area.
    fn first_tweaks<'a>(&self, room: &'a mut [Block; UNITS_AHEAD], area: &Area) -> &'a [Block] {
        // Whole groups, even where fewer are needed: the cipher takes leftovers one by one, which
        // is slower than a group.
        let group = area.units.next_multiple_of(TWEAKS_GROUP);
        for (tweak, unit) in room[..group].iter_mut().zip(area.first_unit..) {
            *tweak = Array(unit.to_le_bytes());
        }
        self.tweak.encrypt_blocks(&mut room[..group]);
        &room[..area.units]
    }
}

impl Zeroize for Keys {
    /// The crate's types wipe themselves where they stand when they are dropped, which assigning
    /// over them does.
    fn zeroize(&mut self) {
        *self = Keys::blank();
    }
}

/// What the crate is to call with the cipher for this CPU: units, and the first tweak of each.
struct Units<'a> {
    area: Area,
    first: &'a [Block],
}

impl BlockSizeUser for Units<'_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for Units<'_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        self.apply::<B::ParBlocksSize>(
            |group| backend.encrypt_par_blocks_inplace(group),
            |tail| backend.encrypt_tail_blocks_inplace(tail),
        );
    }
}

impl BlockCipherDecClosure for Units<'_> {
    #[inline(always)]
    fn call<B: BlockCipherDecBackend<BlockSize = U16>>(self, backend: &B) {
        self.apply::<B::ParBlocksSize>(
            |group| backend.decrypt_par_blocks_inplace(group),
            |tail| backend.decrypt_tail_blocks_inplace(tail),
        );
    }
}

impl Units<'_> {
    /// Masks, ciphers and masks again, in groups of `N` blocks and the rest of one.
    #[inline(always)]
    fn apply<N: ArraySize>(self, cipher: impl Fn(&mut Array<Block, N>), cipher_tail: impl Fn(&mut [Block])) {
        let blocks_in_unit = self.area.unit_size / BLOCK_BYTES;
        let blocks = self.area.units * blocks_in_unit;
        let tail = blocks % N::USIZE;
        let mut tweaks = Tweaks { first: self.first.iter(), blocks_in_unit, current: Tweak::default(), blocks_left: 0 };
        let mut masks: Array<Tweak, N> = Array::default();
        let mut group: Array<Block, N> = Array::default();
        let (mut src, mut dst) = (self.area.src.cast::<Block>(), self.area.dst.cast::<Block>());
        for _ in 0..blocks / N::USIZE {
            tweaks.fill(&mut masks);
            // SAFETY: a group that lies within the area; the pointers end up at most one past it.
            unsafe {
                load(src, &masks, &mut group);
                cipher(&mut group);
                store(dst, &masks, &group);
                src = src.add(N::USIZE);
                dst = dst.add(N::USIZE);
            }
        }
        if tail > 0 {
            tweaks.fill(&mut masks[..tail]);
            // SAFETY: the blocks that are left.
            unsafe {
                load(src, &masks[..tail], &mut group);
                cipher_tail(&mut group[..tail]);
                store(dst, &masks[..tail], &group);
            }
        }
    }
}

/// Reads as many blocks as there are masks, masked.
///
/// # Safety
///
/// `src` is readable for them.
#[inline(always)]
unsafe fn load(src: *const Block, masks: &[Tweak], group: &mut [Block]) {
    for (i, (block, mask)) in group.iter_mut().zip(masks).enumerate() {
        // SAFETY: the caller's promise.
        *block = mask.mask(unsafe { src.add(i).read_unaligned() });
    }
}

/// Writes as many blocks as there are masks, masked.
///
/// # Safety
///
/// `dst` is writable for them.
#[inline(always)]
unsafe fn store(dst: *mut Block, masks: &[Tweak], group: &[Block]) {
    for (i, (block, mask)) in group.iter().zip(masks).enumerate() {
        // SAFETY: the caller's promise.
        unsafe { dst.add(i).write_unaligned(mask.mask(*block)) };
    }
}

/// The tweaks of consecutive blocks of consecutive units.
struct Tweaks<'a> {
    /// Those of block 0 of the units that follow the current one.
    first: slice::Iter<'a, Block>,
    blocks_in_unit: usize,
    /// The next tweak of the current unit, and how many blocks that unit has left.
    current: Tweak,
    blocks_left: usize,
}

impl Tweaks<'_> {
    #[inline(always)]
    fn fill(&mut self, masks: &mut [Tweak]) {
        if self.blocks_left == 0 {
            self.next_unit();
        }
        if self.blocks_left >= masks.len() {
            self.step(masks);
        } else {
            self.fill_from_several(masks);
        }
    }

    fn fill_from_several(&mut self, mut masks: &mut [Tweak]) {
        while !masks.is_empty() {
            if self.blocks_left == 0 {
                self.next_unit();
            }
            let (now, later) = masks.split_at_mut(self.blocks_left.min(masks.len()));
            self.step(now);
            masks = later;
        }
    }

    #[inline(always)]
    fn step(&mut self, masks: &mut [Tweak]) {
        self.blocks_left -= masks.len();
        for mask in masks {
            *mask = self.current;
            self.current = self.current.times_x();
        }
    }

    #[inline(always)]
    fn next_unit(&mut self) {
        self.current = Tweak::new(self.first.next().expect("one for each unit"));
        self.blocks_left = self.blocks_in_unit;
    }
}

/// Units whose first tweaks are encrypted together: a 32 KiB request of 512-byte units.
const UNITS_AHEAD: usize = 64;
/// What the crate interleaves on a CPU with plain AES instructions.
const TWEAKS_GROUP: usize = 8;
/// Stack that the crate's key expansion, and its encryption with our own frame, may use.
const EXPAND_STACK_BYTES: usize = 8 * 1024;
const APPLY_STACK_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use aes::cipher::consts::{U1, U4, U8, U30, U64};
    use proptest::prelude::*;

    use super::*;

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

    proptest! {
        /// The crate picks the width of the groups by the CPU, and the tests of `xts` only meet the
        /// one of this CPU. So here are all of them, a block at a time among them: bit slicing, AES
        /// instructions, VAES in 256 and in 512 bits.
        #[test]
        fn any_width_of_the_cipher_gives_the_same(
            blocks_in_unit in prop_oneof![Just(32usize), 1usize..100],
            units in 1usize..=UNITS_AHEAD,
            first_unit in prop_oneof![any::<u64>(), (0u64..70).prop_map(|below| u64::MAX - below)],
            seed in any::<u8>(),
        ) {
            let key = XtsKey::from_bytes(&std::array::from_fn::<u8, 64, _>(|index| seed ^ index as u8)).unwrap();
            let portable = Portable::new(&key).unwrap();
            let data: Vec<u8> = (0..units * blocks_in_unit * BLOCK_BYTES).map(|index| (index * 31) as u8 ^ seed).collect();
            let unit_size = blocks_in_unit * BLOCK_BYTES;
            let run = |work: &dyn Fn(Area)| {
                let mut result = vec![0; data.len()];
                work(Area {
                    src: data.as_ptr(),
                    dst: result.as_mut_ptr(),
                    unit_size,
                    units,
                    first_unit: first_unit.into(),
                });
                result
            };
            // SAFETY: `run` gives two buffers of whole units.
            let expected = run(&|area| unsafe { portable.apply(Direction::Encrypt, area) });
            for (width, result) in [
                (1, run(&|area| encrypt_in_groups::<U1>(&portable.keys, area))),
                (4, run(&|area| encrypt_in_groups::<U4>(&portable.keys, area))),
                (8, run(&|area| encrypt_in_groups::<U8>(&portable.keys, area))),
                (30, run(&|area| encrypt_in_groups::<U30>(&portable.keys, area))),
                (64, run(&|area| encrypt_in_groups::<U64>(&portable.keys, area))),
            ] {
                prop_assert!(result == expected, "groups of {width}");
            }
        }
    }

    fn encrypt_in_groups<N: ArraySize>(keys: &Keys, area: Area) {
        let mut first = [Block::default(); UNITS_AHEAD];
        let first = keys.first_tweaks(&mut first, &area);
        Units { area, first }
            .apply::<N>(|group| keys.data.encrypt_blocks(group), |tail| keys.data.encrypt_blocks(tail));
    }

    #[test]
    fn the_number_of_a_unit_is_carried_past_64_bits() {
        let keys = Keys::blank();
        let mut first = [Block::default(); UNITS_AHEAD];
        let area = Area {
            src: std::ptr::null(),
            dst: std::ptr::null_mut(),
            unit_size: 512,
            units: 2,
            first_unit: u64::MAX.into(),
        };
        let mut expected = Array((1u128 << 64).to_le_bytes());
        keys.tweak.encrypt_block(&mut expected);
        assert_eq!(keys.first_tweaks(&mut first, &area)[1], expected);
    }
}
