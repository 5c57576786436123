//! The writer's rules one by one, among copies that do at once what they are asked unless a test says otherwise.

mod reading;
mod verify;

use uuid::Uuid;

use super::*;
use crate::replication::message::Welcome;
use crate::replication::view::{FailureMode, Incarnation, MEMBERS_MAX, Member, MemberState};

const REGION_BYTES: u64 = 4096;
const LEASE_MS: u32 = 2_000;
const TIMEOUT_US: u64 = 1_000_000;
const SETTLE_US: u64 = 300_000;

/// What is wrong with a block of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    Differs(u8),
    Unreadable,
}

fn within(at: u64, (offset, len): (u64, u64)) -> bool {
    (offset..offset + len).contains(&at)
}

/// A writer, and copies that are told apart by what they hold back.
struct Bench {
    writer: Writer,
    now: u64,
    sessions: Vec<u64>,
    lives: Vec<u128>,
    rows: Vec<Row>,
    /// What the copies' tables say that differ from that.
    other_rows: BTreeMap<u8, Vec<Row>>,
    /// Copies that cannot be reached.
    deaf: Vec<u8>,
    /// Whether lanes stand still.
    blind: bool,
    /// Whether the store answers.
    stores: bool,
    /// Which requests are not answered.
    held: fn(&Request) -> bool,
    held_back: Vec<(MemberIndex, u64)>,
    failing: fn(&Request) -> bool,
    /// Copies that are wrong in these blocks until those are written, or cannot be read there.
    wrong: Vec<(u8, u64, Wrong)>,
    seen: Vec<Action>,
}

impl Bench {
    /// A claim on a volume of four regions is stored, whose view knows every copy in life 1.
    fn claim(lives: &[u128], intents: bool) -> Self {
        Self::claim_in_mode(lives, intents, FailureMode::AlwaysOn)
    }

    fn claim_in_mode(lives: &[u128], intents: bool, failure_mode: FailureMode) -> Self {
        Self::claim_with(None, lives, intents, failure_mode)
    }

    /// The same by a process that has the copy of a member.
    fn claim_with(local: Option<MemberIndex>, lives: &[u128], intents: bool, failure_mode: FailureMode) -> Self {
        let members = (0..lives.len()).map(|index| Member {
            node: format!("node-{index}").parse().unwrap(),
            address: "node.example:7420".to_owned(),
            zone: None,
            state: MemberState::InSync(Incarnation(Uuid::from_u128(1))),
        });
        let view = View {
            volume: Uuid::nil(),
            number: ViewNumber(1),
            writer: None,
            members: members.collect(),
            failure_mode,
            lease_ms: LEASE_MS,
            writers: Vec::new(),
        };
        let settings = Settings {
            peer_timeout_us: TIMEOUT_US,
            ping_interval_us: 200_000,
            below_min: BelowMin::Suspend,
            store_retry_us: 50_000,
            settle_interval_us: SETTLE_US,
            open_regions_max: 10,
            retained_bytes_max: 1 << 20,
            copy_chunk_bytes: REGION_BYTES as u32,
            copies_in_flight_max: 1,
            verify_block_bytes: 512,
            resync_rate: ResyncRate::UNBOUNDED,
        };
        let me = WriterId { node: "host".parse().unwrap(), attachment: Uuid::nil() };
        let regions = Regions::with_region_bytes(4 * REGION_BYTES, REGION_BYTES);
        let writer = Writer::attach(me, local, regions, settings, view, Time(0)).unwrap();
        Self {
            writer,
            now: 0,
            sessions: vec![0; lives.len()],
            lives: lives.to_vec(),
            rows: vec![Row { written: ViewNumber(1), intent: intents }; 4],
            other_rows: BTreeMap::new(),
            deaf: Vec::new(),
            blind: false,
            stores: true,
            held: |_| false,
            held_back: Vec::new(),
            failing: |_| false,
            wrong: Vec::new(),
            seen: Vec::new(),
        }
    }

    fn serving(lives: &[u128], intents: bool) -> Self {
        let mut bench = Self::claim(lives, intents);
        bench.run();
        assert!(bench.find(|action| *action == Action::Serve).is_some());
        bench
    }

