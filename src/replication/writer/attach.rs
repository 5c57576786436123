//! Becoming the writer.
//!
//! The claim is a view of the next number with this writer in it, put where the last one was. From then on
//! the old writer can change nothing. Then every copy that the claim calls in sync is asked to accept it,
//! which cuts the old writer off from that copy, and for its rows. Copies that do not answer in time leave
//! the view. As the old writer may still read from those, its lease is waited out, and that before they leave: the
//! next writer would not know of them, and if this one has ended by then, nobody would have waited.
//!
//! A copy in the life that the view knows has every write that was acknowledged. Where some are and others are
//! not, those others may have lost some of it, and leave the view until they have been sent what they lack.
//! Where none is, every copy has restarted, and any of them has what was flushed. In either case the lives are
//! recorded before the guest is served, so that the next writer can tell.
//!
//! Where any row has an intent the copies may differ even so: such regions are made equal before the guest
//! sees them (see `copy`).

use super::guest::GuestRequest;
use super::member::Member;
use super::{Action, Lane, Link, Loss, MemberSet, Payload, Purpose, Standing, StopReason, Time, Writer};
use crate::replication::message::{ROWS_MAX, Reply, Request};
use crate::replication::region::{RegionIndex, Row};
use crate::replication::view::{MemberIndex, MemberState, View, ViewNumber};

/// How far the writer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The claim is on its way to the store.
    Claiming {
        /// When to try again, after the store could not be reached.
        retry_at: Option<Time>,
    },
    /// The copies are asked to accept it.
    Gathering {
        since: Time,
        /// When the last one accepted.
        accepted: Time,
        /// Nobody reads any more from those that have not.
        waited: bool,
    },
    /// The lives that the copies are in are being recorded, before anything is acknowledged that they may
    /// lose with them.
    Recording,
    /// The guest is served.
    Serving,
    /// It is over.
    Stopped,
}

impl Phase {
    pub fn claim() -> Self {
        Self::Claiming { retry_at: None }
    }
}

/// What became of a [`Action::Swap`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// It is stored.
    Stored,
    /// It is not; this is what is.
    Conflict(Box<View>),
    /// It is not, and will not be: the store could not be reached.
    Unavailable,
    /// Nobody knows.
    Unknown,
}

impl Writer {
    /// What became of the last [`Action::Swap`].
    pub fn swapped(&mut self, now: Time, result: Swapped) {
        if !self.enter(now) {
            return;
        }
        if !matches!(self.phase, Phase::Claiming { .. }) {
            self.change_swapped(result);
            self.settle_down();
            return;
        }
        let claim = self.claimed();
        match result {
            Swapped::Stored => self.gather(claim),
            Swapped::Conflict(actual) if *actual == claim => self.gather(claim),
            // The writer that is to be replaced has changed the view meanwhile. Our claim is not stored, nor will it
            // be: what it was to replace is gone.
            Swapped::Conflict(actual) if self.is_later(&actual) => {
                // Nobody has been called yet.
                self.members = actual.members.iter().map(|_| Member::new(self.now)).collect();
                self.view = *actual;
                self.claim();
            }
            Swapped::Conflict(actual) if self.is_later_elsewhere(&actual) => self.stop(StopReason::MembersChanged),
            Swapped::Conflict(actual) => self.stop(StopReason::Replaced(actual.writer)),
            Swapped::Unavailable | Swapped::Unknown => {
                let retry_at = self.now.after_us(self.settings.store_retry_us);
                self.phase = Phase::Claiming { retry_at: Some(retry_at) };
            }
        }
        self.settle_down();
    }

    /// The view by which this writer takes the place of the one before.
    fn claimed(&self) -> View {
        View { number: self.view.number.next(), writer: Some(self.me.clone()), ..self.view.clone() }
    }

