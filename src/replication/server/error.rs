//! Why a replica cannot run.

use std::io;
use std::path::PathBuf;

/// A replica could not start, go on, or end in order.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Its folder cannot be used.
    #[error("cannot {action} {}: {source}: check the folder and its permissions", .root.display())]
    Root {
        /// What was tried, as a verb.
        action: &'static str,
        /// The folder.
        root: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// There is another replica.
    #[error("another replica serves {}: stop that one first", .root.display())]
    InUse {
        /// The folder.
        root: PathBuf,
    },
    /// Sockets cannot be used.
    #[error("cannot wait for connections: {0}: check the limits of this process")]
    Network(#[source] io::Error),
    /// Copies could not be closed.
    #[error("some copies could not be closed in time: check the disk; what was acknowledged as durable is")]
    Stuck,
    /// The disk did not take what a copy was given.
    #[error(
        "the last sync of {copies} copies has failed: what was not flushed may be lost there, and their writers send it again when they find the copies in a new incarnation; check the disk"
    )]
    Unsynced {
        /// How many.
        copies: usize,
    },
}
