//! Writes that are acknowledged and may not be durable anywhere.
//!
//! As long as the copy in this process is in sync and stays, it has them, and it lives as long as the guest is served.
//! Without it every copy may lose power at once. Then the writer keeps what no flush has covered, and a
//! copy that comes back in a new life is **revived**: it is sent all of that again before anything else, and has
//! lost nothing. Of each byte it is sent the newest only: it may have lost nothing to begin with, and must not
//! go back in time, in case the writer ends meanwhile. What is kept is bounded: when it comes near the bound, the
//! writer flushes.

use std::collections::{BTreeMap, VecDeque};

use super::{Action, Lane, Link, Loss, Operation, Payload, Purpose, Writer};
use crate::replication::message::{Reply, Request};
use crate::replication::view::MemberIndex;

/// What is kept, oldest first.
#[derive(Debug, Default)]
pub struct Retained {
    entries: VecDeque<Entry>,
    bytes: u64,
    /// The number of the next one.
    next: u64,
    /// How many writes have been acknowledged.
    acknowledged: u64,
    /// The last of them that was not kept, while no flush has covered it.
    exposed: Option<u64>,
}

/// What a flush covers: everything before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mark {
    entry: u64,
    acknowledged: u64,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    operation: Operation,
}

/// A part of a kept write that has to be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    entry: u64,
    /// How many bytes of the write come before it.
    skip: u64,
    len: u64,
}

impl Retained {
    /// The newest of each byte that is kept under `first` and later numbers, newest first.
    fn newest(&self, first: u64) -> VecDeque<Replay> {
        let mut covered = BTreeMap::new();
        let mut replays = VecDeque::new();
        for entry in self.entries.iter().rev().take_while(|entry| entry.number >= first) {
            let (offset, len) = entry.operation.range();
            for (start, end) in cover(&mut covered, offset, offset + len) {
                replays.push_back(Replay { entry: entry.number, skip: start - offset, len: end - start });
            }
        }
        replays
    }

    /// What to send for it, if it is still kept.
    fn request(&self, replay: &Replay) -> Option<Request> {
        let at = self.entries.partition_point(|entry| entry.number < replay.entry);
        let entry = self.entries.get(at).filter(|entry| entry.number == replay.entry)?;
        let (offset, _) = entry.operation.range();
        let offset = offset + replay.skip;
        Some(match entry.operation {
            Operation::Zero { durable, .. } => Request::Zero { offset, len: replay.len, durable },
            Operation::Write { durable, .. } => {
                Request::Write { offset, len: replay.len as u32, durable, sparse: false }
            }
            Operation::Read { .. } | Operation::Flush => return None,
        })
    }

    /// What a flush covers that begins now.
    pub fn mark(&self) -> Mark {
        Mark { entry: self.next, acknowledged: self.acknowledged }
    }

    /// There is something that is not kept, and that no flush has covered.
    pub fn expose(&mut self) {
        self.exposed = Some(self.acknowledged);
    }

    /// Whether everything is kept that no flush has covered.
    pub fn is_complete(&self) -> bool {
        self.exposed.is_none()
    }
}

impl Writer {
    /// Whether acknowledged writes have to be kept.
    pub(super) fn retains(&self) -> bool {
        let stays =
            |local: MemberIndex| self.in_sync().without(self.lost()).contains(local) && !self.is_to_leave(local);
        !self.local.is_some_and(stays)
    }

    /// Whether nothing more can be kept for now.
    pub(super) fn is_full(&self) -> bool {
        self.retained.bytes >= self.settings.retained_bytes_max
    }

    pub(super) fn is_nearly_full(&self) -> bool {
        self.retained.bytes * 2 >= self.settings.retained_bytes_max
    }

    /// A write is about to be acknowledged.
    pub(super) fn retain(&mut self, lane: Lane, token: u64, operation: Operation) {
        // A durable write is kept too: an older one under it may be sent again.
        if matches!(operation, Operation::Read { .. } | Operation::Flush) {
            return;
        }
        self.retained.acknowledged += 1;
        if !self.retains() {
            self.retained.expose();
            return;
        }
        let number = self.retained.next;
        self.retained.next += 1;
        self.retained.bytes += kept_bytes(&operation);
        self.retained.entries.push_back(Entry { number, operation });
        self.actions.push(Action::Retain { lane, token, entry: number });
    }

    /// A flush of all copies that are in sync has ended that began at `mark`.
    pub(super) fn release(&mut self, mark: Mark) {
        self.retained.exposed = self.retained.exposed.filter(|&exposed| exposed > mark.acknowledged);
        let kept = self.retained.entries.len();
        while let Some(entry) = self.retained.entries.front()
            && entry.number < mark.entry
        {
            self.retained.bytes -= kept_bytes(&entry.operation);
            self.retained.entries.pop_front();
        }
        if self.retained.entries.len() < kept {
            self.actions.push(Action::Release { before: mark.entry });
        }
    }

