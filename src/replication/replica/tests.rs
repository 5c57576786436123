use uuid::Uuid;

use super::*;
use crate::replication::view::{FailureMode, Member, MemberState, NodeName};

const LANE: ConnectionId = ConnectionId(1);
const OTHER_LANE: ConnectionId = ConnectionId(2);
const VIEW: ViewNumber = ViewNumber(1);

/// A copy that has accepted a view and welcomed two lanes, in which every region may be written.
struct Bench {
    replica: Replica,
}

impl Bench {
    fn new(write_behind: u64) -> Bench {
        let regions = Regions::of(64 << 20);
        let node: NodeName = "node-a".parse().unwrap();
        let view = View {
            volume: Uuid::nil(),
            number: VIEW,
            writer: Some(writer()),
            members: vec![Member {
                node,
                address: "node-a:1".into(),
                zone: None,
                state: MemberState::InSync(Incarnation(Uuid::nil())),
            }],
            writers: Vec::new(),
            failure_mode: FailureMode::Hard,
            lease_ms: 1000,
        };
        let rows = vec![Row { written: VIEW, intent: true }; regions.count() as usize];
        let mut replica = Replica::new(regions, Incarnation(Uuid::nil()), Some(&view), rows);
        replica.write_behind(write_behind);
        for (lane, connection) in (1..).zip([LANE, OTHER_LANE]) {
            replica.hello(connection, &hello(1, lane));
        }
        replica.take_actions();
        Bench { replica }
    }

    fn ask(&mut self, lane: ConnectionId, id: u64, request: Request) -> Told {
        self.replica.request(lane, VIEW, id, request);
        self.told()
    }

    fn done(&mut self, flight: FlightId) -> Told {
        self.replica.applied(flight, Ok(Applied::Done));
        self.told()
    }

    fn told(&mut self) -> Told {
        let mut told = Told::default();
        for action in self.replica.take_actions() {
            match action {
                Action::Apply { id, flight, .. } => told.applied.push((id, flight)),
                Action::Reply { id, reply, .. } => told.replied.push((id, reply)),
                Action::Welcome(connection, _) => told.welcomed.push(connection),
                _ => {}
            }
        }
        told
    }
}

/// What the replica wants.
#[derive(Debug, Default, PartialEq)]
struct Told {
    applied: Vec<(u64, FlightId)>,
    replied: Vec<(u64, Reply)>,
    welcomed: Vec<ConnectionId>,
}

impl Told {
    /// The only flight that begins.
    fn flight(&self) -> FlightId {
        assert_eq!(self.applied.len(), 1, "{self:?}");
        self.applied[0].1
    }

    fn is_nothing(&self) -> bool {
        *self == Told::default()
    }
}

fn writer() -> WriterId {
    WriterId { node: "node-a".parse().unwrap(), attachment: Uuid::nil() }
}

fn hello(session: u64, lane: u16) -> Hello {
    Hello { volume: Uuid::nil(), view: VIEW, writer: writer(), session, lane, proof: None }
}

fn write(offset: u64, durable: bool) -> Request {
    Request::Write { offset, len: 4096, durable, sparse: false }
}

fn read(offset: u64) -> Request {
    Request::Read { offset, len: 4096 }
}

const DONE: Reply = Reply::Done;
const ENOSPC: i32 = 28;
const PLENTY: u64 = 1 << 20;

#[test]
fn without_write_behind_a_write_is_answered_when_it_is_done() {
    let mut bench = Bench::new(0);
    let told = bench.ask(LANE, 7, write(0, false));
    assert_eq!(told.replied, []);
    assert_eq!(bench.done(told.flight()).replied, [(7, DONE)]);
}

#[test]
fn a_write_is_answered_when_the_disk_is_given_it_and_once() {
    let mut bench = Bench::new(PLENTY);
    let told = bench.ask(LANE, 7, write(0, false));
    assert_eq!(told.replied, [(7, DONE)]);
    assert!(bench.done(told.flight()).is_nothing());
}

#[test]
fn the_id_of_what_was_answered_is_free() {
    let mut bench = Bench::new(PLENTY);
    let first = bench.ask(LANE, 7, write(0, false)).flight();
    let second = bench.ask(LANE, 7, read(8192));
    assert!(bench.done(first).is_nothing());
    assert_eq!(bench.done(second.flight()).replied, [(7, Reply::Data)]);
}

#[test]
fn what_has_to_be_durable_is_answered_when_it_is() {
    let mut bench = Bench::new(PLENTY);
    let told = bench.ask(LANE, 7, write(0, true));
    assert_eq!(told.replied, []);
    assert_eq!(bench.done(told.flight()).replied, [(7, DONE)]);
}

