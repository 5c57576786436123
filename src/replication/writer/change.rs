//! Changes of the view.
//!
//! A change is stored first; then what is in flight is waited for, every copy of the new view accepts it,
//! and it is in force. While it is being stored the guest's requests go on; only what a lost copy lacks is
//! not acknowledged. Whether a swap landed may be unknown: then the very same swap is tried again until the
//! store says, because a late one may still land.
//!
//! A copy that has accepted the new view refuses whatever comes in the old one. So, once nothing else is in flight,
//! pings go out in the new view, and a copy that comes back in a new life is sent what it may have lost when that
//! is in force.

use super::attach::Swapped;
use super::{Action, Lane, Link, Loss, MemberSet, Payload, Phase, Purpose, Standing, StopReason, Time, Writer};
use crate::replication::message::{Reply, Request};
use crate::replication::view::{MemberIndex, MemberState, View};

/// A change under way.
#[derive(Debug)]
pub struct Change {
    pub next: View,
    stage: Stage,
    /// Some try may yet land.
    doubtful: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// On its way to the store; `retry_at` after nobody could say whether it got there.
    Storing { retry_at: Option<Time> },
    /// Stored; what is in flight comes first.
    Draining,
    /// The copy in this process leaves: with those that have not flushed, so that it is not missed if they
    /// lose power.
    Flushing(MemberSet),
    /// With those that have not accepted it.
    Announcing(MemberSet),
}

impl Change {
    /// Whether nothing else may be asked of any copy.
    pub fn holds(&self) -> bool {
        self.is_stored()
    }

    pub fn is_stored(&self) -> bool {
        !matches!(self.stage, Stage::Storing { .. })
    }

    /// Whether nothing is in flight any more, nor may be until the view is in force.
    pub fn is_quiet(&self) -> bool {
        matches!(self.stage, Stage::Flushing(_) | Stage::Announcing(_))
    }
}

impl Writer {
    /// Changes the view if there is reason to.
    pub(super) fn consider_change(&mut self) {
        let early = matches!(self.phase, Phase::Claiming { .. } | Phase::Stopped);
        if early || self.change.is_some() || self.store_retry_at > self.now {
            return;
        }
        self.consider_edit();
        if let Some(next) = self.wanted_view() {
            self.change = Some(Change { next, stage: Stage::Storing { retry_at: None }, doubtful: false });
            self.store();
        }
    }

    /// The view that should be, if it is not the one in force.
    pub(super) fn wanted_view(&self) -> Option<View> {
        let serving = self.phase == Phase::Serving;
        let gathered = serving || self.phase == Phase::Recording;
        let mut next = self.view.clone();
        let mut renumber = false;
        for index in self.everyone() {
            let member = self.member(index);
            let state = &mut next.members[usize::from(index.0)].state;
            match (*state, member.incarnation) {
                (MemberState::InSync(_), _) if member.lost.is_some() => *state = MemberState::Behind,
                (MemberState::InSync(_), Some(incarnation)) if gathered => *state = MemberState::InSync(incarnation),
                (MemberState::Behind | MemberState::Added, Some(incarnation))
                    if serving && member.standing == Standing::Joining && member.lost.is_none() =>
                {
                    *state = MemberState::InSync(incarnation);
                }
                _ => {}
            }
            renumber |= serving && member.standing == Standing::Prepared;
        }
        if serving {
            self.apply_edit(&mut next);
        }
        // The last copy cannot leave: the guest waits until one comes back.
        if next.in_sync().next().is_none() || next == self.view && !renumber {
            return None;
        }
        next.number = self.view.number.next();
        Some(next)
    }

    fn store(&mut self) {
        let Some(change) = &mut self.change else { return };
        change.stage = Stage::Storing { retry_at: None };
        let next = Box::new(change.next.clone());
        self.actions.push(Action::Swap { current: self.view.number, next });
    }

