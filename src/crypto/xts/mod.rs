//! AES-256-XTS over whole data units: IEEE 1619-2007, NIST SP 800-38E.
//!
//! Data unit *n* is `unit_size` bytes of the device, starting at byte `n * unit_size`. Its blocks
//! are sealed under the data key, each masked before and after with a tweak: the tweak of block 0
//! is *n*, as a little-endian 128-bit number, encrypted under the tweak key (§5.1), and each next
//! one is the one before times x in GF(2^128) (§5.2). Units are multiples of 16 bytes, so the
//! ciphertext stealing of §5.3.2 never arises. This is byte for byte what dm-crypt writes as
//! `aes-xts-plain64` (with `iv_large_sectors` for units above 512 bytes), and what OpenSSL calls
//! `aes-256-xts`.
//!
//! [`Xts`] picks the fastest [`Implementation`] that the CPU runs. All of them are held to the
//! same tests: the standard's vectors, OpenSSL and the `xts-mode` crate; and
//! [`self_test`](crate::crypto::self_test) holds them to `xts-mode` again on the machine itself.
//!
//! Time depends on lengths and addresses only, never on a key or data byte: no secret is branched
//! upon and none indexes a table.

mod area;
mod key;
mod portable;
#[cfg(target_arch = "x86_64")]
mod registers;
#[cfg(target_arch = "x86_64")]
mod schedule;
mod tweak;
#[cfg(target_arch = "x86_64")]
mod vaes256;
#[cfg(target_arch = "x86_64")]
mod vaes512;

use std::fmt;

use crate::crypto::LockedError;
use area::Area;
use portable::Portable;
#[cfg(target_arch = "x86_64")]
use vaes256::Vaes256;
#[cfg(target_arch = "x86_64")]
use vaes512::Vaes512;

pub use key::{KEY_BYTES, XtsKey, XtsKeyError};

/// Bytes in an AES block.
pub const BLOCK_BYTES: usize = 16;

/// The longest data unit, in bytes: 2^20 blocks (IEEE 1619-2007 §5.1, SP 800-38E §4).
pub const UNIT_BYTES_MAX: usize = BLOCK_BYTES << 20;

/// AES-256-XTS under one key, ready to use: the expanded keys, in locked memory.
///
/// Shared freely between threads; every method takes `&self` and allocates nothing.
pub struct Xts {
    engine: Engine,
}

/// A way to compute XTS. They differ in speed and in what they ask of the CPU, in nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Implementation {
    /// 32 blocks at a time in 512-bit registers. x86-64 with AVX-512, VAES and VPCLMULQDQ.
    VaesAvx512,
    /// 16 blocks at a time in 256-bit registers. x86-64 with AVX2, VAES and VPCLMULQDQ.
    VaesAvx2,
    /// The `aes` crate, many blocks at a time: AES instructions where the CPU has them,
    /// constant-time software where it has none.
    Portable,
}

/// Which way data goes through the cipher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Plaintext to ciphertext.
    Encrypt,
    /// Ciphertext to plaintext.
    Decrypt,
}

/// Why a cipher could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum XtsError {
    /// No locked memory for the expanded keys.
    #[error(transparent)]
    Memory(#[from] LockedError),
    /// Asked for by name, but this CPU lacks the instructions.
    #[error("this CPU cannot run the {0} implementation of XTS; let sealblk choose one")]
    Unavailable(Implementation),
}

impl Xts {
    /// Expands `key` for the fastest implementation that this CPU runs.
    ///
    /// # Errors
    ///
    /// [`XtsError::Memory`] when the expanded keys cannot be locked in memory.
    pub fn new(key: &XtsKey) -> Result<Xts, XtsError> {
        let fastest = Implementation::available()[0];
        Xts::with_implementation(key, fastest)
    }

    /// Expands `key` for a given implementation.
    ///
    /// # Errors
    ///
    /// [`XtsError::Unavailable`] when this CPU lacks it, [`XtsError::Memory`] when the expanded
    /// keys cannot be locked in memory.
    pub fn with_implementation(key: &XtsKey, implementation: Implementation) -> Result<Xts, XtsError> {
        let engine = match implementation {
            #[cfg(target_arch = "x86_64")]
            Implementation::VaesAvx512 => Vaes512::new(key)?.map(Engine::Vaes512),
            #[cfg(target_arch = "x86_64")]
            Implementation::VaesAvx2 => Vaes256::new(key)?.map(Engine::Vaes256),
            #[cfg(not(target_arch = "x86_64"))]
            Implementation::VaesAvx512 | Implementation::VaesAvx2 => None,
            Implementation::Portable => Some(Engine::Portable(Portable::new(key)?)),
        };
        let engine = engine.ok_or(XtsError::Unavailable(implementation))?;
        Ok(Xts { engine })
    }

    /// The implementation in use.
    pub fn implementation(&self) -> Implementation {
        match self.engine {
            #[cfg(target_arch = "x86_64")]
            Engine::Vaes512(_) => Implementation::VaesAvx512,
            #[cfg(target_arch = "x86_64")]
            Engine::Vaes256(_) => Implementation::VaesAvx2,
            Engine::Portable(_) => Implementation::Portable,
        }
    }

    /// Encrypts whole units in place; the first of them is unit `first_unit` of the device.
    ///
    /// # Panics
    ///
    /// When `unit_size` is not a multiple of 16 from 16 to [`UNIT_BYTES_MAX`], or `data` not a
    /// whole number of units.
    pub fn encrypt(&self, data: &mut [u8], unit_size: usize, first_unit: u64) {
        self.apply_in_place(Direction::Encrypt, data, unit_size, first_unit);
    }

