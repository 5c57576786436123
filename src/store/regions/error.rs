//! What can go wrong with a region table.

use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::block::FORMAT;
use super::{REGIONS_MAX, VIEW_MAX};

/// A region table could not be made, opened or changed.
#[derive(Debug, thiserror::Error)]
pub enum RegionTableError {
    /// There is no table.
    #[error("{} does not exist: restore it, or make this copy again from another one", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// There is a table already.
    #[error("{} exists already: open it, or move it away if it is of a volume that is gone", .path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Neither header is as it was written, or one that nothing can follow.
    #[error("{} is damaged in both headers: make this copy again from another one", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The table is intact but written by another version of sealblk.
    #[error(
        "{} has format version {found} and this sealblk reads version {FORMAT}: use the one that wrote it, or a newer one",
        .path.display()
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// The version found.
        found: u32,
    },
    /// The table belongs to another volume.
    #[error("{} is of volume {found} and this is volume {expected}: restore the one that belongs here", .path.display())]
    OtherVolume {
        /// The file.
        path: PathBuf,
        /// The volume in the table.
        found: Uuid,
        /// The volume asked for.
        expected: Uuid,
    },
    /// The table divides the volume in another way.
    #[error(
        "{} has {} regions of {} bytes and the volume has {} of {}: restore the table that belongs here",
        .path.display(), .found.0, .found.1, .expected.0, .expected.1
    )]
    OtherDivision {
        /// The file.
        path: PathBuf,
        /// How many regions of how many bytes the table has.
        found: (u32, u64),
        /// How many regions of how many bytes the volume has.
        expected: (u32, u64),
    },
    /// The file has been cut off.
    #[error("{} has {length_bytes} bytes and needs {table_bytes}: make this copy again from another one", .path.display())]
    TooShort {
        /// The file.
        path: PathBuf,
        /// Its length.
        length_bytes: u64,
        /// The length of such a table.
        table_bytes: u64,
    },
    /// A volume is not divided so finely.
    #[error("a table of {count} regions cannot be made: choose larger regions, at most {REGIONS_MAX} of them")]
    TooManyRegions {
        /// How many were asked for.
        count: u32,
    },
    /// A copy does not go back to a lower view.
    #[error("{} has accepted view {accepted} and refuses view {view}: ask for the current view", .path.display())]
    Lower {
        /// The file.
        path: PathBuf,
        /// The accepted view.
        accepted: u64,
        /// The view asked for.
        view: u64,
    },
    /// A row has 63 bits for a view.
    #[error("{} cannot hold view {view}: view numbers end at {VIEW_MAX}", .path.display())]
    ViewTooLarge {
        /// The file.
        path: PathBuf,
        /// The view asked for.
        view: u64,
    },
    /// The operating system refused, or a change failed before.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl RegionTableError {
    /// For `map_err`: what was tried, on which file.
    pub(super) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> RegionTableError {
        let path = path.to_owned();
        move |source| RegionTableError::Io { action, path, source }
    }
}
