//! What other processes of this machine ask of the one that serves a volume: a socket in the folder of its copy.
//!
//! Whoever connects asks for one thing (see [`request`](super::request)), and is answered in lines of JSON; who asks
//! for nothing is sent the [`Status`]. The socket is for its owner only. Each conversation has a thread of its own, for
//! some of what is asked takes its time.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use serde::Serialize;

use super::members::Members;
use super::request::{Outcome, OwnerRequest};
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

    /// Answers those who ask until the primary is closed.
    pub(super) fn run(self, shared: &Arc<Shared>, members: &Arc<Members>) {
        let talking = Arc::new(());
        while !shared.is_closing() {
            let pause = Timespec { tv_sec: 0, tv_nsec: PAUSE.as_nanos() as i64 };
            let _ = rustix::event::poll(&mut [PollFd::new(&self.listener, PollFlags::IN)], Some(&pause));
            if let Ok((stream, _)) = self.listener.accept() {
                if Arc::strong_count(&talking) > CONVERSATIONS_MAX {
                    // It finds the connection ended, and may ask again.
                    continue;
                }
                let (shared, members, talking) = (shared.clone(), members.clone(), talking.clone());
                let talk = move || {
                    if let Err(error) = answer(&stream, &shared, &members) {
                        log::debug!("a request of another process: {error}");
                    }
                    drop(talking);
                };
                if let Err(error) = thread::Builder::new().name("owner".to_owned()).spawn(talk) {
                    log::error!("no thread to answer another process: {error}");
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
    let Some(line) = converse(dir, &OwnerRequest::Status, TIMEOUT)? else { return Ok(None) };
    Ok(Some(serde_json::from_str(&line)?))
}

/// Has the process that serves the copy in `dir` change something; how that ended, or none if nobody serves it.
///
/// # Errors
///
/// As [`ask`].
pub fn order(dir: &Path, request: &OwnerRequest) -> io::Result<Option<Outcome>> {
    let Some(line) = converse(dir, request, ORDER_TIMEOUT)? else { return Ok(None) };
    if line.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the process has ended before it had answered"));
    }
    Ok(Some(serde_json::from_str(&line)?))
}

/// Asks for one thing; the first line of the answer.
fn converse(dir: &Path, request: &OwnerRequest, timeout: Duration) -> io::Result<Option<String>> {
    let mut stream = match connect_to_owner(dir, SOCKET_FILE) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        stream => stream?,
    };
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(&line_of(request)?)?;
    let mut line = String::new();
    BufReader::new((&stream).take(STATUS_BYTES_MAX)).read_line(&mut line)?;
    Ok(Some(line))
}

/// Reads what is asked, does it, and says how it ended.
fn answer(stream: &UnixStream, shared: &Arc<Shared>, members: &Members) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.set_read_timeout(Some(ASKING_TIME))?;
    let outcome = match read_request(stream)? {
        Ok(OwnerRequest::Status) => {
            let status = shared.look(|state| Status::of(&state.writer));
            return { stream }.write_all(&line_of(&status)?);
        }
        Ok(OwnerRequest::AddMember { node, address }) => {
            members.add(shared, &node, &address).map_err(|e| e.to_string())
        }
        Ok(OwnerRequest::RemoveMember { node }) => members.remove(shared, &node).map_err(|e| e.to_string()),
        Err(reason) => Err(reason),
    };
    let outcome = outcome.map_or_else(|reason| Outcome::Failed { reason }, |()| Outcome::Done);
    { stream }.write_all(&line_of(&outcome)?)
}

/// What is asked, or what is wrong with it. Who says nothing asks how the volume stands.
fn read_request(stream: &UnixStream) -> io::Result<Result<OwnerRequest, String>> {
    let mut line = Vec::new();
    let read = BufReader::new(stream.take(REQUEST_BYTES_MAX)).read_until(b'\n', &mut line);
    match read {
        Ok(_) => {}
        Err(error)
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) && line.is_empty() => {}
        Err(error) => return Err(error),
    }
    if line.is_empty() {
        return Ok(Ok(OwnerRequest::Status));
    }
    Ok(serde_json::from_slice(&line).map_err(|error| format!("the request cannot be understood: {error}")))
}

fn line_of(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

const SOCKET_FILE: &str = "writer.sock";
/// How often the end of the primary is looked for.
const PAUSE: Duration = Duration::from_millis(250);
const TIMEOUT: Duration = Duration::from_secs(2);
const STATUS_BYTES_MAX: u64 = 1 << 20;
/// How long a change may take, as the one who asks for it sees it: longer than it does as the other one does.
const ORDER_TIMEOUT: Duration = Duration::from_secs(120);
/// How long somebody may take to say what is wanted.
const ASKING_TIME: Duration = Duration::from_millis(500);
const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// How many may talk at a time.
const CONVERSATIONS_MAX: usize = 16;
