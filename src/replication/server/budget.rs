//! How much memory the connections may take for what is in flight, each and together.
//!
//! Every connection has a little of its own, enough to go on in any case. When that is full it gets more
//! from what all share, as long as there is some, and keeps it: memory that is used again is fast. Once
//! somebody has got less than it asked for, those with nothing in flight are asked to give back.
//!
//! Invariant: all grants together are at most [`OWN_BYTES`] for each connection, and once what is shared.
//! Buffers that are kept for the next request come on top, for each connection at most its grant again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What all connections share.
pub struct Budget {
    shared_bytes: usize,
    granted: AtomicUsize,
    /// Somebody was refused since that was last asked.
    is_short: AtomicBool,
}

/// What one connection may take. What is beyond its own is given back when it is dropped.
pub struct Grant {
    budget: Arc<Budget>,
    extra: usize,
}

impl Budget {
    /// One of which nothing is granted.
    pub fn new(shared_bytes: usize) -> Budget {
        Budget { shared_bytes, granted: AtomicUsize::new(0), is_short: AtomicBool::new(false) }
    }

    /// Whether somebody has wanted more than there was since the last call.
    pub fn was_short(&self) -> bool {
        self.is_short.swap(false, Ordering::Relaxed)
    }

    /// The least that there is to grant.
    pub fn grant(self: &Arc<Self>) -> Grant {
        Grant { budget: self.clone(), extra: 0 }
    }

    fn take(&self) -> bool {
        let more = |granted: usize| (granted + STEP_BYTES <= self.shared_bytes).then_some(granted + STEP_BYTES);
        let taken = self.granted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        if !taken {
            self.is_short.store(true, Ordering::Relaxed);
        }
        taken
    }
}

impl Grant {
    /// How much it is.
    pub fn bytes(&self) -> usize {
        OWN_BYTES + self.extra
    }

    /// Asks for more; false if there is none, or this is as much as one connection gets.
    pub fn grow(&mut self) -> bool {
        let grows = self.extra < EXTRA_BYTES_MAX && self.budget.take();
        if grows {
            self.extra += STEP_BYTES;
        }
        grows
    }

    /// Gives back what is beyond the connection's own.
    pub fn shrink(&mut self) {
        self.budget.granted.fetch_sub(std::mem::take(&mut self.extra), Ordering::Relaxed);
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.shrink();
    }
}

/// A connection's own: two of the largest payloads, one on its way in and one on the disk.
pub const OWN_BYTES: usize = 512 << 10;
/// What one of them may have of that.
const EXTRA_BYTES_MAX: usize = 15 << 20;
const STEP_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_is_granted_once_and_given_back() {
        let budget = Arc::new(Budget::new(SHARED_BYTES));
        let grown = || {
            let mut grant = budget.grant();
            while grant.grow() {}
            grant
        };
        let mut grants: Vec<Grant> = Vec::new();
        while !budget.was_short() {
            grants.push(grown());
        }
        let extra = |grants: &[Grant]| grants.iter().map(|grant| grant.bytes() - OWN_BYTES).sum::<usize>();
        assert_eq!(extra(&grants), SHARED_BYTES);
        assert_eq!(grants[0].bytes(), OWN_BYTES + EXTRA_BYTES_MAX, "one is not given all");

        let mut late = grown();
        assert_eq!(late.bytes(), OWN_BYTES, "who comes late has its own");
        assert!(budget.was_short() && !budget.was_short());
        grants[0].shrink();
        assert_eq!(grants[0].bytes(), OWN_BYTES);
        assert!(late.grow());
        drop((grants, late));
        assert_eq!(budget.granted.load(Ordering::Relaxed), 0);
    }

    const SHARED_BYTES: usize = 100 << 20;
}
