//! What a back end that ended without a word had in flight: its successor does that again, and nothing twice.

use std::os::unix::fs::FileExt;

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;

use crate::support::configuration::Configuration;
use crate::support::guest::{Guest, Options};
use crate::support::pattern::pattern;
use crate::support::request::{Layout, OK, Pending, Request};
use crate::support::ring::Used;
use crate::support::served::Served;
use crate::support::volume::Volume;

const SIZE: u64 = 4 << 20;
const BYTES: usize = 4096;

under_every_engine!(does_again_what_was_not_used, believes_nothing_of_what_it_is_given);

/// Of one queue, what a back end would have noted.
struct Note<'a>(&'a Guest);

impl Note<'_> {
    fn write(&self, offset: u64, bytes: &[u8]) {
        let (inflight, file) = self.0.inflight.as_ref().expect("it was negotiated");
        file.write_all_at(bytes, inflight.mmap_offset + offset).expect("writing to the memory");
    }

    fn taken(&self, head: u16, order: u64) {
        self.write(16 + 16 * u64::from(head), &[1]);
        self.write(16 + 16 * u64::from(head) + 8, &order.to_le_bytes());
    }

    fn given_back(&self, head: u16, before: u16) {
        self.write(16 + 16 * u64::from(head) + 6, &before.to_le_bytes());
        self.write(12, &head.to_le_bytes());
    }
}

/// Four writes were taken; the second ended and the driver knows; the first ended, and the used ring says so, and the
/// end was not noted; the third and the fourth did not. Their places in the available ring are others' by now.
fn does_again_what_was_not_used(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest_as(Options::CLOUD_HYPERVISOR.queue_size(16));
    assert!(guest.read(0, BYTES).iter().all(|&byte| byte == 0));
    let base = guest.stop_queue(0);
    assert_eq!(base, 1);
    let writes: Vec<Pending> = (0..4).map(|slot| write(&mut guest, slot)).collect();
    let (first, second) = (writes[0].head, writes[1].head);
    let note = Note(&guest);
    // The driver was told of one read before all this.
    note.write(14, &2u16.to_le_bytes());
    for (order, of) in [(30, &writes[3]), (10, &writes[0]), (20, &writes[2])] {
        note.taken(of.head, order);
    }
    note.given_back(first, second);
    let ring = &guest.rings[0];
    for (place, head) in [(1, second), (2, first)] {
        let element = [u32::from(head).to_le_bytes(), 1u32.to_le_bytes()].concat();
        guest.memory.write(ring.used + 4 + 8 * place, &element);
    }
    guest.memory.write(ring.used + 2, &3u16.to_le_bytes());
    for of in &writes[..2] {
        assert!(guest.rings[0].take(&guest.memory).is_some());
        guest.end_request();
        let _ = guest.reply(of, Used { head: of.head, length: 1 });
    }
    // Whoever trusted the available ring would find these in the places of the others.
    for place in 1..5 {
        guest.memory.write(guest.rings[0].available + 4 + 2 * place, &first.to_le_bytes());
    }
    guest.start_queue(0, 3);
    // Also if it is stopped at once.
    assert_eq!((guest.stop_queue(0), guest.rings[0].used_index(&guest.memory)), (5, 5));
    guest.start_queue(0, 5);
    for (slot, of) in writes.iter().enumerate().skip(2) {
        assert_eq!(guest.finish(of).status, OK, "slot {slot}");
    }
    // What is new goes on after them.
    let more = write(&mut guest, 4);
    guest.kick(0);
    assert_eq!(guest.finish(&more).status, OK);
    for slot in 0..5 {
        let done = slot >= 2;
        assert_eq!(guest.read(slot * BYTES as u64, BYTES) == pattern(slot, BYTES), done, "slot {slot}");
    }
    drop(guest);
    served.terminate().assert_clean();
}

fn write(guest: &mut Guest, slot: u64) -> Pending {
    let data = pattern(slot, BYTES);
    let request = Request::write(slot * BYTES as u64, &data);
    guest.submit(0, &request, &Layout::usual(&request))
}

fn believes_nothing_of_what_it_is_given(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let mut served = Served::start(&volume);
    // Another version of the format.
    let mut guest = served.guest_as(Options::CLOUD_HYPERVISOR.queue_size(8));
    guest.stop_queue(0);
    Note(&guest).write(0, &[0xff; 16 + 8 * 16]);
    guest.frontend.set_vring_base(0, 0).unwrap();
    assert!(guest.frontend.set_vring_kick(0, &guest.rings[0].kick).is_err());
    drop(guest);
    // Every chain is said to be in flight, and there are none.
    let mut guest = served.guest_as(Options::CLOUD_HYPERVISOR.queue_size(8));
    guest.stop_queue(0);
    Note(&guest).write(0, &[0x01; 16 + 8 * 16]);
    Note(&guest).write(8, &1u16.to_le_bytes());
    guest.start_queue(0, 0);
    drop(guest);
    served.assert_alive();
    let mut guest = Guest::negotiate(served.socket(), Options::CLOUD_HYPERVISOR);
    for (queues, entries) in [(0, 128), (1, 0), (1, 1025), (65, 128), (u16::MAX, u16::MAX)] {
        let wanted = VhostUserInflight::new(0, 0, queues, entries);
        assert!(guest.frontend.get_inflight_fd(&wanted).is_err(), "{queues} of {entries}");
        guest = Guest::negotiate(served.socket(), Options::CLOUD_HYPERVISOR);
    }
    served.assert_alive();
    drop(guest);
    let mut guest = served.guest();
    guest.write(0, &pattern(9, BYTES));
    assert!(guest.read(0, BYTES) == pattern(9, BYTES));
    drop(guest);
    served.terminate().assert_clean();
}
