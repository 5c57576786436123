//! How long a thread that serves requests watches before it sleeps.
//!
//! Falling asleep and being woken cost far more than a look at a ring in memory, on both sides: who asks
//! pays for the kick, the thread for the way back onto a CPU. Watching pays when what is awaited
//! comes soon, and burns a core when it does not.
//!
//! Such a thread waits for two things in turn: for the **disk**, or other copies, while something is in flight,
//! and for the **asker**, a driver or a writer, which follows an answer with its next request. What each took
//! lately says what it will take. The thread watches only if both together, a whole round, stay well within the
//! limit: then a wake-up would be a good part of the round. With a disk that takes longer, or an asker that
//! has little to ask, it sleeps at once, as a wake-up more or less is then lost among the rest.
//! Either way one watch is never longer than the limit.

use std::time::{Duration, Instant};

/// What is known of the waits of one thread.
#[derive(Clone, Debug)]
pub struct Patience {
    limit: Duration,
    gives_way: bool,
    for_disk_alone: bool,
    asker: Wait,
    disk: Wait,
}

/// One kind of wait.
#[derive(Clone, Debug, Default)]
struct Wait {
    /// What a wait takes, lately; none before the first.
    expected: Option<Duration>,
    /// When this one began.
    since: Option<Instant>,
    /// The thread has slept through some of it.
    slept: bool,
}

impl Patience {
    /// Never watches for longer than `limit` at a time; zero means to sleep at once.
    pub fn new(limit: Duration) -> Self {
        Self { limit, gives_way: false, for_disk_alone: false, asker: Wait::default(), disk: Wait::default() }
    }

    /// Leaves the CPU to others who want it between two looks: for waits in which other processes of this machine
    /// have work to do.
    pub fn giving_way(self) -> Self {
        Self { gives_way: true, ..self }
    }

    /// Does not watch for the asker.
    pub fn for_disk_alone(self) -> Self {
        Self { for_disk_alone: true, ..self }
    }

    /// An answer was given: the next request is awaited from now on.
    pub fn answered(&mut self) {
        if !self.limit.is_zero() {
            self.asker.begin(Instant::now());
        }
    }

    /// A request has come.
    pub fn asked(&mut self) {
        // Sleep took the asker's kick and the thread's wake-up, which a watch would have spared.
        self.asker.end(self.limit, WAKE_UP);
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
        let Some(asker) = self.asker.expected else { return false };
        // A watch for the asker spares a kick and a wake-up, one for the disk only a wake-up.
        if asker + self.disk.expected.unwrap_or_default() * 2 > self.limit {
            return false;
        }
        let near = !self.for_disk_alone && self.asker.is_near(now, self.limit)
            || in_flight && self.disk.is_near(now, self.limit);
        match (near, self.gives_way) {
            (true, true) => std::thread::yield_now(),
            (true, false) => std::hint::spin_loop(),
            _ => {}
        }
        near
    }

    /// The thread is about to sleep.
    pub fn sleeps(&mut self) {
        self.asker.slept = true;
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

    /// An asker and a disk that take `driver` and `disk` each round.
    fn after_rounds(limit: Duration, asker: Duration, disk: Duration) -> Patience {
        let mut patience = Patience::new(limit);
        let ago = |duration| Instant::now().checked_sub(duration).unwrap();
        for _ in 0..20 {
            patience.asker.begin(ago(asker));
            patience.asked();
            patience.disk.begin(ago(disk));
            patience.disk_came();
        }
        patience
    }

    #[test]
    fn without_a_limit_it_never_watches() {
        let mut patience = Patience::new(Duration::ZERO);
        for _ in 0..10 {
            patience.answered();
            assert!(!patience.keep_watching(false));
            assert!(!patience.keep_watching(true));
            patience.sleeps();
            patience.disk_came();
            patience.asked();
        }
    }

    #[test]
    fn a_stranger_is_not_watched() {
        let mut patience = Patience::new(LIMIT);
        patience.answered();
        assert!(!patience.keep_watching(false));
    }

    #[test]
    fn short_rounds_are_watched_for_the_asker_and_for_the_disk() {
        let mut patience = after_rounds(LIMIT, LIMIT / 8, LIMIT / 8);
        assert!(!patience.keep_watching(false), "nothing is awaited");
        assert!(patience.keep_watching(true), "the disk is");
        patience.disk_came();
        patience.answered();
        assert!(patience.keep_watching(false), "the asker is");
    }

    #[test]
    fn who_watches_for_the_disk_alone_sleeps_when_it_has_answered() {
        let mut patience = after_rounds(LIMIT, LIMIT / 8, LIMIT / 8).for_disk_alone();
        assert!(patience.keep_watching(true), "the disk is awaited");
        patience.disk_came();
        patience.answered();
        assert!(!patience.keep_watching(false), "the asker is");
    }

    #[test]
    fn a_slow_asker_or_a_slow_disk_is_not_watched() {
        for (asker, disk) in [(LIMIT * 2, Duration::ZERO), (Duration::ZERO, LIMIT * 2), (LIMIT / 2, LIMIT / 3)] {
            let mut patience = after_rounds(LIMIT, asker, disk);
            patience.answered();
            assert!(!patience.keep_watching(false), "{asker:?} {disk:?}");
            assert!(!patience.keep_watching(true), "{asker:?} {disk:?}");
        }
    }

    #[test]
    fn a_watch_ends_when_what_it_waits_for_is_late() {
        let mut patience = after_rounds(LIMIT, LIMIT / 8, Duration::ZERO);
        patience.asker.begin(Instant::now().checked_sub(LIMIT / 3).unwrap());
        assert!(!patience.keep_watching(false));
    }

    #[test]
    fn one_long_pause_is_forgiven_after_a_few_short_rounds() {
        let mut patience = after_rounds(LIMIT, Duration::ZERO, Duration::ZERO);
        patience.asker.begin(Instant::now().checked_sub(LIMIT * 4).unwrap());
        patience.asked();
        for _ in 0..6 {
            patience.answered();
            patience.asked();
        }
        patience.answered();
        assert!(patience.keep_watching(false));
    }
}
