//! What is logged, for tests to wait for.

use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use super::PATIENCE;

/// What has been logged, by every test of this process.
#[derive(Default)]
pub struct Lines {
    all: Mutex<Vec<String>>,
    more: Condvar,
}

impl Lines {
    pub fn listen() -> &'static Lines {
        static LINES: OnceLock<Lines> = OnceLock::new();
        let lines = LINES.get_or_init(Lines::default);
        // The second time it is this one already.
        if log::set_logger(lines).is_ok() {
            log::set_max_level(log::LevelFilter::Warn);
        }
        lines
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first line of that kind, now or soon.
    pub fn await_one(&self, wanted: impl Fn(&str) -> bool) -> String {
        let is_missing = |lines: &mut Vec<String>| !lines.iter().any(|line| wanted(line));
        let (lines, _) = self.more.wait_timeout_while(self.lock(), PATIENCE, is_missing).unwrap();
        lines.iter().find(|line| wanted(line)).expect("nothing of that kind was logged").clone()
    }

    /// How many lines are of that kind.
    pub fn count(&self, wanted: impl Fn(&str) -> bool) -> usize {
        self.lock().iter().filter(|line| wanted(line)).count()
    }
}

impl log::Log for Lines {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        self.lock().push(record.args().to_string());
        self.more.notify_all();
    }

    fn flush(&self) {}
}