    /// Decrypts whole units in place; the first of them is unit `first_unit` of the device.
    ///
    /// # Panics
    ///
    /// As [`encrypt`](Xts::encrypt).
    pub fn decrypt(&self, data: &mut [u8], unit_size: usize, first_unit: u64) {
        self.apply_in_place(Direction::Decrypt, data, unit_size, first_unit);
    }

    /// Encrypts the `len` bytes at `src` to `dst`, reading each byte of `src` once.
    ///
    /// Raw pointers, because one end may be guest memory, which the guest may be changing at this
    /// very moment: then `dst` holds the encryption of some mix of the old and new bytes, and
    /// nothing worse.
    ///
    /// # Panics
    ///
    /// As [`encrypt`](Xts::encrypt), with `len` for the length of the data.
    ///
    /// # Safety
    ///
    /// `src` must be readable and `dst` writable for `len` bytes. Either `src == dst`, or the two
    /// ranges do not overlap. Neither needs any alignment. Nobody holds a Rust reference into the
    /// range at `dst`.
    pub unsafe fn encrypt_raw(&self, src: *const u8, dst: *mut u8, len: usize, unit_size: usize, first_unit: u64) {
        // SAFETY: the caller's promise, passed on.
        unsafe { self.apply_raw(Direction::Encrypt, src, dst, len, unit_size, first_unit) }
    }

    /// Decrypts the `len` bytes at `src` to `dst`, reading each byte of `src` once.
    ///
    /// # Panics
    ///
    /// As [`encrypt_raw`](Xts::encrypt_raw).
    ///
    /// # Safety
    ///
    /// As [`encrypt_raw`](Xts::encrypt_raw).
    pub unsafe fn decrypt_raw(&self, src: *const u8, dst: *mut u8, len: usize, unit_size: usize, first_unit: u64) {
        // SAFETY: the caller's promise, passed on.
        unsafe { self.apply_raw(Direction::Decrypt, src, dst, len, unit_size, first_unit) }
    }

    /// [`encrypt`](Xts::encrypt) or [`decrypt`](Xts::decrypt), by value.
    pub(crate) fn apply_in_place(&self, direction: Direction, data: &mut [u8], unit_size: usize, first_unit: u64) {
        let start = data.as_mut_ptr();
        // SAFETY: source and destination are the same exclusively borrowed slice.
        unsafe { self.apply_raw(direction, start, start, data.len(), unit_size, first_unit) }
    }

    /// [`encrypt_raw`](Xts::encrypt_raw) or [`decrypt_raw`](Xts::decrypt_raw), by value.
    ///
    /// # Safety
    ///
    /// As [`encrypt_raw`](Xts::encrypt_raw).
    pub(crate) unsafe fn apply_raw(
        &self,
        direction: Direction,
        src: *const u8,
        dst: *mut u8,
        len: usize,
        unit_size: usize,
        first_unit: u64,
    ) {
        assert!(
            (BLOCK_BYTES..=UNIT_BYTES_MAX).contains(&unit_size)
                && unit_size.is_multiple_of(BLOCK_BYTES)
                && len.is_multiple_of(unit_size),
            "{len} bytes are not whole units of {unit_size} bytes"
        );
        let area = Area { src, dst, unit_size, units: len / unit_size, first_unit: first_unit.into() };
        // SAFETY: the caller's promise about the memory, and the lengths asserted above.
        unsafe {
            match &self.engine {
                #[cfg(target_arch = "x86_64")]
                Engine::Vaes512(engine) => engine.apply(direction, area),
                #[cfg(target_arch = "x86_64")]
                Engine::Vaes256(engine) => engine.apply(direction, area),
                Engine::Portable(engine) => {
                    engine.apply(direction, area);
                    #[cfg(target_arch = "x86_64")]
                    registers::wipe();
                }
            }
        }
    }
}

impl fmt::Debug for Xts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Xts({}, [redacted])", self.implementation())
    }
}

impl Implementation {
    /// What this CPU runs, fastest first. Never empty: [`Implementation::Portable`] is always
    /// there.
    pub fn available() -> &'static [Implementation] {
        #[cfg(target_arch = "x86_64")]
        match (Vaes512::available(), Vaes256::available()) {
            (true, true) => {
                return &[Implementation::VaesAvx512, Implementation::VaesAvx2, Implementation::Portable];
            }
            (true, false) => return &[Implementation::VaesAvx512, Implementation::Portable],
            (false, true) => return &[Implementation::VaesAvx2, Implementation::Portable],
            (false, false) => {}
        }
        &[Implementation::Portable]
    }

    /// A short name, for logs and benchmarks.
    pub fn name(self) -> &'static str {
        match self {
            Implementation::VaesAvx512 => "vaes-avx512",
            Implementation::VaesAvx2 => "vaes-avx2",
            Implementation::Portable => "portable",
        }
    }
}

impl fmt::Display for Implementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Direction::Encrypt => "encrypt",
            Direction::Decrypt => "decrypt",
        })
    }
}

enum Engine {
    #[cfg(target_arch = "x86_64")]
    Vaes512(Vaes512),
    #[cfg(target_arch = "x86_64")]
    Vaes256(Vaes256),
    Portable(Portable),
}

#[cfg(test)]
mod residue;
#[cfg(test)]
mod tests;
