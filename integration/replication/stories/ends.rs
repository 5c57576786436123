//! A writer ends without a word, or is replaced while it still runs: what was acknowledged stays, and nobody is
//! told anything that is not so.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cluster::{Cluster, LONG, Plan};
use crate::model::BLOCK;
use crate::scene::{kill_writers, move_about, new_model};
use crate::support::guest::{Guest, Options};
use crate::support::pattern::pattern;
use crate::support::request::{Layout, OK, Request};
use crate::workload::{Load, Manner};

#[test]
fn everything_acknowledged_outlives_a_writer_that_is_killed() {
    // On the same node, then on another, and there again with its own replica gone.
    kill_writers(&Plan::USUAL, &[0, 0, 1, 2], 1, 10);
}

#[test]
fn everything_acknowledged_outlives_all_processes_at_once() {
    let plan = Plan { nodes: 5, ..Plan::USUAL };
    let mut cluster = Cluster::start(&plan);
    let writer = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let load = Load::start(&writer.socket, new_model(&plan), Manner::usual(25));
    load.await_progress(1000);
    (0..plan.nodes).for_each(|node| cluster.signal_replica(node, Signal::KILL));
    writer.process.signal(Signal::KILL);
    let model = load.abandon();
    writer.process.kill();
    for node in 0..plan.nodes {
        cluster.kill_replica(node);
        cluster.start_replica(node);
    }
    let writer = cluster.serve(4, &[]);
    Load::start(&writer.socket, model, Manner::usual(26)).finish();
    cluster.await_in_sync(4);
    writer.process.terminate();
    cluster.assert_equal();
}

#[test]
fn a_writer_moves_while_all_is_well() {
    // There and back again.
    move_about(&Plan::USUAL, &[0, 1, 0], 27);
}

#[test]
fn a_writer_that_is_replaced_tells_its_guest_nothing_any_more() {
    let mut cluster = Cluster::start(&Plan::USUAL);
    let mut old = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let mut guest = Guest::connect_as(&old.socket, Options::CLOUD_HYPERVISOR.queues(2));
    guest.stay();
    guest.write(0, &[1; BLOCK]);
    guest.write(8 << 20, &[1; BLOCK]);

    cluster.network.isolate(0);
    let new = cluster.serve(1, &[]);
    let mut successor = Guest::connect_as(&new.socket, Options::CLOUD_HYPERVISOR);
    successor.stay();
    assert_eq!(successor.read(0, BLOCK), [1; BLOCK], "what was acknowledged is there");
    successor.write(0, &[2; BLOCK]);

    // The old one still runs, and hears of nobody.
    let answered = Answered::until_now(&guest);
    let write = Request::write(8 << 20, &[3; BLOCK]);
    let _write = guest.submit(0, &write, &Layout::usual(&write));
    guest.kick(0);
    let read = Request::read(0, BLOCK);
    let _read = guest.submit(1, &read, &Layout::usual(&read));
    guest.kick(1);
    answered.assert_none_within(&guest, WATCHED);

    cluster.network.heal();
    let status = old.process.await_end(LONG);
    let said = old.process.said();
    assert_eq!(status.code(), Some(1), "{said}");
    let last = said.lines().rfind(|line| line.starts_with("sealblk: ")).unwrap_or_default();
    assert!(last.contains("another writer has taken the volume over: it runs on node node-b"), "{said}");
    answered.assert_none(&guest);

    cluster.await_in_sync(1);
    assert_eq!(successor.read(0, BLOCK), [2; BLOCK]);
    assert_eq!(successor.read(8 << 20, BLOCK), [1; BLOCK], "what was not acknowledged is not there");
    drop(successor);
    new.process.terminate();
    cluster.assert_equal();
}

#[test]
fn a_guest_goes_on_where_it_was_when_its_writer_was_killed() {
    let mut cluster = Cluster::start(&Plan::USUAL);
    let mut writer = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let mut guest = Guest::connect_as(&writer.socket, Options::CLOUD_HYPERVISOR);
    guest.stay();
    let mut left_over = 0;
    for round in 0..6 {
        let data = |slot: u64| pattern(round * 100 + slot, BLOCK);
        let mut pending = Vec::new();
        for slot in 0..40 {
            let data = data(slot);
            let write = Request::write(slot * BLOCK as u64, &data);
            pending.push(guest.submit(0, &write, &Layout::usual(&write)));
        }
        guest.kick(0);
        thread::sleep(Duration::from_millis(round * 2));
        writer.process.kill();
        let ended = guest.rings[0].used_index(&guest.memory).wrapping_sub(guest.rings[0].taken());
        left_over += pending.len() - usize::from(ended);
        writer = cluster.serve(0, &[]);
        guest.reconnect(&writer.socket);
        guest.stay();
        for (slot, pending) in pending.iter().enumerate() {
            assert_eq!(guest.finish(pending).status, OK, "round {round}, slot {slot}");
        }
        for slot in 0..40 {
            assert!(guest.read(slot * BLOCK as u64, BLOCK) == data(slot), "round {round}, slot {slot}");
        }
    }
    assert!(left_over > 0, "every writer had finished before it was killed");
    drop(guest);
    cluster.await_in_sync(0);
    writer.process.terminate();
    cluster.assert_equal();
}

