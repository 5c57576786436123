//! Requests in any descriptor layout that virtio 1.2 allows (2.7.4): nothing may be concluded from
//! where one descriptor ends and the next begins.

use crate::support::configuration::Configuration;
use crate::support::guest::{Guest, Options};
use crate::support::pattern::{next, pattern};
use crate::support::request::{DISCARD, GET_ID, HEADER, Layout, OK, Request, UNTOUCHED, WRITE_ZEROES, segments};
use crate::support::ring::{Descriptor, WRITE};
use crate::support::served::Served;
use crate::support::volume::Volume;

const SIZE: u64 = 16 << 20;
const LENGTH: usize = 8192;

under_every_configuration!(
    header_may_be_cut_anywhere,
    header_and_data_may_share_a_descriptor,
    status_may_share_a_descriptor_with_data,
    data_may_be_cut_anywhere,
    random_layouts_carry_data_unharmed,
    direct_descriptors_may_precede_an_indirect_table,
    small_requests_may_be_cut_anywhere,
    longest_chain_of_a_queue_works,
);

/// Writes in each layout, then reads in the usual one.
fn assert_written_in(guest: &mut Guest, layouts: &[Layout]) {
    for (seed, layout) in (100..).zip(layouts) {
        for indirect in [false, true] {
            let layout = Layout { indirect, ..layout.clone() };
            let data = pattern(seed * 2 + u64::from(indirect), LENGTH);
            let reply = guest.call_in(0, &Request::write(0, &data), &layout);
            assert_eq!((reply.status, reply.used_length), (OK, 1), "{layout:?}");
            assert!(guest.read(0, LENGTH) == data, "{layout:?} lost data");
        }
    }
}

/// Reads in each layout what was written in the usual one.
fn assert_read_in(guest: &mut Guest, layouts: &[Layout]) {
    for (seed, layout) in (300..).zip(layouts) {
        let data = pattern(seed, LENGTH);
        guest.write(0, &data);
        for indirect in [false, true] {
            let layout = Layout { indirect, ..layout.clone() };
            let reply = guest.call_in(0, &Request::read(0, LENGTH), &layout);
            assert_eq!(reply.status, OK, "{layout:?}");
            assert_eq!(reply.used_length as usize, LENGTH + 1, "{layout:?}");
            assert!(reply.data == data, "{layout:?} lost data");
        }
    }
}

fn writing(readable: &[usize], skew: u64) -> Layout {
    Layout { readable: readable.to_vec(), writable: vec![1], indirect: false, skew }
}

fn reading(writable: &[usize], skew: u64) -> Layout {
    Layout { readable: vec![HEADER], writable: writable.to_vec(), indirect: false, skew }
}

fn header_may_be_cut_anywhere(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    let mut bytewise = vec![1; HEADER];
    bytewise.push(LENGTH);
    let layouts = [
        writing(&bytewise, 0),
        writing(&bytewise, 1),
        writing(&[8, 8, LENGTH], 0),
        writing(&[1, 15, LENGTH], 3),
        writing(&[15, 1, LENGTH], 0),
        writing(&[3, 5, 7, 1, LENGTH], 0),
    ];
    assert_written_in(&mut guest, &layouts);

    let mut layout = reading(&[LENGTH, 1], 0);
    layout.readable = vec![1; HEADER];
    assert_read_in(&mut guest, &[layout]);
}

fn header_and_data_may_share_a_descriptor(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    let layouts = [
        writing(&[HEADER + LENGTH], 0),
        writing(&[HEADER + LENGTH], 5),
        writing(&[HEADER + 1, LENGTH - 1], 0),
        writing(&[10, 6 + 512, LENGTH - 512], 0),
        writing(&[HEADER - 1, 1 + LENGTH], 0),
    ];
    assert_written_in(&mut guest, &layouts);
}

fn status_may_share_a_descriptor_with_data(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    let layouts = [
        reading(&[LENGTH + 1], 0),
        reading(&[LENGTH + 1], 7),
        reading(&[512, LENGTH - 512 + 1], 0),
        reading(&[LENGTH - 1, 2], 0),
    ];
    assert_read_in(&mut guest, &layouts);
}

fn data_may_be_cut_anywhere(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    let ones_and_rest = {
        let mut pieces = vec![1; 60];
        pieces.push(LENGTH - 60);
        pieces
    };
    let cuts: [&[usize]; 6] = [
        &[1, LENGTH - 1],
        &[LENGTH - 1, 1],
        &[511, 513, 1024, LENGTH - 2048],
        &[4095, 2, 4095],
        &[333, 334, 335, LENGTH - 1002],
        &ones_and_rest,
    ];
    for skew in [0, 1, 16] {
        let write: Vec<_> = cuts.iter().map(|cut| writing(&[&[HEADER], *cut].concat(), skew)).collect();
        assert_written_in(&mut guest, &write);
        let read: Vec<_> = cuts.iter().map(|cut| reading(&[*cut, &[1]].concat(), skew)).collect();
        assert_read_in(&mut guest, &read);
    }
}