    pub(super) fn change_swapped(&mut self, result: Swapped) {
        let Some(change) = &mut self.change else { return };
        if change.is_stored() {
            return;
        }
        let retry_at = self.now.after_us(self.settings.store_retry_us);
        match result {
            Swapped::Stored => self.change_stored(),
            Swapped::Conflict(actual) if *actual == change.next => self.change_stored(),
            Swapped::Conflict(actual) => self.stop(StopReason::Replaced(actual.writer)),
            Swapped::Unknown => {
                change.doubtful = true;
                change.stage = Stage::Storing { retry_at: Some(retry_at) };
            }
            Swapped::Unavailable if change.doubtful => change.stage = Stage::Storing { retry_at: Some(retry_at) },
            Swapped::Unavailable => {
                self.store_retry_at = retry_at;
                self.give_change_up();
            }
        }
    }

    /// From here on the view in force is only what has to be finished.
    fn change_stored(&mut self) {
        let retiring = self.retiring();
        if let Some(change) = &mut self.change {
            change.stage = Stage::Draining;
        }
        for member in retiring.iter() {
            self.give_up(member, Loss::Removed);
        }
    }

    /// Members that leave for good by the change under way. Once that may be stored, another writer may take over
    /// without a word to them: what they have is no longer known to be current.
    pub(super) fn retiring(&self) -> MemberSet {
        let Some(change) = &self.change else { return MemberSet::default() };
        self.everyone().filter(|&member| change.next.is_retired(member) && !self.view.is_retired(member)).collect()
    }

    /// Whether the removal of a member may be stored, for a look from outside.
    pub fn is_retiring(&self, member: MemberIndex) -> bool {
        self.retiring().contains(member)
    }

    /// Whether a member was removed, as far as is stored for certain.
    pub(super) fn is_retired(&self, member: MemberIndex) -> bool {
        let stored = self.change.as_ref().filter(|change| change.is_stored());
        self.view.is_retired(member) || stored.is_some_and(|change| change.next.is_retired(member))
    }

    /// Nothing was stored: what was to change may be something else by the next try.
    fn give_change_up(&mut self) {
        self.change = None;
        for member in self.everyone() {
            // One that was to join and has left is owed nothing any more.
            if self.member(member).lost.is_some() && !self.in_sync().contains(member) {
                self.member_mut(member).lost = None;
                self.member_mut(member).reset();
            }
        }
        self.recount();
    }

    pub(super) fn check_change(&mut self) {
        match &self.change {
            Some(Change { stage: Stage::Storing { retry_at: Some(at) }, .. }) if *at <= self.now => self.store(),
            None => self.consider_change(),
            _ => {}
        }
    }

    /// Announces a view that is stored, once nothing else is in flight.
    pub(super) fn announce_if_quiet(&mut self) {
        let lost = self.lost();
        let Some(change) = &self.change else { return };
        if change.stage != Stage::Draining {
            return;
        }
        let busy = self.everyone().any(|member| !lost.contains(member) && self.member(member).outstanding > 0);
        if busy {
            return;
        }
        let in_sync: MemberSet = change.next.in_sync().collect();
        let leaves = self.local.is_some_and(|local| self.in_sync().contains(local) && !in_sync.contains(local));
        if !leaves {
            self.announce();
            return;
        }
        let flushing = in_sync.without(lost);
        if let Some(change) = &mut self.change {
            change.stage = Stage::Flushing(flushing);
        }
        for member in flushing.iter() {
            self.issue(member, Lane::CONTROL, Purpose::ChangeFlush, Request::Flush, Payload::None);
        }
    }

    pub(super) fn change_flushed(&mut self, member: MemberIndex, reply: Reply) {
        match reply {
            Reply::Done => {}
            Reply::Failed(errno) => self.lose(member, Loss::Failed(errno)),
            other => self.expect_done(member, other),
        }
        self.change_accepted(member);
    }

