//! Signals that ask a command to end in order.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// A stream that is readable from the first SIGTERM or SIGINT on.
pub fn stop() -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    pipe::register(SIGTERM, write.try_clone()?)?;
    pipe::register(SIGINT, write)?;
    Ok(read)
}

/// Whether the command is asked to end within some time; it is waited that long.
pub fn is_asked(stop: &UnixStream, within: Duration) -> io::Result<bool> {
    let within = Timespec { tv_sec: within.as_secs() as i64, tv_nsec: within.subsec_nanos().into() };
    match rustix::event::poll(&mut [PollFd::new(stop, PollFlags::IN)], Some(&within)) {
        Ok(ready) => Ok(ready > 0),
        // By a signal, which may be the one.
        Err(Errno::INTR) => is_asked(stop, Duration::ZERO),
        Err(error) => Err(error.into()),
    }
}
