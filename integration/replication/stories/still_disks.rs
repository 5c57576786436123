//! Disks that hold still. A replica answers writes that its disk has not done: what that is worth then, and when the
//! process dies with them. And a writer whose own disk holds still takes nobody else for slow.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::thread;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::cluster::{Cluster, PEER_TIMEOUT_TIME, Plan, name};
use crate::scene::new_model;
use crate::support::loopback::{Frozen, LoopDevice, Mount, run};
use crate::workload::{Load, Manner};

#[test]
fn what_was_answered_before_the_disk_had_it_is_sent_again() {
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = Mount::ext4(LoopDevice::attach(folder.path(), 256 << 20, 512), folder.path());
    let mut cluster = Cluster::start(&Plan::USUAL);
    move_copies(&mut cluster, STILL, &disk);
    let writer = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let load = Load::start(&writer.socket, new_model(&Plan::USUAL), Manner::usual(31));
    load.await_progress(2000);

    let mut turns = 0;
    let mut most_answered = 0;
    while turns < TURNS || most_answered < ANSWERED {
        assert!(turns < TURNS_MAX, "no more than {most_answered} requests have ended while the disk held still");
        turns += 1;
        load.rest(true);
        let (ended, frozen) = (load.ended(), Frozen::freeze(&disk.path));
        load.rest(false);
        thread::sleep(PEER_TIMEOUT_TIME / 2);
        let (answered, status) = (load.ended() - ended, cluster.status(0));
        assert_eq!(status.in_sync, 3, "{status:#?}");
        most_answered = most_answered.max(answered);
        // What is durable it does not say before it is, nor is more and more answered.
        cluster.await_behind(0, STILL, PEER_TIMEOUT_TIME * 3);
        load.await_progress(300);
        cluster.signal_replica(STILL, Signal::KILL);
        drop(frozen);
        cluster.kill_replica(STILL);
        load.await_progress(100);
        cluster.start_replica(STILL);
        cluster.await_in_sync(0);
        load.await_progress(2000);
    }
    load.finish();
    writer.process.terminate();
    cluster.assert_equal();
    // Its files are on the disk that goes.
    cluster.kill_replica(STILL);
}

#[test]
fn while_the_writers_disk_holds_still_no_other_copy_is_given_up() {
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = Mount::ext4(LoopDevice::attach(folder.path(), 256 << 20, 512), folder.path());
    let mut cluster = Cluster::start(&Plan::USUAL);
    move_copies(&mut cluster, 0, &disk);
    let writer = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let load = Load::start(&writer.socket, new_model(&Plan::USUAL), Manner::usual(32));
    load.await_progress(1000);
    for _ in 0..TURNS {
        load.rest(true);
        // From then on the row of every region has to be written before the region is.
        cluster.await_settled(0);
        let view = cluster.status(0).view;
        let frozen = Frozen::freeze(&disk.path);
        load.rest(false);
        load.await_standstill("the guest's writes while a disk holds still");
        thread::sleep(PEER_TIMEOUT_TIME * 2);
        drop(frozen);
        load.await_progress(1000);
        let status = cluster.status(0);
        assert_eq!((status.in_sync, status.view), (3, view), "{status:#?}");
    }
    load.finish();
    writer.process.terminate();
    cluster.assert_equal();
    cluster.kill_replica(0);
}

/// Puts the copies of a node on a disk.
fn move_copies(cluster: &mut Cluster, node: usize, disk: &Mount) {
    cluster.kill_replica(node);
    let place = cluster.path(&name(node));
    run(Command::new("cp").args(["--archive", "--sparse=always"]).arg(&place).arg(disk.path.join("copies")));
    fs::remove_dir_all(&place).unwrap();
    symlink(disk.path.join("copies"), &place).unwrap();
    cluster.start_replica(node);
}

/// The node whose disk holds still.
const STILL: usize = 1;
const TURNS: usize = 2;
/// A region whose row has to be written first keeps those behind it waiting: then little is answered.
const TURNS_MAX: usize = 10;
/// More requests than the guest has under way at once, of which some read elsewhere.
const ANSWERED: u64 = 40;
