//! Why a copy cannot be opened, or not go on.

use std::io;
use std::path::PathBuf;

use crate::coordination::RecordDamage;
use crate::replication::view::ViewNumber;
use crate::store::{HolderError, RegionTableError, StoreError};

/// A copy could not be opened, or a change of what it knows of itself could not be made durable.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The folder or the files in it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The region table.
    #[error(transparent)]
    Table(#[from] RegionTableError),
    /// The note of who holds the copy.
    #[error(transparent)]
    Holder(#[from] HolderError),
    /// Rows could not be written.
    #[error("cannot write the region table of {}: {source}: check the disk", .dir.display())]
    Rows {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `view.json` is not a view of this volume.
    #[error("the view.json in {}: {damage}: make this copy again from another one", .dir.display())]
    ViewRecord {
        /// The folder.
        dir: PathBuf,
        /// What is wrong with it.
        damage: RecordDamage,
    },
    /// The record of the view is older than the region table.
    #[error(
        "the copy in {} has accepted view {accepted} and its view.json is of view {recorded}: make this copy again from another one",
        .dir.display()
    )]
    ViewLost {
        /// The folder.
        dir: PathBuf,
        /// By the region table.
        accepted: ViewNumber,
        /// By the record; 0 for none.
        recorded: ViewNumber,
    },
    /// The data file cannot be used.
    #[error("cannot use {}: {source}: check the disk, and the limits of this process", .path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}
