//! How long a worker watches an empty ring before it asks for a kick and sleeps.
//!
//! A kick and a wake-up cost far more than a look at the ring. Watching pays when the next request
//! comes soon, and only burns a core when it does not. So the time is bounded, and it adapts: a
//! watch that found something makes the next one longer, one that did not makes it shorter, down to
//! none at all for a queue that is idle or slow.

use std::time::{Duration, Instant};

/// A bounded, adaptive time to watch.
#[derive(Clone, Debug)]
pub struct Patience {
    limit: Duration,
    window: Duration,
    watching_since: Option<Instant>,
}

impl Patience {
    /// Never watches for longer than `limit`; zero means to sleep at once.
    pub fn new(limit: Duration) -> Self {
        Self { limit, window: Duration::ZERO, watching_since: None }
    }

    /// There was something to do.
    pub fn worked(&mut self) {
        if let Some(since) = self.watching_since.take() {
            // Found while watching: worth it, and next time a little longer.
            let waited = since.elapsed();
            if waited > self.window / 2 {
                self.window = (self.window * 2).clamp(STEP, self.limit.max(STEP)).min(self.limit);
            }
        }
    }

    /// Whether to look again rather than sleep. Called each time there was nothing to do.
    pub fn keep_watching(&mut self) -> bool {
        if self.window.is_zero() {
            self.watching_since.get_or_insert_with(Instant::now);
            return false;
        }
        let since = *self.watching_since.get_or_insert_with(Instant::now);
        if since.elapsed() < self.window {
            std::hint::spin_loop();
            return true;
        }
        false
    }

    /// A sleep is over. A short one would have been worth watching through; a long one was not.
    pub fn slept(&mut self) {
        let Some(since) = self.watching_since.take() else { return };
        if since.elapsed() <= self.limit {
            self.window = (self.window * 2).clamp(STEP, self.limit.max(STEP)).min(self.limit);
        } else {
            self.window /= 2;
            if self.window < STEP {
                self.window = Duration::ZERO;
            }
        }
    }
}

const STEP: Duration = Duration::from_micros(4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_limit_it_never_watches() {
        let mut patience = Patience::new(Duration::ZERO);
        for _ in 0..10 {
            assert!(!patience.keep_watching());
            patience.slept();
            patience.worked();
        }
    }

    #[test]
    fn short_sleeps_lengthen_the_watch_and_long_ones_end_it() {
        let limit = Duration::from_secs(3600);
        let mut patience = Patience::new(limit);
        for _ in 0..40 {
            patience.watching_since = Some(Instant::now());
            patience.slept();
        }
        assert_eq!(patience.window, limit);
        assert!(patience.keep_watching());

        let mut patience = Patience { limit: Duration::ZERO, window: Duration::from_micros(64), watching_since: None };
        for _ in 0..6 {
            patience.watching_since = Some(Instant::now());
            while patience.watching_since.is_some_and(|since| since.elapsed().is_zero()) {}
            patience.slept();
        }
        assert_eq!(patience.window, Duration::ZERO);
        assert!(!patience.keep_watching());
    }
}
