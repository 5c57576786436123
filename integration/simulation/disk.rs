//! A disk with a volatile cache, and the region table beside it.
//!
//! A sector holds one value. What was written and not flushed may be lost with the power, each sector by
//! itself: it then has any of the values written since what a flush has made durable.

use std::collections::{BTreeMap, BTreeSet};

use sealblk::replication::region::{RegionIndex, Row};
use sealblk::replication::view::View;

use crate::random::Random;

/// What a sector holds. Every write of a guest has a value of its own, and so has every zeroing, although
/// its sectors read as zeros: so one can be told from another.
pub type Value = u64;

/// The value with this number as a zeroing has it.
pub fn zeros(number: u64) -> Value {
    number | ZEROS
}

/// Whether a sector with this value reads as zeros.
pub fn is_zeros(value: Value) -> bool {
    value == 0 || value & ZEROS != 0
}

const ZEROS: u64 = 1 << 63;

/// The value with this number as a disk makes it up when nobody looks.
pub fn rot(number: u64) -> Value {
    number | ROT
}

/// Whether nobody has written this value.
pub fn is_rot(value: Value) -> bool {
    value & ROT != 0
}

const ROT: u64 = 1 << 62;

/// What is said of sectors instead of their bytes: equal for equal bytes, be they zeros of whatever write.
pub fn digest(values: &[Value]) -> [u8; 32] {
    let mut lanes = [1u64, 2, 3, 4];
    for &value in values {
        let value = if is_zeros(value) { 0 } else { value };
        for lane in &mut lanes {
            // Of splitmix64.
            let mixed = (*lane ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            *lane = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        }
    }
    let mut digest = [0; 32];
    for (bytes, lane) in digest.chunks_mut(8).zip(lanes) {
        bytes.copy_from_slice(&lane.to_le_bytes());
    }
    digest
}

#[derive(Debug)]
pub struct Disk {
    sectors: Vec<Sector>,
    pub rows: Vec<Row>,
    pub accepted: Option<View>,
    /// Writes that have begun and not ended, to find any that overlap.
    writing: BTreeMap<u64, (usize, usize)>,
    next_write: u64,
    pub slow_until: u64,
    pub fail_flush: bool,
    /// A flush has failed since the copy was opened.
    pub doomed: bool,
    pub fail_write: bool,
    /// Sectors that cannot be read until they are written.
    unreadable: BTreeSet<usize>,
    /// When each sector last became unreadable or readable.
    readable_changed: Vec<u64>,
}

#[derive(Clone, Debug)]
struct Sector {
    /// The durable value, and all that were written since; the last one is what reads find.
    values: Vec<Value>,
    /// How many were ever forgotten at the front.
    forgotten: u64,
    /// Up to here a flush has failed: no later one makes this durable, although it may say so.
    doomed: u64,
}

/// What a flush that has begun will make durable.
pub struct Snapshot(Vec<u64>);

impl Disk {
    pub fn new(sectors: usize, regions: usize) -> Self {
        Self {
            sectors: vec![Sector { values: vec![0], forgotten: 0, doomed: 0 }; sectors],
            rows: vec![Row::default(); regions],
            accepted: None,
            writing: BTreeMap::new(),
            next_write: 0,
            slow_until: 0,
            fail_flush: false,
            doomed: false,
            fail_write: false,
            unreadable: BTreeSet::new(),
            readable_changed: vec![0; sectors],
        }
    }

    /// A sector has another value from one moment to the next. Not while its cache has a newer one.
    pub fn rot(&mut self, sector: usize, value: Value) {
        if self.is_durable(sector, 1) {
            self.sectors[sector].values = vec![value];
        }
    }

    /// A sector cannot be read any more.
    pub fn lose_sector(&mut self, sector: usize, now: u64) {
        if self.unreadable.insert(sector) {
            self.readable_changed[sector] = now;
        }
    }

    pub fn is_readable(&self, start: usize, count: usize) -> bool {
        self.unreadable.range(start..start + count).next().is_none()
    }

    /// Whether that has been so since before `began`.
    pub fn was_readable(&self, start: usize, count: usize, began: u64) -> bool {
        self.is_readable(start, count) && self.readable_changed[start..start + count].iter().all(|&at| at < began)
    }

    /// These can be read again, as they are or are about to be written.
    pub fn regain(&mut self, start: usize, count: usize, now: u64) {
        for sector in start..start + count {
            if self.unreadable.remove(&sector) {
                self.readable_changed[sector] = now;
            }
        }
    }

    pub fn read(&self, start: usize, count: usize) -> Vec<Value> {
        self.sectors[start..start + count].iter().map(Sector::value).collect()
    }

    pub fn contents(&self) -> Vec<Value> {
        self.read(0, self.sectors.len())
    }

    /// Whether these sectors would survive a power loss as they are.
    pub fn is_durable(&self, start: usize, count: usize) -> bool {
        self.sectors[start..start + count]
            .iter()
            .all(|sector| sector.values.iter().all(|value| *value == sector.value()))
    }

    /// A write begins; it must overlap no other.
    pub fn begin_write(&mut self, start: usize, count: usize) -> u64 {
        let overlaps = self.writing.values().any(|&(other, length)| other < start + count && start < other + length);
        assert!(!overlaps, "two writes of the same sectors are in flight on one copy");
        self.next_write += 1;
        self.writing.insert(self.next_write, (start, count));
        self.next_write
    }

    pub fn end_write(&mut self, write: u64, values: Option<&[Value]>) {
        let Some((start, _)) = self.writing.remove(&write) else { return };
        for (at, value) in values.into_iter().flatten().enumerate() {
            self.sectors[start + at].values.push(*value);
        }
    }

    /// A write is cut short: some of its sectors are written.
    pub fn tear_write(&mut self, write: u64, values: &[Value], random: &mut Random) {
        let Some((start, _)) = self.writing.remove(&write) else { return };
        for (at, value) in values.iter().enumerate() {
            if random.chance(50) {
                self.sectors[start + at].values.push(*value);
            }
        }
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.sectors.iter().map(|sector| sector.forgotten + sector.values.len() as u64).collect())
    }

    /// Everything up to the snapshot is durable.
    pub fn flushed(&mut self, snapshot: &Snapshot) {
        for (sector, &written) in self.sectors.iter_mut().zip(&snapshot.0) {
            if written <= sector.doomed {
                continue;
            }
            let old = written.saturating_sub(sector.forgotten + 1) as usize;
            sector.values.drain(..old);
            sector.forgotten += old as u64;
        }
    }

    /// A flush has failed: what it should have made durable is found in the cache until that is lost.
    pub fn doom(&mut self) {
        self.doomed = true;
        for sector in &mut self.sectors {
            if sector.values.len() > 1 {
                sector.doomed = sector.forgotten + sector.values.len() as u64;
            }
        }
    }

    pub fn make_durable(&mut self, start: usize, count: usize) {
        for sector in &mut self.sectors[start..start + count] {
            sector.settle(sector.values.len() - 1);
        }
    }

    /// The cache is lost, or a flush has failed and taken some of it along.
    pub fn lose_cache(&mut self, random: &mut Random) {
        for sector in &mut self.sectors {
            let kept = random.below(sector.values.len() as u64) as usize;
            sector.settle(kept);
        }
    }

    pub fn persist(&mut self, rows: &[(RegionIndex, Row)], view: Option<&View>) {
        for &(region, row) in rows {
            self.rows[region.0 as usize] = row;
        }
        if let Some(view) = view {
            let old = self.accepted.as_ref().map_or(0, |accepted| accepted.number.0);
            assert!(view.number.0 >= old, "the accepted view went down");
            self.accepted = Some(view.clone());
        }
    }
}

impl Sector {
    fn value(&self) -> Value {
        *self.values.last().expect("a sector always has a value")
    }

    fn settle(&mut self, kept: usize) {
        let value = self.values[kept];
        self.forgotten += self.values.len() as u64;
        self.values = vec![value];
    }
}
