use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueOwnedT};
use vm_memory::{Bytes, GuestAddress};

use super::*;

const LIMITS: Limits = Limits { size_bytes: 1 << 20, sector_size_bytes: 512, read_only: false, descriptors_max: 128 };
const HEADER: u64 = 0x4000;
const DATA: u64 = 0x10000;
const STATUS: u64 = 0x8000;
const MEMORY_BYTES: usize = 0x40000;

fn memory() -> GuestMemory {
    // Two regions that touch, so that a buffer can cross from one to the other.
    GuestMemory::from_ranges(&[
        (GuestAddress(0), MEMORY_BYTES / 2),
        (GuestAddress(MEMORY_BYTES as u64 / 2), MEMORY_BYTES / 2),
    ])
    .unwrap()
}

fn put_header(memory: &GuestMemory, kind: u32, sector: u64) {
    memory.write_obj(kind.to_le(), GuestAddress(HEADER)).unwrap();
    memory.write_obj(sector.to_le(), GuestAddress(HEADER + 8)).unwrap();
}

fn readable(address: u64, len: u32) -> (u64, u32, u32) {
    (address, len, 0)
}

fn writable(address: u64, len: u32) -> (u64, u32, u32) {
    (address, len, VRING_DESC_F_WRITE)
}

/// Parses one chain of these descriptors, linked in order.
fn parse(memory: &GuestMemory, chain: &[(u64, u32, u32)], limits: &Limits) -> (Result<Request, ChainError>, Parser) {
    let descriptors: Vec<_> = chain
        .iter()
        .enumerate()
        .map(|(index, &(address, len, flags))| {
            let next = if index + 1 < chain.len() { VRING_DESC_F_NEXT } else { 0 };
            RawDescriptor::from(Descriptor::new(address, len, (flags | next) as u16, index as u16 + 1))
        })
        .collect();
    let ring = MockSplitQueue::new(memory, 256);
    ring.build_multiple_desc_chains(&descriptors).unwrap();
    parse_head(memory, &ring, limits)
}

fn parse_head(
    memory: &GuestMemory,
    ring: &MockSplitQueue<GuestMemory>,
    limits: &Limits,
) -> (Result<Request, ChainError>, Parser) {
    let mut queue: Queue = ring.create_queue().unwrap();
    let chain = queue.iter(memory).unwrap().next().unwrap();
    let mut parser = Parser::default();
    let result = parser.parse(memory, chain, limits);
    (result, parser)
}

fn command(memory: &GuestMemory, chain: &[(u64, u32, u32)]) -> Result<Command, Status> {
    parse(memory, chain, &LIMITS).0.unwrap().command
}

fn host(memory: &GuestMemory, address: u64) -> *mut u8 {
    vm_memory::GuestMemoryBackend::get_host_address(memory, GuestAddress(address)).unwrap()
}

#[test]
fn a_plain_read_and_write() {
    let memory = memory();
    put_header(&memory, VIRTIO_BLK_T_IN, 8);
    let (request, parser) = parse(&memory, &[readable(HEADER, 16), writable(DATA, 4096), writable(STATUS, 1)], &LIMITS);
    let request = request.unwrap();
    assert_eq!(request.command, Ok(Command::Read { offset: 4096 }));
    assert_eq!(request.status, host(&memory, STATUS));
    assert_eq!(parser.data(), [Segment::new(host(&memory, DATA), 4096)]);

    put_header(&memory, VIRTIO_BLK_T_OUT, 8);
    let (request, parser) = parse(&memory, &[readable(HEADER, 16), readable(DATA, 4096), writable(STATUS, 1)], &LIMITS);
    assert_eq!(request.unwrap().command, Ok(Command::Write { offset: 4096 }));
    assert_eq!(parser.data(), [Segment::new(host(&memory, DATA), 4096)]);
}

#[test]
fn any_layout_of_descriptors_means_the_same() {
    let memory = memory();
    put_header(&memory, VIRTIO_BLK_T_OUT, 2);
    // The header in single bytes, and data in the same descriptor as its end.
    let mut chain: Vec<_> = (0..15).map(|at| readable(HEADER + at, 1)).collect();
    chain.extend([readable(HEADER + 15, 1 + 500), readable(DATA, 0), readable(DATA, 12), writable(STATUS, 1)]);
    let (request, parser) = parse(&memory, &chain, &LIMITS);
    assert_eq!(request.unwrap().command, Ok(Command::Write { offset: 1024 }));
    assert_eq!(parser.data(), [Segment::new(host(&memory, HEADER + 16), 500), Segment::new(host(&memory, DATA), 12)]);

    // The status as the last byte of a data descriptor.
    put_header(&memory, VIRTIO_BLK_T_IN, 0);
    let (request, parser) =
        parse(&memory, &[readable(HEADER, 16), writable(DATA, 100), writable(STATUS, 413)], &LIMITS);
    let request = request.unwrap();
    assert_eq!(request.command, Ok(Command::Read { offset: 0 }));
    assert_eq!(request.status, host(&memory, STATUS + 412));
    assert_eq!(total(parser.data()), 512);

    // Data across two regions of memory.
    let border = MEMORY_BYTES as u64 / 2;
    let (request, parser) =
        parse(&memory, &[readable(HEADER, 16), writable(border - 256, 512), writable(STATUS, 1)], &LIMITS);
    assert!(request.unwrap().command.is_ok());
    assert_eq!(parser.data().len(), 2);
}