    /// A copy has come back in a new life: it is sent what it may have lost.
    pub(super) fn revive(&mut self, member: MemberIndex) {
        // It may have flushed for a sweep in its last life, and would not settle what it is now sent again.
        self.sweep = None;
        let replays = self.retained.newest(0);
        let mark = self.retained.next;
        let entry = self.member_mut(member);
        entry.link = Link::Reviving;
        entry.replays = replays;
        entry.replays_before = mark;
        self.replay(member);
    }

    fn replay(&mut self, member: MemberIndex) {
        while let Some(replay) = self.member_mut(member).replays.pop_front() {
            // A flush that it had answered in its last life may have covered it since.
            let Some(request) = self.retained.request(&replay) else { continue };
            let payload = Payload::Retained { entry: replay.entry, skip: replay.skip };
            self.issue(member, Lane::CONTROL, Purpose::Replay, request, payload);
            return;
        }
        let mark = self.member(member).replays_before;
        if mark < self.retained.next {
            // Acknowledged meanwhile, by its answer in the last life.
            let replays = self.retained.newest(mark);
            let next = self.retained.next;
            let entry = self.member_mut(member);
            entry.replays = replays;
            entry.replays_before = next;
            return self.replay(member);
        }
        let entry = self.member_mut(member);
        entry.link = Link::Up;
        entry.down_since = None;
        entry.incarnation = entry.reviving.take().or(entry.incarnation);
        self.resend(member, true);
        self.issue_again(member);
        self.consider_change();
    }

    /// A copy that is being revived has answered.
    pub(super) fn replayed(&mut self, member: MemberIndex, reply: Reply) {
        match reply {
            Reply::Done => self.replay(member),
            Reply::Failed(errno) => self.lose(member, Loss::Failed(errno)),
            other => self.expect_done(member, other),
        }
    }
}

/// Covers a range; gives back the parts of it that were not covered yet.
fn cover(covered: &mut BTreeMap<u64, u64>, start: u64, end: u64) -> Vec<(u64, u64)> {
    let mut gaps = Vec::new();
    let mut merged = (start, end);
    let mut at = start;
    let first = covered.range(..=start).next_back().map_or(start, |(&begin, _)| begin);
    let touched: Vec<(u64, u64)> = covered.range(first..end).map(|(&begin, &stop)| (begin, stop)).collect();
    for (begin, stop) in touched {
        if stop < start {
            continue;
        }
        if begin > at {
            gaps.push((at, begin));
        }
        at = at.max(stop);
        merged = (merged.0.min(begin), merged.1.max(stop));
        covered.remove(&begin);
    }
    if at < end {
        gaps.push((at, end));
    }
    covered.insert(merged.0, merged.1);
    gaps
}

/// What an entry counts for: its bytes, and something for itself.
fn kept_bytes(operation: &Operation) -> u64 {
    match *operation {
        Operation::Write { len, .. } => u64::from(len) + ENTRY_BYTES,
        _ => ENTRY_BYTES,
    }
}

const ENTRY_BYTES: u64 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    fn write(number: u64, offset: u64, len: u32) -> Entry {
        Entry { number, operation: Operation::Write { offset, len, durable: false } }
    }

    #[test]
    fn of_each_byte_the_newest_is_sent_again() {
        let entries = [write(3, 0, 100), write(4, 20, 20), write(5, 30, 40), write(6, 200, 10)];
        let retained = Retained { entries: entries.into(), next: 7, ..Retained::default() };
        let parts = |first| -> Vec<(u64, u64, u64)> {
            retained.newest(first).iter().map(|replay| (replay.entry, replay.skip, replay.len)).collect()
        };
        assert_eq!(parts(0), [(6, 0, 10), (5, 0, 40), (4, 0, 10), (3, 0, 20), (3, 70, 30)]);
        assert_eq!(parts(6), [(6, 0, 10)]);
        assert_eq!(parts(7), []);
        let gone = Replay { entry: 2, skip: 0, len: 1 };
        assert_eq!(retained.request(&gone), None);
        let part = Replay { entry: 3, skip: 70, len: 30 };
        let expected = Request::Write { offset: 70, len: 30, durable: false, sparse: false };
        assert_eq!(retained.request(&part), Some(expected));
    }

    #[test]
    fn what_is_covered_leaves_gaps_and_grows_together() {
        let mut covered = BTreeMap::new();
        assert_eq!(cover(&mut covered, 10, 20), [(10, 20)]);
        assert_eq!(cover(&mut covered, 30, 40), [(30, 40)]);
        assert_eq!(cover(&mut covered, 5, 45), [(5, 10), (20, 30), (40, 45)]);
        assert_eq!(covered.iter().collect::<Vec<_>>(), [(&5, &45)]);
        assert_eq!(cover(&mut covered, 5, 45), []);
        assert_eq!(cover(&mut covered, 0, 1), [(0, 1)]);
    }
}
