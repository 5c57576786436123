//! Whole lives of a front end: how Cloud Hypervisor and Firecracker come up, pause, resume, reset
//! their guest, leave and come back, and that nothing is lost or done twice on the way.

use std::collections::HashSet;
use std::thread;
use std::time::Duration;

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::support::configuration::Configuration;
use crate::support::guest::{Guest, Options, bit, connect};
use crate::support::pattern::{next, pattern};
use crate::support::request::{Layout, OK, Pending, Request};
use crate::support::served::Served;
use crate::support::volume::Volume;

const SIZE: u64 = 16 << 20;

under_every_engine!(
    cloud_hypervisor_comes_up_pauses_resets_and_leaves,
    firecracker_comes_up_and_leaves,
    driver_without_optional_features_is_served,
    requests_made_while_paused_wait_for_the_resume,
    pause_under_load_loses_nothing,
    stop_under_load_resumes_at_the_base,
    ring_indices_may_wrap,
    every_queue_of_64_works,
    queues_not_started_cost_no_thread,
    queue_of_1024_is_the_largest,
    queue_beyond_the_limit_is_an_error,
    front_end_leaves_with_requests_in_flight,
    second_front_end_waits_for_its_turn,
    kick_before_the_ring_is_ready_is_not_lost,
);

fn cloud_hypervisor_comes_up_pauses_resets_and_leaves(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let data = pattern(50, 64 << 10);
    let mut guest = served.guest_as(Options::CLOUD_HYPERVISOR.queues(4));
    for queue in 0..4 {
        let start = queue * 16384;
        let part = &data[start..start + 16384];
        guest.done(queue, &Request::write(start as u64, part));
    }
    for round in 0..3 {
        (0..4).for_each(|queue| guest.enable(queue, false));
        (0..4).for_each(|queue| guest.enable(queue, true));
        let read = guest.done(round, &Request::read(0, data.len()));
        assert!(read == data, "after pause {round}");
    }

    // The guest reboots: the rings are stopped, and its driver starts over on the same connection.
    for _ in 0..3 {
        for queue in 0..4 {
            guest.enable(queue, false);
            assert_eq!(guest.stop_queue(queue), guest.rings[queue].taken());
        }
        guest.activate();
        for queue in 0..4 {
            let read = guest.done(queue, &Request::read(0, data.len()));
            assert!(read == data);
        }
    }
    drop(guest);

    let mut guest = served.guest_as(Options::CLOUD_HYPERVISOR.queues(2));
    assert!(guest.done(1, &Request::read(0, data.len())) == data);
    drop(guest);
    served.terminate().assert_clean();
    volume.assert_holds(0, &data);
}

fn firecracker_comes_up_and_leaves(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let data = pattern(51, 256 << 10);
    for round in 0..3 {
        let mut guest = served.guest_as(Options::FIRECRACKER);
        if round > 0 {
            assert!(guest.read(0, data.len()) == data);
        }
        guest.write(0, &data);
        guest.flush();
        assert!(guest.read(0, data.len()) == data);
    }
    served.terminate().assert_clean();
    volume.assert_holds(0, &data);
}

fn driver_without_optional_features_is_served(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let optional = [
        bit(VIRTIO_RING_F_EVENT_IDX),
        bit(VIRTIO_RING_F_INDIRECT_DESC),
        bit(VIRTIO_RING_F_EVENT_IDX) | bit(VIRTIO_BLK_F_MQ) | bit(VIRTIO_BLK_F_CONFIG_WCE),
        bit(VIRTIO_BLK_F_DISCARD) | bit(VIRTIO_BLK_F_WRITE_ZEROES),
    ];
    for (seed, features) in (60..).zip(optional) {
        let options = Options::CLOUD_HYPERVISOR.without(features);
        let mut guest = served.guest_as(options);
        assert_eq!(guest.features & features, 0);
        let data = pattern(seed, 128 << 10);
        guest.write(0, &data);
        guest.flush();
        assert!(guest.read(0, data.len()) == data);
    }
}

fn requests_made_while_paused_wait_for_the_resume(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    let data = pattern(52, 4096);
    guest.write(0, &data);
    for _ in 0..5 {
        guest.enable(0, false);
        let request = Request::read(0, 4096);
        let pending = guest.submit(0, &request, &Layout::usual(&request));
        guest.rings[0].kick_always();
        let before = guest.rings[0].used_index(&guest.memory);
        thread::sleep(Duration::from_millis(20));
        let after = guest.rings[0].used_index(&guest.memory);
        assert_eq!(after, before, "a paused ring was served");
        guest.enable(0, true);
        assert!(guest.finish(&pending).data == data);
    }
}

/// A window of writes to distinct places, each of which must be completed once.
struct Load {
    state: u64,
    seeds: Vec<(u64, u64)>,
}

