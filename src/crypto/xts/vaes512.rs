//! XTS in 512-bit registers: VAES, AVX-512 and carry-less multiplication.
//!
//! A register holds four blocks; eight registers, 32 blocks, go through the rounds side by side,
//! which is what it takes to keep the AES units of current CPUs busy. Two more things keep them
//! from waiting:
//!
//! - The first tweaks of up to 32 units are encrypted together, before their data: one at a time,
//!   each 512-byte unit would wait for the latency of a whole AES.
//! - Tweaks step by x^32, a group of 32 blocks at a time. Multiplying by a power of x that is a
//!   multiple of 8 is a shift by whole bytes; what is shifted out comes back multiplied by
//!   x^7 + x^2 + x + 1 (0x87, the field's polynomial), one carry-less multiplication.
//!
//! Data is loaded, masked, encrypted and stored once, straight from source to destination.

use std::arch::x86_64::{
    __m512i, __mmask8, _mm_loadu_si128, _mm512_add_epi64, _mm512_aesdec_epi128, _mm512_aesdeclast_epi128,
    _mm512_aesenc_epi128, _mm512_aesenclast_epi128, _mm512_broadcast_i32x4, _mm512_bslli_epi128, _mm512_bsrli_epi128,
    _mm512_clmulepi64_epi128, _mm512_cmplt_epu64_mask, _mm512_loadu_si512, _mm512_mask_add_epi64,
    _mm512_mask_storeu_epi64, _mm512_maskz_loadu_epi64, _mm512_set_epi64, _mm512_set1_epi64, _mm512_setzero_si512,
    _mm512_sllv_epi64, _mm512_srlv_epi64, _mm512_storeu_si512, _mm512_sub_epi64, _mm512_ternarylogic_epi64,
    _mm512_xor_si512,
};

use zeroize::zeroize_stack;

use super::area::Area;
use super::registers;
use super::schedule::{ROUND_KEYS, RoundKeys, Schedule};
use super::{BLOCK_BYTES, Direction, XtsKey};
use crate::crypto::{Locked, LockedError};

/// The expanded keys. Its existence proves that this CPU has the instructions.
pub(super) struct Vaes512 {
    schedule: Locked<Schedule>,
}

impl Vaes512 {
    /// Whether this CPU, and the operating system on it, run this implementation.
    pub(super) fn available() -> bool {
        is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq")
    }

    /// Expands `key`. None where the CPU lacks the instructions.
    pub(super) fn new(key: &XtsKey) -> Result<Option<Vaes512>, LockedError> {
        if !Vaes512::available() {
            return Ok(None);
        }
        // SAFETY: AES instructions are part of what `available` found.
        let schedule = unsafe { Schedule::expand(key)? };
        Ok(Some(Vaes512 { schedule }))
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
/// As [`Vaes512::apply`], and the CPU has the instructions.
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
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
    registers::wipe_avx512();
}

/// As many units as there are first tweaks, each of `groups` groups of 512 bytes.
///
/// A function of its own that calls nothing: the fifteen round keys, eight blocks of state and
/// eight of tweaks, and the polynomial, fill the 32 registers exactly, and no key is ever spilled
/// to the stack. The tests in `residue` watch over that.
///
/// # Safety
///
/// `src` is readable and `dst` writable for the units; they are the same or do not overlap.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
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
            let mut state = [_mm512_setzero_si512(); WIDTH];
            for i in 0..WIDTH {
                // SAFETY: the i-th register of a group that lies within the source.
                let data = unsafe { _mm512_loadu_si512(src.add(i * REGISTER_BYTES).cast()) };
                state[i] = xor3(data, tweaks[i], keys.round(0));
            }
            for index in 1..LAST_ROUND {
                for block in &mut state {
                    *block = round::<ENCRYPT>(*block, keys.round(index));
                }
            }
            for i in 0..WIDTH {
                // The last round adds its key at the end: adding the tweak to the key masks the
                // result for free.
                let mask = _mm512_xor_si512(keys.round(LAST_ROUND), tweaks[i]);
                let data = last_round::<ENCRYPT>(state[i], mask);
                // SAFETY: as for the load, within the destination. Every load of this group has
                // been done, so that working in place is sound.
                unsafe { _mm512_storeu_si512(dst.add(i * REGISTER_BYTES).cast(), data) };
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
            // Spelled out: a loop here makes the compiler keep the tweaks in memory.
            let [a, b, c, d, e, f, g, h] = tweaks;
            tweaks = [
                times_x32(a),
                times_x32(b),
                times_x32(c),
                times_x32(d),
                times_x32(e),
                times_x32(f),
                times_x32(g),
                times_x32(h),
            ];
        }
    }
}