    /// Whether a view is of the same writer as the one that was to be replaced, only later, and knows the copy in this
    /// process as that one did.
    fn is_later(&self, actual: &View) -> bool {
        self.is_later_elsewhere(actual) && actual.member_on(&self.me.node) == self.view.member_on(&self.me.node)
    }

    /// The same, whatever it says of the copy in this process.
    fn is_later_elsewhere(&self, actual: &View) -> bool {
        actual.number > self.view.number && actual.writer == self.view.writer && actual.in_sync().next().is_some()
    }

    pub(super) fn claim(&mut self) {
        self.phase = Phase::Claiming { retry_at: None };
        let next = Box::new(self.claimed());
        self.actions.push(Action::Swap { current: self.view.number, next });
    }

    fn gather(&mut self, claim: View) {
        self.view = claim;
        self.phase = Phase::Gathering { since: self.now, accepted: self.now, waited: false };
        self.check_links();
    }

    pub(super) fn check_attach(&mut self) {
        match self.phase {
            Phase::Claiming { retry_at: Some(at) } if at <= self.now => self.claim(),
            Phase::Gathering { since, accepted, .. } => self.check_gathering(since, accepted),
            Phase::Recording => self.check_recorded(),
            _ => {}
        }
    }

    /// A member that was in sync has accepted the claim.
    pub(super) fn gathered(&mut self, member: MemberIndex) {
        if let Phase::Gathering { accepted, .. } = &mut self.phase {
            *accepted = self.now;
        }
        self.fetch_rows(member);
    }

    pub(super) fn fetch_rows(&mut self, member: MemberIndex) {
        let count = ROWS_MAX.min(self.regions.count());
        self.member_mut(member).standing = Standing::Fetching;
        self.member_mut(member).rows.clear();
        let request = Request::Rows { first: RegionIndex(0), count };
        self.issue(member, Lane::CONTROL, Purpose::Rows, request, Payload::None);
    }

    pub(super) fn rows_came(&mut self, member: MemberIndex, reply: Reply) {
        let rows = match reply {
            Reply::Rows(rows) if !rows.is_empty() => rows,
            other => return self.expect_done(member, if other == Reply::Done { Reply::Data } else { other }),
        };
        let count = self.regions.count() as usize;
        let entry = self.member_mut(member);
        if entry.standing != Standing::Fetching {
            return;
        }
        entry.rows.extend(rows);
        entry.rows.truncate(count);
        let first = entry.rows.len();
        if first < count {
            let request =
                Request::Rows { first: RegionIndex(first as u32), count: ROWS_MAX.min((count - first) as u32) };
            self.issue(member, Lane::CONTROL, Purpose::Rows, request, Payload::None);
        } else if self.in_sync().contains(member) {
            self.member_mut(member).standing = Standing::InSync;
            self.check_attach();
        } else {
            self.compare(member);
        }
    }

    fn check_gathering(&mut self, since: Time, accepted: Time) {
        if self.change.is_some() {
            return;
        }
        let here: MemberSet = self.in_sync().iter().filter(|&member| self.is_here(member)).collect();
        let missing = self.in_sync().without(here);
        if missing.is_empty() {
            self.gathered_all();
        } else if !here.is_empty() && self.now.since_us(since) > self.settings.peer_timeout_us {
            let lease_us = u64::from(self.view.lease_ms) * 1000;
            // Clocks of two machines do not run at quite the same pace.
            if self.now < accepted.after_us(lease_us + lease_us / 8) {
                return;
            }
            if let Phase::Gathering { waited, .. } = &mut self.phase {
                *waited = true;
            }
            for member in missing.iter() {
                self.give_up(member, Loss::Unreachable);
            }
            self.consider_change();
        }
    }

    /// Whether the old writer may read from a copy that is in sync.
    pub(super) fn may_be_read(&self, member: MemberIndex) -> bool {
        let gathers = matches!(self.phase, Phase::Gathering { waited: false, .. });
        gathers && self.in_sync().contains(member) && self.member(member).standing < Standing::Fetching
    }

