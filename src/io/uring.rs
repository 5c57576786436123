//! The engine of choice: one `io_uring` for each queue thread.
//!
//! The ring is made for one submitter with deferred task work, so that completions are processed
//! when this thread asks for them and never interrupt it. The thread sleeps inside the ring: what
//! else may wake it, such as the queue's kick, is watched by poll requests in the same ring, so that
//! going to sleep is one system call.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};
use slab::Slab;

use super::blocking::skip;
use super::file::BlockFile;
use super::segments::Segment;
use super::{Completion, Engine, Errno, Operation, WAKERS_MAX};

/// Whether this process may make a ring that does what the engine needs.
pub fn probe() -> io::Result<()> {
    let ring = make(1)?;
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE, opcode::Fallocate::CODE];
    if needed.iter().all(|&code| probe.is_supported(code)) {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's io_uring lacks an operation"))
    }
}

/// An `io_uring` over one file.
pub struct UringEngine {
    ring: IoUring,
    file: Arc<BlockFile>,
    flights: Slab<Flight>,
    spare: Vec<Vec<Segment>>,
    again: Vec<usize>,
    /// Entries in the submission queue.
    queued: usize,
    /// Which of the wakers a poll request is watching.
    watched: [bool; WAKERS_MAX],
}

/// An operation between submission and completion.
struct Flight {
    operation: Operation,
    token: u64,
    segments: Vec<Segment>,
    first: usize,
}

impl UringEngine {
    /// A ring for at most `depth` operations at once.
    pub fn new(file: Arc<BlockFile>, depth: usize) -> io::Result<Self> {
        let entries = depth.next_power_of_two().clamp(8, ENTRIES_MAX);
        let ring = make(entries as u32)?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        Ok(Self {
            ring,
            file,
            flights: Slab::new(),
            spare: Vec::new(),
            again: Vec::new(),
            queued: 0,
            watched: [false; WAKERS_MAX],
        })
    }

    fn push(&mut self, key: usize) {
        let entry = entry(&self.flights[key]).user_data(key as u64);
        // SAFETY: the flight keeps the vector in place until its completion is reaped, and whoever
        // submitted it keeps the memory that the vector points to.
        unsafe { self.push_entry(&entry) };
    }

