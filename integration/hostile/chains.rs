//! Chains of descriptors that go in circles, out of bounds, or nowhere.

use super::scene::{Answer, PLAYGROUND, Scene};
use crate::support::configuration::Configuration;
use crate::support::guest::{Guest, Options, bit};
use crate::support::memory::BASE;
use crate::support::request::{FLUSH, IN, IOERR, OUT, Request};
use crate::support::ring::{Descriptor, INDIRECT, NEXT, WRITE};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

under_every_engine!(
    loop_of_descriptors,
    loop_in_an_indirect_table,
    next_outside_the_table,
    chain_longer_than_the_queue,
    indirect_table_of_absurd_size,
    indirect_table_outside_memory,
    nested_indirect_table,
    indirect_table_that_goes_on,
    indirect_table_that_was_not_negotiated,
    addresses_outside_memory,
    lengths_that_overflow,
    descriptors_without_length,
);

/// Runs `attack` on the first queue of a front end, and then everything that must still work.
fn survive(configuration: Configuration, attack: impl Fn(&mut Guest)) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    attack(&mut guest);
    guest.assert_second_queue_works();
    guest.assert_first_queue_recovers();
    drop(guest);
    scene.assert_unharmed();
}

/// Runs each attack on a ring of its own.
fn survive_each<const N: usize>(configuration: Configuration, attacks: [&dyn Fn(&mut Guest); N]) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    for attack in attacks {
        attack(&mut guest);
        guest.assert_second_queue_works();
        guest.assert_first_queue_recovers();
    }
    drop(guest);
    scene.assert_unharmed();
}

fn loop_of_descriptors(configuration: Configuration) {
    survive_each(
        configuration,
        [
            &|guest| {
                let parts = guest.parts(&Request::write(PLAYGROUND, &[]));
                let ring = &mut guest.rings[0];
                ring.set_descriptor(&guest.memory, 0, parts.header.with(NEXT, 1));
                ring.set_descriptor(&guest.memory, 1, parts.data.with(NEXT, 0));
                ring.publish(&guest.memory, 0);
                assert_eq!(guest.answer(parts.status), Answer::Stopped);
            },
            &|guest| {
                let parts = guest.parts(&Request::read(PLAYGROUND, 0));
                let ring = &mut guest.rings[0];
                ring.set_descriptor(&guest.memory, 5, parts.header.with(NEXT, 6));
                ring.set_descriptor(&guest.memory, 6, parts.status.with(NEXT, 6));
                ring.publish(&guest.memory, 5);
                guest.answer(parts.status).assert_refused();
            },
        ],
    );
}

fn loop_in_an_indirect_table(configuration: Configuration) {
    survive(configuration, |guest| {
        let parts = guest.parts(&Request::write(PLAYGROUND, &[]));
        let table = guest.memory.allocate(64, 16);
        let entries = [parts.header.with(NEXT, 1), parts.data.with(NEXT, 2), parts.data.with(NEXT, 1)];
        write_table(guest, table, &entries);
        let named = Descriptor::readable(table, 48).with(INDIRECT, 0);
        let answer = guest.send(&[named], parts.status);
        assert_eq!(answer, Answer::Stopped);
    });
}

fn next_outside_the_table(configuration: Configuration) {
    survive_each(
        configuration,
        [
            &|guest| {
                let parts = guest.parts(&Request::write(PLAYGROUND, &[]));
                let ring = &mut guest.rings[0];
                ring.set_descriptor(&guest.memory, 0, parts.header.with(NEXT, 64));
                ring.publish(&guest.memory, 0);
                assert_eq!(guest.answer(parts.status), Answer::Stopped);
            },
            &|guest| {
                let parts = guest.parts(&Request::write(PLAYGROUND, &[]));
                let table = guest.memory.allocate(64, 16);
                // The entry after the table's two is there in memory, and not part of it.
                let entries = [parts.header.with(NEXT, 1), parts.data.with(NEXT, 2), parts.status];
                write_table(guest, table, &entries);
                let named = Descriptor::readable(table, 32).with(INDIRECT, 0);
                guest.send(&[named], parts.status).assert_refused();
            },
        ],
    );
}

/// A chain may not be longer than its queue; a device may take one all the same if it is indirect
/// and ends.
fn chain_longer_than_the_queue(configuration: Configuration) {
    survive(configuration, |guest| {
        let parts = guest.parts(&Request::read(PLAYGROUND, 0));
        for length in [65, 128, 4096, 65_535] {
            let mut chain = vec![parts.header];
            chain.resize(length - 1, Descriptor::writable(parts.room.address, 1));
            chain.push(parts.status);
            let table = guest.indirect_table(&chain);
            let answer = guest.send(&[table], parts.status);
            if answer == Answer::Stopped {
                guest.assert_first_queue_recovers();
            }
            guest.assert_second_queue_works();
        }
    });
}

fn indirect_table_of_absurd_size(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    for length in [0, 1, 8, 15, 17, 24, 0x7fff_fff0, 0xffff_fff0, u32::MAX] {
        let parts = guest.parts(&Request::write(PLAYGROUND, &[0; 4096]));
        let chain = [parts.header, parts.data, parts.status];
        let table = Descriptor { length, ..guest.indirect_table(&chain) };
        // A table that reaches out of memory is wrong even where its chain ends early.
        guest.send(&[table], parts.status).assert_refused();
        guest.assert_second_queue_works();
        guest.assert_first_queue_recovers();
    }
    drop(guest);
    scene.assert_unharmed();
}

