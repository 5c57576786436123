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
    __m512i, __mmask8, _mm_loadu_si128, _mm512_add_epi64, _mm512_aesdec_epi128,
    _mm512_aesdeclast_epi128, _mm512_aesenc_epi128, _mm512_aesenclast_epi128,
    _mm512_broadcast_i32x4, _mm512_bslli_epi128, _mm512_bsrli_epi128, _mm512_clmulepi64_epi128,
    _mm512_cmplt_epu64_mask, _mm512_loadu_si512, _mm512_mask_add_epi64, _mm512_mask_storeu_epi64,
    _mm512_maskz_loadu_epi64, _mm512_set_epi64, _mm512_set1_epi64, _mm512_setzero_si512,
    _mm512_sllv_epi64, _mm512_srlv_epi64, _mm512_storeu_si512, _mm512_sub_epi64,
    _mm512_ternarylogic_epi64, _mm512_xor_si512,
};

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
        let schedule = &*self.schedule;
        // SAFETY: `new` made `self` only where the CPU has the instructions; the rest is the
        // caller's promise.
        unsafe {
            match direction {
                Direction::Encrypt => apply::<true>(schedule, src, dst, len, unit_size, first_unit),
                Direction::Decrypt => {
                    apply::<false>(schedule, src, dst, len, unit_size, first_unit);
                }
            }
        }
    }
}

/// # Safety
///
/// As [`Vaes512::apply`], and the CPU has the instructions.
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
unsafe fn apply<const ENCRYPT: bool>(
    schedule: &Schedule,
    mut src: *const u8,
    mut dst: *mut u8,
    len: usize,
    unit_size: usize,
    first_unit: u64,
) {
    let data_keys = match ENCRYPT {
        true => &schedule.encrypt,
        false => &schedule.decrypt,
    };
    let keys = data_keys.load();
    let mut first = [_mm512_setzero_si512(); UNITS_AHEAD / LANES];
    let mut units_left = len / unit_size;
    let mut next_unit = u128::from(first_unit);
    while units_left > 0 {
        let units = units_left.min(UNITS_AHEAD);
        first_tweaks(&schedule.tweak, next_unit, units, &mut first);
        for unit in 0..units {
            // SAFETY: one of the at most UNITS_AHEAD blocks of `first`.
            let tweak = unsafe { first.as_ptr().cast::<[u8; BLOCK_BYTES]>().add(unit) };
            // SAFETY: the unit lies wholly within the caller's buffers, and so do the pointers
            // one past its end; the tweak is a block.
            unsafe {
                apply_to_unit::<ENCRYPT>(&keys, &*tweak, src, dst, unit_size);
                src = src.add(unit_size);
                dst = dst.add(unit_size);
            }
        }
        units_left -= units;
        next_unit += units as u128;
    }
}

/// # Safety
///
/// `src` is readable and `dst` writable for `unit_size` bytes, a multiple of 16; they are the same
/// or do not overlap.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
unsafe fn apply_to_unit<const ENCRYPT: bool>(
    keys: &[__m512i; ROUND_KEYS],
    first_tweak: &[u8; BLOCK_BYTES],
    mut src: *const u8,
    mut dst: *mut u8,
    unit_size: usize,
) {
    let mut tweaks = spread(first_tweak);
    let mut groups_left = unit_size / GROUP_BYTES;
    let rest = unit_size % GROUP_BYTES;
    while groups_left > 0 {
        let mut state = [_mm512_setzero_si512(); WIDTH];
        for i in 0..WIDTH {
            // SAFETY: a whole group is left, so that its i-th register is within the source.
            let data = unsafe { _mm512_loadu_si512(src.add(i * REGISTER_BYTES).cast()) };
            state[i] = xor3(data, tweaks[i], keys[0]);
        }
        for key in &keys[1..ROUND_KEYS - 1] {
            for block in &mut state {
                *block = round::<ENCRYPT>(*block, *key);
            }
        }
        for i in 0..WIDTH {
            // The last round adds its key at the end: adding the tweak to the key masks the
            // result for free.
            let mask = _mm512_xor_si512(keys[ROUND_KEYS - 1], tweaks[i]);
            let data = last_round::<ENCRYPT>(state[i], mask);
            // SAFETY: as for the load, within the destination. Every load of this group has been
            // done, so that working in place is sound.
            unsafe { _mm512_storeu_si512(dst.add(i * REGISTER_BYTES).cast(), data) };
        }
        groups_left -= 1;
        if groups_left == 0 && rest == 0 {
            return;
        }
        for tweak in &mut tweaks {
            *tweak = times_x32(*tweak);
        }
        // SAFETY: at most one past the end of the unit.
        unsafe {
            src = src.add(GROUP_BYTES);
            dst = dst.add(GROUP_BYTES);
        }
    }
    // A copy, so that the array above is never indexed by a variable and stays in registers.
    let tweaks = tweaks;
    // SAFETY: less than a group is left, and this is all of it.
    unsafe { apply_to_rest::<ENCRYPT>(keys, &tweaks, src, dst, rest) };
}

