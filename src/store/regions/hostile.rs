//! A region table with any content.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::block::{BLOCK_BYTES, Header, seal};
use super::{Medium, RegionTable, RegionTableError, VIEW_MAX, first_header, read_header};

/// Loads `bytes` as a table, as they are and with blocks whose checksums are right. Whether one of both is taken.
///
/// # Panics
///
/// When a table that was taken is another one after it was loaded again, or after a change.
pub fn read_hostile(bytes: &[u8]) -> bool {
    let mut sealed = bytes[..bytes.len().min(IMAGE_BYTES_MAX)].to_vec();
    let (blocks, _) = sealed.as_chunks_mut::<BLOCK_BYTES>();
    for (place, block) in (0..).zip(blocks) {
        seal(block, place);
    }
    load(bytes.to_vec()) | load(sealed)
}

fn load(image: Vec<u8>) -> bool {
    let image = Arc::new(Mutex::new(image));
    // Whoever opens a table knows what it is to be of: what it says itself.
    let Ok((Header { volume, region_bytes, count, .. }, _)) = read_header(&Image(image.clone()), &PathBuf::new())
    else {
        return false;
    };
    let Ok(expected) = first_header(volume, region_bytes, count) else { return false };
    let load = || RegionTable::load(Box::new(Image(image.clone())), PathBuf::new(), expected);
    let Ok(mut table) = load() else { return false };
    assert!(table.accepted() <= VIEW_MAX && table.rows().len() == count as usize);
    let assert_loaded = |table: &RegionTable| {
        let again = load().expect("a table that was loaded has been written anew");
        assert_eq!((again.accepted(), again.rows()), (table.accepted(), table.rows()));
    };
    assert_loaded(&table);
    let next = table.accepted().saturating_add(1).min(VIEW_MAX);
    let last = count.checked_sub(1).map(|region| (region, next << 1));
    match table.set_accepted(next, last.as_slice()) {
        Ok(()) => {}
        Err(RegionTableError::Damaged { .. }) if table.header.generation == u64::MAX => {}
        Err(error) => panic!("a higher view is not accepted: {error}"),
    }
    assert_loaded(&table);
    true
}

/// A file in memory.
#[derive(Debug)]
struct Image(Arc<Mutex<Vec<u8>>>);

impl Image {
    fn with<T>(&self, offset: u64, len: usize, act: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let range = start..start.saturating_add(len);
        bytes.get_mut(range).map(act).ok_or(io::ErrorKind::UnexpectedEof.into())
    }
}

impl Medium for Image {
    fn length_bytes(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).len() as u64)
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(offset, bytes.len(), |there| bytes.copy_from_slice(there))
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with(offset, bytes.len(), |there| there.copy_from_slice(bytes))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Larger ones have nothing that these have not.
const IMAGE_BYTES_MAX: usize = 16 * BLOCK_BYTES;

/// Tables as they are written: one without rows, and one with some.
#[cfg(test)]
pub fn seeds() -> [(&'static str, Vec<u8>); 2] {
    use uuid::Uuid;

    [("regions-empty", 0), ("regions", 100)].map(|(name, count)| {
        let dir = tempfile::tempdir().unwrap();
        let mut table = RegionTable::create(dir.path(), Uuid::from_bytes([7; 16]), 4 << 20, count).unwrap();
        let rows: Vec<(u32, u64)> = [(0, 13), (70, 12)].into_iter().filter(|&(region, _)| region < count).collect();
        table.set_accepted(6, &rows).unwrap();
        (name, std::fs::read(dir.path().join(super::REGIONS_FILE)).unwrap())
    })
}
