//! AES-256 round keys for the vector implementations (FIPS 197 §5.2), made with the CPU's own key
//! expansion instructions: no table of ours, no branch, no key byte as an index.

use std::arch::x86_64::{
    __m128i, __m256i, __m512i, _mm_aesimc_si128, _mm_aeskeygenassist_si128, _mm_loadu_si128, _mm_shuffle_epi32,
    _mm_slli_si128, _mm_storeu_si128, _mm_xor_si128, _mm256_loadu_si256, _mm512_loadu_si512,
};

use zeroize::{Zeroize, zeroize_stack};

use super::XtsKey;
use crate::crypto::{Locked, LockedError};

/// Round keys of AES-256: the initial one and one a round.
pub(super) const ROUND_KEYS: usize = 15;

/// Every round key that XTS needs, each repeated for the four blocks of a 512-bit register.
#[derive(Zeroize)]
#[repr(C, align(64))]
pub(super) struct Schedule {
    /// The data key, to encrypt.
    pub(super) encrypt: RoundKeys,
    /// The data key, to decrypt: in the order and form of the equivalent inverse cipher
    /// (FIPS 197 §5.3.5), which the decryption instructions take.
    pub(super) decrypt: RoundKeys,
    /// The tweak key, which only ever encrypts.
    pub(super) tweak: RoundKeys,
}

#[derive(Zeroize)]
#[repr(C, align(64))]
pub(super) struct RoundKeys([[u8; 64]; ROUND_KEYS]);

impl Schedule {
    /// Expands `key` inside locked memory.
    ///
    /// # Safety
    ///
    /// The CPU must have the AES instructions.
    pub(super) unsafe fn expand(key: &XtsKey) -> Result<Locked<Schedule>, LockedError> {
        let mut schedule =
            Locked::new(Schedule { encrypt: RoundKeys::BLANK, decrypt: RoundKeys::BLANK, tweak: RoundKeys::BLANK })?;
        // SAFETY: the caller's promise.
        unsafe { schedule.fill(key) };
        // Registers may have been spilled there.
        zeroize_stack::<4096>();
        Ok(schedule)
    }

    // Its own frame, so that what it leaves on the stack lies below the caller's and can be wiped.
    #[inline(never)]
    #[target_feature(enable = "aes")]
    fn fill(&mut self, key: &XtsKey) {
        self.encrypt.expand(key.data_key());
        self.tweak.expand(key.tweak_key());
        self.decrypt.invert(&self.encrypt);
    }
}

impl RoundKeys {
    const BLANK: RoundKeys = RoundKeys([[0; 64]; ROUND_KEYS]);

    /// One round key, in the four lanes of a register.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn round(&self, round: usize) -> __m512i {
        // SAFETY: reads the 64 bytes of one array.
        unsafe { _mm512_loadu_si512(self.0[round].as_ptr().cast()) }
    }

    /// One round key, in the two lanes of a half register.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn pair(&self, round: usize) -> __m256i {
        // SAFETY: reads 32 of the 64 bytes of one array.
        unsafe { _mm256_loadu_si256(self.0[round].as_ptr().cast()) }
    }

    /// Key expansion (FIPS 197 §5.2 for Nk = 8). A step makes two round keys out of the two before.
    #[target_feature(enable = "aes")]
    fn expand(&mut self, key: &[u8; 32]) {
        let (even, odd) = key.split_at(16);
        let mut even = load(even.try_into().expect("half of 32 bytes"));
        let mut odd = load(odd.try_into().expect("half of 32 bytes"));
        self.set(0, even);
        self.set(1, odd);
        macro_rules! step {
            ($round:literal, $constant:literal) => {
                // RotWord, SubWord and the round constant, in the highest word...
                let turned = _mm_aeskeygenassist_si128::<$constant>(odd);
                even = sum_of_words(even, _mm_shuffle_epi32::<0xff>(turned));
                self.set($round, even);
                if $round + 1 < ROUND_KEYS {
                    // ...and SubWord alone, in the one below.
                    let turned = _mm_aeskeygenassist_si128::<0>(even);
                    odd = sum_of_words(odd, _mm_shuffle_epi32::<0xaa>(turned));
                    self.set($round + 1, odd);
                }
            };
        }
        step!(2, 0x01);
        step!(4, 0x02);
        step!(6, 0x04);
        step!(8, 0x08);
        step!(10, 0x10);
        step!(12, 0x20);
        step!(14, 0x40);
    }

    /// The keys of the equivalent inverse cipher: reversed, the inner ones through InvMixColumns.
    #[target_feature(enable = "aes")]
    fn invert(&mut self, encrypt: &RoundKeys) {
        let last = ROUND_KEYS - 1;
        self.0[0] = encrypt.0[last];
        self.0[last] = encrypt.0[0];
        for round in 1..last {
            self.set(round, _mm_aesimc_si128(encrypt.get(last - round)));
        }
    }

    #[target_feature(enable = "aes")]
    fn set(&mut self, round: usize, key: __m128i) {
        for lane in self.0[round].as_chunks_mut::<16>().0 {
            // SAFETY: writes the 16 bytes of one array.
            unsafe { _mm_storeu_si128(lane.as_mut_ptr().cast(), key) };
        }
    }

    /// One round key, in one lane.
    #[target_feature(enable = "aes")]
    fn get(&self, round: usize) -> __m128i {
        load(self.0[round].first_chunk().expect("16 of 64 bytes"))
    }
}

