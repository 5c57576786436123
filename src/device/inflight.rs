//! Which chains of a split ring have been taken and not given back, kept in memory that outlives this process
//! (vhost-user, "Inflight I/O tracking"). Chains end in any order, so the ring itself does not tell: whoever goes on
//! with a ring that nobody gave back in order finds here what to do again.
//!
//! The memory is shared with the front end, which can write anything into it: every index is checked.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use vm_memory::MmapRegion;

/// The part of that memory that is one ring's: a header of 16 bytes, and as many for each descriptor.
pub struct Inflight {
    /// Keeps it mapped.
    _memory: Arc<MmapRegion<()>>,
    start: *mut u8,
    entries: u16,
    /// What the next chain gets: chains are done again in this order.
    counter: u64,
    /// Those given back that the driver cannot see yet.
    batch: Vec<u16>,
}

// SAFETY: the memory is mapped for as long as `self` lives, and is only touched atomically.
unsafe impl Send for Inflight {}

/// It cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("what was in flight is recorded in version {0} of the format, and only 1 is known")]
pub struct UnknownVersion(u16);

impl Inflight {
    /// How many bytes a ring of so many descriptors needs.
    pub fn bytes(entries: u16) -> usize {
        (HEADER_BYTES + ENTRY_BYTES * usize::from(entries)).next_multiple_of(ALIGNMENT)
    }

    /// That of a ring of `entries` descriptors, `offset` bytes into the memory; none if it does not lie there. Only one
    /// may be made of a place at a time.
    pub fn new(memory: Arc<MmapRegion<()>>, offset: usize, entries: u16) -> Option<Inflight> {
        let end = offset.checked_add(Inflight::bytes(entries))?;
        if end > memory.size() || !offset.is_multiple_of(ALIGNMENT) {
            return None;
        }
        // SAFETY: just checked to be inside the mapping, which begins with a page.
        let start = unsafe { memory.as_ptr().add(offset) };
        Some(Inflight { _memory: memory, start, entries, counter: 0, batch: Vec::with_capacity(entries.into()) })
    }

    /// How many descriptors the ring may have.
    pub fn entries(&self) -> u16 {
        self.entries
    }

    /// The heads of the chains that were taken and not given back, in the order in which they were taken. `used` is
    /// the index of the used ring. Before anything else is done.
    ///
    /// # Errors
    ///
    /// [`UnknownVersion`].
    pub fn recover(&mut self, used: u16) -> Result<Vec<u16>, UnknownVersion> {
        match self.field(VERSION).load(Ordering::Acquire) {
            // New, and so zero.
            0 => {
                self.field(ENTRIES).store(self.entries, Ordering::Relaxed);
                self.field(USED_INDEX).store(used, Ordering::Relaxed);
                self.field(VERSION).store(1, Ordering::Release);
            }
            1 => self.finish_batch(used),
            version => return Err(UnknownVersion(version)),
        }
        let heads = (0..self.entries).filter(|&head| self.mark(head).load(Ordering::Acquire) == 1);
        let mut heads: Vec<(u64, u16)> = heads.map(|head| (self.order(head).load(Ordering::Relaxed), head)).collect();
        heads.sort_unstable();
        self.counter = heads.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok(heads.into_iter().map(|(_, head)| head).collect())
    }

    /// A chain has been taken; to be called before anything of it is done.
    pub fn taken(&mut self, head: u16) {
        if head < self.entries {
            self.order(head).store(self.counter, Ordering::Relaxed);
            self.counter = self.counter.wrapping_add(1);
            self.mark(head).store(1, Ordering::Release);
        }
    }

    /// A chain is in the used ring, whose index does not show it yet.
    pub fn given_back(&mut self, head: u16) {
        if head < self.entries {
            let last = self.field(LAST_OF_BATCH).load(Ordering::Relaxed);
            self.next(head).store(last, Ordering::Relaxed);
            self.field(LAST_OF_BATCH).store(head, Ordering::Release);
            self.batch.push(head);
        }
    }

    /// The index of the used ring shows all that was given back.
    pub fn published(&mut self, used: u16) {
        while let Some(head) = self.batch.pop() {
            self.mark(head).store(0, Ordering::Release);
        }
        self.field(USED_INDEX).store(used, Ordering::Release);
    }

    /// If the index was published and the process ended before that was noted, it is noted now.
    fn finish_batch(&self, used: u16) {
        let count = used.wrapping_sub(self.field(USED_INDEX).load(Ordering::Acquire));
        let mut head = self.field(LAST_OF_BATCH).load(Ordering::Acquire);
        for _ in 0..count.min(self.entries) {
            if head >= self.entries {
                break;
            }
            self.mark(head).store(0, Ordering::Relaxed);
            head = self.next(head).load(Ordering::Relaxed);
        }
        self.field(USED_INDEX).store(used, Ordering::Release);
    }

    fn field(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: the header is inside the mapping and aligned, and nobody here touches it in another way.
        unsafe { AtomicU16::from_ptr(self.start.add(offset).cast()) }
    }

    fn mark(&self, head: u16) -> &AtomicU8 {
        // SAFETY: as in `entry`.
        unsafe { AtomicU8::from_ptr(self.entry(head)) }
    }

