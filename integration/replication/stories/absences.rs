//! A copy that is gone or too slow leaves the in-sync set; the guest waits no longer than that takes, and notices
//! nothing else. When it is well again it is sent what it lacks, and all copies are equal.

use std::time::Duration;

use rustix::process::Signal;
use sealblk::replication::primary::status::CopyState;

use crate::cluster::{LONG, Plan};
use crate::scene::Scene;
use crate::workload::Manner;

fn scene(seed: u64) -> Scene {
    Scene::new(&Plan::USUAL, 0, Manner::usual(seed))
}

#[test]
fn a_replica_that_is_killed_under_load_comes_back_by_resync() {
    let mut scene = scene(2);
    scene.cluster.kill_replica(1);
    scene.await_gone(1, NOTICE_MAX);
    let status = scene.cluster.status(0);
    assert!(status.writable && status.in_sync == 2, "{status:#?}");
    assert_eq!(status.members[2].state, CopyState::InSync);
    assert!(!status.members[1].connected);

    scene.cluster.start_replica(1);
    scene.cluster.await_status(0, "node-b is back", LONG, |status| status.members[1].connected);
    scene.end();
}

#[test]
fn a_replica_that_limps_leaves_in_time_and_comes_back() {
    let scene = scene(3);
    scene.cluster.signal_replica(2, Signal::STOP);
    scene.await_gone(2, NOTICE_MAX);
    scene.cluster.signal_replica(2, Signal::CONT);
    scene.end();
}

#[test]
fn a_cut_in_both_directions_is_noticed_and_healed() {
    let scene = scene(4);
    scene.cluster.network.cut(0, 1);
    scene.await_gone(1, NOTICE_MAX);
    scene.cluster.network.heal();
    scene.end();
}

#[test]
fn a_cut_in_one_direction_is_noticed_and_healed() {
    let scene = scene(5);
    for (deaf, mute) in [(0, 1), (1, 0)] {
        scene.cluster.network.deafen(deaf, mute);
        scene.await_gone(1, NOTICE_MAX);
        scene.cluster.network.heal();
        scene.cluster.await_in_sync(0);
        scene.load.longest();
    }
    scene.end();
}

/// Beyond the peer timeout: to notice, to change the view, and what a busy machine takes.
const NOTICE_MAX: Duration = Duration::from_secs(3);
