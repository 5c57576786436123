//! `sealblk serve`: one volume to one virtual machine after another.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::tls_args::own_name;
use super::view_args::{EtcdArgs, in_cluster, volume_name};
use super::volume::planned::spec_key;
use super::volume::verify;
use super::{CliError, KeyArgs, TlsArgs, ViewPlace, duration, signals, size};
use crate::coordination::kubernetes::{BelowMinimum, VolumeName};
use crate::crypto::derive::WriterKey;
use crate::crypto::xts::XtsKey;
use crate::device::{Disk, Serial};
use crate::io::Kind;
use crate::io::patience::Patience;
use crate::keys::KeyError;
use crate::replication::copy::{CopyError, OpenCopy};
use crate::replication::message::PAYLOAD_BYTES_MAX;
use crate::replication::primary::{Primary, PrimaryError, ScrubPlan, Setup};
use crate::replication::server::ask_for;
use crate::replication::view::NodeName;
use crate::replication::writer::{self, BelowMin, ResyncRate, StopReason};
use crate::store::{Access, Store, StoreError};
use crate::vhost::server;
use crate::vhost::socket::Socket;
use crate::volume::Volume;
use crate::volume::attachment::Attachment;

/// What to serve, and how.
#[derive(Args)]
pub struct ServeArgs {
    /// The volume's folder
    #[arg(required_unless_present = "volume")]
    dir: Option<PathBuf>,
    /// A volume of a cluster, whose Volume there says what else there is to know: kubernetes:NAMESPACE/NAME
    #[arg(long, value_name = "VOLUME", value_parser = volume_name, group = "replicated",
          conflicts_with_all = ["dir", "view", "below_min", "read_only"], requires = "tls_cert")]
    volume: Option<VolumeName>,
    /// Folder of the copies on this node, which its replica has, too
    #[arg(long, value_name = "DIR", default_value = "/var/lib/sealblk", requires = "volume")]
    root: PathBuf,
    /// Where to listen for the virtual machine's monitor
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    #[command(flatten)]
    key: KeyArgs,
    /// The most queues that a virtual machine may use, 1 to 64
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=64))]
    queues: u16,
    /// Refuse everything that would change the volume
    #[arg(long)]
    read_only: bool,
    /// What the guest sees as the disk's serial number, at most 20 characters [default: from the volume's id]
    #[arg(long, value_name = "TEXT")]
    serial: Option<Serial>,
    /// How to do I/O: io-uring, threads, inline (in the queue's own thread), or auto: inline for a file in
    /// memory, otherwise the first of the others that works here
    #[arg(long, default_value = "auto")]
    engine: EngineChoice,
    /// The longest time in microseconds to watch for the next request before sleeping, while requests
    /// take no longer than that themselves; 0 never watches [default: 50, for several copies 400]
    #[arg(long, value_name = "TIME", value_parser = clap::value_parser!(u64).range(0..=POLL_US_MAX))]
    poll_us: Option<u64>,
    #[command(flatten)]
    replication: ReplicationArgs,
}

/// For a volume with several copies.
#[derive(Args)]
pub struct ReplicationArgs {
    /// Where the view of the volume is, which says where its copies are: file:DIR, kubernetes:NAMESPACE/NAME,
    /// or etcd:URL,URL...; DIR of the volume is then the copy on this node
    #[arg(long, value_name = "PLACE", group = "replicated", conflicts_with_all = ["read_only"])]
    view: Option<ViewPlace>,
    #[command(flatten)]
    etcd: EtcdArgs,
    /// Name of this node among the volume's members [default: the first name in its certificate]
    #[arg(long, value_name = "NAME", requires = "replicated")]
    node: Option<NodeName>,
    #[command(flatten)]
    tls: TlsArgs,
    /// How long a copy may take to answer, or to come back, before the volume goes on without it
    #[arg(long, value_name = "TIME", default_value = "3s", requires = "replicated", value_parser = duration::parse)]
    peer_timeout: Duration,
    /// What happens to the guest's writes while fewer copies are in sync than the failure mode asks for: suspend,
    /// they wait; error, they fail
    #[arg(long, value_name = "WHAT", default_value = "suspend", requires = "replicated")]
    below_min: BelowMinArg,
    /// The most bytes a second by which copies are sent what they lack, together; less while the guest's writes
    /// suffer from it
    #[arg(long, value_name = "BYTES", default_value = "1G", requires = "replicated", value_parser = size::parse)]
    resync_rate_max: u64,
    /// As many bytes a second are sent even if they suffer
    #[arg(long, value_name = "BYTES", default_value = "16M", requires = "replicated", value_parser = size::parse)]
    resync_rate_min: u64,
    /// How often the copies are compared without anybody asking, such as 7d [default: never]
    #[arg(long, value_name = "TIME", requires = "replicated", value_parser = duration::parse_interval)]
    scrub_every: Option<Duration>,
    /// The most bytes of each copy that are read a second for that; fewer while the guest's writes suffer from it
    #[arg(long, value_name = "BYTES", default_value = "16M", requires = "scrub_every", value_parser = verify::rate)]
    scrub_rate: u64,
    /// Heal copies that then differ from what more than half of the copies in sync have; without this it is only said
    #[arg(long, requires = "scrub_every")]
    scrub_repair: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum BelowMinArg {
    Suspend,
    Error,
}

#[derive(Clone, Copy)]
enum EngineChoice {
    Auto,
    Fixed(Kind),
}

impl std::str::FromStr for EngineChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text.parse().map(Self::Fixed).map_err(|error: String| format!("{error}, or auto")),
        }
    }
}

