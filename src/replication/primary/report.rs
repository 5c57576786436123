//! Telling other processes of this machine how a volume stands: a socket in the folder of its copy.
//!
//! Whoever connects is sent the [`Status`] as one line of JSON. The socket is for its owner only.

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
    let stream = match connect_to_owner(dir, SOCKET_FILE) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        stream => stream?,
    };
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut line = String::new();
    BufReader::new((&stream).take(STATUS_BYTES_MAX)).read_line(&mut line)?;
    Ok(Some(serde_json::from_str(&line)?))
}

fn tell(stream: &UnixStream, status: &Status) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut stream = stream;
    stream.write_all((serde_json::to_string(status)? + "\n").as_bytes())
}

const SOCKET_FILE: &str = "writer.sock";
/// How often the end of the primary is looked for.
const PAUSE: Duration = Duration::from_millis(250);
const TIMEOUT: Duration = Duration::from_secs(2);
const STATUS_BYTES_MAX: u64 = 1 << 20;