/// Units whose size is not a multiple of 512 bytes, one register at a time, the last one in part.
/// No disk has such sectors, so plain is better than fast.
///
/// # Safety
///
/// As [`apply_to_groups`], for units of `unit_size` bytes, a multiple of 16.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
unsafe fn apply_to_odd_units<const ENCRYPT: bool>(
    keys: &RoundKeys,
    first: &[[u8; BLOCK_BYTES]],
    mut src: *const u8,
    mut dst: *mut u8,
    unit_size: usize,
) {
    for first in first {
        let mut tweaks = times_powers_of_x(broadcast(first), _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0));
        let mut bytes_left = unit_size;
        while bytes_left > 0 {
            let bytes = bytes_left.min(REGISTER_BYTES);
            let words = (0xff_u16 >> (8 - bytes / 8)) as __mmask8;
            // SAFETY: the mask leaves out what lies past the unit.
            let data = unsafe { _mm512_maskz_loadu_epi64(words, src.cast()) };
            let mut state = xor3(data, tweaks, keys.round(0));
            for index in 1..LAST_ROUND {
                state = round::<ENCRYPT>(state, keys.round(index));
            }
            let mask = _mm512_xor_si512(keys.round(LAST_ROUND), tweaks);
            state = last_round::<ENCRYPT>(state, mask);
            // SAFETY: as for the load; and at most one past the end of the buffers.
            unsafe {
                _mm512_mask_storeu_epi64(dst.cast(), words, state);
                src = src.add(bytes);
                dst = dst.add(bytes);
            }
            tweaks = times_powers_of_x(tweaks, _mm512_set1_epi64(LANES as i64));
            bytes_left -= bytes;
        }
    }
}

/// Room for the tweaks of block 0 of consecutive units.
#[repr(C, align(64))]
struct FirstTweaks([[u8; BLOCK_BYTES]; UNITS_AHEAD]);

impl FirstTweaks {
    /// Encrypts the numbers of `units` units from `unit` on.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
    fn encrypt(&mut self, keys: &RoundKeys, unit: u128, units: usize) -> &[[u8; BLOCK_BYTES]] {
        match units {
            0..=4 => self.encrypt_registers::<1>(keys, unit),
            5..=8 => self.encrypt_registers::<2>(keys, unit),
            9..=16 => self.encrypt_registers::<4>(keys, unit),
            _ => self.encrypt_registers::<WIDTH>(keys, unit),
        }
        &self.0[..units]
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
    fn encrypt_registers<const REGISTERS: usize>(&mut self, keys: &RoundKeys, unit: u128) {
        let (low, high) = (unit as i64, (unit >> 64) as i64);
        let base = _mm512_set_epi64(high, low, high, low, high, low, high, low);
        let mut state = [_mm512_setzero_si512(); REGISTERS];
        for (i, state) in state.iter_mut().enumerate() {
            let i = (i * LANES) as i64;
            let sum = _mm512_add_epi64(base, _mm512_set_epi64(0, i + 3, 0, i + 2, 0, i + 1, 0, i));
            // A lower half that became smaller has overflowed into the upper one.
            let overflow = _mm512_cmplt_epu64_mask(sum, base);
            let number = _mm512_mask_add_epi64(sum, overflow << 1, sum, _mm512_set1_epi64(1));
            *state = _mm512_xor_si512(number, keys.round(0));
        }
        for index in 1..LAST_ROUND {
            for state in &mut state {
                *state = _mm512_aesenc_epi128(*state, keys.round(index));
            }
        }
        let registers = self.0.as_chunks_mut::<LANES>().0;
        for (register, state) in registers.iter_mut().zip(state) {
            let tweaks = _mm512_aesenclast_epi128(state, keys.round(LAST_ROUND));
            // SAFETY: writes the 64 bytes of four blocks.
            unsafe { _mm512_storeu_si512(register.as_mut_ptr().cast(), tweaks) };
        }
    }
}

/// The tweaks of the first 32 blocks of a unit, out of the first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn spread(first: &[u8; BLOCK_BYTES]) -> [__m512i; WIDTH] {
    let first = broadcast(first);
    let t0 = times_powers_of_x(first, _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0));
    let t1 = times_powers_of_x(first, _mm512_set_epi64(7, 7, 6, 6, 5, 5, 4, 4));
    let (t2, t3) = (times_x8(t0), times_x8(t1));
    [t0, t1, t2, t3, times_x16(t0), times_x16(t1), times_x16(t2), times_x16(t3)]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn broadcast(block: &[u8; BLOCK_BYTES]) -> __m512i {
    // SAFETY: reads the 16 bytes of one array.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(block.as_ptr().cast()) })
}

