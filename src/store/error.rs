//! What can go wrong with a volume's folder.

use std::io;
use std::path::{Path, PathBuf};

use super::SuperblockError;

/// A volume's folder could not be made, opened or measured.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No folder, or no `volume.json` in it.
    #[error(
        "{} is not a volume: check the path, or make one with `sealblk volume create`",
        .dir.display()
    )]
    NotAVolume {
        /// The folder asked for.
        dir: PathBuf,
    },
    /// The folder has a `volume.json`.
    #[error("{} is already a volume: choose another folder", .dir.display())]
    Exists {
        /// The folder asked for.
        dir: PathBuf,
    },
    /// The folder has another file of a volume, which may be what is left of one.
    #[error(
        "{} has the name of a volume's file but there is no volume.json beside it: restore that, or move this file away",
        .path.display()
    )]
    Occupied {
        /// The file in the way.
        path: PathBuf,
    },
    /// Another process holds the lock.
    #[error("{} is in use by another sealblk process: stop that one first", .path.display())]
    InUse {
        /// The folder, or the data that another folder points to as well.
        path: PathBuf,
    },
    /// Somebody who holds no lock has the data open for writing.
    #[error(
        "{} is still written to, by another program or by the kernel for a process that has ended: check the disk, \
         and find who writes with lsof",
        .path.display()
    )]
    Written {
        /// The data.
        path: PathBuf,
    },
    /// `volume.json` was refused.
    #[error("{} cannot be used: {reason}: {}", .path.display(), remedy(.reason))]
    Superblock {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: SuperblockError,
    },
    /// There is no `data`, or it is a link to nothing.
    #[error("{} does not exist: restore it, or the device that it links to", .path.display())]
    NoData {
        /// The file or link.
        path: PathBuf,
    },
    /// `data`, or the device asked for, is neither a file nor a block device.
    #[error("{} is neither a file nor a block device: name one that is", .path.display())]
    NotADisk {
        /// The file or device.
        path: PathBuf,
    },
    /// `data`, or the device asked for, is shorter than the volume.
    #[error(
        "{} has {length_bytes} bytes and the volume has {size_bytes}: restore the missing part or give a device that is large enough",
        .path.display()
    )]
    DataTooShort {
        /// The file or device.
        path: PathBuf,
        /// Its length.
        length_bytes: u64,
        /// The volume's size.
        size_bytes: u64,
    },
    /// The operating system refused.
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

impl StoreError {
    /// For `map_err`: what was tried, on which file.
    pub(super) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> StoreError {
        let path = path.to_owned();
        move |source| StoreError::Io { action, path, source }
    }
}

fn remedy(reason: &SuperblockError) -> &'static str {
    match reason {
        SuperblockError::Damaged(_) => "restore it from a copy",
        SuperblockError::UnknownFormat { .. } => "use the sealblk that made the volume, or a newer one",
    }
}
