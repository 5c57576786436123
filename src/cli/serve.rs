//! `sealblk serve`: one volume to one virtual machine after another.

mod copies;

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use uuid::Uuid;

use super::view_args::{EtcdArgs, volume_name};
use super::volume::verify;
use super::{CliError, KeyArgs, TlsArgs, ViewPlace, duration, signals, size};
use crate::coordination::kubernetes::VolumeName;
use crate::device::{Disk, Serial};
use crate::io::Kind;
use crate::io::patience::Patience;
use crate::keys::KeyError;
use crate::replication::view::NodeName;
use crate::store::Access;
use crate::vhost::server;
use crate::vhost::socket::Socket;
use crate::volume::Volume;
use crate::volume::attachment::Attachment;

/// What to serve, and how.
#[derive(Args)]
pub struct ServeArgs {
    /// The volume's folder
    #[arg(required_unless_present_any = ["volume", "id"])]
    dir: Option<PathBuf>,
    /// A volume of a cluster, whose Volume there says what else there is to know: kubernetes:NAMESPACE/NAME
    #[arg(long, value_name = "VOLUME", value_parser = volume_name, groups = ["replicated", "named"],
          conflicts_with_all = ["dir", "view", "below_min", "read_only"], requires = "tls_cert")]
    volume: Option<VolumeName>,
    /// Id of a volume whose view is in PLACE, in place of its folder: the copy is the one below --root; on a node
    /// that is no member, there is none and none is needed
    #[arg(long, value_name = "UUID", group = "named", conflicts_with = "dir", requires = "view")]
    id: Option<Uuid>,
    /// Folder of the copies on this node, which its replica has, too
    #[arg(long, value_name = "DIR", default_value = "/var/lib/sealblk", requires = "named")]
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
    /// How long to wait, when asked to end, for what the guest has asked for, and for the volume to be flushed
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration::parse_patience)]
    stop_timeout: Duration,
    #[command(flatten)]
    replication: ReplicationArgs,
}

/// For a volume with several copies.
#[derive(Args)]
pub struct ReplicationArgs {
    /// Where the view of the volume is, which says where its copies are: file:DIR, kubernetes:NAMESPACE/NAME,
    /// or etcd:URL,URL...; DIR of the volume is then the copy on this node, and --id in place of DIR serves it
    /// wherever its copies are
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
    #[arg(long, value_name = "TIME", default_value = "3s", requires = "replicated",
          value_parser = duration::parse_patience)]
    peer_timeout: Duration,
    /// What happens to the guest's writes while fewer copies are in sync than the failure mode asks for: suspend,
    /// they wait; error, they fail
    #[arg(long, value_name = "WHAT", default_value = "suspend", requires = "replicated")]
    below_min: BelowMinArg,
    /// The most bytes a second by which copies are sent what they lack, together; less while the guest's writes
    /// suffer from it
    #[arg(long, value_name = "BYTES", default_value = "1G", requires = "replicated", value_parser = verify::rate)]
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
pub fn run(args: Arc<ServeArgs>) -> Result<(), CliError> {
    // From here on a signal means to finish in order, even while the volume is being opened.
    let stop = signals::stop().map_err(CliError::Signals)?;
    // What is wrong with it is said before another node's writer has to go for this one.
    Socket::probe(&args.socket)?;
    let is_replicated = args.volume.is_some() || args.replication.view.is_some();
    let attached = if is_replicated {
        let (theirs, stop_too) = (args.clone(), stop.try_clone().map_err(CliError::Signals)?);
        let attached =
            signals::do_until("attach", stop.as_fd(), GRACE, move || copies::attach(&theirs, stop_too.as_fd()));
        attached.map_err(CliError::Signals)?.unwrap_or(Ok(None))
    } else {
        attach_folder(&args, stop.as_fd())
    };
    let attachment = match attached {
        // Asked to end in order, and nothing has been served that could be out of order.
        Err(CliError::Key(KeyError::Stopped)) => {
            log::info!("stopped before the key was read; nothing was served");
            return Ok(());
        }
        Ok(None) => {
            log::info!("stopped before the volume was attached; nothing was served");
            return Ok(());
        }
        Ok(Some(attachment)) => attachment,
        Err(error) => return Err(error),
    };
    let dir = attachment.volume().dir().to_owned();
    let (theirs, stop_too) = (args.clone(), stop.try_clone().map_err(CliError::Signals)?);
    let serving = move || serve(&theirs, Arc::new(attachment), is_replicated, stop_too.as_fd());
    let served = signals::do_until("serve", stop.as_fd(), args.stop_timeout, serving).map_err(CliError::Signals)?;
    served.unwrap_or(Err(CliError::NotEnded { dir, seconds: args.stop_timeout.as_secs_f32() }))
}

/// Serves what is attached, and closes it.
fn serve(
    args: &ServeArgs,
    attachment: Arc<Attachment>,
    is_replicated: bool,
    stop: BorrowedFd<'_>,
) -> Result<(), CliError> {
    let failed = |source| CliError::Serve { dir: attachment.volume().dir().to_owned(), source };
    let serial = args.serial.unwrap_or_else(|| default_serial(attachment.volume()));
    let disk = Arc::new(Disk::new(attachment.clone(), serial, args.queues));
    let socket = Socket::bind(&args.socket)?;
    log_start(&args.socket, &disk);
    server::run(&socket, &disk, &patience(args.poll_us, is_replicated), stop).map_err(failed)?;
    drop(disk);
    if let Some(attachment) = Arc::into_inner(attachment) {
        attachment.close();
    }
    log::info!("stopped; everything is flushed");
    Ok(())
}

/// Opens a volume that is in a folder and nowhere else.
fn attach_folder(args: &ServeArgs, stop: BorrowedFd<'_>) -> Result<Option<Attachment>, CliError> {
    let Some(dir) = &args.dir else { return Err(CliError::Usage("give the volume's folder".to_owned())) };
    let key = args.key.load_unless(Some(stop))?;
    let access = if args.read_only { Access::Shared } else { Access::Exclusive };
    let volume = Volume::open(dir, key.as_ref(), access)?;
    let kind = engine(args.engine, volume.data_path());
    let attachment = Attachment::new(volume, kind, args.read_only);
    attachment.map(Some).map_err(|source| CliError::Serve { dir: dir.clone(), source })
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

fn log_start(socket: &Path, disk: &Disk) {
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
        volume.dir().display(),
        volume.size_bytes(),
        volume.sector_size_bytes(),
        socket.display(),
    );
}

/// For an attachment that can end in order: long enough to close connections, and short enough to be called at once.
const GRACE: Duration = Duration::from_millis(500);
/// About what two wake-ups take: where a request takes less, watching more than doubles the speed, and
/// it is left alone where one takes more. See docs/performance.md.
const POLL_US: u64 = 50;
/// Of the five wake-ups in the course of a write to three copies each thread is spared one or two so. What that is
/// worth depends on the machine: docs/decisions/0015-watch-for-other-copies.md.
pub const REPLICATED_POLL_US: u64 = 400;
pub const POLL_US_MAX: u64 = 1000;
