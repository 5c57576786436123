//! The front end of the `blkio` crate, which shares no code with the crates that sealblk is built
//! on. It registers its rings' memory, enables the rings and only then registers the buffers; it
//! never sends SET_MEM_TABLE or GET_VRING_BASE, and leaves by closing the socket.

use std::mem::MaybeUninit;
use std::path::Path;
use std::time::Duration;

use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};

use crate::support::PATIENCE;
use crate::support::configuration::Configuration;
use crate::support::pattern::{next, pattern};
use crate::support::served::Served;
use crate::support::volume::Volume;

const SIZE: u64 = 16 << 20;

under_every_configuration!(
    properties_are_the_volumes,
    data_written_is_read_back,
    queues_work_side_by_side,
    space_is_given_back,
    requests_left_in_flight_do_no_harm,
    buffers_can_be_registered_and_removed,
    read_only_volume_is_refused_to_a_writer,
);

/// A started driver with one region of memory.
struct Library {
    // Dropped in this order: the queues before the driver, which frees the memory.
    queues: Vec<Blkioq>,
    driver: Blkio,
    region: MemoryRegion,
}

impl Library {
    fn connect(socket: &Path, read_only: bool) -> Blkio {
        let mut driver = Blkio::new("virtio-blk-vhost-user").expect("the driver");
        let path = socket.to_str().expect("a path in UTF-8");
        driver.set_str("path", path).expect("the path");
        driver.set_bool("read-only", read_only).expect("read-only");
        driver.connect().expect("connecting");
        driver
    }

    fn start(socket: &Path, queues: i32) -> Self {
        let mut driver = Self::connect(socket, false);
        driver.set_i32("num-queues", queues).expect("queues");
        let queues = driver.start().expect("starting").queues;
        let region = driver.alloc_mem_region(4 << 20).expect("memory");
        driver.map_mem_region(&region).expect("registering memory");
        Self { queues, driver, region }
    }

    /// The buffer at byte `offset` of the region.
    fn buffer(&self, offset: usize, length: usize) -> *mut u8 {
        assert!(offset + length <= self.region.len);
        (self.region.addr + offset) as *mut u8
    }

    fn fill(&self, offset: usize, bytes: &[u8]) {
        let buffer = self.buffer(offset, bytes.len());
        // SAFETY: within the region, which is mapped for as long as the driver lives.
        unsafe { buffer.copy_from(bytes.as_ptr(), bytes.len()) };
    }

    fn bytes(&self, offset: usize, length: usize) -> Vec<u8> {
        let buffer = self.buffer(offset, length);
        // SAFETY: within the region, and no request that writes to it is in flight.
        unsafe { std::slice::from_raw_parts(buffer, length) }.to_vec()
    }

    /// Waits for `count` completions on a queue, all of which must be successes.
    fn complete(&mut self, queue: usize, count: usize) {
        let mut completions: Vec<MaybeUninit<Completion>> = (0..count).map(|_| MaybeUninit::uninit()).collect();
        let mut patience = PATIENCE;
        let done = self.queues[queue].do_io(&mut completions, count, Some(&mut patience), None).expect("completions");
        assert_eq!(done, count);
        for completion in completions {
            // SAFETY: `do_io` has filled in as many as it returned.
            let completion = unsafe { completion.assume_init() };
            assert_eq!(completion.ret, 0, "request {}", completion.user_data);
        }
    }

    fn write(&mut self, queue: usize, start: u64, data: &[u8]) {
        self.fill(0, data);
        let buffer = self.buffer(0, data.len());
        self.queues[queue].write(start, buffer, data.len(), 0, ReqFlags::empty());
        self.complete(queue, 1);
    }

    fn read(&mut self, queue: usize, start: u64, length: usize) -> Vec<u8> {
        let buffer = self.buffer(0, length);
        self.queues[queue].read(start, buffer, length, 0, ReqFlags::empty());
        self.complete(queue, 1);
        self.bytes(0, length)
    }

    fn flush(&mut self, queue: usize) {
        self.queues[queue].flush(0, ReqFlags::empty());
        self.complete(queue, 1);
    }
}

fn properties_are_the_volumes(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start_with(&volume, &["--queues", "5"]);
    let driver = Library::connect(served.socket(), false);
    assert_eq!(driver.get_u64("capacity").expect("capacity"), SIZE);
    let alignment = driver.get_i32("request-alignment").expect("alignment");
    assert_eq!(alignment as u32, configuration.sector_size);
    assert_eq!(driver.get_i32("max-queues").expect("queues"), 5);
    let optimal = driver.get_i32("optimal-io-alignment").expect("alignment");
    assert!(optimal >= alignment && optimal % alignment == 0);
    let discard = driver.get_u64("max-discard-len").expect("a limit");
    assert!(discard >= 1 << 20, "{discard}");
    let zeroes = driver.get_u64("max-write-zeroes-len").expect("a limit");
    assert!(zeroes >= 1 << 20, "{zeroes}");
    assert!(driver.get_u64("max-mem-regions").expect("a limit") >= 8);
    assert!(driver.get_bool("flush-needed").expect("a flag"));
}

