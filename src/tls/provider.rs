//! The cryptography of connections between nodes.
//!
//! Most of what TLS costs is AES-GCM. Of the two libraries, aws-lc is the faster one with AVX-512, and has no code
//! for processors that have VAES without it: there ring is twice as fast
//! (`docs/decisions/0020-aes-gcm-from-two-libraries.md`). So the suites come
//! from one or the other, and all the rest, key exchange and signatures, from aws-lc.

use rustls::SupportedCipherSuite;
use rustls::crypto::{CryptoProvider, aws_lc_rs, ring};

/// What travels is already sealed with 256 bits: AES-128 is enough around it, and costs less.
pub(super) fn provider() -> CryptoProvider {
    CryptoProvider { cipher_suites: suites(has_vaes_alone()), ..aws_lc_rs::default_provider() }
}

fn suites(by_ring: bool) -> Vec<SupportedCipherSuite> {
    if by_ring {
        use ring::cipher_suite::*;
        vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256]
    } else {
        use aws_lc_rs::cipher_suite::*;
        vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256]
    }
}

/// VAES in 256 bits, and none in 512.
fn has_vaes_alone() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
        && is_x86_feature_detected!("avx2")
        && !is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_libraries_have_the_same_suites_in_the_same_order() {
        let names = |by_ring| suites(by_ring).iter().map(SupportedCipherSuite::suite).collect::<Vec<_>>();
        assert_eq!(names(true), names(false));
    }
}
