//! A copy that is gone or too slow leaves the in-sync set; the guest waits no longer than that takes, and notices
//! nothing else. When it is well again it is sent what it lacks, and all copies are equal.

use std::time::Duration;

use rustix::process::Signal;
use sealblk::replication::primary::status::CopyState;

use crate::cluster::{Cluster, LONG, PEER_TIMEOUT_TIME, Plan, Writer};
use crate::model::{BLOCK, Model};
use crate::workload::{Load, Manner};

/// A cluster, its writer on node-a, and a guest at work.
struct Scene {
    cluster: Cluster,
    writer: Writer,
    load: Load,
}

impl Scene {
    fn new(seed: u64) -> Scene {
        let mut cluster = Cluster::start(&Plan::USUAL);
        let writer = cluster.serve(0, &[]);
        cluster.await_in_sync(0);
        let model = Model::new(Plan::USUAL.size_bytes as usize / BLOCK);
        let load = Load::start(&writer.socket, model, Manner::usual(seed));
        load.await_progress(300);
        load.longest();
        Scene { cluster, writer, load }
    }

    /// Waits until a member has left, which must not take longer than it may, and the guest goes on.
    fn await_gone(&self, member: usize) {
        self.cluster.await_behind(0, member, PEER_TIMEOUT_TIME + NOTICE_MAX);
        self.load.await_progress(300);
        let pause = self.load.longest();
        assert!(pause < PEER_TIMEOUT_TIME + NOTICE_MAX, "the guest had to wait {pause:?}");
    }

    /// Waits until all are in sync, and checks that the guest reads what it wrote and all copies are equal.
    fn end(self) {
        let Scene { cluster, writer, load } = self;
        load.await_progress(300);
        cluster.await_in_sync(0);
        load.await_progress(300);
        load.finish();
        let status = cluster.status(0);
        assert_eq!(status.in_sync, Plan::USUAL.nodes, "{status:#?}");
        writer.process.terminate();
        cluster.assert_equal();
    }
}

#[test]
fn a_replica_that_is_killed_under_load_comes_back_by_resync() {
    let mut scene = Scene::new(2);
    scene.cluster.kill_replica(1);
    scene.await_gone(1);
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
    let scene = Scene::new(3);
    scene.cluster.signal_replica(2, Signal::STOP);
    scene.await_gone(2);
    scene.cluster.signal_replica(2, Signal::CONT);
    scene.end();
}

#[test]
fn a_cut_in_both_directions_is_noticed_and_healed() {
    let scene = Scene::new(4);
    scene.cluster.network.cut(0, 1);
    scene.await_gone(1);
    scene.cluster.network.heal();
    scene.end();
}

#[test]
fn a_cut_in_one_direction_is_noticed_and_healed() {
    let scene = Scene::new(5);
    for (deaf, mute) in [(0, 1), (1, 0)] {
        scene.cluster.network.deafen(deaf, mute);
        scene.await_gone(1);
        scene.cluster.network.heal();
        scene.cluster.await_in_sync(0);
        scene.load.longest();
    }
    scene.end();
}

/// Beyond the peer timeout: to notice, to change the view, and what a busy machine takes.
const NOTICE_MAX: Duration = Duration::from_secs(3);
