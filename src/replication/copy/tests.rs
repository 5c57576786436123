use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use super::*;
use crate::io::buffer::{BUFFER_BYTES_MAX, BufferPool};
use crate::io::segments::Segment;
use crate::io::zeroing::Zeroing;
use crate::replication::message::{Hello, Reply};
use crate::replication::replica::{Action, Applied, ConnectionId, FlightId};
use crate::replication::view::{FailureMode, Member, MemberState, WriterId};
use crate::store::SectorSize;

const CONNECTION: ConnectionId = ConnectionId(7);
const SIZE_BYTES: u64 = 16 << 20;

struct Fixture {
    _folder: tempfile::TempDir,
    dir: PathBuf,
    volume: Uuid,
}

impl Fixture {
    fn new(parent: Option<&str>) -> Fixture {
        let folder = match parent {
            Some(parent) => tempfile::tempdir_in(parent).unwrap(),
            None => tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap(),
        };
        let (dir, volume) = (folder.path().join("copy"), Uuid::new_v4());
        let superblock = Superblock::plain(volume, SIZE_BYTES, SectorSize::Bytes512).unwrap();
        Store::create(&dir, &superblock, None).unwrap();
        Fixture { _folder: folder, dir, volume }
    }

    fn open(&self, kind: Kind) -> Arc<OpenCopy> {
        OpenCopy::open(&self.dir, Some(kind)).unwrap()
    }

    fn view(&self, number: u64) -> View {
        let node: crate::replication::view::NodeName = "node-a".parse().unwrap();
        View {
            volume: self.volume,
            number: ViewNumber(number),
            writer: Some(WriterId { node: node.clone(), attachment: Uuid::nil() }),
            members: vec![Member { node, address: "node-a:1".into(), zone: None, state: MemberState::Behind }],
            failure_mode: FailureMode::Hard,
            lease_ms: 1000,
            writers: Vec::new(),
        }
    }
}

/// An executor that does one request at a time.
struct Hands(Executor);

impl Hands {
    fn one(&mut self, request: &Request, payload: Payload) -> Ended {
        self.0.apply(FlightId(1), request, payload);
        self.finish().pop().unwrap()
    }

    fn finish(&mut self) -> Vec<Ended> {
        let mut ended = Vec::new();
        while self.0.in_flight() > 0 {
            self.0.drive(&mut ended).unwrap();
            if self.0.in_flight() > 0 {
                self.0.wait(&[]).unwrap();
            }
        }
        ended
    }

    fn filled(&mut self, data: &[u8]) -> Payload {
        let mut buffer = self.0.buffer(data.len()).unwrap();
        unsafe_fill(&mut buffer, data);
        Payload::owned(buffer)
    }

    fn write(&mut self, offset: u64, data: &[u8], durable: bool, sparse: bool) -> Result<Applied, i32> {
        let payload = self.filled(data);
        let ended = self.one(&Request::Write { offset, len: data.len() as u32, durable, sparse }, payload);
        self.0.give(ended.payload.unwrap());
        ended.result
    }

    fn zero(&mut self, offset: u64, len: u64, durable: bool) -> Result<Applied, i32> {
        self.one(&Request::Zero { offset, len, durable }, Payload::none()).result
    }

    fn digest(&mut self, offset: u64, len: u32) -> Result<Applied, i32> {
        let ended = self.one(&Request::Digest { offset, len }, Payload::none());
        assert!(ended.payload.is_none(), "the bytes of a digest leave the room");
        ended.result
    }

    /// What is read; none for zeros.
    fn read(&mut self, offset: u64, len: u32) -> Result<Option<Vec<u8>>, i32> {
        let ended = self.one(&Request::Read { offset, len }, Payload::none());
        let data = ended.payload.map(|buffer| {
            // SAFETY: the read has filled that many bytes.
            let data = unsafe { std::slice::from_raw_parts(buffer.as_ptr(), len as usize) }.to_vec();
            self.0.give(buffer);
            data
        });
        assert_eq!(ended.result == Ok(Applied::Done), data.is_some());
        ended.result.map(|_| data)
    }
}