#[test]
fn an_indirect_table_means_the_same() {
    let memory = memory();
    put_header(&memory, VIRTIO_BLK_T_IN, 1);
    let table = 0x9000;
    for (index, (address, len, flags)) in
        [readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)].into_iter().enumerate()
    {
        let next = if index < 2 { VRING_DESC_F_NEXT } else { 0 };
        let descriptor = Descriptor::new(address, len, (flags | next) as u16, index as u16 + 1);
        memory.write_obj(descriptor, GuestAddress(table + 16 * index as u64)).unwrap();
    }
    assert_eq!(command(&memory, &[(table, 48, VRING_DESC_F_INDIRECT)]), Ok(Command::Read { offset: 512 }));
    for bad_len in [0, 16, 32, 47, 0xffff_fff0, u32::MAX] {
        let (request, _) = parse(&memory, &[(table, bad_len, VRING_DESC_F_INDIRECT)], &LIMITS);
        match request {
            Err(ChainError::Broken { head: 0 }) => {}
            // A table of one or two descriptors is cut off in the middle of the chain.
            other => panic!("length {bad_len}: {other:?}"),
        }
    }
    let (request, _) = parse(&memory, &[(u64::MAX - 31, 48, VRING_DESC_F_INDIRECT)], &LIMITS);
    assert!(matches!(request, Err(ChainError::Broken { .. })));
}

#[test]
fn loops_and_bad_indices_break_the_chain() {
    let memory = memory();
    for next in [0, 1, 255, 256, u16::MAX] {
        let ring = MockSplitQueue::new(&memory, 256);
        let chain = [
            Descriptor::new(HEADER, 16, VRING_DESC_F_NEXT as u16, 1),
            Descriptor::new(DATA, 512, VRING_DESC_F_NEXT as u16, next),
        ]
        .map(RawDescriptor::from);
        ring.build_multiple_desc_chains(&[chain[0], RawDescriptor::from(Descriptor::new(DATA, 512, 0, 0))]).unwrap();
        ring.desc_table().store(1, chain[1]).unwrap();
        for index in 2..256 {
            // Whatever lies behind leads back, so that every start is a loop.
            ring.desc_table()
                .store(index, RawDescriptor::from(Descriptor::new(DATA, 1, VRING_DESC_F_NEXT as u16, 0)))
                .unwrap();
        }
        let (request, _) = parse_head(&memory, &ring, &LIMITS);
        assert_eq!(request.unwrap_err(), ChainError::Broken { head: 0 }, "next {next}");
    }
}

#[test]
fn chains_without_a_status_byte() {
    let memory = memory();
    put_header(&memory, VIRTIO_BLK_T_OUT, 0);
    for chain in [
        &[readable(HEADER, 16)][..],
        &[readable(HEADER, 16), readable(DATA, 512)],
        &[readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 0)],
        &[readable(HEADER, 16), readable(DATA, 512), writable(u64::MAX, 1)],
        &[readable(HEADER, 16), readable(DATA, 512), writable(MEMORY_BYTES as u64, 1)],
        &[readable(HEADER, 16), writable(DATA, 512), writable(u64::MAX - 3, 8)],
    ] {
        assert_eq!(parse(&memory, chain, &LIMITS).0.unwrap_err(), ChainError::NoStatus { head: 0 }, "{chain:?}");
    }
}

#[test]
fn requests_that_are_wrong_get_an_error_status() {
    let memory = memory();
    let end = MEMORY_BYTES as u64;
    for (kind, sector, chain) in [
        // A header that is short, or not readable.
        (VIRTIO_BLK_T_IN, 0, &[readable(HEADER, 15), writable(DATA, 512), writable(STATUS, 1)][..]),
        (VIRTIO_BLK_T_IN, 0, &[writable(STATUS, 1)]),
        (VIRTIO_BLK_T_IN, 0, &[writable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)]),
        // Readable after writable.
        (VIRTIO_BLK_T_OUT, 0, &[readable(HEADER, 16), writable(STATUS, 1), readable(DATA, 512)]),
        // Data that is not whole sectors.
        (VIRTIO_BLK_T_IN, 0, &[readable(HEADER, 16), writable(DATA, 511), writable(STATUS, 1)]),
        (VIRTIO_BLK_T_OUT, 0, &[readable(HEADER, 16), readable(DATA, 513), writable(STATUS, 1)]),
        // Past the end, by one sector, by much, and with an offset that overflows.
        (VIRTIO_BLK_T_IN, 2048, &[readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)]),
        (VIRTIO_BLK_T_OUT, 2047, &[readable(HEADER, 16), readable(DATA, 1024), writable(STATUS, 1)]),
        (VIRTIO_BLK_T_IN, u64::MAX, &[readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)]),
        (VIRTIO_BLK_T_OUT, u64::MAX / 512, &[readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 1)]),
        // Data outside guest memory.
        (VIRTIO_BLK_T_IN, 0, &[readable(HEADER, 16), writable(end, 512), writable(STATUS, 1)]),
        (VIRTIO_BLK_T_OUT, 0, &[readable(HEADER, 16), readable(end - 256, 512), writable(STATUS, 1)]),
        (VIRTIO_BLK_T_OUT, 0, &[readable(HEADER, 16), readable(u64::MAX - 255, 512), writable(STATUS, 1)]),
    ] {
        put_header(&memory, kind, sector);
        assert_eq!(command(&memory, chain), Err(Status::IoError), "kind {kind} sector {sector} {chain:?}");
    }
    put_header(&memory, 0x1234, 0);
    assert_eq!(command(&memory, &[readable(HEADER, 16), writable(STATUS, 1)]), Err(Status::Unsupported));
}

