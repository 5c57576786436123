//! Signals that ask a command to end in order.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread;
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

/// Does what may have to wait for others, on a thread of its own; none if `stop` becomes readable meanwhile and the
/// work does not end within `grace` after that. Then the thread is left to the end of the process, which is to come
/// next: whoever waits for a server that is away, a name server or a lock cannot be told to stop.
pub fn do_until<T: Send + 'static>(
    name: &str,
    stop: BorrowedFd<'_>,
    grace: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Option<T>> {
    // Its other end is closed, and so it is readable, when the thread ends in whatever way.
    let (ended, running) = UnixStream::pair()?;
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _running = running;
        work()
    })?;
    let has_ended = is_readable(&[ended.as_fd(), stop], None)? || is_readable(&[ended.as_fd()], Some(grace))?;
    Ok(has_ended.then(|| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))))
}

/// Whether the command is asked to end within some time; it is waited that long.
pub fn is_asked(stop: &UnixStream, within: Duration) -> io::Result<bool> {
    is_readable(&[stop.as_fd()], Some(within))
}

/// Waits until one of these is readable; whether the first one is.
fn is_readable(fds: &[BorrowedFd<'_>], time: Option<Duration>) -> io::Result<bool> {
    let time = time.map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() });
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    loop {
        match rustix::event::poll(&mut polled, time.as_ref()) {
            Ok(_) => return Ok(!polled[0].revents().is_empty()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Instant;

    use super::*;

    const GRACE: Duration = Duration::from_millis(500);

    #[test]
    fn work_that_waits_is_left_when_the_process_is_to_end_and_other_work_is_not() {
        let (stop, mut signal) = UnixStream::pair().unwrap();
        assert_eq!(do_until("work", stop.as_fd(), GRACE, || 7).unwrap(), Some(7));
        let panicked = std::panic::catch_unwind(|| do_until("work", stop.as_fd(), GRACE, || panic!("on purpose")));
        assert!(panicked.is_err());

        signal.write_all(&[0]).unwrap();
        // What is quick enough is not left half done.
        assert_eq!(do_until("work", stop.as_fd(), GRACE, || thread::sleep(GRACE / 10)).unwrap(), Some(()));
        let begun = Instant::now();
        assert_eq!(do_until("work", stop.as_fd(), GRACE, || thread::sleep(GRACE * 20)).unwrap(), None);
        assert!(begun.elapsed() < GRACE * 10, "{:?}", begun.elapsed());
    }
}
