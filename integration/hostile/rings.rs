//! Rings whose indices and heads lie, and the queue beside them that must not notice.

use super::scene::{Answer, PLAYGROUND, Scene};
use crate::support::configuration::Configuration;
use crate::support::guest::Guest;
use crate::support::request::{FLUSH, HEADER, Layout, OK, Request};
use crate::support::ring::Outcome;
use vhost::VhostBackend;

under_every_engine!(
    available_index_jumps_ahead,
    available_index_goes_back,
    head_outside_the_table,
    head_made_available_twice,
    rings_that_overlap,
    second_queue_is_served_through_it_all,
    notifications_without_requests,
    stopped_ring_stays_stopped_until_it_is_set_up_anew,
);

fn survive_index(configuration: Configuration, jumps: &[u16]) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    for &jump in jumps {
        let parts = guest.parts(&Request::bare(FLUSH, 0));
        guest.send(&[parts.header, parts.status], parts.status).assert_status(OK);
        let ring = &guest.rings[0];
        let index = ring.available_index().wrapping_add(jump);
        ring.set_available_index(&guest.memory, index);
        ring.kick_always();
        let outcome = guest.rings[0].outcome(&guest.memory);
        assert_eq!(outcome, Outcome::Stopped, "a jump by {jump}");
        guest.assert_second_queue_works();
        guest.assert_first_queue_recovers();
    }
    drop(guest);
    scene.assert_unharmed();
}

fn available_index_jumps_ahead(configuration: Configuration) {
    survive_index(configuration, &[65, 66, 1000, 0x7fff]);
}

fn available_index_goes_back(configuration: Configuration) {
    survive_index(configuration, &[u16::MAX, u16::MAX - 1, 0x8000]);
}

fn head_outside_the_table(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    for head in [64, 65, 128, 0x7fff, u16::MAX] {
        let parts = guest.parts(&Request::bare(FLUSH, 0));
        guest.rings[0].publish(&guest.memory, head);
        let answer = guest.answer(parts.status);
        assert_eq!(answer, Answer::Stopped, "head {head}");
        guest.assert_second_queue_works();
        guest.assert_first_queue_recovers();
    }
    drop(guest);
    scene.assert_unharmed();
}

/// The same chain many times at once. Each is a request; what they write is the guest's affair.
fn head_made_available_twice(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    let parts = guest.parts(&Request::write(PLAYGROUND, &[]));
    let chain = [parts.header, parts.data, parts.status];
    let ring = &mut guest.rings[0];
    let head = ring.add(&guest.memory, &chain).expect("room");
    for _ in 1..64 {
        ring.publish(&guest.memory, head);
    }
    ring.kick_always();
    for _ in 0..64 {
        if guest.rings[0].outcome(&guest.memory) == Outcome::Stopped {
            break;
        }
    }
    guest.assert_second_queue_works();
    guest.assert_first_queue_recovers();
    drop(guest);
    scene.assert_unharmed();
}

/// The used ring on top of the descriptors, of the available ring and of itself.
fn rings_that_overlap(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    for case in 0..3 {
        let mut guest = scene.guest();
        let parts = guest.parts(&Request::bare(FLUSH, 0));
        let base = guest.stop_queue(0);
        let ring = &mut guest.rings[0];
        match case {
            0 => ring.used = ring.descriptors,
            1 => ring.used = ring.available.next_multiple_of(4),
            _ => ring.available = ring.descriptors,
        }
        // A back end may refuse such addresses; what it takes it must survive.
        let addresses = guest.ring_addresses(0);
        if guest.frontend.set_vring_addr(0, &addresses).is_err() {
            continue;
        }
        guest.start_queue(0, base);
        guest.enable(0, true);
        let ring = &mut guest.rings[0];
        let chain = [parts.header, parts.status];
        for _ in 0..10 {
            ring.add(&guest.memory, &chain);
            ring.kick_always();
        }
        guest.assert_second_queue_works();
        drop(guest);
        scene.served.assert_alive();
    }
    scene.assert_unharmed();
}

fn second_queue_is_served_through_it_all(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    // Requests are under way on the second queue while the first is broken.
    let request = Request::read(0, 16384);
    let pending: Vec<_> = (0..16).map(|_| guest.submit(1, &request, &Layout::usual(&request))).collect();
    guest.kick(1);
    guest.rings[0].publish(&guest.memory, 999);
    guest.rings[0].kick_always();
    for pending in &pending {
        assert_eq!(guest.finish(pending).status, OK);
    }
    assert_eq!(guest.rings[0].outcome(&guest.memory), Outcome::Stopped);
    for _ in 0..100 {
        guest.assert_second_queue_works();
    }
    drop(guest);
    scene.assert_unharmed();
}

fn notifications_without_requests(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    for _ in 0..10_000 {
        guest.rings[0].kick_always();
    }
    guest.rings[0].kick.write(u64::MAX / 2).expect("a kick");
    guest.assert_second_queue_works();
    let parts = guest.parts(&Request::bare(FLUSH, 0));
    guest.send(&[parts.header, parts.status], parts.status).assert_status(OK);
    drop(guest);
    scene.assert_unharmed();
}

fn stopped_ring_stays_stopped_until_it_is_set_up_anew(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    guest.rings[0].publish(&guest.memory, 64);
    guest.rings[0].kick_always();
    assert_eq!(guest.rings[0].outcome(&guest.memory), Outcome::Stopped);
    let completed = guest.rings[0].used_index(&guest.memory);
    for _ in 0..20 {
        submit_flush(&mut guest);
        guest.assert_second_queue_works();
    }
    assert_eq!(guest.rings[0].used_index(&guest.memory), completed);
    guest.assert_first_queue_recovers();
    drop(guest);
    scene.assert_unharmed();
}

fn submit_flush(guest: &mut Guest) {
    let parts = guest.parts(&Request::bare(FLUSH, 0));
    assert_eq!(parts.header.length as usize, HEADER);
    let chain = [parts.header, parts.status];
    guest.rings[0].add(&guest.memory, &chain);
    guest.rings[0].kick_always();
}
