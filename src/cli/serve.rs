//! `sealblk serve`: one volume to one virtual machine after another.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use super::{CliError, KeyArgs};
use crate::device::{Disk, Serial};
use crate::io::Kind;
use crate::keys::KeyError;
use crate::store::Access;
use crate::vhost::server;
use crate::vhost::socket::Socket;
use crate::volume::Volume;
use crate::volume::attachment::Attachment;

/// What to serve, and how.
#[derive(Args)]
pub struct ServeArgs {
    /// The volume's folder
    dir: PathBuf,
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
    /// take no longer than that themselves; 0 never watches
    #[arg(long, value_name = "TIME", default_value_t = POLL_US_DEFAULT, value_parser = clap::value_parser!(u64).range(0..=POLL_US_MAX))]
    poll_us: u64,
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
    let stop = stop_signal().map_err(CliError::Signals)?;
    let key = match args.key.load_unless(Some(stop.as_fd())) {
        // Asked to end in order, and nothing has been served that could be out of order.
        Err(CliError::Key(KeyError::Stopped)) => {
            log::info!("stopped before the key was read; nothing was served");
            return Ok(());
        }
        key => key?,
    };
    let access = if args.read_only { Access::Shared } else { Access::Exclusive };
    let volume = Volume::open(&args.dir, key.as_ref(), access)?;
    drop(key);
    let serial = args.serial.unwrap_or_else(|| default_serial(&volume));
    let kind = engine(args.engine, &volume);
    let failed = |source| CliError::Serve { dir: args.dir.clone(), source };
    let attachment = Attachment::new(volume, kind, args.read_only).map_err(failed)?;
    let disk = Arc::new(Disk::new(Arc::new(attachment), serial, args.queues));
    let socket = Socket::bind(&args.socket)?;
    log_start(args, &disk, kind);
    server::run(&socket, &disk, Duration::from_micros(args.poll_us), stop.as_fd()).map_err(failed)?;
    log::info!("stopped; everything is flushed");
    Ok(())
}

/// A stream that is readable from the first SIGTERM or SIGINT on.
fn stop_signal() -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    pipe::register(SIGTERM, write.try_clone()?)?;
    pipe::register(SIGINT, write)?;
    Ok(read)
}

fn engine(choice: EngineChoice, volume: &Volume) -> Kind {
    match choice {
        EngineChoice::Fixed(kind) => kind,
        EngineChoice::Auto => {
            let (kind, obstacle) = Kind::detect(volume.data_path());
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

fn log_start(args: &ServeArgs, disk: &Disk, kind: Kind) {
    let volume = disk.attachment().volume();
    let cipher = match volume.cipher() {
        Some(xts) => format!("AES-256-XTS ({})", xts.implementation()),
        None => "NOT ENCRYPTED".to_owned(),
    };
    log::info!(
        "volume {} in {}: {} bytes, sectors of {}, {cipher}; {kind} engine, {} I/O; listening on {}",
        volume.id(),
        args.dir.display(),
        volume.size_bytes(),
        volume.sector_size_bytes(),
        disk.attachment().file().caching(),
        args.socket.display(),
    );
}

/// About what two wake-ups take: where a request takes less, watching more than doubles the speed, and
/// it is left alone where one takes more. See docs/performance.md.
const POLL_US_DEFAULT: u64 = 50;
const POLL_US_MAX: u64 = 1000;