fn unsafe_fill(buffer: &mut crate::io::buffer::Buffer, data: &[u8]) {
    assert!(data.len() <= buffer.capacity());
    // SAFETY: the buffer is ours and has room.
    unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), buffer.as_mut_ptr(), data.len()) };
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|index| (index / 512) as u8 ^ index as u8 ^ seed | 1).collect()
}

/// On a disk and in memory, with every engine that works here.
fn everywhere(test: impl Fn(&Fixture, Kind)) {
    let mut kinds = vec![Kind::Inline, Kind::Threads];
    if crate::io::uring::probe().is_ok() {
        kinds.push(Kind::Uring);
    }
    for parent in [None, Some("/dev/shm")] {
        for &kind in &kinds {
            test(&Fixture::new(parent), kind);
        }
    }
}

#[test]
fn what_is_written_is_read_back_and_lies_in_the_file() {
    everywhere(|fixture, kind| {
        let copy = fixture.open(kind);
        let mut hands = Hands(copy.executor(4).unwrap());
        let data = pattern(BUFFER_BYTES_MAX, 3);
        assert_eq!(hands.read(0, 4096), Ok(None), "a new copy is all zeros");
        assert_eq!(hands.write(512, &data, false, false), Ok(Applied::Done));
        assert_eq!(hands.write(4 << 20, &data[..512], true, false), Ok(Applied::Done));
        assert_eq!(hands.one(&Request::Flush, Payload::none()).result, Ok(Applied::Done));
        assert_eq!(hands.read(512, data.len() as u32).unwrap().unwrap(), data);
        assert_eq!(hands.read(4 << 20, 1024).unwrap().unwrap(), [&data[..512], &[0; 512]].concat());
        let mut stored = vec![0; data.len()];
        std::fs::File::open(fixture.dir.join("data")).unwrap().read_exact_at(&mut stored, 512).unwrap();
        assert_eq!(stored, data);
    });
}

#[test]
fn zeroed_ranges_read_as_zeros_however_the_file_can_do_it() {
    everywhere(|fixture, kind| {
        let copy = fixture.open(kind);
        let mut hands = Hands(copy.executor(4).unwrap());
        let data = pattern(BUFFER_BYTES_MAX, 9);
        for ruled_out in [None, Some(Zeroing::PunchHole), Some(Zeroing::ZeroRange)] {
            if let Some(method) = ruled_out {
                copy.zeroing.rule_out(method, copy.dir());
            }
            for start in (0..8 << 20).step_by(data.len()) {
                hands.write(start, &data, false, false).unwrap();
            }
            for (offset, len, durable) in [(512, 512, true), (4096, 8192, false), (65536 + 512, (6 << 20) + 512, true)]
            {
                assert_eq!(hands.zero(offset, len, durable), Ok(Applied::Done), "{ruled_out:?}");
                for start in (offset..offset + len).step_by(data.len()) {
                    let step = (offset + len - start).min(data.len() as u64);
                    assert_eq!(hands.read(start, step as u32), Ok(None), "{kind} {ruled_out:?} {start}");
                }
                assert_ne!(hands.read(offset - 512, 512), Ok(None), "{kind} {ruled_out:?}");
                assert_ne!(hands.read(offset + len, 512), Ok(None), "{kind} {ruled_out:?}");
            }
        }
    });
}

#[test]
fn sparse_writes_give_the_space_of_zeros_back() {
    everywhere(|fixture, kind| {
        let copy = fixture.open(kind);
        let mut hands = Hands(copy.executor(2).unwrap());
        let ones = pattern(BUFFER_BYTES_MAX, 1);
        hands.write(0, &ones, true, false).unwrap();
        let full = std::fs::metadata(fixture.dir.join("data")).unwrap().blocks();
        // Every second block is zeros: more pieces than the engine may have in flight.
        let mut data = ones.clone();
        data.chunks_mut(8192).for_each(|chunk| chunk[4096..].fill(0));
        assert_eq!(hands.write(0, &data, true, true), Ok(Applied::Done));
        assert_eq!(hands.read(0, data.len() as u32).unwrap().unwrap(), data);
        let sparse = std::fs::metadata(fixture.dir.join("data")).unwrap().blocks();
        assert!(sparse < full, "{kind}: {sparse} blocks of {full}");

        hands.write(0, &ones, true, false).unwrap();
        copy.zeroing.rule_out(Zeroing::ZeroRange, copy.dir());
        assert_eq!(hands.write(0, &data, false, true), Ok(Applied::Done));
        assert_eq!(hands.read(0, data.len() as u32).unwrap().unwrap(), data);
    });
}

