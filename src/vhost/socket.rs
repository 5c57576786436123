//! The Unix socket that front ends connect to.
//!
//! A socket file that nobody listens on any more is replaced; one that somebody does listen on, or
//! a file that is no socket, is never touched. The file is removed when the listener goes.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path does not fit `sockaddr_un` (unix(7)).
    #[error(
        "socket {}: the path has {} bytes and a socket address holds {PATH_BYTES_MAX}: choose a shorter path, for \
         example relative to the working folder",
        path.display(), path.as_os_str().len()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("socket {}: there is a file that is no socket: move it away or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Another process listens there.
    #[error("socket {}: another process listens on it: stop that one or choose another path", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The host refused it.
    #[error("socket {}: {source}: check that its folder exists and can be written", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
}

/// A listening socket.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, to remove no other.
    identity: (u64, u64),
}

impl Socket {
    /// Listens at `path`.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        if path.as_os_str().as_bytes().len() > PATH_BYTES_MAX {
            return Err(SocketError::PathTooLong { path: path.to_owned() });
        }
        let failed = |source| SocketError::Io { path: path.to_owned(), source };
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        let identity = identity(path).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned(), identity })
    }

    /// Takes the next connection, waiting for it.
    pub fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept()?.0)
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Another process may have put its own socket there since: leave that one.
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Io { path: path.to_owned(), source };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        Err(error) => Err(failed(error)),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// `sun_path` of Linux holds 108 bytes, one of which ends the path.
const PATH_BYTES_MAX: usize = 107;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = Socket::bind(&path).unwrap();
        assert!(matches!(Socket::bind(&path), Err(SocketError::InUse { .. })));
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn other_files_and_long_paths_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Socket::bind(&path), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let long = folder.path().join("x".repeat(108));
        assert!(matches!(Socket::bind(&long), Err(SocketError::PathTooLong { .. })));
        let missing = folder.path().join("none/s");
        assert!(matches!(Socket::bind(&missing), Err(SocketError::Io { .. })));
    }

    #[test]
    fn a_socket_that_took_its_place_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let first = Socket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = UnixListener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }
}
