//! `sealblk volume create`: a volume in a folder, or one with copies on several nodes.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::planned::Planned;
use crate::cli::view_args::EtcdArgs;
use crate::cli::view_args::in_cluster;
use crate::cli::{CliError, KeyArgs, TlsArgs, ViewPlace, duration, output, size};
use crate::crypto::derive::WriterKey;
use crate::replication::creation::{self, Creation as CopiesCreation};
use crate::replication::view::{FailureMode, NewMember, NodeName};
use crate::store::SectorSize;
use crate::volume::{Creation, Volume};

#[derive(Args)]
pub struct CreateArgs {
    /// Folder of the volume
    #[arg(required_unless_present = "view")]
    dir: Option<PathBuf>,
    /// Size of the disk in bytes, or with K, M, G or T
    #[arg(long, value_parser = size::parse, required_unless_present = "view")]
    size: Option<u64>,
    #[command(flatten)]
    key: KeyArgs,
    /// Bytes in a sector, which is also the unit of encryption [default: 512]
    #[arg(long, value_name = "BYTES")]
    sector_size: Option<SectorSizeArg>,
    /// Block device or file to keep the sectors on, in place of a sparse file in the folder
    #[arg(long, value_name = "PATH")]
    device: Option<PathBuf>,
    #[command(flatten)]
    replication: ReplicationArgs,
}

/// For a volume with several copies, each in a folder named for the volume below the root of its node's replica.
#[derive(Args)]
pub struct ReplicationArgs {
    /// A node that keeps a copy, where its replica listens, and which zone it is in; repeated
    #[arg(long = "member", id = "members", value_name = MEMBER, value_parser = member, requires_all = ["view", "size"])]
    members: Vec<NewMember>,
    /// Where to keep the view of the volume, which says where its copies are: file:DIR, etcd:URL,URL..., or
    /// kubernetes:NAMESPACE/NAME, a Volume of the cluster. Without --member that is there already, and says what the volume is to be
    #[arg(long, value_name = "PLACE", conflicts_with_all = ["dir", "device"])]
    view: Option<ViewPlace>,
    #[command(flatten)]
    etcd: EtcdArgs,
    /// How many copies have to be in sync for a write: hard, all; soft, all but one; alwayson, one; or a number
    #[arg(long, value_name = "MODE", default_value = "soft", requires = "members")]
    failure_mode: FailureMode,
    /// For how long a writer may serve reads without hearing from the other copies, and so how long its
    /// successor waits if it cannot reach them
    #[arg(long, value_name = "TIME", default_value = "4s", requires = "members", value_parser = duration::parse)]
    lease: Duration,
    /// A node that may serve the volume without being a member, if the volume is not encrypted; repeated. One that is
    /// encrypted is served by whoever has the key
    #[arg(long = "writer", id = "writers", value_name = "NAME", requires_all = ["members", "no_encryption"])]
    writers: Vec<NodeName>,
    #[command(flatten)]
    tls: TlsArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum SectorSizeArg {
    #[value(name = "512")]
    Bytes512,
    #[value(name = "4096")]
    Bytes4096,
}

pub fn run(args: &CreateArgs) -> Result<(), CliError> {
    let sector_size = match args.sector_size {
        None | Some(SectorSizeArg::Bytes512) => SectorSize::Bytes512,
        Some(SectorSizeArg::Bytes4096) => SectorSize::Bytes4096,
    };
    if let Some(dir) = &args.dir {
        let size_bytes = args.size.ok_or_else(|| CliError::Usage("give --size".to_owned()))?;
        let creation = Creation { size_bytes, sector_size, device: args.device.as_deref() };
        let superblock = Volume::create(dir, creation, args.key.load()?.as_ref())?;
        return output::print(&format!("created volume {} in {}\n", superblock.id, dir.display()));
    }
    let ReplicationArgs { members, view: Some(place), etcd, failure_mode, lease, writers, tls } = &args.replication
    else {
        return Err(CliError::Usage("--member needs --view".to_owned()));
    };
    let tls = tls.open()?;
    let cluster = args.key.cluster();
    let (planned, key) = match (place, args.size) {
        (_, Some(size_bytes)) if !members.is_empty() => {
            let (members, writers) = (members.clone(), writers.clone());
            let (failure_mode, lease) = (*failure_mode, *lease);
            (Planned { size_bytes, sector_size, members, failure_mode, lease, writers }, args.key.load()?)
        }
        (ViewPlace::Kubernetes(_), None) if args.sector_size.is_some() => {
            let what = "the Volume of the cluster says what its sectors are: leave --sector-size out";
            return Err(CliError::Usage(what.to_owned()));
        }
        (ViewPlace::Kubernetes(name), None) => Planned::of_spec(&in_cluster(name, &cluster), &args.key)?,
        _ => return Err(CliError::Usage("give --size and --member, or neither and a Volume of a cluster".to_owned())),
    };
    let creation = Creation { size_bytes: planned.size_bytes, sector_size: planned.sector_size, device: None };
    let superblock = Volume::plan(creation, key.as_ref())?;
    if !members.is_empty() {
        planned.announce(place, &args.key, key.is_some())?;
    }
    let signer = key.as_ref().map(|key| WriterKey::derive(key, superblock.id)).transpose()?;
    let creation = CopiesCreation {
        superblock: &superblock,
        members: &planned.members,
        failure_mode: planned.failure_mode,
        lease_ms: planned.lease.as_millis() as u32,
        writers: &planned.writers,
        signer: signer.as_ref(),
    };
    creation::create(&creation, &tls.current(), &mut *place.of(superblock.id, &cluster, etcd), TIME_EACH)?;
    let nodes: Vec<&str> = planned.members.iter().map(|member| member.node.as_str()).collect();
    output::print(&format!("created volume {} on {}\n", superblock.id, nodes.join(", ")))
}

/// A member as it is written on the command line.
pub fn member(text: &str) -> Result<NewMember, String> {
    let no_member = || format!("not a member: write {MEMBER}");
    let (node, rest) = text.split_once('=').ok_or_else(no_member)?;
    let node = node.parse().map_err(|error| format!("{error}"))?;
    let (address, zone) = match rest.split_once(',') {
        Some((address, more)) => (address, Some(more.strip_prefix("zone=").ok_or_else(no_member)?)),
        None => (rest, None),
    };
    let zone = zone.map(str::parse).transpose().map_err(|error| format!("{error}"))?;
    Ok(NewMember { node, address: address.to_owned(), zone })
}

/// How one is written.
pub(super) const MEMBER: &str = "NAME=HOST:PORT[,zone=ZONE]";

/// How long a node may take to make a copy.
const TIME_EACH: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_a_node_its_address_and_perhaps_its_zone() {
        let NewMember { node, address, zone } = member("node-a=10.0.0.1:7420").unwrap();
        assert_eq!((node.as_str(), address.as_str(), zone), ("node-a", "10.0.0.1:7420", None));
        let in_zone = member("node-a=[fe80::1%eth0]:7420,zone=eu-1a").unwrap();
        assert_eq!((in_zone.address.as_str(), in_zone.zone), ("[fe80::1%eth0]:7420", Some("eu-1a".parse().unwrap())));
        for text in
            ["", "node-a", "Node=1:1", "=10.0.0.1:7420", "a=b:1,", "a=b:1,zone=", "a=b:1,rack=c", "a=b:1,zone=c,d"]
        {
            assert!(member(text).is_err(), "{text}");
        }
    }
}