#[test]
fn no_more_is_answered_than_fits() {
    let mut bench = Bench::new(8192);
    let first = bench.ask(LANE, 1, write(0, false));
    assert_eq!(first.replied.len() + bench.ask(OTHER_LANE, 1, write(4096, false)).replied.len(), 2);
    let third = bench.ask(LANE, 3, write(8192, false));
    assert_eq!((third.applied.len(), third.replied.len()), (1, 0), "it is begun and waits for the disk");
    bench.done(first.flight());
    assert_eq!(bench.ask(LANE, 4, write(12288, false)).replied.len(), 1, "there is room again");
}

#[test]
fn a_flush_begins_when_all_that_was_answered_before_it_is_done() {
    let mut bench = Bench::new(PLENTY);
    let one = bench.ask(LANE, 1, write(0, false)).flight();
    let other = bench.ask(OTHER_LANE, 1, write(4096, false)).flight();
    assert!(bench.ask(LANE, 2, Request::Flush).is_nothing());
    let later = bench.ask(LANE, 3, write(8192, false));
    assert_eq!(later.replied.len(), 1);
    assert!(bench.done(other).is_nothing());
    let flush = bench.done(one);
    assert_eq!(bench.done(flush.flight()).replied, [(2, DONE)], "what came after it is not waited for");
}

#[test]
fn what_meets_an_answered_write_waits_for_it() {
    for request in
        [read(0), Request::Digest { offset: 0, len: 512 }, Request::Zero { offset: 2048, len: 512, durable: false }]
    {
        let mut bench = Bench::new(PLENTY);
        let first = bench.ask(LANE, 1, write(0, false)).flight();
        assert!(bench.ask(OTHER_LANE, 5, request.clone()).is_nothing(), "{request:?}");
        assert_eq!(bench.ask(OTHER_LANE, 6, read(4096)).applied.len(), 1, "beside it there is nothing to wait for");
        assert_eq!(bench.done(first).applied[0].0, 5, "{request:?}");
    }
}

#[test]
fn writes_of_the_same_bytes_are_done_in_the_order_in_which_they_came() {
    let mut bench = Bench::new(PLENTY);
    let mut flight = bench.ask(LANE, 1, write(0, false)).flight();
    assert!(bench.ask(OTHER_LANE, 2, write(0, false)).is_nothing());
    assert!(bench.ask(LANE, 3, write(2048, false)).is_nothing());
    for id in 2..=3 {
        let told = bench.done(flight);
        assert_eq!(told.replied, [(id, DONE)]);
        flight = told.flight();
    }
    assert!(bench.done(flight).is_nothing());
}

#[test]
fn a_copy_that_cannot_do_what_it_has_answered_has_failed() {
    let mut bench = Bench::new(PLENTY);
    let flight = bench.ask(LANE, 1, write(0, false)).flight();
    bench.ask(LANE, 2, Request::Flush);
    bench.replica.applied(flight, Err(ENOSPC));
    assert_eq!(bench.told().replied, [(2, Reply::Failed(ENOSPC))]);
    assert!(bench.replica.has_failed());
    assert_eq!(bench.ask(OTHER_LANE, 1, read(1 << 20)).replied, [(1, Reply::Failed(ENOSPC))]);
}

#[test]
fn a_flush_that_was_not_begun_fails_no_copy() {
    let mut bench = Bench::new(0);
    for (errno, fails) in [(ECANCELED, false), (28, true)] {
        let flight = bench.ask(LANE, 1, Request::Flush).applied[0].1;
        bench.replica.applied(flight, Err(errno));
        assert_eq!(bench.told().replied, [(1, Reply::Failed(errno))]);
        assert_eq!(bench.replica.has_failed(), fails, "{errno}");
    }
}

#[test]
fn of_a_failure_the_writer_is_told_with_its_next_request() {
    let mut bench = Bench::new(PLENTY);
    let flight = bench.ask(LANE, 1, write(0, false)).flight();
    bench.replica.applied(flight, Err(ENOSPC));
    assert!(bench.told().is_nothing());
    assert!(bench.replica.has_failed());
    assert_eq!(bench.ask(OTHER_LANE, 1, Request::Ping).replied, [(1, Reply::Failed(ENOSPC))]);
}

#[test]
fn a_new_session_waits_for_what_the_old_one_was_answered() {
    let mut bench = Bench::new(PLENTY);
    let flight = bench.ask(LANE, 1, write(0, false)).flight();
    assert!(bench.ask(LANE, 2, write(0, false)).is_nothing());
    bench.replica.hello(ConnectionId(3), &hello(2, 1));
    assert_eq!(bench.told().welcomed, []);
    let told = bench.done(flight);
    assert_eq!((told.welcomed, told.applied), (vec![ConnectionId(3)], vec![]), "what had to wait is not done any more");
}
