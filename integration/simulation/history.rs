//! What the guests were told, and whether one disk could have told it.
//!
//! Every write has a value of its own, so for each sector the reads of a value belong to its write. The
//! history of a sector is linearizable if and only if, with the **zone** of a value going from the first end
//! to the last beginning of its operations, no two zones that run forward overlap and none that runs
//! backward lies within one that runs forward (Gibbons and Korach, *Testing shared memories*, 1997).
//!
//! With each guest an **era** ends. What the next one begins with must be the last acknowledged value, or one
//! that was not; if copies have lost power meanwhile, the last flushed value or a newer one.

use std::collections::{BTreeMap, BTreeSet};

use crate::disk::Value;

/// All sectors.
#[derive(Debug)]
pub struct History {
    sectors: Vec<Sector>,
}

#[derive(Debug, Default)]
struct Sector {
    era_began: u64,
    /// What the era may have begun with; settled by the first read of a value from before.
    candidates: BTreeSet<Value>,
    /// What it may have if the caches are lost before a flush.
    fallback: BTreeSet<Value>,
    clusters: BTreeMap<Value, Cluster>,
}

/// The operations of one value.
#[derive(Clone, Debug)]
struct Cluster {
    /// When its write began and ended; none if it never did.
    write: (u64, Option<u64>),
    first_end: u64,
    last_begin: u64,
    was_read: bool,
}

impl History {
    pub fn new(sectors: usize) -> Self {
        Self {
            sectors: (0..sectors)
                .map(|_| Sector { candidates: BTreeSet::from([0]), fallback: BTreeSet::from([0]), ..Sector::default() })
                .collect(),
        }
    }

    pub fn write_began(&mut self, sector: usize, value: Value, now: u64) {
        let cluster = Cluster { write: (now, None), first_end: u64::MAX, last_begin: now, was_read: false };
        self.sectors[sector].clusters.insert(value, cluster);
    }

    pub fn write_ended(&mut self, sector: usize, value: Value, now: u64) {
        // Of an era that has ended since, nothing more is asked.
        if let Some(cluster) = self.sectors[sector].clusters.get_mut(&value) {
            cluster.write.1 = Some(now);
            cluster.first_end = cluster.first_end.min(now);
        }
    }

    pub fn read(&mut self, sector: usize, value: Value, began: u64, ended: u64) -> Result<(), String> {
        let entry = &mut self.sectors[sector];
        if !entry.clusters.contains_key(&value) {
            if !entry.candidates.contains(&value) {
                return Err(format!(
                    "sector {sector}: a read from {began} to {ended} found {value}, which it cannot have; it began this era with one of {:?}",
                    entry.candidates
                ));
            }
            entry.candidates = BTreeSet::from([value]);
            let start = entry.era_began;
            let cluster = Cluster { write: (start, Some(start)), first_end: start, last_begin: start, was_read: true };
            entry.clusters.insert(value, cluster);
        }
        let Some(cluster) = entry.clusters.get_mut(&value) else { return Ok(()) };
        cluster.was_read = true;
        if cluster.write.0 > ended {
            return Err(format!("sector {sector}: a read that ended at {ended} found {value} before it was written"));
        }
        cluster.first_end = cluster.first_end.min(ended);
        cluster.last_begin = cluster.last_begin.max(began);
        let (first_end, last_begin) = (cluster.first_end, cluster.last_begin);
        entry.check(value, first_end, last_begin).map_err(|other| {
            format!(
                "sector {sector}: a read from {began} to {ended} found {value} (zone {first_end} to {last_begin}), which goes with no order: \
                 {other:?} {:?}",
                entry.clusters[&other]
            )
        })
    }

    /// Another guest begins. `flush_began` is when the last flush began that succeeded; what it did not cover may
    /// be gone if copies have lost their caches since: not what was begun after `lost`, when the oldest life of a
    /// copy began that is left, and acknowledged.
    pub fn end_era(&mut self, flush_began: u64, lost: Option<u64>, now: u64) {
        for sector in &mut self.sectors {
            sector.end_era(flush_began, lost, now);
        }
    }
}

impl Sector {
    /// Whether the zone of `value` goes with those of all others; which one it does not go with.
    fn check(&self, value: Value, first_end: u64, last_begin: u64) -> Result<(), Value> {
        let forward = first_end < last_begin;
        let (low, high) = (first_end.min(last_begin), first_end.max(last_begin));
        for (&other, cluster) in &self.clusters {
            // A write that never ended and was never seen may never have happened.
            if other == value || cluster.write.1.is_none() && !cluster.was_read {
                continue;
            }
            let other_forward = cluster.first_end < cluster.last_begin;
            let (start, end) = (cluster.first_end.min(cluster.last_begin), cluster.first_end.max(cluster.last_begin));
            let wrong = match (forward, other_forward) {
                (true, true) => low < end && start < high,
                (true, false) => low < start && end < high,
                (false, true) => start < low && high < end,
                (false, false) => false,
            };
            if wrong {
                return Err(other);
            }
        }
        // The value that the era began with was there before everything else.
        Ok(())
    }

