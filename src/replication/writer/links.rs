//! Sessions with members.
//!
//! A copy in sync whose session breaks has the peer timeout to come back in the same life; what it has not
//! answered is then sent again, which is safe because a write that is not answered overlaps no other. One
//! that comes back in another life, or too late, or that answers too slowly, is lost: it has to leave the
//! view. A member that is not in sync just starts over.

use std::collections::BTreeSet;

use super::member::{BACKOFF_US_MIN, Member};
use super::{
    Action, Change, Command, Lane, Link, Loss, MemberSet, Payload, Phase, Purpose, Standing, StopReason, Time, Writer,
};
use crate::replication::message::{Request, Welcome};
use crate::replication::view::{Incarnation, MemberIndex, ViewNumber};

impl Writer {
    /// The session that [`Action::Connect`] asked for is up.
    pub fn connected(&mut self, now: Time, member: MemberIndex, session: u64, welcome: Welcome) {
        if !self.enter(now) || self.member(member).session != session {
            return;
        }
        if welcome.accepted > self.newest_view() {
            self.stop(StopReason::Replaced(None));
            return;
        }
        let is_changing = self.change.as_ref().is_some_and(Change::is_quiet);
        let entry = self.member_mut(member);
        if !matches!(entry.link, Link::Connecting { .. }) {
            return;
        }
        entry.link = Link::Up;
        entry.backoff_us = BACKOFF_US_MIN;
        entry.reviving = None;
        if entry.standing == Standing::Absent {
            entry.incarnation = Some(welcome.incarnation);
            entry.standing = Standing::Greeted;
        } else if entry.incarnation == Some(welcome.incarnation) {
            entry.down_since = None;
            self.resend(member, false);
        } else if is_changing {
            // It is sent what it may have lost in the view to come: it refuses the one in force if it has accepted.
            entry.reviving = Some(welcome.incarnation);
            self.resend(member, true);
        } else {
            self.came_back(member, welcome.incarnation);
        }
        self.settle_down();
    }

    /// A copy is here again in a new life.
    pub(super) fn came_back(&mut self, member: MemberIndex, incarnation: Incarnation) {
        let is_last = self.is_last(member);
        if self.retained.is_complete() && (is_last || self.retains()) {
            self.member_mut(member).reviving = Some(incarnation);
            self.revive(member);
        } else if is_last {
            self.stop(StopReason::Lost);
        } else {
            self.lose(member, Loss::Restarted);
        }
    }

    /// There is no session with a member: it could not be made, or it has ended. A copy that has accepted a
    /// higher view says so in `superseded`.
    pub fn disconnected(&mut self, now: Time, member: MemberIndex, session: u64, superseded: Option<ViewNumber>) {
        if !self.enter(now) || self.member(member).session != session {
            return;
        }
        if superseded.is_some_and(|number| number > self.newest_view()) {
            self.stop(StopReason::Replaced(None));
            return;
        }
        self.link_down(member);
        self.settle_down();
    }

    /// Has the session with a member replaced by a new one, which takes over what was asked for: to be done when
    /// this node has a new certificate. False if it is not the time: something is wrong with a copy, or about to
    /// change. With one that was removed there is nothing to renew.
    pub fn renew_session(&mut self, now: Time, member: MemberIndex) -> bool {
        if self.view.is_retired(member) {
            return true;
        }
        let calm = self.enter(now)
            && self.phase == Phase::Serving
            && self.change.is_none()
            && self.present().all(|member| self.member(member).link == Link::Up && self.member(member).lost.is_none());
        if calm {
            self.start_session_over(member);
        }
        calm
    }

    fn link_down(&mut self, member: MemberIndex) {
        let now = self.now;
        let owed = self.owed().contains(member);
        self.void_checks(member);
        let entry = self.member_mut(member);
        if matches!(entry.link, Link::Down { .. }) {
            return;
        }
        let retry_at = entry.next_retry(now);
        entry.link = Link::Down { retry_at };
        if owed && entry.standing == Standing::InSync {
            entry.down_since.get_or_insert(now);
            self.drop_replays(member);
        } else {
            self.leave(member);
        }
    }

    /// The view that a member may have been asked to accept.
    pub(super) fn newest_view(&self) -> ViewNumber {
        match &self.change {
            Some(change) if change.is_stored() => change.next.number,
            _ => self.view.number,
        }
    }

