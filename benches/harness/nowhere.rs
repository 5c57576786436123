//! An engine that stores nothing: every operation is done as soon as it is submitted.
//!
//! A read leaves the guest's memory as it is, so what the lane decrypts is what the guest had there.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags};
use sealblk::io::segments::Segment;
use sealblk::io::{Completion, Engine, Operation};

use super::Outcome;

/// Moves nothing.
pub struct Nowhere {
    done: Vec<Completion>,
    trace: Arc<Trace>,
}

impl Nowhere {
    /// For the calling thread.
    pub fn new(trace: Arc<Trace>) -> Self {
        trace.thread.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Release);
        Self { done: Vec::new(), trace }
    }
}

impl Engine for Nowhere {
    unsafe fn submit(&mut self, operation: Operation, segments: &[Segment], token: u64) {
        if let (Operation::Write { .. }, Some(first)) = (operation, segments.first()) {
            // SAFETY: the caller says that the segments can be read; none is shorter than a sector.
            let word = unsafe { ptr::read_unaligned(first.base.cast::<u64>()) };
            self.trace.written.store(word, Ordering::Relaxed);
        }
        self.done.push(Completion { token, result: Ok(()) });
    }

    fn drive(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        completions.append(&mut self.done);
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn wait(&mut self, wakers: &[BorrowedFd<'_>]) -> io::Result<()> {
        if !self.done.is_empty() {
            return Ok(());
        }
        let mut polled: Vec<PollFd<'_>> = wakers.iter().map(|waker| PollFd::new(waker, PollFlags::IN)).collect();
        match rustix::event::poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What an engine lets others see.
#[derive(Default)]
pub struct Trace {
    thread: AtomicI32,
    written: AtomicU64,
}

impl Trace {
    /// The first bytes of the last write.
    pub fn first_written(&self) -> [u8; 8] {
        self.written.load(Ordering::Relaxed).to_ne_bytes()
    }

    /// How long the engine's thread has run so far, in nanoseconds (the first number of its
    /// schedstat).
    pub fn cpu_ns(&self) -> Outcome<u64> {
        let path = format!("/proc/self/task/{}/schedstat", self.thread.load(Ordering::Acquire));
        let stat = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        let first = stat.split_whitespace().next().and_then(|number| number.parse().ok());
        first.ok_or_else(|| format!("{path} holds {stat:?}").into())
    }
}