impl Load {
    const LENGTH: usize = 4096;

    fn new() -> Self {
        Self { state: 7, seeds: Vec::new() }
    }

    fn submit(&mut self, guest: &mut Guest, count: usize) -> Vec<Pending> {
        let pending = (0..count).map(|_| {
            let slot = self.seeds.len() as u64 % (SIZE / Self::LENGTH as u64);
            let seed = next(&mut self.state);
            self.seeds.retain(|(other, _)| *other != slot);
            self.seeds.push((slot, seed));
            let data = pattern(seed, Self::LENGTH);
            let request = Request::write(slot * Self::LENGTH as u64, &data);
            guest.submit(0, &request, &Layout::usual(&request))
        });
        let pending = pending.collect();
        guest.kick(0);
        pending
    }

    fn finish(&self, guest: &mut Guest, pending: &[Pending]) {
        for pending in pending {
            assert_eq!(guest.finish(pending).status, OK);
        }
    }

    fn verify(&self, guest: &mut Guest) {
        for (slot, seed) in &self.seeds {
            let read = guest.read(slot * Self::LENGTH as u64, Self::LENGTH);
            assert!(read == pattern(*seed, Self::LENGTH), "slot {slot}");
        }
    }
}

fn pause_under_load_loses_nothing(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest_as(Options::CLOUD_HYPERVISOR.queue_size(256));
    let mut load = Load::new();
    for _ in 0..40 {
        let pending = load.submit(&mut guest, 80);
        guest.enable(0, false);
        // The back end has answered: from here on it must leave the ring alone.
        let before = guest.rings[0].used_index(&guest.memory);
        thread::sleep(Duration::from_millis(3));
        let after = guest.rings[0].used_index(&guest.memory);
        assert_eq!(after, before, "a paused ring was served");
        guest.enable(0, true);
        load.finish(&mut guest, &pending);
    }
    load.verify(&mut guest);
}

fn stop_under_load_resumes_at_the_base(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest_as(Options::CLOUD_HYPERVISOR.queue_size(256));
    let mut load = Load::new();
    for round in 0..40 {
        let pending = load.submit(&mut guest, 80);
        if round % 2 == 0 {
            guest.enable(0, false);
        }
        let base = guest.stop_queue(0);
        let used = guest.rings[0].used_index(&guest.memory);
        assert_eq!(base, used, "what was taken from the ring was not completed");
        // As after a migration or a snapshot: the same rings, described anew.
        let size = guest.rings[0].size;
        guest.frontend.set_vring_num(0, size).expect("SET_VRING_NUM");
        guest.start_queue(0, base);
        guest.enable(0, true);
        load.finish(&mut guest, &pending);
    }
    load.verify(&mut guest);
}

fn ring_indices_may_wrap(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest_as(Options::CLOUD_HYPERVISOR.queue_size(256));
    let data = pattern(53, 512.max(configuration.sector_size as usize));
    guest.write(0, &data);
    let request = Request::read(0, data.len());
    guest.stop_queue(0);
    guest.rings[0].jump_to(&guest.memory, u16::MAX - 100);
    guest.start_queue(0, u16::MAX - 100);
    guest.enable(0, true);
    for _ in 0..10 {
        let pending: Vec<_> = (0..80).map(|_| guest.submit(0, &request, &Layout::usual(&request))).collect();
        guest.kick(0);
        for pending in &pending {
            assert!(guest.finish(pending).data == data);
        }
    }
    assert_eq!(guest.stop_queue(0), 800 - 101);
}

fn every_queue_of_64_works(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start_with(&volume, &["--queues", "64"]);
    let options = Options::CLOUD_HYPERVISOR.queues(64).queue_size(32);
    let mut guest = served.guest_as(options);
    let data = pattern(54, 64 * 8192);
    let pending: Vec<_> = (0..64)
        .map(|queue| {
            let start = queue * 8192;
            let request = Request::write(start as u64, &data[start..start + 8192]);
            let pending = guest.submit(queue, &request, &Layout::usual(&request));
            guest.kick(queue);
            pending
        })
        .collect();
    for pending in &pending {
        assert_eq!(guest.finish(pending).status, OK);
    }
    for queue in (0..64).rev() {
        let start = (63 - queue) * 8192;
        let read = guest.done(queue, &Request::read(start as u64, 8192));
        assert!(read == data[start..start + 8192], "queue {queue}");
    }
    drop(guest);
    served.terminate().assert_clean();
    volume.assert_holds(0, &data);
}

fn queues_not_started_cost_no_thread(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let threads = ["1", "64"].map(|queues| {
        let served = Served::start_with(&volume, &["--queues", queues]);
        let mut guest = served.guest();
        guest.read(0, 4096);
        let threads = served.threads();
        drop(guest);
        served.terminate().assert_clean();
        threads
    });
    assert_eq!(threads[0], threads[1]);
}

