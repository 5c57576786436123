//! `sealblk replica`: a node's copies, for writers on other nodes.

mod status;

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::serve::{POLL_US_MAX, REPLICATED_POLL_US};
use super::{CliError, TlsArgs, signals, size};
use crate::io::Kind;
use crate::replication::server::{Server, Settings};
use crate::replication::view::NodeName;

/// To keep copies, or to ask who does.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct ReplicaArgs {
    #[command(subcommand)]
    command: Option<ReplicaCommand>,
    #[command(flatten)]
    keep: KeepArgs,
}

#[derive(Subcommand)]
enum ReplicaCommand {
    /// Show how the replica that runs on this node stands, and the copies that are in use
    Status(status::StatusArgs),
}

/// Which copies, and who may come.
#[derive(Args)]
struct KeepArgs {
    /// Folder of the copies, each in a folder that is named for its volume
    #[arg(long, value_name = "DIR", required = true)]
    root: Option<PathBuf>,
    /// Address and port for writers on other nodes; with port 0 the log says which one was taken
    #[arg(long, value_name = "ADDRESS", required = true)]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    tls: TlsArgs,
    /// Name of this node as a member of volumes: it has to be in the certificate [default: any that is]
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
    /// How to do I/O: io-uring, threads, or inline [default: what suits each copy]
    #[arg(long)]
    engine: Option<Kind>,
    /// The longest time in microseconds to watch the disk before sleeping, while a writer that has one request in
    /// flight after the other would be slowed down by more; 0 never watches
    #[arg(long, value_name = "TIME", default_value_t = REPLICATED_POLL_US, value_parser = clap::value_parser!(u64).range(0..=POLL_US_MAX))]
    poll_us: u64,
    /// How many bytes of writes to a copy may be answered before its disk has them, at most 64M; a flush waits for
    /// all. With 0 each write is answered when the disk has it
    #[arg(long, value_name = "BYTES", default_value = "1M", value_parser = write_behind)]
    write_behind: u64,
}

/// Does what is asked for.
pub fn run(args: ReplicaArgs) -> Result<(), CliError> {
    match args.command {
        Some(ReplicaCommand::Status(args)) => status::run(&args),
        None => keep(args.keep),
    }
}

/// Serves until SIGTERM or SIGINT.
fn keep(args: KeepArgs) -> Result<(), CliError> {
    let stop = signals::stop().map_err(CliError::Signals)?;
    let (Some(root), Some(address)) = (args.root, args.listen) else {
        return Err(CliError::Usage("give --root and --listen".to_owned()));
    };
    raise_open_files();
    let tls = args.tls.open()?;
    let names = &tls.current().names;
    if let Some(node) = args.node.filter(|node| !names.has(node.as_str())) {
        return Err(CliError::OtherNode { node, names: names.iter().collect::<Vec<_>>().join(", ") });
    }
    let listener = TcpListener::bind(address).map_err(|source| CliError::Listen { address, source })?;
    let settings = Settings {
        engine: args.engine,
        watch_time: Duration::from_micros(args.poll_us),
        write_behind_bytes: args.write_behind,
        ..Settings::default()
    };
    Server::run(root, listener, tls, settings, stop.as_fd())?;
    log::info!("stopped; everything is durable");
    Ok(())
}

fn write_behind(text: &str) -> Result<u64, String> {
    let bytes = size::parse(text).map_err(|error| error.to_string())?;
    if bytes > WRITE_BEHIND_MAX { Err("too much: give at most 64M".to_owned()) } else { Ok(bytes) }
}

const WRITE_BEHIND_MAX: u64 = 64 << 20;

/// Lets this process have as many files open as it may. The usual limit is one that programs of old can live
/// with, and less than the connections that are let wait.
fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        log::warn!("the limit of open files stays as it is: {error}");
    }
}
