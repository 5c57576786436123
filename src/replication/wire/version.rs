//! Which protocol is spoken, and how two that speak several agree.

use super::WireError;

/// A version of the protocol. Both sides of a connection speak the version that its opening settled.
///
/// What changed in each:
///
/// | version | |
/// | --- | --- |
/// | 1 | the first |
///
/// A change to any byte that is sent makes a new version. The header of a frame, the first 12 bytes of
/// an opening, and the whole of a refusal are the same in all versions: by them two sides that have no
/// version in common can still tell each other so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum ProtocolVersion {
    /// The first.
    V1 = 1,
}

impl ProtocolVersion {
    /// The oldest that this code speaks.
    pub const LOWEST: ProtocolVersion = ProtocolVersion::V1;
    /// The newest that this code speaks.
    pub const HIGHEST: ProtocolVersion = ProtocolVersion::V1;

    /// Its number.
    pub fn number(self) -> u16 {
        self as u16
    }

    /// The highest version that is between `lowest` and `highest` and that this code speaks.
    ///
    /// # Errors
    ///
    /// [`WireError::VersionRange`] when the two are no range, and [`WireError::NoCommonVersion`].
    pub fn choose(lowest: u16, highest: u16) -> Result<ProtocolVersion, WireError> {
        if lowest == 0 || lowest > highest {
            return Err(WireError::VersionRange { lowest, highest });
        }
        let common = KNOWN.into_iter().rev().find(|version| (lowest..=highest).contains(&version.number()));
        common.ok_or(WireError::NoCommonVersion { lowest, highest })
    }
}

impl TryFrom<u16> for ProtocolVersion {
    type Error = WireError;

    fn try_from(number: u16) -> Result<Self, WireError> {
        let known = KNOWN.into_iter().find(|version| version.number() == number);
        known.ok_or(WireError::UnknownVersion { number })
    }
}

/// From the oldest to the newest.
const KNOWN: [ProtocolVersion; 1] = [ProtocolVersion::V1];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_common_version_is_chosen() {
        for (lowest, highest) in [(1, 1), (1, 2), (1, u16::MAX)] {
            assert_eq!(ProtocolVersion::choose(lowest, highest).unwrap(), ProtocolVersion::V1);
        }
        assert!(matches!(ProtocolVersion::choose(2, 3), Err(WireError::NoCommonVersion { lowest: 2, highest: 3 })));
        for (lowest, highest) in [(0, 1), (2, 1), (0, 0)] {
            assert!(matches!(ProtocolVersion::choose(lowest, highest), Err(WireError::VersionRange { .. })));
        }
    }

    #[test]
    fn the_range_is_that_of_the_known_versions() {
        assert_eq!(KNOWN.first(), Some(&ProtocolVersion::LOWEST));
        assert_eq!(KNOWN.last(), Some(&ProtocolVersion::HIGHEST));
        assert!(KNOWN.is_sorted());
    }
}