fn indirect_table_outside_memory(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    let end = BASE + Options::CLOUD_HYPERVISOR.memory as u64;
    for address in [0, end, end - 16, BASE - 16, u64::MAX - 31, u64::MAX - 15] {
        let parts = guest.parts(&Request::write(PLAYGROUND, &[]));
        let table = Descriptor::readable(address, 48).with(INDIRECT, 0);
        guest.send(&[table], parts.status).assert_refused();
        guest.assert_second_queue_works();
        guest.assert_first_queue_recovers();
    }
    drop(guest);
    scene.assert_unharmed();
}

fn nested_indirect_table(configuration: Configuration) {
    survive(configuration, |guest| {
        let parts = guest.parts(&Request::write(PLAYGROUND, &[]));
        let inner = guest.indirect_table(&[parts.header, parts.data, parts.status]);
        let outer = guest.indirect_table(&[inner]);
        guest.send(&[outer], parts.status).assert_refused();
    });
}

/// INDIRECT and NEXT in one descriptor.
fn indirect_table_that_goes_on(configuration: Configuration) {
    survive(configuration, |guest| {
        let parts = guest.parts(&Request::write(PLAYGROUND, &[]));
        let table = guest.indirect_table(&[parts.header, parts.data]);
        guest.send(&[table, parts.status], parts.status).assert_refused();
    });
}

fn indirect_table_that_was_not_negotiated(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let options = Options::CLOUD_HYPERVISOR.queues(2).without(bit(VIRTIO_RING_F_INDIRECT_DESC));
    let mut guest = scene.served.guest_as(options);
    let parts = guest.parts(&Request::write(PLAYGROUND, &[]));
    let table = guest.indirect_table(&[parts.header, parts.data, parts.status]);
    // Some devices take it. What must not happen is that the table is taken for the request.
    guest.send(&[table], parts.status);
    guest.assert_second_queue_works();
    drop(guest);
    scene.assert_unharmed();
}

fn addresses_outside_memory(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    let end = BASE + Options::CLOUD_HYPERVISOR.memory as u64;
    let outside = [0, 0x1000, BASE - 1, end - 1, end, end + 4096, u64::MAX - 4096];
    for address in outside {
        let parts = guest.parts(&Request::write(PLAYGROUND, &[]));
        let data = Descriptor { address, ..parts.data };
        guest.send(&[parts.header, data, parts.status], parts.status).assert_status(IOERR);
        guest.assert_second_queue_works();

        let parts = guest.parts(&Request::bare(IN, 0));
        let room = Descriptor { address, ..parts.room };
        guest.send(&[parts.header, room, parts.status], parts.status).assert_status(IOERR);

        let parts = guest.parts(&Request::bare(FLUSH, 0));
        let header = Descriptor { address, ..parts.header };
        guest.send(&[header, parts.status], parts.status).assert_refused();
        guest.assert_first_queue_recovers();

        // The byte before the end is memory; everywhere else there is nowhere to put a status.
        if address != end - 1 {
            let parts = guest.parts(&Request::write(PLAYGROUND, &[]));
            let status = Descriptor { address, ..parts.status };
            guest.send(&[parts.header, parts.data, status], parts.status).assert_refused();
        }
        guest.assert_second_queue_works();
        guest.assert_first_queue_recovers();
    }
    drop(guest);
    scene.assert_unharmed();
}

fn lengths_that_overflow(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    let cases = [
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (u64::MAX - 4095, 4096),
        (u64::MAX - 4095, 8192),
        (BASE, u32::MAX),
        (BASE + 4096, 0xffff_f000),
        (BASE, 0x8000_0000),
    ];
    for (address, length) in cases {
        for (kind, flag) in [(OUT, 0), (IN, WRITE)] {
            let parts = guest.parts(&Request::bare(kind, PLAYGROUND / 512));
            let data = Descriptor::readable(address, length).with(flag, 0);
            guest.send(&[parts.header, data, parts.status], parts.status).assert_refused();
            guest.assert_second_queue_works();
            guest.assert_first_queue_recovers();
        }
    }
    // Buffers that are good one by one, and together more than 32 bits count.
    let parts = guest.parts(&Request::bare(OUT, PLAYGROUND / 512));
    let size = Options::CLOUD_HYPERVISOR.memory as u32;
    let mut chain = vec![Descriptor::readable(BASE, size); 60];
    chain.insert(0, parts.header);
    chain.push(parts.status);
    guest.send(&chain, parts.status).assert_refused();
    guest.assert_first_queue_recovers();
    let huge = Descriptor::readable(BASE, u32::MAX);
    let parts = guest.parts(&Request::bare(OUT, PLAYGROUND / 512));
    let chain = [&[parts.header][..], &[huge; 60], &[parts.status]].concat();
    guest.send(&chain, parts.status).assert_refused();
    drop(guest);
    scene.assert_unharmed();
}

fn descriptors_without_length(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    let empty = Descriptor::readable(0, 0);
    let empty_room = Descriptor::writable(0, 0);
    let parts = guest.parts(&Request::bare(IN, 0));
    let chains: [&[Descriptor]; 6] = [
        &[empty, empty_room],
        &[empty],
        &[empty_room],
        &[parts.header, empty_room],
        &[empty, parts.header, empty, empty_room, parts.status],
        &[parts.header, parts.room, parts.status, empty_room],
    ];
    for chain in chains {
        // Empty descriptors carry nothing, so the last two can be understood; the others cannot.
        guest.send(chain, parts.status);
        guest.assert_second_queue_works();
        guest.assert_first_queue_recovers();
    }
    drop(guest);
    scene.assert_unharmed();
}

fn write_table(guest: &Guest, address: u64, entries: &[Descriptor]) {
    for (index, entry) in (0..).zip(entries) {
        guest.memory.write(address + 16 * index, &entry.bytes());
    }
}
