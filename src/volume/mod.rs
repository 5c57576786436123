//! Plaintext above, ciphertext below: a volume is a store with its cipher.
//!
//! Opening one is the gate for keys. The lock is taken and the superblock read; a key that does not
//! derive the key check recorded there is refused; the cipher is compared with an independent
//! implementation on this very machine. Only then is there a [`Volume`], and only with one can a
//! sector be read or written.
//!
//! Invariants: nothing is written before the key has been proven right; the key and the cipher stay
//! in this room, and what it hands to rooms below is ciphertext.

pub mod attachment;
mod error;
pub mod image;
pub mod lane;
mod sectors;

use std::path::{Path, PathBuf};

use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::crypto::xts::{Xts, XtsKey};
use crate::crypto::{derive, self_test};
use crate::replication::copy::OpenCopy;
use crate::store::{Access, Cipher, SectorSize, Store, Superblock, read_view_record};

pub use error::VolumeError;

/// An open volume: locked, its key proven right, its cipher tested.
pub struct Volume {
    superblock: Superblock,
    dir: PathBuf,
    data_path: PathBuf,
    cipher: Option<Xts>,
    /// The lock, unless somebody else holds it for the volume.
    _store: Option<Store>,
}

/// What a new volume is to be.
#[derive(Clone, Copy, Debug)]
pub struct Creation<'a> {
    /// Size of the device in bytes, a multiple of the sector size.
    pub size_bytes: u64,
    /// Size of a sector.
    pub sector_size: SectorSize,
    /// A block device or file to hold the sectors in place of a new sparse file.
    pub device: Option<&'a Path>,
}

impl Volume {
    /// Makes a volume in the folder `dir`, encrypted if there is a key. On disk it is all holes; a
    /// device that is given keeps its content.
    ///
    /// # Errors
    ///
    /// [`VolumeError::Geometry`] for a size that no volume can have; [`VolumeError::Store`] when
    /// there is a volume already or the files cannot be made.
    pub fn create(dir: &Path, creation: Creation<'_>, key: Option<&XtsKey>) -> Result<Superblock, VolumeError> {
        let superblock = Self::plan(creation, key)?;
        Store::create(dir, &superblock, creation.device)?;
        Ok(superblock)
    }

    /// What a new volume would have on record, with an identity of its own.
    ///
    /// # Errors
    ///
    /// [`VolumeError::Geometry`] for a size that no volume can have.
    pub fn plan(creation: Creation<'_>, key: Option<&XtsKey>) -> Result<Superblock, VolumeError> {
        let Creation { size_bytes, sector_size, .. } = creation;
        let id = Uuid::new_v4();
        Ok(match key {
            Some(key) => {
                let key_check = derive::key_check(key, id);
                let public_key = derive::writer_public_key(key, id);
                Superblock::encrypted(id, size_bytes, sector_size, key_check, public_key)?
            }
            None => Superblock::plain(id, size_bytes, sector_size)?,
        })
    }

    /// Opens the volume in the folder `dir`, with its key if it is encrypted and without one if it is
    /// not. Writes nothing. What is one copy of several can only be read so.
    ///
    /// # Errors
    ///
    /// [`VolumeError`]: the volume cannot be opened or is in use, the key is not its key, or the
    /// cipher does not work on this machine.
    pub fn open(dir: &Path, key: Option<&XtsKey>, access: Access) -> Result<Volume, VolumeError> {
        let store = Store::open(dir, access)?;
        if read_view_record(dir)?.is_some() {
            if access == Access::Exclusive {
                return Err(VolumeError::Replicated { dir: dir.to_owned() });
            }
            log::warn!("{}: this is one copy of a replicated volume, and may lack what others have", dir.display());
        }
        Ok(Volume {
            cipher: unlock(dir, store.superblock(), key)?,
            superblock: store.superblock().clone(),
            dir: dir.to_owned(),
            data_path: store.data_path().to_owned(),
            _store: Some(store),
        })
    }

    /// The volume of which `copy` is one copy, and which holds the lock for it. The sectors are not in its data
    /// file alone.
    ///
    /// # Errors
    ///
    /// As those of [`open`](Self::open).
    pub fn of_copy(copy: &OpenCopy, key: Option<&XtsKey>) -> Result<Volume, VolumeError> {
        Ok(Volume {
            cipher: unlock(copy.dir(), copy.superblock(), key)?,
            superblock: copy.superblock().clone(),
            dir: copy.dir().to_owned(),
            data_path: copy.data_path().to_owned(),
            _store: None,
        })
    }

    /// That `key` is the one of the copy in `dir`, which another process may have open.
    ///
    /// # Errors
    ///
    /// As those of [`open`](Self::open) about the key and the cipher.
    pub fn check_key(dir: &Path, superblock: &Superblock, key: Option<&XtsKey>) -> Result<(), VolumeError> {
        unlock(dir, superblock, key).map(drop)
    }

    /// A volume of which no copy is here, by what those who have one say that it is. In sentences it is called by
    /// its id.
    ///
    /// # Errors
    ///
    /// As those of [`open`](Self::open) about the key and the cipher.
    pub fn elsewhere(superblock: Superblock, key: Option<&XtsKey>) -> Result<Volume, VolumeError> {
        let name = PathBuf::from(superblock.id.to_string());
        Ok(Volume {
            cipher: unlock(&name, &superblock, key)?,
            superblock,
            dir: name.clone(),
            data_path: name,
            _store: None,
        })
    }

    /// The volume's identity.
    pub fn id(&self) -> Uuid {
        self.superblock().id
    }

