//! Attaching a volume with several copies, from a node that has one of them or from one that has none.
//!
//! Whoever has a copy knows from it what the volume is. A node without one asks those that have: nothing of the
//! volume is stored on it. Either way the key is proven right before anything is claimed.

use std::borrow::Cow;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use uuid::Uuid;

use super::{BelowMinArg, EngineChoice, ReplicationArgs, ServeArgs};
use crate::cli::tls_args::own_name;
use crate::cli::view_args::in_cluster;
use crate::cli::volume::planned::spec_key;
use crate::cli::{CliError, ViewPlace};
use crate::coordination::kubernetes::{BelowMinimum, Spec, VolumeName};
use crate::crypto::derive::WriterKey;
use crate::crypto::xts::XtsKey;
use crate::io::Kind;
use crate::replication::copy::{CopyError, OpenCopy};
use crate::replication::description;
use crate::replication::message::PAYLOAD_BYTES_MAX;
use crate::replication::primary::{Primary, PrimaryError, ScrubPlan, Setup};
use crate::replication::server::ask_for;
use crate::replication::view::{NodeName, View};
use crate::replication::writer::{self, BelowMin, ResyncRate, StopReason};
use crate::store::{Access, Cipher, Store, StoreError, Superblock};
use crate::tls::Reloading;
use crate::volume::Volume;
use crate::volume::attachment::Attachment;

/// Becomes the writer of a volume with several copies. None if asked to stop before that was done.
///
/// # Errors
///
/// [`CliError`]; before the last step nothing has been claimed, and nothing written anywhere.
pub fn attach(args: &ServeArgs, stop: BorrowedFd<'_>) -> Result<Option<Attachment>, CliError> {
    let (target, key) = Target::of(args, stop)?;
    let replication = &args.replication;
    let tls = Arc::new(replication.tls.open()?);
    let node = match &replication.node {
        Some(node) => node.clone(),
        None => own_name(&tls)?,
    };
    let kind = match args.engine {
        EngineChoice::Auto => None,
        EngineChoice::Fixed(kind) => Some(kind),
    };
    let (volume, copy) = target.open(args, &node, &tls, key.as_ref(), kind)?;
    let signer = key.as_ref().map(|key| WriterKey::derive(key, volume.id())).transpose()?;
    drop(key);
    let mut primary = Primary::attach(Setup {
        node,
        copy,
        socket: Some(args.socket.clone()),
        engine: kind,
        superblock: volume.superblock().clone(),
        views: target.place.of(volume.id(), &args.key.cluster(), &replication.etcd),
        tls,
        signer,
        queues: args.queues,
        opening_time: replication.peer_timeout,
        scrub: replication.scrub(),
        settings: replication.settings(target.below_min),
    })?;
    let dir = volume.dir().to_owned();
    while !primary.wait_until_served(STOP_LOOK).map_err(|reason| stopped(&dir, reason))? {
        let mut polled = [PollFd::new(&stop, PollFlags::IN)];
        if matches!(rustix::event::poll(&mut polled, Some(&Timespec::default())), Ok(1..)) {
            return Ok(None);
        }
    }
    let watched = primary.when_stopped(move |reason| {
        // What the guest has asked for will not be answered, so nothing here could end in order.
        eprintln!("sealblk: {}", stopped(&dir, reason));
        std::process::exit(1);
    });
    watched.map_err(PrimaryError::System)?;
    Ok(Some(Attachment::replicated(volume, primary)))
}

/// What is to be served.
struct Target {
    /// Where its view is.
    place: ViewPlace,
    below_min: BelowMin,
    wanted: Wanted,
    /// What the cluster says that it is.
    spec: Option<(VolumeName, Spec)>,
}

/// Which volume.
enum Wanted {
    /// That of which the copy in a folder is one.
    Copy(PathBuf),
    /// That of a view.
    View(Box<View>),
}

