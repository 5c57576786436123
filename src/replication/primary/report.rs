//! Telling other processes of this machine how a volume stands, and doing what they ask: a socket in the folder of
//! its copy.
//!
//! Whoever connects sends a [`Request`] as one line of JSON, and is answered as that says. The socket is for its
//! owner only. Each client has a thread, few at a time, which ends with the primary.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use serde::Serialize;

use super::request::{Refused, Request, VerifyLine, VerifyRequest};
use super::rounds::{self, End, Event, Owner};
use super::shared::Shared;
use super::status::Status;
use crate::replication::view::MemberIndex;
use crate::replication::writer::{Repair, RoundPlan};
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

    /// Attends to those who ask until the primary is closed.
    pub(super) fn run(self, shared: &Arc<Shared>) {
        let running = AtomicUsize::new(0);
        thread::scope(|scope| {
            while !shared.is_closing() {
                let pause = Timespec { tv_sec: 0, tv_nsec: PAUSE.as_nanos() as i64 };
                let _ = rustix::event::poll(&mut [PollFd::new(&self.listener, PollFlags::IN)], Some(&pause));
                let Ok((stream, _)) = self.listener.accept() else { continue };
                if running.fetch_add(1, Ordering::AcqRel) >= CLIENTS_MAX {
                    running.fetch_sub(1, Ordering::AcqRel);
                    let _ = say(&stream, &Refused { refused: "too many ask at a time: try again".to_owned() });
                    continue;
                }
                let (path, running) = (&self.path, &running);
                let attend = move || {
                    if let Err(error) = answer(&stream, shared) {
                        log::debug!("{}: {error}", path.display());
                    }
                    running.fetch_sub(1, Ordering::AcqRel);
                };
                if let Err(error) = thread::Builder::new().name("client".to_owned()).spawn_scoped(scope, attend) {
                    running.fetch_sub(1, Ordering::AcqRel);
                    log::warn!("{}: {error}", path.display());
                }
            }
        });
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
    let Some(stream) = send(dir, &Request::Status, TIMEOUT)? else { return Ok(None) };
    let mut line = String::new();
    BufReader::new((&stream).take(LINE_BYTES_MAX)).read_line(&mut line)?;
    understand(&line).map(Some)
}

/// Asks the process that serves the copy in `dir` to compare the copies of its volume, and hears what comes of it; none
/// if nobody serves it. It ends when the outcome is told, or nobody listens.
///
/// # Errors
///
/// What the operating system says; also for an answer that is none.
pub fn verify(
    dir: &Path,
    request: VerifyRequest,
    mut hear: impl FnMut(VerifyLine) -> io::Result<()>,
) -> io::Result<Option<()>> {
    let Some(stream) = send(dir, &Request::Verify(request), LONG_TIMEOUT)? else { return Ok(None) };
    let mut reader = BufReader::new(&stream);
    loop {
        let mut line = String::new();
        (&mut reader).take(LINE_BYTES_MAX).read_line(&mut line)?;
        let line: VerifyLine = understand(&line)?;
        let is_last = matches!(line, VerifyLine::Outcome(_) | VerifyLine::Refused(_));
        hear(line)?;
        if is_last {
            return Ok(Some(()));
        }
    }
}

fn send(dir: &Path, request: &Request, timeout: Duration) -> io::Result<Option<UnixStream>> {
    let stream = match connect_to_owner(dir, SOCKET_FILE) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        stream => stream?,
    };
    stream.set_read_timeout(Some(timeout))?;
    say(&stream, request)?;
    Ok(Some(stream))
}

fn understand<T: serde::de::DeserializeOwned>(line: &str) -> io::Result<T> {
    if line.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has ended without an answer"));
    }
    serde_json::from_str(line).map_err(|error| match serde_json::from_str::<Refused>(line) {
        Ok(Refused { refused }) => io::Error::other(refused),
        Err(_) => error.into(),
    })
}

/// Does what a client asks.
fn answer(stream: &UnixStream, shared: &Arc<Shared>) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut line = String::new();
    BufReader::new(stream.take(REQUEST_BYTES_MAX)).read_line(&mut line)?;
    match serde_json::from_str(&line) {
        Ok(Request::Status) => say(stream, &shared.look(|state| Status::of(&state.writer))),
        Ok(Request::Verify(request)) => answer_verify(stream, shared, &request),
        Err(error) => say(stream, &Refused { refused: format!("not a request: {error}") }),
    }
}

fn answer_verify(stream: &UnixStream, shared: &Arc<Shared>, request: &VerifyRequest) -> io::Result<()> {
    let refuse = |why: String| say(stream, &VerifyLine::Refused(why));
    let member =
        |name: &str| shared.look(|state| state.writer.view().members.iter().position(|m| m.node.as_str() == name));
    let repair = match &request.trust {
        None if request.repair => Repair::Majority,
        None => Repair::None,
        Some(_) if !request.repair => return refuse("a copy is trusted only to repair the others".to_owned()),
        Some(name) => match member(name) {
            Some(index) => Repair::Trust(MemberIndex(index as u8)),
            None => return refuse(format!("node {name} has no copy of the volume")),
        },
    };
    let rate = request.rate.unwrap_or(RATE_DEFAULT);
    let size = shared.look(|state| state.writer.regions().size_bytes());
    let ended = rounds::run(shared, Owner::Client, RoundPlan { from: 0, repair, rate }, |event| {
        let line = match event {
            Event::Position(position) => VerifyLine::Progress { position, size },
            Event::Found(found) => VerifyLine::Found(found),
        };
        say(stream, &line).is_ok()
    });
    match ended {
        Ok(End::Done(outcome)) => say(stream, &VerifyLine::Outcome(outcome)),
        Ok(End::GivenUp(_)) => refuse("the process that serves the volume ends".to_owned()),
        Err(error) => refuse(error.to_string()),
    }
}

fn say(stream: &UnixStream, what: &impl Serialize) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut stream = stream;
    stream.write_all((serde_json::to_string(what)? + "\n").as_bytes())
}

const SOCKET_FILE: &str = "writer.sock";
/// How often the end of the primary is looked for.
const PAUSE: Duration = Duration::from_millis(250);
const TIMEOUT: Duration = Duration::from_secs(2);
/// Between two lines about a comparison.
const LONG_TIMEOUT: Duration = Duration::from_secs(30);
const LINE_BYTES_MAX: u64 = 1 << 20;
const REQUEST_BYTES_MAX: u64 = 1 << 16;
const CLIENTS_MAX: usize = 8;
/// For who asks without a rate: the guest's writes are felt long before.
const RATE_DEFAULT: u64 = 1 << 30;
