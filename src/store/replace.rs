//! Replacing a small file, so that after a crash at any moment the old or the new one is found.
//!
//! The order is: write under a temporary name, fsync, rename, fsync the folder. What fails before the
//! rename leaves the old file in force. What fails from the rename on leaves it open which of the two
//! a crash would bring back, and the error says so.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Puts `content` into the file `name` of a folder, whether the file exists or not. Only one caller at a
/// time may do this for one file: the temporary name is `name` with `.new` behind it.
///
/// # Errors
///
/// [`ReplaceError`], which tells whether the old file is certainly still in force.
pub fn replace(dir: &Path, name: &str, content: &[u8]) -> Result<(), ReplaceError> {
    let path = dir.join(name);
    let new_path = dir.join(format!("{name}{NEW_SUFFIX}"));
    let write_new = || {
        let folder = File::open(dir)?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new_path)?;
        file.write_all(content)?;
        file.sync_all()?;
        Ok(folder)
    };
    let folder: File = write_new().map_err(|source| ReplaceError::Untouched { path: new_path.clone(), source })?;
    let install = || {
        std::fs::rename(&new_path, &path)?;
        folder.sync_all()
    };
    install().map_err(|source| ReplaceError::Uncertain { path: path.clone(), source })
}

/// Why a file was not, or perhaps not, replaced.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// The old file is in force.
    #[error("cannot write {}: {source}: make room there or repair the disk", .path.display())]
    Untouched {
        /// The file under its temporary name.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The old or the new file is in force, and a crash may bring back the other.
    #[error("cannot make the new {} durable: {source}: repair the disk", .path.display())]
    Uncertain {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

const NEW_SUFFIX: &str = ".new";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_made_and_replaced_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("record.new"), b"left over by a crash, and longer").unwrap();
        for content in [b"first".as_slice(), b"2nd", b""] {
            replace(dir.path(), "record", content).unwrap();
            assert_eq!(std::fs::read(dir.path().join("record")).unwrap(), content);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn the_error_tells_whether_the_old_file_still_stands() {
        let dir = tempfile::tempdir().unwrap();
        let error = replace(&dir.path().join("absent"), "record", b"").unwrap_err();
        assert!(matches!(error, ReplaceError::Untouched { .. }), "{error}");

        // A file cannot be renamed over a folder.
        std::fs::create_dir(dir.path().join("record")).unwrap();
        let error = replace(dir.path(), "record", b"").unwrap_err();
        assert!(matches!(error, ReplaceError::Uncertain { .. }), "{error}");
        assert!(error.to_string().contains("record"));
    }
}
