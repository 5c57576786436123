//! Guest memory that is taken away: unregistered, replaced by less, or truncated under the device.

use std::sync::atomic::Ordering;

use vhost::vhost_user::VhostUserFrontend;

use super::scene::{Answer, PLAYGROUND, PLAYGROUND_LENGTH, Parts, Scene};
use crate::support::configuration::Configuration;
use crate::support::guest::{Guest, Options};
use crate::support::memory::{BASE, Region};
use crate::support::request::{FLUSH, IN, IOERR, Layout, OK, OUT, Request};
use crate::support::ring::{Descriptor, INDIRECT, Outcome};

under_every_engine!(
    region_removed_under_requests,
    table_shrinks_under_requests,
    table_without_the_rings,
    buffers_truncated,
    huge_pages_truncated,
    buffers_truncated_under_requests,
    rings_truncated,
    rings_in_one_file_of_which_one_is_cut_off,
    rings_on_one_page_that_vanishes,
    status_and_header_truncated,
    memory_that_cannot_be_written,
);

/// The usual size of huge pages.
const HUGE_PAGE: usize = 2 << 20;
const HUGE_PAGES: usize = 2;
const OTHER: u64 = BASE + (1 << 32);
/// The last page of the first region.
const LAST_PAGE: u64 = BASE + Options::CLOUD_HYPERVISOR.memory as u64 - 4096;

/// A second region with room for buffers.
fn add_region(guest: &mut Guest) {
    let region = Region::new(OTHER, 4 << 20);
    guest.frontend.add_mem_region(&region.info()).expect("ADD_MEM_REG");
    guest.memory.regions.push(region);
}

/// Fills the first ring with writes and reads whose buffers lie in the second region.
fn submit_into_other(guest: &mut Guest) -> usize {
    let mut count = 0;
    for index in 0..PLAYGROUND_LENGTH as u64 / 16384 {
        let kind = if index % 2 == 0 { OUT } else { IN };
        let parts = guest.parts(&Request::bare(kind, PLAYGROUND / 512 + index * 32));
        let data = OTHER + index * 16384;
        let data = match kind {
            OUT => Descriptor::readable(data, 16384),
            _ => Descriptor::writable(data, 16384),
        };
        let chain = [parts.header, data, parts.status];
        count += usize::from(guest.rings[0].add(&guest.memory, &chain).is_some());
    }
    guest.rings[0].kick_always();
    count
}

/// Takes as many answers, each of which may be a success or an error.
fn take_answers(guest: &mut Guest, count: usize) {
    for _ in 0..count {
        if guest.rings[0].outcome(&guest.memory) == Outcome::Stopped {
            break;
        }
    }
}

fn region_removed_under_requests(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    for _ in 0..15 {
        add_region(&mut guest);
        let count = submit_into_other(&mut guest);
        let info = guest.memory.regions[1].info();
        guest.frontend.remove_mem_region(&info).expect("REM_MEM_REG");
        guest.memory.regions.pop();
        take_answers(&mut guest, count);
        guest.assert_second_queue_works();
        guest.assert_first_queue_recovers();
    }
    // A buffer in a region that has gone is outside memory.
    let parts = guest.parts(&Request::bare(OUT, PLAYGROUND / 512));
    let data = Descriptor::readable(OTHER, 4096);
    guest.send(&[parts.header, data, parts.status], parts.status).assert_status(IOERR);
    drop(guest);
    scene.assert_unharmed();
}

fn table_shrinks_under_requests(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    for _ in 0..15 {
        add_region(&mut guest);
        let count = submit_into_other(&mut guest);
        guest.memory.regions.pop();
        guest.share_memory();
        take_answers(&mut guest, count);
        guest.assert_second_queue_works();
        guest.assert_first_queue_recovers();
    }
    drop(guest);
    scene.assert_unharmed();
}

