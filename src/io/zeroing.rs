//! How ranges of a file are made to read as zeros: the best way that has not turned out to be missing here.
//!
//! What a file system or a device can do shows only when it is asked. Whoever learns that a method is not
//! supported says so once, and everybody who shares the file takes the next one from then on.

use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use super::ZeroMethod;

/// A way to zero a range, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// A hole is punched: the space is given back.
    PunchHole = 0,
    /// The range is zeroed where it lies.
    ZeroRange = 1,
    /// Zeros are written: on disk they mean zeros.
    Write = 2,
}

impl Zeroing {
    /// How the kernel is asked; none when zeros are written.
    pub fn method(self) -> Option<ZeroMethod> {
        match self {
            Self::PunchHole => Some(ZeroMethod::PunchHole),
            Self::ZeroRange => Some(ZeroMethod::ZeroRange),
            Self::Write => None,
        }
    }

    fn next(self) -> Self {
        match self {
            Self::PunchHole => Self::ZeroRange,
            Self::ZeroRange | Self::Write => Self::Write,
        }
    }
}

/// What is known of one file, shared by all who zero its ranges.
#[derive(Debug, Default)]
pub struct KnownZeroing(AtomicU8);

impl KnownZeroing {
    /// The way to take.
    pub fn best(&self) -> Zeroing {
        match self.0.load(Ordering::Relaxed) {
            value if value == Zeroing::PunchHole as u8 => Zeroing::PunchHole,
            value if value == Zeroing::ZeroRange as u8 => Zeroing::ZeroRange,
            _ => Zeroing::Write,
        }
    }

    /// Notes that the file at `path` cannot do it this way.
    pub fn rule_out(&self, zeroing: Zeroing, path: &Path) {
        let next = zeroing.next();
        if self.0.fetch_max(next as u8, Ordering::Relaxed) < next as u8 {
            log::info!("{}: {zeroing:?} is not supported here: using {next:?}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ruled_out_stays_so() {
        let known = KnownZeroing::default();
        assert_eq!(known.best(), Zeroing::PunchHole);
        known.rule_out(Zeroing::ZeroRange, Path::new("data"));
        assert_eq!(known.best(), Zeroing::Write);
        // Somebody who began before hears of the first method late.
        known.rule_out(Zeroing::PunchHole, Path::new("data"));
        known.rule_out(Zeroing::Write, Path::new("data"));
        assert_eq!(known.best(), Zeroing::Write);
    }
}
