//! Where the view is kept: slow, unreachable, or silent about what it has done; and not always read as it is.
//!
//! The stores of `coordination` ask for what is there now, and get it from a server that keeps its word. One that
//! answers from a cache, or an etcd that is asked without its quorum, tells what was there before. The swap itself
//! is on condition that nothing has changed since what was read, so that it meets a conflict then; but a conflict is
//! told with what was read too, and that may have been replaced by others since. What is older than what a process
//! has been told before it does not believe, and nothing is changed.

use std::collections::{BTreeSet, VecDeque};

use sealblk::replication::view::{View, ViewNumber};
use sealblk::replication::writer::Swapped;

use crate::random::Random;

#[derive(Debug)]
pub struct Store {
    pub view: View,
    /// Those that it was before, the last one at the end.
    past: VecDeque<View>,
    /// Whether reads may find one of those.
    stale: Option<Random>,
    pub unreachable_until: u64,
    /// Nodes that cannot reach it.
    pub cut_off: BTreeSet<usize>,
    pub silent_until: u64,
    /// Nodes that hear nothing of what it has done.
    pub deaf: BTreeSet<usize>,
}

impl Store {
    pub fn new(view: View, stale: Option<Random>) -> Self {
        Self {
            view,
            past: VecDeque::new(),
            stale,
            unreachable_until: 0,
            cut_off: BTreeSet::new(),
            silent_until: 0,
            deaf: BTreeSet::new(),
        }
    }

    /// What somebody finds who reads the view.
    pub fn read(&mut self) -> View {
        if let Some(random) = &mut self.stale
            && !self.past.is_empty()
            && random.chance(STALE_PERCENT)
        {
            return random.pick(self.past.make_contiguous()).clone();
        }
        self.view.clone()
    }

    /// What `swap` of a store of `coordination` does for a process that was told of view `seen`.
    pub fn change(&mut self, seen: ViewNumber, current: ViewNumber, next: &View) -> Swapped {
        let mut seen = seen;
        for _ in 0..TRIES_MAX {
            let read = self.read();
            if read.number < seen {
                return Swapped::Unavailable;
            }
            seen = read.number;
            if read.number != current {
                return Swapped::Conflict(Box::new(read));
            }
            if self.swap(current, next) == Swapped::Stored {
                return Swapped::Stored;
            }
        }
        Swapped::Unavailable
    }

    /// Puts a view in the place of this one, if it is there.
    pub fn swap(&mut self, current: ViewNumber, next: &View) -> Swapped {
        if self.view.number != current {
            return Swapped::Conflict(Box::new(self.view.clone()));
        }
        assert_eq!(next.number, current.next(), "a view's number grows by one");
        assert!(next.in_sync().next().is_some(), "no view is without a copy in sync");
        self.past.push_back(std::mem::replace(&mut self.view, next.clone()));
        if self.past.len() > PAST_MAX {
            self.past.pop_front();
        }
        Swapped::Stored
    }
}

/// How often a read finds what was there before, of a hundred times.
const STALE_PERCENT: u64 = 40;
/// How many views a read may be behind.
const PAST_MAX: usize = 6;
/// How often a swap is tried when something else than the view has changed.
const TRIES_MAX: u32 = 5;
