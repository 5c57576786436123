//! The files in a volume's folder.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    sealblk::store::read_hostile(bytes);
});
