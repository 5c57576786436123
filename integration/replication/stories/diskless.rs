//! A virtual machine runs on a node that stores nothing of its volume: the guest's reads come from the copies on
//! other nodes, its writes go to all of them, and it notices as little of what happens to them as any other.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::thread;

use rustix::process::Signal;
use sealblk::replication::primary::status::{CopyState, Status};

use crate::cluster::{Cluster, LONG, PEER_TIMEOUT_TIME, Plan, name, succeed};
use crate::model::BLOCK;
use crate::scene::{Scene, kill_writers, move_about, new_model};
use crate::support::guest::Guest;
use crate::support::search::Traces;
use crate::workload::{Load, Manner};

/// Three nodes with a copy, and one without.
const PLAN: Plan = Plan { diskless: 1, ..Plan::USUAL };
/// The one without.
const HOME: usize = 3;

fn scene(manner: Manner) -> Scene {
    Scene::new(&PLAN, HOME, manner)
}

/// There is still no copy on the guest's node.
fn end(scene: Scene) {
    let cluster = scene.end();
    let stored: Vec<_> = fs::read_dir(cluster.path(&name(HOME))).unwrap().collect();
    assert!(stored.is_empty(), "{stored:?}");
}

#[test]
fn members_change_and_copies_are_compared_where_there_is_none() {
    let (spare, home) = (3, 4);
    let mut cluster = Cluster::start(&Plan { spares: 1, ..PLAN });
    let writer = cluster.serve(home, &[]);
    cluster.await_in_sync(home);
    let load = Load::start(&writer.socket, new_model(&PLAN), Manner::usual(79));
    load.await_progress(300);
    let said = cluster.volume(home, "move", &[&name(1), &cluster.member(spare)]).unwrap();
    assert!(said.contains("the copy of node node-b is on node node-d now"), "{said}");
    load.await_progress(300);
    let output = cluster.verify(home, &[]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains(r#""outcome""#), "{said}");
    let said = cluster.volume(home, "remove-member", &[&name(1)]).unwrap_err();
    assert!(said.contains("node node-b is not a member"), "{said}");
    load.finish();
    writer.process.terminate();
    cluster.assert_equal_with(&[2, spare]);

    // Now that nobody serves it.
    let said = cluster.volume(home, "remove-member", &[&name(2)]).unwrap_err();
    assert!(said.contains("nobody serves a volume without a copy"), "{said}");
}

#[test]
fn losing_the_copy_that_reads_come_from_costs_the_guest_no_error() {
    let mut scene = scene(Manner { seed: 70, depth: 4, reads: 80 });
    // Whichever a read is under way to, it is lost in its turn.
    for member in 0..PLAN.nodes {
        let before = scene.cluster.status(HOME).view;
        scene.cluster.kill_replica(member);
        scene.cluster.await_behind(HOME, member, LONG);
        scene.load.await_progress(300);
        let status = scene.cluster.status(HOME);
        assert!(status.view > before && status.writable && status.in_sync == 2, "{status:#?}");
        scene.cluster.start_replica(member);
        scene.cluster.await_in_sync(HOME);
        scene.load.await_progress(300);
    }
    end(scene);
}

#[test]
fn a_read_does_not_wait_for_a_copy_that_has_stopped_while_another_can_answer() {
    let mut cluster = Cluster::start(&Plan { lease: "60s", ..PLAN });
    let writer = cluster.serve(HOME, &["--peer-timeout", "40s"]);
    cluster.await_in_sync(HOME);
    let mut guest = Guest::connect(&writer.socket);
    guest.stay();
    guest.write(0, &[7; BLOCK]);
    let view = cluster.status(HOME).view;
    cluster.signal_replica(1, Signal::STOP);
    // One after the other, so that one of them goes to each copy.
    for _ in 0..2 * PLAN.nodes {
        assert_eq!(guest.read(0, BLOCK), [7; BLOCK]);
    }
    let status = cluster.status(HOME);
    assert_eq!((status.view, status.members[1].state), (view, CopyState::InSync), "it was not waited for");
    // Its late answers are worth nothing, and harm nothing.
    cluster.signal_replica(1, Signal::CONT);
    cluster.await_status(HOME, "it has answered", LONG, |status| status.members[1].requests_in_flight == 0);
    guest.write(0, &[8; BLOCK]);
    for _ in 0..2 * PLAN.nodes {
        assert_eq!(guest.read(0, BLOCK), [8; BLOCK]);
    }
    drop(guest);
    writer.process.terminate();
    cluster.assert_equal();
}

#[test]
fn reads_come_from_every_copy() {
    let scene = scene(Manner { seed: 71, depth: 4, reads: 100 });
    let sent = |scene: &Scene| (0..PLAN.nodes).map(|node| scene.cluster.network.sent_bytes(node)).collect::<Vec<_>>();
    let before = sent(&scene);
    scene.load.await_progress(3000);
    // Blocks that were never written come as a few bytes, so each answer counts.
    for (node, (before, after)) in before.iter().zip(sent(&scene)).enumerate() {
        assert!(after - before > 3000, "{} has answered no reads: {} bytes", name(node), after - before);
    }
    end(scene);
}

#[test]
fn only_the_node_that_attaches_has_the_key() {
    let mut scene = scene(Manner::usual(72));
    scene.load.await_progress(1000);
    let traces = Traces::of(&[&scene.cluster.key()]);
    let found = traces.in_process(scene.writer.process.pid());
    assert!(!found.is_empty(), "a key that is nowhere cannot be used");
    assert!(found.iter().all(|found| found.mapping.is_protected()), "{found:?}");
    for node in 0..PLAN.nodes {
        let found = traces.in_process(scene.cluster.replica(node).pid());
        assert!(found.is_empty(), "the key is in the replica of {}: {found:?}", name(node));
    }
    end(scene);
}

#[test]
fn a_volume_moves_to_a_node_with_a_copy_and_back() {
    move_about(&PLAN, &[HOME, 1, HOME, 0, HOME], 73);
}

#[test]
fn everything_acknowledged_outlives_a_writer_without_a_copy_that_is_killed() {
    kill_writers(&PLAN, &[HOME, HOME, 1, HOME], 2, 80);
}

/// What was acknowledged and not flushed is sent again to the copies in their new lives.
#[test]
fn everything_acknowledged_outlives_all_copies_at_once() {
    let mut scene = scene(Manner::usual(75));
    // Back before any of them is given up, and when all but the last have been.
    for absence in [PEER_TIMEOUT_TIME / 8, PEER_TIMEOUT_TIME * 2] {
        scene.load.await_progress(1000);
        (0..PLAN.nodes).for_each(|node| scene.cluster.signal_replica(node, Signal::KILL));
        (0..PLAN.nodes).for_each(|node| scene.cluster.kill_replica(node));
        thread::sleep(absence);
        (0..PLAN.nodes).for_each(|node| scene.cluster.start_replica(node));
        scene.load.await_progress(1000);
        scene.cluster.await_in_sync(HOME);
    }
    end(scene);
}

#[test]
fn a_node_without_a_copy_says_how_the_volume_stands() {
    let mut scene = scene(Manner::usual(76));
    let cluster = &mut scene.cluster;
    cluster.kill_replica(1);
    cluster.await_behind(HOME, 1, LONG);
    let status = cluster.status(HOME);
    assert_eq!((status.writer.as_deref(), status.in_sync), (Some("node-d"), 2), "{status:#?}");
    assert_eq!(status.members[0].state, CopyState::InSync);
    let text = String::from_utf8(succeed(&mut cluster.ask_for_status(HOME)).stdout).unwrap();
    assert!(text.contains("writer node-d") && text.contains("in sync       2 of 3"), "{text}");

    let mut command = cluster.ask_for_status(HOME);
    let mut watching = command.args(["--json", "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(watching.stdout.take().unwrap()).lines().take(2);
    let told: Vec<Status> = lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    watching.kill().unwrap();
    watching.wait().unwrap();
    assert!(told.len() == 2 && told.iter().all(|told| told.writer == status.writer), "{told:#?}");

    cluster.start_replica(1);
    let socket = scene.writer.socket.clone();
    end(scene);
    let left: Vec<_> = fs::read_dir(socket.parent().unwrap()).map(|files| files.collect()).unwrap_or_default();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_volume_without_encryption_is_served_by_nodes_without_a_copy_that_it_names_and_by_no_others() {
    let (home, stranger) = (HOME, HOME + 1);
    let plan = Plan { diskless: 2, encrypted: false, writers: &[HOME], ..PLAN };
    let mut cluster = Cluster::start(&plan);
    let mut old = cluster.serve(home, &[]);
    cluster.await_in_sync(home);
    let mut load = Load::start(&old.socket, new_model(&plan), Manner::usual(77));
    load.await_progress(300);
    // A copy that is away learns from the record that it has who may write it.
    cluster.kill_replica(1);
    cluster.await_behind(home, 1, LONG);
    cluster.start_replica(1);
    cluster.await_in_sync(home);
    for node in [0, home] {
        load.await_progress(300);
        let new = cluster.serve(node, &[]);
        let model = load.abandon();
        assert!(!old.process.await_end(LONG).success(), "{}", old.process.said());
        load = Load::start(&new.socket, model, Manner::usual(78));
        cluster.await_in_sync(node);
        old = new;
    }
    load.await_progress(300);

    let before = cluster.stored_view();
    let mut refused = cluster.begin_to_serve(stranger, &[]);
    assert_eq!(refused.process.await_end(LONG).code(), Some(1));
    let said = refused.process.said();
    assert!(said.contains("node node-e is none of these: serve it on node-a, node-b, node-c"), "{said}");
    assert_eq!(cluster.stored_view(), before, "nothing was claimed");
    load.await_progress(300);
    load.finish();
    cluster.await_in_sync(home);
    old.process.terminate();
    cluster.assert_equal();

    // Where only members may write it, the one that does stays one.
    let writer = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let error = cluster.volume(0, "remove-member", &[&name(0)]).unwrap_err();
    assert!(error.contains("may write it as a member only"), "{error}");
    writer.process.terminate();
}

#[test]
fn what_keeps_a_volume_from_being_attached_is_said_before_anything_is_claimed() {
    let mut cluster = Cluster::start(&PLAN);
    cluster.serve(0, &[]).process.terminate();
    let id = cluster.id().to_string();
    fs::write(cluster.path("wrong"), [7u8; 32].into_iter().chain([9; 32]).collect::<Vec<u8>>()).unwrap();
    fs::set_permissions(cluster.path("wrong"), fs::metadata(cluster.path("key")).unwrap().permissions()).unwrap();
    let before = cluster.stored_view();
    let refused = |cluster: &mut Cluster, node: usize, arguments: &[&str], says: &[&str]| {
        let mut writer = cluster.begin_to_serve_as(node, arguments);
        let status = writer.process.await_end(LONG);
        let said = writer.process.said();
        assert_eq!(status.code(), Some(1), "{said}");
        let lines: Vec<_> = said.lines().filter(|line| line.starts_with("sealblk: ")).collect();
        assert!(lines.len() == 1 && says.iter().all(|part| lines[0].contains(part)), "{says:?}: {said}");
        assert_eq!(cluster.stored_view(), before, "{says:?}");
    };
    let wrong = "the key is not the one that volume";
    refused(&mut cluster, HOME, &["--id", &id, "--key", "file:wrong"], &[wrong, &id]);
    refused(&mut cluster, HOME, &["--id", &id, "--no-encryption"], &["is encrypted: give its key"]);
    let unknown = "00000000-0000-4000-8000-000000000000";
    refused(&mut cluster, HOME, &["--id", unknown, "--key", "file:key"], &[unknown, "does not exist"]);
    // A member whose copy is not where it has to be, as when its disk is not mounted.
    let there = ["--id", &id, "--key", "file:key", "--root", "node-d"];
    refused(&mut cluster, 1, &there, &["node node-b is a member of volume", "node-d", "check --root"]);

    // Nothing of a volume that nobody can say anything of.
    cluster.network.isolate(HOME);
    let nobody = ["no node with a copy in sync says", "node-a", "node-b", "node-c", "took too long"];
    refused(&mut cluster, HOME, &["--id", &id, "--key", "file:key"], &nobody);
    cluster.network.heal();
    (0..PLAN.nodes).for_each(|node| cluster.kill_replica(node));
    let nobody = ["no node with a copy in sync says", "node-a", "node-b", "node-c", "cannot reach"];
    refused(&mut cluster, HOME, &["--id", &id, "--key", "file:key"], &nobody);

    // One of them is enough, also while another process has its copy.
    cluster.start_replica(2);
    let writer = cluster.begin_to_serve(HOME, &[]);
    (0..2).for_each(|node| cluster.start_replica(node));
    let writer = writer.serving();
    cluster.await_in_sync(HOME);
    writer.process.terminate();
}
