//! Comparing the copies while the guest runs, and healing those that are wrong.
//!
//! A **round** goes over the volume a piece at a time and asks every copy in sync for the digest of what it stores
//! there. Each piece holds its range like a write: nothing is in flight in it, so that copies in sync must have equal
//! bytes. Where they do not, or where one cannot be read, the piece is cut into parts, down to blocks, and what is
//! wrong with a block is a [`Finding`].
//!
//! A block is **healed** from a copy that is right, onto those that are wrong, and compared once more. Right is what
//! more than half of those say that can be read, or the copy that the caller trusts; where nobody is right nothing is
//! changed. There is no key here, and no checksum: that several copies agree is all that can be known.
//!
//! A copy that fails a read is noted, and what it could not read is looked at in the same way: who reads on gets the
//! bytes from another copy, and blocks that cannot be read are written again from one that can. A copy that fails
//! that too is lost, as for any write that fails.
//!
//! The guest goes first: a round has a pace of its own, waits for what is in flight, and begins nothing while a
//! copy is away or the view changes.

use std::collections::{BTreeMap, VecDeque};

use super::verdict::weigh;
use super::{Action, Lane, Link, Loss, MemberSet, Pace, Payload, Phase, Purpose, ResyncRate, Time, Writer};
use super::{Finding, NoRound, Outcome, Repair, Round, RoundPlan};
use crate::replication::message::{Digest, Reply, Request};
use crate::replication::view::MemberIndex;

/// Everything about looking at copies.
#[derive(Debug, Default)]
pub(super) struct Verification {
    round: Option<UnderWay>,
    rounds: u64,
    checks: BTreeMap<u64, Check>,
    /// Ranges to look at before the round goes on, the last one first.
    todo: Vec<Todo>,
    /// The range that the next check waits for, which nobody else may begin with.
    wanted: Option<(u64, u64)>,
    /// What copies could not read.
    unreadable: BTreeMap<u64, Unreadable>,
    next_unreadable: u64,
    /// What was looked at in vain: who could not read which bytes, and when that was.
    in_vain: VecDeque<(MemberSet, u64, u64, Time)>,
}

#[derive(Debug)]
struct UnderWay {
    plan: RoundPlan,
    pace: Pace,
    /// The next byte that no piece was made for.
    next: u64,
    so_far: Round,
}

/// A range that a copy could not read.
#[derive(Debug)]
struct Unreadable {
    member: MemberIndex,
    offset: u64,
    len: u64,
    /// Parts of it that have not been looked at.
    parts: usize,
}

/// A range to look at.
#[derive(Clone, Copy, Debug)]
struct Todo {
    offset: u64,
    len: u64,
    why: Why,
    /// How many times it was healed, or tried to be.
    tries: u8,
    /// What was found there first, and has been written again since.
    healing: Option<Finding>,
    /// Nothing else is looked at meanwhile.
    alone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Round(u64),
    /// By the number of what a copy could not read.
    Unreadable(u64),
}

/// A range that is being looked at.
#[derive(Debug)]
struct Check {
    todo: Todo,
    state: State,
    answers: Vec<(MemberIndex, Option<Digest>)>,
    /// Its range is not held any more, and its answers say nothing.
    is_void: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Those have not answered.
    Asking(MemberSet),
    /// What is right is being read from a copy, for those that are wrong.
    Reading { source: MemberIndex, wrong: MemberSet, finding: Finding },
    /// And written to these.
    Writing(MemberSet, Finding),
}

impl Writer {
    /// Begins a round; what comes of it are [`Action::Found`] and [`Action::RoundEnded`]. Gives back its number.
    ///
    /// # Errors
    ///
    /// [`NoRound`] says why there can be none now.
    pub fn verify(&mut self, now: Time, plan: RoundPlan) -> Result<u64, NoRound> {
        if !self.enter(now) || self.phase != Phase::Serving {
            return Err(NoRound::NotServed);
        }
        if self.verification.round.is_some() {
            return Err(NoRound::Busy);
        }
        if matches!(plan.repair, Repair::Trust(member) if !self.remaining().contains(member)) {
            return Err(NoRound::NotInSync);
        }
        self.verification.rounds += 1;
        let number = self.verification.rounds;
        let so_far = Round { number, position: plan.from, compared: BTreeMap::new(), healed_bytes: 0, left_bytes: 0 };
        // A guest that never rests must not keep it from ending.
        let rate = ResyncRate { min: plan.rate / SLOWEST_DIVISOR, max: plan.rate };
        let rate = if plan.rate == u64::MAX { ResyncRate::UNBOUNDED } else { rate };
        let pace = Pace::new(rate, self.now);
        self.verification.round = Some(UnderWay { plan, pace, next: plan.from, so_far });
        self.settle_down();
        Ok(number)
    }

