//! `sealblk replica status`: how the replica of this node stands, for people and for probes.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;

use crate::cli::{CliError, output};
use crate::replication::server::ask_for_status;
use crate::replication::server::status::{CopyState, ReplicaStatus};

/// Which replica, and what is asked of it.
#[derive(Args)]
pub struct StatusArgs {
    /// Folder of the copies, which the replica was given as --root
    #[arg(value_name = "DIR", default_value = "/var/lib/sealblk")]
    root: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Fail while a copy in use is not in sync, or the certificate has expired
    #[arg(long)]
    ready: bool,
}

pub fn run(args: &StatusArgs) -> Result<(), CliError> {
    let asked = ask_for_status(&args.root);
    let status = asked.map_err(|source| CliError::ReplicaStatus { root: args.root.clone(), source })?;
    let status = status.ok_or_else(|| CliError::NoReplica { root: args.root.clone() })?;
    let text = match args.json {
        true => serde_json::to_string_pretty(&status).expect("a record of strings and numbers") + "\n",
        false => for_people(&status),
    };
    output::print(&text)?;
    match status.obstacle().filter(|_| args.ready) {
        Some(what) => Err(CliError::NotReady { root: args.root.clone(), what }),
        None => Ok(()),
    }
}

fn for_people(status: &ReplicaStatus) -> String {
    let mut text = format!("node          {}\n", status.nodes.join(", "));
    let _ = writeln!(text, "certificate   {}", time_left(status.certificate_seconds));
    let _ = writeln!(text, "copies        {} in use", status.copies.len());
    for copy in &status.copies {
        let (state, connections) = (state_name(copy.state), copy.connections);
        let _ = writeln!(text, "  {}   {state}, view {}, {connections} connections", copy.volume, copy.view);
    }
    text
}

fn time_left(seconds: u64) -> String {
    match seconds {
        0 => "expired".to_owned(),
        1..HOUR => format!("good for {} minutes", seconds / MINUTE),
        HOUR..TWO_DAYS => format!("good for {} hours", seconds / HOUR),
        TWO_DAYS.. => format!("good for {} days", seconds / DAY),
    }
}

fn state_name(state: CopyState) -> &'static str {
    match state {
        CopyState::InSync => "in sync",
        CopyState::Behind => "behind",
        CopyState::Removed => "removed",
        CopyState::Unknown => "not of this node",
        CopyState::Failed => "failed",
    }
}

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const TWO_DAYS: u64 = 2 * DAY;

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::replication::server::status::CopyStatus;

    #[test]
    fn people_see_for_how_long_it_goes_on_and_which_copies_are_in_use() {
        let (volume, state) = (Uuid::nil(), CopyState::Behind);
        let copies = vec![CopyStatus { volume, view: 7, state, connections: 5 }];
        let status = ReplicaStatus { nodes: vec!["node-a".to_owned()], certificate_seconds: 3 * DAY + 5, copies };
        let text = for_people(&status);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..3], ["node          node-a", "certificate   good for 3 days", "copies        1 in use"]);
        assert_eq!(lines[3], format!("  {volume}   behind, view 7, 5 connections"));
        assert_eq!([0, 59 * MINUTE, 47 * HOUR].map(time_left), ["expired", "good for 59 minutes", "good for 47 hours"]);
    }
}