impl Target {
    /// As the command line says, or as the cluster does; and the key.
    fn of(args: &ServeArgs, stop: BorrowedFd<'_>) -> Result<(Target, Option<XtsKey>), CliError> {
        if let Some(name) = &args.volume {
            let (spec, view) = in_cluster(name, &args.key.cluster()).read()?;
            let view = view.ok_or_else(|| CliError::NotMade { volume: name.clone() })?;
            let key = spec_key(name, &spec, &args.key, Some(stop))?;
            let below_min = match spec.below_min {
                BelowMinimum::Suspend => BelowMin::Suspend,
                BelowMinimum::Error => BelowMin::Error,
            };
            let (place, spec) = (ViewPlace::Kubernetes(name.clone()), Some((name.clone(), spec)));
            return Ok((Target { place, below_min, wanted: Wanted::View(Box::new(view)), spec }, key));
        }
        let replication = &args.replication;
        let Some(place) = replication.view.clone() else {
            return Err(CliError::Usage("give --volume or --view".to_owned()));
        };
        let below_min = match replication.below_min {
            BelowMinArg::Suspend => BelowMin::Suspend,
            BelowMinArg::Error => BelowMin::Error,
        };
        let key = args.key.load_unless(Some(stop))?;
        let wanted = match (&args.dir, args.id) {
            (Some(dir), _) => Wanted::Copy(dir.clone()),
            (None, Some(id)) => {
                let view = place.of(id, &args.key.cluster(), &replication.etcd).load()?;
                Wanted::View(Box::new(view))
            }
            (None, None) => return Err(CliError::Usage("give the volume's folder, or --id".to_owned())),
        };
        Ok((Target { place, below_min, wanted, spec: None }, key))
    }

    /// The volume, whose key is the right one, and the copy of it on this node if that is a member.
    fn open(
        &self,
        args: &ServeArgs,
        node: &NodeName,
        tls: &Reloading,
        key: Option<&XtsKey>,
        kind: Option<Kind>,
    ) -> Result<(Volume, Option<Arc<OpenCopy>>), CliError> {
        let here = |dir: &Path| -> Result<_, CliError> {
            self.check_copy(dir, args, node, key)?;
            let copy = open_copy(dir, kind)?;
            Ok((Volume::of_copy(&copy, key)?, Some(copy)))
        };
        let (volume, copy) = match &self.wanted {
            Wanted::Copy(dir) => here(dir)?,
            Wanted::View(view) if view.member_on(node).is_some() => {
                let dir = args.root.join(view.volume.to_string());
                here(&dir).map_err(|error| missing(error, view.volume, node, &dir))?
            }
            Wanted::View(view) => (elsewhere(view, node, tls, args.replication.peer_timeout, key)?, None),
        };
        self.check_spec(volume.superblock())?;
        Ok((volume, copy))
    }

    /// That the copy in a folder is one that can be served, before it is taken from a writer elsewhere, who would lose
    /// it.
    fn check_copy(&self, dir: &Path, args: &ServeArgs, node: &NodeName, key: Option<&XtsKey>) -> Result<(), CliError> {
        let superblock = Store::open(dir, Access::Inspect).map_err(CopyError::Store)?.superblock().clone();
        Volume::check_key(dir, &superblock, key)?;
        self.check_spec(&superblock)?;
        let expected = superblock.id;
        let view = match &self.wanted {
            Wanted::View(view) => Cow::Borrowed(&**view),
            Wanted::Copy(_) => Cow::Owned(self.place.of(expected, &args.key.cluster(), &args.replication.etcd).load()?),
        };
        if view.volume != expected {
            return Err(PrimaryError::OtherVolume { expected, found: view.volume }.into());
        }
        if view.member_on(node).is_none() {
            return Err(PrimaryError::NotAMember { node: node.clone(), dir: dir.to_owned() }.into());
        }
        Ok(())
    }

