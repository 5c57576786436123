//! A volume on disk with its key, made by the real `sealblk volume create`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::ciphertext::seal;
use super::configuration::Configuration;
use super::pattern::pattern;

/// The binary under test.
pub const SEALBLK: &str = env!("CARGO_BIN_EXE_sealblk");

/// A volume in a folder of its own, removed on drop.
pub struct Volume {
    /// How the volume was made, and how [`super::served::Served`] will serve it.
    pub configuration: Configuration,
    /// Size in bytes.
    pub size: u64,
    key: Vec<u8>,
    directory: PathBuf,
    folder: TempDir,
}

impl Volume {
    /// A new volume of `size` bytes on a disk file system, where direct I/O works.
    pub fn create(configuration: Configuration, size: u64) -> Self {
        Self::create_in(Path::new(env!("CARGO_TARGET_TMPDIR")), configuration, size)
    }

    /// A new volume of `size` bytes in a new folder under `parent`.
    pub fn create_in(parent: &Path, configuration: Configuration, size: u64) -> Self {
        let folder = TempDir::new_in(parent).expect("a folder for the volume");
        let key = pattern(0x005e_a1b1, 64);
        let volume = Self { configuration, size, key, directory: folder.path().join("volume"), folder };
        fs::write(volume.key_path(), &volume.key).expect("writing the key file");
        let output = Command::new(SEALBLK)
            .args(["volume", "create"])
            .arg(&volume.directory)
            .args(["--size", &size.to_string()])
            .args(["--sector-size", &configuration.sector_size.to_string()])
            .args(volume.key_arguments())
            .output()
            .expect("running sealblk volume create");
        assert!(output.status.success(), "volume create failed: {output:?}");
        volume
    }

    /// The volume's folder.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The folder that holds the volume's folder and its key, for whatever else a test needs.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The 64 bytes of the volume's key.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The file that holds the key as raw bytes.
    pub fn key_path(&self) -> PathBuf {
        self.folder.path().join("key")
    }

    /// The file that holds the volume's sectors.
    pub fn data_path(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The arguments that open this volume: `--key file:…` or `--no-encryption`.
    pub fn key_arguments(&self) -> Vec<String> {
        if self.configuration.encrypted {
            vec!["--key".into(), format!("file:{}", self.key_path().display())]
        } else {
            vec!["--no-encryption".into()]
        }
    }

    /// Everything on disk, as it lies there.
    pub fn data(&self) -> Vec<u8> {
        let data = fs::read(self.data_path()).expect("reading the data file");
        assert_eq!(data.len() as u64, self.size, "the data file changed length");
        data
    }

    /// Bytes that the data file takes on its disk.
    pub fn allocated_bytes(&self) -> u64 {
        let metadata = fs::metadata(self.data_path()).expect("the data file's metadata");
        metadata.blocks() * 512
    }

    /// Checks that the disk holds exactly what an independent implementation makes of `plaintext`
    /// at `offset` bytes, both multiples of the sector size. A sector of zeros may be a hole.
    pub fn assert_holds(&self, offset: u64, plaintext: &[u8]) {
        self.assert_image(&self.data(), offset, plaintext);
    }

    /// As [`Volume::assert_holds`], for bytes of the data file that were read earlier.
    pub fn assert_image(&self, data: &[u8], offset: u64, plaintext: &[u8]) {
        let unit = self.configuration.sector_size as usize;
        let start = usize::try_from(offset).expect("an offset within the file");
        assert_eq!(start % unit, 0, "the test must ask for whole sectors");
        let stored = &data[start..start + plaintext.len()];
        let sealed = if self.configuration.encrypted {
            seal(&self.key, unit, offset / unit as u64, plaintext)
        } else {
            plaintext.to_vec()
        };
        let sectors = stored.chunks(unit).zip(sealed.chunks(unit));
        for ((index, (stored, sealed)), clear) in sectors.enumerate().zip(plaintext.chunks(unit)) {
            let is_hole = is_zero(stored) && is_zero(clear);
            assert!(
                is_hole || stored == sealed,
                "sector {index} after byte {offset} is not what the plaintext seals to"
            );
        }
    }
}

/// Whether every byte is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}
