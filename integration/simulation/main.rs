//! Replication in a world that is made of one seed, with everything going wrong: nothing acknowledged is
//! lost, what is read could have come from one disk, and the copies are equal in the end.
//!
//! `make simulate SEEDS=N` runs that many, with `FIRST_SEED=S` from there on. A seed that fails is printed,
//! and fails again on every machine: `make simulate SEEDS=1 FIRST_SEED=S TRACE=1` prints what happened in it.

mod disk;
mod faults;
mod guest;
mod history;
mod random;
mod run;
mod store;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use run::{Outcome, run};
use world::Counts;

#[test]
fn any_seed_holds() {
    let (first, seeds) = (setting("FIRST_SEED", 1), setting("SEEDS", SEEDS_DEFAULT));
    let trace = setting("TRACE", 0) > 0;
    let begun = Instant::now();
    let next = AtomicU64::new(first);
    // The first seed that fails is among those that are told: all before it are run.
    let end = AtomicU64::new(first + seeds);
    let total = Mutex::new((0, Counts::default()));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end.load(Ordering::Relaxed) {
                        return;
                    }
                    let running = Running { seed, end: &end };
                    let outcome = run(seed, trace && seed == first);
                    check(seed, &outcome);
                    drop(running);
                    let mut total = total.lock().expect("no thread panics while it counts");
                    total.0 += outcome.simulated_us;
                    total.1.add(&outcome.counts);
                }
            });
        }
    });
    let (simulated_us, counts) = *total.lock().expect("no thread has panicked");
    let (hours, seconds) = (simulated_us as f64 / 3.6e9, begun.elapsed().as_secs_f64());
    println!("{seeds} seeds, {hours:.1} simulated hours in {seconds:.0} s: {counts:?}");
    assert!(seeds < EVENTFUL_SEEDS || counts.is_eventful(), "hardly anything has happened: {counts:?}");
}

#[test]
fn seeds_that_found_something_hold() {
    for &seed in REGRESSIONS {
        check(seed, &run(seed, false));
    }
}

#[test]
fn a_seed_is_the_same_twice() {
    for seed in 1..20 {
        let (once, again) = (run(seed, true), run(seed, true));
        assert!(once.trace == again.trace, "seed {seed} went two ways");
    }
}

/// A seed that is being run: if it fails, in whatever way, none that comes after it is begun.
struct Running<'a> {
    seed: u64,
    end: &'a AtomicU64,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.end.fetch_min(self.seed, Ordering::Relaxed);
            println!("seed {} failed", self.seed);
        }
    }
}

fn check(seed: u64, outcome: &Outcome) {
    for line in &outcome.trace {
        println!("{line}");
    }
    if let Some(error) = &outcome.error {
        panic!("seed {seed} failed: {error}\nto see it again: make simulate SEEDS=1 FIRST_SEED={seed} TRACE=1");
    }
}

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text:?}")),
        Err(_) => default,
    }
}

/// What `make test` runs: two minutes on two cores.
const SEEDS_DEFAULT: u64 = 4_000;

/// From so many on, each kind of thing happens.
const EVENTFUL_SEEDS: u64 = 100;

/// Seeds that found something once, when the code was another.
const REGRESSIONS: &[u64] = &[
    7, 11, 14, 27, 72, 79, 118, 190, 260, 316, 336, 429, 655, 786, 1220, 1463, 1701, 1864, 3170, 6714, 7511, 8052,
    8661, 14698, 14714, 19955, 20408, 25072, 29803, 36456, 74980, 84145,
];
