//! Key files, Secrets and claims.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    sealblk::keys::open_hostile(bytes);
});