    pub(super) fn check_links(&mut self) {
        if matches!(self.phase, Phase::Claiming { .. }) {
            return;
        }
        let timeout_us = self.settings.peer_timeout_us;
        for member in self.everyone() {
            let now = self.now;
            let entry = self.member(member);
            match entry.link {
                Link::Down { retry_at } if retry_at <= now && entry.lost.is_none() && !self.is_retired(member) => {
                    self.connect(member);
                }
                Link::Connecting { since } if now.since_us(since) > timeout_us * 2 => {
                    self.actions.push(Action::Disconnect { member });
                    self.link_down(member);
                }
                _ => {}
            }
            let down_since = self.member(member).down_since;
            if down_since.is_some_and(|since| now.since_us(since) > timeout_us) && !self.is_last(member) {
                self.lose(member, Loss::Unreachable);
            }
        }
        self.check_answers();
        self.ping();
    }

    fn connect(&mut self, member: MemberIndex) {
        let (now, view) = (self.now, self.newest_view());
        let entry = self.member_mut(member);
        entry.session += 1;
        entry.link = Link::Connecting { since: now };
        let session = entry.session;
        self.actions.push(Action::Connect { member, session, view });
    }

    /// Has lanes looked at on which something has not been answered for too long. The answer may be there, and only
    /// the lane has stood still: that is not the member's fault.
    fn check_answers(&mut self) {
        let lanes: BTreeSet<Lane> = self.late().map(|command| command.lane).collect();
        for lane in lanes {
            if self.looking.insert(lane) {
                self.actions.push(Action::Look { lane });
            }
        }
    }

    /// Everything that has come on a lane's connections, since [`Action::Look`] asked for it and before, has been told:
    /// what is not answered now is late, and whoever was asked for it is lost.
    pub fn looked(&mut self, now: Time, lane: Lane) {
        if !self.enter(now) || !self.looking.remove(&lane) {
            return;
        }
        let late = self.late().filter(|command| command.lane == lane);
        let late: BTreeSet<MemberIndex> = late.map(|command| command.member).collect();
        for member in late {
            self.lose(member, Loss::Slow);
        }
        self.settle_down();
    }

    /// What was asked for too long ago. The copy in this process is let be: its disk may still be using the guest's
    /// memory.
    fn late(&self) -> impl Iterator<Item = &Command> {
        self.commands.iter().map(|(_, command)| command).filter(|command| {
            let is_asked = match self.member(command.member).link {
                Link::Up => true,
                Link::Reviving => command.purpose == Purpose::Replay,
                Link::Down { .. } | Link::Connecting { .. } => false,
            };
            let is_late = self.now.since_us(command.issued) > self.settings.peer_timeout_us;
            is_asked && is_late && Some(command.member) != self.local
        })
    }

    fn ping(&mut self) {
        let (now, interval_us) = (self.now, self.settings.ping_interval_us);
        for member in self.everyone() {
            let entry = self.member(member);
            if Some(member) == self.local || entry.link != Link::Up || entry.standing < Standing::Greeted {
                continue;
            }
            let asked = self.commands.iter().any(|(_, command)| command.member == member);
            if !asked && now.since_us(entry.heard) >= interval_us {
                self.issue(member, Lane::CONTROL, Purpose::Ping, Request::Ping, Payload::None);
            }
        }
    }

    pub(super) fn resend(&mut self, member: MemberIndex, revived: bool) {
        let mine = self.commands.iter().filter(|(_, command)| command.member == member);
        let ids: Vec<u64> = mine.map(|(key, _)| key as u64).collect();
        let (now, anew) = (self.now, revived || self.is_last(member));
        for id in ids {
            if anew {
                // It cannot leave, or was not asked before in this life.
                self.commands[id as usize].issued = now;
            }
            self.send(id);
        }
    }

    /// Whether no other copy is in sync.
    fn is_last(&self, member: MemberIndex) -> bool {
        self.remaining() == MemberSet::only(member)
    }

    /// Ends a session, to begin another; what was asked for stays asked for.
    pub(super) fn start_session_over(&mut self, member: MemberIndex) {
        self.cut(member);
        self.drop_replays(member);
        let now = self.now;
        self.member_mut(member).down_since.get_or_insert(now);
    }

    /// Replays begin anew with each session, and what nobody waits for is not asked again.
    fn drop_replays(&mut self, member: MemberIndex) {
        self.drop_commands(|command| {
            command.member == member && matches!(command.purpose, Purpose::Replay | Purpose::Late)
        });
    }

    /// The connections of a lane have ended, on which the guest waits for nothing: no answer will come on them.
    pub fn lane_ended(&mut self, now: Time, lane: Lane) {
        if self.enter(now) {
            self.looking.remove(&lane);
            self.drop_commands(|command| command.lane == lane && command.purpose == Purpose::Late);
            self.settle_down();
        }
    }

