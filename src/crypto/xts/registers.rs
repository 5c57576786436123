//! The vector registers, in which round keys stay behind.
//!
//! Compiled code leaves them as they are, the ABI has nobody clear them, and few functions use the
//! upper ones at all: the round keys of the last request would stay in them while a worker sleeps.
//! Whoever stops the thread sees them, and a core dump holds the registers of every thread.

use std::arch::asm;

/// Clears all that this CPU has.
#[inline]
pub(super) fn wipe() {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the CPU has the instructions.
        unsafe { wipe_avx512() };
    } else if is_x86_feature_detected!("avx") {
        // SAFETY: the CPU has the instructions.
        unsafe { wipe_avx() };
    } else {
        wipe_sse();
    }
}

/// Clears the 32 registers of AVX-512.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn wipe_avx512() {
    // SAFETY: only registers are written, and every one of them is named as written.
    unsafe {
        asm!(
            "vzeroall",
            "vpxord zmm16, zmm16, zmm16",
            "vpxord zmm17, zmm17, zmm17",
            "vpxord zmm18, zmm18, zmm18",
            "vpxord zmm19, zmm19, zmm19",
            "vpxord zmm20, zmm20, zmm20",
            "vpxord zmm21, zmm21, zmm21",
            "vpxord zmm22, zmm22, zmm22",
            "vpxord zmm23, zmm23, zmm23",
            "vpxord zmm24, zmm24, zmm24",
            "vpxord zmm25, zmm25, zmm25",
            "vpxord zmm26, zmm26, zmm26",
            "vpxord zmm27, zmm27, zmm27",
            "vpxord zmm28, zmm28, zmm28",
            "vpxord zmm29, zmm29, zmm29",
            "vpxord zmm30, zmm30, zmm30",
            "vpxord zmm31, zmm31, zmm31",
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
            out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
            out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
            out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
            out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
            out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
            out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _,
            out("zmm28") _, out("zmm29") _, out("zmm30") _, out("zmm31") _,
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// Clears the sixteen registers of AVX.
#[inline]
#[target_feature(enable = "avx")]
pub(super) fn wipe_avx() {
    // SAFETY: only registers are written, and every one of them is named as written.
    unsafe {
        asm!(
            "vzeroall",
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
            out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// Clears the sixteen registers of SSE.
#[inline]
fn wipe_sse() {
    // SAFETY: only registers are written, and every one of them is named as written.
    unsafe {
        asm!(
            "pxor xmm0, xmm0",
            "pxor xmm1, xmm1",
            "pxor xmm2, xmm2",
            "pxor xmm3, xmm3",
            "pxor xmm4, xmm4",
            "pxor xmm5, xmm5",
            "pxor xmm6, xmm6",
            "pxor xmm7, xmm7",
            "pxor xmm8, xmm8",
            "pxor xmm9, xmm9",
            "pxor xmm10, xmm10",
            "pxor xmm11, xmm11",
            "pxor xmm12, xmm12",
            "pxor xmm13, xmm13",
            "pxor xmm14, xmm14",
            "pxor xmm15, xmm15",
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            options(nomem, nostack, preserves_flags)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sets one register of each kind, which the compiler does not know of, and looks at it after.
    macro_rules! wiped {
        ($wipe:expr, $set:literal, $look:literal, $register:tt) => {{
            let before = [0xa5a5_a5a5_a5a5_a5a5_u64; 8];
            let mut after = [1u64; 8];
            // SAFETY: the caller has looked for the instructions; the memory is that of two arrays.
            unsafe {
                asm!($set, in(reg) before.as_ptr(), out($register) _, options(nostack, readonly));
                $wipe;
                asm!($look, in(reg) after.as_mut_ptr(), options(nostack));
            }
            after[0] == 0 && !after.contains(&before[0])
        }};
    }

    #[test]
    fn registers_are_clear_after_a_wipe() {
        assert!(wiped!(wipe_sse(), "movdqu xmm7, [{0}]", "movdqu [{0}], xmm7", "xmm7"));
        assert!(wiped!(wipe(), "movdqu xmm7, [{0}]", "movdqu [{0}], xmm7", "xmm7"));
        if is_x86_feature_detected!("avx") {
            assert!(wiped!(wipe_avx(), "vmovdqu ymm9, [{0}]", "vmovdqu [{0}], ymm9", "ymm9"));
        }
        if is_x86_feature_detected!("avx512f") {
            assert!(wiped!(wipe(), "vmovdqu64 zmm21, [{0}]", "vmovdqu64 [{0}], zmm21", "zmm21"));
            assert!(
                !wiped!(std::hint::black_box(()), "vmovdqu64 zmm21, [{0}]", "vmovdqu64 [{0}], zmm21", "zmm21"),
                "the test is blind"
            );
        }
    }
}
