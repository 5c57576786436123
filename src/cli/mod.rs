//! The command line: one file a subcommand, no logic of its own.
//!
//! Exit status 0 means done, 1 that the work failed, 2 wrong usage. A failure is one line on
//! standard error: what failed, on which object, and what to do.

mod benchmark;
mod controller;
mod duration;
mod error;
mod hostile;
mod key;
mod key_args;
mod output;
mod replica;
mod serve;
mod signals;
mod size;
mod tls;
mod tls_args;
mod view_args;
mod volume;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

pub use error::CliError;
pub use hostile::{parse_hostile, show_hostile};
pub use key_args::KeyArgs;
use tls_args::TlsArgs;
use view_args::ViewPlace;

/// Encrypted disks for virtual machines, served over vhost-user.
#[derive(Parser)]
#[command(name = "sealblk", version, arg_required_else_help = false)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make keys
    #[command(subcommand, arg_required_else_help = false)]
    Key(key::KeyCommand),
    /// Make, examine, fill and read volumes
    #[command(subcommand, arg_required_else_help = false)]
    Volume(volume::VolumeCommand),
    /// Serve a volume to virtual machines over vhost-user
    Serve(Box<serve::ServeArgs>),
    /// Keep copies of volumes for writers on other nodes
    Replica(replica::ReplicaArgs),
    /// Make keys for a cluster's new claims, and guard them
    Controller(controller::ControllerArgs),
    /// Make the certificates by which nodes know each other
    #[command(subcommand, arg_required_else_help = false)]
    Tls(tls::TlsCommand),
    /// Measure how fast this machine encrypts
    Benchmark(benchmark::BenchmarkArgs),
}

/// Runs the command of this process's arguments.
pub fn run() -> ExitCode {
    start_log();
    match protected() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sealblk: {}", one_line(&error.to_string()));
            ExitCode::from(error.exit_status())
        }
    }
}

/// From level `info` on, or as RUST_LOG says. The Kubernetes client's own lines are left out unless
/// they are asked for by name: it calls every answer with a 5xx an error, where we only wait.
fn start_log() {
    env_logger::Builder::new()
        .filter_level(log::LevelFilter::Info)
        .filter_module("kube_client", log::LevelFilter::Off)
        .parse_default_env()
        .init();
}

/// Nothing that could touch a key happens before the process is protected.
fn protected() -> Result<(), CliError> {
    crate::keys::process::protect().map_err(CliError::Protect)?;
    match Cli::try_parse() {
        Ok(cli) => match cli.command {
            Command::Key(command) => key::run(command),
            Command::Volume(command) => volume::run(command),
            Command::Serve(args) => serve::run(args.into()),
            Command::Replica(args) => replica::run(args),
            Command::Controller(args) => controller::run(args),
            Command::Tls(command) => tls::run(command),
            Command::Benchmark(args) => benchmark::run(&args),
        },
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            error.print().map_err(CliError::Output)
        }
        Err(error) => Err(CliError::Usage(usage_sentence(&error.render().to_string()))),
    }
}

/// The part of the parser's message that says what is wrong, without the usage that follows it.
fn usage_sentence(message: &str) -> String {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    one_line(message.split("\n\n").next().unwrap_or_default())
}

/// One line that does no more to a terminal than to put text on it.
fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn usage_errors_are_one_sentence() {
        for arguments in [
            &["sealblk"][..],
            &["sealblk", "volume"],
            &["sealblk", "volume", "create", "d"],
            &["sealblk", "volume", "create", "d", "--size", "1X", "--no-encryption"],
            &["sealblk", "nonsense"],
        ] {
            let error = Cli::try_parse_from(arguments).err().unwrap();
            let sentence = usage_sentence(&error.render().to_string());
            assert!(sentence.len() > 10, "{arguments:?}: {sentence}");
            assert!(!sentence.contains("Usage") && !sentence.starts_with("error"), "{sentence}");
        }
    }

    #[test]
    fn an_error_is_one_line_whatever_others_put_into_it() {
        assert_eq!(one_line("node b says:\r\n\x1b]0;title\x07  \u{9b}2J no"), "node b says: ]0;title 2J no");
    }
}
