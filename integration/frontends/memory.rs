//! Guest memory that comes, goes and lies in pieces, while requests run.

use vhost::vhost_user::VhostUserFrontend;

use crate::support::configuration::Configuration;
use crate::support::guest::{Guest, Options};
use crate::support::memory::{BASE, Region};
use crate::support::pattern::pattern;
use crate::support::request::{HEADER, Layout, OK, Request, UNTOUCHED};
use crate::support::ring::Descriptor;
use crate::support::served::Served;
use crate::support::volume::Volume;

const SIZE: u64 = 16 << 20;
const LENGTH: usize = 8192;

under_every_engine!(
    region_can_be_added_and_removed,
    buffer_may_span_two_regions,
    table_may_change_under_load,
    as_many_regions_as_promised,
);

/// Writes and reads one buffer that lies anywhere in guest memory.
fn exchange(guest: &mut Guest, buffer: u64, seed: u64) {
    let data = pattern(seed, LENGTH);
    guest.memory.write(buffer, &data);
    transfer(guest, &Request::write(0, &data), Descriptor::readable(buffer, LENGTH as u32));
    guest.memory.write(buffer, &vec![0; LENGTH]);
    transfer(guest, &Request::read(0, LENGTH), Descriptor::writable(buffer, LENGTH as u32));
    assert!(guest.memory.read(buffer, LENGTH) == data);
}

fn transfer(guest: &mut Guest, request: &Request<'_>, data: Descriptor) {
    guest.start_request();
    let header = guest.memory.allocate(HEADER, 16);
    guest.memory.write(header, &request.header());
    let status = guest.memory.allocate(1, 1);
    guest.memory.write(status, &[UNTOUCHED]);
    let chain = [Descriptor::readable(header, HEADER as u32), data, Descriptor::writable(status, 1)];
    let head = guest.rings[0].add(&guest.memory, &chain).expect("room");
    guest.kick(0);
    let used = guest.rings[0].wait(&guest.memory);
    assert_eq!(used.head, head);
    guest.end_request();
    assert_eq!(guest.memory.read(status, 1), [OK]);
}

fn region_can_be_added_and_removed(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    for round in 0..10 {
        let region = Region::new(BASE + (1 << 32), 1 << 20);
        let info = region.info();
        guest.frontend.add_mem_region(&info).expect("ADD_MEM_REG");
        guest.memory.regions.push(region);
        exchange(&mut guest, BASE + (1 << 32) + 4096, 70 + round);
        guest.frontend.remove_mem_region(&info).expect("REM_MEM_REG");
        guest.memory.regions.pop();
        guest.write(0, &pattern(round, LENGTH));
    }
    let gone = Region::new(BASE + (2 << 32), 1 << 20);
    assert!(guest.frontend.remove_mem_region(&gone.info()).is_err());
}

/// Two regions side by side in the guest, which are mapped apart in the back end.
fn buffer_may_span_two_regions(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    let options = Options::CLOUD_HYPERVISOR;
    let border = BASE + options.memory as u64;
    guest.memory.regions.push(Region::new(border, 1 << 20));
    guest.share_memory();

    for before in [1, 511, 512, 4096, LENGTH - 1] {
        let data = pattern(80 + before as u64, LENGTH);
        let buffer = border - before as u64;
        let write = |guest: &Guest, bytes: &[u8]| {
            guest.memory.write(buffer, &bytes[..before]);
            guest.memory.write(border, &bytes[before..]);
        };
        write(&guest, &data);
        let descriptor = Descriptor::readable(buffer, LENGTH as u32);
        transfer(&mut guest, &Request::write(0, &data), descriptor);
        assert!(guest.read(0, LENGTH) == data, "{before} bytes before");

        write(&guest, &vec![0; LENGTH]);
        let descriptor = Descriptor::writable(buffer, LENGTH as u32);
        transfer(&mut guest, &Request::read(0, LENGTH), descriptor);
        let mut read = guest.memory.read(buffer, before);
        read.extend(guest.memory.read(border, LENGTH - before));
        assert!(read == data, "{before} bytes before");
    }
}

/// What QEMU does when memory is plugged in: the whole table again, under running rings.
fn table_may_change_under_load(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest_as(Options::CLOUD_HYPERVISOR.queue_size(256));
    for round in 0..30 {
        let pending: Vec<_> = (0..80)
            .map(|index| {
                let data = pattern(round * 1000 + index, LENGTH);
                let request = Request::write(index * LENGTH as u64, &data);
                guest.submit(0, &request, &Layout::usual(&request))
            })
            .collect();
        guest.kick(0);
        let region = Region::new(BASE + (1 << 32), 1 << 20);
        if round % 2 == 0 {
            guest.memory.regions.push(region);
            guest.share_memory();
            guest.memory.regions.pop();
            guest.share_memory();
        } else {
            let info = region.info();
            guest.frontend.add_mem_region(&info).expect("ADD_MEM_REG");
            guest.frontend.remove_mem_region(&info).expect("REM_MEM_REG");
        }
        for pending in &pending {
            assert_eq!(guest.finish(pending).status, OK);
        }
        for index in 0..80 {
            let read = guest.read(index * LENGTH as u64, LENGTH);
            assert!(read == pattern(round * 1000 + index, LENGTH));
        }
    }
}

fn as_many_regions_as_promised(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let mut served = Served::start(&volume);
    let mut guest = served.guest();
    let slots = guest.frontend.get_max_mem_slots().expect("memory slots");
    assert!(slots >= 8, "{slots} slots");
    let last = slots.min(600);
    for index in 1..last {
        let address = BASE + (index << 32);
        let region = Region::new(address, 64 << 10);
        let info = region.info();
        guest.frontend.add_mem_region(&info).expect("ADD_MEM_REG");
        guest.memory.regions.push(region);
        if index % 8 == 1 || index == last - 1 {
            exchange(&mut guest, address, index);
        }
    }
    if last == slots {
        let extra = Region::new(BASE + (slots << 32), 64 << 10);
        assert!(guest.frontend.add_mem_region(&extra.info()).is_err());
    }
    served.assert_alive();
    drop(guest);
    served.guest().write(0, &pattern(90, LENGTH));
}