    fn next(&self, head: u16) -> &AtomicU16 {
        // SAFETY: as in `entry`.
        unsafe { AtomicU16::from_ptr(self.entry(head).add(NEXT).cast()) }
    }

    fn order(&self, head: u16) -> &AtomicU64 {
        // SAFETY: as in `entry`.
        unsafe { AtomicU64::from_ptr(self.entry(head).add(COUNTER).cast()) }
    }

    /// Aligned to 16 bytes, as the mapping is to pages.
    fn entry(&self, head: u16) -> *mut u8 {
        if head >= self.entries {
            return ptr::null_mut();
        }
        // SAFETY: inside the mapping, for `head` is one of the entries.
        unsafe { self.start.add(HEADER_BYTES + ENTRY_BYTES * usize::from(head)) }
    }
}

// The header: features, version, number of descriptors, head of the last batch, index of the used ring.
const VERSION: usize = 8;
const ENTRIES: usize = 10;
const LAST_OF_BATCH: usize = 12;
const USED_INDEX: usize = 14;
const HEADER_BYTES: usize = 16;
// An entry: whether in flight, the next of its batch, and its counter.
const NEXT: usize = 6;
const COUNTER: usize = 8;
const ENTRY_BYTES: usize = 16;
/// Of a ring's part. Other back ends have the same, so that one can go on after another.
const ALIGNMENT: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRIES: u16 = 8;
    const NONE: [u16; 0] = [];

    fn memory() -> Arc<MmapRegion<()>> {
        Arc::new(MmapRegion::new(Inflight::bytes(ENTRIES)).unwrap())
    }

    fn of(memory: &Arc<MmapRegion<()>>) -> Inflight {
        Inflight::new(memory.clone(), 0, ENTRIES).unwrap()
    }

    #[test]
    fn what_was_taken_and_not_given_back_is_found_in_order() {
        let memory = memory();
        let mut first = of(&memory);
        assert_eq!(first.recover(65_535).unwrap(), NONE);
        for head in [5, 0, 3, 7] {
            first.taken(head);
        }
        first.given_back(0);
        first.given_back(7);
        first.published(1);
        first.taken(0);
        // The process ends.
        let mut second = of(&memory);
        assert_eq!(second.recover(1).unwrap(), [5, 3, 0]);
        second.taken(1);
        let mut third = of(&memory);
        assert_eq!(third.recover(1).unwrap(), [5, 3, 0, 1], "what came later is later");
    }

    #[test]
    fn a_batch_ends_as_the_index_of_the_used_ring_says() {
        for (used, left) in [(10, vec![1, 2, 3, 4]), (13, vec![4])] {
            let memory = memory();
            let mut first = of(&memory);
            assert_eq!(first.recover(9).unwrap(), NONE);
            first.taken(6);
            first.given_back(6);
            first.published(10);
            for head in [1, 2, 3, 4] {
                first.taken(head);
            }
            for head in [2, 1, 3] {
                first.given_back(head);
            }
            // Before the index was published, or just after.
            assert_eq!(of(&memory).recover(used).unwrap(), left);
            // Twice is once.
            assert_eq!(of(&memory).recover(used).unwrap(), left);
        }
    }

    #[test]
    fn what_ended_twice_makes_no_circle_that_is_not_left() {
        let memory = memory();
        let mut first = of(&memory);
        assert_eq!(first.recover(0).unwrap(), NONE);
        first.taken(1);
        first.taken(2);
        first.given_back(1);
        // Not published: another does it again.
        let mut second = of(&memory);
        assert_eq!(second.recover(0).unwrap(), [1, 2]);
        second.given_back(1);
        second.given_back(2);
        assert_eq!(of(&memory).recover(2).unwrap(), NONE);
    }

    #[test]
    fn whatever_is_in_the_memory_does_no_harm() {
        for byte in [0xff, 0x01, 0x80] {
            let memory = memory();
            // SAFETY: the test has the memory for itself.
            unsafe { memory.as_ptr().write_bytes(byte, memory.size()) };
            let mut inflight = of(&memory);
            assert!(inflight.recover(3).is_err());
            inflight.field(VERSION).store(1, Ordering::Relaxed);
            let heads = inflight.recover(3).unwrap();
            assert!(heads.len() <= ENTRIES.into() && heads.iter().all(|&head| head < ENTRIES));
            for head in [0, ENTRIES - 1, ENTRIES, u16::MAX] {
                inflight.taken(head);
                inflight.given_back(head);
            }
            inflight.published(9);
        }
    }

    #[test]
    fn a_part_that_does_not_fit_is_none() {
        let memory = memory();
        assert!(Inflight::new(memory.clone(), 64, ENTRIES).is_none());
        assert!(Inflight::new(memory.clone(), 0, 1024).is_none());
        assert!(Inflight::new(memory.clone(), usize::MAX, 1).is_none());
        assert!(Inflight::new(memory, 32, 1).is_none(), "misaligned");
    }

    /// As QEMU's library for back ends has them: its rings' parts lie where ours do.
    #[test]
    fn the_parts_of_rings_have_the_sizes_that_others_give_them() {
        for power in 0..=10 {
            let entries = 1 << power;
            assert_eq!(Inflight::bytes(entries), (16 * usize::from(entries) + 2).next_multiple_of(64), "{entries}");
        }
    }
}