    /// Does what there is to do until there is nothing more.
    fn run(&mut self) {
        loop {
            let actions = self.writer.take_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                self.seen.push(action.clone());
                self.act(action);
            }
        }
    }

    fn act(&mut self, action: Action) {
        let now = Time(self.now);
        match action {
            Action::Look { lane } if !self.blind => self.writer.looked(now, lane),
            Action::Swap { .. } if self.stores => self.writer.swapped(now, Swapped::Stored),
            Action::Connect { member, session, .. } => {
                self.sessions[usize::from(member.0)] = session;
                if !self.deaf.contains(&member.0) {
                    let incarnation = Incarnation(Uuid::from_u128(self.lives[usize::from(member.0)]));
                    let welcome = Welcome { incarnation, accepted: ViewNumber::NONE };
                    self.writer.connected(now, member, session, welcome);
                }
            }
            Action::Send { member, id, request, .. } if !self.deaf.contains(&member.0) => {
                if (self.held)(&request) {
                    self.held_back.push((member, id));
                    return;
                }
                let range = match request {
                    Request::Write { offset, len, .. } | Request::Read { offset, len } => (offset, u64::from(len)),
                    Request::Digest { offset, len } => (offset, u64::from(len)),
                    _ => (0, 0),
                };
                let reply = match request {
                    _ if (self.failing)(&request) => Reply::Failed(5),
                    Request::Read { .. } | Request::Digest { .. }
                        if self.is_wrong(member, range, |wrong| *wrong == Wrong::Unreadable) =>
                    {
                        Reply::Failed(5)
                    }
                    Request::Read { .. } => Reply::Data,
                    Request::Digest { .. } => Reply::DigestOf(self.digest(member, range)),
                    Request::Write { .. } => {
                        self.wrong.retain(|(other, at, _)| !(*other == member.0 && within(*at, range)));
                        Reply::Done
                    }
                    Request::Rows { .. } => Reply::Rows(self.other_rows.get(&member.0).unwrap_or(&self.rows).clone()),
                    _ => Reply::Done,
                };
                self.reply(member, id, reply);
            }
            _ => {}
        }
    }

    fn is_wrong(&self, member: MemberIndex, range: (u64, u64), how: impl Fn(&Wrong) -> bool) -> bool {
        self.wrong.iter().any(|(other, at, wrong)| *other == member.0 && within(*at, range) && how(wrong))
    }

    fn digest(&self, member: MemberIndex, range: (u64, u64)) -> [u8; 32] {
        let mut digest = [0; 32];
        for (other, at, wrong) in &self.wrong {
            if let Wrong::Differs(byte) = wrong
                && *other == member.0
                && within(*at, range)
            {
                digest[(*at / 512 % 32) as usize] = *byte;
            }
        }
        digest
    }

    fn reply(&mut self, member: MemberIndex, id: u64, reply: Reply) {
        let session = self.sessions[usize::from(member.0)];
        self.writer.replied(Time(self.now), member, session, id, reply);
    }

    /// What was held back is answered.
    fn answer(&mut self) {
        self.held = |_| false;
        for (member, id) in std::mem::take(&mut self.held_back) {
            self.reply(member, id, Reply::Done);
        }
        self.run();
    }

    fn pass(&mut self, us: u64) {
        let end = self.now + us;
        while self.now < end {
            self.now += 10_000;
            self.writer.tick(Time(self.now));
            self.run();
        }
    }

    fn submit(&mut self, token: u64, operation: Operation) {
        self.writer.submit(Time(self.now), Lane(1), token, operation);
        self.run();
    }

    fn write(&mut self, token: u64, region: u64) {
        self.submit(token, Operation::Write { offset: region * REGION_BYTES, len: 512, durable: false });
    }

    /// A copy ends its session and comes back in another life.
    fn restart(&mut self, member: u8, life: u128) {
        self.lives[usize::from(member)] = life;
        let session = self.sessions[usize::from(member)];
        self.writer.disconnected(Time(self.now), MemberIndex(member), session, None);
        self.pass(100_000);
    }

    fn find(&self, wanted: impl Fn(&Action) -> bool) -> Option<usize> {
        self.seen.iter().position(wanted)
    }

    fn ended(&self, of: u64) -> Option<Result<(), i32>> {
        self.seen.iter().find_map(|action| match action {
            Action::Complete { token, result, .. } if *token == of => Some(*result),
            _ => None,
        })
    }

    /// Whether a request of the guest was sent.
    fn sent(&self, of: u64) -> bool {
        self.find(|action| matches!(action, Action::Send { payload: Payload::Guest { token, .. }, .. } if *token == of))
            .is_some()
    }

    /// The states of the copies in the views that were stored, in order; a life by its number.
    fn swaps(&self) -> Vec<Vec<u128>> {
        let life = |member: &Member| match member.state {
            MemberState::InSync(incarnation) => incarnation.0.as_u128(),
            MemberState::Behind => BEHIND,
            MemberState::Added => ADDED,
            MemberState::Retired => RETIRED,
        };
        let next = self.seen.iter().filter_map(|action| match action {
            Action::Swap { next, .. } => Some(next.members.iter().map(life).collect()),
            _ => None,
        });
        next.collect()
    }
}

