//! `sealblk volume`: making, examining, filling and reading volumes.

pub(super) mod create;
mod image;
mod members;
pub(super) mod planned;
pub(super) mod status;
pub(super) mod verify;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{CliError, output, size};
use crate::store::{Access, Cipher, Store};
use create::CreateArgs;
use image::ImageArgs;
use members::{AddMemberArgs, MoveArgs, RemoveMemberArgs};
use status::StatusArgs;
use verify::VerifyArgs;

#[derive(Subcommand)]
pub enum VolumeCommand {
    /// Make a volume
    Create(Box<CreateArgs>),
    /// Show what a volume is and the space it takes; works while it is served
    Info(InfoArgs),
    /// Show how the copies of a replicated volume stand
    Status(StatusArgs),
    /// Have another node keep a copy of a replicated volume, while it is served
    AddMember(AddMemberArgs),
    /// Have a node keep no copy of a replicated volume any more, also one that is lost for good
    RemoveMember(RemoveMemberArgs),
    /// Have another node keep a copy in the place of one: add it, wait until it is in sync, remove the other
    Move(MoveArgs),
    /// Compare the copies of a replicated volume while it is served, and heal those that are wrong
    Verify(VerifyArgs),
    /// Replace the content of a volume by a raw image, followed by zeros
    Import(ImageArgs),
    /// Write the content of a volume to a raw image
    Export(ImageArgs),
}

#[derive(Args)]
pub struct InfoArgs {
    /// Folder of the volume
    dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(command: VolumeCommand) -> Result<(), CliError> {
    match command {
        VolumeCommand::Create(args) => create::run(&args),
        VolumeCommand::Info(args) => info(&args),
        VolumeCommand::Status(args) => status::run(&args),
        VolumeCommand::AddMember(args) => members::add(&args),
        VolumeCommand::RemoveMember(args) => members::remove(&args),
        VolumeCommand::Move(args) => members::relocate(&args),
        VolumeCommand::Verify(args) => verify::run(&args),
        VolumeCommand::Import(args) => image::import(&args),
        VolumeCommand::Export(args) => image::export(&args),
    }
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