    fn is_here(&self, member: MemberIndex) -> bool {
        let entry = self.member(member);
        entry.standing == Standing::InSync && entry.lost.is_none()
    }

    fn gathered_all(&mut self) {
        self.phase = Phase::Recording;
        self.merge_rows();
        for member in self.outlived().iter() {
            self.give_up(member, Loss::Restarted);
        }
        self.choose_source();
        self.consider_change();
        self.check_attach();
    }

    /// Copies that may have lost what others still have.
    fn outlived(&self) -> MemberSet {
        let whole: MemberSet = self.in_sync().iter().filter(|&member| self.is_recorded(member)).collect();
        // Without an intent anywhere all is durable, and nothing can have been lost.
        if whole.is_empty() || self.open.is_empty() { MemberSet::default() } else { self.in_sync().without(whole) }
    }

    /// Whether a copy is in the life in which the view knows it.
    pub(super) fn is_recorded(&self, member: MemberIndex) -> bool {
        let known = self.view.members[usize::from(member.0)].state;
        self.member(member).incarnation.is_some_and(|incarnation| known == MemberState::InSync(incarnation))
    }

    fn check_recorded(&mut self) {
        if self.change.is_some() || self.wanted_view().is_some() {
            return;
        }
        if self.in_sync().len() == 1 {
            // There is nothing that it could differ from.
            self.unreconciled.clear();
        }
        self.serve();
    }

    /// What the copies know together of each region.
    fn merge_rows(&mut self) {
        self.rows = vec![Row::default(); self.regions.count() as usize];
        for member in self.in_sync().iter() {
            let theirs = std::mem::take(&mut self.members[usize::from(member.0)].rows);
            for (row, theirs) in self.rows.iter_mut().zip(&theirs) {
                row.written = row.written.max(theirs.written);
                row.intent |= theirs.intent;
            }
        }
        let number = self.view.number;
        for (index, row) in (0u32..).zip(&mut self.rows) {
            if row.intent {
                row.written = number;
                self.open.insert(RegionIndex(index), super::Open::default());
            }
        }
        if !self.open.is_empty() {
            // What the last writer left may be durable nowhere.
            self.retained.expose();
            self.sweep_at = self.now;
        }
        if self.in_sync().len() > 1 {
            self.unreconciled = self.open.keys().copied().collect();
        }
    }

    /// What has not been reconciled the guest has not seen, so that one copy in sync is as good as another.
    pub(super) fn choose_source(&mut self) {
        let candidates = self.in_sync().without(self.lost());
        self.source = candidates.iter().max_by_key(|&member| (Some(member) == self.local, std::cmp::Reverse(member)));
    }

    fn serve(&mut self) {
        self.phase = Phase::Serving;
        self.actions.push(Action::Serve);
        self.consider_change();
        self.dispatch();
    }

    /// Whether nothing may be asked of any copy but to accept a view.
    pub(super) fn is_held(&self) -> bool {
        self.phase != Phase::Serving || self.change.as_ref().is_some_and(|change| change.holds())
    }

    /// A member has answered [`Request::Accept`].
    pub(super) fn accepted(&mut self, member: MemberIndex, number: ViewNumber, reply: Reply) {
        if reply != Reply::Done {
            self.expect_done(member, reply);
            self.announce_again(member);
            return;
        }
        if self.change.as_ref().is_some_and(|change| change.next.number == number) {
            self.change_accepted(member);
        } else if self.member(member).standing == Standing::Accepting && number == self.view.number {
            self.gathered(member);
        }
    }

    /// The requests of the guest, for a look from outside.
    pub fn requests_in_flight(&self) -> usize {
        self.requests.iter().filter(|(_, request): &(usize, &GuestRequest)| !request.is_waiting()).count()
    }

    /// Whether the link with a member is up.
    pub fn is_linked(&self, member: MemberIndex) -> bool {
        self.member(member).link == Link::Up
    }
}