const BEHIND: u128 = 0;
const ADDED: u128 = 1000;
const RETIRED: u128 = 2000;

mod members;

#[test]
fn a_copy_that_restarted_leaves_before_the_guest_is_served() {
    let bench = Bench::serving(&[1, 2], true);
    assert_eq!(bench.swaps()[..2], [[1, 1], [1, BEHIND]]);
    let left = bench.find(|action| matches!(action, Action::Adopted(view) if view.in_sync().count() == 1));
    assert!(left < bench.find(|action| *action == Action::Serve));
}

#[test]
fn where_all_restarted_all_stay_and_are_recorded_before_the_guest_is_served() {
    let bench = Bench::serving(&[2, 3], true);
    assert_eq!(bench.swaps()[..2], [[1, 1], [2, 3]]);
    assert!(bench.find(|action| matches!(action, Action::Adopted(_))) < bench.find(|action| *action == Action::Serve));
}

#[test]
fn where_all_is_settled_a_copy_that_restarted_has_lost_nothing() {
    let bench = Bench::serving(&[1, 2], false);
    assert_eq!(bench.swaps(), [[1, 1], [1, 2]]);
}

#[test]
fn a_copy_that_does_not_answer_leaves_when_the_lease_is_out() {
    let mut bench = Bench::claim(&[1, 1], false);
    bench.deaf = vec![1];
    bench.run();
    let lease_us = u64::from(LEASE_MS) * 1000;
    bench.pass(lease_us);
    assert_eq!(bench.swaps(), [[1, 1]], "the lease may last");
    bench.pass(lease_us / 4);
    assert_eq!(bench.swaps(), [[1, 1], [1, BEHIND]]);
    assert!(bench.find(|action| *action == Action::Serve).is_some());
}

#[test]
fn a_copy_that_is_slow_to_accept_leaves_no_earlier() {
    let mut bench = Bench::claim(&[1, 1], false);
    bench.held = |request| matches!(request, Request::Accept(_));
    bench.run();
    let (first, id) = bench.held_back[0];
    bench.reply(first, id, Reply::Done);
    bench.run();
    let lease_us = u64::from(LEASE_MS) * 1000;
    bench.pass(lease_us);
    assert_eq!(bench.swaps(), [[1, 1]], "the lease may last");
    bench.pass(lease_us / 4);
    assert_eq!(bench.swaps(), [[1, 1], [1, BEHIND]]);
}

#[test]
fn the_guest_sees_a_region_when_every_copy_of_the_view_has_it() {
    let mut bench = Bench::claim(&[1, 1], true);
    bench.held = |request| matches!(request, Request::Write { .. });
    bench.run();
    bench.submit(7, Operation::Read { offset: 0, len: 512 });
    assert!(!bench.held_back.is_empty());
    assert!(
        bench
            .seen
            .iter()
            .all(|action| { !matches!(action, Action::Send { request: Request::Write { durable: false, .. }, .. }) })
    );
    bench.stores = false;
    bench.pass(TIMEOUT_US + 200_000);
    assert!(bench.find(|action| matches!(action, Action::Lost(MemberIndex(1), Loss::Slow))).is_some());
    assert!(!bench.sent(7), "the view still calls the other copy in sync");
    bench.stores = true;
    bench.held = |_| false;
    bench.writer.swapped(Time(bench.now), Swapped::Stored);
    bench.run();
    assert_eq!(bench.ended(7), Some(Ok(())));
}

