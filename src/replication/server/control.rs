//! The socket through which others on this node speak with the replica: `.control` in the folder of the copies.
//!
//! Whoever is to serve a volume directly sends `release UUID` and a newline, and gets `ok` when the copy is
//! closed and its lock free, or one line that says why not. Who sends `status` gets a line of JSON. The socket is for
//! its owner only. It is listened on by the thread that takes connections in, so an answer says that this goes on.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use uuid::Uuid;

use super::House;
use super::admission::volume_of;
use super::copies::Copies;
use super::status::ReplicaStatus;
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
    pub fn accept(&self, house: &Arc<House>) {
        while self.running.load(Ordering::Acquire) < CALLERS_MAX {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return log::warn!("{}: {error}", self.path.display()),
            };
            self.running.fetch_add(1, Ordering::AcqRel);
            let running = Running(self.running.clone());
            let house = house.clone();
            let spawned = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
                let _running = running;
                if let Err(error) = answer(stream, &house) {
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
    let question = format!("release {}", volume.hyphenated());
    let Some(line) = ask(root, &question, RELEASE_PATIENCE + TIMEOUT)? else { return Ok(false) };
    if line == "ok" { Ok(true) } else { Err(refusal(&line)) }
}

/// Asks the replica that has its copies below `root` how it stands. None if none runs.
///
/// # Errors
///
/// What the operating system says, or that the answer is none.
pub fn ask_for_status(root: &Path) -> io::Result<Option<ReplicaStatus>> {
    let Some(line) = ask(root, "status", TIMEOUT)? else { return Ok(None) };
    serde_json::from_str(&line).map(Some).map_err(|_| refusal(&line))
}

/// What the replica answers; none if there is none.
fn ask(root: &Path, question: &str, patience: Duration) -> io::Result<Option<String>> {
    let stream = match connect_to_owner(root, CONTROL_FILE) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        stream => stream?,
    };
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    (&stream).write_all(format!("{question}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new((&stream).take(ANSWER_BYTES_MAX)).read_line(&mut line)?;
    Ok(Some(line.trim_end().to_owned()))
}

fn refusal(line: &str) -> io::Error {
    io::Error::other(line.strip_prefix("error: ").unwrap_or("the replica did not answer").to_owned())
}

fn answer(stream: UnixStream, house: &House) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut line = String::new();
    BufReader::new((&stream).take(LINE_BYTES_MAX)).read_line(&mut line)?;
    let text = match line.strip_suffix('\n').unwrap_or_default() {
        "status" => serde_json::to_string(&ReplicaStatus::of(house, SystemTime::now()))?,
        question => match question.strip_prefix("release ").and_then(volume_of) {
            Some(volume) => release(&house.copies, volume),
            None => "error: ask `release UUID` or `status`".to_owned(),
        },
    };
    (&stream).write_all(format!("{text}\n").as_bytes())
}

fn release(copies: &Copies, volume: Uuid) -> String {
    match copies.release(volume, Instant::now() + RELEASE_PATIENCE) {
        Ok(()) => {
            log::info!("volume {volume}: released for another process");
            "ok".to_owned()
        }
        Err(_) => "error: the copy is still in use: try again".to_owned(),
    }
}

const CONTROL_FILE: &str = ".control";
const CALLERS_MAX: usize = 8;
const LINE_BYTES_MAX: u64 = 128;
/// Some 20,000 copies.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
const TIMEOUT: Duration = Duration::from_secs(5);
const RELEASE_PATIENCE: Duration = Duration::from_secs(15);
