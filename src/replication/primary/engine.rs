//! The requests of one queue, as an engine that the queue's thread drives.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::hands::Hands;
use super::shared::Shared;
use crate::io::segments::{Segment, total};
use crate::io::{Completion, Engine, Errno, Operation};
use crate::replication::message::PAYLOAD_BYTES_MAX;
use crate::replication::writer;

/// Does on every copy what others do on one file.
///
/// Bytes must be in one segment, aligned as a buffer is, at most [`PAYLOAD_BYTES_MAX`], and those of a write must
/// not change until it has ended: they are sent several times, and all copies must get the same.
pub(super) struct ReplicatedEngine {
    /// Until it is dropped.
    hands: Option<Hands>,
    shared: Arc<Shared>,
    submitted: Vec<(u64, writer::Operation, Option<Segment>)>,
    refused: Vec<Completion>,
}

impl ReplicatedEngine {
    pub(super) fn new(shared: Arc<Shared>, hands: Hands) -> ReplicatedEngine {
        ReplicatedEngine { hands: Some(hands), shared, submitted: Vec::new(), refused: Vec::new() }
    }

    fn hands(&mut self) -> &mut Hands {
        self.hands.as_mut().expect("an engine has them until it is dropped")
    }

    /// Gives the writer what was submitted.
    fn hand_over(&mut self) {
        if !self.submitted.is_empty() {
            let lane = self.hands().lane();
            let submitted = &mut self.submitted;
            self.shared.with_writer(Some(lane), |state, now| {
                for (token, operation, source) in submitted.drain(..) {
                    state.submit(now, lane, token, operation, source);
                }
            });
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.shared.is_stopped() && self.in_flight() > 0 {
            return Err(io::Error::other("the writer has stopped, and nothing that it was asked will be answered"));
        }
        Ok(())
    }
}

impl Engine for ReplicatedEngine {
    unsafe fn submit(&mut self, operation: Operation, segments: &[Segment], token: u64) {
        let bytes = total(segments);
        let segment = segments.first().copied().unwrap_or(Segment::new(std::ptr::null_mut(), 0));
        if segments.len() > 1 || bytes > PAYLOAD_BYTES_MAX as usize {
            self.refused.push(Completion { token, result: Err(Errno(libc::EINVAL)) });
            return;
        }
        let len = bytes as u32;
        let (operation, source) = match operation {
            Operation::Read { offset } => (writer::Operation::Read { offset, len }, None),
            Operation::Write { offset, durable } => (writer::Operation::Write { offset, len, durable }, Some(segment)),
            Operation::Sync => (writer::Operation::Flush, None),
            // How it is done is for each copy to find out.
            Operation::Zero { offset, len, .. } => (writer::Operation::Zero { offset, len, durable: false }, None),
        };
        let number = self.hands().memory().keep(token, segment);
        self.submitted.push((number, operation, source));
    }

    fn drive(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        completions.append(&mut self.refused);
        self.hand_over();
        self.hands().drive()?;
        self.check()?;
        self.hands().memory().take_ended(completions);
        Ok(())
    }

    fn burst_max(&self) -> usize {
        BURST_MAX
    }

    fn in_flight(&self) -> usize {
        self.hands.as_ref().map_or(0, Hands::requests) + self.refused.len()
    }

    fn wait(&mut self, wakers: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.hand_over();
        self.hands().work();
        self.check()?;
        if self.hands().memory().has_ended() || !self.refused.is_empty() {
            return Ok(());
        }
        self.hands().wait(wakers)
    }
}

impl Drop for ReplicatedEngine {
    fn drop(&mut self) {
        if let Some(hands) = self.hands.take() {
            let lane = hands.lane();
            // What a disk is doing ends with it; only then may somebody else have the lane.
            drop(hands);
            self.shared.vacate(lane);
        }
    }
}

/// So many are sent together before more are taken.
const BURST_MAX: usize = 16;
