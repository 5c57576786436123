//! Making a volume with several copies.
//!
//! Every member is asked to make an empty copy; then all are equal, and the first stored view calls them in
//! sync. If one cannot, there is no view and so no volume; the copies that were made already are named in the
//! error, as nothing will ever use them.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::transport::{self, OpenError};
use super::view::{FailureMode, Member, MemberState, NewMember, NodeName, View, ViewError, ViewNumber};
use crate::coordination::{ViewStore, ViewStoreError};
use crate::crypto::derive::WriterKey;
use crate::store::Superblock;
use crate::tls::Configs;

/// What a new volume with several copies is to be.
pub struct Creation<'a> {
    /// Its identity and geometry.
    pub superblock: &'a Superblock,
    /// The nodes that get a copy.
    pub members: &'a [NewMember],
    /// How many copies must be in sync for a write.
    pub failure_mode: FailureMode,
    /// See [`View::lease_ms`].
    pub lease_ms: u32,
    /// See [`View::writers`].
    pub writers: &'a [NodeName],
    /// What shows that the volume's key is held; none for one without encryption.
    pub signer: Option<&'a WriterKey>,
}

/// Makes the copies, and stores the first view.
///
/// # Errors
///
/// [`CreationError`]; the volume does not exist then.
pub fn create(
    creation: &Creation<'_>,
    configs: &Configs,
    views: &mut dyn ViewStore,
    time_each: Duration,
) -> Result<View, CreationError> {
    let Creation { superblock, members, failure_mode, lease_ms, writers, signer } = *creation;
    let members_in = |states: &[MemberState]| {
        let with_state = |(member, state): (&NewMember, &MemberState)| {
            let NewMember { node, address, zone } = member.clone();
            Member { node, address, zone, state: *state }
        };
        members.iter().zip(states).map(with_state).collect()
    };
    let mut states = vec![MemberState::Behind; members.len()];
    // What the copies are told: a view in which none is in sync, so that none can be attached by it.
    let told = View {
        volume: superblock.id,
        number: ViewNumber(1),
        writer: None,
        members: members_in(&states),
        failure_mode,
        lease_ms,
        writers: writers.to_vec(),
    };
    told.check()?;
    let mut made = Vec::new();
    let abandoned = |made: &[NodeName]| Abandoned { volume: superblock.id, nodes: made.to_vec() };
    for (NewMember { node, address, .. }, state) in members.iter().zip(&mut states) {
        let deadline = Instant::now() + time_each;
        let welcome = transport::create(address, node, configs, superblock.render(), &told, signer, deadline);
        let welcome =
            welcome.map_err(|source| CreationError::Copy { abandoned: abandoned(&made), source: source.into() })?;
        made.push(node.clone());
        *state = MemberState::InSync(welcome.incarnation);
    }
    let view = View { number: told.number.next(), members: members_in(&states), ..told };
    match views.create(&view) {
        Ok(()) => Ok(view),
        // Whose copies have these incarnations is this volume.
        Err(ViewStoreError::Unknown { .. }) if views.load().is_ok_and(|stored| stored == view) => Ok(view),
        Err(source) => {
            // What may exist is not to be removed.
            let is_unknown = matches!(source, ViewStoreError::Unknown { .. });
            let abandoned = abandoned(if is_unknown { &[] } else { &made });
            Err(CreationError::View { abandoned, source: source.into() })
        }
    }
}

/// The volume could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreationError {
    /// There can be no such volume.
    #[error(transparent)]
    Impossible(#[from] ViewError),
    /// A member did not make its copy.
    #[error("{source}{abandoned}")]
    Copy {
        /// What has been made before.
        abandoned: Abandoned,
        /// Why.
        source: Box<OpenError>,
    },
    /// The first view could not be stored.
    #[error("{source}{abandoned}")]
    View {
        /// What has been made before.
        abandoned: Abandoned,
        /// Why.
        source: Box<ViewStoreError>,
    },
}

/// Copies of a volume that does not exist.
#[derive(Debug)]
pub struct Abandoned {
    volume: Uuid,
    nodes: Vec<NodeName>,
}

impl std::fmt::Display for Abandoned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.nodes.is_empty() {
            return Ok(());
        }
        let nodes: Vec<&str> = self.nodes.iter().map(NodeName::as_str).collect();
        let (volume, nodes) = (self.volume, nodes.join(", "));
        write!(f, "; nothing will use the folder {volume} in the root of the replicas on {nodes}: remove it there")
    }
}
