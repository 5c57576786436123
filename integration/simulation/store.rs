//! Where the view is kept: slow, unreachable, or silent about what it has done.

use std::collections::BTreeSet;

use sealblk::replication::view::{View, ViewNumber};
use sealblk::replication::writer::Swapped;

#[derive(Debug)]
pub struct Store {
    pub view: View,
    pub unreachable_until: u64,
    /// Nodes that cannot reach it.
    pub cut_off: BTreeSet<usize>,
    pub silent_until: u64,
    /// Nodes that hear nothing of what it has done.
    pub deaf: BTreeSet<usize>,
}

impl Store {
    pub fn swap(&mut self, current: ViewNumber, next: &View) -> Swapped {
        if self.view.number != current {
            return Swapped::Conflict(Box::new(self.view.clone()));
        }
        assert_eq!(next.number, current.next(), "a view's number grows by one");
        assert!(next.in_sync().next().is_some(), "no view is without a copy in sync");
        self.view = next.clone();
        Swapped::Stored
    }
}
