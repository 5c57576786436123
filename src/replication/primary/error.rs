//! Why a volume cannot be attached.

use std::io;
use std::path::PathBuf;

use uuid::Uuid;

use crate::coordination::ViewStoreError;
use crate::replication::view::NodeName;
use crate::replication::writer::StopReason;

/// A volume could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum PrimaryError {
    /// Its view.
    #[error(transparent)]
    View(#[from] ViewStoreError),
    /// The view is another volume's.
    #[error("the view is one of volume {found}, and the copy here is of volume {expected}: check the names of both")]
    OtherVolume {
        /// The volume to attach.
        expected: Uuid,
        /// The view's.
        found: Uuid,
    },
    /// By the view there is a copy on this node.
    #[error("node {node} has a copy of the volume by its view, and none was given: name its folder")]
    NoCopy {
        /// This node.
        node: NodeName,
    },
    /// By the view there is no copy on this node.
    #[error(
        "the view has no member on node {node}, and {} is a copy: check the name of this node, and whether it was removed; then the copy is old, and `sealblk volume add-member` brings it back",
        .dir.display()
    )]
    NotAMember {
        /// This node.
        node: NodeName,
        /// The copy's folder.
        dir: PathBuf,
    },
    /// Nobody could ask how the volume stands.
    #[error("cannot listen at {} for those who ask how the volume stands: {source}: choose another socket", .path.display())]
    Report {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The volume cannot have a writer now.
    #[error(transparent)]
    Stopped(StopReason),
    /// The machine has not what it takes.
    #[error("cannot begin to serve a replicated volume: {0}: check the limits of this process")]
    System(#[from] io::Error),
}
