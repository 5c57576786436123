//! What can go wrong with a volume, above the store.

use std::path::PathBuf;

use uuid::Uuid;

use crate::crypto::self_test::SelfTestError;
use crate::crypto::xts::XtsError;
use crate::store::{GeometryError, StoreError};

/// A volume could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The folder or the files in it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The size asked for.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The volume is encrypted and no key was given.
    #[error("volume {} is encrypted: give its key with --key", .dir.display())]
    KeyNeeded {
        /// The volume's folder; its id where no copy is here.
        dir: PathBuf,
    },
    /// The volume is not encrypted and a key was given.
    #[error("volume {} is not encrypted: give --no-encryption in place of a key", .dir.display())]
    NotEncrypted {
        /// The volume's folder; its id where no copy is here.
        dir: PathBuf,
    },
    /// The folder holds one copy of several, and a write to it alone would make it unlike the others.
    #[error("{} is one copy of a replicated volume: serve it with --view", .dir.display())]
    Replicated {
        /// The copy's folder.
        dir: PathBuf,
    },
    /// The key is of the right form and not the volume's.
    #[error(
        "the key is not the one that volume {} was made with: give the key of volume id {id}; nothing was written",
        .dir.display()
    )]
    WrongKey {
        /// The volume's folder; its id where no copy is here.
        dir: PathBuf,
        /// The volume's id.
        id: Uuid,
    },
    /// No memory for the expanded key.
    #[error(transparent)]
    Cipher(#[from] XtsError),
    /// The cipher gave wrong results on this machine.
    #[error(transparent)]
    SelfTest(#[from] SelfTestError),
}
