//! How long a worker watches before it sleeps.
//!
//! Falling asleep and being woken cost far more than a look at the ring, on both sides: the driver
//! pays for the kick, the worker for the way back onto a CPU. Watching pays when what is awaited
//! comes soon, and burns a core when it does not.
//!
//! A worker waits for two things in turn: for the **disk**, while something is in flight, and for the
//! **driver**, which answers what it was given back with its next request. What each took lately says
//! what it will take. The worker watches only if both together, a whole round, stay well within the
//! limit: then a wake-up would be a good part of the round. With a disk that takes longer, or a driver that
//! has little to ask, it sleeps at once, as a wake-up more or less is then lost among the rest.
//! Either way one watch is never longer than the limit.

use std::time::{Duration, Instant};

/// What is known of the waits of one worker.
#[derive(Clone, Debug)]
pub struct Patience {
    limit: Duration,
    driver: Wait,
    disk: Wait,
}

/// One kind of wait.
#[derive(Clone, Debug, Default)]
struct Wait {
    /// What a wait takes, lately; none before the first.
    expected: Option<Duration>,
    /// When this one began.
    since: Option<Instant>,
    /// The worker has slept through some of it.
    slept: bool,
}

impl Patience {
    /// Never watches for longer than `limit` at a time; zero means to sleep at once.
    pub fn new(limit: Duration) -> Self {
        Self { limit, driver: Wait::default(), disk: Wait::default() }
    }

    /// The driver was given something back: its next request is awaited from now on.
    pub fn gave_back(&mut self) {
        if !self.limit.is_zero() {
            self.driver.begin(Instant::now());
        }
    }

    /// The driver has made something available.
    pub fn driver_came(&mut self) {
        // Sleep took the driver's kick and the worker's wake-up, which a watch would have spared.
        self.driver.end(self.limit, WAKE_UP);
    }

    /// The disk has finished something.
    pub fn disk_came(&mut self) {
        self.disk.end(self.limit, Duration::ZERO);
    }

    /// Whether to look again rather than sleep. Called each time there was nothing to do, with or
    /// without something in flight.
    pub fn keep_watching(&mut self, in_flight: bool) -> bool {
        if self.limit.is_zero() {
            return false;
        }
        let now = Instant::now();
        if in_flight && self.disk.since.is_none() {
            self.disk.begin(now);
        }
        let Some(driver) = self.driver.expected else { return false };
        // A watch for the driver spares a kick and a wake-up, one for the disk only a wake-up.
        if driver + self.disk.expected.unwrap_or_default() * 2 > self.limit {
            return false;
        }
        let near = self.driver.is_near(now, self.limit) || in_flight && self.disk.is_near(now, self.limit);
        if near {
            std::hint::spin_loop();
        }
        near
    }

    /// The worker is about to sleep.
    pub fn sleeps(&mut self) {
        self.driver.slept = true;
        self.disk.slept = true;
    }
}

impl Wait {
    fn begin(&mut self, now: Instant) {
        self.since = Some(now);
        self.slept = false;
    }

    fn end(&mut self, limit: Duration, cost_of_sleep: Duration) {
        let Some(since) = self.since.take() else { return };
        let mut took = since.elapsed();
        if self.slept {
            took = took.saturating_sub(cost_of_sleep);
        }
        // A very long wait counts for one long wait, not for as many as it was long.
        let took = took.min(limit * 4);
        self.expected = Some(self.expected.map_or(took, |expected| (expected * 3 + took) / 4));
    }

    /// Whether it may still end soon: it has not lasted for much longer than it should have.
    fn is_near(&self, now: Instant, limit: Duration) -> bool {
        let (Some(since), expected) = (self.since, self.expected.unwrap_or(limit)) else { return false };
        now - since < (expected * 2 + WATCH_MIN).min(limit)
    }
}

/// What a kick and a wake-up take, on the slow side: under a hypervisor, with idle CPUs.
const WAKE_UP: Duration = Duration::from_micros(30);
/// A shorter watch is over before anything can happen.
const WATCH_MIN: Duration = Duration::from_micros(4);

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A driver and a disk that take `driver` and `disk` each round.
    fn after_rounds(limit: Duration, driver: Duration, disk: Duration) -> Patience {
        let mut patience = Patience::new(limit);
        let ago = |duration| Instant::now().checked_sub(duration).unwrap();
        for _ in 0..20 {
            patience.driver.begin(ago(driver));
            patience.driver_came();
            patience.disk.begin(ago(disk));
            patience.disk_came();
        }
        patience
    }

    #[test]
    fn without_a_limit_it_never_watches() {
        let mut patience = Patience::new(Duration::ZERO);
        for _ in 0..10 {
            patience.gave_back();
            assert!(!patience.keep_watching(false));
            assert!(!patience.keep_watching(true));
            patience.sleeps();
            patience.disk_came();
            patience.driver_came();
        }
    }

    #[test]
    fn a_stranger_is_not_watched() {
        let mut patience = Patience::new(LIMIT);
        patience.gave_back();
        assert!(!patience.keep_watching(false));
    }

    #[test]
    fn short_rounds_are_watched_for_the_driver_and_for_the_disk() {
        let mut patience = after_rounds(LIMIT, LIMIT / 8, LIMIT / 8);
        assert!(!patience.keep_watching(false), "nothing is awaited");
        assert!(patience.keep_watching(true), "the disk is");
        patience.disk_came();
        patience.gave_back();
        assert!(patience.keep_watching(false), "the driver is");
    }

    #[test]
    fn a_slow_driver_or_a_slow_disk_is_not_watched() {
        for (driver, disk) in [(LIMIT * 2, Duration::ZERO), (Duration::ZERO, LIMIT * 2), (LIMIT / 2, LIMIT / 3)] {
            let mut patience = after_rounds(LIMIT, driver, disk);
            patience.gave_back();
            assert!(!patience.keep_watching(false), "{driver:?} {disk:?}");
            assert!(!patience.keep_watching(true), "{driver:?} {disk:?}");
        }
    }

    #[test]
    fn a_watch_ends_when_what_it_waits_for_is_late() {
        let mut patience = after_rounds(LIMIT, LIMIT / 8, Duration::ZERO);
        patience.driver.begin(Instant::now().checked_sub(LIMIT / 3).unwrap());
        assert!(!patience.keep_watching(false));
    }

    #[test]
    fn one_long_pause_is_forgiven_after_a_few_short_rounds() {
        let mut patience = after_rounds(LIMIT, Duration::ZERO, Duration::ZERO);
        patience.driver.begin(Instant::now().checked_sub(LIMIT * 4).unwrap());
        patience.driver_came();
        for _ in 0..6 {
            patience.gave_back();
            patience.driver_came();
        }
        patience.gave_back();
        assert!(patience.keep_watching(false));
    }
}
