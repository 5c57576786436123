//! How fast members are sent what they lack: as fast as the guest does not mind.
//!
//! A budget of bytes grows with time at some rate, and each piece that is sent takes its length from it. The rate
//! follows the guest: a few times a second the time that its writes take is compared with what they take at
//! best, lately. If they take much longer, the rate falls at once; if not, it rises slowly; if the guest writes
//! nothing, it rises quickly. It stays between two bounds: a guest that never rests must not keep a copy out for
//! ever.

use super::Time;

/// The bounds of the rate, in bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResyncRate {
    /// As fast as this whatever the guest does.
    pub min: u64,
    /// Never faster.
    pub max: u64,
}

impl ResyncRate {
    /// As fast as the copies and the network are.
    pub const UNBOUNDED: ResyncRate = ResyncRate { min: u64::MAX, max: u64::MAX };
}

/// The pace.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    bounds: ResyncRate,
    rate: u64,
    budget: u64,
    filled: Time,
    window: Window,
    /// What a write takes at best, lately, in microseconds.
    best_us: Option<u64>,
}

/// What the guest's writes took since some moment.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    since: Time,
    writes: u64,
    total_us: u64,
}

impl Pace {
    /// One that begins in the middle between its bounds.
    pub(super) fn new(bounds: ResyncRate, now: Time) -> Pace {
        let rate = bounds.min.max(bounds.max.min(START)).min(bounds.max.max(1));
        let window = Window { since: now, ..Window::default() };
        Pace { bounds, rate, budget: rate / BURST_DIVISOR, filled: now, window, best_us: None }
    }

    /// A write of the guest has ended that was asked for at `asked`.
    pub(super) fn wrote(&mut self, now: Time, asked: Time) {
        self.window.writes += 1;
        self.window.total_us += now.since_us(asked);
    }

    /// Whether a piece of `len` bytes may be sent now; it is then counted.
    pub(super) fn takes(&mut self, now: Time, len: u64) -> bool {
        if self.bounds == ResyncRate::UNBOUNDED {
            return true;
        }
        self.adapt(now);
        let grown = u128::from(self.rate) * u128::from(now.since_us(self.filled)) / 1_000_000;
        // What is not used does not add up: the guest would feel it later.
        let most = (self.rate / BURST_DIVISOR).max(len);
        self.budget = self.budget.saturating_add(grown as u64).min(most);
        self.filled = now;
        if self.budget < len {
            return false;
        }
        self.budget -= len;
        true
    }

    /// A piece that was counted turned out to be nothing but zeros, which are not sent.
    pub(super) fn gives_back(&mut self, len: u64) {
        self.budget = self.budget.saturating_add(len);
    }

    fn adapt(&mut self, now: Time) {
        if now.since_us(self.window.since) < WINDOW_US {
            return;
        }
        let Window { writes, total_us, .. } = self.window;
        self.window = Window { since: now, ..Window::default() };
        let rate = match total_us.checked_div(writes) {
            None => self.rate.saturating_mul(2),
            Some(mean_us) => {
                // It rises slowly, as what a write takes at best changes with what the guest does.
                let best_us = self.best_us.map_or(mean_us, |best| mean_us.min(best + best / 32 + 1));
                self.best_us = Some(best_us);
                if mean_us > best_us * 2 + PATIENCE_US {
                    self.rate / 4 * 3
                } else {
                    self.rate.saturating_add(self.rate / 8)
                }
            }
        };
        self.rate = rate.clamp(self.bounds.min.min(self.bounds.max), self.bounds.max);
    }
}

/// Where the rate begins.
const START: u64 = 64 << 20;
/// The budget is never more than what the rate gives in a quarter of a second.
const BURST_DIVISOR: u64 = 4;
const WINDOW_US: u64 = 200_000;
/// The guest is not spared more than this, in microseconds, beside twice its best.
const PATIENCE_US: u64 = 300;

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: ResyncRate = ResyncRate { min: 1 << 20, max: 1 << 30 };
    const PIECE: u64 = 64 << 10;

    /// Bytes that go out in a second in which the guest writes 1,000 times and each takes `write_us`.
    fn second(pace: &mut Pace, now: &mut Time, write_us: u64) -> u64 {
        let mut bytes = 0;
        for _ in 0..1000 {
            *now = now.after_us(1000);
            if write_us > 0 {
                pace.wrote(*now, Time(now.0 - write_us));
            }
            while pace.takes(*now, PIECE) {
                bytes += PIECE;
            }
        }
        bytes
    }

    #[test]
    fn it_gives_way_to_a_guest_that_suffers_and_comes_back_when_it_does_not() {
        let (mut pace, mut now) = (Pace::new(BOUNDS, Time(1 << 40)), Time(1 << 40));
        let before = second(&mut pace, &mut now, 100);
        assert!(before > START / 2, "{before}");
        for _ in 0..6 {
            second(&mut pace, &mut now, 2_000);
        }
        let suffering = second(&mut pace, &mut now, 2_000);
        assert!(suffering < before / 8 && suffering >= BOUNDS.min / 2, "{suffering} after {before}");
        for _ in 0..8 {
            second(&mut pace, &mut now, 100);
        }
        let after = second(&mut pace, &mut now, 100);
        assert!(after > suffering * 8, "{after} after {suffering}");
    }

    #[test]
    fn it_stays_within_its_bounds() {
        let (mut pace, mut now) = (Pace::new(BOUNDS, Time(0)), Time(0));
        for _ in 0..20 {
            second(&mut pace, &mut now, 0);
        }
        let idle = second(&mut pace, &mut now, 0);
        assert!(idle <= BOUNDS.max + PIECE && idle > BOUNDS.max / 10 * 9, "{idle}");
        second(&mut pace, &mut now, 100);
        for _ in 0..40 {
            second(&mut pace, &mut now, 50_000);
        }
        let worst = second(&mut pace, &mut now, 50_000);
        assert!(worst >= BOUNDS.min / 10 * 9, "{worst}");
        let (mut slow, mut now) = (Pace::new(ResyncRate { min: 0, max: 0 }, Time(0)), Time(0));
        assert_eq!(second(&mut slow, &mut now, 0) / PIECE, 0, "nothing is sent at no rate");
    }

    #[test]
    fn zeros_cost_nothing() {
        let mut pace = Pace::new(BOUNDS, Time(0));
        for _ in 0..100_000 {
            assert!(pace.takes(Time(0), PIECE));
            pace.gives_back(PIECE);
        }
        assert!(Pace::new(ResyncRate::UNBOUNDED, Time(0)).takes(Time(0), u64::MAX));
    }
}
