//! Certificates, keys and revocation lists, from files and from peers.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    sealblk::tls::read_hostile(bytes);
});
