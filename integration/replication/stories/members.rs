//! Members come and go while a guest works: it notices nothing, the copies of those that are members are equal, and
//! the status tells who they are. A member that is lost for good can be removed although writes wait for it.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use sealblk::replication::primary::status::{CopyState, Status};

use crate::cluster::{Cluster, PEER_TIMEOUT_TIME, Plan, name};
use crate::model::{BLOCK, Model};
use crate::support::PATIENCE;
use crate::support::guest::{Guest, Options};
use crate::support::request::{Layout, OK, Request};
use crate::workload::{Load, Manner};

const SPARE: Plan = Plan { spares: 1, ..Plan::USUAL };

/// The nodes that are members, in order, and how many of them are in sync.
fn members(status: &Status) -> (Vec<String>, usize) {
    let mut nodes: Vec<String> = status.present().map(|member| member.node.clone()).collect();
    nodes.sort();
    assert_eq!(status.in_sync, status.present().filter(|member| member.state == CopyState::InSync).count());
    (nodes, status.in_sync)
}

fn names(nodes: &[usize]) -> Vec<String> {
    nodes.iter().map(|&node| name(node)).collect()
}

#[test]
fn members_are_added_removed_moved_and_replaced_under_load() {
    let mut cluster = Cluster::start(&SPARE);
    let writer = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let model = Model::new(SPARE.size_bytes as usize / BLOCK);
    let load = Load::start(&writer.socket, model, Manner::usual(11));
    load.await_progress(300);

    // One more.
    let node_d = cluster.member(3);
    let said = cluster.volume(0, "add-member", &[&node_d, "--wait"]).unwrap();
    assert!(said.contains("node-d is a member, and in sync"), "{said}");
    assert_eq!(members(&cluster.status(0)), (names(&[0, 1, 2, 3]), 4));
    load.await_progress(300);

    // One fewer, which keeps what it had and is not written to any more.
    cluster.volume(0, "remove-member", &[&name(1)]).unwrap();
    let status = cluster.status(0);
    assert_eq!(members(&status), (names(&[0, 2, 3]), 3));
    let retired = status.members.iter().find(|member| member.node == name(1)).unwrap();
    assert!(retired.state == CopyState::Retired && !retired.connected, "{status:#?}");
    load.await_progress(300);
    assert!(cluster.volume(0, "status", &[]).unwrap().contains("removed       node-b"));

    // One whose disk is lost for good: another takes its place, with the old copy that it still has.
    cluster.kill_replica(2);
    fs::remove_dir_all(cluster.copy(2)).unwrap();
    let node_b = cluster.member(1);
    let said = cluster.volume(0, "move", &[&name(2), &node_b]).unwrap();
    assert!(said.contains("the copy of node node-c is on node node-b now"), "{said}");
    assert_eq!(members(&cluster.status(0)), (names(&[0, 1, 3]), 3));
    load.await_progress(300);

    // It gets a new disk.
    cluster.start_replica(2);
    let node_c = cluster.member(2);
    cluster.volume(0, "add-member", &[&node_c, "--wait"]).unwrap();
    assert_eq!(members(&cluster.status(0)), (names(&[0, 1, 2, 3]), 4));
    load.await_progress(300);

    load.finish();
    writer.process.terminate();
    cluster.assert_equal();

    // Whoever serves the volume next goes by the view.
    let writer = cluster.serve(3, &[]);
    assert_eq!(members(&cluster.status(3)).0, names(&[0, 1, 2, 3]));
    writer.process.terminate();
}