#[test]
fn a_copy_whose_answer_nobody_has_looked_for_is_not_late() {
    let mut bench = Bench::serving(&[1, 1], false);
    bench.pass(SETTLE_US * 4);
    bench.held = |_| true;
    bench.write(1, 0);
    bench.blind = true;
    bench.pass(TIMEOUT_US * 3);
    assert_eq!(bench.find(|action| matches!(action, Action::Lost(..))), None);
    let looks = |bench: &Bench| bench.seen.iter().filter(|action| matches!(action, Action::Look { .. })).count();
    assert!(looks(&bench) <= 2, "no lane is asked twice at once: {}", looks(&bench));
    // The answers had come.
    bench.blind = false;
    bench.answer();
    bench.writer.looked(Time(bench.now), Lane(1));
    bench.writer.looked(Time(bench.now), Lane::CONTROL);
    bench.pass(TIMEOUT_US);
    assert_eq!(bench.find(|action| matches!(action, Action::Lost(..))), None);
    assert_eq!(bench.ended(1), Some(Ok(())));
    // What has not come when its lane has looked is late.
    bench.held = |request| matches!(request, Request::Write { .. });
    bench.write(2, 0);
    bench.blind = true;
    bench.pass(TIMEOUT_US * 2);
    assert_eq!(bench.find(|action| matches!(action, Action::Lost(..))), None);
    let (first, id) = bench.held_back[0];
    bench.reply(first, id, Reply::Done);
    bench.writer.looked(Time(bench.now), Lane(1));
    bench.run();
    assert!(bench.find(|action| matches!(action, Action::Lost(MemberIndex(1), Loss::Slow))).is_some());
    assert_eq!(bench.find(|action| matches!(action, Action::Lost(MemberIndex(0), _))), None);
}

#[test]
fn an_answer_of_a_session_that_is_over_ends_nothing() {
    let mut bench = Bench::serving(&[1, 1], false);
    bench.held = |request| matches!(request, Request::Write { .. } | Request::Flush);
    bench.write(1, 0);
    let (member, id) = bench.held_back[0];
    let session = bench.sessions[usize::from(member.0)];
    bench.writer.disconnected(Time(bench.now), member, session, None);
    // A lane had it taken from its socket already.
    bench.reply(member, id, Reply::Done);
    bench.run();
    let asked = bench.held_back.len();
    bench.pass(500_000);
    assert!(bench.held_back[asked..].contains(&(member, id)), "it is asked again");
    assert_eq!(bench.ended(1), None);
    bench.answer();
    assert_eq!(bench.ended(1), Some(Ok(())));
}

#[test]
fn nothing_is_acknowledged_in_a_life_that_the_view_does_not_know() {
    let mut bench = Bench::serving(&[1], false);
    bench.write(1, 0);
    assert_eq!(bench.ended(1), Some(Ok(())));
    bench.stores = false;
    bench.restart(0, 2);
    let replays = |action: &Action| matches!(action, Action::Send { payload: Payload::Retained { .. }, .. });
    assert!(bench.find(replays).is_some());
    bench.write(2, 1);
    assert!(bench.sent(2) && bench.ended(2).is_none());
    bench.writer.swapped(Time(bench.now), Swapped::Stored);
    bench.run();
    assert_eq!(bench.swaps().last(), Some(&vec![2]));
    assert_eq!(bench.ended(2), Some(Ok(())));
}

#[test]
fn a_copy_that_has_accepted_a_view_is_pinged_in_that_view() {
    let mut bench = Bench::serving(&[1, 1, 1], false);
    bench.held = |request| matches!(request, Request::Accept(_));
    bench.restart(2, 2);
    let (first, id) = bench.held_back.remove(0);
    bench.reply(first, id, Reply::Done);
    bench.seen.clear();
    bench.pass(TIMEOUT_US / 2);
    let pings = bench.seen.iter().filter_map(|action| match action {
        Action::Send { member, view, request: Request::Ping, .. } if *member == first => Some(*view),
        _ => None,
    });
    let pings: Vec<_> = pings.collect();
    assert!(!pings.is_empty());
    assert!(pings.iter().all(|&view| view == bench.writer.view().number.next()), "{pings:?}");
}

#[test]
fn a_copy_that_restarts_while_a_view_is_announced_is_revived_in_that_view() {
    let mut bench = Bench::serving(&[1, 1, 1], false);
    bench.write(1, 0);
    bench.held = |request| matches!(request, Request::Accept(_));
    bench.restart(2, 2);
    bench.seen.clear();
    bench.restart(1, 2);
    let replays = |action: &Action| matches!(action, Action::Send { payload: Payload::Retained { .. }, .. });
    assert_eq!(bench.find(replays), None);
    bench.answer();
    bench.pass(TIMEOUT_US);
    let replayed = bench.find(replays);
    let adopted = bench.find(|action| matches!(action, Action::Adopted(_)));
    assert!(replayed.is_some() && adopted < replayed);
    assert_eq!(bench.writer.view().in_sync().count(), 3);
    assert!(!bench.writer.is_stopped());
}

