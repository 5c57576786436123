//! One copy of a volume on one disk: a folder with a superblock, a data file and a lock.
//!
//! | file | what it is |
//! | --- | --- |
//! | `volume.json` | the [`Superblock`]: identity, geometry, what proves a key right |
//! | `data` | the sectors, sector *n* at offset *n* × sector size: a sparse file, or a symbolic link to a block device or to a file elsewhere |
//! | `regions` | the [`RegionTable`] of a copy that is one of several |
//! | `view.json` | the view that such a copy accepted last, which only rooms above can read |
//! | `holder` | the [`Holder`]: which process has the lock |
//! | `writer.sock` | a socket of the process that serves a copy that is one of several: how the volume stands, and what is asked of it |
//! | `scrub.json` | how far that process is with comparing the copies |
//! | `volume.json.new`, `regions.new`, `view.json.new` | a file about to replace the other one; left over only by a crash |
//!
//! Invariants: a folder with a `volume.json` is a whole volume, because that file is written last
//! and replaced by a rename; and whoever holds a [`Store`] opened with [`Access::Exclusive`] is the
//! only holder of the folder and of the data behind it, through `flock` on both.
//!
//! This room sees only what lies on the disk. It knows that keys exist, from two values in the
//! superblock, and never sees one.

pub mod checksum;
mod create;
mod error;
mod holder;
mod hostile;
mod owner_socket;
mod regions;
pub mod replace;
mod superblock;
mod view_record;
mod writing;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

pub use error::StoreError;
pub use holder::{Holder, HolderError};
pub use hostile::read_hostile;
pub use owner_socket::{connect_to_owner, listen_as_owner};
pub use regions::{RegionTable, RegionTableError};
pub use superblock::{Cipher, Damage, FORMAT, GeometryError, SectorSize, Superblock, SuperblockError};
pub use view_record::{VIEW_RECORD_BYTES_MAX, read_view_record, replace_view_record};
pub use writing::await_writes;

/// What the opener of a [`Store`] will do with it, and so which lock it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and write; nobody else has the volume open.
    Exclusive,
    /// Read; others may read too.
    Shared,
    /// Look at the superblock and the space taken; takes no lock and works while another process
    /// serves the volume.
    Inspect,
}

/// An open copy of a volume. The locks go when it is dropped.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    data_path: PathBuf,
    superblock: Superblock,
    /// Holds the lock on the folder.
    _folder: File,
    /// Holds the lock on the data: two folders may point at one device.
    data: File,
}

impl Store {
    /// Opens the volume in `dir`: takes the lock, reads the superblock, checks that the data is as
    /// long as the volume. Writes nothing. For [`Access::Exclusive`] it waits for what the last holder had asked of the
    /// disk, some seconds at most.
    ///
    /// # Errors
    ///
    /// [`StoreError`], whose sentence names the folder or file and says what to do.
    pub fn open(dir: &Path, access: Access) -> Result<Store, StoreError> {
        let folder = open_folder(dir)?;
        lock(&folder, access, dir)?;
        let superblock = read_superblock(dir)?;
        let data_path = dir.join(DATA_FILE);
        let data = open_data(&data_path)?;
        lock(&data, access, &data_path)?;
        let length_bytes = length_bytes(&data).map_err(StoreError::io(&data_path, "measure"))?;
        if length_bytes < superblock.size_bytes {
            return Err(StoreError::DataTooShort { path: data_path, length_bytes, size_bytes: superblock.size_bytes });
        }
        if access == Access::Exclusive && !await_writes(&data_path, WRITES_PATIENCE) {
            return Err(StoreError::Written { path: data_path });
        }
        Ok(Store { dir: dir.to_owned(), data_path, superblock, _folder: folder, data })
    }

    /// Makes a volume in `dir` and opens it with [`Access::Exclusive`].
    ///
    /// The folder is made if it does not exist (its parent must). `data` becomes a sparse file of the
    /// volume's size, or a link to `device`: a block device or a file that is long enough, whose
    /// content is not touched. When this fails nothing is left that would make a second try fail.
    ///
    /// # Errors
    ///
    /// [`StoreError::Exists`] and [`StoreError::Occupied`] when there is or may be a volume already;
    /// others when a file or the device cannot be used.
    pub fn create(dir: &Path, superblock: &Superblock, device: Option<&Path>) -> Result<Store, StoreError> {
        let create::Held { folder, data } = create::create(dir, superblock, device)?;
        Ok(Store {
            dir: dir.to_owned(),
            data_path: dir.join(DATA_FILE),
            superblock: superblock.clone(),
            _folder: folder,
            data,
        })
    }

