//! Making regions equal.
//!
//! Two reasons, one way. After a writer's end, regions with an intent may differ among the copies in sync:
//! they are **reconciled** from one of them, those that the guest asks for first, and the guest waits for
//! those. A member that was away is **resynced**: it is sent the regions that were written meanwhile, and
//! those that it may have lost.
//!
//! A region is reconciled when every copy has it that the view calls in sync, one that is lost and has not left
//! yet too: it may be what the next writer copies from. And it is durable there at once: a flush that ended
//! before covers what the guest finds in it.
//!
//! A region is copied in pieces. Each piece holds its range like a write while it is read from one copy and
//! written to others, so that it can neither overwrite anything newer nor be overtaken.

use super::{Action, Lane, Loss, MemberSet, Payload, Purpose, Standing, Writer};
use crate::replication::message::{Reply, Request, SETTLED_MAX};
use crate::replication::region::RegionIndex;
use crate::replication::view::{MemberIndex, ViewNumber};

/// A region that is being copied.
#[derive(Debug)]
pub struct Job {
    region: RegionIndex,
    kind: Kind,
    /// The next byte that no piece has been made for.
    next: u64,
    end: u64,
    /// Pieces that have to be made again.
    again: Vec<(u64, u64)>,
    in_flight: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// From one copy in sync to all others.
    Reconcile,
    /// From a copy in sync to one that is not.
    Resync(MemberIndex),
    /// For nobody any more.
    GivenUp,
}

/// A piece on its way.
#[derive(Debug)]
pub struct Chunk {
    job: usize,
    offset: u64,
    len: u64,
    state: State,
    failed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Reading,
    Writing(MemberSet),
}

impl Writer {
    /// Whether the guest has to wait for regions to be reconciled; those come first then.
    pub(super) fn waits_for_reconciling(&mut self, offset: u64, len: u64) -> bool {
        if self.unreconciled.is_empty() {
            return false;
        }
        let mut waits = false;
        for region in self.regions.touched(offset, len) {
            if self.unreconciled.contains(&region) {
                waits = true;
                if self.urgent.len() < URGENT_MAX && !self.urgent.contains(&region) {
                    self.urgent.push_back(region);
                }
            }
        }
        waits
    }

    /// Compares what a member has with what the copies in sync have.
    pub(super) fn compare(&mut self, member: MemberIndex) {
        let theirs = std::mem::take(&mut self.member_mut(member).rows);
        let stale = (0u32..).zip(self.rows.iter().zip(&theirs));
        let stale = stale.filter(|(_, (row, theirs))| row.written > theirs.written || theirs.intent);
        let stale = stale.map(|(index, _)| RegionIndex(index)).collect();
        let entry = self.member_mut(member);
        entry.stale = stale;
        entry.standing = Standing::Prepared;
        self.consider_change();
    }

    pub(super) fn is_resynced(&self, member: MemberIndex) -> bool {
        self.member(member).stale.is_empty() && !self.jobs.iter().any(|(_, job)| job.kind == Kind::Resync(member))
    }

    /// Makes pieces as long as there is room.
    pub(super) fn pump_copies(&mut self) {
        if self.is_held() {
            return;
        }
        while self.chunks.len() < self.settings.copies_in_flight_max {
            let Some(job) = self.reconciling_job().or_else(|| self.resyncing_job()) else { return };
            if !self.make_chunk(job) {
                return;
            }
        }
    }

    /// The guest may be waiting for it, so it comes first.
    fn reconciling_job(&mut self) -> Option<usize> {
        if !self.reconciles() {
            return None;
        }
        self.job_with_work(|kind| kind == Kind::Reconcile).or_else(|| {
            let region = self.next_reconciliation()?;
            Some(self.begin_job(region, Kind::Reconcile))
        })
    }

    fn resyncing_job(&mut self) -> Option<usize> {
        self.job_with_work(|kind| kind != Kind::Reconcile).or_else(|| {
            let (region, member) = self.next_resync()?;
            Some(self.begin_job(region, Kind::Resync(member)))
        })
    }

    fn job_with_work(&self, is_meant: impl Fn(Kind) -> bool) -> Option<usize> {
        let has_work = |job: &Job| !job.again.is_empty() || job.next < job.end;
        self.jobs.iter().find(|(_, job)| is_meant(job.kind) && has_work(job)).map(|(key, _)| key)
    }

    fn begin_job(&mut self, region: RegionIndex, kind: Kind) -> usize {
        let (next, end) = self.regions.range(region);
        self.jobs.insert(Job { region, kind, next, end, again: Vec::new(), in_flight: 0 })
    }

