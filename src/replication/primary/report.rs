//! What other processes of this machine ask of the one that serves a volume: a socket in the folder of its copy, or
//! without a copy beside the socket of the guest's monitor.
//!
//! Whoever connects asks for one thing (see [`request`](super::request)), and is answered in lines of JSON; who asks
//! for nothing is sent the [`Status`]. The socket is for its owner only. Each client has a thread, few at a time, which
//! ends with the primary.

use std::ffi::OsString;
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

use super::members::Members;
use super::request::{Outcome, OwnerRequest, Refused, VerifyLine, VerifyRequest};
use super::rounds::{self, End, Event, Owner};
use super::shared::Shared;
use super::status::Status;
use crate::replication::view::NodeName;
use crate::replication::writer::{Repair, RoundPlan};
use crate::store::{connect_to_owner, listen_as_owner};

/// The socket. Its file is removed when it goes.
pub(super) struct Reporter {
    listener: UnixListener,
    path: PathBuf,
    /// The socket beside which it is to listen when the copy is none any more.
    next: Option<PathBuf>,
}

impl Reporter {
    /// Listens in the folder of a copy, of which the caller holds the lock; and beside `socket` when that copy has been
    /// removed.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub(super) fn listen(dir: &Path, socket: Option<PathBuf>) -> io::Result<Reporter> {
        let listener = listen_as_owner(dir, SOCKET_FILE)?;
        let path = dir.join(SOCKET_FILE);
        Ok(Reporter { listener, path, next: socket })
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
        Ok(Reporter { listener, path: dir.join(name), next: None })
    }

    /// Attends to those who ask until the primary is closed.
    pub(super) fn run(mut self, shared: &Arc<Shared>, members: &Members) {
        let running = AtomicUsize::new(0);
        thread::scope(|scope| {
            while !shared.is_closing() {
                if shared.look(|state| state.local().is_none())
                    && let Some(socket) = self.next.take()
                {
                    self.move_beside(&socket);
                }
                let pause = Timespec { tv_sec: 0, tv_nsec: PAUSE.as_nanos() as i64 };
                let _ = rustix::event::poll(&mut [PollFd::new(&self.listener, PollFlags::IN)], Some(&pause));
                let Ok((stream, _)) = self.listener.accept() else { continue };
                if running.fetch_add(1, Ordering::AcqRel) >= CLIENTS_MAX {
                    running.fetch_sub(1, Ordering::AcqRel);
                    let _ = say(&stream, &Refused { refused: "too many ask at a time: try again".to_owned() });
                    continue;
                }
                let (path, running) = (self.path.clone(), &running);
                let attend = move || {
                    if let Err(error) = answer(&stream, shared, members) {
                        log::debug!("{}: {error}", path.display());
                    }
                    running.fetch_sub(1, Ordering::AcqRel);
                };
                if let Err(error) = thread::Builder::new().name("client".to_owned()).spawn_scoped(scope, attend) {
                    running.fetch_sub(1, Ordering::AcqRel);
                    log::warn!("{}: {error}", self.path.display());
                }
            }
        });
    }
}

impl Reporter {
    /// Listens beside a socket from now on.
    fn move_beside(&mut self, socket: &Path) {
        match Reporter::listen_beside(socket) {
            Ok(reporter) => *self = reporter,
            Err(error) => log::warn!("nobody can ask for this volume at {}: {error}", socket.display()),
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
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

/// Whether a socket could not be connected to because nobody serves anything there.
pub(super) fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Does what a client asks.
fn answer(stream: &UnixStream, shared: &Arc<Shared>, members: &Members) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let request = match read_request(stream)? {
        Ok(request) => request,
        Err(refused) => return say(stream, &refused),
    };
    let changed = match request {
        OwnerRequest::Status => return say(stream, &shared.look(|state| Status::of(&state.writer))),
        OwnerRequest::AddMember(new) => members.add(shared, &new),
        OwnerRequest::RemoveMember { node } => members.remove(shared, &node),
        OwnerRequest::Verify(request) => return answer_verify(stream, shared, &request),
    };
    let failed = |error: super::members::MembersError| Outcome::Failed { reason: error.to_string() };
    say(stream, &changed.map_or_else(failed, |()| Outcome::Done))
}

fn answer_verify(stream: &UnixStream, shared: &Arc<Shared>, request: &VerifyRequest) -> io::Result<()> {
    let refuse = |why: String| say(stream, &VerifyLine::Refused(why));
    let member = |name: &str| {
        let node: NodeName = name.parse().ok()?;
        shared.look(|state| state.writer.view().member_on(&node))
    };
    let repair = match &request.trust {
        None if request.repair => Repair::Majority,
        None => Repair::None,
        Some(_) if !request.repair => return refuse("a copy is trusted only to repair the others".to_owned()),
        Some(name) => match member(name) {
            Some(member) => Repair::Trust(member),
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

/// What is asked, or what is wrong with it. Who says nothing asks how the volume stands.
pub(super) fn read_request(stream: impl Read) -> io::Result<Result<OwnerRequest, Refused>> {
    let mut line = Vec::new();
    let read = BufReader::new(stream.take(REQUEST_BYTES_MAX)).read_until(b'\n', &mut line);
    let is_silent = |error: &io::Error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
    match read {
        Err(error) if !(is_silent(&error) && line.is_empty()) => Err(error),
        _ if line.is_empty() => Ok(Ok(OwnerRequest::Status)),
        _ => Ok(serde_json::from_slice(&line).map_err(|error| Refused { refused: format!("not a request: {error}") })),
    }
}

/// Sends a line.
pub(super) fn say(stream: &UnixStream, what: &impl Serialize) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut stream = stream;
    stream.write_all((serde_json::to_string(what)? + "\n").as_bytes())
}

/// The socket in the folder of a copy.
pub(super) const SOCKET_FILE: &str = "writer.sock";
/// What the name of the other one ends with.
const SUFFIX: &str = ".writer";
/// How often the end of the primary is looked for.
const PAUSE: Duration = Duration::from_millis(250);
/// For what takes no time.
pub(super) const TIMEOUT: Duration = Duration::from_secs(2);
const REQUEST_BYTES_MAX: u64 = 64 << 10;
const CLIENTS_MAX: usize = 8;
/// For who asks without a rate: the guest's writes are felt long before.
const RATE_DEFAULT: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::super::asking::ask;
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
        assert!(ask(&socket).unwrap().is_none());
        let reporter = Reporter::listen_beside(&socket).unwrap();
        let second = Reporter::listen_beside(&socket).map(drop).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        drop(reporter);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        // As a process leaves it that is killed.
        drop(listen_as_owner(folder.path(), "disk.sock.writer").unwrap());
        assert!(ask(&socket).unwrap().is_none(), "nobody listens there any more");
        Reporter::listen_beside(&socket).unwrap();
    }
}