    /// Gives a round up. What it is healing is healed all the same.
    pub fn end_verify(&mut self, now: Time, number: u64) {
        if !self.enter(now) || self.verification.round.as_ref().is_none_or(|round| round.so_far.number != number) {
            return;
        }
        self.verification.round = None;
        self.unwant_check();
        self.verification.todo.retain(|todo| todo.why != Why::Round(number) || todo.healing.is_some());
        let asking: Vec<u64> = self.checks_asking(|check| check.todo.why == Why::Round(number));
        for check in asking {
            self.void(check);
        }
        self.settle_down();
    }

    /// A piece of a round; where one begins is a multiple of this.
    pub fn piece_bytes(&self) -> u64 {
        self.settings.copy_chunk_bytes.into()
    }

    /// The round under way, as far as it is.
    pub fn round(&self) -> Option<Round> {
        let round = self.verification.round.as_ref()?;
        Some(Round { position: self.position(round), ..round.so_far.clone() })
    }

    /// Whether the bytes of this copy are on their way because a copy is wrong or could not read them: for a look
    /// from outside.
    pub fn is_healing(&self, copy: u64) -> bool {
        self.verification.checks.contains_key(&copy)
    }

    /// Whether anything is being looked at just now.
    pub fn is_checking(&self) -> bool {
        !self.verification.checks.is_empty()
    }

    fn position(&self, round: &UnderWay) -> u64 {
        let mine = Why::Round(round.so_far.number);
        let checks = self.verification.checks.values().map(|check| &check.todo);
        let open = checks.chain(&self.verification.todo).filter(|todo| todo.why == mine);
        open.map(|todo| todo.offset).min().unwrap_or(round.next).min(round.next)
    }

    /// A copy has failed a read. Whether what it could not read will be looked at.
    pub(super) fn note_unreadable(&mut self, member: MemberIndex, errno: i32, offset: u64, len: u64) -> bool {
        if self.remaining().without(MemberSet::only(member)).is_empty() {
            return false;
        }
        // Disks lose blocks, and a part of one cannot be written while the rest cannot be read.
        let block = u64::from(self.settings.verify_block_bytes);
        let end = (offset + len).next_multiple_of(block).min(self.regions.size_bytes());
        let offset = offset / block * block;
        let len = end - offset;
        let known =
            |noted: &Unreadable| noted.member == member && noted.offset <= offset && end <= noted.offset + noted.len;
        if self.verification.unreadable.values().any(known) {
            return true;
        }
        let now = self.now;
        let in_vain = |&(members, start, length, when): &(MemberSet, u64, u64, Time)| {
            members.contains(member) && start < end && offset < start + length && now.since_us(when) < IN_VAIN_US
        };
        if self.verification.unreadable.len() >= UNREADABLE_MAX || self.verification.in_vain.iter().any(in_vain) {
            return false;
        }
        let number = self.verification.next_unreadable;
        self.verification.next_unreadable += 1;
        self.verification.unreadable.insert(number, Unreadable { member, offset, len, parts: 1 });
        self.verification.todo.push(Todo {
            offset,
            len,
            why: Why::Unreadable(number),
            tries: 0,
            healing: None,
            alone: false,
        });
        self.actions.push(Action::Unreadable { member, offset, len, errno });
        true
    }

    /// Who could not read some of a range, and was not looked at since.
    pub(super) fn unreadable_on(&self, offset: u64, len: u64) -> MemberSet {
        let noted = self.verification.unreadable.values();
        noted
            .filter(|noted| noted.offset < offset + len && offset < noted.offset + noted.len)
            .map(|n| n.member)
            .collect()
    }

