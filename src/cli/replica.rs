//! `sealblk replica`: a node's copies, for writers on other nodes.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::PathBuf;

use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{CliError, TlsArgs, signals};
use crate::io::Kind;
use crate::replication::server::{Server, Settings};

/// Which copies, and who may come.
#[derive(Args)]
pub struct ReplicaArgs {
    /// Folder of the copies, each in a folder that is named for its volume
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// Address and port for writers on other nodes; with port 0 the log says which one was taken
    #[arg(long, value_name = "ADDRESS")]
    listen: SocketAddr,
    #[command(flatten)]
    tls: TlsArgs,
    /// How to do I/O: io-uring, threads, or inline [default: what suits each copy]
    #[arg(long)]
    engine: Option<Kind>,
}

/// Serves until SIGTERM or SIGINT.
pub fn run(args: ReplicaArgs) -> Result<(), CliError> {
    let stop = signals::stop().map_err(CliError::Signals)?;
    raise_open_files();
    let tls = args.tls.open()?;
    let failed = |source| CliError::Listen { address: args.listen, source };
    let listener = TcpListener::bind(args.listen).map_err(failed)?;
    let settings = Settings { engine: args.engine, ..Settings::default() };
    Server::run(args.root, listener, tls, settings, stop.as_fd())?;
    log::info!("stopped; everything is durable");
    Ok(())
}

/// Lets this process have as many files open as it may. The usual limit is one that programs of old can live
/// with, and less than the connections that are let wait.
fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        log::warn!("the limit of open files stays as it is: {error}");
    }
}