#[test]
fn large_sectors_and_read_only_volumes_are_respected() {
    let memory = memory();
    let large = Limits { sector_size_bytes: 4096, ..LIMITS };
    for (sector, len, expected) in
        [(8, 4096, Ok(Command::Read { offset: 4096 })), (1, 4096, Err(Status::IoError)), (0, 512, Err(Status::IoError))]
    {
        put_header(&memory, VIRTIO_BLK_T_IN, sector);
        let (request, _) = parse(&memory, &[readable(HEADER, 16), writable(DATA, len), writable(STATUS, 1)], &large);
        assert_eq!(request.unwrap().command, expected);
    }
    let read_only = Limits { read_only: true, ..LIMITS };
    for kind in [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        put_header(&memory, kind, 0);
        let (request, _) =
            parse(&memory, &[readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 1)], &read_only);
        assert_eq!(request.unwrap().command, Err(Status::IoError));
    }
}

#[test]
fn ranges_of_discard_and_write_zeroes() {
    let memory = memory();
    let range = |at: u64, sector: u64, sectors: u32, flags: u32| {
        memory.write_obj(sector.to_le(), GuestAddress(DATA + at)).unwrap();
        memory.write_obj(sectors.to_le(), GuestAddress(DATA + at + 8)).unwrap();
        memory.write_obj(flags.to_le(), GuestAddress(DATA + at + 12)).unwrap();
    };
    let outcome = |kind: u32, len: u32| {
        put_header(&memory, kind, 0);
        let (request, parser) =
            parse(&memory, &[readable(HEADER, 16), readable(DATA, len), writable(STATUS, 1)], &LIMITS);
        (request.unwrap().command, parser.ranges().to_vec())
    };
    range(0, 8, 16, 0);
    range(16, 0, 0, 0);
    range(32, 2040, 8, 0);
    let expected = vec![Extent { offset: 4096, len: 8192 }, Extent { offset: 2040 * 512, len: 4096 }];
    assert_eq!(outcome(VIRTIO_BLK_T_DISCARD, 48), (Ok(Command::Discard), expected.clone()));
    assert_eq!(outcome(VIRTIO_BLK_T_WRITE_ZEROES, 48), (Ok(Command::WriteZeroes), expected));
    for len in [0, 15, 17, 16 * 65] {
        assert_eq!(outcome(VIRTIO_BLK_T_DISCARD, len).0, Err(Status::IoError), "{len} bytes of ranges");
    }
    range(0, 8, 16, 1);
    assert_eq!(outcome(VIRTIO_BLK_T_DISCARD, 16).0, Err(Status::Unsupported));
    assert_eq!(outcome(VIRTIO_BLK_T_WRITE_ZEROES, 16).0, Ok(Command::WriteZeroes));
    range(0, 8, 16, 2);
    assert_eq!(outcome(VIRTIO_BLK_T_WRITE_ZEROES, 16).0, Err(Status::Unsupported));
    for (sector, sectors) in
        [(2041, 8), (u64::MAX, 1), (0, u32::MAX), (0, RANGE_SECTORS_MAX + 1), (u64::MAX / 512, 512)]
    {
        range(0, sector, sectors, 0);
        assert_eq!(outcome(VIRTIO_BLK_T_WRITE_ZEROES, 16).0, Err(Status::IoError), "{sectors} sectors from {sector}");
    }
}

#[test]
fn a_chain_longer_than_allowed_is_refused() {
    let memory = memory();
    put_header(&memory, VIRTIO_BLK_T_IN, 0);
    let long = |count: u64| {
        let mut chain = vec![readable(HEADER, 16)];
        chain.extend((0..count).map(|index| writable(DATA + 512 * index, 512)));
        chain.push(writable(STATUS, 1));
        command(&memory, &chain)
    };
    assert_eq!(long(126), Ok(Command::Read { offset: 0 }));
    assert_eq!(long(127), Err(Status::IoError));
}

#[test]
fn the_fuzzing_corpus_passes() {
    assert!(crate::corpus::taken("request", parse_hostile) >= 6);
}
