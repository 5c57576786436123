//! What a command fails with, and the exit status that follows.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use uuid::Uuid;

use crate::controller::process::ControllerError;
use crate::coordination::ViewStoreError;
use crate::coordination::kubernetes::VolumeName;
use crate::crypto::LockedError;
use crate::crypto::benchmark::BenchmarkError;
use crate::keys::{KeyError, Namespace, SourceError};
use crate::replication::copy::CopyError;
use crate::replication::creation::CreationError;
use crate::replication::description::DescriptionError;
use crate::replication::primary::PrimaryError;
use crate::replication::server::ServerError;
use crate::replication::view::NodeName;
use crate::replication::writer::StopReason;
use crate::store::StoreError;
use crate::tls::FilesError;
use crate::tls::bootstrap::BootstrapError;
use crate::vhost::socket::SocketError;
use crate::volume::VolumeError;
use crate::volume::image::ImageError;

/// A command failed. Its text is the line that the user sees.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The arguments are wrong.
    #[error("{0}: see `sealblk --help`")]
    Usage(String),
    /// The text of `--key` or `--namespace-key` is not a source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A key cannot be had.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Some volume keys of a namespace are of no use.
    #[error(
        "{problems} volume keys of namespace {namespace} do not open: restore their Secrets from a copy, before their volumes are needed"
    )]
    BadKeys {
        /// The namespace.
        namespace: Namespace,
        /// How many.
        problems: usize,
    },
    /// A volume cannot be made or opened.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A volume's folder cannot be examined.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An image cannot be imported or exported.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A file named on the command line cannot be opened.
    #[error("cannot open {}: {source}: check its path and permissions", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The cipher cannot be measured.
    #[error(transparent)]
    Benchmark(#[from] BenchmarkError),
    /// A volume cannot be served, or not any longer.
    #[error("cannot serve {}: {source}: check the disk and the log", .dir.display())]
    Serve {
        /// The volume's folder; its id where no copy is here.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A copy of a replicated volume cannot be opened.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The folder of a member's copy has no copy in it.
    #[error(
        "node {node} is a member of volume {volume} and has no copy in {}: check --root and that its disk is mounted; if the copy is lost, serve the volume on another node",
        .dir.display()
    )]
    NoCopy {
        /// The volume.
        volume: Uuid,
        /// This node.
        node: NodeName,
        /// Where the copy should be.
        dir: PathBuf,
    },
    /// Nobody says what a volume is.
    #[error(transparent)]
    Description(#[from] DescriptionError),
    /// Without a key only nodes that are named can write a volume.
    #[error(
        "volume {volume} is not encrypted, so only its members and the writers that it was made with may write it, and node {node} is none of these: serve it on {members}"
    )]
    OnlyMembers {
        /// The volume.
        volume: Uuid,
        /// This node.
        node: NodeName,
        /// The members' nodes.
        members: String,
    },
    /// The replica of this node does not give a copy up.
    #[error("the replica of this node does not give the copy {} up: {source}", .dir.display())]
    Release {
        /// The copy's folder.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was asked to end, and has been waited for in vain.
    #[error(
        "{}: what the guest has asked for has not ended within {seconds} s, as where a disk hangs or writes wait for copies: ending without it. What was acknowledged and flushed is safe",
        .dir.display()
    )]
    NotEnded {
        /// The volume's folder, or its id.
        dir: PathBuf,
        /// How long was waited.
        seconds: f32,
    },
    /// A replicated volume cannot be attached.
    #[error(transparent)]
    Primary(#[from] PrimaryError),
    /// The writer of a replicated volume has stopped.
    #[error("volume {} is served no more: {reason}", .dir.display())]
    Stopped {
        /// The copy's folder; the volume's id without one.
        dir: PathBuf,
        /// Why.
        reason: StopReason,
    },
    /// A volume of a cluster cannot be read or made.
    #[error(transparent)]
    ClusterVolume(#[from] ViewStoreError),
    /// What a cluster says that a volume is to be does not do.
    #[error("volume {volume} of the cluster cannot be used: {what}")]
    Spec {
        /// The volume.
        volume: VolumeName,
        /// What is wrong with it.
        what: String,
    },
    /// The volume is there already.
    #[error("volume {volume} of the cluster has its copies already: `sealblk serve` attaches it")]
    VolumeExists {
        /// The volume.
        volume: VolumeName,
    },
    /// The volume has no copies yet.
    #[error(
        "volume {volume} of the cluster has no copies yet: make them with `sealblk volume create --view kubernetes:{volume}`"
    )]
    NotMade {
        /// The volume.
        volume: VolumeName,
    },
    /// A replicated volume cannot be made.
    #[error(transparent)]
    Creation(#[from] CreationError),
    /// The volume has one copy only.
    #[error("volume {} is not replicated: `sealblk volume info` shows what it is", .dir.display())]
    NotReplicated {
        /// The volume's folder.
        dir: PathBuf,
    },
    /// The copies of a volume cannot be compared.
    #[error("cannot compare the copies of volume {}: {source}", .place.display())]
    Verify {
        /// The copy's folder, or the monitor's socket.
        place: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The copies of a volume are not, or not known to be, equal.
    #[error("the copies of volume {} are not known to be equal: {what}", .place.display())]
    NotEqual {
        /// The copy's folder, or the monitor's socket.
        place: PathBuf,
        /// What is left.
        what: String,
    },
    /// Nobody serves the volume here.
    #[error(
        "volume {} is not served on this node: copies are compared by the process that serves it, see `sealblk volume status`",
        .dir.display()
    )]
    NotServed {
        /// The copy's folder.
        dir: PathBuf,
    },
    /// Nobody says how a volume stands.
    #[error("cannot ask how volume {} stands: {source}: check that its process answers", .place.display())]
    Status {
        /// The copy's folder, or the monitor's socket.
        place: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is neither a copy nor a process that serves a volume without one.
    #[error(
        "{} is no folder, and nobody serves a volume without a copy to a socket of that name: name the folder of the copy on this node, or the socket that `serve` was given",
        .place.display()
    )]
    NobodyServes {
        /// What was named.
        place: PathBuf,
    },
    /// Members can be changed only by the process that serves the volume.
    #[error(
        "volume {} is not served from this folder: run this on the node where it is served, with the folder of the copy there",
        .dir.display()
    )]
    NotServedHere {
        /// The copy's folder.
        dir: PathBuf,
    },
    /// Members are not changed.
    #[error("the members of volume {} are not changed: {reason}", .place.display())]
    Members {
        /// The copy's folder, or the monitor's socket.
        place: PathBuf,
        /// Why, as the process that serves it says.
        reason: String,
    },
    /// Members are changed, and the spec of the volume does not say so.
    #[error(
        "the members of volume {volume} of the cluster are changed, but its spec is not: {source}: set spec.members to what status.view.members says"
    )]
    SpecMembers {
        /// The volume.
        volume: VolumeName,
        /// Why not.
        source: ViewStoreError,
    },
    /// No memory for what a volume's key gives.
    #[error(transparent)]
    Locked(#[from] LockedError),
    /// The socket cannot be listened on.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A port cannot be listened on.
    #[error("cannot listen on {address}: {source}: choose an address of this machine and a port that is free")]
    Listen {
        /// Address and port.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Copies cannot be served, or not any longer.
    #[error(transparent)]
    Replica(#[from] ServerError),
    /// Nobody says how a replica stands.
    #[error("cannot ask how the replica of {} stands: {source}: look at its log", .root.display())]
    ReplicaStatus {
        /// The folder of its copies.
        root: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No replica runs.
    #[error("no replica has its copies in {}: start it, or name the folder that it was given as --root", .root.display())]
    NoReplica {
        /// The folder.
        root: PathBuf,
    },
    /// A replica is there, but others had better wait for it.
    #[error("the replica of {} is not ready: {what}", .root.display())]
    NotReady {
        /// The folder of its copies.
        root: PathBuf,
        /// Why not.
        what: String,
    },
    /// The node's certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] FilesError),
    /// The certificate is another node's.
    #[error(
        "the certificate is of {names}, and this is to be node {node}: give the node a certificate of its own name"
    )]
    OtherNode {
        /// Which node it is to be.
        node: NodeName,
        /// Whose certificate it is.
        names: String,
    },
    /// Signals cannot be handled.
    #[error("cannot handle signals: {0}: check the limit of open files")]
    Signals(#[source] io::Error),
    /// The controller cannot run.
    #[error(transparent)]
    Controller(#[from] ControllerError),
    /// Certificates cannot be made.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// Standard output is gone.
    #[error("cannot write to standard output: {0}: check where it goes")]
    Output(#[source] io::Error),
    /// The process could not be closed to others.
    #[error("cannot keep this process out of core dumps: {0}: check the sandbox that it runs in")]
    Protect(#[source] io::Error),
}

impl CliError {
    /// The exit status: 2 for what the command line alone makes impossible, 1 for all else.
    pub fn exit_status(&self) -> u8 {
        match self {
            CliError::Usage(_)
            | CliError::Source(_)
            | CliError::Volume(VolumeError::Geometry(_))
            | CliError::Bootstrap(BootstrapError::Name { .. }) => 2,
            _ => 1,
        }
    }
}