/// Each lane times x to the power given for both its halves, 0 to 7.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vpclmulqdq")]
fn times_powers_of_x(tweaks: __m512i, powers: __m512i) -> __m512i {
    let shifted = _mm512_sllv_epi64(tweaks, powers);
    // Shifting by 64, where the power is 0, gives 0.
    let out = _mm512_srlv_epi64(tweaks, _mm512_sub_epi64(_mm512_set1_epi64(64), powers));
    let carried = _mm512_bslli_epi128::<8>(out);
    let reduced = _mm512_clmulepi64_epi128::<0x01>(out, _mm512_set1_epi64(POLYNOMIAL));
    xor3(shifted, carried, reduced)
}

macro_rules! times_power_of_x {
    ($name:ident, $bytes:literal) => {
        /// Each lane times x to the power of eight times the number of bytes shifted.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,vpclmulqdq")]
        fn $name(tweaks: __m512i) -> __m512i {
            let shifted = _mm512_bslli_epi128::<$bytes>(tweaks);
            let out = _mm512_bsrli_epi128::<{ 16 - $bytes }>(tweaks);
            let reduced = _mm512_clmulepi64_epi128::<0x00>(out, _mm512_set1_epi64(POLYNOMIAL));
            _mm512_xor_si512(shifted, reduced)
        }
    };
}

times_power_of_x!(times_x8, 1);
times_power_of_x!(times_x16, 2);
times_power_of_x!(times_x32, 4);

#[inline]
#[target_feature(enable = "avx512f,vaes")]
fn round<const ENCRYPT: bool>(state: __m512i, key: __m512i) -> __m512i {
    match ENCRYPT {
        true => _mm512_aesenc_epi128(state, key),
        false => _mm512_aesdec_epi128(state, key),
    }
}

#[inline]
#[target_feature(enable = "avx512f,vaes")]
fn last_round<const ENCRYPT: bool>(state: __m512i, key: __m512i) -> __m512i {
    match ENCRYPT {
        true => _mm512_aesenclast_epi128(state, key),
        false => _mm512_aesdeclast_epi128(state, key),
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn xor3(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    // 0x96 is the truth table of exclusive or of three.
    _mm512_ternarylogic_epi64::<0x96>(a, b, c)
}

/// Blocks in a register.
const LANES: usize = 4;
const REGISTER_BYTES: usize = LANES * BLOCK_BYTES;
/// Registers that go through the rounds side by side.
const WIDTH: usize = 8;
const GROUP_BYTES: usize = WIDTH * REGISTER_BYTES;
const LAST_ROUND: usize = ROUND_KEYS - 1;
/// Units whose first tweaks are encrypted together.
const UNITS_AHEAD: usize = WIDTH * LANES;
/// x^128 modulo the field's polynomial: x^7 + x^2 + x + 1.
const POLYNOMIAL: i64 = 0x87;
