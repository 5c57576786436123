//! Making a volume's folder, so that a crash or a failure at any point can simply be tried again.
//!
//! The order is: the new superblock under its temporary name, then `data`, then the rename that
//! makes it a volume; each step durable before the next. So an interrupted creation is recognised
//! by what it leaves: no `volume.json`, a `volume.json.new`, and perhaps a `data` that holds no byte
//! of its own. Only that is cleared away by the next try. Any other `data` may be somebody's disk.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use super::{
    Access, DATA_FILE, NEW_SUPERBLOCK_FILE, SUPERBLOCK_FILE, StoreError, Superblock, length_bytes, lock, open_data,
    open_folder,
};

/// The two files of a volume that carry its locks, both held exclusively.
#[derive(Debug)]
pub struct Held {
    pub folder: File,
    pub data: File,
}

/// Makes the files of a volume in `dir`. See [`Store::create`](super::Store::create).
pub fn create(dir: &Path, superblock: &Superblock, device: Option<&Path>) -> Result<Held, StoreError> {
    let device = device.map(|path| Device::hold(path, superblock.size_bytes)).transpose()?;
    // Declared before what clears away, so that its lock is let go of after that.
    let folder;
    let mut made = Made::default();
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => made.add(dir.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(StoreError::io(dir, "make the folder")(error)),
    }
    folder = open_folder(dir)?;
    lock(&folder, Access::Exclusive, dir)?;
    clear_interrupted(dir)?;

    made.add(dir.join(NEW_SUPERBLOCK_FILE));
    write_new_superblock(dir, superblock)?;
    sync(&folder, dir)?;

    let data_path = dir.join(DATA_FILE);
    match &device {
        Some(device) => symlink(&device.path, &data_path),
        None => new_sparse_file(&data_path, superblock.size_bytes),
    }
    .map_err(StoreError::io(&data_path, "make"))?;
    made.add(data_path.clone());
    sync(&folder, dir)?;
    let data = match device {
        Some(device) => device.file,
        None => {
            let data = open_data(&data_path)?;
            lock(&data, Access::Exclusive, &data_path)?;
            data
        }
    };

    made.add(dir.join(SUPERBLOCK_FILE));
    install_new_superblock(dir, &folder)?;
    sync_parent(dir)?;
    made.keep();
    Ok(Held { folder, data })
}

/// Writes the superblock beside its place, and makes its content durable.
fn write_new_superblock(dir: &Path, superblock: &Superblock) -> Result<(), StoreError> {
    let path = dir.join(NEW_SUPERBLOCK_FILE);
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(&superblock.render())?;
        file.sync_all()
    };
    write().map_err(StoreError::io(&path, "write"))
}

/// Puts the new superblock in its place, and makes that durable.
fn install_new_superblock(dir: &Path, folder: &File) -> Result<(), StoreError> {
    let path = dir.join(SUPERBLOCK_FILE);
    std::fs::rename(dir.join(NEW_SUPERBLOCK_FILE), &path).map_err(StoreError::io(&path, "replace"))?;
    sync(folder, dir)
}

/// What has been made so far; removed again, last first, unless [`Made::keep`] is called.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Made {
    fn add(&mut self, path: PathBuf) {
        self.0.push(path);
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            // The folder can be removed only while nobody else has put anything into it, and a file
            // that is not there any more needs no removal: neither is worth a second error.
            let _ = std::fs::remove_file(path).or_else(|_| std::fs::remove_dir(path));
        }
    }
}

/// A device or file elsewhere that is to hold the sectors: long enough, and nobody else's.
struct Device {
    path: PathBuf,
    file: File,
}

impl Device {
    fn hold(path: &Path, size_bytes: u64) -> Result<Device, StoreError> {
        let file = open_data(path)?;
        lock(&file, Access::Exclusive, path)?;
        let length_bytes = length_bytes(&file).map_err(StoreError::io(path, "measure"))?;
        if length_bytes < size_bytes {
            return Err(StoreError::DataTooShort { path: path.to_owned(), length_bytes, size_bytes });
        }
        // Absolute, so that the link holds wherever the process starts next time; not resolved,
        // because a name under /dev/disk/by-* survives a reboot where the name behind it may not.
        let path = std::path::absolute(path).map_err(StoreError::io(path, "resolve"))?;
        Ok(Device { path, file })
    }
}

