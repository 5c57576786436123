//! Certificates change while a volume is served: nobody notices a renewal, by whatever way the files are changed, nor
//! that another authority takes the place of the first; and a node whose certificate was revoked is kept out until it
//! has another.

use std::fs;
use std::time::Duration;

use crate::cluster::{Cluster, LONG, PEER_TIMEOUT_TIME, Plan, name};
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

/// As in a cluster: key and certificate change at once, by a link to a folder, and whom nodes trust is in another.
#[test]
fn certificates_that_a_cluster_mounts_are_renewed_and_their_authority_replaced_under_load() {
    let mut cluster = Cluster::start(&Plan { mounted: true, ..Plan::USUAL });
    let mut writer = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let model = Model::new(Plan::USUAL.size_bytes as usize / BLOCK);
    let load = Load::start(&writer.socket, model, Manner::usual(31));
    load.await_progress(300);
    let view = cluster.status(0).view;
    assert!(cluster.replica(1).said().contains("threads engine"), "{}", cluster.replica(1).said());

    // Everybody has a new certificate of the same authority: every connection is another, and a client with somebody
    // else's TLS is shown the new one.
    let all = [0, 1, 2];
    let reads = || writer.process.said().matches("was read again").count();
    let renew = |pki: &str| {
        let read = reads();
        let old = cluster.connections(&writer);
        assert!(!old.is_empty());
        cluster.certify_from(pki, &all);
        all.iter().for_each(|&node| cluster.mount_certificate(node, pki));
        // Others may still be about to be made because of what was read before.
        load.await_that("the writer has read its own", || reads() > read);
        load.await_that("the connections are others", || cluster.connections(&writer).is_disjoint(&old));
        for node in all {
            let new = fs::read_to_string(cluster.path(&format!("{pki}/{}/cert.pem", name(node)))).unwrap();
            load.await_that("it shows the new one", || cluster.shown_certificate(node).trim() == new.trim());
        }
        cluster.await_in_sync(0);
        assert_eq!(cluster.status(0).view, view, "nobody has left");
        load.await_progress(300);
    };
    renew("pki");

    // Another authority: first all trust both, then they have its certificates, then they trust it alone.
    cluster.certify_from("other", &[0]);
    all.iter().for_each(|&node| cluster.mount_authorities(node, &["pki", "other"]));
    load.await_that("the writer trusts both", || reads() == 2);
    renew("other");
    all.iter().for_each(|&node| cluster.mount_authorities(node, &["other"]));
    load.await_that("the writer trusts one", || reads() == 4);
    load.await_progress(1000);
    cluster.await_in_sync(0);
    assert_eq!(cluster.status(0).view, view, "nobody has left");
    let said = writer.process.said();
    assert!(!said.contains("leaves the in-sync set"), "{said}");

    // Who still has a certificate of the first authority comes in no more, and hears why.
    cluster.kill_replica(2);
    cluster.await_behind(0, 2, PEER_TIMEOUT_TIME * 3);
    cluster.mount_certificate(2, "pki");
    cluster.start_replica(2);
    writer.process.await_that("does not trust the first authority", LONG, |process| {
        process.said().contains("is not from our authority")
    });
    assert!(!cluster.status(0).members[2].connected);
    cluster.mount_certificate(2, "other");
    cluster.await_in_sync(0);
    load.finish();
    writer.process.terminate();
    cluster.assert_equal();
}

const NOTICE_MAX: Duration = Duration::from_secs(3);
