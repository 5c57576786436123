//! `sealblk tls`: certificates by which nodes know each other.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};

use super::{CliError, output};
use crate::tls::bootstrap::{self, Node};

#[derive(Subcommand)]
pub enum TlsCommand {
    /// Make an authority in a folder, if it has none, and a folder with a certificate for each node
    Bootstrap(BootstrapArgs),
}

#[derive(Args)]
pub struct BootstrapArgs {
    /// Folder of the authority; its ca-key.pem is to be kept from everybody else
    dir: PathBuf,
    /// Name of a node, and IP addresses to put in its certificate; may be repeated
    #[arg(long = "node", value_name = "NAME[,ADDRESS...]", required = true, value_parser = node)]
    nodes: Vec<Node>,
    /// For how many days the certificates are valid
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Also replace the certificates and keys of nodes that have some
    #[arg(long)]
    renew: bool,
}

pub fn run(command: TlsCommand) -> Result<(), CliError> {
    match command {
        TlsCommand::Bootstrap(args) => bootstrap(&args),
    }
}

fn bootstrap(args: &BootstrapArgs) -> Result<(), CliError> {
    let life = Duration::from_secs(u64::from(args.days) * 24 * 3600);
    let done = bootstrap::bootstrap(&args.dir, &args.nodes, life, args.renew, SystemTime::now())?;
    let mut text = String::new();
    if done.made_authority {
        let _ = writeln!(text, "authority: made {}", args.dir.join("ca.pem").display());
    }
    for node in &done.nodes {
        let folder = args.dir.join(&node.name);
        let _ = match node.made {
            true => writeln!(text, "node {}: made {}", node.name, folder.display()),
            false => writeln!(text, "node {}: left {} as it is; --renew replaces it", node.name, folder.display()),
        };
    }
    output::print(&text)
}

pub(super) fn node(text: &str) -> Result<Node, String> {
    let mut parts = text.split(',');
    let name = parts.next().unwrap_or_default().to_owned();
    let address = |part: &str| part.parse().map_err(|_| format!("{part:?} is not an IP address"));
    Ok(Node { name, addresses: parts.map(address).collect::<Result<_, _>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_a_name_and_its_addresses() {
        let read = node("node-a,10.0.0.1,::1").unwrap();
        assert_eq!(read.name, "node-a");
        assert_eq!(read.addresses, ["10.0.0.1", "::1"].map(|text| text.parse::<std::net::IpAddr>().unwrap()));
        assert!(node("node-a").unwrap().addresses.is_empty());
        for text in ["node-a,", "node-a,node-b", "node-a,10.0.0.1,,::1", "node-a,10.0.0.256"] {
            assert!(node(text).is_err(), "{text}");
        }
    }
}
