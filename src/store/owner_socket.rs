//! A socket in a folder of which the caller holds the lock, for processes of the same owner.
//!
//! The address of a socket has room for 107 bytes, which the path of a folder may well exceed: the folder is opened,
//! and the socket named by its descriptor.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Listens on `name` in the folder `dir`, without waiting at `accept`. As the caller holds the folder's lock, a
/// socket that is there already is nobody's, and is replaced.
///
/// # Errors
///
/// What the operating system says.
pub fn listen_as_owner(dir: &Path, name: &str) -> io::Result<UnixListener> {
    let folder = open(dir)?;
    let (path, draft) = (within(&folder, name), within(&folder, &format!("{name}.new")));
    for stale in [&path, &draft] {
        match fs::remove_file(stale) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    // Under another name until only its owner can use it.
    let listener = UnixListener::bind(&draft)?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o600))?;
    fs::rename(&draft, &path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connects to `name` in the folder `dir`.
///
/// # Errors
///
/// What the operating system says: `NotFound` and `ConnectionRefused` when nobody listens.
pub fn connect_to_owner(dir: &Path, name: &str) -> io::Result<UnixStream> {
    UnixStream::connect(within(&open(dir)?, name))
}

fn open(dir: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir)
}

fn within(folder: &File, name: &str) -> PathBuf {
    format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_may_have_a_path_that_is_longer_than_the_address_of_a_socket() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("d".repeat(200));
        fs::create_dir(&long).unwrap();
        assert_eq!(connect_to_owner(&long, "s").unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = listen_as_owner(&long, "s").unwrap();
        let _client = connect_to_owner(&long, "s").unwrap();
        listener.accept().unwrap();
        drop(listener);
        assert_eq!(connect_to_owner(&long, "s").unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_socket_is_its_owners_and_takes_the_place_of_a_dead_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(listen_as_owner(folder.path(), "s").unwrap());
        assert!(UnixStream::connect(&path).is_err(), "nobody listens there any more");
        let listener = listen_as_owner(folder.path(), "s").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let _client = UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