    /// That the volume is what the cluster says.
    fn check_spec(&self, superblock: &Superblock) -> Result<(), CliError> {
        let Some((name, spec)) = &self.spec else { return Ok(()) };
        let differs = |what: &str, wanted: u64, found: u64| {
            let what = format!("its {what} is {wanted} and that of its copies is {found}: set it back");
            Err(CliError::Spec { volume: name.clone(), what })
        };
        if spec.size.0 != superblock.size_bytes {
            return differs("size", spec.size.0, superblock.size_bytes);
        }
        let sector_size = superblock.sector_size.bytes();
        if spec.sector_size != sector_size {
            return differs("sector size", spec.sector_size.into(), sector_size.into());
        }
        Ok(())
    }
}

/// A volume of which this node has no copy.
fn elsewhere(
    view: &View,
    node: &NodeName,
    tls: &Reloading,
    time: Duration,
    key: Option<&XtsKey>,
) -> Result<Volume, CliError> {
    log::info!("volume {}: node {node} has no copy of it; asking those that have", view.volume);
    let volume = Volume::elsewhere(description::ask(view, &tls.current(), time)?, key)?;
    if volume.superblock().cipher == Cipher::None && !view.may_write(node) {
        let members = view.members.iter().map(|member| member.node.as_str()).collect::<Vec<_>>().join(", ");
        return Err(CliError::OnlyMembers { volume: volume.id(), node: node.clone(), members });
    }
    Ok(volume)
}

/// Opens the copy in a folder; the replica of this node gives it up if it has it.
fn open_copy(dir: &Path, kind: Option<Kind>) -> Result<Arc<OpenCopy>, CliError> {
    let opened = OpenCopy::open(dir, kind);
    let Err(CopyError::Store(StoreError::InUse { .. })) = opened else { return Ok(opened?) };
    let volume = Store::open(dir, Access::Inspect)?.superblock().id;
    let root = dir.canonicalize().ok().and_then(|dir| dir.parent().map(Path::to_owned)).unwrap_or_default();
    match ask_for(&root, volume) {
        Ok(_) => Ok(OpenCopy::open(dir, kind)?),
        Err(source) => Err(CliError::Release { dir: dir.to_owned(), source }),
    }
}

/// That a member's copy is not where it has to be is worth a sentence of its own.
fn missing(error: CliError, volume: Uuid, node: &NodeName, dir: &Path) -> CliError {
    match error {
        CliError::Copy(CopyError::Store(StoreError::NotAVolume { .. })) => {
            CliError::NoCopy { volume, node: node.clone(), dir: dir.to_owned() }
        }
        error => error,
    }
}

fn stopped(dir: &Path, reason: StopReason) -> CliError {
    CliError::Stopped { dir: dir.to_owned(), reason }
}

impl ReplicationArgs {
    fn scrub(&self) -> Option<ScrubPlan> {
        let every = self.scrub_every?;
        Some(ScrubPlan { every, rate: self.scrub_rate, repair: self.scrub_repair })
    }

    fn settings(&self, below_min: BelowMin) -> writer::Settings {
        let peer_timeout_us = self.peer_timeout.as_micros() as u64;
        writer::Settings {
            peer_timeout_us,
            ping_interval_us: (peer_timeout_us / 6).min(PING_US_MAX),
            below_min,
            store_retry_us: 500_000,
            settle_interval_us: 1_000_000,
            open_regions_max: 256,
            retained_bytes_max: 64 << 20,
            copy_chunk_bytes: PAYLOAD_BYTES_MAX,
            copies_in_flight_max: 8,
            verify_block_bytes: 4096,
            resync_rate: ResyncRate { min: self.resync_rate_min.min(self.resync_rate_max), max: self.resync_rate_max },
        }
    }
}

/// How often a request to stop is looked for while copies are gathered.
const STOP_LOOK: Duration = Duration::from_millis(100);
const PING_US_MAX: u64 = 500_000;