    fn drop_commands(&mut self, which: impl Fn(&Command) -> bool) {
        let keys: Vec<usize> = self.commands.iter().filter(|(_, command)| which(command)).map(|(key, _)| key).collect();
        for key in keys {
            let member = self.commands.remove(key).member;
            self.member_mut(member).outstanding -= 1;
        }
    }

    /// Gives a member up: if the view may call it in sync, it must leave before anything it lacks is
    /// acknowledged.
    pub(super) fn lose(&mut self, member: MemberIndex, loss: Loss) {
        self.give_up(member, loss);
        self.consider_change();
    }

    /// As [`lose`](Self::lose), for whoever changes the view itself.
    pub(super) fn give_up(&mut self, member: MemberIndex, loss: Loss) {
        if self.member(member).lost.is_some() {
            return;
        }
        if self.is_last(member) {
            // Nobody could go on without it: the guest waits for it.
            if self.member(member).standing == Standing::InSync {
                self.start_session_over(member);
            } else {
                self.cut(member);
                self.member_mut(member).reset();
                self.abandon(member);
            }
            return;
        }
        self.cut(member);
        if matches!(loss, Loss::Failed(_)) {
            let now = self.now;
            self.member_mut(member).rest(now);
        }
        if !self.owed().contains(member) || self.may_be_read(member) {
            self.leave(member);
            return;
        }
        self.member_mut(member).lost = Some(loss);
        self.actions.push(Action::Lost(member, loss));
        self.abandon(member);
        if self.source == Some(member) {
            self.choose_source();
        }
    }

    /// A member that is not in sync, or not yet, starts over; one that may be in sync by a change under way
    /// must leave again.
    fn leave(&mut self, member: MemberIndex) {
        if self.owed().contains(member) && self.member(member).standing == Standing::Joining {
            self.lose(member, Loss::Left);
            return;
        }
        self.member_mut(member).reset();
        self.abandon(member);
    }

    /// Ends the session with a member.
    fn cut(&mut self, member: MemberIndex) {
        let now = self.now;
        self.void_checks(member);
        let entry = self.member_mut(member);
        if !matches!(entry.link, Link::Down { .. }) {
            let retry_at = entry.next_retry(now);
            entry.link = Link::Down { retry_at };
            self.actions.push(Action::Disconnect { member });
        }
    }

    /// Takes back everything that a member was asked for.
    fn abandon(&mut self, member: MemberIndex) {
        let mine = self.commands.iter().filter(|(_, command)| command.member == member);
        let keys: Vec<usize> = mine.map(|(key, _)| key).collect();
        let purposes: Vec<Purpose> = keys.into_iter().map(|key| self.commands.remove(key).purpose).collect();
        self.member_mut(member).outstanding = 0;
        self.give_resync_up(member);
        self.sweep_lost(member);
        for purpose in purposes {
            match purpose {
                Purpose::Guest(key) => self.guest_unanswered(key, member),
                Purpose::CopyRead(copy) | Purpose::CopyWrite(copy) => self.copy_lost(copy, member),
                Purpose::Digest(check) | Purpose::HealRead(check) | Purpose::HealWrite(check) => {
                    self.check_lost(check, member);
                }
                Purpose::Accept(_) => self.change_lost(member),
                Purpose::ChangeFlush => self.change_lost(member),
                Purpose::Settle => self.settling.end_one(),
                Purpose::Rows | Purpose::Sweep(_) | Purpose::Finish | Purpose::Replay => {}
                Purpose::Late | Purpose::Ping => {}
            }
        }
        self.change_lost(member);
    }

    /// Moves members on whose turn it is.
    pub(super) fn advance_members(&mut self) {
        if self.phase == Phase::Stopped || self.change.is_some() {
            return;
        }
        for member in self.everyone() {
            let entry: &Member = self.member(member);
            let is_wanted = self.phase == Phase::Serving || self.in_sync().contains(member);
            if entry.lost.is_some() || entry.link != Link::Up || !is_wanted {
                continue;
            }
            match entry.standing {
                Standing::Greeted => {
                    self.member_mut(member).standing = Standing::Accepting;
                    let (number, view) = (self.view.number, Box::new(self.view.clone()));
                    let purpose = Purpose::Accept(number);
                    self.issue(member, Lane::CONTROL, purpose, Request::Accept(view), Payload::None);
                }
                Standing::Resyncing if self.is_resynced(member) => {
                    self.member_mut(member).standing = Standing::Finishing;
                    self.issue(member, Lane::CONTROL, Purpose::Finish, Request::Flush, Payload::None);
                }
                _ => {}
            }
        }
    }
}