#[test]
fn the_copy_of_the_node_that_serves_moves_away_and_comes_back_under_load() {
    let mut cluster = Cluster::start(&SPARE);
    let writer = cluster.serve(0, &["--scrub-every", "1s", "--scrub-rate", "1G"]);
    cluster.await_in_sync(0);
    let model = Model::new(SPARE.size_bytes as usize / BLOCK);
    let load = Load::start(&writer.socket, model, Manner::usual(13));
    load.await_progress(300);
    let node_d = cluster.member(3);
    cluster.volume(0, "move", &[&name(0), &node_d]).unwrap();
    load.await_progress(300);

    // The process has let go of its copy, is asked by its socket, and goes on like one that never had one.
    cluster.await_status_at(&writer.socket, "the copy is gone", |status| {
        members(status) == (names(&[1, 2, 3]), 3) && !cluster.copy(0).join("writer.sock").exists()
    });
    let lock = File::open(cluster.copy(0).join("data")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        assert!(Instant::now() < deadline, "the copy is held still");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(lock);
    cluster.kill_replica(1);
    load.await_progress(300);
    cluster.start_replica(1);
    load.await_progress(300);
    fs::remove_dir_all(cluster.copy(0)).unwrap();

    // Its replica keeps the next copy on that node, as on any other.
    let node_a = cluster.member(0);
    cluster.volume_at(0, &writer.socket, "add-member", &[&node_a, "--wait"]).unwrap();
    load.await_progress(300);
    cluster.await_status_at(&writer.socket, "all are in sync", |status| members(status).1 == 4);
    let said = cluster.volume_at(0, &writer.socket, "verify", &[]).unwrap();
    assert!(said.contains("node-a"), "{said}");
    load.finish();
    writer.process.terminate();
    cluster.assert_equal();
}

#[test]
fn the_copy_of_the_node_that_serves_stays_if_no_other_could_be_gone_on_with() {
    let mut cluster = Cluster::start(&Plan { nodes: 2, ..Plan::USUAL });
    let writer = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let mut guest = Guest::connect(&writer.socket);
    guest.write(0, &[1; BLOCK]);
    cluster.kill_replica(1);
    cluster.await_behind(0, 1, PEER_TIMEOUT_TIME * 3);
    let error = cluster.volume(0, "remove-member", &[&name(0)]).unwrap_err();
    assert!(error.contains("no other copy that is in sync can be reached"), "{error}");
    guest.write(BLOCK as u64, &[2; BLOCK]);
    cluster.start_replica(1);
    cluster.await_in_sync(0);
    drop(guest);
    writer.process.terminate();
    cluster.assert_equal();
}

#[test]
fn a_copy_whose_folder_goes_while_its_replica_runs_is_made_anew() {
    let mut cluster = Cluster::start(&Plan::USUAL);
    let writer = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let model = Model::new(Plan::USUAL.size_bytes as usize / BLOCK);
    let load = Load::start(&writer.socket, model, Manner::usual(12));
    load.await_progress(300);
    cluster.volume(0, "remove-member", &[&name(2)]).unwrap();
    fs::remove_dir_all(cluster.copy(2)).unwrap();
    let node_c = cluster.member(2);
    cluster.volume(0, "add-member", &[&node_c, "--wait"]).unwrap();
    load.await_progress(300);
    load.finish();
    writer.process.terminate();
    cluster.assert_equal();
}

#[test]
fn what_would_lose_the_volume_or_cannot_be_is_refused() {
    let mut cluster = Cluster::start(&Plan { nodes: 2, ..SPARE });
    let refused = |cluster: &Cluster, node, subcommand: &str, argument: &str, reason: &str| {
        let error = cluster.volume(node, subcommand, &[argument]).unwrap_err();
        assert!(error.contains(reason), "{error}");
        assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    };
    refused(&cluster, 0, "remove-member", "node-b", "is not served from this folder");
    let writer = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let before = cluster.status(0).view;

    refused(&cluster, 1, "remove-member", "node-b", "is not served from this folder");
    refused(&cluster, 0, "remove-member", "node-x", "node node-x is not a member");
    let (node_b, node_c) = (cluster.member(1), cluster.member(2));
    refused(&cluster, 0, "add-member", &node_b, "node node-b is a member already");
    refused(&cluster, 0, "add-member", "node-c=nowhere", "is no address");
    assert_eq!(cluster.status(0).view, before, "what is refused changes nothing");

    // Nobody is there to make a copy: the node is taken out again.
    cluster.kill_replica(2);
    refused(&cluster, 0, "add-member", &node_c, "cannot reach node node-c");
    assert_eq!(members(&cluster.status(0)), (names(&[0, 1]), 2));
    cluster.start_replica(2);
    cluster.volume(0, "add-member", &[&node_c, "--wait"]).unwrap();
    assert_eq!(members(&cluster.status(0)), (names(&[0, 1, 2]), 3));
    writer.process.terminate();
    cluster.assert_equal();
}

#[test]
fn writes_that_wait_for_a_member_that_is_lost_for_good_go_on_when_it_is_removed() {
    let mut cluster = Cluster::start(&Plan { failure_mode: "hard", ..Plan::USUAL });
    let writer = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let mut guest = Guest::connect_as(&writer.socket, Options::CLOUD_HYPERVISOR.queues(2));
    guest.stay();
    guest.write(0, &[1; BLOCK]);
    cluster.kill_replica(1);
    fs::remove_dir_all(cluster.copy(1)).unwrap();
    cluster.await_behind(0, 1, PEER_TIMEOUT_TIME * 3);

    let data = [2; BLOCK];
    let write = Request::write(4096, &data);
    let waiting = guest.submit(0, &write, &Layout::usual(&write));
    guest.kick(0);
    let taken = guest.rings[0].taken();
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        assert_eq!(guest.rings[0].used_index(&guest.memory), taken, "a write ended below the minimum");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Without another, nobody would be in sync who is not needed.
    let error = cluster.volume(0, "remove-member", &[&name(2)]).unwrap_err();
    assert!(error.contains("the copies in sync would be 1, and a write would need 2"), "{error}");

    cluster.volume(0, "remove-member", &[&name(1)]).unwrap();
    assert_eq!(guest.finish(&waiting).status, OK);
    let status = cluster.status(0);
    assert_eq!(members(&status), (names(&[0, 2]), 2));
    assert!(status.writable);

    // Its successor counts only when it is in sync, so that no write waits for it.
    cluster.start_replica(1);
    let node_b = cluster.member(1);
    cluster.volume(0, "add-member", &[&node_b]).unwrap();
    guest.write(8192, &data);
    cluster.await_in_sync(0);
    assert_eq!(members(&cluster.status(0)), (names(&[0, 1, 2]), 3));
    drop(guest);
    writer.process.terminate();
    cluster.assert_equal();
}
