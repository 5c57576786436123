use std::os::fd::BorrowedFd;
use std::sync::mpsc::channel;

use rustix::event::{PollFd, PollFlags, Timespec};
use tempfile::TempDir;
use uuid::Uuid;

use super::super::shared::{Shared, uptime};
use super::*;
use crate::io::{Completion, Engine, Operation};
use crate::replication::region::Regions;
use crate::replication::view::{FailureMode, Incarnation, Member, MemberIndex, MemberState, View, WriterId};
use crate::replication::writer::{BelowMin, ResyncRate, Settings, Time, Writer};
use crate::store::{SectorSize, Store, Superblock};

const VIEW: ViewNumber = ViewNumber(1);
const LANE: ConnectionId = ConnectionId(1);
const OTHER_LANE: ConnectionId = ConnectionId(2);

/// A lane with a connection to an open copy.
struct Bench {
    served: Arc<Served>,
    mailbox: Arc<Mailbox>,
    hands: LocalHands,
    memory: Memory,
    _folder: TempDir,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("copy");
        let volume = Uuid::new_v4();
        let superblock = Superblock::plain(volume, SIZE_BYTES, SectorSize::Bytes512).unwrap();
        drop(Store::create(&dir, &superblock, None).unwrap());
        let served = Arc::new(Served::new(OpenCopy::open(&dir, Some(Kind::Inline)).unwrap()));
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let mut hands = LocalHands::new(4);
        served.join(LANE, mailbox.clone());
        let welcomed = served.with_replica(LANE, |replica| replica.hello(LANE, &hello(volume, 1)));
        assert!(welcomed.iter().any(|action| matches!(action, Action::Welcome(LANE, _))), "{welcomed:?}");
        let accept = Request::Accept(Box::new(view(volume)));
        let asked = served.with_replica(LANE, |replica| replica.request(LANE, VIEW, 1, accept));
        carry_out(&served, asked);
        await_mail(&mailbox);
        assert_eq!(served.copy().replica().accepted(), VIEW);
        drop(mailbox.take());
        hands.joined(served.clone(), 1, LANE).unwrap();
        Bench { memory: memory(volume), served, mailbox, hands, _folder: folder }
    }

    fn disconnect(&mut self) {
        self.hands.disconnect(&self.mailbox, &mut self.memory);
    }

    /// The writer's next session is welcomed, if need be when the disk has done what the one before has asked.
    fn await_another_session(&self) {
        let mailbox = Arc::new(Mailbox::new().unwrap());
        self.served.join(OTHER_LANE, mailbox.clone());
        let hello = hello(self.served.copy().superblock().id, 2);
        let told = self.served.with_replica(NOBODY, |replica| replica.hello(OTHER_LANE, &hello));
        assert!(told.is_empty(), "{told:?}");
        await_mail(&mailbox);
        let told = mailbox.take();
        assert!(matches!(told[..], [Mail::Action(Action::Welcome(OTHER_LANE, _))]), "{told:?}");
    }
}

/// Until there is some.
fn await_mail(mailbox: &Mailbox) {
    let mut polled = [PollFd::new(mailbox, PollFlags::IN)];
    let time = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut polled, Some(&time)), Ok(1), "the replica waits for what nobody does");
}

fn hello(volume: Uuid, session: u64) -> Hello {
    Hello { volume, view: VIEW, writer: writer(), session, lane: 0, proof: None }
}

fn writer() -> WriterId {
    WriterId { node: "node-a".parse().unwrap(), attachment: Uuid::nil() }
}

fn view(volume: Uuid) -> View {
    View {
        volume,
        number: VIEW,
        writer: Some(writer()),
        members: vec![Member {
            node: "node-a".parse().unwrap(),
            address: "node-a:1".to_owned(),
            zone: None,
            state: MemberState::InSync(Incarnation(Uuid::nil())),
        }],
        failure_mode: FailureMode::Hard,
        lease_ms: 1000,
        writers: Vec::new(),
    }
}

fn memory(volume: Uuid) -> Memory {
    let settings = Settings {
        peer_timeout_us: 1_000_000,
        ping_interval_us: 200_000,
        below_min: BelowMin::Suspend,
        store_retry_us: 50_000,
        settle_interval_us: 1_000_000,
        open_regions_max: 10,
        retained_bytes_max: 1 << 20,
        copy_chunk_bytes: 1 << 16,
        copies_in_flight_max: 1,
        verify_block_bytes: 4096,
        resync_rate: ResyncRate::UNBOUNDED,
    };
    let writer = Writer::attach(writer(), None, Regions::of(SIZE_BYTES), settings, view(volume), Time(0)).unwrap();
    Memory::new(Arc::new(Shared::new(uptime(), writer, None, 1, channel().0, channel().0).unwrap()), 1)
}

