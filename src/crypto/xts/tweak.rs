//! Tweaks: elements of GF(2^128), one for each block.
//!
//! Each tweak is the one before times x, modulo x^128 + x^7 + x^2 + x + 1 (IEEE 1619-2007 §5.2).
//! The order of the standard's byte strings makes a tweak a little-endian 128-bit number, and
//! times x a shift by one bit: what is shifted out at the top comes back as 0x87.
//!
//! On x86-64 a tweak lives in a vector register from end to end: as two 64-bit halves in general
//! registers it would travel through memory for every block it masks, written in halves and read
//! back whole, which stalls the CPU.

use aes::Block;

pub(super) use lanes::Tweak;

#[cfg(target_arch = "x86_64")]
mod lanes {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi64, _mm_and_si128, _mm_loadu_si128, _mm_set_epi32, _mm_setzero_si128, _mm_shuffle_epi32,
        _mm_srai_epi32, _mm_storeu_si128, _mm_xor_si128,
    };

    use super::Block;

    /// The tweak of one block.
    #[derive(Clone, Copy)]
    pub(in crate::crypto::xts) struct Tweak(__m128i);

    impl Tweak {
        #[inline(always)]
        pub(in crate::crypto::xts) fn new(block: &Block) -> Tweak {
            // SAFETY: reads the 16 bytes of one block; every x86-64 CPU has SSE2.
            Tweak(unsafe { _mm_loadu_si128(block.as_ptr().cast()) })
        }

        #[inline(always)]
        pub(in crate::crypto::xts) fn times_x(self) -> Tweak {
            // Adding doubles each half. Bit 127 belongs, as 0x87, to the lowest 32 bits, and bit 63
            // to those above the middle: both are moved there and spread over their 32 bits.
            // SAFETY: every x86-64 CPU has SSE2.
            unsafe {
                let doubled = _mm_add_epi64(self.0, self.0);
                let out = _mm_srai_epi32::<31>(_mm_shuffle_epi32::<0b00_01_00_11>(self.0));
                Tweak(_mm_xor_si128(doubled, _mm_and_si128(out, _mm_set_epi32(0, 1, 0, 0x87))))
            }
        }

        /// The block plus the tweak.
        #[inline(always)]
        pub(in crate::crypto::xts) fn mask(self, mut block: Block) -> Block {
            // SAFETY: reads and writes the 16 bytes of one block; every x86-64 CPU has SSE2.
            unsafe {
                let masked = _mm_xor_si128(_mm_loadu_si128(block.as_ptr().cast()), self.0);
                _mm_storeu_si128(block.as_mut_ptr().cast(), masked);
            }
            block
        }
    }

    impl Default for Tweak {
        fn default() -> Tweak {
            // SAFETY: every x86-64 CPU has SSE2.
            Tweak(unsafe { _mm_setzero_si128() })
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod lanes {
    use super::Block;

    /// The tweak of one block.
    #[derive(Clone, Copy, Default)]
    pub(in crate::crypto::xts) struct Tweak(u128);

    impl Tweak {
        #[inline(always)]
        pub(in crate::crypto::xts) fn new(block: &Block) -> Tweak {
            Tweak(u128::from_le_bytes(block.0))
        }

        #[inline(always)]
        pub(in crate::crypto::xts) fn times_x(self) -> Tweak {
            let overflow = (self.0 >> 127) as u64;
            Tweak((self.0 << 1) ^ u128::from(overflow.wrapping_neg() & 0x87))
        }

        /// The block plus the tweak.
        #[inline(always)]
        pub(in crate::crypto::xts) fn mask(self, mut block: Block) -> Block {
            block.0 = (u128::from_le_bytes(block.0) ^ self.0).to_le_bytes();
            block
        }
    }
}

#[cfg(test)]
mod tests {
    use aes::cipher::Array;

    use super::*;

    fn times_x(tweak: u128) -> u128 {
        let tweak = Tweak::new(&Array(tweak.to_le_bytes()));
        u128::from_le_bytes(tweak.times_x().mask(Block::default()).0)
    }

    #[test]
    fn times_x_reduces_by_the_polynomial_of_the_standard() {
        assert_eq!(times_x(1), 2);
        assert_eq!(times_x(1 << 127), 0x87);
        assert_eq!(times_x(u128::MAX), (u128::MAX << 1) ^ 0x87);
        for bit in 0..127 {
            assert_eq!(times_x(1 << bit), 1 << (bit + 1), "bit {bit}");
        }
    }

    #[test]
    fn masking_adds_the_tweak_to_the_block() {
        let [tweak, block] = [0x0123_4567_89ab_cdef_u128 << 50, 0xfeed_u128 << 90 | 7];
        let masked = Tweak::new(&Array(tweak.to_le_bytes())).mask(Array(block.to_le_bytes()));
        assert_eq!(u128::from_le_bytes(masked.0), tweak ^ block);
    }
}