fn data_written_is_read_back(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut model = vec![0; SIZE as usize];
    let mut state = 5;
    let block = u64::from(configuration.sector_size);
    let mut library = Library::start(served.socket(), 1);
    for seed in 0..100 {
        let blocks = 1 + next(&mut state) % 32;
        let length = (blocks * block) as usize;
        let start = next(&mut state) % (SIZE / block - blocks) * block;
        let data = pattern(seed, length);
        library.write(0, start, &data);
        model[start as usize..][..length].copy_from_slice(&data);
    }
    library.flush(0);
    drop(library);
    // A new connection reads what the old one wrote.
    let mut library = Library::start(served.socket(), 1);
    for start in (0..SIZE).step_by(1 << 20) {
        let read = library.read(0, start, 1 << 20);
        assert!(read == model[start as usize..][..1 << 20]);
    }
    drop(library);
    served.terminate().assert_clean();
    volume.assert_holds(0, &model);
}

fn queues_work_side_by_side(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut library = Library::start(served.socket(), 4);
    let data = pattern(6, 4 << 20);
    library.fill(0, &data);
    let share = 1 << 20;
    let piece = 16 << 10;
    for queue in 0..4 {
        for at in (queue * share..(queue + 1) * share).step_by(piece) {
            let buffer = library.buffer(at, piece);
            library.queues[queue].write(at as u64, buffer, piece, at, ReqFlags::empty());
        }
    }
    (0..4).for_each(|queue| library.complete(queue, share / piece));
    library.fill(0, &vec![0; 4 << 20]);
    for queue in 0..4 {
        let from = 3 - queue;
        for at in (from * share..(from + 1) * share).step_by(piece) {
            let buffer = library.buffer(at, piece);
            library.queues[queue].read(at as u64, buffer, piece, at, ReqFlags::empty());
        }
    }
    (0..4).for_each(|queue| library.complete(queue, share / piece));
    assert!(library.bytes(0, 4 << 20) == data);
    library.flush(2);
    volume.assert_holds(0, &data);
}

fn space_is_given_back(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut library = Library::start(served.socket(), 1);
    let data = pattern(7, 4 << 20);
    library.write(0, 0, &data);
    library.flush(0);
    let full = volume.allocated_bytes();
    library.queues[0].discard(0, 1 << 20, 0, ReqFlags::empty());
    library.queues[0].write_zeroes(2 << 20, 1 << 20, 1, ReqFlags::empty());
    library.queues[0].write_zeroes((3 << 20) + 4096, 4096, 2, ReqFlags::NO_UNMAP);
    library.complete(0, 3);
    library.flush(0);
    assert!(volume.allocated_bytes() <= full - (2 << 20));
    let mut expected = data;
    expected[..1 << 20].fill(0);
    expected[2 << 20..3 << 20].fill(0);
    expected[(3 << 20) + 4096..(3 << 20) + 8192].fill(0);
    assert!(library.read(0, 0, 4 << 20) == expected);
}

fn requests_left_in_flight_do_no_harm(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let mut served = Served::start(&volume);
    let model = pattern(8, 1 << 20);
    let mut library = Library::start(served.socket(), 1);
    library.write(0, 0, &model);
    drop(library);
    for round in 0..20 {
        let mut library = Library::start(served.socket(), 2);
        library.fill(0, &pattern(round, 1 << 20));
        for queue in 0..2 {
            for at in (0..1 << 20).step_by(32 << 10) {
                let buffer = library.buffer(at, 32 << 10);
                let start = (4 << 20) + at as u64;
                library.queues[queue].write(start, buffer, 32 << 10, at, ReqFlags::empty());
            }
            // Notifies, takes what is there, and waits for nothing.
            let mut none: [MaybeUninit<Completion>; 1] = [MaybeUninit::uninit()];
            let mut patience = Duration::ZERO;
            let _ = library.queues[queue].do_io(&mut none, 0, Some(&mut patience), None);
        }
        drop(library);
        served.assert_alive();
    }
    let mut library = Library::start(served.socket(), 1);
    assert!(library.read(0, 0, 1 << 20) == model);
}

fn buffers_can_be_registered_and_removed(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut library = Library::start(served.socket(), 1);
    for round in 0..10 {
        let region = library.driver.alloc_mem_region(1 << 20).expect("memory");
        library.driver.map_mem_region(&region).expect("registering");
        let first = std::mem::replace(&mut library.region, region);
        let data = pattern(round, 1 << 20);
        library.write(0, 0, &data);
        library.fill(0, &vec![0; 1 << 20]);
        assert!(library.read(0, 0, 1 << 20) == data);
        let region = std::mem::replace(&mut library.region, first);
        library.driver.unmap_mem_region(&region);
        library.driver.free_mem_region(&region);
        // Through the region that stays.
        assert!(library.read(0, 0, 1 << 20) == data);
    }
}

fn read_only_volume_is_refused_to_a_writer(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start_with(&volume, &["--read-only"]);
    let mut writer = Library::connect(served.socket(), false);
    let error = writer.start().err().expect("the device is read-only");
    assert_eq!(error.errno(), blkio::Errno::ROFS);
    drop(writer);
    let mut reader = Library::connect(served.socket(), true);
    assert_eq!(reader.start().expect("starting").queues.len(), 1);
}