/// Serves until SIGTERM or SIGINT.
pub fn run(args: &ServeArgs) -> Result<(), CliError> {
    // From here on a signal means to finish in order, even while the volume is being opened.
    let stop = signals::stop().map_err(CliError::Signals)?;
    let (target, key) = match target(args, stop.as_fd()) {
        // Asked to end in order, and nothing has been served that could be out of order.
        Err(CliError::Key(KeyError::Stopped)) => {
            log::info!("stopped before the key was read; nothing was served");
            return Ok(());
        }
        target => target?,
    };
    let failed = |source| CliError::Serve { dir: target.dir.clone(), source };
    let attachment = match &target.view {
        Some(place) => match attach_copies(args, &target, place, key.as_ref(), stop.as_fd())? {
            Some(attachment) => attachment,
            None => {
                log::info!("stopped before the copies were gathered; nothing was served");
                return Ok(());
            }
        },
        None => {
            let access = if args.read_only { Access::Shared } else { Access::Exclusive };
            let volume = Volume::open(&target.dir, key.as_ref(), access)?;
            let kind = engine(args.engine, volume.data_path());
            Attachment::new(volume, kind, args.read_only).map_err(failed)?
        }
    };
    drop(key);
    let attachment = Arc::new(attachment);
    let serial = args.serial.unwrap_or_else(|| default_serial(attachment.volume()));
    let disk = Arc::new(Disk::new(attachment.clone(), serial, args.queues));
    let socket = Socket::bind(&args.socket)?;
    log_start(&args.socket, &target.dir, &disk);
    server::run(&socket, &disk, &patience(args.poll_us, target.view.is_some()), stop.as_fd()).map_err(failed)?;
    drop(disk);
    if let Some(attachment) = Arc::into_inner(attachment) {
        attachment.close();
    }
    log::info!("stopped; everything is flushed");
    Ok(())
}

/// What is to be served.
struct Target {
    /// The volume's folder, or that of its copy on this node.
    dir: PathBuf,
    /// Where its view is, if it has several copies.
    view: Option<ViewPlace>,
    below_min: BelowMin,
    /// What the cluster says that its size is.
    size_bytes: Option<u64>,
}

/// As the command line says, or as the cluster does; and the key.
fn target(args: &ServeArgs, stop: BorrowedFd<'_>) -> Result<(Target, Option<XtsKey>), CliError> {
    if let Some(name) = &args.volume {
        let (spec, view) = in_cluster(name, &args.key.cluster()).read()?;
        let view = view.ok_or_else(|| CliError::NotMade { volume: name.clone() })?;
        let key = spec_key(name, &spec, &args.key, Some(stop))?;
        let below_min = match spec.below_min {
            BelowMinimum::Suspend => BelowMin::Suspend,
            BelowMinimum::Error => BelowMin::Error,
        };
        let dir = args.root.join(view.volume.to_string());
        let size_bytes = Some(spec.size.0);
        let target = Target { dir, view: Some(ViewPlace::Kubernetes(name.clone())), below_min, size_bytes };
        return Ok((target, key));
    }
    let Some(dir) = args.dir.clone() else { return Err(CliError::Usage("give the volume's folder".to_owned())) };
    let below_min = match args.replication.below_min {
        BelowMinArg::Suspend => BelowMin::Suspend,
        BelowMinArg::Error => BelowMin::Error,
    };
    let key = args.key.load_unless(Some(stop))?;
    Ok((Target { dir, view: args.replication.view.clone(), below_min, size_bytes: None }, key))
}