    /// Identity and geometry, as read when the store was opened.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The folder of the volume.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file or link that holds the sectors.
    pub fn data_path(&self) -> &Path {
        &self.data_path
    }

    /// Bytes of disk that the data takes now: the blocks allocated to a file, the whole length of a
    /// block device.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`] when the file cannot be asked.
    pub fn allocated_bytes(&self) -> Result<u64, StoreError> {
        let ask = || {
            let metadata = self.data.metadata()?;
            if metadata.file_type().is_block_device() {
                length_bytes(&self.data)
            } else {
                Ok(metadata.blocks() * STAT_BLOCK_BYTES)
            }
        };
        ask().map_err(StoreError::io(&self.data_path, "measure"))
    }
}

fn open_folder(dir: &Path) -> Result<File, StoreError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags, Mode::empty()) {
        Ok(folder) => Ok(folder.into()),
        Err(Errno::NOENT | Errno::NOTDIR) => Err(StoreError::NotAVolume { dir: dir.to_owned() }),
        Err(errno) => Err(StoreError::io(dir, "open")(errno.into())),
    }
}

fn lock(file: &File, access: Access, path: &Path) -> Result<(), StoreError> {
    let operation = match access {
        Access::Exclusive => FlockOperation::NonBlockingLockExclusive,
        Access::Shared => FlockOperation::NonBlockingLockShared,
        Access::Inspect => return Ok(()),
    };
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(StoreError::InUse { path: path.to_owned() }),
        Err(errno) => Err(StoreError::io(path, "lock")(errno.into())),
    }
}

fn read_superblock(dir: &Path) -> Result<Superblock, StoreError> {
    let path = dir.join(SUPERBLOCK_FILE);
    let mut content = Vec::new();
    let limit = superblock::SUPERBLOCK_BYTES_MAX as u64;
    File::open(&path).and_then(|file| file.take(limit).read_to_end(&mut content)).map_err(|error| {
        match error.kind() {
            io::ErrorKind::NotFound => StoreError::NotAVolume { dir: dir.to_owned() },
            _ => StoreError::io(&path, "read")(error),
        }
    })?;
    Superblock::parse(&content).map_err(|reason| StoreError::Superblock { path, reason })
}

/// Opens what holds the sectors, for asking and locking; whoever moves sectors opens it again with
/// the flags of its engine.
fn open_data(path: &Path) -> Result<File, StoreError> {
    // A link to a pipe must not hang here.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let data: File = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(data) => data.into(),
        Err(Errno::NOENT) => {
            return Err(StoreError::NoData { path: path.to_owned() });
        }
        Err(errno) => return Err(StoreError::io(path, "open")(errno.into())),
    };
    let kind = data.metadata().map_err(StoreError::io(path, "examine"))?.file_type();
    if kind.is_file() || kind.is_block_device() {
        Ok(data)
    } else {
        Err(StoreError::NotADisk { path: path.to_owned() })
    }
}

/// Length of a file or of a block device, whose metadata does not tell it.
fn length_bytes(data: &File) -> io::Result<u64> {
    Ok(rustix::fs::seek(data, SeekFrom::End(0))?)
}

const SUPERBLOCK_FILE: &str = "volume.json";
const NEW_SUPERBLOCK_FILE: &str = "volume.json.new";
const DATA_FILE: &str = "data";

/// The unit of `st_blocks`, whatever the file system's block size is.
const STAT_BLOCK_BYTES: u64 = 512;

/// How long a disk may take for what it was asked last.
const WRITES_PATIENCE: Duration = Duration::from_secs(5);

