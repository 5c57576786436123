//! What a writer that may can do, and that there is one session of it.

use std::os::unix::fs::FileExt;

use sha2::{Digest as _, Sha256};

use super::*;
use crate::replication::message::PAYLOAD_BYTES_MAX;

#[test]
fn a_copy_is_made_and_serves_every_request() {
    let scene = Scene::new();
    let replica = scene.run();
    let made = scene.create(&replica).unwrap();
    assert_eq!(made.accepted, ViewNumber(1));
    let mut client = scene.open(&replica, &scene.hello(1, 1)).unwrap();
    assert_eq!(client.welcome, made, "the copy is still in its first life");

    assert_eq!(client.accept(scene.view(2)), Reply::Done);
    let data = pattern(3, 8192);
    assert_eq!(client.read(4096, 8192), vec![0; 8192]);
    assert_eq!(client.write(4096, &data), Reply::Done);
    assert_eq!(client.read(4096, 8192), data);
    assert_eq!(client.reply(&Request::Flush), Reply::Done);

    let mut rows = vec![Row::default(); REGIONS as usize];
    rows[0] = Row { written: ViewNumber(2), intent: true };
    assert_eq!(client.rows(), rows);
    assert_eq!(client.reply(&Request::Settle(vec![(RegionIndex(0), ViewNumber(2))])), Reply::Done);
    rows[0].intent = false;
    assert_eq!(client.rows(), rows);

    assert_eq!(client.reply(&Request::Zero { offset: 4096, len: 4096, durable: true }), Reply::Done);
    assert_eq!(client.reply(&Request::Read { offset: 4096, len: 4096 }), Reply::Zeros);
    assert_eq!(client.read(4096, 8192), [&[0; 4096], &data[4096..]].concat());
    let sparse = [&data[..4096], &[0; 8192], &data[..512]].concat();
    let request = Request::Write { offset: 1 << 20, len: sparse.len() as u32, durable: true, sparse: true };
    assert_eq!(client.ask(&request, &sparse).0, Reply::Done);
    assert_eq!(client.read(1 << 20, sparse.len() as u32), sparse);
    let digest = Reply::DigestOf(Sha256::digest(&sparse).into());
    assert_eq!(client.reply(&Request::Digest { offset: 1 << 20, len: sparse.len() as u32 }), digest);
    assert_eq!(client.reply(&Request::Ping), Reply::Done);

    drop(client);
    replica.end().unwrap();
    let mut stored = vec![0; sparse.len()];
    std::fs::File::open(scene.dir().join("data")).unwrap().read_exact_at(&mut stored, 1 << 20).unwrap();
    assert_eq!(stored, sparse, "the file has the very bytes");

    let replica = scene.run();
    let mut client = scene.open(&replica, &scene.hello(2, 2)).unwrap();
    assert_eq!(client.welcome.accepted, ViewNumber(2));
    assert_ne!(client.welcome.incarnation, made.incarnation);
    assert_eq!(client.read(8192, 4096), data[4096..]);
}

#[test]
fn what_the_volume_cannot_have_is_answered_and_the_connection_goes_on() {
    let scene = Scene::new();
    let replica = scene.run();
    scene.create(&replica).unwrap();
    let mut client = scene.open(&replica, &scene.hello(1, 1)).unwrap();
    let invalid = Reply::Failed(libc::EINVAL);
    assert_eq!(client.write(SIZE_BYTES - 512, &[1; 1024]), invalid, "beyond the end");
    assert_eq!(client.write(100, &[1; 512]), invalid, "not on a sector");
    assert_eq!(client.reply(&Request::Read { offset: SIZE_BYTES, len: 512 }), invalid);
    assert_eq!(client.reply(&Request::Digest { offset: SIZE_BYTES - 512, len: 1024 }), invalid);
    assert_eq!(client.reply(&Request::Digest { offset: 100, len: 512 }), invalid);
    assert_eq!(client.reply(&Request::Zero { offset: 0, len: SIZE_BYTES + 512, durable: false }), invalid);
    assert_eq!(client.reply(&Request::Rows { first: RegionIndex(1), count: REGIONS }), invalid);
    assert_eq!(client.reply(&Request::Settle(vec![(RegionIndex(REGIONS), ViewNumber(1))])), invalid);
    assert_eq!(client.reply(&Request::Settle(vec![(RegionIndex(0), ViewNumber(2))])), invalid, "a later view");
    let mut other = scene.view(2);
    other.volume = Uuid::new_v4();
    assert_eq!(client.reply(&Request::Accept(Box::new(other))), invalid, "of another volume");
    assert_eq!(client.rows(), vec![Row::default(); REGIONS as usize], "none of it has left a mark");
    assert_eq!(client.write(SIZE_BYTES - 512, &[1; 512]), Reply::Done);

    assert_eq!(client.accept(scene.view(2)), Reply::Done);
    client.view = ViewNumber(1);
    assert_eq!(client.write(0, &[1; 512]), Reply::Superseded(ViewNumber(2)));
    assert_eq!(client.reply(&Request::Digest { offset: 0, len: 512 }), Reply::Superseded(ViewNumber(2)));
    client.view = ViewNumber(2);
    assert_eq!(client.read(0, 512), [0; 512]);
}

