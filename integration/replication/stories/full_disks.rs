//! A copy whose disk is full leaves the in-sync set and the guest notices nothing; when there is room again it is
//! sent what it lacks.

use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::cluster::{Cluster, Plan, Writer, name};
use crate::model::{BLOCK, Model};
use crate::support::loopback::{SmallMemory, run};
use crate::workload::{Load, Manner};

/// A cluster in which one node keeps its copies on a file system that the volume does not fit on.
struct Scene {
    full: usize,
    // Goes before the cluster, whose folder it lies in.
    disk: SmallMemory,
    cluster: Cluster,
    writer: Writer,
    load: Load,
}

impl Scene {
    fn new(full: usize, seed: u64) -> Scene {
        let mut cluster = Cluster::start(&Plan::USUAL);
        cluster.kill_replica(full);
        let (place, aside) = (cluster.path(&name(full)), cluster.path("aside"));
        std::fs::rename(&place, &aside).expect("moving the node's folder");
        std::fs::create_dir(&place).expect("a place to mount at");
        let disk = SmallMemory::mount(place.clone(), 24 << 20);
        run(Command::new("cp").args(["--archive", "--sparse=always"]).arg(aside.join(".")).arg(&place));
        cluster.start_replica(full);
        let writer = cluster.serve(0, &[]);
        cluster.await_in_sync(0);
        let model = Model::new(Plan::USUAL.size_bytes as usize / BLOCK);
        let load = Load::start(&writer.socket, model, Manner::usual(seed));
        Scene { full, disk, cluster, writer, load }
    }

    /// From when the disk is full to when all is well again.
    fn play(mut self) {
        let Scene { full, cluster, writer, load, .. } = &mut self;
        let leaves = format!("node {} leaves the in-sync set: it failed: No space left on device", name(*full));
        writer.process.await_line(&leaves);
        let cannot = "data: cannot write";
        match *full {
            0 => writer.process.await_line(cannot),
            node => cluster.replica(node).await_line(cannot),
        }
        load.await_progress(300);
        let status = cluster.status(0);
        assert_eq!((status.in_sync, status.writable), (2, true), "{status:#?}");

        // It is tried again and fails again, but not all the time: each try is a change of the view.
        thread::sleep(TRIES_TIME);
        let views = cluster.status(0).view - status.view;
        assert!(views <= VIEWS_MAX, "{views} views in {TRIES_TIME:?}");

        self.end();
    }

    /// From when there is room again.
    fn end(self) {
        self.disk.resize(256 << 20);
        self.load.await_progress(100);
        self.cluster.await_in_sync(0);
        self.load.await_progress(100);
        self.load.finish();
        self.writer.process.terminate();
        self.cluster.assert_equal();
    }
}

#[test]
fn of_another_node() {
    Scene::new(1, 21).play();
}

#[test]
fn of_the_node_that_serves() {
    Scene::new(0, 22).play();
}

/// There is no room for a note of who has the copy, and it is opened all the same.
#[test]
fn of_a_node_that_starts_again() {
    let mut scene = Scene::new(1, 23);
    scene.writer.process.await_line(&format!("node {} leaves the in-sync set", name(1)));
    scene.disk.fill();
    scene.cluster.kill_replica(1);
    scene.cluster.start_replica(1);
    scene.cluster.replica(1).await_line("cannot note so");
    scene.cluster.replica(1).await_line("opened, in incarnation");
    scene.end();
}

const TRIES_TIME: Duration = Duration::from_secs(5);
/// A pause of one second, one of two, and one of four, with some room.
const VIEWS_MAX: u64 = 6;
