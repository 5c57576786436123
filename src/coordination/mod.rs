//! The home of a volume's view: one place, outside of every copy, that changes by compare-and-swap.
//!
//! Whoever wants to become the writer, or to change which copies are in sync, reads the [`View`], makes
//! the one that follows it, and asks to put that in the place of the one that it read. Of all who ask at
//! the same time one succeeds, and the others learn what stands now. So each view number is given to one
//! view, ever; everything that [`replication`](crate::replication) promises rests on that.
//!
//! | file | what it is |
//! | --- | --- |
//! | [`mod@file`] | views in a folder, for volumes whose processes all run on one machine |
//! | [`mod@etcd`] | views in an etcd, each under a key of its own |
//! | [`mod@kubernetes`] | views in a cluster, each in the status of a custom resource |
//! | [`record`] | a view as the content of a file or a key |
//!
//! A store can be out of reach, and can break in the middle of a change. The errors tell apart what the
//! caller has to know: whether nothing has changed ([`ViewStoreError::Unavailable`]) or the change may
//! have happened ([`ViewStoreError::Unknown`]).

mod error;
pub mod etcd;
pub mod file;
mod hostile;
pub mod kubernetes;
pub mod record;

use uuid::Uuid;

pub use error::{RecordDamage, ViewStoreError};
pub use etcd::EtcdViews;
pub use file::FileViews;
pub use hostile::read_hostile;
pub use kubernetes::{ClusterVolume, KubernetesViews};

use crate::replication::View;
use crate::replication::view::ViewNumber;

/// Where the view of one volume is kept.
pub trait ViewStore: Send {
    /// Stores the first view of the volume.
    ///
    /// # Errors
    ///
    /// [`ViewStoreError::Exists`] when there is one already; [`ViewStoreError::OtherVolume`] and
    /// [`ViewStoreError::Impossible`] when it is none of this volume; [`ViewStoreError::Unavailable`] and
    /// [`ViewStoreError::Unknown`] as for a swap.
    fn create(&mut self, first: &View) -> Result<(), ViewStoreError>;

    /// The current view. It is durable: no crash brings back an earlier one.
    ///
    /// # Errors
    ///
    /// [`ViewStoreError::NotFound`], [`ViewStoreError::Damaged`] and [`ViewStoreError::Unavailable`].
    fn load(&mut self) -> Result<View, ViewStoreError>;

    /// Puts `next` in the place of the view numbered `current`, durably, if that is the current one.
    ///
    /// # Errors
    ///
    /// As those of [`load`](Self::load). [`ViewStoreError::NotNext`], [`ViewStoreError::OtherVolume`] and
    /// [`ViewStoreError::Impossible`] when `next` can never be stored there. After
    /// [`ViewStoreError::Unknown`] it may have been stored, and only a load can tell; after all others it
    /// has not.
    fn swap(&mut self, current: ViewNumber, next: &View) -> Result<Swap, ViewStoreError>;
}

/// What came of a [`ViewStore::swap`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swap {
    /// The view is now the current one.
    Stored,
    /// Another view is the current one: this.
    Conflict(View),
}

/// Refuses what must not follow the view numbered `current` of a volume.
fn check_next(volume: Uuid, current: ViewNumber, next: &View) -> Result<(), ViewStoreError> {
    check_storable(volume, next)?;
    if current.0.checked_add(1) == Some(next.number.0) {
        Ok(())
    } else {
        Err(ViewStoreError::NotNext { volume, current, next: next.number })
    }
}

/// Refuses what is no view of a volume.
fn check_storable(volume: Uuid, view: &View) -> Result<(), ViewStoreError> {
    if view.volume != volume {
        Err(ViewStoreError::OtherVolume { expected: volume, found: view.volume })
    } else if view.check().is_err() {
        Err(ViewStoreError::Impossible { volume, number: view.number })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::view::{FailureMode, Incarnation, Member, MemberState};

    /// View 1 of a volume with two copies.
    pub(super) fn first_view(volume: Uuid) -> View {
        let member = |name: &str, state| Member {
            node: name.parse().unwrap(),
            address: format!("{name}.example:7000"),
            zone: None,
            state,
        };
        View {
            volume,
            number: ViewNumber(1),
            writer: None,
            members: vec![
                member("node-1", MemberState::InSync(Incarnation(Uuid::from_bytes([1; 16])))),
                member("node-2", MemberState::Behind),
            ],
            failure_mode: FailureMode::Soft,
            lease_ms: 5000,
            writers: Vec::new(),
        }
    }

    #[test]
    fn only_the_view_after_the_current_one_of_the_same_volume_may_follow() {
        let volume = Uuid::from_bytes([7; 16]);
        let good = View { number: ViewNumber(5), ..first_view(volume) };
        check_next(volume, ViewNumber(4), &good).unwrap();

        for current in [0, 3, 5, u64::MAX] {
            let error = check_next(volume, ViewNumber(current), &good).unwrap_err();
            assert!(matches!(error, ViewStoreError::NotNext { .. }), "{error}");
        }
        let error = check_next(Uuid::nil(), ViewNumber(4), &good).unwrap_err();
        assert!(matches!(error, ViewStoreError::OtherVolume { .. }), "{error}");
    }

    #[test]
    fn impossible_views_are_refused() {
        let volume = Uuid::from_bytes([7; 16]);
        let edits: [fn(&mut View); 6] = [
            |view| view.number = ViewNumber(0),
            |view| view.number = ViewNumber(1 << 63),
            |view| view.members.clear(),
            |view| view.members = vec![view.members[0].clone(); 2],
            |view| view.members[1].address.clear(),
            |view| view.members[1].address = "a".repeat(301),
        ];
        for edit in edits {
            let mut view = first_view(volume);
            check_storable(volume, &view).unwrap();
            edit(&mut view);
            let error = check_storable(volume, &view).unwrap_err();
            assert!(matches!(error, ViewStoreError::Impossible { .. }), "{error}");
        }
    }
}