fn queue_of_1024_is_the_largest(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let mut served = Served::start(&volume);
    let mut guest = served.guest_as(Options::CLOUD_HYPERVISOR.queue_size(1024));
    let request = Request::read(0, 4096);
    let pending: Vec<_> = (0..300).map(|_| guest.submit(0, &request, &Layout::usual(&request))).collect();
    guest.kick(0);
    let distinct: HashSet<_> = pending.iter().map(|pending| pending.head).collect();
    assert_eq!(distinct.len(), 300);
    for pending in &pending {
        assert_eq!(guest.finish(pending).status, OK);
    }
    drop(guest);

    for size in [2048, 4096, 32768] {
        let guest = Guest::negotiate(served.socket(), Options::CLOUD_HYPERVISOR);
        guest.frontend.set_features(guest.features).expect("SET_FEATURES");
        assert!(guest.frontend.set_vring_num(0, size).is_err(), "size {size}");
        drop(guest);
        served.assert_alive();
    }
    served.guest().write(0, &pattern(55, 4096));
}

fn queue_beyond_the_limit_is_an_error(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let mut served = Served::start_with(&volume, &["--queues", "2"]);
    let mut guest = served.guest_as(Options::CLOUD_HYPERVISOR.queues(2));
    assert_eq!(guest.frontend.get_queue_num().expect("GET_QUEUE_NUM"), 2);
    drop(guest);
    for index in [2, 3, 16, 63] {
        let stream = connect(served.socket());
        let mut frontend = vhost::vhost_user::Frontend::from_stream(stream, 64);
        frontend.set_owner().expect("SET_OWNER");
        frontend.get_features().expect("GET_FEATURES");
        let options = Options::CLOUD_HYPERVISOR;
        frontend.get_protocol_features().expect("protocol features");
        frontend.set_protocol_features(options.protocol).expect("protocol features");
        frontend.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        assert!(frontend.set_vring_num(index, 128).is_err(), "queue {index}");
        drop(frontend);
        served.assert_alive();
    }
    served.guest().write(0, &pattern(55, 4096));
}

fn front_end_leaves_with_requests_in_flight(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let mut served = Served::start(&volume);
    let model = pattern(56, 1 << 20);
    served.guest().write(0, &model);
    for round in 0..20 {
        let mut guest = served.guest_as(Options::CLOUD_HYPERVISOR.queues(2));
        // Only what lies past the model is written by those who do not stay for the answer.
        for queue in 0..2 {
            for index in 0..30 {
                let data = pattern(round * 100 + index, 16384);
                let request = Request::write((2 << 20) + index * 16384, &data);
                let _ = guest.submit(queue, &request, &Layout::usual(&request));
            }
            guest.kick(queue);
        }
        drop(guest);
        served.assert_alive();
    }
    let mut guest = served.guest();
    assert!(guest.read(0, model.len()) == model);
    // Every slot holds one of the writes in full, whichever came last.
    let slots = guest.read(2 << 20, 30 * 16384);
    for (index, slot) in (0..).zip(slots.chunks(16384)) {
        let written = (0..20).any(|round| slot == pattern(round * 100 + index, 16384));
        assert!(written || slot.iter().all(|&byte| byte == 0), "slot {index}");
    }
}

fn second_front_end_waits_for_its_turn(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut first = served.guest();
    let data = pattern(57, 8192);
    first.write(0, &data);
    let socket = served.socket().to_owned();
    let second = thread::spawn(move || {
        let mut second = Guest::connect(&socket);
        second.read(0, 8192)
    });
    // The first is not disturbed by the one that waits.
    for _ in 0..20 {
        assert!(first.read(0, 8192) == data);
        thread::sleep(Duration::from_millis(2));
    }
    drop(first);
    assert!(second.join().expect("the second front end") == data);
}

/// A guest may kick before its front end has told the back end everything, and never again.
fn kick_before_the_ring_is_ready_is_not_lost(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    let data = pattern(58, 4096);
    guest.write(0, &data);
    let base = guest.stop_queue(0);
    let request = Request::read(0, 4096);
    let pending = guest.submit(0, &request, &Layout::usual(&request));
    guest.rings[0].kick_always();
    guest.start_queue(0, base);
    guest.enable(0, true);
    assert!(guest.finish(&pending).data == data);

    // And where the event was used up by whoever held it before.
    let base = guest.stop_queue(0);
    let pending = guest.submit(0, &request, &Layout::usual(&request));
    let _ = guest.rings[0].kick.read();
    guest.start_queue(0, base);
    guest.enable(0, true);
    assert!(guest.finish(&pending).data == data);
}
