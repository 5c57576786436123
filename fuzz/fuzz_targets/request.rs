//! Request parsing over whatever a guest may have put in its memory.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    sealblk::device::request::parse_hostile(bytes);
});
