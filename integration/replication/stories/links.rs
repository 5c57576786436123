//! Links that are slow, change all the time, break, or swallow everything: a guest notices no more than that its
//! disk is slower for a while.

use std::time::Duration;

use sealblk::replication::primary::status::CopyState;

use crate::cluster::{Cluster, PEER_TIMEOUT_TIME, Plan, Writer};
use crate::model::{BLOCK, Model};
use crate::proxy::Weather;
use crate::workload::{Load, Manner};

/// A cluster behind proxies, its writer on node-a, and a guest at work.
struct Scene {
    cluster: Cluster,
    writer: Writer,
    load: Load,
}

impl Scene {
    fn new(seed: u64) -> Scene {
        let mut cluster = Cluster::start(&Plan { proxies: true, ..Plan::USUAL });
        let writer = cluster.serve(0, &[]);
        cluster.await_in_sync(0);
        let model = Model::new(Plan::USUAL.size_bytes as usize / BLOCK);
        let load = Load::start(&writer.socket, model, Manner::usual(seed));
        load.await_progress(100);
        Scene { cluster, writer, load }
    }

    /// Waits until node-b has left, which must not take longer than it may, and the guest goes on.
    fn await_gone(&self) {
        self.load.longest();
        self.cluster.await_behind(0, 1, PEER_TIMEOUT_TIME + NOTICE_MAX);
        self.load.await_progress(300);
        let pause = self.load.longest();
        assert!(pause < PEER_TIMEOUT_TIME + NOTICE_MAX, "the guest had to wait {pause:?}");
    }

    /// All links are well: all come to be in sync, the guest reads what it wrote, and all copies are equal.
    fn end(self) {
        let Scene { cluster, writer, load } = self;
        (0..Plan::USUAL.nodes).for_each(|node| cluster.proxy(node).set(Weather::default()));
        cluster.await_in_sync(0);
        load.await_progress(300);
        load.finish();
        cluster.await_in_sync(0);
        writer.process.terminate();
        cluster.assert_equal();
    }
}

#[test]
fn slow_links_that_break_now_and_then_cost_a_guest_nothing_but_time() {
    let scene = Scene::new(40);
    let (delay, jitter) = (Duration::from_millis(2), Duration::from_millis(6));
    for node in 0..Plan::USUAL.nodes {
        scene.cluster.proxy(node).set(Weather { delay, jitter, silent: false });
    }
    for turn in 0..RESETS {
        scene.load.await_progress(100);
        scene.cluster.proxy(1 + turn % 2).reset();
    }
    scene.load.await_progress(100);
    scene.end();
}

#[test]
fn a_copy_behind_a_limping_link_leaves_in_time_and_stays_out_until_it_is_well() {
    let scene = Scene::new(41);
    let delay = PEER_TIMEOUT_TIME * 2;
    scene.cluster.proxy(1).set(Weather { delay, ..Weather::default() });
    scene.await_gone();
    for _ in 0..5 {
        std::thread::sleep(PEER_TIMEOUT_TIME / 2);
        scene.load.await_progress(100);
        let state = scene.cluster.status(0).members[1].state;
        assert_ne!(state, CopyState::InSync, "it has come back over a link that limps");
    }
    scene.end();
}

#[test]
fn a_link_that_swallows_everything_without_a_word_is_noticed() {
    let scene = Scene::new(42);
    scene.cluster.proxy(1).set(Weather { silent: true, ..Weather::default() });
    scene.await_gone();
    scene.end();
}

const RESETS: usize = 8;
/// Beyond the peer timeout: to notice, to change the view, and what a slow and busy machine takes. It is still far from
/// the minutes after which TCP gives up.
const NOTICE_MAX: Duration = Duration::from_secs(12);