/// Opens what nobody holds any more. A process that another test begins has the descriptors of this one until it runs
/// its own program, and with them the locks.
#[cfg(test)]
pub(crate) fn once_free<T, E: std::fmt::Display>(open: impl Fn() -> Result<T, E>) -> T {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        match open() {
            Ok(opened) => return opened,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use uuid::Uuid;

    use super::*;

    fn superblock(size_bytes: u64) -> Superblock {
        Superblock::plain(Uuid::new_v4(), size_bytes, SectorSize::Bytes512).unwrap()
    }

    fn created(size_bytes: u64) -> (tempfile::TempDir, PathBuf) {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("disk");
        Store::create(&dir, &superblock(size_bytes), None).unwrap();
        (parent, dir)
    }

    #[test]
    fn a_created_volume_opens_and_takes_no_space() {
        let (_parent, dir) = created(1 << 40);
        let store = Store::open(&dir, Access::Exclusive).unwrap();
        assert_eq!(store.superblock().size_bytes, 1 << 40);
        assert_eq!(store.allocated_bytes().unwrap(), 0);
        let metadata = std::fs::metadata(store.data_path()).unwrap();
        assert_eq!(metadata.len(), 1 << 40);
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn allocated_bytes_follow_what_is_written() {
        let (_parent, dir) = created(1 << 20);
        std::fs::write(dir.join(DATA_FILE), vec![1; 1 << 20]).unwrap();
        let store = Store::open(&dir, Access::Inspect).unwrap();
        assert!(store.allocated_bytes().unwrap() >= 1 << 20);
    }

    #[test]
    fn a_held_volume_refuses_a_second_holder() {
        let (_parent, dir) = created(512);
        let held = Store::open(&dir, Access::Exclusive).unwrap();
        for access in [Access::Exclusive, Access::Shared] {
            let error = Store::open(&dir, access).unwrap_err();
            assert!(matches!(error, StoreError::InUse { .. }), "{error}");
        }
        assert!(Store::open(&dir, Access::Inspect).is_ok());
        drop(held);

        let reader = Store::open(&dir, Access::Shared).unwrap();
        assert!(Store::open(&dir, Access::Shared).is_ok());
        assert!(Store::open(&dir, Access::Exclusive).is_err());
        drop(reader);
        assert!(Store::open(&dir, Access::Exclusive).is_ok());
    }

    #[test]
    fn two_folders_cannot_hold_one_data_file() {
        let parent = tempfile::tempdir().unwrap();
        let shared = parent.path().join("disk.img");
        std::fs::write(&shared, [0; 1024]).unwrap();
        let first = parent.path().join("first");
        let second = parent.path().join("second");
        let held = Store::create(&first, &superblock(1024), Some(&shared)).unwrap();
        let error = Store::create(&second, &superblock(1024), Some(&shared)).unwrap_err();
        assert!(matches!(error, StoreError::InUse { .. }), "{error}");
        assert!(!second.exists());
        drop(held);
    }

    #[test]
    fn every_changed_byte_of_the_file_is_refused_with_its_name() {
        let (_parent, dir) = created(1024);
        let path = dir.join(SUPERBLOCK_FILE);
        let good = std::fs::read(&path).unwrap();
        for position in 0..good.len() {
            for pattern in [0x01, 0x20, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[position] ^= pattern;
                std::fs::write(&path, &bad).unwrap();
                let error = Store::open(&dir, Access::Exclusive).unwrap_err();
                assert!(matches!(error, StoreError::Superblock { .. }), "{error}");
                assert!(error.to_string().contains(path.to_str().unwrap()));
            }
        }
        std::fs::write(&path, &good).unwrap();
        assert!(Store::open(&dir, Access::Exclusive).is_ok());
    }

    #[test]
    fn short_missing_or_strange_data_is_refused() {
        let (_parent, dir) = created(1024);
        let data = dir.join(DATA_FILE);
        File::options().write(true).open(&data).and_then(|file| file.set_len(1023)).unwrap();
        let error = Store::open(&dir, Access::Exclusive).unwrap_err();
        assert!(matches!(error, StoreError::DataTooShort { length_bytes: 1023, size_bytes: 1024, .. }));

        std::fs::remove_file(&data).unwrap();
        let error = Store::open(&dir, Access::Exclusive).unwrap_err();
        assert!(matches!(error, StoreError::NoData { .. }), "{error}");

        symlink("/dev/null", &data).unwrap();
        let error = Store::open(&dir, Access::Exclusive).unwrap_err();
        assert!(matches!(error, StoreError::NotADisk { .. }), "{error}");
    }

    #[test]
    fn what_a_holder_that_is_gone_still_writes_is_waited_for() {
        let (_parent, dir) = created(4096);
        // As the kernel has it open for a process that was killed.
        let writing = File::options().write(true).open(dir.join(DATA_FILE)).unwrap();
        assert!(Store::open(&dir, Access::Inspect).is_ok());
        let time = Duration::from_millis(300);
        let begun = std::time::Instant::now();
        let end = std::thread::spawn(move || {
            std::thread::sleep(time);
            drop(writing);
        });
        drop(Store::open(&dir, Access::Exclusive).unwrap());
        assert!(begun.elapsed() >= time);
        end.join().unwrap();

        let _writing = File::options().write(true).open(dir.join(DATA_FILE)).unwrap();
        let error = Store::open(&dir, Access::Exclusive).unwrap_err();
        assert!(matches!(error, StoreError::Written { .. }), "{error}");
    }

    #[test]
    fn a_folder_that_is_no_volume_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        for dir in [parent.path().to_owned(), parent.path().join("absent")] {
            let error = Store::open(&dir, Access::Inspect).unwrap_err();
            assert!(matches!(error, StoreError::NotAVolume { .. }), "{error}");
        }
    }
}