#[test]
fn what_the_volume_cannot_have_touches_nothing() {
    everywhere(|fixture, kind| {
        let copy = fixture.open(kind);
        let mut hands = Hands(copy.executor(4).unwrap());
        for (offset, len) in [(SIZE_BYTES, 512), (SIZE_BYTES - 512, 1024), (256, 512), (0, 256), (u64::MAX - 511, 512)]
        {
            let data = vec![1; len as usize];
            assert_eq!(hands.write(offset, &data, false, false), Err(libc::EINVAL), "{offset} {len}");
            assert_eq!(hands.zero(offset, len, false), Err(libc::EINVAL));
            assert_eq!(hands.read(offset, len as u32), Err(libc::EINVAL));
        }
        assert_eq!(hands.zero(0, u64::MAX / 512 * 512, false), Err(libc::EINVAL));
        assert_eq!(hands.read(0, 2 * BUFFER_BYTES_MAX as u32), Err(libc::EINVAL));
        let short = hands.filled(&[1; 512]);
        let long = Request::Write { offset: 0, len: 8192, durable: false, sparse: false };
        assert_eq!(hands.one(&long, short).result, Err(libc::EINVAL));
        assert_eq!(hands.one(&Request::Ping, Payload::none()).result, Err(libc::EINVAL));
        assert_eq!(std::fs::metadata(fixture.dir.join("data")).unwrap().blocks(), 0);
    });
}

#[test]
fn more_requests_than_operations_and_buffers_all_end() {
    everywhere(|fixture, kind| {
        let copy = fixture.open(kind);
        let mut hands = Hands(copy.executor(2).unwrap());
        let data = pattern(BUFFER_BYTES_MAX, 5);
        hands.write(0, &data, false, false).unwrap();
        let len = BUFFER_BYTES_MAX as u32;
        let mut left: std::collections::BTreeSet<FlightId> = (0..200).map(FlightId).collect();
        for &id in &left {
            hands.0.apply(id, &Request::Read { offset: 0, len }, Payload::none());
        }
        let mut ended = Vec::new();
        while hands.0.in_flight() > 0 {
            hands.0.drive(&mut ended).unwrap();
            for ended in ended.drain(..) {
                assert_eq!(ended.result, Ok(Applied::Done));
                assert!(left.remove(&ended.flight));
                hands.0.give(ended.payload.unwrap());
            }
            if hands.0.in_flight() > 0 {
                hands.0.wait(&[]).unwrap();
            }
        }
        assert!(left.is_empty());
    });
}

#[test]
fn borrowed_memory_serves_writes_and_reads() {
    everywhere(|fixture, kind| {
        let copy = fixture.open(kind);
        let mut hands = Hands(copy.executor(2).unwrap());
        let mut own = BufferPool::new(BUFFER_BYTES_MAX).take(8192).unwrap();
        unsafe_fill(&mut own, &pattern(8192, 2));
        let memory = Segment::new(own.as_ptr(), 8192);
        let write = Request::Write { offset: 4096, len: 8192, durable: false, sparse: true };
        // SAFETY: `own` outlives the executor's use of it, and nobody else touches it.
        let ended = hands.one(&write, unsafe { Payload::borrowed(memory) });
        assert!(ended.result == Ok(Applied::Done) && ended.payload.is_none());
        unsafe_fill(&mut own, &[0; 8192]);
        // SAFETY: as above.
        let ended = hands.one(&Request::Read { offset: 4096, len: 8192 }, unsafe { Payload::borrowed(memory) });
        assert!(ended.result == Ok(Applied::Done) && ended.payload.is_none());
        // SAFETY: the read has filled it and is over.
        assert_eq!(unsafe { std::slice::from_raw_parts(own.as_ptr(), 8192) }, pattern(8192, 2));
    });
}