/// The rings themselves are no longer in the table. The back end may refuse it or stop the rings.
fn table_without_the_rings(configuration: Configuration) {
    use vhost::VhostBackend;

    let mut scene = Scene::new(configuration);
    for _ in 0..5 {
        let mut guest = scene.guest();
        add_region(&mut guest);
        submit_into_other(&mut guest);
        let only = guest.memory.regions[1].info();
        let _ = guest.frontend.set_mem_table(&[only]);
        guest.rings.iter().for_each(|ring| ring.kick_always());
        drop(guest);
        scene.served.assert_alive();
    }
    scene.assert_unharmed();
}

fn buffers_truncated(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    for (offset, length) in [(8192, 4096), (1 << 20, 65536), (0, 65536)] {
        for kind in [OUT, IN] {
            let mut guest = scene.guest();
            add_region(&mut guest);
            guest.memory.regions[1].truncate(4096);
            let parts = guest.parts(&Request::bare(kind, PLAYGROUND / 512));
            let data = match kind {
                OUT => Descriptor::readable(OTHER + offset, length),
                _ => Descriptor::writable(OTHER + offset, length),
            };
            let answer = guest.send(&[parts.header, data, parts.status], parts.status);
            let answers = [Answer::Status(IOERR), Answer::Stopped];
            assert!(answers.contains(&answer), "request {kind} at {offset}");
            guest.assert_second_queue_works();
            drop(guest);
            scene.served.assert_alive();
        }
    }
    // What is left of a region still works.
    let mut guest = scene.guest();
    add_region(&mut guest);
    guest.memory.regions[1].truncate(4096);
    let parts = guest.parts(&Request::bare(OUT, PLAYGROUND / 512));
    let data = Descriptor::readable(OTHER, 4096);
    guest.send(&[parts.header, data, parts.status], parts.status).assert_status(OK);
    guest.assert_second_queue_works();
    drop(guest);
    scene.assert_unharmed();
}

/// What is missing is a whole huge page.
fn huge_pages_truncated(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    for kind in [OUT, IN] {
        let mut guest = scene.guest();
        let region = Region::of_huge_pages(OTHER, HUGE_PAGES * HUGE_PAGE);
        guest.frontend.add_mem_region(&region.info()).expect("ADD_MEM_REG");
        guest.memory.regions.push(region);
        guest.memory.regions[1].truncate(HUGE_PAGE as u64);
        let parts = guest.parts(&Request::bare(kind, PLAYGROUND / 512));
        for (offset, lost) in [(0, false), (HUGE_PAGE as u64 + 8192, true)] {
            let data = match kind {
                OUT => Descriptor::readable(OTHER + offset, 8192),
                _ => Descriptor::writable(OTHER + offset, 8192),
            };
            let answer = guest.send(&[parts.header, data, parts.status], parts.status);
            let answers: &[Answer] =
                if lost { &[Answer::Status(IOERR), Answer::Stopped] } else { &[Answer::Status(OK)] };
            assert!(answers.contains(&answer), "request {kind} at {offset}: {answer:?}");
        }
        guest.assert_second_queue_works();
        drop(guest);
        scene.served.assert_alive();
    }
    scene.assert_unharmed();
}

fn buffers_truncated_under_requests(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    for _ in 0..15 {
        let mut guest = scene.guest();
        add_region(&mut guest);
        let count = submit_into_other(&mut guest);
        guest.memory.regions[1].truncate(0);
        take_answers(&mut guest, count);
        guest.assert_second_queue_works();
        drop(guest);
        scene.served.assert_alive();
    }
    scene.assert_unharmed();
}

/// The first queue's rings lose their memory while the second's stay.
fn rings_truncated(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    for kept in [0, 4096] {
        let mut guest = scene.guest();
        add_region(&mut guest);
        let base = guest.stop_queue(0);
        let ring = &mut guest.rings[0];
        ring.descriptors = OTHER;
        ring.available = OTHER + 8192;
        ring.used = OTHER + 16384;
        ring.set_available_index(&guest.memory, base);
        guest.start_queue(0, base);
        guest.enable(0, true);
        guest.memory.regions[1].truncate(kept);
        guest.rings[0].kick_always();
        guest.rings[0].wait_for_stop();
        guest.assert_second_queue_works();
        guest.rings[0].kick_always();
        drop(guest);
        scene.served.assert_alive();
    }
    scene.assert_unharmed();
}