/// Removes what an interrupted creation left, and refuses a folder with anything of a volume's.
fn clear_interrupted(dir: &Path) -> Result<(), StoreError> {
    let present = |name: &str| dir.join(name).symlink_metadata();
    if present(SUPERBLOCK_FILE).is_ok() {
        return Err(StoreError::Exists { dir: dir.to_owned() });
    }
    let interrupted = present(NEW_SUPERBLOCK_FILE).is_ok();
    if let Ok(metadata) = present(DATA_FILE) {
        let holds_nothing = metadata.is_symlink() || (metadata.is_file() && metadata.blocks() == 0);
        if !(interrupted && holds_nothing) {
            return Err(StoreError::Occupied { path: dir.join(DATA_FILE) });
        }
        remove(&dir.join(DATA_FILE))?;
    }
    if interrupted {
        remove(&dir.join(NEW_SUPERBLOCK_FILE))?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), StoreError> {
    std::fs::remove_file(path).map_err(StoreError::io(path, "remove"))
}

fn new_sparse_file(path: &Path, size_bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let sized = file.set_len(size_bytes).and_then(|()| file.sync_all());
    if sized.is_err() {
        // The caller has not yet noted this file as made.
        let _ = std::fs::remove_file(path);
    }
    sized
}

fn sync(folder: &File, dir: &Path) -> Result<(), StoreError> {
    folder.sync_all().map_err(StoreError::io(dir, "sync"))
}

fn sync_parent(dir: &Path) -> Result<(), StoreError> {
    let sync = || {
        let absolute = std::path::absolute(dir)?;
        match absolute.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    sync().map_err(StoreError::io(dir, "sync the folder above"))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::store::{SectorSize, Store};

    fn superblock(size_bytes: u64) -> Superblock {
        Superblock::plain(Uuid::new_v4(), size_bytes, SectorSize::Bytes512).unwrap()
    }

    fn names_in(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_existing_volume_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path(), &superblock(1024), None).unwrap();
        let before = std::fs::read(dir.path().join(SUPERBLOCK_FILE)).unwrap();
        let error = create(dir.path(), &superblock(2048), None).unwrap_err();
        assert!(matches!(error, StoreError::Exists { .. }), "{error}");
        assert_eq!(std::fs::read(dir.path().join(SUPERBLOCK_FILE)).unwrap(), before);
        assert_eq!(names_in(dir.path()), ["data", "volume.json"]);
    }

    #[test]
    fn a_data_file_without_superblock_is_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join(DATA_FILE);
        std::fs::write(&data, b"somebody's disk").unwrap();
        for interrupted in [false, true] {
            if interrupted {
                std::fs::write(dir.path().join(NEW_SUPERBLOCK_FILE), b"").unwrap();
            }
            let error = create(dir.path(), &superblock(1024), None).unwrap_err();
            assert!(matches!(error, StoreError::Occupied { .. }), "{error}");
            assert_eq!(std::fs::read(&data).unwrap(), b"somebody's disk");
        }
    }

    #[test]
    fn an_interrupted_creation_can_be_tried_again() {
        let steps: [fn(&Path); 3] = [
            |dir| std::fs::write(dir.join(NEW_SUPERBLOCK_FILE), b"{").unwrap(),
            |dir| new_sparse_file(&dir.join(DATA_FILE), 4096).unwrap(),
            |dir| {
                std::fs::remove_file(dir.join(DATA_FILE)).unwrap();
                symlink("/nowhere", dir.join(DATA_FILE)).unwrap();
            },
        ];
        for reached in 1..=steps.len() {
            let dir = tempfile::tempdir().unwrap();
            for step in &steps[..reached] {
                step(dir.path());
            }
            create(dir.path(), &superblock(1024), None).unwrap();
            let store = Store::open(dir.path(), Access::Exclusive).unwrap();
            assert_eq!(store.superblock().size_bytes, 1024);
            assert_eq!(names_in(dir.path()), ["data", "volume.json"]);
        }
    }

    #[test]
    fn a_failed_creation_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("disk");
        let missing = parent.path().join("no such device");
        let error = create(&dir, &superblock(1024), Some(&missing)).unwrap_err();
        assert!(error.to_string().contains("no such device"), "{error}");
        assert!(!dir.exists());
        create(&dir, &superblock(1024), None).unwrap();
    }

    #[test]
    fn a_device_is_linked_by_absolute_path_and_checked_for_length() {
        let parent = tempfile::tempdir().unwrap();
        let device = parent.path().join("device");
        std::fs::write(&device, [7; 1024]).unwrap();
        let dir = parent.path().join("disk");

        let error = create(&dir, &superblock(2048), Some(&device)).unwrap_err();
        assert!(matches!(error, StoreError::DataTooShort { .. }), "{error}");
        let error = create(&dir, &superblock(1024), Some(parent.path())).unwrap_err();
        assert!(matches!(error, StoreError::NotADisk { .. }), "{error}");
        assert!(!dir.exists());

        create(&dir, &superblock(1024), Some(&device)).unwrap();
        assert_eq!(std::fs::read_link(dir.join(DATA_FILE)).unwrap(), device);
        assert_eq!(std::fs::read(&device).unwrap(), [7; 1024]);
    }
}
