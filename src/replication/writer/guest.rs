//! Reads, writes and flushes of the guest.
//!
//! A request waits while something stands in its way, in order among those that overlap, then goes to every
//! copy that must have it (a read to one), and ends when the last of these has answered. It cannot end early:
//! a copy that does not answer is waited for until the view says that it need not be.

use super::retain::Mark;
use super::{Action, BelowMin, Lane, MemberSet, Open, Payload, Purpose, Standing, Writer};
use crate::replication::message::{Reply, Request};
use crate::replication::region::Row;
use crate::replication::view::MemberIndex;

use super::Time;

/// What the guest asks for. Bytes of the volume, multiples of the sector size, within the volume; reads and
/// writes at most [`PAYLOAD_BYTES_MAX`](crate::replication::message::PAYLOAD_BYTES_MAX).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read a range.
    Read {
        /// First byte.
        offset: u64,
        /// How many.
        len: u32,
    },
    /// Write a range.
    Write {
        /// First byte.
        offset: u64,
        /// How many.
        len: u32,
        /// End when the bytes would survive a power loss of every copy.
        durable: bool,
    },
    /// Make a range read as zeros.
    Zero {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
        /// End when that would survive a power loss of every copy.
        durable: bool,
    },
    /// Make all writes durable that have ended.
    Flush,
}

/// A request of the guest.
#[derive(Debug)]
pub struct GuestRequest {
    lane: Lane,
    token: u64,
    asked: Time,
    operation: Operation,
    state: State,
    /// Members that could not read it.
    tried: MemberSet,
    /// Members that take long to read it, so that others were asked.
    late: MemberSet,
    /// A disk of this process may still be using the memory that a read goes to.
    lent: bool,
    error: Option<i32>,
    /// It is read once more when what copies could not read has been looked at.
    patient: bool,
    /// For a flush: what was retained when it was sent.
    mark: Mark,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    /// With those that have not answered.
    Sent(MemberSet),
    /// Every copy in sync has it, but they are too few: it ends when there are enough.
    Suspended,
}

impl GuestRequest {
    pub fn is_waiting(&self) -> bool {
        self.state == State::Waiting
    }

    fn is_read(&self) -> bool {
        matches!(self.operation, Operation::Read { .. })
    }

    fn range(&self) -> (u64, u64) {
        self.operation.range()
    }
}

impl Operation {
    /// First byte and how many; nothing for a flush.
    pub fn range(&self) -> (u64, u64) {
        match *self {
            Self::Read { offset, len } | Self::Write { offset, len, .. } => (offset, u64::from(len)),
            Self::Zero { offset, len, .. } => (offset, len),
            Self::Flush => (0, 0),
        }
    }

    pub(super) fn request(&self) -> Request {
        match *self {
            Self::Read { offset, len } => Request::Read { offset, len },
            Self::Write { offset, len, durable } => Request::Write { offset, len, durable, sparse: false },
            Self::Zero { offset, len, durable } => Request::Zero { offset, len, durable },
            Self::Flush => Request::Flush,
        }
    }

    fn has_payload(&self) -> bool {
        *self != Self::Flush
    }
}

impl Writer {
    /// A request of the guest, from one of its queues; [`Action::Complete`] will name `token`.
    pub fn submit(&mut self, now: Time, lane: Lane, token: u64, operation: Operation) {
        if !self.enter(now) {
            return;
        }
        let key = self.requests.insert(GuestRequest {
            lane,
            token,
            asked: now,
            operation,
            state: State::Waiting,
            tried: MemberSet::default(),
            late: MemberSet::default(),
            lent: false,
            error: None,
            patient: false,
            mark: Mark::default(),
        });
        if self.overtakes(key, self.waiting.len()) || !self.try_start(key) {
            self.waiting.push_back(key);
        }
    }

    /// Starts what can start of those that wait.
    pub(super) fn dispatch(&mut self) {
        if self.is_held() {
            return;
        }
        let mut at = 0;
        while at < self.waiting.len() {
            let key = self.waiting[at];
            // What a request starts or ends may put others into the queue, but only behind it.
            if !self.overtakes(key, at) && self.try_start(key) {
                self.waiting.remove(at);
            } else {
                at += 1;
            }
        }
    }

