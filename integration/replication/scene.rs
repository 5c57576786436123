//! A cluster, its writer, and a guest at work.

use std::time::Duration;

use super::cluster::{Cluster, LONG, PEER_TIMEOUT_TIME, Plan, Writer};
use super::model::{BLOCK, Model};
use super::workload::{Load, Manner};

/// What a story begins with.
pub struct Scene {
    pub cluster: Cluster,
    pub writer: Writer,
    pub load: Load,
    /// The node of the writer.
    home: usize,
}

impl Scene {
    /// All copies are in sync, and the guest has done something.
    pub fn new(plan: &Plan, home: usize, manner: Manner) -> Scene {
        let mut cluster = Cluster::start(plan);
        let writer = cluster.serve(home, &[]);
        cluster.await_in_sync(home);
        let load = Load::start(&writer.socket, new_model(plan), manner);
        load.await_progress(300);
        load.longest();
        Scene { cluster, writer, load, home }
    }

    /// Waits until a member has left, which must take no longer than it may and `notice` beyond that, and the guest
    /// goes on.
    pub fn await_gone(&self, member: usize, notice: Duration) {
        self.cluster.await_behind(self.home, member, PEER_TIMEOUT_TIME + notice);
        self.load.await_progress(300);
        let pause = self.load.longest();
        assert!(pause < PEER_TIMEOUT_TIME + notice, "the guest had to wait {pause:?}");
    }

    /// Waits until all are in sync, and checks that the guest reads what it wrote and all copies are equal.
    pub fn end(self) -> Cluster {
        let Scene { cluster, writer, load, home } = self;
        load.await_progress(300);
        cluster.await_in_sync(home);
        load.await_progress(300);
        load.finish();
        cluster.await_in_sync(home);
        let status = cluster.status(home);
        assert_eq!(status.in_sync, status.members.len(), "{status:#?}");
        writer.process.terminate();
        cluster.assert_equal();
        cluster
    }
}

/// A guest works on while its volume moves from node to node.
pub fn move_about(plan: &Plan, nodes: &[usize], seed: u64) {
    let mut cluster = Cluster::start(plan);
    let mut old = cluster.serve(nodes[0], &[]);
    cluster.await_in_sync(nodes[0]);
    let mut load = Load::start(&old.socket, new_model(plan), Manner::usual(seed));
    for &node in &nodes[1..] {
        load.await_progress(500);
        let new = cluster.serve(node, &[]);
        let model = load.abandon();
        let status = old.process.await_end(LONG);
        assert!(!status.success(), "{}", old.process.said());
        load = Load::start(&new.socket, model, Manner::usual(seed + 1 + node as u64));
        cluster.await_in_sync(node);
        old = new;
    }
    load.await_progress(500);
    load.finish();
    old.process.terminate();
    cluster.assert_equal();
}

/// A writer is killed on one node after the other, and what was acknowledged is there on the last.
pub fn kill_writers(plan: &Plan, nodes: &[usize], last: usize, seed: u64) {
    let mut cluster = Cluster::start(plan);
    let mut model = new_model(plan);
    for (turn, &node) in nodes.iter().enumerate() {
        let writer = cluster.serve(node, &[]);
        let load = Load::start(&writer.socket, model, Manner::usual(seed + turn as u64));
        load.await_progress(500);
        writer.process.kill();
        model = load.abandon();
    }
    let writer = cluster.serve(last, &[]);
    Load::start(&writer.socket, model, Manner::usual(seed + nodes.len() as u64)).finish();
    cluster.await_in_sync(last);
    writer.process.terminate();
    cluster.assert_equal();
}

/// What the disk of a plan holds at first.
pub fn new_model(plan: &Plan) -> Model {
    Model::new(plan.size_bytes as usize / BLOCK)
}