#[test]
fn a_writer_that_could_not_listen_does_not_replace_the_one_that_serves() {
    let mut cluster = Cluster::start(&Plan::USUAL);
    let old = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let mut guest = Guest::connect_as(&old.socket, Options::CLOUD_HYPERVISOR);
    guest.stay();
    guest.write(0, &[1; BLOCK]);
    let before = cluster.stored_view();

    let taken = old.socket.with_file_name("2.sock");
    fs::write(&taken, "something else").unwrap();
    let mut new = cluster.begin_to_serve(1, &[]);
    assert_eq!(new.socket, taken);
    let status = new.process.await_end(LONG);
    let said = new.process.said();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("there is a file that is no socket"), "{said}");

    assert_eq!(cluster.stored_view(), before, "it has claimed nothing");
    guest.write(BLOCK as u64, &[2; BLOCK]);
    assert_eq!(guest.read(0, 2 * BLOCK), [[1; BLOCK], [2; BLOCK]].concat());
    drop(guest);
    old.process.terminate();
    cluster.assert_equal();
}

#[test]
fn who_cannot_be_the_writer_does_not_take_the_copy_on_its_node_from_the_one_that_serves() {
    let mut cluster = Cluster::start(&Plan::USUAL);
    let writer = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let load = Load::start(&writer.socket, new_model(&Plan::USUAL), Manner::usual(41));
    load.await_progress(500);
    let view = cluster.stored_view();
    fs::write(cluster.path("wrong"), [7u8; 32].into_iter().chain([9; 32]).collect::<Vec<u8>>()).unwrap();
    fs::set_permissions(cluster.path("wrong"), fs::metadata(cluster.path("key")).unwrap().permissions()).unwrap();
    let copy = cluster.copy(1).into_os_string().into_string().unwrap();
    let refused = |cluster: &mut Cluster, arguments: &[&str], says: &str| {
        let mut new = cluster.begin_to_serve_as(1, &[&[copy.as_str()], arguments].concat());
        let status = new.process.await_end(LONG);
        let said = new.process.said();
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains(says), "{says:?}: {said}");
    };
    refused(&mut cluster, &["--key", "file:wrong"], "the key is not the one that volume");
    refused(&mut cluster, &["--no-encryption"], "is encrypted: give its key");
    refused(&mut cluster, &["--key", "file:key", "--node", "node-x"], "the view has no member on node node-x");
    load.await_progress(500);
    assert_eq!(cluster.stored_view(), view, "a copy that was taken comes back in another life, which a view records");
    assert_eq!(cluster.status(0).in_sync, 3);
    load.finish();
    writer.process.terminate();
    cluster.assert_equal();
}

/// It is not told of its replacement either: it reaches neither the other copies nor the view.
#[test]
fn a_writer_that_slept_through_its_replacement_serves_no_stale_read() {
    let mut cluster = Cluster::start(&Plan::USUAL);
    let mut old = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let mut guest = Guest::connect_as(&old.socket, Options::CLOUD_HYPERVISOR.queues(2));
    guest.stay();
    guest.write(0, &[1; BLOCK]);
    old.process.signal(Signal::STOP);
    cluster.network.isolate(0);
    let new = cluster.serve(1, &[]);
    let mut successor = Guest::connect(&new.socket);
    successor.stay();
    successor.write(0, &[2; BLOCK]);

    let lock = cluster.lock_view();
    let answered = Answered::until_now(&guest);
    let read = Request::read(0, BLOCK);
    let _read = guest.submit(0, &read, &Layout::usual(&read));
    guest.kick(0);
    let write = Request::write(8 << 20, &[3; BLOCK]);
    let _write = guest.submit(1, &write, &Layout::usual(&write));
    guest.kick(1);
    old.process.signal(Signal::CONT);
    answered.assert_none_within(&guest, WATCHED);
    assert!(old.process.is_running(), "it does not know yet:\n{}", old.process.said());

    drop(lock);
    cluster.network.heal();
    assert_eq!(old.process.await_end(LONG).code(), Some(1), "{}", old.process.said());
    cluster.await_in_sync(1);
    assert_eq!(successor.read(0, BLOCK), [2; BLOCK]);
    assert_eq!(successor.read(8 << 20, BLOCK), [0; BLOCK]);
    drop(successor);
    new.process.terminate();
    cluster.assert_equal();
}

/// What a guest has been answered on each of its rings.
struct Answered(Vec<u16>);

impl Answered {
    fn until_now(guest: &Guest) -> Answered {
        Answered(guest.rings.iter().map(|ring| ring.taken()).collect())
    }

    /// Checks that nothing has been answered since.
    fn assert_none(&self, guest: &Guest) {
        for (ring, taken) in guest.rings.iter().zip(&self.0) {
            assert_eq!(ring.used_index(&guest.memory), *taken, "a replaced writer has answered its guest");
        }
    }

    fn assert_none_within(&self, guest: &Guest, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.assert_none(guest);
            std::thread::yield_now();
        }
    }
}

/// How long a replaced writer is watched.
const WATCHED: Duration = Duration::from_secs(3);