    fn end_era(&mut self, flush_began: u64, lost: Option<u64>, now: u64) {
        let fallback = |since: u64| {
            let lasts = |begin: u64, end: u64| end < flush_began || begin >= since;
            let mut fallback = self.possible(&lasts);
            if flush_began <= self.era_began && !self.is_covered(self.era_began, &lasts) {
                fallback.extend(&self.fallback);
            }
            fallback
        };
        let candidates = lost.map_or_else(|| self.possible(&|_, _| true), fallback);
        let fallback = if lost.is_some() { candidates.clone() } else { fallback(u64::MAX) };
        *self = Sector { era_began: now, candidates, fallback, clusters: BTreeMap::new() };
    }

    /// What the sector may have: not what was overwritten by a write that lasts.
    fn possible(&self, lasts: &dyn Fn(u64, u64) -> bool) -> BTreeSet<Value> {
        let covered = |cluster: &Cluster| cluster.write.1.is_some_and(|ended| self.is_covered(ended, lasts));
        let written = self.clusters.iter().filter(|(_, cluster)| !covered(cluster)).map(|(&value, _)| value);
        let before = (!self.is_covered(self.era_began, lasts)).then_some(&self.candidates);
        written.chain(before.into_iter().flatten().copied()).collect()
    }

    /// Whether a write that lasts has begun after one had ended.
    fn is_covered(&self, ended: u64, lasts: &dyn Fn(u64, u64) -> bool) -> bool {
        self.clusters.values().map(|later| later.write).any(|(begin, end)| {
            // What began in a copy's present life was answered in it.
            ended < begin && end.is_some_and(|end| lasts(begin, end))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_reads_are_found() {
        let mut history = History::new(1);
        history.write_began(0, 1, 10);
        history.write_ended(0, 1, 20);
        history.write_began(0, 2, 30);
        assert!(history.read(0, 1, 31, 32).is_ok());
        history.write_ended(0, 2, 40);
        assert!(history.read(0, 2, 41, 42).is_ok());
        assert!(history.read(0, 1, 43, 44).is_err());
    }

    #[test]
    fn a_value_that_was_seen_does_not_go_away_again() {
        let mut history = History::new(1);
        history.write_began(0, 1, 10);
        history.write_ended(0, 1, 20);
        history.write_began(0, 2, 30);
        assert!(history.read(0, 2, 31, 32).is_ok());
        assert!(history.read(0, 1, 33, 34).is_err());
    }

    #[test]
    fn flushed_values_survive_and_unflushed_may_go() {
        let mut history = History::new(1);
        for value in 1..=3 {
            history.write_began(0, value, value * 10);
            history.write_ended(0, value, value * 10 + 5);
        }
        history.end_era(28, Some(90), 100);
        assert!(history.read(0, 1, 110, 120).is_err());
        assert!(history.read(0, 2, 110, 120).is_ok());
        assert!(history.read(0, 3, 130, 140).is_err());
    }

    #[test]
    fn what_one_guest_left_unflushed_may_be_gone_under_the_next() {
        let mut history = History::new(1);
        history.write_began(0, 1, 10);
        history.write_ended(0, 1, 20);
        history.end_era(0, None, 30);
        assert!(history.read(0, 1, 31, 32).is_ok());
        history.end_era(0, Some(35), 40);
        assert!(history.read(0, 0, 41, 42).is_ok());

        let mut history = History::new(1);
        history.write_began(0, 1, 10);
        history.write_ended(0, 1, 20);
        history.end_era(0, None, 30);
        assert!(history.read(0, 0, 31, 32).is_err());
        history.end_era(35, Some(38), 40);
        assert!(history.read(0, 0, 41, 42).is_err());
        assert!(history.read(0, 1, 43, 44).is_ok());
    }

    #[test]
    fn what_a_copy_was_given_in_the_life_that_it_is_in_stays() {
        let mut history = History::new(1);
        for value in 1..=2 {
            history.write_began(0, value, value * 10);
            history.write_ended(0, value, value * 10 + 5);
        }
        history.end_era(0, Some(18), 100);
        assert!(history.read(0, 1, 110, 120).is_err());
        assert!(history.read(0, 2, 110, 120).is_ok());
    }

    #[test]
    fn a_value_from_nowhere_is_found() {
        let mut history = History::new(1);
        assert!(history.read(0, 0, 1, 2).is_ok());
        assert!(history.read(0, 9, 3, 4).is_err());
    }
}
