//! The socket through which others on this node ask for a copy: `.control` in the folder of the copies.
//!
//! Whoever is to serve a volume directly sends `release UUID` and a newline, and gets `ok` when the copy is
//! closed and its lock free, or one line that says why not. The socket is for its owner only.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::admission::volume_of;
use super::copies::Copies;
use crate::store::{connect_to_owner, listen_as_owner};

/// The listening socket. The file is removed when it goes.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
    running: Arc<AtomicUsize>,
}

impl Control {
    /// Listens in `root`, for the only replica there: the caller holds its lock, so that a socket which is
    /// there already is nobody's.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn listen(root: &Path) -> io::Result<Control> {
        let listener = listen_as_owner(root, CONTROL_FILE)?;
        let path = root.join(CONTROL_FILE);
        Ok(Control { listener, path, running: Arc::default() })
    }

    /// Attends to those who are there, each on a thread of its own, few at a time.
    pub fn accept(&self, copies: &Arc<Copies>) {
        while self.running.load(Ordering::Acquire) < CALLERS_MAX {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return log::warn!("{}: {error}", self.path.display()),
            };
            self.running.fetch_add(1, Ordering::AcqRel);
            let running = Running(self.running.clone());
            let copies = copies.clone();
            let spawned = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
                let _running = running;
                if let Err(error) = answer(stream, &copies) {
                    log::warn!("control socket: {error}");
                }
            });
            if let Err(error) = spawned {
                log::warn!("{}: {error}", self.path.display());
            }
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Asks the replica that has its copies below `root`, if one runs there, to give a volume's copy up. False if
/// none runs.
///
/// # Errors
///
/// What the operating system says, or the replica's reason.
pub fn ask_for(root: &Path, volume: Uuid) -> io::Result<bool> {
    let stream = match connect_to_owner(root, CONTROL_FILE) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(false);
        }
        stream => stream?,
    };
    stream.set_read_timeout(Some(RELEASE_PATIENCE + TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    (&stream).write_all(format!("release {}\n", volume.hyphenated()).as_bytes())?;
    let mut line = String::new();
    BufReader::new((&stream).take(LINE_BYTES_MAX)).read_line(&mut line)?;
    match line.trim_end() {
        "ok" => Ok(true),
        refusal => {
            Err(io::Error::other(refusal.strip_prefix("error: ").unwrap_or("the replica did not answer").to_owned()))
        }
    }
}

fn answer(stream: UnixStream, copies: &Copies) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut line = String::new();
    BufReader::new((&stream).take(LINE_BYTES_MAX)).read_line(&mut line)?;
    let text = match line.strip_suffix('\n').and_then(|line| line.strip_prefix("release ")).and_then(volume_of) {
        Some(volume) => match copies.release(volume, Instant::now() + RELEASE_PATIENCE) {
            Ok(()) => {
                log::info!("volume {volume}: released for another process");
                "ok\n".to_owned()
            }
            Err(_) => "error: the copy is still in use: try again\n".to_owned(),
        },
        None => "error: ask `release UUID`\n".to_owned(),
    };
    (&stream).write_all(text.as_bytes())
}

const CONTROL_FILE: &str = ".control";
const CALLERS_MAX: usize = 8;
const LINE_BYTES_MAX: u64 = 128;
const TIMEOUT: Duration = Duration::from_secs(5);
const RELEASE_PATIENCE: Duration = Duration::from_secs(15);