/// Becomes the writer of a volume with several copies. None if asked to stop before that was done.
fn attach_copies(
    args: &ServeArgs,
    target: &Target,
    place: &ViewPlace,
    key: Option<&XtsKey>,
    stop: BorrowedFd<'_>,
) -> Result<Option<Attachment>, CliError> {
    let dir = &target.dir;
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
    let copy = open_copy(dir, kind)?;
    let volume = Volume::of_copy(&copy, key)?;
    if let (Some(name), Some(size_bytes)) = (&args.volume, target.size_bytes)
        && size_bytes != volume.size_bytes()
    {
        let what = format!("its size is {size_bytes} and that of its copies is {}: set it back", volume.size_bytes());
        return Err(CliError::Spec { volume: name.clone(), what });
    }
    let signer = key.map(|key| WriterKey::derive(key, volume.id())).transpose()?;
    let mut primary = Primary::attach(Setup {
        node,
        copy: Some(copy),
        engine: kind,
        volume: volume.id(),
        size_bytes: volume.size_bytes(),
        views: place.of(volume.id(), &args.key.cluster(), &replication.etcd),
        tls,
        signer,
        queues: args.queues,
        opening_time: replication.peer_timeout,
        scrub: replication.scrub(),
        settings: replication.settings(target.below_min),
    })?;
    while !primary.wait_until_served(STOP_LOOK).map_err(|reason| stopped(dir, reason))? {
        let mut polled = [PollFd::new(&stop, PollFlags::IN)];
        if matches!(rustix::event::poll(&mut polled, Some(&Timespec::default())), Ok(1..)) {
            return Ok(None);
        }
    }
    let dir = dir.clone();
    let watched = primary.when_stopped(move |reason| {
        // What the guest has asked for will not be answered, so nothing here could end in order.
        eprintln!("sealblk: {}", stopped(&dir, reason));
        std::process::exit(1);
    });
    watched.map_err(PrimaryError::System)?;
    Ok(Some(Attachment::replicated(volume, primary)))
}

fn stopped(dir: &Path, reason: StopReason) -> CliError {
    CliError::Stopped { dir: dir.to_owned(), reason }
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

/// How long queues watch before they sleep.
fn patience(poll_us: Option<u64>, is_replicated: bool) -> Patience {
    let patience = |default| Patience::new(Duration::from_micros(poll_us.unwrap_or(default)));
    match is_replicated {
        // Replicas may need this very CPU to answer.
        true => patience(REPLICATED_POLL_US).giving_way(),
        false => patience(POLL_US),
    }
}

fn engine(choice: EngineChoice, data_path: &Path) -> Kind {
    match choice {
        EngineChoice::Fixed(kind) => kind,
        EngineChoice::Auto => {
            let (kind, obstacle) = Kind::detect(data_path);
            if let Some(obstacle) = obstacle {
                log::info!("io_uring cannot be used here ({obstacle}): using {kind}");
            }
            kind
        }
    }
}

/// The first digits of the volume's id, as many as the field holds.
fn default_serial(volume: &Volume) -> Serial {
    let digits = volume.id().simple().to_string();
    digits[..Serial::BYTES].parse().expect("hexadecimal digits are printable")
}

fn log_start(socket: &Path, dir: &Path, disk: &Disk) {
    let volume = disk.attachment().volume();
    let cipher = match volume.cipher() {
        Some(xts) => format!("AES-256-XTS ({})", xts.implementation()),
        None => "NOT ENCRYPTED".to_owned(),
    };
    let means = match disk.attachment().engines() {
        Some(engines) => {
            let kind = engines.kind().map_or(String::new(), |kind| format!("{kind} engine, "));
            format!("{kind}{} I/O", engines.file().caching())
        }
        None => "on several copies".to_owned(),
    };
    log::info!(
        "volume {} in {}: {} bytes, sectors of {}, {cipher}; {means}; listening on {}",
        volume.id(),
        dir.display(),
        volume.size_bytes(),
        volume.sector_size_bytes(),
        socket.display(),
    );
}

/// About what two wake-ups take: where a request takes less, watching more than doubles the speed, and
/// it is left alone where one takes more. See docs/performance.md.
const POLL_US: u64 = 50;
/// Three copies on one machine take a quarter less for a write at depth 1 so, at hardly more CPU: of the five
/// wake-ups in its course each thread is spared one or two.
pub const REPLICATED_POLL_US: u64 = 400;
pub const POLL_US_MAX: u64 = 1000;
/// How often a request to stop is looked for while copies are gathered.
const STOP_LOOK: Duration = Duration::from_millis(100);
const PING_US_MAX: u64 = 500_000;