    /// Whether one of the first `ahead` that wait is a write of the same bytes.
    fn overtakes(&self, key: usize, ahead: usize) -> bool {
        let (offset, len) = self.requests[key].range();
        self.waiting.iter().take(ahead).any(|&other| {
            let other = &self.requests[other];
            let (start, length) = other.range();
            !other.is_read() && start < offset + len && offset < start + length
        })
    }

    /// Sends a request to whom it concerns; false if something stands in its way.
    fn try_start(&mut self, key: usize) -> bool {
        if self.is_held() {
            return false;
        }
        let request = &self.requests[key];
        let (offset, len) = request.range();
        let (operation, is_read) = (request.operation, request.is_read());
        if self.ranges.is_taken(offset, len) || self.waits_for_reconciling(offset, len) {
            return false;
        }
        if is_read {
            return self.start_read(key);
        }
        if self.in_sync().len() < self.view.in_sync_min() {
            if self.settings.below_min == BelowMin::Error {
                self.requests[key].error = Some(EIO);
                self.end(key);
                return true;
            }
            return false;
        }
        if self.waits_for_settling(offset, len) {
            return false;
        }
        if operation != Operation::Flush && self.open.len() >= self.settings.open_regions_max {
            self.sweep_now();
            return false;
        }
        if operation != Operation::Flush && self.is_full() && self.retains() {
            self.sweep_now();
            return false;
        }
        self.start_write(key, operation, offset, len);
        true
    }

    fn start_read(&mut self, key: usize) -> bool {
        if !self.has_lease() {
            return false;
        }
        let GuestRequest { tried, patient, .. } = self.requests[key];
        let (offset, len) = self.requests[key].range();
        if patient && !self.unreadable_on(offset, len).is_empty() {
            return false;
        }
        let Some(member) = self.reader(tried) else { return false };
        self.send_read(key, member);
        true
    }

    fn send_read(&mut self, key: usize, member: MemberIndex) {
        let request = &mut self.requests[key];
        request.lent |= Some(member) == self.local;
        request.state = State::Sent(MemberSet::only(member));
        let (lane, token, body) = (request.lane, request.token, request.operation.request());
        self.note_reader(member);
        self.issue(member, lane, Purpose::Guest(key), body, Payload::Guest { lane, token });
    }

    /// Sends a read that waits for a member to another one, if there is one that will be quicker. The first is not
    /// waited for any more.
    pub(super) fn read_elsewhere(&mut self, id: usize, key: usize) {
        let member = self.commands[id].member;
        let request = &self.requests[key];
        let (offset, len) = request.range();
        let (tried, late) = (request.tried, request.late.or(MemberSet::only(member)));
        let is_free = !request.lent && !self.is_held() && self.has_lease() && !self.ranges.is_taken(offset, len);
        if !is_free || self.waits_for_reconciling(offset, len) {
            return;
        }
        let others = self.remaining().without(tried).without(late);
        let Some(other) = self.quicker_reader(others, member) else { return };
        self.leave_unanswered(id);
        self.requests[key].late = late;
        self.send_read(key, other);
    }

    fn start_write(&mut self, key: usize, operation: Operation, offset: u64, len: u64) {
        self.ranges.hold(offset, len);
        self.mark(offset, len);
        let in_sync = self.in_sync();
        // Also one that was about to join and is lost: the stored view may call it in sync until the next one.
        let mut pending = self.owed();
        if operation == Operation::Flush {
            pending = pending.or(self.flushers());
        }
        for member in self.everyone() {
            if operation != Operation::Flush && !in_sync.contains(member) && self.takes(member, offset, len) {
                pending.insert(member);
            }
        }
        let mark = self.retained.mark();
        let request = &mut self.requests[key];
        request.mark = mark;
        request.state = State::Sent(pending);
        let (lane, token) = (request.lane, request.token);
        let payload = if operation.has_payload() { Payload::Guest { lane, token } } else { Payload::None };
        for member in pending.without(self.lost()).iter() {
            self.issue(member, lane, Purpose::Guest(key), operation.request(), payload);
        }
    }

    /// A write begins: the copies that get it will have intents for its regions.
    pub(super) fn mark(&mut self, offset: u64, len: u64) {
        self.writes += 1;
        let marked = Row { written: self.view.number, intent: true };
        let open = Open { in_flight: 0, written: self.writes };
        for region in self.regions.touched(offset, len) {
            self.rows[region.0 as usize] = marked;
            let entry = self.open.entry(region).or_insert(open);
            entry.in_flight += 1;
            entry.written = self.writes;
        }
    }

