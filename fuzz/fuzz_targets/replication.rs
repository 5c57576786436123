//! Frames of the replication protocol, from whatever a peer may send.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    sealblk::replication::wire::decode_hostile(bytes);
});
