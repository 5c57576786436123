//! What the tests of this folder share: a served volume on one side, and on the other a front end
//! that drives its own split virtqueues, so that a test decides every byte that the device sees.
//!
//! The story of a test is told with four words. A [`volume::Volume`] is a folder on disk with its
//! key. A [`served::Served`] is a `sealblk serve` process over it. A [`guest::Guest`] is a front
//! end that has negotiated, shared memory and started rings. A [`request::Request`] is one
//! virtio-blk request, laid out in descriptors as the test likes. What should not be sent at all
//! goes through [`message::Wire`], which knows no rules.
//!
//! Nothing here skips: a tool that is missing fails the test that needs it.

// Each test program of this folder uses a part of this module.
#![allow(dead_code, unused_macros)]

#[macro_use]
pub mod configuration;
pub mod ciphertext;
pub mod cluster;
pub mod confined;
pub mod guest;
pub mod loopback;
pub mod memory;
pub mod message;
pub mod model;
pub mod mounted;
pub mod nodes;
pub mod pattern;
pub mod process;
pub mod request;
pub mod ring;
pub mod search;
pub mod served;
pub mod serving;
pub mod terminal;
pub mod views;
pub mod volume;
pub mod workload;

use std::time::{Duration, Instant};

/// How long a test waits for something that must happen before it fails. Not a promise about
/// speed: it only keeps a hang from being endless.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `condition` holds, and fails after [`PATIENCE`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}