    /// Begins to look at ranges as long as there is room.
    pub(super) fn pump_checks(&mut self) {
        if self.verification.round.is_none() && self.verification.todo.is_empty() {
            return;
        }
        if self.is_held() || !self.is_calm() {
            // The guest is not kept waiting for what may take long to begin.
            self.unwant_check();
            return;
        }
        while self.verification.checks.len() < CHECKS_MAX {
            let Some(todo) = self.next_todo() else { break };
            if self.is_alone(todo) || !self.begin_check(todo) {
                self.verification.todo.push(todo);
                break;
            }
        }
        self.end_round_if_done();
    }

    /// Whether every copy that the view calls in sync is here to be compared.
    fn is_calm(&self) -> bool {
        self.in_sync() == self.remaining() && self.in_sync().iter().all(|member| self.member(member).link == Link::Up)
    }

    /// Whether a range must wait because it, or what is being looked at, is to be alone.
    fn is_alone(&self, todo: Todo) -> bool {
        // What was given up may take a disk long to answer, and is in the way only where it is a neighbour.
        let touch = |other: &Todo| todo.offset <= other.offset + other.len && other.offset <= todo.offset + todo.len;
        let mut checks = self.verification.checks.values().filter(|check| !check.is_void || touch(&check.todo));
        checks.any(|check| todo.alone || check.todo.alone)
    }

    fn next_todo(&mut self) -> Option<Todo> {
        if let Some(todo) = self.verification.todo.pop() {
            return Some(todo);
        }
        let (now, end) = (self.now, self.regions.size_bytes());
        let round = self.verification.round.as_mut()?;
        let (offset, len) = (round.next, u64::from(self.settings.copy_chunk_bytes).min(end - round.next.min(end)));
        if len == 0 || !round.pace.takes(now, len) {
            return None;
        }
        round.next += len;
        Some(Todo { offset, len, why: Why::Round(round.so_far.number), tries: 0, healing: None, alone: false })
    }

    /// Asks all copies in sync for a digest; false if the guest goes first, or regions have to be made equal.
    fn begin_check(&mut self, todo: Todo) -> bool {
        let Todo { offset, len, why, .. } = todo;
        if self.waits_for_reconciling(offset, len) {
            return false;
        }
        if self.ranges.is_held(offset, len) {
            self.unwant_check();
            self.ranges.want(offset, len);
            self.verification.wanted = Some((offset, len));
            return false;
        }
        self.unwant_check();
        let asked = self.in_sync();
        if asked.len() < 2 && matches!(why, Why::Unreadable(_)) {
            // Nobody is left who could have it.
            self.end_todo(todo);
            return true;
        }
        self.ranges.hold(offset, len);
        let number = self.next_copy;
        self.next_copy += 1;
        let check = Check { todo, state: State::Asking(asked), answers: Vec::new(), is_void: false };
        self.verification.checks.insert(number, check);
        for member in asked.iter() {
            let request = Request::Digest { offset, len: len as u32 };
            self.issue(member, Lane::CONTROL, Purpose::Digest(number), request, Payload::None);
        }
        true
    }

    fn unwant_check(&mut self) {
        if let Some((offset, len)) = self.verification.wanted.take() {
            self.ranges.unwant(offset, len);
        }
    }

    pub(super) fn digested(&mut self, number: u64, member: MemberIndex, reply: Reply) {
        let answer = match reply {
            Reply::DigestOf(digest) => Some(digest),
            Reply::Failed(_) => None,
            other => {
                self.check_lost(number, member);
                return self.expect_done(member, if other == Reply::Done { Reply::Data } else { other });
            }
        };
        if let Some(check) = self.verification.checks.get_mut(&number)
            && let State::Asking(pending) = &mut check.state
            && pending.remove(member)
        {
            check.answers.push((member, answer));
            self.judge(number);
        }
    }

    /// A member will not answer for a range any more.
    pub(super) fn check_lost(&mut self, number: u64, member: MemberIndex) {
        let Some(check) = self.verification.checks.get_mut(&number) else { return };
        match &mut check.state {
            State::Asking(pending) => {
                pending.remove(member);
                check.answers.retain(|(other, _)| *other != member);
                self.judge(number);
            }
            State::Reading { source, .. } => {
                if *source == member {
                    self.actions.push(Action::CopyEnded { copy: number });
                    self.look_again_as_it_is(number, 0);
                }
            }
            State::Writing(pending, _) => {
                pending.remove(member);
                self.end_healing_if_written(number);
            }
        }
    }

