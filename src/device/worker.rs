//! The thread that serves one started queue.
//!
//! It takes chains from the ring, parses them, passes them to its lane of the volume, and gives
//! them back as they end: used elements of a batch first, then one notification. With nothing to
//! do it watches the ring for a while (see [`Patience`]), then asks for a kick and sleeps.
//!
//! A worker keeps two promises to whoever started it. Told to stop, it takes nothing more, waits
//! for what is in flight, gives all of it back and returns the queue where it stands. And it never
//! ends the process: a ring that the driver broke is given up, reported once through the log and
//! the error eventfd (`SET_VRING_ERR`), and waits to be stopped.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use slab::Slab;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use super::request::{ChainError, Command, Limits, Parser, Request, Status};
use super::ring::{Ring, RingError};
use super::{Disk, Serial};
use crate::io::patience::Patience;
use crate::io::segments::{Cursor, Segment, total};
use crate::io::{Completion, sigbus};
use crate::volume::lane::Lane;

/// Everything that a queue needs to run.
pub struct Start {
    /// Its number, for the log.
    pub index: u16,
    /// Its ring.
    pub ring: Ring,
    /// Readable when the driver has made something available. Does not block.
    pub kick: EventFd,
    /// Told when something was used; can change while the queue runs.
    pub call: Arc<Notifier>,
    /// Told when the ring is given up.
    pub error: Arc<Notifier>,
    /// How long to watch an empty ring before sleeping.
    pub patience: Patience,
}

/// An eventfd of the front end's, or none; may be exchanged at any time.
#[derive(Default)]
pub struct Notifier(Mutex<Option<EventFd>>);

impl Notifier {
    /// Exchanges the eventfd.
    pub fn set(&self, event: Option<EventFd>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = event;
    }

    /// Signals it.
    pub fn notify(&self) {
        if let Some(event) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            // A full counter means that the front end has yet to hear of an earlier signal.
            let _ = event.write(1);
        }
    }
}

/// A running worker.
pub struct Worker {
    thread: JoinHandle<Queue>,
    control: Arc<Control>,
}

struct Control {
    stop: AtomicBool,
    wake: EventFd,
}

impl Worker {
    /// Starts the thread of a queue. When this returns, its engine runs.
    pub fn start(disk: Arc<Disk>, start: Start) -> io::Result<Self> {
        let control = Arc::new(Control { stop: AtomicBool::new(false), wake: EventFd::new(libc::EFD_NONBLOCK)? });
        let (ready, started) = mpsc::sync_channel(1);
        let name = format!("queue-{}", start.index);
        let thread = thread::Builder::new().name(name).spawn({
            let control = control.clone();
            move || {
                // The engine belongs to the thread that makes it.
                match disk.attachment().lane(start.ring.size().into()) {
                    Ok(lane) => {
                        let _ = ready.send(Ok(()));
                        Service::new(&disk, start, lane, &control).run()
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                        start.ring.into_queue()
                    }
                }
            }
        })?;
        match started.recv() {
            Ok(Ok(())) => Ok(Self { thread, control }),
            Ok(Err(error)) => Err(error),
            Err(mpsc::RecvError) => Err(io::Error::other("the queue's thread ended before it started")),
        }
    }

    /// Stops taking requests, waits for those in flight and returns the queue where it stands.
    pub fn stop(self) -> io::Result<Queue> {
        self.control.stop.store(true, Ordering::Release);
        self.control.wake.write(1)?;
        self.thread.join().map_err(|_| io::Error::other("the queue's thread has panicked"))
    }
}

/// A worker from the inside.
struct Service<'a> {
    // The lane comes first: it ends what is in flight before the memory may go.
    lane: Lane,
    ring: Ring,
    disk: &'a Disk,
    control: &'a Control,
    kick: EventFd,
    call: Arc<Notifier>,
    error: Arc<Notifier>,
    index: u16,
    parser: Parser,
    limits: Limits,
    /// How many chains are taken before completions are looked at.
    burst_max: usize,
    flights: Slab<Flight>,
    ended: Vec<Completion>,
    patience: Patience,
    faults: u64,
    odd_chains: u64,
}

