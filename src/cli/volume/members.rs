//! `sealblk volume add-member`, `remove-member` and `move`: copies that come and go while the guest runs.
//!
//! The process that serves the volume does it; these commands ask it, so they are run on its node.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use super::create::member;
use super::status::{Bars, Pace};
use crate::cli::{CliError, output};
use crate::replication::primary::request::{Outcome, OwnerRequest};
use crate::replication::primary::status::{CopyState, Status};
use crate::replication::primary::{ask, order};
use crate::replication::view::NodeName;
use crate::store::{Access, Store};

/// Who is to keep a copy too.
#[derive(Args)]
pub struct AddMemberArgs {
    /// Folder of the copy on the node where the volume is served; if it has none there, the socket that `serve` listens
    /// on for the virtual machine's monitor
    #[arg(value_name = "PLACE")]
    place: PathBuf,
    /// The node, and where its replica listens
    #[arg(value_name = "NAME=HOST:PORT", value_parser = member)]
    member: (NodeName, String),
    /// Wait until the new copy is in sync
    #[arg(long)]
    wait: bool,
}

/// Who is to keep a copy no longer.
#[derive(Args)]
pub struct RemoveMemberArgs {
    /// Folder of the copy on the node where the volume is served; if it has none there, the socket that `serve` listens
    /// on for the virtual machine's monitor
    #[arg(value_name = "PLACE")]
    place: PathBuf,
    /// The node
    node: NodeName,
}

/// Which copy is to be elsewhere.
#[derive(Args)]
pub struct MoveArgs {
    /// Folder of the copy on the node where the volume is served; if it has none there, the socket that `serve` listens
    /// on for the virtual machine's monitor
    #[arg(value_name = "PLACE")]
    place: PathBuf,
    /// The node that keeps a copy now
    from: NodeName,
    /// The node that is to keep it, and where its replica listens
    #[arg(value_name = "NAME=HOST:PORT", value_parser = member)]
    to: (NodeName, String),
}

pub fn add(args: &AddMemberArgs) -> Result<(), CliError> {
    let AddMemberArgs { place, member: (node, address), wait } = args;
    add_member(place, node, address)?;
    if *wait {
        await_in_sync(place, node)?;
        return output::print(&format!("node {node} is a member, and in sync\n"));
    }
    output::print(&format!("node {node} is a member, and is being sent what it lacks\n"))
}

pub fn remove(args: &RemoveMemberArgs) -> Result<(), CliError> {
    let RemoveMemberArgs { place, node } = args;
    remove_member(place, node)?;
    output::print(&format!("node {node} is no member any more: its copy there can be deleted\n"))
}

pub fn relocate(args: &MoveArgs) -> Result<(), CliError> {
    let MoveArgs { place, from, to: (to, address) } = args;
    if from == to {
        return Err(CliError::Usage("name two nodes: one that keeps a copy, and another".to_owned()));
    }
    let status = status(place)?;
    let has = |node: &NodeName| status.present().any(|member| member.node == node.as_str());
    if !has(from) {
        return Err(CliError::Members { place: place.clone(), reason: format!("node {from} is not a member") });
    }
    // It may be there from a move that was interrupted.
    if !has(to) {
        add_member(place, to, address)?;
    }
    await_in_sync(place, to)?;
    remove_member(place, from)?;
    output::print(&format!("the copy of node {from} is on node {to} now: that on node {from} can be deleted\n"))
}

fn add_member(place: &Path, node: &NodeName, address: &str) -> Result<(), CliError> {
    change(place, &OwnerRequest::AddMember { node: node.clone(), address: address.to_owned() })
}

fn remove_member(place: &Path, node: &NodeName) -> Result<(), CliError> {
    change(place, &OwnerRequest::RemoveMember { node: node.clone() })
}

fn change(place: &Path, request: &OwnerRequest) -> Result<(), CliError> {
    check(place)?;
    let outcome = order(place, request).map_err(|source| CliError::Status { place: place.to_owned(), source })?;
    match outcome {
        Some(Outcome::Done) => Ok(()),
        Some(Outcome::Failed { reason }) => Err(CliError::Members { place: place.to_owned(), reason }),
        None => Err(nobody(place)),
    }
}

fn status(place: &Path) -> Result<Status, CliError> {
    check(place)?;
    let status = ask(place).map_err(|source| CliError::Status { place: place.to_owned(), source })?;
    status.ok_or_else(|| nobody(place))
}

/// That a folder is one of a copy.
fn check(place: &Path) -> Result<(), CliError> {
    if place.is_dir() {
        Store::open(place, Access::Inspect)?;
    }
    Ok(())
}

fn nobody(place: &Path) -> CliError {
    match place.is_dir() {
        true => CliError::NotServedHere { dir: place.to_owned() },
        false => CliError::NobodyServes { place: place.to_owned() },
    }
}

/// Waits until a member is in sync, and shows how far it is where somebody looks.
fn await_in_sync(place: &Path, node: &NodeName) -> Result<(), CliError> {
    let mut pace = Pace::default();
    let bars = std::io::stderr().is_terminal().then(Bars::default);
    loop {
        let status = status(place)?;
        pace.note(&status, Instant::now());
        if let Some(bars) = &bars {
            bars.show(&status, &pace);
        }
        match status.present().find(|member| member.node == node.as_str()).map(|member| member.state) {
            Some(CopyState::InSync) => return Ok(()),
            Some(_) => thread::sleep(INTERVAL),
            None => {
                let reason = format!("node {node} was removed before it was in sync");
                return Err(CliError::Members { place: place.to_owned(), reason });
            }
        }
    }
}

/// How often it is looked how far a copy is.
const INTERVAL: Duration = Duration::from_millis(500);