    /// The link with a member is down: what it was asked may take long to be answered, and the guest does not wait.
    pub(super) fn void_checks(&mut self, member: MemberIndex) {
        let waiting = self.checks_asking(|check| matches!(check.state, State::Asking(set) if set.contains(member)));
        for number in waiting {
            if let Some(check) = self.verification.checks.get(&number) {
                self.verification.todo.push(check.todo);
            }
            self.void(number);
        }
    }

    fn checks_asking(&self, is_meant: impl Fn(&Check) -> bool) -> Vec<u64> {
        let asking = |check: &Check| matches!(check.state, State::Asking(_)) && !check.is_void;
        let checks = self.verification.checks.iter();
        checks.filter(|(_, check)| asking(check) && is_meant(check)).map(|(&number, _)| number).collect()
    }

    /// Lets the range of a check go before it is answered.
    fn void(&mut self, number: u64) {
        if let Some(check) = self.verification.checks.get_mut(&number) {
            check.is_void = true;
            self.ranges.release(check.todo.offset);
        }
    }

    /// Everybody has answered: says what is wrong, and heals it if it may be.
    fn judge(&mut self, number: u64) {
        let remaining = self.remaining();
        let Some(check) = self.verification.checks.get_mut(&number) else { return };
        if check.state != State::Asking(MemberSet::default()) {
            return;
        }
        // Of one that was lost since it answered nothing can be had.
        let mut answers = std::mem::take(&mut check.answers);
        answers.retain(|(member, _)| remaining.contains(*member));
        let Check { todo, is_void, .. } = *check;
        if is_void {
            self.verification.checks.remove(&number);
            return;
        }
        let repair = self.repair_of(todo.why);
        let trusted = match repair {
            Some(Repair::Trust(member)) => Some(member),
            _ => None,
        };
        let verdict = weigh(&answers, trusted);
        let answered = verdict.readable.or(verdict.unreadable);
        if answered.is_empty() {
            return self.look_again_as_it_is(number, 0);
        }
        if verdict.is_equal() {
            return self.found_equal(number, &todo, verdict.readable);
        }
        if todo.len > u64::from(self.settings.verify_block_bytes) {
            return self.cut_up(number);
        }
        if !verdict.unreadable.is_empty() && !todo.alone {
            // Disks are asked for neighbours together, and fail for all of them when one is bad.
            return self.look_alone(number);
        }
        let finding = todo.healing.unwrap_or(Finding {
            round: if let Why::Round(round) = todo.why { Some(round) } else { None },
            offset: todo.offset,
            len: todo.len,
            right: verdict.right,
            differing: verdict.readable.without(verdict.right),
            unreadable: verdict.unreadable,
            outcome: Outcome::Reported,
        });
        let is_read_again = matches!(todo.why, Why::Unreadable(_)) && verdict.unreadable.is_empty();
        if is_read_again && todo.healing.is_some() {
            // Others differ there, which is for a round to find.
            self.found(Finding { differing: MemberSet::EMPTY, outcome: Outcome::Healed, ..finding });
            return self.end_check(number);
        }
        let wrong = match todo.why {
            Why::Unreadable(_) => verdict.unreadable,
            Why::Round(_) => verdict.unreadable.or(verdict.readable.without(verdict.right)),
        };
        let is_wanted = !matches!(repair, None | Some(Repair::None)) && !wrong.is_empty();
        if is_wanted && !verdict.right.is_empty() && todo.tries < TRIES_MAX {
            return self.begin_healing(number, wrong, Finding { right: verdict.right, ..finding });
        }
        let outcome = match () {
            () if todo.tries > 0 => Outcome::Failed,
            () if is_wanted => Outcome::Undecided,
            () => Outcome::Reported,
        };
        if matches!(todo.why, Why::Unreadable(_)) && is_wanted {
            self.verification.in_vain.push_back((verdict.unreadable, todo.offset, todo.len, self.now));
            if self.verification.in_vain.len() > IN_VAIN_MAX {
                self.verification.in_vain.pop_front();
            }
        }
        self.found(Finding { outcome, ..finding });
        self.note_compared(todo.why, verdict.readable, todo.len);
        self.end_check(number);
    }