#[target_feature(enable = "aes")]
fn load(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: reads the 16 bytes of one array.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Each word the sum of itself and the words before it, and of `turned`: four iterations of the
/// expansion's `w[i] = w[i-8] + w[i-1]` at once.
#[target_feature(enable = "aes")]
fn sum_of_words(mut words: __m128i, turned: __m128i) -> __m128i {
    words = _mm_xor_si128(words, _mm_slli_si128::<4>(words));
    words = _mm_xor_si128(words, _mm_slli_si128::<8>(words));
    _mm_xor_si128(words, turned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::arch::x86_64::{_mm_aesdec_si128, _mm_aesdeclast_si128};
    use std::arch::x86_64::{_mm_aesenc_si128, _mm_aesenclast_si128, _mm_setzero_si128};

    use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
    use aes::{Aes256, Block};

    fn expanded(key: &[u8; 32]) -> RoundKeys {
        assert!(is_x86_feature_detected!("aes"), "these tests need AES-NI");
        let mut keys = RoundKeys::BLANK;
        // SAFETY: asserted above.
        unsafe { keys.expand(key) };
        keys
    }

    /// The worked example of FIPS 197 appendix A.3: first derived and last round key.
    #[test]
    fn expansion_of_the_standard() {
        let key = 0x603deb1015ca71be2b73aef0857d7781_u128.to_be_bytes();
        let rest = 0x1f352c073b6108d72d9810a30914dff4_u128.to_be_bytes();
        let keys = expanded(&[key, rest].concat().try_into().unwrap());
        for (round, expected) in
            [(2, 0x9ba354118e6925afa51a8b5f2067fcde_u128), (14, 0xfe4890d1e6188d0b046df344706c631e)]
        {
            for lane in keys.0[round].as_chunks().0 {
                assert_eq!(u128::from_be_bytes(*lane), expected, "round {round}");
            }
        }
    }

    #[target_feature(enable = "aes")]
    fn crypt(keys: &RoundKeys, block: Block, encrypt: bool) -> Block {
        let mut state = _mm_xor_si128(load(&block.0), keys.get(0));
        for round in 1..ROUND_KEYS - 1 {
            state = if encrypt {
                _mm_aesenc_si128(state, keys.get(round))
            } else {
                _mm_aesdec_si128(state, keys.get(round))
            };
        }
        let last = keys.get(ROUND_KEYS - 1);
        state = if encrypt { _mm_aesenclast_si128(state, last) } else { _mm_aesdeclast_si128(state, last) };
        let mut block = Block::default();
        // SAFETY: writes the 16 bytes of one block.
        unsafe { _mm_storeu_si128(block.as_mut_ptr().cast(), state) };
        block
    }

    #[test]
    fn round_keys_are_those_of_the_aes_crate() {
        for _ in 0..200 {
            let mut key = [0; 32];
            getrandom::fill(&mut key).unwrap();
            let encrypt = expanded(&key);
            let mut decrypt = RoundKeys::BLANK;
            // SAFETY: `expanded` asserted that the CPU has the instructions.
            unsafe { decrypt.invert(&encrypt) };
            let cipher = Aes256::new(&Array(key));
            let plain = Array(key[..16].try_into().unwrap());
            let (mut sealed, mut opened) = (plain, plain);
            cipher.encrypt_block(&mut sealed);
            cipher.decrypt_block(&mut opened);
            // SAFETY: as above.
            unsafe {
                assert_eq!(crypt(&encrypt, plain, true), sealed);
                assert_eq!(crypt(&decrypt, plain, false), opened);
            }
        }
    }

    #[test]
    fn wiping_leaves_nothing() {
        // SAFETY: only makes a zero.
        let zero = unsafe { std::mem::transmute::<__m128i, [u8; 16]>(_mm_setzero_si128()) };
        let mut keys = expanded(&[5; 32]);
        keys.zeroize();
        assert!(keys.0.as_flattened().iter().all(|&byte| byte == zero[0]));
    }
}