#[test]
fn after_a_failed_sync_nothing_is_called_durable_again() {
    everywhere(|fixture, kind| {
        let copy = fixture.open(kind);
        let mut hands = Hands(copy.executor(4).unwrap());
        hands.write(0, &pattern(512, 1), false, false).unwrap();
        copy.note_loss(Errno(libc::EIO));
        assert_eq!(hands.one(&Request::Flush, Payload::none()).result, Err(libc::EIO));
        assert_eq!(hands.write(0, &[2; 512], true, false), Err(libc::EIO));
        assert_eq!(hands.zero(0, 512, false), Err(libc::EIO));
        assert!(hands.read(0, 512).unwrap().is_some());
        assert!(copy.sync().is_err());
    });
}

#[test]
fn views_and_rows_are_there_at_the_next_opening() {
    let fixture = Fixture::new(None);
    let first = fixture.open(Kind::Inline);
    assert_eq!(first.replica().accepted(), ViewNumber::NONE);
    let row = Row { written: ViewNumber(4), intent: true };
    first.persist(&[(RegionIndex(2), row)], Some(&fixture.view(4))).unwrap();
    let low = Row { written: ViewNumber(4), intent: false };
    first.persist(&[(RegionIndex(0), low)], None).unwrap();
    assert!(first.persist(&[], Some(&fixture.view(3))).is_err(), "a lower view");
    let error = OpenCopy::open(&fixture.dir, None).err().unwrap();
    assert!(error.to_string().contains("in use"), "{error}");
    let incarnation = first.incarnation();
    drop(first);
    record_view(&fixture.dir, &fixture.view(3)).unwrap();
    let error = OpenCopy::open(&fixture.dir, None).err().unwrap();
    assert!(matches!(error, CopyError::ViewLost { .. }), "{error}");
    record_view(&fixture.dir, &fixture.view(4)).unwrap();

    let second = fixture.open(Kind::Inline);
    assert_ne!(second.incarnation(), incarnation);
    let replica = second.replica();
    assert_eq!(replica.accepted(), ViewNumber(4));
    assert_eq!(replica.rows(), [low, Row::default(), row, Row::default()]);
}

#[test]
fn a_view_that_was_recorded_before_a_crash_is_accepted_with_its_open_rows() {
    let fixture = Fixture::new(None);
    let rows = [
        (RegionIndex(1), Row { written: ViewNumber(4), intent: true }),
        (RegionIndex(2), Row { written: ViewNumber(3), intent: false }),
    ];
    fixture.open(Kind::Inline).persist(&rows, Some(&fixture.view(4))).unwrap();
    record_view(&fixture.dir, &fixture.view(6)).unwrap();
    let copy = fixture.open(Kind::Inline);
    assert_eq!(copy.replica().accepted(), ViewNumber(6));
    assert_eq!(copy.replica().rows()[1], Row { written: ViewNumber(6), intent: true });
    assert_eq!(copy.replica().rows()[2], rows[1].1);
    drop(copy);
    assert_eq!(RegionTable::peek_accepted(&fixture.dir, fixture.volume).unwrap(), 6);
}

#[test]
fn a_record_of_the_view_with_any_damage_is_refused() {
    let fixture = Fixture::new(None);
    fixture.open(Kind::Inline).persist(&[], Some(&fixture.view(4))).unwrap();
    let path = fixture.dir.join("view.json");
    let good = std::fs::read(&path).unwrap();
    // Such as a digit of its number, which would have every writer of a lower view refused.
    for position in 0..good.len() {
        let mut damaged = good.clone();
        damaged[position] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        let opened = recorded_view(&fixture.dir, fixture.volume);
        assert!(matches!(opened, Err(CopyError::ViewRecord { .. })), "byte {position}");
    }
    for other in [&b"{}"[..], &serde_json::to_vec(&fixture.view(4)).unwrap()] {
        std::fs::write(&path, other).unwrap();
        assert!(matches!(OpenCopy::open(&fixture.dir, None), Err(CopyError::ViewRecord { .. })));
    }
    std::fs::write(&path, &good).unwrap();
    fixture.open(Kind::Inline);
}