#[test]
fn a_lane_that_lets_the_copy_go_leaves_nothing_undone() {
    let mut bench = Bench::new();
    // It waits for the row of its region, which another lane makes durable.
    let zero = Request::Zero { offset: 0, len: 4096, durable: false };
    let row = bench.served.with_replica(LANE, |replica| replica.request(LANE, VIEW, 2, zero));
    assert!(matches!(row[..], [Action::Persist { .. }]), "{row:?}");
    bench.disconnect();
    carry_out(&bench.served, row);
    bench.await_another_session();
}

#[test]
fn what_a_lane_was_asked_for_just_before_it_lets_the_copy_go_is_answered() {
    let mut bench = Bench::new();
    let zero = Request::Zero { offset: 0, len: 4096, durable: false };
    let row = bench.served.with_replica(LANE, |replica| replica.request(LANE, VIEW, 2, zero));
    carry_out(&bench.served, row);
    await_mail(&bench.mailbox);
    bench.disconnect();
    bench.await_another_session();
    // Nothing is left that would wake the lane for ever.
    bench.hands.work(&bench.mailbox, &mut bench.memory, &mut Vec::new(), &mut Vec::new()).unwrap();
    assert_eq!(bench.mailbox.take().len(), 0);
}

#[test]
fn a_lane_that_is_gone_has_told_the_replica_how_everything_ended() {
    let Bench { served, mailbox, mut hands, mut memory, .. } = Bench::new();
    let flush = Outgoing { member: MemberIndex(0), id: 1, view: VIEW, request: Request::Flush, payload: Payload::None };
    hands.send(flush);
    hands.ask(&served, &mut memory);
    assert_eq!(hands.applying.len(), 1, "the disk is busy with it");
    drop(hands);
    drop(mailbox);
    served.with_replica(NOBODY, |replica| replica.closed(LANE));
    let hello = hello(served.copy().superblock().id, 2);
    let told = served.with_replica(OTHER_LANE, |replica| replica.hello(OTHER_LANE, &hello));
    assert!(told.iter().any(|action| matches!(action, Action::Welcome(OTHER_LANE, _))), "{told:?}");
}

/// An engine that fails when it has something to do.
struct Broken(usize);

impl Engine for Broken {
    unsafe fn submit(&mut self, _: Operation, _: &[Segment], _: u64) {
        self.0 += 1;
    }

    fn drive(&mut self, _: &mut Vec<Completion>) -> io::Result<()> {
        if self.0 > 0 { Err(io::Error::other("broken")) } else { Ok(()) }
    }

    fn in_flight(&self) -> usize {
        self.0
    }

    fn wait(&mut self, _: &[BorrowedFd<'_>]) -> io::Result<()> {
        Err(io::Error::other("broken"))
    }
}

#[test]
fn a_lane_whose_engine_fails_gives_the_session_up_and_can_begin_another() {
    let mut bench = Bench::new();
    bench.hands.executor = bench.hands.executor.take().map(|executor| executor.with_engine(Box::new(Broken(0))));
    let outgoing = |id, request| Outgoing { member: MemberIndex(0), id, view: VIEW, request, payload: Payload::None };
    let work = |bench: &mut Bench| {
        let mut replies = Vec::new();
        let worked = bench.hands.work(&bench.mailbox, &mut bench.memory, &mut replies, &mut Vec::new());
        (worked.is_ok(), replies)
    };
    bench.hands.send(outgoing(2, Request::Zero { offset: 0, len: 4096, durable: false }));
    assert_eq!(work(&mut bench), (true, Vec::new()), "its row comes first");
    await_mail(&bench.mailbox);
    assert_eq!(work(&mut bench), (false, Vec::new()));
    bench.hands.give_up(&bench.mailbox, &mut bench.memory);
    bench.await_another_session();
    bench.hands.joined(bench.served.clone(), 2, OTHER_LANE).unwrap();
    bench.served.join(OTHER_LANE, bench.mailbox.clone());
    bench.hands.send(outgoing(2, Request::Zero { offset: 0, len: 4096, durable: false }));
    assert_eq!(work(&mut bench), (true, vec![(2, Reply::Done)]));
}

const SIZE_BYTES: u64 = 1 << 20;
