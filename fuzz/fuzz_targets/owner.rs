//! What is asked of the process that serves a volume, what it answers, and how that is shown.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    sealblk::replication::primary::hear_hostile(bytes);
    sealblk::cli::show_hostile(bytes);
});
