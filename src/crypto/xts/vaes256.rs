//! XTS in 256-bit registers: VAES, AVX2 and carry-less multiplication, for CPUs that have these without AVX-512.
//!
//! A register holds two blocks; eight registers, 16 blocks, go through the rounds side by side. As in
//! `vaes512`, the first tweaks of several units are encrypted together before their data, and tweaks step
//! by a power of x that is a shift by whole bytes, here x^16.
//!
//! There are 16 registers and not 32: eight of state leave no room for the round keys, which are
//! operands in memory, the locked memory where they were expanded.

use std::arch::x86_64::{
    __m256i, _mm_loadu_si128, _mm256_aesdec_epi128, _mm256_aesdeclast_epi128, _mm256_aesenc_epi128,
    _mm256_aesenclast_epi128, _mm256_broadcastsi128_si256, _mm256_bslli_epi128, _mm256_bsrli_epi128,
    _mm256_clmulepi64_epi128, _mm256_loadu_si256, _mm256_maskload_epi64, _mm256_maskstore_epi64, _mm256_set_epi64x,
    _mm256_set1_epi64x, _mm256_setzero_si256, _mm256_sllv_epi64, _mm256_srlv_epi64, _mm256_storeu_si256,
    _mm256_sub_epi64, _mm256_xor_si256,
};
use std::hint::black_box;

use zeroize::zeroize_stack;

use super::area::Area;
use super::registers;
use super::schedule::{ROUND_KEYS, RoundKeys, Schedule};
use super::{BLOCK_BYTES, Direction, XtsKey};
use crate::crypto::{Locked, LockedError};

/// The expanded keys. Its existence proves that this CPU has the instructions.
pub(super) struct Vaes256 {
    schedule: Locked<Schedule>,
}

impl Vaes256 {
    /// Whether this CPU, and the operating system on it, run this implementation.
    pub(super) fn available() -> bool {
        is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq")
    }

    /// Expands `key`. None where the CPU lacks the instructions.
    pub(super) fn new(key: &XtsKey) -> Result<Option<Vaes256>, LockedError> {
        if !Vaes256::available() {
            return Ok(None);
        }
        // SAFETY: AES instructions are part of what `available` found.
        let schedule = unsafe { Schedule::expand(key)? };
        Ok(Some(Vaes256 { schedule }))
    }

    /// Runs XTS over the area.
    ///
    /// # Safety
    ///
    /// The area's memory is as [`Area`] says.
    pub(super) unsafe fn apply(&self, direction: Direction, area: Area) {
        let schedule = &*self.schedule;
        // SAFETY: `new` made `self` only where the CPU has the instructions; the rest is the
        // caller's promise.
        unsafe {
            match direction {
                Direction::Encrypt => apply::<true>(&schedule.encrypt, &schedule.tweak, area),
                Direction::Decrypt => apply::<false>(&schedule.decrypt, &schedule.tweak, area),
            }
        }
    }
}

/// # Safety
///
/// As [`Vaes256::apply`], and the CPU has the instructions.
#[target_feature(enable = "avx2,vaes,vpclmulqdq")]
unsafe fn apply<const ENCRYPT: bool>(keys: &RoundKeys, tweak_keys: &RoundKeys, mut area: Area) {
    let Area { unit_size, .. } = area;
    let mut first = FirstTweaks([[0; BLOCK_BYTES]; UNITS_AHEAD]);
    while let Some(Area { src, dst, units, first_unit, .. }) = area.split_off(UNITS_AHEAD) {
        let first = first.encrypt(tweak_keys, first_unit, units);
        // SAFETY: the caller's promise, for a part of the area.
        unsafe {
            if unit_size.is_multiple_of(GROUP_BYTES) {
                apply_to_groups::<ENCRYPT>(keys, first, src, dst, unit_size / GROUP_BYTES);
            } else {
                apply_to_odd_units::<ENCRYPT>(keys, first, src, dst, unit_size);
            }
        }
    }
    if !unit_size.is_multiple_of(GROUP_BYTES) {
        // That loop is not laid out so that no key is spilled.
        zeroize_stack::<4096>();
    }
    registers::wipe_avx();
}