/// Lays a ring out anew at an address of the first region, which no buffer may have reached.
fn move_ring(guest: &mut Guest, index: usize, address: u64) {
    let base = guest.stop_queue(index);
    let ring = &mut guest.rings[index];
    ring.descriptors = address;
    ring.available = address + 1024;
    ring.used = address + 1280;
    ring.set_available_index(&guest.memory, base);
    guest.memory.word(ring.used + 2).store(base.to_le(), Ordering::Release);
    guest.start_queue(index, base);
    guest.enable(index, true);
}

/// All memory is one file. Cutting its end off takes the first queue's ring, while requests for it
/// are in flight on the second.
fn rings_in_one_file_of_which_one_is_cut_off(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    for _ in 0..5 {
        let mut guest = scene.guest();
        move_ring(&mut guest, 0, LAST_PAGE);
        let chain: Vec<_> = (0..8)
            .map(|index| {
                let request = Request::read(index * 4096, 4096);
                guest.submit(1, &request, &Layout::usual(&request))
            })
            .collect();
        guest.kick(1);
        guest.memory.regions[0].truncate(LAST_PAGE - BASE);
        guest.rings[0].kick_always();
        guest.rings[0].wait_for_stop();
        for pending in &chain {
            assert_eq!(guest.finish(pending).status, OK);
        }
        for _ in 0..20 {
            guest.assert_second_queue_works();
        }
        drop(guest);
        scene.served.assert_alive();
    }
    scene.assert_unharmed();
}

/// Whoever comes second to the page finds zeros instead of a fault, and must hear of it as well.
fn rings_on_one_page_that_vanishes(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    move_ring(&mut guest, 0, LAST_PAGE);
    move_ring(&mut guest, 1, LAST_PAGE + 2048);
    guest.assert_second_queue_works();
    guest.memory.regions[0].truncate(LAST_PAGE - BASE);
    for ring in &guest.rings {
        ring.kick_always();
        ring.wait_for_stop();
    }
    drop(guest);
    scene.assert_unharmed();
}

fn status_and_header_truncated(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let gone: [fn(&Parts) -> Vec<Descriptor>; 3] = [
        |parts| vec![Descriptor::readable(OTHER, 16), parts.status],
        // Completed without a status or stopped: nobody can tell the guest which.
        |parts| vec![parts.header, Descriptor::writable(OTHER, 1)],
        |_| vec![Descriptor::readable(OTHER, 32).with(INDIRECT, 0)],
    ];
    for choose in gone {
        let mut guest = scene.guest();
        add_region(&mut guest);
        guest.memory.regions[1].truncate(0);
        let parts = guest.parts(&Request::bare(FLUSH, 0));
        let chain = choose(&parts);
        guest.send(&chain, parts.status).assert_refused();
        guest.assert_second_queue_works();
        drop(guest);
        scene.served.assert_alive();
    }
    scene.assert_unharmed();
}

/// A file that may only be read: the back end refuses the region, or its requests fail.
fn memory_that_cannot_be_written(configuration: Configuration) {
    use std::os::fd::AsRawFd;

    let mut scene = Scene::new(configuration);
    let path = scene.volume.folder().join("memory");
    std::fs::write(&path, vec![0; 1 << 20]).expect("a file");
    let file = std::fs::File::open(&path).expect("the file, to read");
    let mut guest = scene.guest();
    let region = Region::new(OTHER, 1 << 20);
    let mut info = region.info();
    info.mmap_handle = file.as_raw_fd();
    if guest.frontend.add_mem_region(&info).is_ok() {
        let parts = guest.parts(&Request::bare(IN, 0));
        let room = Descriptor::writable(OTHER, 4096);
        guest.send(&[parts.header, room, parts.status], parts.status).assert_status(IOERR);
        guest.assert_second_queue_works();
    }
    drop(guest);
    assert_eq!(std::fs::read(&path).expect("the file"), vec![0; 1 << 20]);
    scene.assert_unharmed();
}
