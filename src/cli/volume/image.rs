//! `sealblk volume import` and `export`: a volume's content from and to a raw image.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::{CliError, KeyArgs, output};
use crate::store::Access;
use crate::volume::Volume;
use crate::volume::image::{self, Image};

#[derive(Args)]
pub struct ImageArgs {
    /// Folder of the volume
    dir: PathBuf,
    /// The image, or `-` for standard input or output
    file: PathBuf,
    #[command(flatten)]
    key: KeyArgs,
}

pub fn import(args: &ImageArgs) -> Result<(), CliError> {
    let key = args.key.load()?;
    let volume = Volume::open(&args.dir, key.as_ref(), Access::Exclusive)?;
    let file = match is_standard(&args.file) {
        true => io::stdin().as_fd().try_clone_to_owned().map(File::from),
        false => File::open(&args.file),
    };
    let file = file.map_err(open_error(&args.file))?;
    with_progress(&volume, |progress| image::import(&volume, Image::new(file, &args.file), progress))
}

pub fn export(args: &ImageArgs) -> Result<(), CliError> {
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
