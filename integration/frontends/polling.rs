//! Rings without eventfds (vhost-user, "SET_VRING_KICK", "SET_VRING_CALL"): a driver that looks for
//! completions by itself is served; one that wants its requests to be looked for is told no.

use std::thread;
use std::time::{Duration, Instant};

use vhost::VhostBackend;
use vhost::vhost_user::message::FrontendReq;

use crate::support::PATIENCE;
use crate::support::configuration::Configuration;
use crate::support::guest::Guest;
use crate::support::message::Wire;
use crate::support::pattern::pattern;
use crate::support::request::{Layout, OK, Request};
use crate::support::served::Served;
use crate::support::volume::Volume;

under_every_engine!(driver_that_polls_is_served, ring_without_a_kick_is_refused);

const SIZE: u64 = 4 << 20;
/// The first ring, and no descriptor.
const NO_DESCRIPTOR: [u8; 8] = 0x100_u64.to_le_bytes();

fn driver_that_polls_is_served(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    let mut wire = Wire::beside(&guest.frontend);
    assert_eq!(wire.acknowledged(FrontendReq::SET_VRING_CALL, &NO_DESCRIPTOR, &[]), Some(0));
    assert_eq!(wire.acknowledged(FrontendReq::SET_VRING_ERR, &NO_DESCRIPTOR, &[]), Some(0));
    let _ = guest.rings[0].call.read();
    poll_requests(&mut guest, 1);

    // Started without one, as well.
    let base = guest.stop_queue(0);
    let addresses = guest.ring_addresses(0);
    guest.frontend.set_vring_addr(0, &addresses).expect("SET_VRING_ADDR");
    guest.frontend.set_vring_base(0, base).expect("SET_VRING_BASE");
    guest.frontend.set_vring_kick(0, &guest.rings[0].kick).expect("SET_VRING_KICK");
    poll_requests(&mut guest, 2);
    assert!(guest.rings[0].call.read().is_err(), "the driver was notified through an eventfd it had taken back");

    // It sleeps again, and so needs to be notified again.
    guest.frontend.set_vring_call(0, &guest.rings[0].call).expect("SET_VRING_CALL");
    assert!(guest.read(0, 8192) == pattern(2, 8192));
}

/// Writes and takes the completion without ever waiting for a notification.
fn poll_requests(guest: &mut Guest, seed: u64) {
    let data = pattern(seed, 8192);
    let request = Request::write(0, &data);
    let pending = guest.submit(0, &request, &Layout::usual(&request));
    guest.kick(0);
    let deadline = Instant::now() + PATIENCE;
    let used = loop {
        if let Some(used) = guest.rings[0].take(&guest.memory) {
            break used;
        }
        assert!(Instant::now() < deadline, "no completion came");
        thread::sleep(Duration::from_millis(1));
    };
    guest.end_request();
    assert_eq!(guest.reply(&pending, used).status, OK);
}

fn ring_without_a_kick_is_refused(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let mut served = Served::start(&volume);
    let mut guest = served.guest();
    let mut wire = Wire::beside(&guest.frontend);
    let answer = wire.acknowledged(FrontendReq::SET_VRING_KICK, &NO_DESCRIPTOR, &[]);
    assert!(answer.is_some_and(|answer| answer != 0), "{answer:?}");
    served.wait_for("the reason", |served| served.stderr().contains("queue 0: SET_VRING_KICK brings no descriptor"));
    // The refused message changed nothing.
    let data = pattern(3, 8192);
    guest.write(0, &data);
    assert!(guest.read(0, data.len()) == data);

    // Who does not ask for an answer learns it by the end of the connection.
    wire.request(FrontendReq::SET_VRING_KICK, &NO_DESCRIPTOR, &[]);
    wire.wait_for_close();
    drop(guest);
    assert!(served.guest().read(0, data.len()) == data);
    served.assert_alive();
}