    /// What may be done about what a range turns out to be; none if nobody asks any more.
    fn repair_of(&self, why: Why) -> Option<Repair> {
        match (why, &self.verification.round) {
            (Why::Unreadable(_), _) => Some(Repair::Majority),
            (Why::Round(number), Some(round)) if round.so_far.number == number => Some(round.plan.repair),
            (Why::Round(_), _) => None,
        }
    }

    fn found_equal(&mut self, number: u64, todo: &Todo, readable: MemberSet) {
        if let Some(finding) = todo.healing {
            if finding.wrong().and(readable).is_empty() || readable.len() < 2 {
                // Those that were wrong have left meanwhile, or those that were right.
                return self.look_again(number, 0, None);
            }
            self.found(Finding { outcome: Outcome::Healed, ..finding });
        }
        self.note_compared(todo.why, readable, todo.len);
        self.end_check(number);
    }

    fn found(&mut self, finding: Finding) {
        if let Some(round) = &mut self.verification.round
            && finding.round == Some(round.so_far.number)
        {
            match finding.outcome {
                Outcome::Healed => round.so_far.healed_bytes += finding.len,
                _ => round.so_far.left_bytes += finding.len,
            }
        }
        self.actions.push(Action::Found(finding));
    }

    /// A place is another's from now on: nothing of its copy was compared.
    pub(super) fn forget_compared(&mut self, member: MemberIndex) {
        if let Some(round) = &mut self.verification.round {
            round.so_far.compared.remove(&member);
        }
    }

    fn note_compared(&mut self, why: Why, readable: MemberSet, len: u64) {
        if let Some(round) = &mut self.verification.round
            && why == Why::Round(round.so_far.number)
            && readable.len() > 1
        {
            for member in readable.iter() {
                *round.so_far.compared.entry(member).or_default() += len;
            }
        }
    }

    /// Looks at the parts of a range one by one.
    fn cut_up(&mut self, number: u64) {
        let Some(check) = self.verification.checks.get(&number) else { return };
        let todo = check.todo;
        let part = (todo.len / PARTS).next_multiple_of(u64::from(self.settings.verify_block_bytes));
        let parts = todo.len.div_ceil(part);
        for index in (0..parts).rev() {
            let offset = todo.offset + index * part;
            let len = part.min(todo.offset + todo.len - offset);
            self.verification.todo.push(Todo { offset, len, ..todo });
        }
        if let Why::Unreadable(noted) = todo.why
            && let Some(noted) = self.verification.unreadable.get_mut(&noted)
        {
            noted.parts += parts as usize;
        }
        self.end_check(number);
    }

    fn begin_healing(&mut self, number: u64, wrong: MemberSet, finding: Finding) {
        if self.is_held() {
            return self.look_again_as_it_is(number, 0);
        }
        let local = self.local.filter(|&local| finding.right.contains(local));
        let Some(source) = local.or_else(|| finding.right.iter().next()) else { return };
        if let Some(check) = self.verification.checks.get_mut(&number) {
            check.state = State::Reading { source, wrong, finding };
        }
        let request = Request::Read { offset: finding.offset, len: finding.len as u32 };
        self.issue(source, Lane::CONTROL, Purpose::HealRead(number), request, Payload::Copy(number));
    }

    pub(super) fn heal_read(&mut self, number: u64, member: MemberIndex, reply: Reply) {
        let Some(check) = self.verification.checks.get_mut(&number) else { return };
        let State::Reading { wrong, finding, .. } = check.state else { return };
        let Finding { offset, len, .. } = finding;
        // Zeros are written as well: a hole might leave on the disk what cannot be read.
        let (durable, sparse) = (true, false);
        let request = match reply {
            Reply::Data | Reply::Zeros => Request::Write { offset, len: len as u32, durable, sparse },
            other => {
                self.actions.push(Action::CopyEnded { copy: number });
                self.look_again_as_it_is(number, 1);
                if !matches!(other, Reply::Failed(_)) {
                    self.expect_done(member, if other == Reply::Done { Reply::Rows(Vec::new()) } else { other });
                }
                return;
            }
        };
        let targets = wrong.and(self.remaining());
        // A copy that is told late that a region is settled would take this write's intent for one of before.
        if targets.is_empty() || self.waits_for_settling(offset, len) {
            self.actions.push(Action::CopyEnded { copy: number });
            return self.look_again_as_it_is(number, 0);
        }
        if let Some(check) = self.verification.checks.get_mut(&number) {
            check.state = State::Writing(targets, finding);
        }
        self.mark(offset, len);
        for member in targets.iter() {
            self.issue(member, Lane::CONTROL, Purpose::HealWrite(number), request.clone(), Payload::Copy(number));
        }
    }

