//! What a command fails with, and the exit status that follows.

use std::io;
use std::path::PathBuf;

use crate::controller::process::ControllerError;
use crate::crypto::benchmark::BenchmarkError;
use crate::keys::{KeyError, Namespace, SourceError};
use crate::store::StoreError;
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
        /// The volume's folder.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket cannot be listened on.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Signals cannot be handled.
    #[error("cannot handle signals: {0}: check the limit of open files")]
    Signals(#[source] io::Error),
    /// The controller cannot run.
    #[error(transparent)]
    Controller(#[from] ControllerError),
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
            CliError::Usage(_) | CliError::Source(_) | CliError::Volume(VolumeError::Geometry(_)) => 2,
            _ => 1,
        }
    }
}
