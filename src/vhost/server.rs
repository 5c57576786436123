//! Serves one front end after another until told to stop.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::session;
use super::socket::Socket;
use crate::device::Disk;
use crate::io::patience::Patience;

/// Serves front ends on `socket`, one at a time, until `stop` is readable; one that connects while
/// another is served waits. When this returns, nothing is in flight and all is flushed.
///
/// # Errors
///
/// When the host refuses to go on, or the last flush fails: what was written since the last flush
/// of the guest's may then be lost.
pub fn run(socket: &Socket, disk: &Arc<Disk>, patience: &Patience, stop: BorrowedFd<'_>) -> io::Result<()> {
    while wait(socket.as_fd(), stop, None)? == Ready::First {
        let stream = socket.accept()?;
        log::info!("a front end has connected");
        let stopped = serve(stream, disk, patience, stop)?;
        disk.reset();
        match disk.attachment().flush() {
            Ok(()) => log::info!("the front end has left; the volume is flushed"),
            Err(error) if stopped => return Err(error),
            Err(error) => log::error!("the front end has left; flushing the volume failed: {error}"),
        }
        if stopped {
            return Ok(());
        }
    }
    disk.attachment().flush()
}

/// Serves one front end. True if that ended because of `stop`.
fn serve(stream: UnixStream, disk: &Arc<Disk>, patience: &Patience, stop: BorrowedFd<'_>) -> io::Result<bool> {
    let control = stream.try_clone()?;
    // Its end is closed, and so readable, when the session's thread ends in whatever way.
    let (ended, running) = UnixStream::pair()?;
    thread::scope(|scope| {
        let session = thread::Builder::new().name("session".into()).spawn_scoped(scope, move || {
            let _running = running;
            session::serve(stream, disk.clone(), patience.clone())
        })?;
        let stopped = wait(ended.as_fd(), stop, None)? == Ready::Second;
        if stopped {
            // The session finds the end of what it reads, and gives back what is in flight. The front end must not
            // see an end before that: it would note how far the rings are while they still move, and hand what
            // was done meanwhile to the next process again.
            control.shutdown(Shutdown::Read)?;
            if wait(ended.as_fd(), ended.as_fd(), Some(DRAIN_PATIENCE))? == Ready::None {
                // Perhaps it waits for a front end that does not take an answer.
                log::warn!("what is in flight takes long: hanging up on the front end");
                control.shutdown(Shutdown::Both)?;
            }
        }
        match session.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::warn!("the connection to the front end failed: {error}"),
            Err(_) => return Err(io::Error::other("the session's thread has panicked")),
        }
        Ok(stopped)
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ready {
    First,
    Second,
    None,
}

/// Waits until one of two descriptors is readable or closed; the second takes precedence. With a limit, none may be.
fn wait(first: BorrowedFd<'_>, second: BorrowedFd<'_>, limit: Option<Duration>) -> io::Result<Ready> {
    let until = limit.map(|limit| Instant::now() + limit);
    let mut polled = [PollFd::new(&first, PollFlags::IN), PollFd::new(&second, PollFlags::IN)];
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match rustix::event::poll(&mut polled, left.as_ref()) {
            Ok(_) if !polled[1].revents().is_empty() => return Ok(Ready::Second),
            Ok(_) if !polled[0].revents().is_empty() => return Ok(Ready::First),
            Ok(_) if until.is_some_and(|until| Instant::now() >= until) => return Ok(Ready::None),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// How long to wait for what is in flight before the front end is hung up on.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