    /// Whether all copies can be had that regions must be equal on.
    fn reconciles(&self) -> bool {
        self.in_sync().and(self.lost()).is_empty()
    }

    fn next_reconciliation(&mut self) -> Option<RegionIndex> {
        let has_job = |region| self.jobs.iter().any(|(_, job)| job.region == region && job.kind == Kind::Reconcile);
        let urgent = std::iter::from_fn(|| self.urgent.pop_front());
        let unreconciled = &self.unreconciled;
        let first = urgent.into_iter().find(|region| unreconciled.contains(region) && !has_job(*region));
        first.or_else(|| unreconciled.iter().copied().find(|&region| !has_job(region)))
    }

    fn next_resync(&self) -> Option<(RegionIndex, MemberIndex)> {
        let has_job =
            |region, member| self.jobs.iter().any(|(_, job)| job.region == region && job.kind == Kind::Resync(member));
        self.everyone().find_map(|member| {
            let entry = self.member(member);
            if entry.standing != Standing::Resyncing {
                return None;
            }
            let ready = |region: &&RegionIndex| !self.unreconciled.contains(region) && !has_job(**region, member);
            entry.stale.iter().find(ready).map(|&region| (region, member))
        })
    }

    /// Sends a piece on its way; false if it has to wait for the guest, or for a copy to read from.
    fn make_chunk(&mut self, key: usize) -> bool {
        let chunk_bytes = u64::from(self.settings.copy_chunk_bytes);
        let job = &self.jobs[key];
        let (offset, len) = match job.again.last() {
            Some(&piece) => piece,
            None => (job.next, chunk_bytes.min(job.end - job.next)),
        };
        if self.ranges.is_held(offset, len) {
            self.ranges.want(offset, len);
            return false;
        }
        let source = match job.kind {
            Kind::Reconcile => self.source,
            // Those that cannot read it are looked at afterwards.
            Kind::Resync(_) | Kind::GivenUp => self.reader(self.unreadable_on(offset, len)),
        };
        let Some(source) = source else { return false };
        // The guest may be waiting for a region to be reconciled, but for no member to come back.
        if matches!(self.jobs[key].kind, Kind::Resync(_)) && !self.pace.takes(self.now, len) {
            return false;
        }
        let job = &mut self.jobs[key];
        if job.again.pop().is_none() {
            job.next += len;
        }
        job.in_flight += 1;
        if let Kind::Resync(member) = job.kind {
            // From here on the guest's writes of this region go to it too.
            let region = job.region;
            let entry = self.member_mut(member);
            entry.stale.remove(&region);
            entry.unsettled.insert(region);
        }
        self.ranges.unwant(offset, len);
        self.ranges.hold(offset, len);
        let copy = self.next_copy;
        self.next_copy += 1;
        self.chunks.insert(copy, Chunk { job: key, offset, len, state: State::Reading, failed: false });
        let request = Request::Read { offset, len: len as u32 };
        self.issue(source, Lane::CONTROL, Purpose::CopyRead(copy), request, Payload::Copy(copy));
        true
    }

    pub(super) fn copy_read(&mut self, copy: u64, member: MemberIndex, reply: Reply) {
        let zeros = match reply {
            Reply::Data => false,
            Reply::Zeros => true,
            Reply::Failed(errno) => {
                self.not_read(copy, member, errno);
                return;
            }
            other => {
                self.copy_lost(copy, member);
                return self.expect_done(member, if other == Reply::Done { Reply::Data } else { other });
            }
        };
        let Some(chunk) = self.chunks.get(&copy) else { return };
        let (offset, len) = (chunk.offset, chunk.len);
        let (targets, durable) = match self.jobs[chunk.job].kind {
            Kind::Reconcile => (self.in_sync().without(self.lost()).without(MemberSet::only(member)), true),
            Kind::Resync(member) => (MemberSet::only(member), false),
            Kind::GivenUp => return self.end_chunk(copy),
        };
        if zeros && matches!(self.jobs[chunk.job].kind, Kind::Resync(_)) {
            self.pace.gives_back(len);
        }
        let request = if zeros {
            Request::Zero { offset, len, durable }
        } else {
            Request::Write { offset, len: len as u32, durable, sparse: true }
        };
        let payload = Payload::Copy(copy);
        if let Some(chunk) = self.chunks.get_mut(&copy) {
            chunk.state = State::Writing(targets);
        }
        for member in targets.iter() {
            self.issue(member, Lane::CONTROL, Purpose::CopyWrite(copy), request.clone(), payload);
        }
        self.end_chunk_if_written(copy);
    }

