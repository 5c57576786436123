//! Telling other processes of this machine how a volume stands: a socket in the folder of its copy, or without a
//! copy beside the socket of the guest's monitor.
//!
//! Whoever connects is sent the [`Status`] as one line of JSON. The socket is for its owner only.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::shared::Shared;
use super::status::Status;
use crate::store::{connect_to_owner, listen_as_owner};

/// The socket. Its file is removed when it goes.
pub(super) struct Reporter {
    listener: UnixListener,
    path: PathBuf,
}

impl Reporter {
    /// Listens in the folder of a copy, of which the caller holds the lock.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub(super) fn listen(dir: &Path) -> io::Result<Reporter> {
        let listener = listen_as_owner(dir, SOCKET_FILE)?;
        let path = dir.join(SOCKET_FILE);
        Ok(Reporter { listener, path })
    }

    /// Listens beside a socket, of which no more is used than its path. One that somebody listens on is left alone.
    ///
    /// # Errors
    ///
    /// What the operating system says; `AddrInUse` if somebody does.
    pub(super) fn listen_beside(socket: &Path) -> io::Result<Reporter> {
        let (dir, name) = beside(socket)?;
        match connect_to_owner(&dir, &name) {
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(error) if is_nobody(&error) => {}
            Err(error) => return Err(error),
        }
        let listener = listen_as_owner(&dir, &name)?;
        Ok(Reporter { listener, path: dir.join(name) })
    }

    /// Tells those who ask until the primary is closed.
    pub(super) fn run(self, shared: &Arc<Shared>) {
        while !shared.is_closing() {
            let pause = Timespec { tv_sec: 0, tv_nsec: PAUSE.as_nanos() as i64 };
            let _ = rustix::event::poll(&mut [PollFd::new(&self.listener, PollFlags::IN)], Some(&pause));
            if let Ok((stream, _)) = self.listener.accept() {
                let status = shared.look(|state| Status::of(&state.writer));
                if let Err(error) = tell(&stream, &status) {
                    log::debug!("{}: {error}", self.path.display());
                }
            }
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Asks the process that serves the copy in `dir` how its volume stands; none if nobody serves it.
///
/// # Errors
///
/// What the operating system says; also for an answer that is none.
pub fn ask(dir: &Path) -> io::Result<Option<Status>> {
    ask_at(dir, SOCKET_FILE)
}

/// Asks the process that serves a volume without a copy to the guest's monitor at `socket`; none if nobody does.
///
/// # Errors
///
/// As those of [`ask`].
pub fn ask_beside(socket: &Path) -> io::Result<Option<Status>> {
    let (dir, name) = beside(socket)?;
    ask_at(&dir, &name)
}

/// Where the socket is for those who ask, if there is no copy: its folder and its name.
pub(super) fn beside(socket: &Path) -> io::Result<(PathBuf, String)> {
    let name = socket.file_name().map(OsString::from).and_then(|name| name.into_string().ok());
    let name = name.ok_or(io::ErrorKind::InvalidInput)?;
    let dir = match socket.parent() {
        Some(dir) if dir != Path::new("") => dir.to_owned(),
        _ => PathBuf::from("."),
    };
    Ok((dir, name + SUFFIX))
}

fn ask_at(dir: &Path, name: &str) -> io::Result<Option<Status>> {
    let stream = match connect_to_owner(dir, name) {
        Err(error) if is_nobody(&error) => return Ok(None),
        stream => stream?,
    };
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut line = String::new();
    BufReader::new((&stream).take(STATUS_BYTES_MAX)).read_line(&mut line)?;
    Ok(Some(serde_json::from_str(&line)?))
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn tell(stream: &UnixStream, status: &Status) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut stream = stream;
    stream.write_all((serde_json::to_string(status)? + "\n").as_bytes())
}

const SOCKET_FILE: &str = "writer.sock";
/// What is added to the name of the monitor's socket.
const SUFFIX: &str = ".writer";
/// How often the end of the primary is looked for.
const PAUSE: Duration = Duration::from_millis(250);
const TIMEOUT: Duration = Duration::from_secs(2);
const STATUS_BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_in_the_working_folder_has_one_beside_it() {
        assert_eq!(beside(Path::new("disk.sock")).unwrap(), (".".into(), "disk.sock.writer".to_owned()));
        assert_eq!(beside(Path::new("/run/vm/a")).unwrap(), ("/run/vm".into(), "a.writer".to_owned()));
        assert!(beside(Path::new("/")).is_err());
    }

    #[test]
    fn one_that_somebody_listens_on_is_left_alone_and_a_dead_one_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("disk.sock");
        assert!(ask_beside(&socket).unwrap().is_none());
        let reporter = Reporter::listen_beside(&socket).unwrap();
        let second = Reporter::listen_beside(&socket).map(drop).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        drop(reporter);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        // As a process leaves it that is killed.
        drop(listen_as_owner(folder.path(), "disk.sock.writer").unwrap());
        assert!(ask_beside(&socket).unwrap().is_none(), "nobody listens there any more");
        Reporter::listen_beside(&socket).unwrap();
    }
}
