//! What a volume does while its etcd is well, and while it is away.

use crate::model::{BLOCK, Model};
use crate::scene::{LONG, Scene};
use crate::workload::{Load, Manner};

#[test]
fn a_volume_moves_between_nodes() {
    let mut scene = Scene::with_volume();
    let mut first = scene.serve(0);
    let load = Load::start(&first.socket, Model::new(BLOCKS), Manner::usual(1));
    load.await_progress(300);
    scene.await_in_sync(0, 3);
    let second = scene.serve(1);
    let model = load.abandon();
    assert!(!first.process.await_end(LONG).success(), "{}", first.process.said());
    let load = Load::start(&second.socket, model, Manner::usual(2));
    load.await_progress(300);
    load.finish();
    scene.await_in_sync(1, 3);
    second.process.terminate();
    scene.assert_equal();
}

#[test]
fn while_etcd_is_away_io_goes_on_and_waits_when_a_node_is_lost() {
    let mut scene = Scene::with_volume();
    let mut writer = scene.serve(0);
    let load = Load::start(&writer.socket, Model::new(BLOCKS), Manner::usual(3));
    load.await_progress(200);
    scene.stop_etcd();
    load.await_progress(1000);
    scene.kill_replica(2);
    writer.process.await_line("the view cannot be changed");
    // No write is acknowledged that the lost copy lacks.
    load.await_standstill("a copy is lost and the view cannot be changed");
    scene.start_etcd();
    load.await_progress(500);
    scene.await_in_sync(0, 2);
    scene.start_replica(2);
    scene.await_in_sync(0, 3);
    load.finish();
    writer.process.terminate();
    scene.assert_equal();
}

const BLOCKS: usize = (64 << 20) / BLOCK;
