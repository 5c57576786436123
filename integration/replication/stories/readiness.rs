//! What a probe of a replica says: it is ready when the copies in use there are in sync, and not because it listens.

use rustix::process::Signal;
use sealblk::replication::server::status::{CopyState, ReplicaStatus};

use crate::cluster::{Cluster, LONG, PEER_TIMEOUT_TIME, Plan};
use crate::model::{BLOCK, Model};
use crate::workload::{Load, Manner};

#[test]
fn a_replica_is_ready_when_its_copies_are_in_sync_again() {
    let mut cluster = Cluster::start(&Plan::USUAL);
    let ready = |cluster: &Cluster| cluster.replica_status(1, &["--ready"]);
    assert!(ready(&cluster).status.success(), "nobody uses a copy");
    let writer = cluster.serve(0, &["--resync-rate-min", "1M", "--resync-rate-max", "2M"]);
    cluster.await_in_sync(0);
    let load = Load::start(&writer.socket, Model::new(Plan::USUAL.size_bytes as usize / BLOCK), Manner::usual(32));
    load.await_progress(300);
    load.await_that("the copy is in sync, as its replica knows", || ready(&cluster).status.success());
    let output = cluster.replica_status(1, &["--json"]);
    let status: ReplicaStatus = serde_json::from_slice(&output.stdout).expect("a status in JSON");
    let [copy] = &status.copies[..] else { panic!("{status:?}") };
    assert_eq!((copy.volume, copy.state), (cluster.id(), CopyState::InSync));
    assert!(copy.connections > 0 && status.nodes == ["node-b"] && status.certificate_seconds > 0, "{status:?}");

    // It was away, and is sent what it lacks.
    cluster.kill_replica(1);
    cluster.await_behind(0, 1, PEER_TIMEOUT_TIME * 3);
    let gone = ready(&cluster);
    assert!(String::from_utf8_lossy(&gone.stderr).contains("no replica has its copies in node-b"), "{gone:?}");
    load.await_progress(1000);
    cluster.start_replica(1);
    load.await_that("it lacks something, and says so", || {
        let output = ready(&cluster);
        let alive = cluster.replica_status(1, &[]).status.success();
        alive && String::from_utf8_lossy(&output.stderr).contains("is not in sync")
    });
    cluster.await_status(0, "its replica says that it is ready", LONG, |_| ready(&cluster).status.success());
    let status = cluster.status(0);
    assert!(status.in_sync == 3 && status.members[1].connected, "it is when the writer says so: {status:?}");

    // One that stands still listens, as far as the kernel knows, and does not answer.
    cluster.signal_replica(1, Signal::STOP);
    let output = cluster.replica_status(1, &[]);
    cluster.signal_replica(1, Signal::CONT);
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot ask how the replica"), "{output:?}");
    cluster.await_in_sync(0);
    load.finish();
    writer.process.terminate();
}
