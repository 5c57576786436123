//! A writer ends without a word, or is replaced while it still runs: what was acknowledged stays, and nobody is
//! told anything that is not so.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cluster::{Cluster, LONG, Plan};
use crate::model::{BLOCK, Model};
use crate::support::guest::{Guest, Options};
use crate::support::request::{Layout, Request};
use crate::workload::{Load, Manner};

#[test]
fn everything_acknowledged_outlives_a_writer_that_is_killed() {
    let mut cluster = Cluster::start(&Plan::USUAL);
    let mut model = Model::new(Plan::USUAL.size_bytes as usize / BLOCK);
    // On the same node, then on another, and there again with its own replica gone.
    for (turn, node) in [0, 0, 1, 2].into_iter().enumerate() {
        let writer = cluster.serve(node, &[]);
        let load = Load::start(&writer.socket, model, Manner::usual(10 + turn as u64));
        load.await_progress(500);
        writer.process.kill();
        model = load.abandon();
    }
    let writer = cluster.serve(1, &[]);
    Load::start(&writer.socket, model, Manner::usual(20)).finish();
    cluster.await_in_sync(1);
    writer.process.terminate();
    cluster.assert_equal();
}

#[test]
fn everything_acknowledged_outlives_all_processes_at_once() {
    let plan = Plan { nodes: 5, ..Plan::USUAL };
    let mut cluster = Cluster::start(&plan);
    let writer = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let load = Load::start(&writer.socket, Model::new(plan.size_bytes as usize / BLOCK), Manner::usual(25));
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
    let mut cluster = Cluster::start(&Plan::USUAL);
    let mut old = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let mut load = Load::start(&old.socket, Model::new(Plan::USUAL.size_bytes as usize / BLOCK), Manner::usual(27));
    // There and back again.
    for node in [1, 0] {
        load.await_progress(500);
        let new = cluster.serve(node, &[]);
        let model = load.abandon();
        let status = old.process.await_end(LONG);
        assert!(!status.success(), "{}", old.process.said());
        load = Load::start(&new.socket, model, Manner::usual(28 + node as u64));
        cluster.await_in_sync(node);
        old = new;
    }
    load.await_progress(500);
    load.finish();
    old.process.terminate();
    cluster.assert_equal();
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
    let taken: Vec<u16> = guest.rings.iter().map(|ring| ring.taken()).collect();
    let write = Request::write(8 << 20, &[3; BLOCK]);
    let _write = guest.submit(0, &write, &Layout::usual(&write));
    guest.kick(0);
    let read = Request::read(0, BLOCK);
    let _read = guest.submit(1, &read, &Layout::usual(&read));
    guest.kick(1);
    let until = Instant::now() + WATCHED;
    while Instant::now() < until {
        for (ring, taken) in guest.rings.iter().zip(&taken) {
            assert_eq!(ring.used_index(&guest.memory), *taken, "a replaced writer has answered its guest");
        }
        std::thread::yield_now();
    }

    cluster.network.heal();
    let status = old.process.await_end(LONG);
    let said = old.process.said();
    assert_eq!(status.code(), Some(1), "{said}");
    let last = said.lines().rfind(|line| line.starts_with("sealblk: ")).unwrap_or_default();
    assert!(last.contains("another writer has taken the volume over: it runs on node node-b"), "{said}");
    for (ring, taken) in guest.rings.iter().zip(&taken) {
        assert_eq!(ring.used_index(&guest.memory), *taken, "a replaced writer has answered its guest");
    }

    cluster.await_in_sync(1);
    assert_eq!(successor.read(0, BLOCK), [2; BLOCK]);
    assert_eq!(successor.read(8 << 20, BLOCK), [1; BLOCK], "what was not acknowledged is not there");
    drop(successor);
    new.process.terminate();
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
    let taken: Vec<u16> = guest.rings.iter().map(|ring| ring.taken()).collect();
    let read = Request::read(0, BLOCK);
    let _read = guest.submit(0, &read, &Layout::usual(&read));
    guest.kick(0);
    let write = Request::write(8 << 20, &[3; BLOCK]);
    let _write = guest.submit(1, &write, &Layout::usual(&write));
    guest.kick(1);
    old.process.signal(Signal::CONT);
    let until = Instant::now() + WATCHED;
    while Instant::now() < until {
        for (ring, taken) in guest.rings.iter().zip(&taken) {
            assert_eq!(ring.used_index(&guest.memory), *taken, "a replaced writer has answered its guest");
        }
        std::thread::yield_now();
    }
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

/// How long a replaced writer is watched.
const WATCHED: Duration = Duration::from_secs(3);
