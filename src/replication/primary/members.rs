//! Members that come and go while the volume is served, for whoever runs it.
//!
//! A node that is added becomes a member first and makes its copy then. So it is certain when the copy is made that
//! this process is still the volume's writer, and that nobody calls an older copy on that node in sync, in whose place
//! an empty one would be put. If the copy cannot be made, the node is taken out again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::calls::Caller;
use super::shared::Shared;
use crate::replication::View;
use crate::replication::transport::{OpenError, create};
use crate::replication::view::{Member, MemberState, NewMember, NodeName};
use crate::replication::writer::{EditRefusal, MemberEdit, StopReason};
use crate::store::Superblock;

/// Who changes the members of a volume.
pub(super) struct Members {
    pub(super) caller: Arc<Caller>,
    /// What copies of the volume are like.
    pub(super) superblock: Superblock,
}

impl Members {
    /// Makes a node a member and has it make its copy, if it has none. It is sent what it lacks from then on.
    ///
    /// # Errors
    ///
    /// [`MembersError`]; the node is no member then, unless that says so.
    pub(super) fn add(&self, shared: &Arc<Shared>, new: &NewMember) -> Result<(), MembersError> {
        let node = &new.node;
        shared.change_members(MemberEdit::Add(new.clone()), EDIT_TIME)?;
        let view = shared.look(|state| state.writer.view().clone());
        let added = view.member_on(node).map(|index| &view.members[usize::from(index.0)]);
        // Nobody may make a copy for one that is no member, as somebody may have removed it again, nor for one that was
        // a member before, of which only the zone is another.
        let Some(peer) = added.filter(|member| member.state == MemberState::Added) else { return Ok(()) };
        let made = self.caller.make_copy(peer, &self.superblock, &view, Instant::now() + COPY_TIME);
        let Err(source) = made else {
            log::info!("node {node} is a member from now on");
            return Ok(());
        };
        let source = Box::new(source);
        match shared.change_members(MemberEdit::Remove { node: node.clone() }, EDIT_TIME) {
            Ok(()) => Err(MembersError::Copy { node: node.clone(), source }),
            Err(error) => {
                log::warn!("node {node} cannot be taken out again: {error}");
                Err(MembersError::CopyAndMember { node: node.clone(), source })
            }
        }
    }

    /// Goes on without a member for good.
    ///
    /// # Errors
    ///
    /// [`MembersError`].
    pub(super) fn remove(&self, shared: &Arc<Shared>, node: &NodeName) -> Result<(), MembersError> {
        // The others would not let it in again once they have heard of the view without it.
        let is_named = || shared.look(|state| state.writer.view().writers.contains(node));
        if *node == self.caller.writer.node && self.caller.signer.is_none() && !is_named() {
            return Err(MembersError::OnlyMembers { node: node.clone() });
        }
        shared.change_members(MemberEdit::Remove { node: node.clone() }, EDIT_TIME)?;
        log::info!("node {node} is no member any more");
        Ok(())
    }
}

/// Members could not be changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum MembersError {
    #[error(transparent)]
    Refused(#[from] EditRefusal),
    #[error(
        "node {node} serves the volume, which is not encrypted, and may write it as a member only: serve it on another node first"
    )]
    OnlyMembers { node: NodeName },
    #[error("the volume is served no more: {0}")]
    Stopped(#[from] StopReason),
    #[error("this process is about to end")]
    Closing,
    #[error(
        "the view could not be changed within {} s, and that goes on being tried: `sealblk volume status` shows what came of it",
        EDIT_TIME.as_secs()
    )]
    Slow,
    #[error("node {node} did not make its copy, and is no member: {source}")]
    Copy { node: NodeName, source: Box<OpenError> },
    #[error("node {node} did not make its copy, and has to be removed again: {source}")]
    CopyAndMember { node: NodeName, source: Box<OpenError> },
}

impl Caller {
    /// Has a member make its copy, if it has none.
    fn make_copy(
        &self,
        peer: &Member,
        superblock: &Superblock,
        view: &View,
        deadline: Instant,
    ) -> Result<(), OpenError> {
        let Member { node, address, .. } = peer;
        let configs = self.tls.current();
        let signer = self.signer.as_ref();
        match create(address, node, &configs, superblock.render(), view, signer, deadline) {
            // Its rows say what that one lacks.
            Err(error) if error.is_existing() => {
                log::info!("node {node} has a copy of the volume already, which is brought up to date");
                Ok(())
            }
            result => result.map(|_| ()),
        }
    }
}

/// How long a change of the view may take.
const EDIT_TIME: Duration = Duration::from_secs(30);
/// How long a node may take to make a copy.
const COPY_TIME: Duration = Duration::from_secs(20);
