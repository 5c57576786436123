//! What can go wrong with the home of a view.

use std::error::Error;

use uuid::Uuid;

use crate::replication::view::ViewNumber;
use crate::store::checksum::ChecksumError;

/// A view could not be read or changed. The place is a file, or the name of an object in a cluster.
#[derive(Debug, thiserror::Error)]
pub enum ViewStoreError {
    /// The volume has no view there.
    #[error("{place} does not exist: check the name, or create the volume's first view")]
    NotFound {
        /// Where it was looked for.
        place: String,
    },
    /// The volume has a view there already.
    #[error("{place} exists already: the volume has a view, which only a swap may change")]
    Exists {
        /// Where it is.
        place: String,
    },
    /// What is stored is not a view that was stored there.
    #[error("{place} cannot be used: {reason}: restore it from the copies' own records")]
    Damaged {
        /// Where it is.
        place: String,
        /// What is wrong with it.
        reason: RecordDamage,
    },
    /// The store was not reached or did not work. Nothing has changed.
    #[error("cannot use {place}: {source}: nothing has changed, try again")]
    Unavailable {
        /// Where the view is.
        place: String,
        /// Why it failed.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The store failed in the middle of a change, which may have happened.
    #[error("{place} may or may not have changed: {source}: load it again to learn which")]
    Unknown {
        /// Where the view is.
        place: String,
        /// Why it failed.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A view was to follow one that it does not follow. Nothing has changed.
    #[error("view {next} of volume {volume} does not follow view {current}: load the current one and build on that")]
    NotNext {
        /// The volume.
        volume: Uuid,
        /// The view to be replaced.
        current: ViewNumber,
        /// The view to be stored.
        next: ViewNumber,
    },
    /// A view of another volume was to be stored. Nothing has changed.
    #[error("a view of volume {found} cannot be stored as one of volume {expected}: use the store of that volume")]
    OtherVolume {
        /// The volume of the store.
        expected: Uuid,
        /// The volume of the view.
        found: Uuid,
    },
    /// What was to be stored can be no view. Nothing has changed.
    #[error("view {number} of volume {volume} is impossible: correct its number, members and addresses")]
    Impossible {
        /// The volume.
        volume: Uuid,
        /// The number that it was to have.
        number: ViewNumber,
    },
}

/// What shows that a stored view is damaged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordDamage {
    /// There is no checksum, or it does not match.
    #[error(transparent)]
    Checksum(#[from] ChecksumError),
    /// It is intact but written by another version of sealblk.
    #[error("its format version is {found} and this sealblk reads version {}", super::record::FORMAT)]
    UnknownFormat {
        /// The version found.
        found: u32,
    },
    /// Not JSON, or not with the fields of a view.
    #[error("its fields are not those of a view")]
    NotAView,
    /// The fields are those of a view that cannot be.
    #[error("its values are not possible for a view")]
    Impossible,
    /// It is of another volume than its name says.
    #[error("it is of volume {found}")]
    OtherVolume {
        /// The volume in the content.
        found: Uuid,
    },
    /// A field of it is not what it has to be.
    #[error("{what}")]
    Field {
        /// Which, and what is wrong with it.
        what: String,
    },
    /// It is another object of the same name than before.
    #[error("it was deleted and made anew, and does not know what the copies have seen")]
    OtherObject,
    /// It has an earlier view than it had before.
    #[error("it has view {found}, and had view {seen} before")]
    WentBack {
        /// The highest number that was seen.
        seen: ViewNumber,
        /// The number found.
        found: ViewNumber,
    },
    /// The same values in another rendering.
    #[error("it is not written the way sealblk writes it")]
    NotCanonical,
}
