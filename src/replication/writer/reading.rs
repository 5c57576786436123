//! Whom to read from: any copy in sync has the right bytes, and some have them sooner.
//!
//! Of each member it is kept how long its reads take, smoothed. A read goes to the copy in this process, which costs
//! no message; else to the member where it is likely to be answered first, by what that has to do and how long its
//! reads take; and among those that are about as good, to the one whose turn it is.
//!
//! What was measured is halved with every second without a new measure. So a member that was slow is tried again, by
//! one read at a time: the sooner the less slow it was, and at the latest after [`MEMORY_US_MAX`]. A read that is not
//! answered counts while it waits, so that a member which has come to a stop is left alone before it is lost.
//!
//! A read that has waited for long is sent to another member, if one is there that will be quicker, and the first is
//! not waited for any more. It may still answer, in its own time, so the command stays: its number is not free, and a
//! member that answers nothing is lost for it as for any other. Invariant: the bytes of a late answer go nowhere;
//! [`Action::Abandon`] says so before the other is asked. Where a copy is in this process no read is sent elsewhere:
//! memory that was lent to a disk is not to be had. Nor is one that was lent to it before that copy was removed.
//!
//! Nothing depends on these numbers but how long reads take: which copies may be read is not decided here.

use super::{Action, Command, MemberSet, Payload, Purpose, Time, Writer};
use crate::replication::message::{Reply, Request};
use crate::replication::view::MemberIndex;

/// How long the reads of a member take.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadTime {
    /// Smoothed, in microseconds, as it was at `since`.
    us: u64,
    since: Time,
    /// The number of the newest read that it was sent, over all members.
    turn: u64,
}

impl ReadTime {
    /// What it is by now.
    fn us(&self, now: Time) -> u64 {
        let halvings = now.since_us(self.since) / HALVING_US;
        if halvings < u64::from(u64::BITS) { self.us >> halvings } else { 0 }
    }

    /// A read has taken so long. One that is slow counts more than one that is quick: others are quick as well.
    fn took(&mut self, now: Time, us: u64) {
        let (before, us) = (self.us(now), us.min(READ_US_MAX));
        self.us = if us > before { before + (us - before).div_ceil(2) } else { before - (before - us) / 8 };
        self.since = now;
    }

    /// A read that has not been answered has been waiting for so long.
    fn takes(&mut self, now: Time, us: u64) {
        let us = us.min(READ_US_MAX);
        if us > self.us(now) {
            (self.us, self.since) = (us, now);
        }
    }

    /// How much longer than the quickest, as a power of two. So those that differ by less than measures do are alike.
    fn class(&self, now: Time) -> u32 {
        (self.us(now) / ALIKE_US).checked_ilog2().map_or(0, |power| power + 1)
    }
}

impl Writer {
    /// Who of these is read from best.
    pub(super) fn best_reader(&self, candidates: MemberSet) -> Option<MemberIndex> {
        candidates.iter().min_by_key(|&member| {
            let entry = self.member(member);
            let wait = (entry.outstanding as u64 + 1) << entry.reading.class(self.now);
            (entry.link != super::Link::Up, wait, entry.reading.turn, member)
        })
    }

    /// Who of these is read from best, if that is likely to be quicker than to wait for `member`.
    pub(super) fn quicker_reader(&self, candidates: MemberSet, member: MemberIndex) -> Option<MemberIndex> {
        let class = |member| self.member(member).reading.class(self.now);
        let is_quicker =
            |&other: &MemberIndex| self.member(other).link == super::Link::Up && class(other) < class(member);
        self.best_reader(candidates.iter().filter(is_quicker).collect())
    }

    /// Has reads that have waited for too long answered by others.
    pub(super) fn ask_others(&mut self) {
        if self.local.is_some() {
            return;
        }
        let patience_us = self.settings.peer_timeout_us / READ_PATIENCE;
        let waits = |command: &Command| match command.purpose {
            Purpose::Guest(key) if command.is_guest_read() && self.now.since_us(command.sent) > patience_us => {
                Some(key)
            }
            _ => None,
        };
        let late: Vec<(usize, usize)> =
            self.commands.iter().filter_map(|(id, command)| Some((id, waits(command)?))).collect();
        for (id, key) in late {
            self.read_elsewhere(id, key);
        }
    }

    /// Nobody waits for the answer to a read any more.
    pub(super) fn leave_unanswered(&mut self, id: usize) {
        let (member, lane) = (self.commands[id].member, self.commands[id].lane);
        if self.member(member).link == super::Link::Up {
            let command = &mut self.commands[id];
            (command.purpose, command.payload) = (Purpose::Late, Payload::None);
            self.actions.push(Action::Abandon { member, lane, id: id as u64 });
        } else {
            // It is not with the member, and needs not go there.
            self.commands.remove(id);
            self.member_mut(member).outstanding -= 1;
        }
    }

    /// A read goes to a member.
    pub(super) fn note_reader(&mut self, member: MemberIndex) {
        self.reads += 1;
        let turn = self.reads;
        self.member_mut(member).reading.turn = turn;
    }

    /// A member has answered a command. One that cannot read is as good as one that is slow.
    pub(super) fn note_read_time(&mut self, command: &Command, reply: &Reply) {
        if !command.is_guest_read() {
            return;
        }
        let now = self.now;
        let us = if let Reply::Data | Reply::Zeros = reply { now.since_us(command.sent) } else { READ_US_MAX };
        self.member_mut(command.member).reading.took(now, us);
    }

    /// Looks at the reads that have not been answered.
    pub(super) fn check_reads(&mut self) {
        let now = self.now;
        for (_, command) in &self.commands {
            if command.is_guest_read() {
                let member = &mut self.members[usize::from(command.member.0)];
                member.reading.takes(now, now.since_us(command.sent));
            }
        }
    }
}

impl Command {
    fn is_guest_read(&self) -> bool {
        matches!((self.purpose, &self.request), (Purpose::Guest(_) | Purpose::Late, Request::Read { .. }))
    }
}

/// In which time what was measured is halved if nothing new is.
const HALVING_US: u64 = 1_000_000;
/// Reads that take less than this are as quick as any.
const ALIKE_US: u64 = 128;
/// No read counts as slower.
const READ_US_MAX: u64 = 1 << 20;
/// The part of the peer timeout after which a read is sent elsewhere.
const READ_PATIENCE: u64 = 8;
/// After so long nothing is left of a measure.
pub const MEMORY_US_MAX: u64 = HALVING_US * 14;
const _: () = assert!(READ_US_MAX >> (MEMORY_US_MAX / HALVING_US) < ALIKE_US);
