//! `sealblk volume`: making, examining, filling and reading volumes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{CliError, KeyArgs, output, size};
use crate::store::{Access, Cipher, SectorSize, Store};
use crate::volume::image::{self, Image};
use crate::volume::{Creation, Volume};

#[derive(Subcommand)]
pub enum VolumeCommand {
    /// Make a volume
    Create(CreateArgs),
    /// Show what a volume is and the space it takes; works while it is served
    Info(InfoArgs),
    /// Replace the content of a volume by a raw image, followed by zeros
    Import(ImageArgs),
    /// Write the content of a volume to a raw image
    Export(ImageArgs),
}

#[derive(Args)]
pub struct CreateArgs {
    /// Folder of the volume
    dir: PathBuf,
    /// Size of the disk in bytes, or with K, M, G or T
    #[arg(long, value_parser = size::parse)]
    size: u64,
    #[command(flatten)]
    key: KeyArgs,
    /// Bytes in a sector, which is also the unit of encryption
    #[arg(long, value_name = "BYTES", default_value = "512")]
    sector_size: SectorSizeArg,
    /// Block device or file to keep the sectors on, in place of a sparse file in the folder
    #[arg(long, value_name = "PATH")]
    device: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum SectorSizeArg {
    #[value(name = "512")]
    Bytes512,
    #[value(name = "4096")]
    Bytes4096,
}

#[derive(Args)]
pub struct InfoArgs {
    /// Folder of the volume
    dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct ImageArgs {
    /// Folder of the volume
    dir: PathBuf,
    /// The image, or `-` for standard input or output
    file: PathBuf,
    #[command(flatten)]
    key: KeyArgs,
}

pub fn run(command: VolumeCommand) -> Result<(), CliError> {
    match command {
        VolumeCommand::Create(args) => create(&args),
        VolumeCommand::Info(args) => info(&args),
        VolumeCommand::Import(args) => import(&args),
        VolumeCommand::Export(args) => export(&args),
    }
}

fn create(args: &CreateArgs) -> Result<(), CliError> {
    let sector_size = match args.sector_size {
        SectorSizeArg::Bytes512 => SectorSize::Bytes512,
        SectorSizeArg::Bytes4096 => SectorSize::Bytes4096,
    };
    let creation = Creation { size_bytes: args.size, sector_size, device: args.device.as_deref() };
    let key = args.key.load()?;
    let superblock = Volume::create(&args.dir, creation, key.as_ref())?;
    output::print(&format!("created volume {} in {}\n", superblock.id, args.dir.display()))
}

fn info(args: &InfoArgs) -> Result<(), CliError> {
    let store = Store::open(&args.dir, Access::Inspect)?;
    let superblock = store.superblock();
    let info = Info {
        id: superblock.id.to_string(),
        size_bytes: superblock.size_bytes,
        sector_size_bytes: superblock.sector_size.bytes(),
        cipher: superblock.cipher.name(),
        key_check_present: superblock.key_check.is_some(),
        allocated_bytes: store.allocated_bytes()?,
    };
    let text = if args.json {
        serde_json::to_string_pretty(&info).expect("a record of strings and numbers") + "\n"
    } else {
        info.for_people(superblock.cipher)
    };
    output::print(&text)
}

/// What `volume info --json` prints.
#[derive(Serialize)]
struct Info {
    id: String,
    size_bytes: u64,
    sector_size_bytes: u32,
    cipher: &'static str,
    key_check_present: bool,
    allocated_bytes: u64,
}

impl Info {
    fn for_people(&self, cipher: Cipher) -> String {
        let cipher = match cipher {
            Cipher::Aes256Xts => self.cipher,
            Cipher::None => "none (not encrypted)",
        };
        let key_check = if self.key_check_present { "present" } else { "absent" };
        format!(
            "cipher             {cipher}\n\
             id                 {}\n\
             size               {}\n\
             sector size        {} bytes\n\
             key check          {key_check}\n\
             allocated on disk  {}\n",
            self.id,
            size::display(self.size_bytes),
            self.sector_size_bytes,
            size::display(self.allocated_bytes),
        )
    }
}

fn import(args: &ImageArgs) -> Result<(), CliError> {
    let key = args.key.load()?;
    let volume = Volume::open(&args.dir, key.as_ref(), Access::Exclusive)?;
    let file = match is_standard(&args.file) {
        true => io::stdin().as_fd().try_clone_to_owned().map(File::from),
        false => File::open(&args.file),
    };
    let file = file.map_err(open_error(&args.file))?;
    with_progress(&volume, |progress| image::import(&volume, Image::new(file, &args.file), progress))
}

fn export(args: &ImageArgs) -> Result<(), CliError> {
    let key = args.key.load()?;
    let volume = Volume::open(&args.dir, key.as_ref(), Access::Shared)?;
    // Not emptied here: that must wait until it is known not to be the volume's own data. An image
    // is as secret as the volume is, so only its owner may read it.
    let mut options = OpenOptions::new();
    let file = match is_standard(&args.file) {
        true => output::standard_output(),
        false => options.write(true).create(true).truncate(false).mode(0o600).open(&args.file),
    };
    let file = file.map_err(open_error(&args.file))?;
    with_progress(&volume, |progress| image::export(&volume, Image::new(file, &args.file), progress))
}

fn is_standard(file: &Path) -> bool {
    file == Path::new("-")
}

fn open_error(path: &Path) -> impl FnOnce(io::Error) -> CliError {
    move |source| CliError::Open { path: path.to_owned(), source }
}

/// Runs with a progress bar on standard error, which shows itself only on a terminal.
fn with_progress<E>(volume: &Volume, run: impl FnOnce(&mut dyn FnMut(u64)) -> Result<(), E>) -> Result<(), CliError>
where
    CliError: From<E>,
{
    let bar = ProgressBar::new(volume.size_bytes());
    let style =
        ProgressStyle::with_template("{wide_bar} {percent}% {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}");
    bar.set_style(style.expect("the template is constant"));
    let result = run(&mut |done| bar.set_position(done));
    bar.finish_and_clear();
    Ok(result?)
}