    /// A write has ended.
    pub(super) fn unmark(&mut self, offset: u64, len: u64) {
        for region in self.regions.touched(offset, len) {
            if let Some(open) = self.open.get_mut(&region) {
                open.in_flight -= 1;
            }
        }
    }

    /// Who has to flush: the copies in sync, and those that may be so before the flush has ended. Those did not
    /// all flush since they were sent the newest writes.
    pub(super) fn flushers(&self) -> MemberSet {
        let joining = |&member: &MemberIndex| {
            let entry = self.member(member);
            entry.receives() && entry.standing >= Standing::Finishing
        };
        self.in_sync().or(self.everyone().filter(joining).collect())
    }

    /// Whether a member that is not in sync has to be told of a write.
    fn takes(&mut self, member: MemberIndex, offset: u64, len: u64) -> bool {
        let regions = self.regions;
        let entry = self.member_mut(member);
        if !entry.receives() {
            return false;
        }
        let takes = regions.touched(offset, len).any(|region| !entry.stale.contains(&region));
        if takes {
            entry.unsettled.extend(regions.touched(offset, len));
        }
        takes
    }

    /// Whether every other copy that is in sync was heard from within the lease time.
    fn has_lease(&self) -> bool {
        let lease_us = u64::from(self.view.lease_ms) * 1000;
        let others = self.in_sync().iter().filter(|&member| Some(member) != self.local);
        others.map(|member| self.member(member)).all(|member| self.now.since_us(member.heard) < lease_us)
    }

    /// Who is read from: the copy at hand, else the one that is likely to answer first.
    pub(super) fn reader(&self, tried: MemberSet) -> Option<MemberIndex> {
        let candidates = self.remaining().without(tried);
        match self.local {
            Some(local) if candidates.contains(local) => Some(local),
            _ => self.best_reader(candidates),
        }
    }

    pub(super) fn guest_replied(&mut self, key: usize, member: MemberIndex, reply: Reply) {
        let others = self.remaining().without(MemberSet::only(member));
        let request = &mut self.requests[key];
        let State::Sent(pending) = &mut request.state else { return };
        pending.remove(member);
        match reply {
            Reply::Done | Reply::Data | Reply::Zeros => {}
            Reply::Failed(errno) if request.is_read() => {
                request.tried.insert(member);
                let (offset, len) = request.range();
                self.note_unreadable(member, errno, offset, len);
                let request = &mut self.requests[key];
                if others.without(request.tried).is_empty() && (request.patient || others.is_empty()) {
                    request.error = Some(errno);
                } else {
                    if others.without(request.tried).is_empty() {
                        // Each may have what another cannot read.
                        (request.patient, request.tried) = (true, MemberSet::default());
                    }
                    request.state = State::Waiting;
                    self.waiting.push_front(key);
                    return;
                }
            }
            Reply::Failed(_) if request.operation == Operation::Flush && others.is_empty() && self.retains() => {
                // It can be opened anew and be sent again what it may have lost.
                let (lane, operation) = (self.requests[key].lane, Operation::Flush);
                self.owe(key, member);
                self.start_session_over(member);
                self.issue(member, lane, Purpose::Guest(key), operation.request(), Payload::None);
                return;
            }
            Reply::Failed(errno) => {
                if others.is_empty() && self.in_sync().contains(member) {
                    // Nobody is left to go on without it.
                    self.requests[key].error.get_or_insert(errno);
                    self.send_others_back(member);
                } else {
                    self.owe(key, member);
                    self.lose(member, super::Loss::Failed(errno));
                }
            }
            _ => {
                self.owe(key, member);
                self.lose(member, super::Loss::Failed(super::EPROTO));
            }
        }
        self.end_if_answered(key);
    }

    /// What one copy could not write, members on their way into the in-sync set may have: they start over.
    fn send_others_back(&mut self, member: MemberIndex) {
        for other in self.everyone() {
            if other != member && self.member(other).receives() && !self.in_sync().contains(other) {
                self.lose(other, super::Loss::Left);
            }
        }
    }

