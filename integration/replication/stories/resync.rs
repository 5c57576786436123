//! A copy that was away is sent what it lacks and little more, and holes as holes.

use std::os::unix::fs::MetadataExt;

use crate::cluster::{Cluster, PEER_TIMEOUT_TIME, Plan, Writer};
use crate::support::guest::Guest;
use crate::support::pattern::pattern;
use crate::support::request::{OK, WRITE_ZEROES};

/// A cluster with a writer on node-a and its guest.
struct Scene {
    cluster: Cluster,
    writer: Writer,
    guest: Guest,
}

impl Scene {
    fn new() -> Scene {
        let mut cluster = Cluster::start(&Plan::USUAL);
        let writer = cluster.serve(0, &[]);
        cluster.await_in_sync(0);
        let mut guest = Guest::connect(&writer.socket);
        guest.stay();
        Scene { cluster, writer, guest }
    }

    /// Does something while node-b is away; the bytes that it is sent when it is back, beyond those that come
    /// when it lacks nothing.
    fn sent_after(&mut self, while_away: impl FnOnce(&mut Guest)) -> u64 {
        self.settle();
        let nothing = self.sent_to_returning(|_| ());
        self.sent_to_returning(while_away).saturating_sub(nothing)
    }

    fn sent_to_returning(&mut self, while_away: impl FnOnce(&mut Guest)) -> u64 {
        self.cluster.kill_replica(1);
        self.cluster.await_behind(0, 1, PEER_TIMEOUT_TIME * 3);
        while_away(&mut self.guest);
        self.settle();
        let before = self.cluster.network.received_bytes(1);
        self.cluster.start_replica(1);
        self.cluster.await_in_sync(0);
        let sent = self.cluster.network.received_bytes(1) - before;
        self.settle();
        sent
    }

    /// Makes everything durable, and waits until no copy has a region of which it may have lost something.
    fn settle(&mut self) {
        self.guest.flush();
        self.cluster.await_settled(0);
    }

    fn end(self) {
        let Scene { cluster, writer, guest } = self;
        drop(guest);
        writer.process.terminate();
        cluster.assert_equal();
        let blocks = |node| cluster.copy(node).join("data").metadata().unwrap().blocks();
        // What a file takes depends a little on how it was written.
        assert!(blocks(1).abs_diff(blocks(0)) * 512 <= MIB, "{} and {} blocks of 512", blocks(0), blocks(1));
    }
}

#[test]
fn a_copy_that_was_away_is_sent_the_regions_that_were_written() {
    let mut scene = Scene::new();
    scene.guest.write(0, &pattern(1, 64 << 20));
    let sent = scene.sent_after(|guest| guest.write(12 * MIB, &pattern(2, 8 << 20)));
    assert!((8 * MIB..9 * MIB).contains(&sent), "{sent} bytes were sent for 8 MiB");
    scene.end();
}

#[test]
fn a_copy_that_was_away_is_sent_holes_as_holes() {
    let mut scene = Scene::new();
    // Little in every region of a thin volume.
    let sent = scene.sent_after(|guest| {
        for region in 0..16 {
            guest.write(region * 4 * MIB + MIB, &pattern(region, 64 << 10));
        }
    });
    // A piece of 256 KiB is sent as a whole unless all of it is zeros.
    assert!((MIB..5 * MIB).contains(&sent), "{sent} bytes were sent for 1 MiB in 16 pieces");

    // What was there and is given back.
    scene.guest.write(16 * MIB, &pattern(3, 16 << 20));
    let sent = scene.sent_after(|guest| {
        let sectors = (16 * MIB / 512) as u32;
        assert_eq!(guest.ranges(WRITE_ZEROES, &[(16 * MIB / 512, sectors, 1)]), OK);
    });
    assert!(sent < MIB, "{sent} bytes were sent for a hole of 16 MiB");
    scene.end();
}

const MIB: u64 = 1 << 20;
