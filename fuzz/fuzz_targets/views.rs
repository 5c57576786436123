//! Views, from where they are kept.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    sealblk::coordination::read_hostile(bytes);
});