    fn announce(&mut self) {
        let lost = self.lost();
        let Some(change) = &self.change else { return };
        let next = change.next.clone();
        let in_sync: MemberSet = next.in_sync().collect();
        let told: MemberSet = self
            .everyone()
            .filter(|&member| {
                let entry = self.member(member);
                in_sync.contains(member) || entry.link == Link::Up && entry.standing >= Standing::Accepting
            })
            .collect();
        let told = told.without(lost);
        if let Some(change) = &mut self.change {
            change.stage = Stage::Announcing(told);
        }
        for member in told.iter() {
            let request = Request::Accept(Box::new(next.clone()));
            self.issue(member, Lane::CONTROL, Purpose::Accept(next.number), request, Payload::None);
        }
        self.adopt_if_accepted();
    }

    pub(super) fn change_accepted(&mut self, member: MemberIndex) {
        match &mut self.change {
            Some(Change { stage: Stage::Flushing(awaited), .. }) => {
                awaited.remove(member);
                if awaited.is_empty() {
                    self.announce();
                }
            }
            Some(Change { stage: Stage::Announcing(awaited), .. }) => {
                awaited.remove(member);
                self.adopt_if_accepted();
            }
            _ => {}
        }
    }

    /// A member that nobody can go on without has failed to accept: it is asked again when it is back.
    pub(super) fn announce_again(&mut self, member: MemberIndex) {
        let Some(Change { stage: Stage::Announcing(awaited), next, .. }) = &self.change else { return };
        if awaited.contains(member) && self.member(member).lost.is_none() {
            let (number, request) = (next.number, Request::Accept(Box::new(next.clone())));
            self.issue(member, Lane::CONTROL, Purpose::Accept(number), request, Payload::None);
        }
    }

    /// A member will not accept anything any more.
    pub(super) fn change_lost(&mut self, member: MemberIndex) {
        self.change_accepted(member);
    }

    fn adopt_if_accepted(&mut self) {
        match &self.change {
            Some(Change { stage: Stage::Announcing(awaited), next, .. }) if awaited.is_empty() => {
                let lost: MemberSet = self.lost();
                // With nobody left there is nothing to go on with: the next change comes when one is back.
                if next.in_sync().all(|member| lost.contains(member)) {
                    return;
                }
                let Some(change) = self.change.take() else { return };
                self.adopt(change.next);
            }
            _ => {}
        }
    }

    fn adopt(&mut self, next: View) {
        let old = std::mem::replace(&mut self.view, next);
        self.take_places(&old);
        self.local = self.local.filter(|&local| !self.view.is_retired(local));
        let number = self.view.number;
        for &region in self.open.keys() {
            // So have the copies done, when they accepted.
            self.rows[region.0 as usize].written = number;
        }
        let in_sync = self.in_sync();
        for member in self.everyone() {
            let entry = self.member_mut(member);
            let was = entry.standing;
            if in_sync.contains(member) {
                if was == Standing::Joining && entry.lost.is_none() {
                    entry.standing = Standing::InSync;
                    entry.failures = 0;
                    self.joined(member);
                }
            } else if entry.lost.take().is_some() {
                entry.reset();
            } else if was == Standing::Prepared {
                entry.standing = Standing::Resyncing;
                entry.resync_view = number;
            }
        }
        self.sweep = None;
        self.actions.push(Action::Adopted(Box::new(self.view.clone())));
        self.edit_adopted();
        self.recount();
        self.revive_all();
        self.consider_change();
        self.check_attach();
    }

    /// Copies that came back in a new life while nothing could be asked of them.
    fn revive_all(&mut self) {
        for member in self.everyone() {
            let entry = self.member_mut(member);
            if entry.link == Link::Up
                && let Some(incarnation) = entry.reviving.take()
            {
                self.came_back(member, incarnation);
            }
        }
    }

    /// A member is in sync: what only it had marked, everyone settles from now on.
    fn joined(&mut self, member: MemberIndex) {
        let unsettled = std::mem::take(&mut self.member_mut(member).unsettled);
        for region in unsettled {
            let row = &mut self.rows[region.0 as usize];
            row.intent = true;
            row.written = self.view.number;
            self.open.entry(region).or_default();
        }
    }
}
