//! Certificates change while a volume is served: nobody notices a renewal, and a node whose certificate was revoked
//! is kept out until it has another.

use std::fs;
use std::time::Duration;

use crate::cluster::{Cluster, LONG, PEER_TIMEOUT_TIME, Plan};
use crate::model::{BLOCK, Model};
use crate::workload::{Load, Manner};

#[test]
fn certificates_are_renewed_and_revoked_under_load() {
    let mut cluster = Cluster::start(&Plan { revocation: true, ..Plan::USUAL });
    let mut writer = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let model = Model::new(Plan::USUAL.size_bytes as usize / BLOCK);
    let load = Load::start(&writer.socket, model, Manner::usual(30));
    load.await_progress(300);

    // All get new ones, and the connections that are there go on.
    let number = cluster.status(0).view;
    let old = fs::read(cluster.path("pki/node-b/cert.pem")).unwrap();
    cluster.certify(&[0, 1, 2]);
    assert_ne!(fs::read(cluster.path("pki/node-b/cert.pem")).unwrap(), old);
    load.await_progress(1000);
    assert_eq!(cluster.status(0).view, number, "nobody has left");
    // A connection that is made anew has them.
    cluster.kill_replica(2);
    cluster.await_behind(0, 2, PEER_TIMEOUT_TIME * 3);
    cluster.start_replica(2);
    cluster.await_in_sync(0);
    assert!(writer.process.said().contains("was read again"), "{}", writer.process.said());

    // The writer hears that node-b's is revoked: it does not let it in any more.
    cluster.kill_replica(1);
    cluster.await_behind(0, 1, PEER_TIMEOUT_TIME * 3);
    cluster.revoke(0, &[1]);
    cluster.start_replica(1);
    writer.process.await_that("refuses a revoked certificate", LONG, |process| process.said().contains("revoked"));
    load.await_progress(1000);
    assert!(!cluster.status(0).members[1].connected);
    cluster.certify(&[1]);
    cluster.await_status(0, "node-b is back with another", LONG, |status| status.members[1].connected);
    cluster.await_in_sync(0);

    // A replica hears that the writer's is revoked.
    cluster.kill_replica(2);
    cluster.await_behind(0, 2, PEER_TIMEOUT_TIME * 3);
    cluster.revoke(2, &[0]);
    cluster.start_replica(2);
    let replica = cluster.replica(2);
    replica.await_that("refuses a revoked certificate", LONG, |process| process.said().contains("revoked"));
    load.await_progress(1000);
    assert!(!cluster.status(0).members[2].connected);
    cluster.certify(&[0]);
    cluster.await_in_sync(0);
    assert!(load.longest() < PEER_TIMEOUT_TIME + NOTICE_MAX);
    load.finish();
    writer.process.terminate();
    cluster.assert_equal();
}

const NOTICE_MAX: Duration = Duration::from_secs(3);
