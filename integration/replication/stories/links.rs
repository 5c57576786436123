//! Links that are slow, change all the time, break, or swallow everything: a guest notices no more than that its
//! disk is slower for a while.

use std::time::Duration;

use sealblk::replication::primary::status::CopyState;

use crate::cluster::{PEER_TIMEOUT_TIME, Plan};
use crate::proxy::Weather;
use crate::scene::Scene;
use crate::workload::Manner;

/// Behind proxies.
fn scene(seed: u64) -> Scene {
    Scene::new(&Plan { proxies: true, ..Plan::USUAL }, 0, Manner::usual(seed))
}

/// All links are well.
fn end(scene: Scene) {
    (0..Plan::USUAL.nodes).for_each(|node| scene.cluster.proxy(node).set(Weather::default()));
    scene.end();
}

#[test]
fn slow_links_that_break_now_and_then_cost_a_guest_nothing_but_time() {
    let scene = scene(40);
    let (delay, jitter) = (Duration::from_millis(2), Duration::from_millis(6));
    for node in 0..Plan::USUAL.nodes {
        scene.cluster.proxy(node).set(Weather { delay, jitter, silent: false });
    }
    for turn in 0..RESETS {
        scene.load.await_progress(100);
        scene.cluster.proxy(1 + turn % 2).reset();
    }
    scene.load.await_progress(100);
    end(scene);
}

#[test]
fn a_copy_behind_a_limping_link_leaves_in_time_and_stays_out_until_it_is_well() {
    let scene = scene(41);
    let delay = PEER_TIMEOUT_TIME * 2;
    scene.cluster.proxy(1).set(Weather { delay, ..Weather::default() });
    scene.await_gone(1, NOTICE_MAX);
    for _ in 0..5 {
        std::thread::sleep(PEER_TIMEOUT_TIME / 2);
        scene.load.await_progress(100);
        let state = scene.cluster.status(0).members[1].state;
        assert_ne!(state, CopyState::InSync, "it has come back over a link that limps");
    }
    end(scene);
}

#[test]
fn a_link_that_swallows_everything_without_a_word_is_noticed() {
    let scene = scene(42);
    scene.cluster.proxy(1).set(Weather { silent: true, ..Weather::default() });
    scene.await_gone(1, NOTICE_MAX);
    end(scene);
}

const RESETS: usize = 8;
/// Beyond the peer timeout: to notice, to change the view, and what a slow and busy machine takes. It is still far from
/// the minutes after which TCP gives up.
const NOTICE_MAX: Duration = Duration::from_secs(12);
