//! The engine for files that lie in memory: each operation is done in the queue's own thread, as it
//! is submitted.
//!
//! On tmpfs nothing ever waits for a device; a plain system call is a copy and no more. `io_uring`
//! would hand the same copy to a kernel thread, and the pool to one of its own.
//!
//! As operations take their time while they are submitted, few should come at once, so that the
//! driver gets the first back while the next are done.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::blocking::{perform, wait_for};
use super::file::BlockFile;
use super::segments::Segment;
use super::{Completion, Engine, Operation};

/// Does each operation at once.
pub struct InlineEngine {
    file: Arc<BlockFile>,
    done: Vec<Completion>,
}

impl InlineEngine {
    /// An engine of the calling thread.
    pub fn new(file: Arc<BlockFile>) -> Self {
        Self { file, done: Vec::new() }
    }
}

impl Engine for InlineEngine {
    unsafe fn submit(&mut self, operation: Operation, segments: &[Segment], token: u64) {
        // SAFETY: the caller keeps the segments valid until the completion is reaped.
        let result = unsafe { perform(&self.file, operation, segments) };
        self.done.push(Completion { token, result });
    }

    fn drive(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        completions.append(&mut self.done);
        Ok(())
    }

    fn burst_max(&self) -> usize {
        BURST_MAX
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn wait(&mut self, wakers: &[BorrowedFd<'_>]) -> io::Result<()> {
        if !self.done.is_empty() {
            return Ok(());
        }
        wait_for(None, wakers)
    }
}

const BURST_MAX: usize = 8;