/// As many units as there are first tweaks, each of `groups` groups of 256 bytes.
///
/// A function of its own that calls nothing. What does not fit into the registers are tweaks; a round key is
/// fetched where it is used, so that none is ever spilled to the stack. The tests in `residue` watch over that.
///
/// # Safety
///
/// `src` is readable and `dst` writable for the units; they are the same or do not overlap.
#[inline(never)]
#[target_feature(enable = "avx2,vaes,vpclmulqdq")]
unsafe fn apply_to_groups<const ENCRYPT: bool>(
    keys: &RoundKeys,
    first: &[[u8; BLOCK_BYTES]],
    mut src: *const u8,
    mut dst: *mut u8,
    groups: usize,
) {
    for first in first {
        let mut tweaks = spread(first);
        let mut groups_left = groups;
        loop {
            // Or the compiler would fetch keys once, before the loop, and spill them.
            let keys = black_box(keys);
            let mut state = [_mm256_setzero_si256(); WIDTH];
            for i in 0..WIDTH {
                // SAFETY: the i-th register of a group that lies within the source.
                let data = unsafe { _mm256_loadu_si256(src.add(i * REGISTER_BYTES).cast()) };
                state[i] = xor3(data, tweaks[i], keys.pair(0));
            }
            for index in 1..LAST_ROUND {
                let key = keys.pair(index);
                for block in &mut state {
                    *block = round::<ENCRYPT>(*block, key);
                }
            }
            let last = keys.pair(LAST_ROUND);
            for i in 0..WIDTH {
                // The last round adds its key at the end: adding the tweak to the key masks the
                // result for free.
                let data = last_round::<ENCRYPT>(state[i], _mm256_xor_si256(last, tweaks[i]));
                // SAFETY: as for the load, within the destination. Every load of this group has
                // been done, so that working in place is sound.
                unsafe { _mm256_storeu_si256(dst.add(i * REGISTER_BYTES).cast(), data) };
            }
            // SAFETY: at most one past the end of the buffers.
            unsafe {
                src = src.add(GROUP_BYTES);
                dst = dst.add(GROUP_BYTES);
            }
            groups_left -= 1;
            if groups_left == 0 {
                break;
            }
            for tweak in &mut tweaks {
                *tweak = times_x16(*tweak);
            }
        }
    }
}

/// Units whose size is not a multiple of 256 bytes, one register at a time, the last one in part.
/// No disk has such sectors, so plain is better than fast.
///
/// # Safety
///
/// As [`apply_to_groups`], for units of `unit_size` bytes, a multiple of 16.
#[inline(never)]
#[target_feature(enable = "avx2,vaes,vpclmulqdq")]
unsafe fn apply_to_odd_units<const ENCRYPT: bool>(
    keys: &RoundKeys,
    first: &[[u8; BLOCK_BYTES]],
    mut src: *const u8,
    mut dst: *mut u8,
    unit_size: usize,
) {
    for first in first {
        let mut tweaks = times_powers_of_x(broadcast(first), _mm256_set_epi64x(1, 1, 0, 0));
        let mut bytes_left = unit_size;
        while bytes_left > 0 {
            let bytes = bytes_left.min(REGISTER_BYTES);
            let upper = if bytes == REGISTER_BYTES { -1 } else { 0 };
            let words = _mm256_set_epi64x(upper, upper, -1, -1);
            // SAFETY: the mask leaves out what lies past the unit.
            let data = unsafe { _mm256_maskload_epi64(src.cast(), words) };
            let mut state = xor3(data, tweaks, keys.pair(0));
            for index in 1..LAST_ROUND {
                state = round::<ENCRYPT>(state, keys.pair(index));
            }
            state = last_round::<ENCRYPT>(state, _mm256_xor_si256(keys.pair(LAST_ROUND), tweaks));
            // SAFETY: as for the load; and at most one past the end of the buffers.
            unsafe {
                _mm256_maskstore_epi64(dst.cast(), words, state);
                src = src.add(bytes);
                dst = dst.add(bytes);
            }
            tweaks = times_powers_of_x(tweaks, _mm256_set1_epi64x(LANES as i64));
            bytes_left -= bytes;
        }
    }
}

/// Room for the tweaks of block 0 of consecutive units.
#[repr(C, align(32))]
struct FirstTweaks([[u8; BLOCK_BYTES]; UNITS_AHEAD]);

impl FirstTweaks {
    /// Encrypts the numbers of `units` units from `unit` on.
    #[inline(never)]
    #[target_feature(enable = "avx2,vaes,vpclmulqdq")]
    fn encrypt(&mut self, keys: &RoundKeys, unit: u128, units: usize) -> &[[u8; BLOCK_BYTES]] {
        match units {
            0..=2 => self.encrypt_registers::<1>(keys, unit),
            3..=4 => self.encrypt_registers::<2>(keys, unit),
            5..=8 => self.encrypt_registers::<4>(keys, unit),
            _ => self.encrypt_registers::<WIDTH>(keys, unit),
        }
        &self.0[..units]
    }

