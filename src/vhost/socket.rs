//! The Unix socket that front ends connect to.
//!
//! A socket file that nobody listens on any more is replaced; one that somebody does listen on, or
//! a file that is no socket, is never touched. The file is removed when the listener goes.
//!
//! `bind` makes the file a moment before `listen` makes it answer. So that whoever waits for the
//! file can connect as soon as it is there, the socket is made under another name in the same
//! folder and moved into its place when it listens. Tools such as `ss` show that first name.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};

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
        let failed = |source| SocketError::Io { path: path.to_owned(), source };
        let draft = Draft::new(path)?;
        let identity = identity(&draft.path()).map_err(failed)?;
        match draft.publish(path) {
            Ok(listener) => Ok(Self { listener, path: path.to_owned(), identity }),
            // Somebody was quicker.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(SocketError::InUse { path: path.to_owned() })
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Whether [`bind`](Self::bind) would do now: for those who have much to do before, and leave nothing half done.
    ///
    /// # Errors
    ///
    /// As those of `bind`.
    pub fn probe(path: &Path) -> Result<(), SocketError> {
        Draft::new(path).map(drop)
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

/// A socket that listens, under a name that nobody knows.
struct Draft {
    listener: UnixListener,
    place: DraftPlace,
}

/// Where it lies until it is published. Nothing is there afterwards.
struct DraftPlace {
    folder: OwnedFd,
    name: String,
}

impl Draft {
    /// One for `path`, where nothing stands in its way.
    fn new(path: &Path) -> Result<Self, SocketError> {
        if path.as_os_str().as_bytes().len() > PATH_BYTES_MAX {
            return Err(SocketError::PathTooLong { path: path.to_owned() });
        }
        remove_stale(path)?;
        Self::listen(path).map_err(|source| SocketError::Io { path: path.to_owned(), source })
    }

    /// Listens in the folder of `path`.
    fn listen(path: &Path) -> io::Result<Self> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let name = format!(".sealblk-{:016x}", u64::from_ne_bytes(random));
        let listener = UnixListener::bind(path_in(&folder, &name))?;
        Ok(Self { listener, place: DraftPlace { folder, name } })
    }

    /// Where it lies for now.
    fn path(&self) -> PathBuf {
        path_in(&self.place.folder, &self.place.name)
    }

    /// Moves it to `path`, in the same folder, unless something is there.
    fn publish(self, path: &Path) -> io::Result<UnixListener> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let DraftPlace { folder, name: draft } = &self.place;
        rustix::fs::renameat_with(folder, draft, folder, name, RenameFlags::NOREPLACE)?;
        Ok(self.listener)
    }
}

impl Drop for DraftPlace {
    fn drop(&mut self) {
        // Its random name is nobody else's, and is gone once it was published.
        let _ = rustix::fs::unlinkat(&self.folder, &self.name, AtFlags::empty());
    }
}

/// A path that fits a socket address, however long that of the folder is.
fn path_in(folder: &OwnedFd, name: &str) -> PathBuf {
    format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()).into()
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
    fn a_probe_finds_what_would_be_in_the_way_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        Socket::probe(&path).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let missing = folder.path().join("missing/s");
        assert!(matches!(Socket::probe(&missing), Err(SocketError::Io { .. })));
        fs::write(&path, "kept").unwrap();
        assert!(matches!(Socket::probe(&path), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"kept");
        let socket = Socket::bind(&folder.path().join("other")).unwrap();
        assert!(matches!(Socket::probe(socket.path()), Err(SocketError::InUse { .. })));
        assert!(matches!(Socket::probe(&folder.path().join("x".repeat(200))), Err(SocketError::PathTooLong { .. })));
    }

    #[test]
    fn the_longest_path_works_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let room = PATH_BYTES_MAX - folder.path().as_os_str().len() - 1;
        for name in ["x".repeat(room), format!("{}/s", "x".repeat(room - 2))] {
            let path = folder.path().join(name);
            let parent = path.parent().unwrap().to_owned();
            fs::create_dir_all(&parent).unwrap();
            assert_eq!(path.as_os_str().len(), PATH_BYTES_MAX);
            let socket = Socket::bind(&path).unwrap();
            UnixStream::connect(&path).unwrap();
            socket.accept().unwrap();
            assert_eq!(fs::read_dir(&parent).unwrap().count(), 1);
            drop(socket);
            assert_eq!(fs::read_dir(&parent).unwrap().count(), 0);
        }
    }

    #[test]
    fn of_many_that_begin_at_once_one_wins_and_the_others_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let start = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            let bind = || {
                start.wait();
                let socket = Socket::bind(&path);
                start.wait();
                socket.is_ok()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(bind)).collect();
            let won = threads.into_iter().map(|thread| thread.join().unwrap()).filter(|won| *won).count();
            assert_eq!(won, 1);
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn whoever_finds_the_file_can_connect() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let turn = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..500 {
                    turn.wait();
                    let error = loop {
                        match UnixStream::connect(&path) {
                            Ok(_) => break None,
                            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                            Err(error) => break Some(error),
                        }
                    };
                    turn.wait();
                    assert!(error.is_none(), "round {round}: {error:?}");
                }
            });
            for _ in 0..500 {
                turn.wait();
                let socket = Socket::bind(&path).unwrap();
                turn.wait();
                drop(socket);
            }
        });
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