#[test]
fn a_copy_that_has_accepted_a_view_does_not_open_without_its_region_table() {
    let fixture = Fixture::new(None);
    fixture.open(Kind::Inline);
    let table = fixture.dir.join("regions");
    std::fs::remove_file(&table).unwrap();
    // Nothing was written to it by then.
    fixture.open(Kind::Inline).persist(&[], Some(&fixture.view(4))).unwrap();
    let kept = std::fs::read(&table).unwrap();
    std::fs::remove_file(&table).unwrap();
    let error = OpenCopy::open(&fixture.dir, None).err().unwrap();
    assert!(matches!(error, CopyError::Table(RegionTableError::Missing { .. })), "{error}");
    assert!(!table.exists(), "an empty one in its place would pass for a copy that has nothing");
    std::fs::write(&table, kept).unwrap();
    assert_eq!(fixture.open(Kind::Inline).replica().accepted(), ViewNumber(4));
}

#[test]
fn the_replica_is_driven_from_hello_to_a_durable_write() {
    let fixture = Fixture::new(None);
    let copy = fixture.open(Kind::Inline);
    let mut hands = Hands(copy.executor(4).unwrap());
    let view = fixture.view(1);
    let writer = view.writer.clone().unwrap();
    let hello = Hello { volume: fixture.volume, view: view.number, writer, session: 1, lane: 0, proof: None };
    copy.replica().hello(CONNECTION, &hello);
    assert!(matches!(copy.replica().take_actions()[..], [Action::Welcome(CONNECTION, _)]));

    let persist = |copy: &OpenCopy| {
        let actions = copy.replica().take_actions();
        let [Action::Persist { rows, view }] = &actions[..] else { panic!("{actions:?}") };
        copy.persist(rows, view.as_deref()).unwrap();
        copy.replica().persisted(true);
    };
    copy.replica().request(CONNECTION, view.number, 1, Request::Accept(Box::new(view.clone())));
    persist(&copy);
    copy.replica().take_actions();
    let write = Request::Write { offset: 4 << 20, len: 512, durable: true, sparse: false };
    copy.replica().request(CONNECTION, view.number, 2, write.clone());
    persist(&copy);
    let actions = copy.replica().take_actions();
    let [Action::Apply { connection: CONNECTION, id: 2, flight, request }] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(*request, write);
    let payload = hands.filled(&[1; 512]);
    let ended = hands.one(&write, payload);
    copy.replica().applied(*flight, ended.result);
    let actions = copy.replica().take_actions();
    assert_eq!(actions, [Action::Reply { connection: CONNECTION, id: 2, reply: Reply::Done }]);
    drop((hands, copy));
    let copy = fixture.open(Kind::Inline);
    assert_eq!(copy.replica().rows()[1], Row { written: ViewNumber(1), intent: true });
}

#[test]
fn equal_content_has_an_equal_digest_be_it_a_hole_or_zeros() {
    everywhere(|fixture, kind| {
        let copy = fixture.open(kind);
        let mut hands = Hands(copy.executor(8).unwrap());
        let digest = |bytes: &[u8]| Ok(Applied::Digest(Sha256::digest(bytes).into()));
        assert_eq!(hands.digest(0, 8192), digest(&[0; 8192]), "of a hole");
        let mut data = pattern(16384, 9);
        data[4096..12288].fill(0);
        for sparse in [true, false] {
            hands.write(0, &data, false, sparse).unwrap();
            assert_eq!(hands.digest(0, 16384), digest(&data), "sparse: {sparse}");
            assert_eq!(hands.digest(512, 4096), digest(&data[512..4608]), "of a part, sparse: {sparse}");
        }
        assert_eq!(hands.digest(0, 0), Err(libc::EINVAL));
        assert_eq!(hands.digest(SIZE_BYTES, 512), Err(libc::EINVAL));
        // More at once than there are buffers for wait for one another.
        for id in 0..200 {
            let request = Request::Digest { offset: 0, len: BUFFER_BYTES_MAX as u32 };
            hands.0.apply(FlightId(id), &request, Payload::none());
        }
        data.resize(BUFFER_BYTES_MAX, 0);
        let ended = hands.finish();
        assert_eq!(ended.len(), 200);
        assert!(ended.iter().all(|ended| ended.result == digest(&data) && ended.payload.is_none()));
    });
}