    /// A piece could not be read. To be sent to a member that lacks it, it is read from another copy, and looked at
    /// where it could not be. What is reconciled comes from one copy, which is of no use then if there is another.
    fn not_read(&mut self, copy: u64, member: MemberIndex, errno: i32) {
        let Some(chunk) = self.chunks.get(&copy) else { return };
        let (offset, len, kind) = (chunk.offset, chunk.len, self.jobs[chunk.job].kind);
        let is_alone = self.in_sync().without(self.lost()) == MemberSet::only(member);
        if kind == Kind::Reconcile && is_alone {
            // There is nobody to be equal to.
            return self.end_chunk(copy);
        }
        let will_be_looked_at = kind != Kind::Reconcile && self.note_unreadable(member, errno, offset, len);
        self.copy_lost(copy, member);
        if !will_be_looked_at {
            self.lose_if_others(member, Loss::Failed(errno));
        }
    }

    /// A copy that cannot be read is of no use as a source, but it is better than none.
    fn lose_if_others(&mut self, member: MemberIndex, loss: Loss) {
        if !self.remaining().without(MemberSet::only(member)).is_empty() {
            self.lose(member, loss);
        }
    }

    pub(super) fn copy_written(&mut self, copy: u64, member: MemberIndex, reply: Reply) {
        if reply != Reply::Done {
            self.copy_lost(copy, member);
            self.expect_done(member, reply);
            return;
        }
        if let Some(Chunk { state: State::Writing(pending), .. }) = self.chunks.get_mut(&copy) {
            pending.remove(member);
        }
        self.end_chunk_if_written(copy);
    }

    /// A member will not answer for a piece any more.
    pub(super) fn copy_lost(&mut self, copy: u64, member: MemberIndex) {
        let Some(chunk) = self.chunks.get_mut(&copy) else { return };
        match &mut chunk.state {
            State::Reading => {
                chunk.failed = true;
                self.end_chunk(copy);
            }
            State::Writing(pending) => {
                // What a copy in sync lacks it will be sent when it comes back.
                pending.remove(member);
                self.end_chunk_if_written(copy);
            }
        }
    }

    /// A member that was being resynced has left.
    pub(super) fn give_resync_up(&mut self, member: MemberIndex) {
        let keys: Vec<usize> =
            self.jobs.iter().filter(|(_, job)| job.kind == Kind::Resync(member)).map(|(key, _)| key).collect();
        for key in keys {
            let job = &mut self.jobs[key];
            job.kind = Kind::GivenUp;
            job.next = job.end;
            job.again.clear();
            if job.in_flight == 0 {
                self.jobs.remove(key);
            }
        }
        // If a piece of it wanted a range, nobody does now; any other will want it again.
        self.ranges.unwant_all();
    }

    fn end_chunk_if_written(&mut self, copy: u64) {
        if self.chunks.get(&copy).is_some_and(|chunk| chunk.state == State::Writing(MemberSet::default())) {
            self.end_chunk(copy);
        }
    }

    fn end_chunk(&mut self, copy: u64) {
        let Some(chunk) = self.chunks.remove(&copy) else { return };
        self.actions.push(Action::CopyEnded { copy });
        self.ranges.release(chunk.offset);
        let job = &mut self.jobs[chunk.job];
        job.in_flight -= 1;
        if chunk.failed && job.kind != Kind::GivenUp {
            job.again.push((chunk.offset, chunk.len));
        }
        if job.in_flight > 0 || job.next < job.end || !job.again.is_empty() {
            return;
        }
        let job = self.jobs.remove(chunk.job);
        if job.kind == Kind::Reconcile && self.reconciles() {
            self.unreconciled.remove(&job.region);
        }
    }

    /// A member has flushed what it was sent: what nobody has written since the resync began is settled on it,
    /// and it may join.
    pub(super) fn finished(&mut self, member: MemberIndex, reply: Reply) {
        if reply != Reply::Done {
            return self.expect_done(member, reply);
        }
        let entry = self.member(member);
        if entry.standing != Standing::Finishing {
            return;
        }
        let resync_view: ViewNumber = entry.resync_view;
        let row = |region: RegionIndex| self.rows[region.0 as usize];
        let quiet = entry.unsettled.iter().map(|&region| (region, row(region).written));
        let quiet: Vec<_> = quiet.filter(|(_, written)| *written < resync_view).collect();
        for settled in quiet.chunks(SETTLED_MAX) {
            self.settle_on(member, settled);
        }
        let entry = self.member_mut(member);
        for (region, _) in quiet {
            entry.unsettled.remove(&region);
        }
        entry.standing = Standing::Joining;
        self.consider_change();
    }
}

/// Regions that the guest waits for are few; the rest come in order.
const URGENT_MAX: usize = 64;