/// The end of a unit that is not a multiple of 512 bytes: one register at a time, the last one in
/// part. Rare enough (no disk has such sectors) not to be worth more.
///
/// # Safety
///
/// As [`apply_to_unit`], for `bytes` less than a group.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
unsafe fn apply_to_rest<const ENCRYPT: bool>(
    keys: &[__m512i; ROUND_KEYS],
    tweaks: &[__m512i; WIDTH],
    src: *const u8,
    dst: *mut u8,
    bytes: usize,
) {
    for (i, tweak) in tweaks.iter().enumerate() {
        let done = i * REGISTER_BYTES;
        if done >= bytes {
            return;
        }
        let words = ((bytes - done) / 8).min(8);
        let mask = (0xff_u16 >> (8 - words)) as __mmask8;
        // SAFETY: the mask leaves out what lies past `bytes`.
        let data = unsafe { _mm512_maskz_loadu_epi64(mask, src.add(done).cast()) };
        let mut state = xor3(data, *tweak, keys[0]);
        for key in &keys[1..ROUND_KEYS - 1] {
            state = round::<ENCRYPT>(state, *key);
        }
        state = last_round::<ENCRYPT>(state, _mm512_xor_si512(keys[ROUND_KEYS - 1], *tweak));
        // SAFETY: as for the load.
        unsafe { _mm512_mask_storeu_epi64(dst.add(done).cast(), mask, state) };
    }
}

/// Encrypts the numbers of `units` units from `unit` on into the first blocks of `first`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn first_tweaks(
    keys: &RoundKeys,
    unit: u128,
    units: usize,
    first: &mut [__m512i; UNITS_AHEAD / LANES],
) {
    match units {
        0..=4 => encrypt_numbers::<1>(keys, unit, first),
        5..=8 => encrypt_numbers::<2>(keys, unit, first),
        9..=16 => encrypt_numbers::<4>(keys, unit, first),
        _ => encrypt_numbers::<8>(keys, unit, first),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn encrypt_numbers<const REGISTERS: usize>(
    keys: &RoundKeys,
    unit: u128,
    first: &mut [__m512i; UNITS_AHEAD / LANES],
) {
    let (low, high) = (unit as i64, (unit >> 64) as i64);
    let base = _mm512_set_epi64(high, low, high, low, high, low, high, low);
    let mut state = [_mm512_setzero_si512(); REGISTERS];
    for (i, state) in state.iter_mut().enumerate() {
        let i = (i * LANES) as i64;
        let offset = _mm512_set_epi64(0, i + 3, 0, i + 2, 0, i + 1, 0, i);
        let sum = _mm512_add_epi64(base, offset);
        // A lower half that became smaller has overflowed into the upper one.
        let overflow = _mm512_cmplt_epu64_mask(sum, base);
        let number = _mm512_mask_add_epi64(sum, overflow << 1, sum, _mm512_set1_epi64(1));
        *state = _mm512_xor_si512(number, keys.round(0));
    }
    for index in 1..ROUND_KEYS - 1 {
        let key = keys.round(index);
        for state in &mut state {
            *state = _mm512_aesenc_epi128(*state, key);
        }
    }
    let last = keys.round(ROUND_KEYS - 1);
    for (first, state) in first.iter_mut().zip(state) {
        *first = _mm512_aesenclast_epi128(state, last);
    }
}

/// The tweaks of the first 32 blocks of a unit, out of the first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn spread(first: &[u8; BLOCK_BYTES]) -> [__m512i; WIDTH] {
    // SAFETY: reads the 16 bytes of one array.
    let first = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(first.as_ptr().cast()) });
    let t0 = times_powers_of_x(first, _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0));
    let t1 = times_powers_of_x(first, _mm512_set_epi64(7, 7, 6, 6, 5, 5, 4, 4));
    let (t2, t3) = (times_x8(t0), times_x8(t1));
    [
        t0,
        t1,
        t2,
        t3,
        times_x16(t0),
        times_x16(t1),
        times_x16(t2),
        times_x16(t3),
    ]
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
/// Units whose first tweaks are encrypted together.
const UNITS_AHEAD: usize = WIDTH * LANES;
/// x^128 modulo the field's polynomial: x^7 + x^2 + x + 1.
const POLYNOMIAL: i64 = 0x87;