    /// Puts back what a failed answer has taken out: the write is not on that copy.
    fn owe(&mut self, key: usize, member: MemberIndex) {
        if self.owed().contains(member)
            && let State::Sent(pending) = &mut self.requests[key].state
        {
            pending.insert(member);
        }
    }

    /// A member will not answer a command any more.
    pub(super) fn guest_unanswered(&mut self, key: usize, member: MemberIndex) {
        let request = &mut self.requests[key];
        if request.is_read() {
            if request.state == State::Sent(MemberSet::only(member)) {
                request.state = State::Waiting;
                self.waiting.push_front(key);
            }
        } else if !self.owed().contains(member) {
            if let State::Sent(pending) = &mut self.requests[key].state {
                pending.remove(member);
            }
            self.end_if_answered(key);
        }
    }

    /// A new view is in force: nobody waits for those that are not in it.
    pub(super) fn recount(&mut self) {
        let counted = self.owed().or(self.everyone().filter(|&member| self.member(member).receives()).collect());
        let keys: Vec<usize> = self.requests.iter().map(|(key, _)| key).collect();
        for key in keys {
            let Some(request) = self.requests.get_mut(key) else { continue };
            match &mut request.state {
                State::Sent(pending) if !matches!(request.operation, Operation::Read { .. }) => {
                    *pending = pending.and(counted);
                }
                _ => {}
            }
            self.end_if_answered(key);
        }
    }

    fn end_if_answered(&mut self, key: usize) {
        let Some(request) = self.requests.get(key) else { return };
        let answered = matches!(request.state, State::Suspended) || request.state == State::Sent(MemberSet::default());
        if !answered || !request.is_read() && self.has_unrecorded() {
            return;
        }
        if !request.is_read() && self.in_sync().len() < self.view.in_sync_min() {
            match self.settings.below_min {
                BelowMin::Suspend => {
                    // It is done, and must not keep those that are missing from being resynced.
                    if self.requests[key].state != State::Suspended {
                        self.let_go(key);
                        self.keep(key);
                        self.requests[key].state = State::Suspended;
                    }
                    return;
                }
                BelowMin::Error => _ = self.requests[key].error.get_or_insert(EIO),
            }
        }
        if self.requests[key].state != State::Suspended {
            self.let_go(key);
            self.keep(key);
        }
        self.end(key);
    }

    /// Whether the view does not know yet in which life some copy in sync is. What is acknowledged meanwhile the
    /// next writer could not tell that copy to have.
    fn has_unrecorded(&self) -> bool {
        self.in_sync().without(self.lost()).iter().any(|member| !self.is_recorded(member))
    }

    /// A write is on every copy in sync: from now on a copy in a new life would lack it unless it is kept.
    fn keep(&mut self, key: usize) {
        // One that ends with an error too: it may be there, and may have been seen.
        let request = &self.requests[key];
        self.retain(request.lane, request.token, request.operation);
    }

    /// A copy in a new life has lost writes that it had answered and others have not: it is sent them again.
    pub(super) fn issue_again(&mut self, member: MemberIndex) {
        let mut again = Vec::new();
        for (key, request) in &mut self.requests {
            let is_write = matches!(request.operation, Operation::Write { .. } | Operation::Zero { .. });
            if let State::Sent(pending) = &mut request.state
                && is_write
                && !pending.contains(member)
            {
                pending.insert(member);
                again.push((key, request.lane, request.token, request.operation));
            }
        }
        for (key, lane, token, operation) in again {
            self.issue(member, lane, Purpose::Guest(key), operation.request(), Payload::Guest { lane, token });
        }
    }

    /// Lets others have the range of a write that has been answered.
    fn let_go(&mut self, key: usize) {
        let request = &self.requests[key];
        if request.is_read() || !matches!(request.state, State::Sent(_)) {
            return;
        }
        let (offset, len) = request.range();
        if len > 0 {
            self.ranges.release(offset);
        }
        self.unmark(offset, len);
    }

    fn end(&mut self, key: usize) {
        let request = self.requests.remove(key);
        let result = request.error.map_or(Ok(()), Err);
        if result.is_ok() && request.operation == Operation::Flush {
            self.release(request.mark);
        }
        if matches!(request.operation, Operation::Write { .. }) {
            self.note_write(request.asked);
        }
        self.actions.push(Action::Complete { lane: request.lane, token: request.token, result });
    }
}

const EIO: i32 = 5;