#[test]
fn no_write_begins_in_a_region_that_copies_are_told_to_settle() {
    let mut bench = Bench::serving(&[1, 1], false);
    bench.write(1, 0);
    bench.held = |request| matches!(request, Request::Settle(_));
    bench.pass(SETTLE_US * 2);
    assert_eq!(bench.held_back.len(), 2);
    bench.write(2, 0);
    bench.write(3, 1);
    assert!(!bench.sent(2), "its intent could be taken for settled");
    assert_eq!(bench.ended(3), Some(Ok(())));
    bench.answer();
    assert_eq!(bench.ended(2), Some(Ok(())));
}

#[test]
fn what_a_copy_has_flushed_in_another_life_settles_nothing() {
    let mut bench = Bench::serving(&[1, 1], false);
    bench.write(1, 0);
    bench.held = |request| *request == Request::Flush;
    bench.pass(SETTLE_US * 2);
    let (first, id) = bench.held_back.remove(0);
    bench.reply(first, id, Reply::Done);
    bench.restart(first.0, 2);
    bench.answer();
    let settles = |action: &Action| matches!(action, Action::Send { request: Request::Settle(_), .. });
    assert_eq!(bench.find(settles), None);
    bench.pass(SETTLE_US * 2);
    assert!(bench.find(settles).is_some());
}

#[test]
fn a_write_that_failed_is_kept_as_it_may_have_been_seen() {
    let mut bench = Bench::serving(&[1], false);
    bench.failing = |request| matches!(request, Request::Write { .. });
    bench.write(1, 0);
    assert_eq!(bench.ended(1), Some(Err(5)));
    assert!(bench.find(|action| matches!(action, Action::Retain { token: 1, .. })).is_some());
    bench.failing = |_| false;
    bench.restart(0, 2);
    let replay = Payload::Retained { entry: 0, skip: 0 };
    assert!(bench.find(|action| matches!(action, Action::Send { payload, .. } if *payload == replay)).is_some());
}

#[test]
fn the_last_copy_is_opened_anew_when_it_has_failed() {
    for has_written in [false, true] {
        let mut bench = Bench::serving(&[1], false);
        if has_written {
            bench.write(1, 0);
        }
        bench.failing = |_| true;
        bench.seen.clear();
        // By a ping, or by the flush after a write.
        bench.pass(SETTLE_US * 2);
        assert!(bench.find(|action| matches!(action, Action::Connect { .. })).is_some(), "{has_written}");
        bench.failing = |_| false;
        bench.restart(0, 2);
        bench.pass(TIMEOUT_US);
        bench.write(2, 1);
        assert_eq!(bench.ended(2), Some(Ok(())));
    }
}

#[test]
fn a_copy_that_fails_again_and_again_is_tried_less_and_less_often() {
    let mut bench = Bench::serving(&[1, 1], false);
    let fails_from = |bench: &mut Bench, life: u128| {
        bench.failing = |request| matches!(request, Request::Write { sparse: true, .. });
        bench.deaf = vec![1];
        bench.restart(1, life);
        bench.write(life as u64, 0);
        bench.deaf.clear();
        bench.seen.clear();
    };
    fails_from(&mut bench, 2);
    bench.pass(240_000_000);
    let tries = |bench: &Bench| {
        let is_try = |action: &&Action| matches!(action, Action::Connect { member: MemberIndex(1), .. });
        bench.seen.iter().filter(is_try).count()
    };
    assert!((7..=11).contains(&tries(&bench)), "{} tries in four minutes", tries(&bench));
    assert!(bench.swaps().len() <= 11, "each try changes the view: {}", bench.swaps().len());

    // Well again, it is not kept waiting longer than that; and what was is forgotten.
    bench.failing = |_| false;
    bench.pass(62_000_000);
    assert_eq!(bench.writer.standing(MemberIndex(1)), Standing::InSync);
    fails_from(&mut bench, 3);
    bench.pass(12_000_000);
    assert!(tries(&bench) >= 3, "{} tries in twelve seconds", tries(&bench));
}
