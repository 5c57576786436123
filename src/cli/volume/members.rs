//! `sealblk volume add-member`, `remove-member` and `move`: copies that come and go while the guest runs.
//!
//! The process that serves the volume does it; these commands ask it, so they are run on its node.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use super::create::{MEMBER, member};
use super::status::{Bars, Pace};
use crate::cli::key_args::ClusterArgs;
use crate::cli::view_args::{in_cluster, volume_name};
use crate::cli::{CliError, output};
use crate::coordination::ClusterVolume;
use crate::coordination::kubernetes::VolumeName;
use crate::replication::primary::request::{Outcome, OwnerRequest};
use crate::replication::primary::status::{CopyState, MemberStatus, Status};
use crate::replication::primary::{ask, order};
use crate::replication::view::{NewMember, NodeName, Placement, Spread};
use crate::store::{Access, Store};

/// Who is to keep a copy too.
#[derive(Args)]
pub struct AddMemberArgs {
    /// Folder of the copy on the node where the volume is served; if it has none there, the socket that `serve` listens
    /// on for the virtual machine's monitor
    #[arg(value_name = "PLACE")]
    place: PathBuf,
    /// The node, where its replica listens, and which zone it is in. Given for a member that is reached there
    /// already, it says in which zone that is
    #[arg(value_name = MEMBER, value_parser = member)]
    member: NewMember,
    /// Wait until the new copy is in sync
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    spec: SpecArgs,
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
    #[command(flatten)]
    spec: SpecArgs,
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
    /// The node that is to keep it, where its replica listens, and which zone it is in
    #[arg(value_name = MEMBER, value_parser = member)]
    to: NewMember,
    #[command(flatten)]
    spec: SpecArgs,
}

/// For a volume of a cluster, whose spec names its members, too.
#[derive(Args)]
pub struct SpecArgs {
    /// The volume of a cluster that it is, kubernetes:NAMESPACE/NAME: the members in its spec are changed as well, with
    /// the rights of whoever runs this
    #[arg(long, value_name = "VOLUME", value_parser = volume_name)]
    volume: Option<VolumeName>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl SpecArgs {
    /// The volume of the cluster, if one is named; it must be the one that is served at the place.
    fn volume(&self, place: &Path, served: &Status) -> Result<Option<ClusterVolume>, CliError> {
        let Some(name) = &self.volume else { return Ok(None) };
        let volume = in_cluster(name, &self.cluster.cluster());
        let (_, view) = volume.read()?;
        match view {
            Some(view) if view.volume.to_string() == served.volume => Ok(Some(volume)),
            _ => {
                let reason = format!("what is served there is not volume {name} of the cluster");
                Err(CliError::Members { place: place.to_owned(), reason })
            }
        }
    }
}

/// Has the spec say what is so.
fn tell(volume: Option<&ClusterVolume>) -> Result<(), CliError> {
    let Some(volume) = volume else { return Ok(()) };
    volume.adopt_members().map_err(|source| CliError::SpecMembers { volume: volume.name.clone(), source })
}

/// Says so if copies will be spread over zones worse than they could be.
fn warn_of_zones(before: &Status, added: Option<&NewMember>, removed: Option<&NodeName>) {
    let placements = || before.present().map(MemberStatus::placement);
    let new = added.map(|new| Placement { node: new.node.as_str(), zone: new.zone.as_ref() });
    let is_kept = |copy: &Placement<'_>| {
        removed.is_none_or(|node| node.as_str() != copy.node) && new.is_none_or(|new| new.node != copy.node)
    };
    if let Some(why) = Spread::worse(placements(), placements().filter(is_kept).chain(new)) {
        log::warn!("the copies could be spread better over zones: {why}");
    }
}

pub fn add(args: &AddMemberArgs) -> Result<(), CliError> {
    let AddMemberArgs { place, member, wait, spec } = args;
    let before = status(place)?;
    let (volume, node) = (spec.volume(place, &before)?, &member.node);
    warn_of_zones(&before, Some(member), None);
    add_member(place, member)?;
    tell(volume.as_ref())?;
    if before.present().any(|member| member.node == node.as_str()) {
        return output::print(&format!("node {node} is a member as before, and its zone is known\n"));
    }
    if *wait {
        await_in_sync(place, node)?;
        return output::print(&format!("node {node} is a member, and in sync\n"));
    }
    output::print(&format!("node {node} is a member, and is being sent what it lacks\n"))
}

pub fn remove(args: &RemoveMemberArgs) -> Result<(), CliError> {
    let RemoveMemberArgs { place, node, spec } = args;
    let before = status(place)?;
    let volume = spec.volume(place, &before)?;
    warn_of_zones(&before, None, Some(node));
    remove_member(place, node)?;
    tell(volume.as_ref())?;
    output::print(&format!("node {node} is no member any more: its copy there can be deleted\n"))
}

pub fn relocate(args: &MoveArgs) -> Result<(), CliError> {
    let MoveArgs { place, from, to: new, spec } = args;
    let to = &new.node;
    if from == to {
        return Err(CliError::Usage("name two nodes: one that keeps a copy, and another".to_owned()));
    }
    let status = status(place)?;
    let has = |node: &NodeName| status.present().any(|member| member.node == node.as_str());
    if !has(from) {
        return Err(CliError::Members { place: place.clone(), reason: format!("node {from} is not a member") });
    }
    let volume = spec.volume(place, &status)?;
    warn_of_zones(&status, Some(new), Some(from));
    // It may be there from a move that was interrupted.
    if !has(to) {
        add_member(place, new)?;
        tell(volume.as_ref())?;
    }
    await_in_sync(place, to)?;
    remove_member(place, from)?;
    tell(volume.as_ref())?;
    output::print(&format!("the copy of node {from} is on node {to} now: that on node {from} can be deleted\n"))
}

fn add_member(place: &Path, new: &NewMember) -> Result<(), CliError> {
    change(place, &OwnerRequest::AddMember(new.clone()))
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
