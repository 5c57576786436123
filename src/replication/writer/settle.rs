//! Clearing the intents of regions that have gone quiet.
//!
//! A sweep flushes every copy that is in sync. What nobody has written since it began is then equal and
//! durable on all of them, and they are told so. Until they have answered no write of such a region begins: a
//! copy that was told late would take an intent for settled that came after. (A replica refuses to settle what
//! it was asked to write since its last flush, but it may have flushed by then, and others lack the write.)

use std::collections::BTreeSet;

use super::retain::Mark;
use super::{Lane, Loss, MemberSet, Payload, Purpose, Writer};
use crate::replication::message::{Reply, Request, SETTLED_MAX};
use crate::replication::region::RegionIndex;
use crate::replication::view::{MemberIndex, ViewNumber};

/// Regions that copies are being told to settle.
#[derive(Debug, Default)]
pub struct Settling {
    regions: BTreeSet<RegionIndex>,
    /// How many have not answered.
    unanswered: usize,
}

impl Settling {
    fn begin_one(&mut self, settled: &[(RegionIndex, ViewNumber)]) {
        self.unanswered += 1;
        self.regions.extend(settled.iter().map(|(region, _)| region));
    }

    /// One has answered, or will not.
    pub fn end_one(&mut self) {
        self.unanswered -= 1;
        if self.unanswered == 0 {
            self.regions.clear();
        }
    }
}

/// A sweep under way.
#[derive(Debug)]
pub struct Sweep {
    /// One that was given up may have flushes under way that say nothing of what the next one covers.
    number: u64,
    /// The count of writes when it began.
    writes: u64,
    /// What was retained when it began.
    mark: Mark,
    pending: MemberSet,
    candidates: Vec<RegionIndex>,
}

impl Writer {
    pub(super) fn check_sweep(&mut self) {
        if self.sweep_at <= self.now || self.is_nearly_full() {
            self.sweep_now();
        }
    }

    /// Begins a sweep unless one is under way, or nothing can come of it.
    pub(super) fn sweep_now(&mut self) {
        if self.sweep.is_some() || self.change.is_some() || self.is_held() {
            return;
        }
        let in_sync = self.in_sync();
        if !in_sync.and(self.lost()).is_empty() {
            return;
        }
        let quiet =
            self.open.iter().filter(|(region, open)| open.in_flight == 0 && !self.unreconciled.contains(region));
        let candidates: Vec<RegionIndex> = quiet.map(|(&region, _)| region).collect();
        self.sweep_at = self.now.after_us(self.settings.settle_interval_us);
        if candidates.is_empty() && !self.is_nearly_full() && self.retained.is_complete() {
            return;
        }
        let pending = self.flushers();
        let number = self.next_sweep;
        self.next_sweep += 1;
        self.sweep = Some(Sweep { number, writes: self.writes, mark: self.retained.mark(), pending, candidates });
        for member in pending.iter() {
            self.issue(member, Lane::CONTROL, Purpose::Sweep(number), Request::Flush, Payload::None);
        }
    }

    /// A copy has flushed for the sweep.
    pub(super) fn swept(&mut self, number: u64, member: MemberIndex, reply: Reply) {
        match reply {
            Reply::Done => {}
            Reply::Failed(errno) => {
                self.sweep = None;
                // The last one is opened anew, if it can be sent again what it may have lost.
                if !self.remaining().without(MemberSet::only(member)).is_empty() || self.retains() {
                    self.lose(member, Loss::Failed(errno));
                }
                return;
            }
            other => return self.expect_done(member, other),
        }
        let Some(sweep) = self.sweep.as_mut().filter(|sweep| sweep.number == number) else { return };
        sweep.pending.remove(member);
        if sweep.pending.is_empty() {
            self.settle();
        }
    }

    fn settle(&mut self) {
        let Some(sweep) = self.sweep.take() else { return };
        self.release(sweep.mark);
        if !self.in_sync().and(self.lost()).is_empty() {
            // One that leaves is not asked any more, and what it misses must stay marked.
            return;
        }
        let mut settled: Vec<(RegionIndex, ViewNumber)> = Vec::new();
        for region in sweep.candidates {
            let still = self.open.get(&region).is_some_and(|open| open.in_flight == 0 && open.written <= sweep.writes);
            // A member on its way in has the region marked too, and is settled when it is in.
            if still && !self.unreconciled.contains(&region) {
                let row = &mut self.rows[region.0 as usize];
                row.intent = false;
                settled.push((region, row.written));
                self.open.remove(&region);
            }
        }
        for settled in settled.chunks(SETTLED_MAX) {
            for member in self.in_sync().iter() {
                self.settle_on(member, settled);
            }
        }
    }

    /// Tells a copy that regions are equal and durable.
    pub(super) fn settle_on(&mut self, member: MemberIndex, settled: &[(RegionIndex, ViewNumber)]) {
        self.settling.begin_one(settled);
        let request = Request::Settle(settled.to_vec());
        self.issue(member, Lane::CONTROL, Purpose::Settle, request, Payload::None);
    }

    pub(super) fn settle_answered(&mut self, member: MemberIndex, reply: Reply) {
        self.settling.end_one();
        self.expect_done(member, reply);
    }

    /// Whether a write has to wait for a region to be settled.
    pub(super) fn waits_for_settling(&self, offset: u64, len: u64) -> bool {
        !self.settling.regions.is_empty()
            && self.regions.touched(offset, len).any(|region| self.settling.regions.contains(&region))
    }

    /// A member is gone: the sweep cannot end any more.
    pub(super) fn sweep_lost(&mut self, member: MemberIndex) {
        if self.sweep.as_ref().is_some_and(|sweep| sweep.pending.contains(member)) {
            self.sweep = None;
        }
    }
}
