//! The record of the view that a copy accepted last: `view.json` in the volume's folder.
//!
//! What a view is belongs to the rooms above; here it is bytes. The region table holds the number of the
//! accepted view and decides what is refused. This record only tells a process that starts again what
//! that view said, so a caller replaces it **before** it raises the number: the record may then be of a
//! later view than the one accepted, and never of an earlier one.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::StoreError;
use super::replace::{ReplaceError, replace};

/// The most bytes of a record.
pub const VIEW_RECORD_BYTES_MAX: usize = 64 * 1024;

/// The content of `view.json` in the folder of a volume; none if no view was ever recorded.
///
/// # Errors
///
/// [`StoreError::Io`] when the file cannot be read, or is too long to be a record.
pub fn read_view_record(dir: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let path = dir.join(VIEW_RECORD_FILE);
    let read = || {
        let mut content = Vec::new();
        let limit = VIEW_RECORD_BYTES_MAX as u64 + 1;
        File::open(&path)?.take(limit).read_to_end(&mut content)?;
        if content.len() > VIEW_RECORD_BYTES_MAX { Err(too_long(io::ErrorKind::InvalidData)) } else { Ok(content) }
    };
    match read() {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io(&path, "read")(error)),
    }
}

/// Replaces `view.json`, durably: after a crash at any moment the old or the new record is found. The
/// caller holds the [`Store`](super::Store) of the folder exclusively.
///
/// # Errors
///
/// [`StoreError::Io`] when a file cannot be written; the old or the new record then stands.
pub fn replace_view_record(dir: &Path, record: &[u8]) -> Result<(), StoreError> {
    if record.len() > VIEW_RECORD_BYTES_MAX {
        let error = too_long(io::ErrorKind::InvalidInput);
        return Err(StoreError::io(&dir.join(VIEW_RECORD_FILE), "write")(error));
    }
    replace(dir, VIEW_RECORD_FILE, record).map_err(|error| match error {
        ReplaceError::Untouched { path, source } => StoreError::Io { action: "write", path, source },
        ReplaceError::Uncertain { path, source } => StoreError::Io { action: "replace", path, source },
    })
}

fn too_long(kind: io::ErrorKind) -> io::Error {
    io::Error::new(kind, format!("it has more than {VIEW_RECORD_BYTES_MAX} bytes"))
}

const VIEW_RECORD_FILE: &str = "view.json";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_record_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_view_record(dir.path()).unwrap(), None);
        for record in [b"{\"number\": 1}".to_vec(), vec![b' '; VIEW_RECORD_BYTES_MAX], b"{}".to_vec()] {
            replace_view_record(dir.path(), &record).unwrap();
            assert_eq!(read_view_record(dir.path()).unwrap(), Some(record));
        }
    }

    #[test]
    fn what_is_too_long_is_neither_written_nor_read() {
        let dir = tempfile::tempdir().unwrap();
        replace_view_record(dir.path(), b"old").unwrap();
        let long = vec![b' '; VIEW_RECORD_BYTES_MAX + 1];
        let error = replace_view_record(dir.path(), &long).unwrap_err();
        assert!(error.to_string().contains("view.json"), "{error}");
        assert_eq!(read_view_record(dir.path()).unwrap(), Some(b"old".to_vec()));

        std::fs::write(dir.path().join(VIEW_RECORD_FILE), long).unwrap();
        assert!(read_view_record(dir.path()).is_err());
    }
}