#[test]
fn a_writer_may_ask_for_more_than_is_done_at_once() {
    ask_for_more_than_is_done_at_once(Settings::default());
}

#[test]
fn a_writer_gets_on_where_memory_is_short() {
    ask_for_more_than_is_done_at_once(Settings { shared_bytes: 0, ..Settings::default() });
}

fn ask_for_more_than_is_done_at_once(settings: Settings) {
    let scene = Scene::new();
    let replica = Running::start(&scene, settings);
    scene.create(&replica).unwrap();
    let mut client = scene.open(&replica, &scene.hello(1, 1)).unwrap();
    let len = PAYLOAD_BYTES_MAX as usize;
    let blocks = SIZE_BYTES as usize / len;
    let data = |block: usize| pattern((block * 2) as u8, len);
    // More than may be in flight in requests and in bytes; nobody reads the replies meanwhile.
    for block in 0..blocks {
        client.send(&write((block * len) as u64, len), &data(block)).unwrap();
    }
    for _ in 0..blocks {
        assert_eq!(client.receive().unwrap().0.reply, Reply::Done);
    }
    // As before, but what piles up are the replies.
    let first = client.next_id + 1;
    for block in 0..blocks {
        client.send(&Request::Read { offset: (block * len) as u64, len: PAYLOAD_BYTES_MAX }, &[]).unwrap();
    }
    let mut seen = vec![false; blocks];
    for _ in 0..blocks {
        let (frame, read) = client.receive().unwrap();
        let block = (frame.id - first) as usize;
        assert!(!std::mem::replace(&mut seen[block], true), "two replies to one request");
        assert!(read == data(block), "block {block}");
    }
    // Also many small ones, of which more come at once than may be in flight.
    for _ in 0..1000 {
        client.send(&Request::Ping, &[]).unwrap();
    }
    for _ in 0..1000 {
        assert_eq!(client.receive().unwrap().0.reply, Reply::Done);
    }
}

#[test]
fn lanes_of_a_session_work_side_by_side() {
    let scene = Scene::new();
    let replica = scene.run();
    scene.create(&replica).unwrap();
    let mut control = scene.open(&replica, &scene.hello(1, 1)).unwrap();
    let mut lanes: Vec<Client> =
        (1..5).map(|lane| scene.open(&replica, &Hello { lane, ..scene.hello(1, 1) }).unwrap()).collect();
    // Each writes regions that others have to make durable for it first, or it for them.
    let ids: Vec<u64> = (0u64..64)
        .map(|index| {
            let lane = &mut lanes[index as usize % 4];
            lane.send(&write((index % 16) * (4 << 20) + index * 4096, 4096), &pattern(index as u8, 4096)).unwrap()
        })
        .collect();
    assert_eq!(ids.len(), 64);
    for lane in &mut lanes {
        for _ in 0..16 {
            assert_eq!(lane.receive().unwrap().0.reply, Reply::Done);
        }
    }
    assert_eq!(control.reply(&Request::Flush), Reply::Done);
    assert!(control.rows().iter().all(|row| *row == Row { written: ViewNumber(1), intent: true }));
    for index in 0u64..64 {
        let read = control.read((index % 16) * (4 << 20) + index * 4096, 4096);
        assert!(read == pattern(index as u8, 4096), "write {index}");
    }
}

#[test]
fn a_later_session_ends_the_earlier_one_and_nothing_late_is_applied() {
    let scene = Scene::new();
    let replica = scene.run();
    scene.create(&replica).unwrap();
    let mut old = scene.open(&replica, &scene.hello(1, 1)).unwrap();
    assert_eq!(old.write(0, &[1; 512]), Reply::Done);
    let mut new = scene.open(&replica, &scene.hello(1, 2)).unwrap();
    // The socket may take it still; nobody is there to do it.
    let _ = old.send(&write(0, 512), &[2; 512]);
    old.await_end();
    assert_eq!(new.read(0, 512), [1; 512]);
    assert_eq!(new.write(0, &[3; 512]), Reply::Done);

    let error = scene.open(&replica, &scene.hello(1, 1)).unwrap_err();
    assert_eq!(code(&error), Some(RefusalCode::Busy), "{error}");
    assert_eq!(new.read(0, 512), [3; 512], "the session in force is left alone");
}

#[test]
fn a_writer_in_a_later_view_takes_over() {
    let scene = Scene::new();
    let replica = scene.run();
    scene.create(&replica).unwrap();
    let mut old = scene.open(&replica, &scene.hello(1, 1)).unwrap();
    assert_eq!(old.write(0, &[1; 512]), Reply::Done);

    let successor = Scene { writer: WriterId { node: node("node-c"), attachment: Uuid::new_v4() }, ..scene };
    let hello = successor.hello(2, 1);
    let mut new = successor.open_as("node-c", &replica, &hello).unwrap();
    assert_eq!(new.accept(successor.view(2)), Reply::Done);
    let _ = old.send(&write(0, 512), &[2; 512]);
    old.await_end();
    assert_eq!(new.read(0, 512), [1; 512]);
}
