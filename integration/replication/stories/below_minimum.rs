//! With fewer copies in sync than the failure mode asks for, writes wait or fail, as was asked for; reads go on.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cluster::{Cluster, LONG, PEER_TIMEOUT_TIME, Plan, Writer};
use crate::model::BLOCK;
use crate::support::guest::{Guest, Options};
use crate::support::request::{IOERR, Layout, OK, Request};

/// Two queues: one for what waits, and one for what goes on meanwhile.
const OPTIONS: Options = Options::CLOUD_HYPERVISOR.queues(2);
const HARD: Plan = Plan { failure_mode: "hard", ..Plan::USUAL };

/// A guest that has written a block of ones, and whose volume has lost a copy since.
fn short_of_a_copy(lost: usize, arguments: &[&str]) -> (Cluster, Writer, Guest) {
    let mut cluster = Cluster::start(&HARD);
    let writer = cluster.serve(0, arguments);
    cluster.await_in_sync(0);
    let mut guest = Guest::connect_as(&writer.socket, OPTIONS);
    guest.stay();
    guest.write(0, &[1; BLOCK]);
    cluster.kill_replica(lost);
    cluster.await_behind(0, lost, PEER_TIMEOUT_TIME * 3);
    (cluster, writer, guest)
}

#[test]
fn writes_wait_below_the_minimum_and_go_on_when_a_copy_is_back() {
    let (mut cluster, writer, mut guest) = short_of_a_copy(1, &[]);
    assert!(!cluster.status(0).writable);

    let data = [2; BLOCK];
    let write = Request::write(4096, &data);
    let waiting = guest.submit(0, &write, &Layout::usual(&write));
    guest.kick(0);
    let taken = guest.rings[0].taken();
    // Reads of anything else go on all the while, longer than a copy may take to answer.
    let until = Instant::now() + PEER_TIMEOUT_TIME + Duration::from_secs(1);
    while Instant::now() < until {
        assert_eq!(guest.done(1, &Request::read(0, BLOCK)), [1; BLOCK]);
        assert_eq!(guest.rings[0].used_index(&guest.memory), taken, "a write ended below the minimum");
        // The guest's memory is not endless.
        std::thread::sleep(Duration::from_millis(10));
    }

    cluster.start_replica(1);
    assert_eq!(guest.finish(&waiting).status, OK);
    assert_eq!(guest.read(4096, BLOCK), data);
    cluster.await_in_sync(0);
    drop(guest);
    writer.process.terminate();
    cluster.assert_equal();
}

#[test]
fn writes_fail_below_the_minimum_where_that_is_asked_for() {
    let (mut cluster, writer, mut guest) = short_of_a_copy(2, &["--below-min", "error"]);

    let data = [2; BLOCK];
    assert_eq!(guest.call(0, &Request::write(4096, &data)).status, IOERR);
    assert_eq!(guest.call(0, &Request::flush()).status, IOERR);
    assert_eq!(guest.read(0, BLOCK), [1; BLOCK]);

    cluster.start_replica(2);
    cluster.await_in_sync(0);
    guest.write(4096, &data);
    guest.flush();
    assert_eq!(guest.read(4096, BLOCK), data);
    drop(guest);
    writer.process.terminate();
    cluster.assert_equal();
}

#[test]
fn a_writer_whose_guest_waits_below_the_minimum_can_be_ended() {
    let (mut cluster, mut writer, mut guest) = short_of_a_copy(1, &["--stop-timeout", "2s"]);
    let write = Request::write(0, &[2; BLOCK]);
    let waiting = guest.submit(0, &write, &Layout::usual(&write));
    guest.kick(0);
    writer.process.signal(Signal::TERM);
    let status = writer.process.await_end(LONG);
    let said = writer.process.said();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("has not ended within 2 s"), "{said}");
    assert_eq!(guest.rings[0].used_index(&guest.memory), guest.rings[0].taken(), "it was not acknowledged");
    drop((waiting, guest));

    cluster.start_replica(1);
    let writer = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let mut guest = Guest::connect_as(&writer.socket, OPTIONS);
    assert_eq!(guest.read(0, BLOCK), [1; BLOCK]);
    drop(guest);
    writer.process.terminate();
    cluster.assert_equal();
}
