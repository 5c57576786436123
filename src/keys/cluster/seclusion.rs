//! The thread that a key is read on.
//!
//! A key that comes over the network passes through buffers of TLS, HTTP and JSON that are not ours
//! to wipe one by one. So all of it happens on one thread, on which everything that is freed is wiped
//! ([`Wiping`]), with a runtime of that thread's own, so that no other thread takes part. Its stack is
//! wiped last: the C library keeps the stacks of threads that have ended for the next ones.
//!
//! The thread that asked only waits, for the result or for the word to stop. In the second case it
//! does not wait for a name server or a login command that hangs: it lets the process end.

use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use rustix::event::{PollFd, PollFlags};
use zeroize::zeroize_stack;

use super::error::ClusterError;
use crate::keys::error::KeyError;
use crate::keys::wiping::Wiping;

/// Runs `work` on such a thread. Ends with [`KeyError::Stopped`] as soon as `stop` is readable.
pub(super) fn run<T, F>(stop: Option<BorrowedFd<'_>>, work: impl FnOnce() -> F + Send + 'static) -> Result<T, KeyError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, KeyError>>,
{
    // Its end is closed, and so readable, when the thread ends in whatever way.
    let (ended, running) = UnixStream::pair().map_err(KeyError::Thread)?;
    let thread = thread::Builder::new()
        .name("key".into())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let _running = running;
            let _wiping = Wiping::start();
            let result = block_on(work);
            zeroize_stack::<WIPED_STACK_BYTES>();
            result
        })
        .map_err(KeyError::Thread)?;
    if wait(ended.as_fd(), stop)? == Ended::Stopped {
        return Err(KeyError::Stopped);
    }
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// In a frame of its own, so that all it leaves on the stack lies below its caller's.
#[inline(never)]
fn block_on<T, F: Future<Output = Result<T, KeyError>>>(work: impl FnOnce() -> F) -> Result<T, KeyError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ClusterError::Runtime)?;
    let result = runtime.block_on(work());
    // Drops the connection on this thread, and waits for no name server.
    runtime.shutdown_background();
    result
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Done,
    Stopped,
}

fn wait(done: BorrowedFd<'_>, stop: Option<BorrowedFd<'_>>) -> Result<Ended, KeyError> {
    let mut polled = vec![PollFd::new(&done, PollFlags::IN)];
    polled.extend(stop.as_ref().map(|stop| PollFd::new(stop, PollFlags::IN)));
    loop {
        match rustix::event::poll(&mut polled, None) {
            Ok(_) if !polled[0].revents().is_empty() => return Ok(Ended::Done),
            Ok(_) if polled.get(1).is_some_and(|stop| !stop.revents().is_empty()) => return Ok(Ended::Stopped),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(KeyError::Thread(error.into())),
        }
    }
}

const STACK_BYTES: usize = 2 << 20;

/// All but what the thread's own outermost frames need.
const WIPED_STACK_BYTES: usize = STACK_BYTES - (128 << 10);
