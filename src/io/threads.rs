//! The engine that works everywhere: a pool of threads that call `preadv2`, `pwritev2`,
//! `fdatasync` and `fallocate`.
//!
//! One pool serves all queues of a volume. Each queue has its own list of completions and an
//! eventfd that says that the list is not empty; the pool never touches a queue in any other way.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::blocking::{perform, wait_for};
use super::file::BlockFile;
use super::segments::Segment;
use super::{Completion, Engine, Operation};

/// Threads that carry out the operations of all queues.
pub struct ThreadPool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    stopping: bool,
}

struct Job {
    file: Arc<BlockFile>,
    operation: Operation,
    segments: Vec<Segment>,
    token: u64,
    outbox: Arc<Outbox>,
}

/// Where finished operations of one engine wait for its thread.
struct Outbox {
    done: Mutex<Vec<(Completion, Vec<Segment>)>>,
    event: OwnedFd,
}

impl ThreadPool {
    /// Starts the threads.
    pub fn new() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut pool = Self { shared: shared.clone(), threads: Vec::new() };
        for index in 0..THREADS {
            let shared = shared.clone();
            let thread = thread::Builder::new().name(format!("io-{index}")).spawn(move || shared.run())?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// An engine that passes its operations on `file` to this pool.
    pub fn engine(&self, file: Arc<BlockFile>) -> io::Result<ThreadEngine> {
        // SAFETY: eventfd makes a new descriptor or fails; on success this is its only owner.
        let event = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(ThreadEngine {
            shared: self.shared.clone(),
            file,
            outbox: Arc::new(Outbox { done: Mutex::default(), event }),
            pending: Vec::new(),
            spare: Vec::new(),
            in_flight: 0,
        })
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        lock(&self.shared.state).stopping = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A panic in a pool thread has been printed already; there is nothing left to undo.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let mut state = lock(&self.state);
            let job = loop {
                if let Some(job) = state.jobs.pop_front() {
                    break job;
                }
                if state.stopping {
                    return;
                }
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            };
            drop(state);
            // SAFETY: whoever submitted the job keeps its segments valid until it is reaped, which
            // cannot be before `finish`.
            let result = unsafe { perform(&job.file, job.operation, &job.segments) };
            job.outbox.finish(Completion { token: job.token, result }, job.segments);
        }
    }
}

impl Outbox {
    fn finish(&self, completion: Completion, segments: Vec<Segment>) {
        let mut done = lock(&self.done);
        done.push((completion, segments));
        if done.len() == 1 {
            let one = 1u64.to_ne_bytes();
            // SAFETY: writes eight bytes from a live array. It cannot fail in a way that matters:
            // the counter is far from full, and a full counter is readable all the same.
            unsafe { libc::write(self.event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }

    fn collect(&self) -> Vec<(Completion, Vec<Segment>)> {
        let mut done = lock(&self.done);
        if !done.is_empty() {
            let mut counter = [0u8; 8];
            // SAFETY: reads at most eight bytes into a live array; empty is EAGAIN, which is fine.
            unsafe { libc::read(self.event.as_raw_fd(), counter.as_mut_ptr().cast(), counter.len()) };
        }
        mem::take(&mut *done)
    }
}

/// One queue's access to the pool.
pub struct ThreadEngine {
    shared: Arc<Shared>,
    file: Arc<BlockFile>,
    outbox: Arc<Outbox>,
    pending: Vec<Job>,
    spare: Vec<Vec<Segment>>,
    in_flight: usize,
}

impl ThreadEngine {
    fn hand_over(&mut self) {
        let count = self.pending.len();
        if count == 0 {
            return;
        }
        lock(&self.shared.state).jobs.extend(self.pending.drain(..));
        if count == 1 {
            self.shared.work.notify_one();
        } else {
            self.shared.work.notify_all();
        }
    }
}

impl Drop for ThreadEngine {
    /// Waits for the operations in flight: the pool still has the addresses of their memory.
    fn drop(&mut self) {
        let mut completions = Vec::new();
        while self.in_flight > 0 {
            if self.wait(&[]).and_then(|()| self.drive(&mut completions)).is_err() {
                return;
            }
        }
    }
}

impl Engine for ThreadEngine {
    unsafe fn submit(&mut self, operation: Operation, segments: &[Segment], token: u64) {
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.extend_from_slice(segments);
        let (file, outbox) = (self.file.clone(), self.outbox.clone());
        self.pending.push(Job { file, operation, segments: copy, token, outbox });
        self.in_flight += 1;
    }

    fn drive(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        self.hand_over();
        for (completion, mut segments) in self.outbox.collect() {
            segments.clear();
            self.spare.push(segments);
            self.in_flight -= 1;
            completions.push(completion);
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn wait(&mut self, wakers: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.hand_over();
        wait_for(Some(self.outbox.event.as_fd()), wakers)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const THREADS: usize = 8;