/// A request that the volume is working on.
struct Flight {
    head: u16,
    status: *mut u8,
    /// Device-writable bytes when all goes well, without the status.
    data_len: u32,
}

impl<'a> Service<'a> {
    fn new(disk: &'a Disk, start: Start, lane: Lane, control: &'a Control) -> Self {
        let ring = start.ring;
        Self {
            // Even a driver that always has another chain ready must let other things happen.
            burst_max: lane.burst_max().min(ring.size().into()),
            lane,
            limits: disk.limits(ring.size()),
            ring,
            disk,
            control,
            kick: start.kick,
            call: start.call,
            error: start.error,
            index: start.index,
            parser: Parser::default(),
            flights: Slab::new(),
            ended: Vec::new(),
            patience: start.patience,
            faults: sigbus::fault_count(),
            odd_chains: 0,
        }
    }

    fn run(mut self) -> Queue {
        if let Err(error) = self.serve() {
            log::error!("queue {}: {error}; it serves no more until the driver resets it", self.index);
            self.error.notify();
        }
        self.drain();
        while !self.stopping() {
            // SAFETY: the descriptor lives in `self.control` for longer than the borrow.
            let wake = unsafe { BorrowedFd::borrow_raw(self.control.wake.as_raw_fd()) };
            if self.lane.wait(&[wake]).is_err() {
                thread::park_timeout(std::time::Duration::from_millis(100));
            }
        }
        let Self { lane, ring, .. } = self;
        // If the engine failed, this waits for the kernel to let go of the guest's memory.
        drop(lane);
        ring.into_queue()
    }

    fn serve(&mut self) -> Result<(), ServiceError> {
        self.ring.disable_kicks()?;
        // What another process had taken the driver counts as taken: also who is to stop finishes it.
        while !self.stopping() || self.ring.has_left_over() {
            let busy = self.take()? | self.settle()?;
            // What this thread found missing, or another queue's that shares a page with this ring.
            if self.faults != sigbus::fault_count() || self.ring.is_lost() {
                return Err(ServiceError::MemoryVanished);
            }
            if busy {
                continue;
            }
            if self.flights.len() == usize::from(self.ring.size()) {
                // More than a driver can have in flight: a completion must come first.
                self.sleep()?;
            } else if !self.patience.keep_watching(!self.flights.is_empty()) && !self.ring.enable_kicks()? {
                self.patience.sleeps();
                self.sleep()?;
                self.ring.disable_kicks()?;
            }
        }
        Ok(())
    }

    /// Waits for what is in flight and gives it back. It was taken from a ring that worked then; if
    /// it no longer does, what can be given back still is.
    fn drain(&mut self) {
        loop {
            if let Err(error) = self.settle() {
                log::warn!("queue {}: while draining: {error}", self.index);
            }
            if self.lane.in_flight() == 0 {
                return;
            }
            if let Err(error) = self.lane.wait(&[]) {
                log::error!("queue {}: the I/O engine failed: {error}", self.index);
                return;
            }
        }
    }

    /// Takes what is available, as far as it may be in flight at once and suits the engine. True if
    /// there was anything.
    fn take(&mut self) -> Result<bool, ServiceError> {
        let mut taken = false;
        for _ in 0..self.burst_max {
            if self.flights.len() == usize::from(self.ring.size()) {
                break;
            }
            let (parser, limits) = (&mut self.parser, &self.limits);
            let Some(parsed) = self.ring.pop(|memory, chain| parser.parse(memory, chain, limits))? else { break };
            if !std::mem::replace(&mut taken, true) {
                self.patience.asked();
            }
            if self.faults != sigbus::fault_count() {
                // What was parsed may be the zeros that took the place of what the guest wrote.
                return Err(ServiceError::MemoryVanished);
            }
            match parsed {
                Ok(request) => self.begin(request)?,
                Err(error @ ChainError::Broken { .. }) => return Err(error.into()),
                Err(error @ ChainError::NoStatus { head }) => {
                    self.note_odd_chain(error);
                    self.ring.push_used(head, 0)?;
                }
            }
        }
        Ok(taken)
    }