    #[inline]
    #[target_feature(enable = "avx2,vaes,vpclmulqdq")]
    fn encrypt_registers<const REGISTERS: usize>(&mut self, keys: &RoundKeys, unit: u128) {
        let mut state = [_mm256_setzero_si256(); REGISTERS];
        for (i, state) in state.iter_mut().enumerate() {
            // No closure: one with these instructions is called, not inlined, where not all is compiled as one.
            let even = unit + (i * LANES) as u128;
            let odd = even + 1;
            let numbers = _mm256_set_epi64x((odd >> 64) as i64, odd as i64, (even >> 64) as i64, even as i64);
            *state = _mm256_xor_si256(numbers, keys.pair(0));
        }
        for index in 1..LAST_ROUND {
            let key = keys.pair(index);
            for state in &mut state {
                *state = _mm256_aesenc_epi128(*state, key);
            }
        }
        let registers = self.0.as_chunks_mut::<LANES>().0;
        for (register, state) in registers.iter_mut().zip(state) {
            let tweaks = _mm256_aesenclast_epi128(state, keys.pair(LAST_ROUND));
            // SAFETY: writes the 32 bytes of two blocks.
            unsafe { _mm256_storeu_si256(register.as_mut_ptr().cast(), tweaks) };
        }
    }
}

/// The tweaks of the first 16 blocks of a unit, out of the first.
#[inline]
#[target_feature(enable = "avx2,vaes,vpclmulqdq")]
fn spread(first: &[u8; BLOCK_BYTES]) -> [__m256i; WIDTH] {
    let first = broadcast(first);
    let t0 = times_powers_of_x(first, _mm256_set_epi64x(1, 1, 0, 0));
    let t1 = times_powers_of_x(first, _mm256_set_epi64x(3, 3, 2, 2));
    let t2 = times_powers_of_x(first, _mm256_set_epi64x(5, 5, 4, 4));
    let t3 = times_powers_of_x(first, _mm256_set_epi64x(7, 7, 6, 6));
    [t0, t1, t2, t3, times_x8(t0), times_x8(t1), times_x8(t2), times_x8(t3)]
}

#[inline]
#[target_feature(enable = "avx2")]
fn broadcast(block: &[u8; BLOCK_BYTES]) -> __m256i {
    // SAFETY: reads the 16 bytes of one array.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(block.as_ptr().cast()) })
}

/// Each lane times x to the power given for both its halves, 0 to 7.
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
fn times_powers_of_x(tweaks: __m256i, powers: __m256i) -> __m256i {
    let shifted = _mm256_sllv_epi64(tweaks, powers);
    // Shifting by 64, where the power is 0, gives 0.
    let out = _mm256_srlv_epi64(tweaks, _mm256_sub_epi64(_mm256_set1_epi64x(64), powers));
    let carried = _mm256_bslli_epi128::<8>(out);
    let reduced = _mm256_clmulepi64_epi128::<0x01>(out, _mm256_set1_epi64x(POLYNOMIAL));
    xor3(shifted, carried, reduced)
}

macro_rules! times_power_of_x {
    ($name:ident, $bytes:literal) => {
        /// Each lane times x to the power of eight times the number of bytes shifted.
        #[inline]
        #[target_feature(enable = "avx2,vpclmulqdq")]
        fn $name(tweaks: __m256i) -> __m256i {
            let shifted = _mm256_bslli_epi128::<$bytes>(tweaks);
            let out = _mm256_bsrli_epi128::<{ 16 - $bytes }>(tweaks);
            let reduced = _mm256_clmulepi64_epi128::<0x00>(out, _mm256_set1_epi64x(POLYNOMIAL));
            _mm256_xor_si256(shifted, reduced)
        }
    };
}

times_power_of_x!(times_x8, 1);
times_power_of_x!(times_x16, 2);

#[inline]
#[target_feature(enable = "avx2,vaes")]
fn round<const ENCRYPT: bool>(state: __m256i, key: __m256i) -> __m256i {
    match ENCRYPT {
        true => _mm256_aesenc_epi128(state, key),
        false => _mm256_aesdec_epi128(state, key),
    }
}

#[inline]
#[target_feature(enable = "avx2,vaes")]
fn last_round<const ENCRYPT: bool>(state: __m256i, key: __m256i) -> __m256i {
    match ENCRYPT {
        true => _mm256_aesenclast_epi128(state, key),
        false => _mm256_aesdeclast_epi128(state, key),
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn xor3(a: __m256i, b: __m256i, c: __m256i) -> __m256i {
    _mm256_xor_si256(_mm256_xor_si256(a, b), c)
}

/// Blocks in a register.
const LANES: usize = 2;
const REGISTER_BYTES: usize = LANES * BLOCK_BYTES;
/// Registers that go through the rounds side by side.
const WIDTH: usize = 8;
const GROUP_BYTES: usize = WIDTH * REGISTER_BYTES;
const LAST_ROUND: usize = ROUND_KEYS - 1;
/// Units whose first tweaks are encrypted together.
const UNITS_AHEAD: usize = WIDTH * LANES;
/// x^128 modulo the field's polynomial: x^7 + x^2 + x + 1.
const POLYNOMIAL: i64 = 0x87;
