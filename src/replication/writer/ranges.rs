//! Which bytes of the volume are being written, so that overlapping writes have one order.

use std::collections::BTreeMap;

/// Ranges that nobody else may touch, none of which overlap, and those that are wanted next.
#[derive(Debug, Default)]
pub struct Ranges {
    /// First byte to one past the last.
    held: BTreeMap<u64, u64>,
    wanted: Vec<(u64, u64)>,
}

impl Ranges {
    /// Whether any byte of the range is held.
    pub fn is_held(&self, offset: u64, len: u64) -> bool {
        overlaps(&self.held, offset, offset + len)
    }

    /// Whether any byte of the range is held or wanted.
    pub fn is_taken(&self, offset: u64, len: u64) -> bool {
        let end = offset + len;
        self.is_held(offset, len) || self.wanted.iter().any(|&(start, stop)| start < end && offset < stop)
    }

    /// Holds a range of which nothing is held.
    pub fn hold(&mut self, offset: u64, len: u64) {
        debug_assert!(!self.is_held(offset, len), "ranges that are held do not overlap");
        if len > 0 {
            self.held.insert(offset, offset + len);
        }
    }

    /// Lets go of a range that was held.
    pub fn release(&mut self, offset: u64) {
        self.held.remove(&offset);
    }

    /// Keeps others from taking a range that is to be held as soon as it is free.
    pub fn want(&mut self, offset: u64, len: u64) {
        if !self.wanted.contains(&(offset, offset + len)) {
            self.wanted.push((offset, offset + len));
        }
    }

    /// Wants nothing more.
    pub fn unwant_all(&mut self) {
        self.wanted.clear();
    }

    /// Wants a range no more.
    pub fn unwant(&mut self, offset: u64, len: u64) {
        self.wanted.retain(|&wanted| wanted != (offset, offset + len));
    }
}

fn overlaps(held: &BTreeMap<u64, u64>, start: u64, end: u64) -> bool {
    // They do not overlap each other, so only the last one that begins before `end` can reach in.
    held.range(..end).next_back().is_some_and(|(_, &stop)| stop > start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_found_and_neighbours_are_not() {
        let mut ranges = Ranges::default();
        ranges.hold(10, 10);
        ranges.hold(30, 10);
        for (offset, len, held) in [
            (0, 10, false),
            (0, 11, true),
            (19, 1, true),
            (20, 10, false),
            (15, 20, true),
            (0, 100, true),
            (39, 5, true),
            (40, 5, false),
        ] {
            assert_eq!(ranges.is_held(offset, len), held, "{offset}+{len}");
        }
        ranges.release(10);
        assert!(!ranges.is_held(0, 30));
        ranges.want(0, 5);
        assert!(ranges.is_taken(4, 1) && !ranges.is_held(4, 1) && !ranges.is_taken(5, 5));
        ranges.unwant(0, 5);
        assert!(!ranges.is_taken(4, 1));
    }
}