fn random_layouts_carry_data_unharmed(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    let mut state = 11;
    for round in 0..60 {
        let blocks = 1 + next(&mut state) % 8;
        let length = blocks as usize * configuration.sector_size as usize;
        let last = SIZE / u64::from(configuration.sector_size) - blocks;
        let offset = next(&mut state) % last * u64::from(configuration.sector_size);
        let data = pattern(1000 + round, length);
        let layout = Layout {
            readable: random_cuts(&mut state, HEADER + length),
            writable: vec![1],
            indirect: next(&mut state).is_multiple_of(2),
            skew: next(&mut state) % 8,
        };
        let reply = guest.call_in(0, &Request::write(offset, &data), &layout);
        assert_eq!((reply.status, reply.used_length), (OK, 1), "{layout:?}");
        let layout = Layout {
            readable: random_cuts(&mut state, HEADER),
            writable: random_cuts(&mut state, length + 1),
            indirect: next(&mut state).is_multiple_of(2),
            skew: next(&mut state) % 8,
        };
        let reply = guest.call_in(0, &Request::read(offset, length), &layout);
        assert_eq!(reply.status, OK, "{layout:?}");
        assert!(reply.data == data, "{layout:?} lost data");
        volume.assert_holds(offset, &data);
    }
}

/// Cuts `length` bytes into at most 40 pieces.
fn random_cuts(state: &mut u64, length: usize) -> Vec<usize> {
    let mut pieces = Vec::new();
    let mut left = length;
    while left > 0 && pieces.len() < 39 {
        let limit = [1, 3, 17, 512, 1000, 4096, left][next(state) as usize % 7].min(left);
        let piece = 1 + next(state) as usize % limit;
        pieces.push(piece);
        left -= piece;
    }
    if left > 0 {
        pieces.push(left);
    }
    pieces
}

/// 2.7.5.3.2: a table may end a chain of direct descriptors, and whether the descriptor that names
/// it is marked as writable says nothing.
fn direct_descriptors_may_precede_an_indirect_table(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    for (seed, flag) in [(12, 0), (13, WRITE)] {
        write_through_both(&mut guest, &pattern(seed, LENGTH), flag);
    }
}

fn write_through_both(guest: &mut Guest, data: &[u8], flag: u16) {
    let request = Request::write(0, data);
    guest.start_request();
    let header = guest.memory.allocate(HEADER, 16);
    guest.memory.write(header, &request.header());
    let buffer = guest.memory.allocate(LENGTH, 512);
    guest.memory.write(buffer, data);
    let status = guest.memory.allocate(1, 1);
    guest.memory.write(status, &[UNTOUCHED]);
    let table = guest
        .indirect_table(&[Descriptor::readable(buffer + 512, LENGTH as u32 - 512), Descriptor::writable(status, 1)]);
    let chain = [Descriptor::readable(header, HEADER as u32), Descriptor::readable(buffer, 512), table.with(flag, 0)];
    let head = guest.rings[0].add(&guest.memory, &chain).expect("room");
    guest.kick(0);
    let used = guest.rings[0].wait(&guest.memory);
    guest.end_request();
    assert_eq!((used.head, used.length), (head, 1));
    assert_eq!(guest.memory.read(status, 1), [OK]);
    assert!(guest.read(0, LENGTH) == data);
}

fn small_requests_may_be_cut_anywhere(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start_with(&volume, &["--serial", "cut-into-pieces"]);
    let mut guest = served.guest();
    let request = Request { in_length: 20, ..Request::bare(GET_ID, 0) };
    let layout = Layout { readable: vec![7, 9], writable: vec![3, 3, 3, 12], indirect: false, skew: 1 };
    let reply = guest.call_in(0, &request, &layout);
    assert_eq!((reply.status, reply.used_length), (OK, 21));
    assert_eq!(&reply.data, b"cut-into-pieces\0\0\0\0\0");

    let layout = Layout { readable: vec![1; HEADER], writable: vec![1], indirect: true, skew: 3 };
    let reply = guest.call_in(0, &Request::flush(), &layout);
    assert_eq!((reply.status, reply.used_length), (OK, 1));

    let block = configuration.sector_size / 512;
    for kind in [DISCARD, WRITE_ZEROES] {
        let data = pattern(13, 16 * configuration.sector_size as usize);
        guest.write(0, &data);
        let list = segments(&[(0, block, 0), (u64::from(block) * 2, block * 2, 0)]);
        for readable in [vec![HEADER + 32], vec![HEADER + 5, 27], vec![HEADER, 16, 16], vec![HEADER, 9, 14, 9]] {
            let layout = Layout { readable, writable: vec![1], indirect: false, skew: 1 };
            let reply = guest.call_in(0, &Request::ranges(kind, &list), &layout);
            assert_eq!((reply.status, reply.used_length), (OK, 1), "{layout:?}");
        }
        let mut expected = data;
        let block = configuration.sector_size as usize;
        expected[..block].fill(0);
        expected[2 * block..4 * block].fill(0);
        assert!(guest.read(0, expected.len()) == expected, "request {kind}");
    }
}

fn longest_chain_of_a_queue_works(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest_as(Options::CLOUD_HYPERVISOR.queue_size(64));
    // One descriptor for the status leaves 63 for header and data.
    let data = pattern(14, LENGTH);
    let mut pieces = vec![1; 62];
    pieces.push(HEADER + LENGTH - 62);
    for indirect in [false, true] {
        let layout = Layout { readable: pieces.clone(), writable: vec![1], indirect, skew: 0 };
        let reply = guest.call_in(0, &Request::write(0, &data), &layout);
        assert_eq!(reply.status, OK);
        assert!(guest.read(0, LENGTH) == data);
    }
}
