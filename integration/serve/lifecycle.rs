//! How a server ends, and how it comes back.

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::PATIENCE;
use crate::support::configuration::Configuration;
use crate::support::guest::{Guest, Options};
use crate::support::pattern::pattern;
use crate::support::request::{Layout, OK, Request, UNTOUCHED};
use crate::support::served::{Served, command};
use crate::support::volume::{Volume, is_zero};

const SIZE: u64 = 16 << 20;
const ROUNDS: u64 = 12;

under_every_engine!(
    ends_cleanly_without_a_front_end,
    ends_cleanly_in_the_middle_of_a_conversation,
    ends_cleanly_with_requests_in_flight,
    comes_back_after_being_killed,
    finishes_what_a_server_that_was_killed_had_taken,
    serves_one_front_end_after_another,
    can_be_connected_to_as_soon_as_its_socket_is_there,
);

fn ends_cleanly_without_a_front_end(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let before = volume.data();
    Served::start(&volume).terminate().assert_clean();
    // After a front end, too.
    let served = Served::start(&volume);
    drop(served.guest());
    served.terminate().assert_clean();
    assert!(volume.data() == before);
}

fn ends_cleanly_in_the_middle_of_a_conversation(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let guest = Guest::negotiate(served.socket(), Options::CLOUD_HYPERVISOR);
    served.terminate().assert_clean();
    drop(guest);

    let served = Served::start(&volume);
    let mut guest = served.guest();
    let data = pattern(1, 65536);
    guest.write(0, &data);
    served.terminate().assert_clean();
    drop(guest);
    volume.assert_holds(0, &data);

    // Half a message, and no more to come.
    let served = Served::start(&volume);
    let mut wire = crate::support::message::Wire::negotiated(served.socket());
    wire.bytes(&[1, 0, 0]);
    served.terminate().assert_clean();
}

fn ends_cleanly_with_requests_in_flight(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    for round in 0..5 {
        let served = Served::start(&volume);
        let options = Options::CLOUD_HYPERVISOR.queues(2).queue_size(256);
        let mut guest = served.guest_as(options);
        let mut pending = Vec::new();
        for queue in 0..2 {
            for index in 0..60 {
                let slot = queue as u64 * 60 + index;
                let data = pattern(round * 1000 + slot, 16384);
                let request = Request::write(slot * 16384, &data);
                let layout = Layout::usual(&request);
                pending.push((slot, guest.submit(queue, &request, &layout)));
            }
            guest.kick(queue);
        }
        served.terminate().assert_clean();

        // What was taken from the rings was finished: nothing is left half done, and what was
        // acknowledged is on disk.
        let image = volume.data();
        for (slot, pending) in &pending {
            let nothing = crate::support::ring::Used { head: 0, length: 0 };
            let reply = guest.reply(pending, nothing);
            let data = pattern(round * 1000 + slot, 16384);
            match reply.status {
                OK => volume.assert_image(&image, slot * 16384, &data),
                status => assert_eq!(status, UNTOUCHED, "slot {slot}"),
            }
        }
        let acknowledged = pending
            .iter()
            .filter(|(_, pending)| {
                let nothing = crate::support::ring::Used { head: 0, length: 0 };
                guest.reply(pending, nothing).status == OK
            })
            .count();
        let used: usize = guest.rings.iter().map(|ring| usize::from(ring.used_index(&guest.memory))).sum();
        assert_eq!(acknowledged, used, "completions without a used entry");
    }
}

fn comes_back_after_being_killed(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let data = pattern(2, 1 << 20);
    let mut first = Served::start(&volume);
    let socket = first.socket().to_owned();
    let mut guest = first.guest();
    guest.write(0, &data);
    guest.flush();
    first.kill();
    drop(guest);

    // The socket that it left behind is stale, and so is its lock.
    let mut child = command(&volume, &socket).stderr(Stdio::null()).spawn().expect("a server");
    let mut guest = Guest::connect(&socket);
    assert!(guest.read(0, data.len()) == data);
    drop(guest);
    child.kill().expect("ending the server");
    child.wait().expect("the server's end");
    let mode = fs::symlink_metadata(&socket).expect("the socket it left");
    assert!(!mode.is_file());
}

fn finishes_what_a_server_that_was_killed_had_taken(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let mut served = Served::start(&volume);
    let mut guest = served.guest_as(Options::CLOUD_HYPERVISOR.queues(2));
    let mut left_over = 0;
    for round in 0..ROUNDS {
        let mut pending = Vec::new();
        for queue in 0..2 {
            for index in 0..40 {
                let slot = queue as u64 * 40 + index;
                let data = pattern(round * 1000 + slot, 16384);
                let request = Request::write(slot * 16384, &data);
                pending.push((slot, guest.submit(queue, &request, &Layout::usual(&request))));
            }
            guest.kick(queue);
        }
        // At another moment each time.
        thread::sleep(Duration::from_micros(round * 150));
        served.kill();
        let used: u16 = guest.rings.iter().map(|ring| ring.used_index(&guest.memory) - ring.taken()).sum();
        left_over += 80 - u64::from(used);
        served = Served::start(&volume);
        guest.reconnect(served.socket());
        for (slot, pending) in &pending {
            assert_eq!(guest.finish(pending).status, OK, "round {round}, slot {slot}");
        }
        for slot in 0..80 {
            let data = guest.read(slot * 16384, 16384);
            assert!(data == pattern(round * 1000 + slot, 16384), "round {round}, slot {slot}");
        }
    }
    assert!(left_over > 0, "every server had finished before it was killed");
    drop(guest);
    served.terminate().assert_clean();
}

fn serves_one_front_end_after_another(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    for round in 0..30 {
        let mut guest = served.guest();
        if round > 0 {
            let before = guest.read((round - 1) * 8192, 8192);
            assert!(before == pattern(round - 1, 8192));
        }
        guest.write(round * 8192, &pattern(round, 8192));
    }
    served.terminate().assert_clean();
    assert!(is_zero(&volume.data()[30 * 8192..]));
    for round in 0..30 {
        volume.assert_holds(round * 8192, &pattern(round, 8192));
    }
}

fn can_be_connected_to_as_soon_as_its_socket_is_there(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let folder = TempDir::new().expect("a folder for the socket");
    let socket = folder.path().join("blk.sock");
    for round in 0..10 {
        let mut child = command(&volume, &socket).stderr(Stdio::null()).spawn().expect("a server");
        let deadline = Instant::now() + PATIENCE;
        while !socket.exists() {
            assert!(Instant::now() < deadline, "no socket came");
        }
        let connected = UnixStream::connect(&socket);
        let pid = i32::try_from(child.id()).expect("a process id");
        // SAFETY: no memory is involved; the child has not been waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
        assert!(child.wait().expect("the server's end").success());
        assert!(connected.is_ok(), "round {round}: {connected:?}");
        assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 0, "something was left");
    }
}