    /// Size of the device in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.superblock().size_bytes
    }

    /// Size of a sector in bytes, which is also the cipher's data unit.
    pub fn sector_size_bytes(&self) -> u32 {
        self.superblock().sector_size.bytes()
    }

    /// What seals the sectors; `None` for a volume that is not encrypted.
    pub fn cipher(&self) -> Option<&Xts> {
        self.cipher.as_ref()
    }

    /// The file, or link to a device, that holds the sectors of the copy here; without one, the volume's id.
    pub fn data_path(&self) -> &Path {
        &self.data_path
    }

    /// Identity and geometry as recorded.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The folder of the volume; where no copy is here, its id.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume").field("superblock", &self.superblock).field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// The cipher of a volume in the folder `dir`, or called so, if it is encrypted and the key is its key.
fn unlock(dir: &Path, superblock: &Superblock, key: Option<&XtsKey>) -> Result<Option<Xts>, VolumeError> {
    match (superblock.cipher, key) {
        (Cipher::Aes256Xts, Some(key)) => proven_cipher(dir, superblock, key).map(Some),
        (Cipher::None, None) => Ok(None),
        (Cipher::Aes256Xts, None) => Err(VolumeError::KeyNeeded { dir: dir.to_owned() }),
        (Cipher::None, Some(_)) => Err(VolumeError::NotEncrypted { dir: dir.to_owned() }),
    }
}

/// The cipher under a key that is the volume's, on a machine that computes it right.
fn proven_cipher(dir: &Path, superblock: &Superblock, key: &XtsKey) -> Result<Xts, VolumeError> {
    let derived = derive::key_check(key, superblock.id);
    let recorded = superblock.key_check.as_ref().map(|check| check.ct_eq(&derived));
    if !recorded.is_some_and(bool::from) {
        return Err(VolumeError::WrongKey { dir: dir.to_owned(), id: superblock.id });
    }
    let cipher = Xts::new(key)?;
    self_test::run(&cipher, key)?;
    Ok(cipher)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    const CREATION: Creation<'static> =
        Creation { size_bytes: 1 << 20, sector_size: SectorSize::Bytes4096, device: None };

    fn created(key: Option<&XtsKey>) -> (tempfile::TempDir, PathBuf) {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("disk");
        Volume::create(&dir, CREATION, key).unwrap();
        (parent, dir)
    }

    #[test]
    fn a_volume_opens_with_its_key() {
        let key = XtsKey::generate().unwrap();
        let (_parent, dir) = created(Some(&key));
        let volume = Volume::open(&dir, Some(&key), Access::Exclusive).unwrap();
        assert!(volume.cipher().is_some());
        assert_eq!(volume.size_bytes(), 1 << 20);
        assert_eq!(volume.sector_size_bytes(), 4096);
        let public_key = derive::writer_public_key(&key, volume.id());
        assert_eq!(volume.superblock().writer_public_key, Some(public_key));
    }

    #[test]
    fn a_plain_volume_opens_without_a_key() {
        let (_parent, dir) = created(None);
        let volume = Volume::open(&dir, None, Access::Exclusive).unwrap();
        assert!(volume.cipher().is_none());
    }

    #[test]
    fn a_wrong_key_is_refused_and_nothing_is_written() {
        let (_parent, dir) = created(Some(&XtsKey::generate().unwrap()));
        let state = || {
            let superblock = fs::read(dir.join("volume.json")).unwrap();
            let data = fs::metadata(dir.join("data")).unwrap();
            (superblock, data.modified().unwrap(), fs::read_dir(&dir).unwrap().count())
        };
        let before = state();
        let other = XtsKey::generate().unwrap();
        let error = Volume::open(&dir, Some(&other), Access::Exclusive).unwrap_err();
        assert!(matches!(error, VolumeError::WrongKey { .. }), "{error}");
        assert_eq!(state(), before);
    }

    #[test]
    fn a_volume_elsewhere_opens_with_its_key_alone() {
        let key = XtsKey::generate().unwrap();
        let superblock = Volume::plan(CREATION, Some(&key)).unwrap();
        let volume = Volume::elsewhere(superblock.clone(), Some(&key)).unwrap();
        assert!(volume.cipher().is_some());
        assert_eq!((volume.size_bytes(), volume.superblock()), (1 << 20, &superblock));
        let id = superblock.id.to_string();
        for (key, says) in [(Some(XtsKey::generate().unwrap()), "the key is not the one"), (None, "is encrypted")] {
            let error = Volume::elsewhere(superblock.clone(), key.as_ref()).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains(&id), "{error}");
        }
        let plain = Volume::plan(CREATION, None).unwrap();
        assert!(Volume::elsewhere(plain.clone(), None).unwrap().cipher().is_none());
        let error = Volume::elsewhere(plain, Some(&key)).unwrap_err();
        assert!(matches!(error, VolumeError::NotEncrypted { .. }), "{error}");
    }

    #[test]
    fn key_checks_do_not_show_that_two_volumes_share_a_key() {
        let key = XtsKey::generate().unwrap();
        let (_first_parent, first) = created(Some(&key));
        let (_second_parent, second) = created(Some(&key));
        let checks = [&first, &second]
            .map(|dir| Volume::open(dir, Some(&key), Access::Shared).unwrap().superblock().key_check.unwrap());
        assert_ne!(checks[0], checks[1]);
    }

    #[test]
    fn a_key_where_none_belongs_and_none_where_one_belongs_are_refused() {
        let key = XtsKey::generate().unwrap();
        let (_encrypted_parent, encrypted) = created(Some(&key));
        let (_plain_parent, plain) = created(None);
        let error = Volume::open(&encrypted, None, Access::Exclusive).unwrap_err();
        assert!(matches!(error, VolumeError::KeyNeeded { .. }), "{error}");
        let error = Volume::open(&plain, Some(&key), Access::Exclusive).unwrap_err();
        assert!(matches!(error, VolumeError::NotEncrypted { .. }), "{error}");
    }
}