    fn begin(&mut self, request: Request) -> Result<(), ServiceError> {
        let Request { head, status, command } = request;
        let command = match command {
            Ok(command) => command,
            Err(refusal) => return self.end(head, status, refusal, 0),
        };
        let data = self.parser.data();
        let data_len = match command {
            Command::Read { .. } => total(data) as u32,
            Command::GetId => {
                let len = fill_id(data, self.disk.serial());
                return self.end(head, status, Status::Ok, len);
            }
            _ => 0,
        };
        let token = self.flights.insert(Flight { head, status, data_len }) as u64;
        let durable = self.disk.writes_through();
        match command {
            // SAFETY: the parser found the data in guest memory that stays mapped while this
            // worker runs, and the range on the volume.
            Command::Read { offset } => unsafe { self.lane.read(token, offset, data) },
            // SAFETY: as above.
            Command::Write { offset } => unsafe { self.lane.write(token, offset, data, durable) },
            Command::Flush => self.lane.flush(token),
            Command::Discard => self.lane.discard(token, self.parser.ranges().iter().copied(), durable),
            Command::WriteZeroes => self.lane.zero(token, self.parser.ranges().iter().copied(), durable),
            Command::GetId => {}
        }
        Ok(())
    }

    /// Gives back what has ended since, and notifies. True if there was anything.
    fn settle(&mut self) -> Result<bool, ServiceError> {
        let mut ended = std::mem::take(&mut self.ended);
        self.lane.drive(&mut ended).map_err(ServiceError::Lane)?;
        let any = !ended.is_empty();
        if any {
            self.patience.disk_came();
        }
        let mut result = Ok(());
        for completion in ended.drain(..) {
            let Some(flight) = self.flights.try_remove(completion.token as usize) else { continue };
            let (status, len) = match completion.result {
                Ok(()) => (Status::Ok, flight.data_len),
                Err(_) => (Status::IoError, 0),
            };
            result = result.and(self.end(flight.head, flight.status, status, len));
        }
        self.ended = ended;
        result?;
        if any {
            self.patience.answered();
        }
        if self.ring.publish()? {
            self.call.notify();
        }
        Ok(any)
    }

    /// Writes the status and gives the chain back, with `data_len` bytes written before the status.
    fn end(&mut self, head: u16, status: *mut u8, value: Status, data_len: u32) -> Result<(), ServiceError> {
        // SAFETY: the parser found the byte in guest memory that stays mapped while this worker
        // runs. Volatile: the guest may touch it at any time.
        unsafe { status.write_volatile(value as u8) };
        Ok(self.ring.push_used(head, data_len + 1)?)
    }

    fn sleep(&mut self) -> Result<(), ServiceError> {
        // SAFETY: both descriptors live in `self` and `self.control` for longer than the borrow.
        let wakers = unsafe {
            [BorrowedFd::borrow_raw(self.control.wake.as_raw_fd()), BorrowedFd::borrow_raw(self.kick.as_raw_fd())]
        };
        self.lane.wait(&wakers).map_err(ServiceError::Lane)?;
        // Nothing to read is fine: it was a completion that ended the sleep.
        let _ = self.kick.read();
        Ok(())
    }

    fn stopping(&self) -> bool {
        self.control.stop.load(Ordering::Acquire)
    }

    /// Logs a chain that cannot be answered; of many, only some.
    fn note_odd_chain(&mut self, error: ChainError) {
        self.odd_chains += 1;
        if self.odd_chains.is_power_of_two() {
            log::warn!("queue {}: {error} (such chains so far: {})", self.index, self.odd_chains);
        }
    }
}

/// Why a worker gives its ring up.
#[derive(Debug, thiserror::Error)]
enum ServiceError {
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("guest memory has vanished: the front end cut its file short")]
    MemoryVanished,
    #[error("the I/O engine failed: {0}")]
    Lane(io::Error),
}

/// Copies the serial into the data of a GET_ID; how many bytes that were.
fn fill_id(data: &[Segment], serial: &Serial) -> u32 {
    let len = total(data).min(Serial::BYTES);
    // SAFETY: the parser found the data in mapped guest memory; the serial has `len` bytes.
    unsafe { Cursor::default().scatter(data, serial.bytes().as_ptr(), len) };
    len as u32
}
