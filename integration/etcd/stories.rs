//! What a volume does while its etcd is well, and while it is away.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::model::{BLOCK, Model};
use crate::scene::{LONG, NODES, Scene, name};
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

#[test]
fn a_volume_is_served_by_its_id_on_a_node_without_a_copy_and_on_one_with() {
    let mut scene = Scene::with_volume();
    let home = NODES;
    let mut old = scene.begin_to_serve_by_id(home);
    old.await_socket();
    let mut load = Load::start(&old.socket, Model::new(BLOCKS), Manner::usual(4));
    scene.await_in_sync_at(&old.socket, 3);
    // To a member and back.
    for node in [1, home] {
        load.await_progress(300);
        let mut new = scene.begin_to_serve_by_id(node);
        new.await_socket();
        let model = load.abandon();
        assert!(!old.process.await_end(LONG).success(), "{}", old.process.said());
        load = Load::start(&new.socket, model, Manner::usual(5 + node as u64));
        old = new;
    }
    load.await_progress(300);
    load.finish();
    scene.await_in_sync_at(&old.socket, 3);
    old.process.terminate();
    scene.assert_equal();
    assert!(!scene.path(&name(home)).exists(), "nothing is stored on the node");
}

#[test]
fn an_attach_that_waits_for_etcd_ends_when_it_is_told_to() {
    let mut scene = Scene::with_volume();
    let ends = |scene: &mut Scene, by_id: bool| {
        let mut writer = if by_id { scene.begin_to_serve_by_id(0) } else { scene.begin_to_serve(0) };
        thread::sleep(Duration::from_secs(1));
        assert!(writer.process.is_running(), "{}", writer.process.said());
        writer.process.signal(Signal::TERM);
        let told = Instant::now();
        let status = writer.process.await_end(LONG);
        let (took, said) = (told.elapsed(), writer.process.said());
        assert!(status.success() && said.contains("nothing was served"), "{status}: {said}");
        assert!(took < Duration::from_secs(3), "{took:?}: {said}");
    };
    scene.signal_etcd(Signal::STOP);
    ends(&mut scene, true);
    ends(&mut scene, false);
    scene.signal_etcd(Signal::CONT);
    scene.stop_etcd();
    ends(&mut scene, true);
    scene.start_etcd();
    scene.serve(0).process.terminate();
}

const BLOCKS: usize = (64 << 20) / BLOCK;