    pub(super) fn heal_written(&mut self, number: u64, member: MemberIndex, reply: Reply) {
        self.check_lost(number, member);
        match reply {
            Reply::Done => {}
            Reply::Failed(errno) => self.lose(member, Loss::Failed(errno)),
            other => self.expect_done(member, other),
        }
    }

    /// Those that were wrong have been written to: whether they are right now is to be seen.
    fn end_healing_if_written(&mut self, number: u64) {
        let Some(check) = self.verification.checks.get(&number) else { return };
        let State::Writing(MemberSet::EMPTY, finding) = check.state else { return };
        self.unmark(finding.offset, finding.len);
        self.actions.push(Action::CopyEnded { copy: number });
        self.look_again(number, 1, Some(finding));
    }

    /// Ends a check that is to be made again, with nothing new known.
    fn look_again_as_it_is(&mut self, number: u64, tries: u8) {
        let healing = self.verification.checks.get(&number).and_then(|check| check.todo.healing);
        self.look_again(number, tries, healing);
    }

    /// Ends a check that is to be made again.
    fn look_again(&mut self, number: u64, tries: u8, healing: Option<Finding>) {
        let Some(check) = self.verification.checks.remove(&number) else { return };
        self.ranges.release(check.todo.offset);
        if self.repair_of(check.todo.why).is_some() || healing.is_some() {
            self.verification.todo.push(Todo { tries: check.todo.tries + tries, healing, ..check.todo });
        }
    }

    fn look_alone(&mut self, number: u64) {
        if let Some(check) = self.verification.checks.get_mut(&number) {
            check.todo.alone = true;
            self.look_again_as_it_is(number, 0);
        }
    }

    fn end_check(&mut self, number: u64) {
        if let Some(check) = self.verification.checks.remove(&number) {
            self.ranges.release(check.todo.offset);
            self.end_todo(check.todo);
        }
    }

    fn end_todo(&mut self, todo: Todo) {
        let Why::Unreadable(number) = todo.why else { return };
        if let Some(noted) = self.verification.unreadable.get_mut(&number) {
            noted.parts -= 1;
            if noted.parts == 0 {
                self.verification.unreadable.remove(&number);
            }
        }
    }

    fn end_round_if_done(&mut self) {
        let Some(round) = &self.verification.round else { return };
        let end = self.regions.size_bytes();
        if round.next >= end
            && self.position(round) >= end
            && let Some(round) = self.verification.round.take()
        {
            self.actions.push(Action::RoundEnded(Box::new(Round { position: end, ..round.so_far })));
        }
    }

    /// A write of the guest has ended that was asked for at `asked`.
    pub(super) fn note_write(&mut self, asked: Time) {
        self.pace.wrote(self.now, asked);
        if let Some(round) = &mut self.verification.round {
            round.pace.wrote(self.now, asked);
        }
    }
}

/// Ranges that are looked at at once.
pub const CHECKS_MAX: usize = 4;
/// Into so many parts a range is cut in which something is wrong.
const PARTS: u64 = 8;
/// How many times a block is written again before it is given up.
const TRIES_MAX: u8 = 3;
/// What copies could not read, at most so many ranges at a time.
const UNREADABLE_MAX: usize = 32;
/// What was looked at in vain is not looked at again for so long, however often it is read: a disk that does not heal is
/// not asked to over and over. So much of it is known at a time.
const IN_VAIN_US: u64 = 60_000_000;
const IN_VAIN_MAX: usize = 64;
/// However the guest's writes suffer, a round goes at this part of its rate.
const SLOWEST_DIVISOR: u64 = 8;
