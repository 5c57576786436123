//! Asking the process that serves a volume on this machine: the other end of [`report`](super::report).
//!
//! Which process is said by a **place**: the folder of the copy that it serves, or, where it has none, the socket of
//! the guest's monitor.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::report::{SOCKET_FILE, TIMEOUT, beside, is_nobody, say};
use super::request::{Outcome, OwnerRequest, Refused, VerifyLine, VerifyRequest};
use super::status::Status;
use crate::store::connect_to_owner;

/// Asks the process at a place how its volume stands; none if nobody serves one there.
///
/// # Errors
///
/// What the operating system says; also for an answer that is none.
pub fn ask(place: &Path) -> io::Result<Option<Status>> {
    converse(place, &OwnerRequest::Status, TIMEOUT)
}

/// Has the process at a place change something; how that ended, or none if nobody serves a volume there.
///
/// # Errors
///
/// As those of [`ask`].
pub fn order(place: &Path, request: &OwnerRequest) -> io::Result<Option<Outcome>> {
    converse(place, request, ORDER_TIMEOUT)
}

/// Asks the process at a place to compare the copies of its volume, and hears what comes of it; none if nobody serves
/// one there. It ends when the outcome is told, or nobody listens.
///
/// # Errors
///
/// As those of [`ask`], and those of `hear`.
pub fn verify(
    place: &Path,
    request: VerifyRequest,
    mut hear: impl FnMut(VerifyLine) -> io::Result<()>,
) -> io::Result<Option<()>> {
    let Some(stream) = send(place, &OwnerRequest::Verify(request), LINE_TIMEOUT)? else { return Ok(None) };
    let mut reader = BufReader::new(&stream);
    loop {
        let line: VerifyLine = read_line(&mut reader)?;
        let is_last = matches!(line, VerifyLine::Outcome(_) | VerifyLine::Refused(_));
        hear(line)?;
        if is_last {
            return Ok(Some(()));
        }
    }
}

/// Asks for one thing that has an answer of one line.
fn converse<T: DeserializeOwned>(place: &Path, request: &OwnerRequest, timeout: Duration) -> io::Result<Option<T>> {
    let Some(stream) = send(place, request, timeout)? else { return Ok(None) };
    read_line(&mut BufReader::new(&stream)).map(Some)
}

fn send(place: &Path, request: &OwnerRequest, timeout: Duration) -> io::Result<Option<UnixStream>> {
    let connected = if place.is_dir() {
        connect_to_owner(place, SOCKET_FILE)
    } else {
        let (dir, name) = beside(place)?;
        connect_to_owner(&dir, &name)
    };
    let stream = match connected {
        Err(error) if is_nobody(&error) => return Ok(None),
        stream => stream?,
    };
    stream.set_read_timeout(Some(timeout))?;
    say(&stream, request)?;
    Ok(Some(stream))
}

/// The next line of an answer.
pub(super) fn read_line<T: DeserializeOwned>(reader: &mut impl BufRead) -> io::Result<T> {
    let mut line = String::new();
    reader.take(LINE_BYTES_MAX).read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has ended without an answer"));
    }
    serde_json::from_str(&line).map_err(|error| match serde_json::from_str::<Refused>(&line) {
        Ok(Refused { refused }) => io::Error::other(refused),
        Err(_) => error.into(),
    })
}

/// How long a change may take, as the one who asks for it sees it: longer than it does as the other one does.
const ORDER_TIMEOUT: Duration = Duration::from_secs(120);
/// Between two lines about a comparison.
const LINE_TIMEOUT: Duration = Duration::from_secs(30);
const LINE_BYTES_MAX: u64 = 1 << 20;
