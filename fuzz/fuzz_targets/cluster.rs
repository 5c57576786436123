//! Reviews of an API server, and what it answers the controller.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    sealblk::controller::review_hostile(bytes);
});
