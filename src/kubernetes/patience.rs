//! How long to go on asking an API server that cannot be reached or is busy.
//!
//! When a rack comes back, hundreds of attaches ask one API server that is still starting. So each
//! waits longer after every failure, by a random part of that time, and not before the moment that
//! the server names with `Retry-After`. What cannot pass by waiting is never asked twice.
//!
//! One answer says two things: a server that has just started denies everything (403) until it has read
//! its own rules. It says so under `/readyz`, which is asked before a 403 is believed.

use std::time::Duration;

use hyper::body::Bytes;
use kube::Client;
use tokio::time::Instant;

use super::request::{self, RequestError};

/// A time by which everything that is asked must have been answered.
pub struct Patience {
    begin: Instant,
    total: Duration,
    next_delay: Duration,
    has_waited: bool,
    denied_since: Option<Instant>,
}

impl Patience {
    /// Begins now.
    pub fn new(total: Duration) -> Patience {
        Patience { begin: Instant::now(), total, next_delay: DELAY_MIN, has_waited: false, denied_since: None }
    }

    /// Gets the JSON text at `path`, which is called `what` in the log, as often as it takes. One line
    /// of the log says that waiting has begun and one that it was of use, whatever happens between.
    ///
    /// # Errors
    ///
    /// [`RequestError`]: at once where waiting is of no use, otherwise the last one when time is up.
    pub async fn get(&mut self, client: &Client, path: &str, what: &str) -> Result<Bytes, RequestError> {
        self.next_delay = DELAY_MIN;
        // What the server said last, which tells more than that there was no time for another answer.
        let mut said = None;
        loop {
            let limit = self.remaining().clamp(REQUEST_TIME_MIN, REQUEST_TIME_MAX);
            let error = match request::get(client, path, limit).await {
                Ok(answer) => {
                    if std::mem::take(&mut self.has_waited) {
                        log::info!("got {what} after {:.1} s", self.begin.elapsed().as_secs_f32());
                    }
                    return Ok(answer);
                }
                Err(error) => error,
            };
            let starting = matches!(error, RequestError::Forbidden { .. }) && self.is_starting(client).await;
            if !error.may_pass() && !starting {
                return Err(error);
            }
            let Some(delay) = self.delay(&error) else {
                return Err(if matches!(error, RequestError::NoAnswer { .. }) { said.unwrap_or(error) } else { error });
            };
            if !self.has_waited {
                self.has_waited = true;
                log::warn!(
                    "cannot get {what} from the API server yet: {error}; trying again for up to {:.1} s",
                    self.remaining().as_secs_f32()
                );
            }
            if !matches!(error, RequestError::NoAnswer { .. }) {
                said = Some(error);
            }
            tokio::time::sleep(delay).await;
        }
    }

    /// Whether the server denies because it has not read its rules yet.
    async fn is_starting(&mut self, client: &Client) -> bool {
        let since = *self.denied_since.get_or_insert_with(Instant::now);
        let limit = self.remaining().clamp(REQUEST_TIME_MIN, REQUEST_TIME_MAX);
        since.elapsed() < START_TIME_MAX && request::get(client, "/readyz", limit).await.is_err()
    }

    /// How long to wait after this; none where the next request would be too late.
    pub(super) fn delay(&mut self, error: &RequestError) -> Option<Duration> {
        let remaining = self.remaining();
        if remaining < REQUEST_TIME_MIN {
            return None;
        }
        let delay = jittered(self.next_delay);
        self.next_delay = (self.next_delay * 2).min(DELAY_MAX);
        match error.retry_after() {
            Some(asked) if asked.saturating_add(REQUEST_TIME_MIN) > remaining => None,
            // Not all of those who were told the same moment may come back in it.
            Some(asked) => Some(asked + delay.min(asked / 2)),
            None => Some(delay),
        }
        .map(|delay| delay.min(remaining.saturating_sub(REQUEST_TIME_MIN)))
    }

    fn remaining(&self) -> Duration {
        self.total.saturating_sub(self.begin.elapsed())
    }
}

/// At least half of `delay`, at most all of it.
pub fn jittered(delay: Duration) -> Duration {
    // Without random bytes all wait equally long, which is no reason not to wait.
    let random = getrandom::u32().unwrap_or(u32::MAX);
    delay.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

const DELAY_MIN: Duration = Duration::from_millis(250);
const DELAY_MAX: Duration = Duration::from_secs(5);

/// The first request gets this much whatever the limit, and none is begun with less left.
const REQUEST_TIME_MIN: Duration = Duration::from_millis(100);

/// A server that denies everything for longer than this does not do so because it has just started.
const START_TIME_MAX: Duration = Duration::from_secs(20);

/// An API server that has not answered by then does not.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(retry_after: Option<u64>) -> RequestError {
        let retry_after = retry_after.map(Duration::from_secs);
        RequestError::Unable { code: 429, message: String::new(), retry_after }
    }

    #[test]
    fn delays_grow_to_a_bound_and_differ() {
        let mut patience = Patience::new(Duration::from_secs(1000));
        let mut bound = DELAY_MIN;
        for _ in 0..20 {
            let delay = patience.delay(&busy(None)).unwrap();
            assert!(delay >= bound / 2 && delay <= bound, "{delay:?} of {bound:?}");
            bound = (bound * 2).min(DELAY_MAX);
        }
        let delays: Vec<_> = (0..100).map(|_| jittered(DELAY_MAX)).collect();
        assert!(delays.iter().any(|delay| *delay != delays[0]), "no jitter");
    }

    #[test]
    fn the_server_is_not_asked_before_the_time_it_names() {
        let mut patience = Patience::new(Duration::from_secs(100));
        let delay = patience.delay(&busy(Some(8))).unwrap();
        assert!(delay >= Duration::from_secs(8) && delay <= Duration::from_secs(12), "{delay:?}");
        for never in [200, u64::MAX] {
            assert_eq!(patience.delay(&busy(Some(never))), None);
        }
    }

    #[test]
    fn nothing_is_begun_when_time_is_up() {
        assert_eq!(Patience::new(Duration::ZERO).delay(&busy(None)), None);
    }
}