    /// # Safety
    ///
    /// What the entry points to must stay valid until its completion.
    unsafe fn push_entry(&mut self, entry: &squeue::Entry) {
        // SAFETY: passed on to the caller.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            // The submission queue is full: the kernel empties it.
            self.pass_on();
        }
        self.queued += 1;
    }

    /// Hands the submission queue to the kernel, or says why not: `wait` fails then.
    fn pass_on(&mut self) {
        if let Err(error) = self.enter(0) {
            log::error!("io_uring of {}: {error}", self.file.path().display());
        }
    }

    /// Submits what is queued and runs deferred completions.
    fn enter(&mut self, min_complete: u32) -> io::Result<()> {
        let to_submit = self.ring.submission().len() as u32;
        // SAFETY: no argument beyond the flags is passed.
        let result = unsafe {
            self.ring.submitter().enter::<libc::sigset_t>(to_submit, min_complete, IORING_ENTER_GETEVENTS, None)
        };
        self.queued = self.ring.submission().len();
        match result {
            Ok(_) => Ok(()),
            // A signal, or completions to reap first: both are over by the next call.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether the kernel has completions that it posts when it is asked to.
    fn has_work(&mut self) -> bool {
        let queue = self.ring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// Takes entries off the completion queue, until as many operations as are left have completed.
    fn reap(&mut self, completions: &mut Vec<Completion>, left: &mut usize) {
        while *left > 0 {
            let Some(entry) = self.ring.completion().next() else { return };
            if entry.user_data() >= WAKER_TOKEN {
                self.watched[(entry.user_data() - WAKER_TOKEN) as usize] = false;
            } else if let Some(completion) = self.settle(entry.user_data() as usize, entry.result()) {
                completions.push(completion);
                *left -= 1;
            }
        }
    }

    /// Accounts for one entry of the completion queue; the completion, if that ends the operation.
    fn settle(&mut self, key: usize, result: i32) -> Option<Completion> {
        let flight = self.flights.get_mut(key)?;
        let result = match (result, flight.operation) {
            (error @ ..=-1, _) => match Errno(-error) {
                Errno(libc::EINTR | libc::EAGAIN) => {
                    self.again.push(key);
                    return None;
                }
                error => Err(error),
            },
            (moved, Operation::Read { .. } | Operation::Write { .. }) => {
                flight.advance(moved as usize);
                if flight.remaining().is_empty() {
                    Ok(())
                } else if moved == 0 {
                    // The end of the file, inside the volume: the file was cut while in use.
                    Err(Errno(libc::EIO))
                } else {
                    self.again.push(key);
                    return None;
                }
            }
            _ => Ok(()),
        };
        let mut flight = self.flights.remove(key);
        flight.segments.clear();
        self.spare.push(mem::take(&mut flight.segments));
        Some(Completion { token: flight.token, result })
    }
}

impl Engine for UringEngine {
    unsafe fn submit(&mut self, operation: Operation, segments: &[Segment], token: u64) {
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.extend_from_slice(segments);
        let mut flight = Flight { operation, token, segments: copy, first: 0 };
        flight.advance(0);
        let key = self.flights.insert(flight);
        self.push(key);
        if self.queued >= QUEUED_MAX {
            self.pass_on();
        }
    }

    fn drive(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        if self.flights.is_empty() {
            return Ok(());
        }
        let mut left = REAPED_MAX;
        self.reap(completions, &mut left);
        if self.queued > 0 || completions.is_empty() && self.has_work() {
            self.enter(0)?;
            self.reap(completions, &mut left);
        }
        if !self.again.is_empty() {
            for key in mem::take(&mut self.again) {
                self.push(key);
            }
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.flights.len()
    }

    fn wait(&mut self, wakers: &[BorrowedFd<'_>]) -> io::Result<()> {
        for (index, waker) in wakers.iter().enumerate() {
            if !mem::replace(&mut self.watched[index], true) {
                let poll = opcode::PollAdd::new(types::Fd(waker.as_raw_fd()), libc::POLLIN as u32).build();
                // SAFETY: a poll request points to no memory.
                unsafe { self.push_entry(&poll.user_data(WAKER_TOKEN + index as u64)) };
            }
        }
        self.enter(1)?;
        // With nothing in flight `drive` would not look at the ring: note here which polls fired.
        if self.flights.is_empty() {
            let mut left = REAPED_MAX;
            self.reap(&mut Vec::new(), &mut left);
        }
        Ok(())
    }
}

impl Drop for UringEngine {
    /// Waits for the operations in flight: the kernel still has the addresses of their memory.
    fn drop(&mut self) {
        let mut completions = Vec::new();
        while !self.flights.is_empty() {
            if self.enter(1).and_then(|()| self.drive(&mut completions)).is_err() {
                // The ring is unusable; closing it makes the kernel cancel and wait.
                return;
            }
        }
    }
}

impl Flight {
    fn remaining(&self) -> &[Segment] {
        &self.segments[self.first..]
    }

    fn advance(&mut self, moved: usize) {
        match &mut self.operation {
            Operation::Read { offset } | Operation::Write { offset, .. } => *offset += moved as u64,
            Operation::Sync | Operation::Zero { .. } => return,
        }
        skip(&mut self.segments, &mut self.first, moved);
        while self.segments.get(self.first).is_some_and(|segment| segment.len == 0) {
            self.first += 1;
        }
    }
}

fn entry(flight: &Flight) -> squeue::Entry {
    let file = types::Fixed(0);
    let segments = flight.remaining();
    match flight.operation {
        Operation::Read { offset } => match segments {
            [only] if only.len <= u32::MAX as usize => {
                opcode::Read::new(file, only.base, only.len as u32).offset(offset).build()
            }
            _ => opcode::Readv::new(file, segments.as_ptr().cast(), segments.len() as u32).offset(offset).build(),
        },
        Operation::Write { offset, durable } => {
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            match segments {
                [only] if only.len <= u32::MAX as usize => {
                    opcode::Write::new(file, only.base, only.len as u32).offset(offset).rw_flags(flags).build()
                }
                _ => opcode::Writev::new(file, segments.as_ptr().cast(), segments.len() as u32)
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
            }
        }
        Operation::Sync => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        Operation::Zero { offset, len, method } => {
            opcode::Fallocate::new(file, len).offset(offset).mode(method.fallocate_mode()).build()
        }
    }
}

fn make(entries: u32) -> io::Result<IoUring> {
    IoUring::builder()
        .setup_clamp()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_cqsize(entries.max(8) * 2)
        .build(entries)
        .or_else(|error| match error.raw_os_error() {
            // Kernels before 6.1 lack deferred task work.
            Some(libc::EINVAL) => IoUring::builder().setup_clamp().setup_cqsize(entries.max(8) * 2).build(entries),
            _ => Err(error),
        })
        .map_err(|error| match error.raw_os_error() {
            // A bare "out of memory" would send its reader looking for the wrong thing.
            Some(libc::ENOMEM) => io::Error::new(
                io::ErrorKind::OutOfMemory,
                "no memory for an io_uring: raise RLIMIT_MEMLOCK, against which the rings of all processes of this \
                 user count (`ulimit -l`, systemd LimitMEMLOCK=), grant CAP_IPC_LOCK, or serve with --engine threads",
            ),
            _ => error,
        })
}

/// Tokens from here on are those of poll requests; keys of flights are far below.
const WAKER_TOKEN: u64 = 1 << 32;
const ENTRIES_MAX: usize = 1024;
/// Entries that are passed on without waiting for more: enough to spread the cost of the call, and so few that the disk
/// has something to do while the rest are sealed.
const QUEUED_MAX: usize = 8;
/// Operations that are handed out at a time. When many complete at once, the driver can so work on the first while the
/// rest are decrypted or given back, and the disk gets its next request sooner.
const REAPED_MAX: usize = 8;
const IORING_ENTER_GETEVENTS: u32 = 1;
