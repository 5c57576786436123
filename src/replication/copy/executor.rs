//! The hands of one thread on a copy: does what the replica's `Apply` says.
//!
//! A request becomes pieces (see `plan`), each an operation of the thread's engine; it ends once, when all
//! of them have. At most as many operations as the engine was made for are in flight; the other pieces
//! wait here, bounded by the requests that the caller has given.
//!
//! A digest is a read into a buffer from here, of which SHA-256 is all that leaves. It is computed by the thread that
//! drives, between two looks at the engine: a quarter of a millisecond to one for the longest. So a writer asks for it
//! over a connection on which the guest waits for nothing.
//!
//! How it can fail: a request of which a piece fails ends with the first error, after its other pieces. A
//! file that cannot punch holes is asked to zero ranges, and one that cannot do that gets zeros written;
//! what was learned holds for the copy as long as it is open. A sync that fails is final, see
//! [`OpenCopy`].

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use slab::Slab;

use super::OpenCopy;
use super::plan::{Piece, sparse_write};
use crate::io::buffer::{BUFFER_BYTES_MAX, Buffer, BufferPool};
use crate::io::holes::is_zero_raw;
use crate::io::segments::Segment;
use crate::io::zeroing::Zeroing;
use crate::io::{Completion, Engine, Errno, Operation};
use crate::replication::message::Request;
use crate::replication::replica::{Applied, FlightId};
use crate::replication::view::ViewNumber;

/// Does requests on the copy, for one thread.
pub struct Executor {
    // The engine comes first: it ends what is in flight before the memory may go.
    engine: Box<dyn Engine>,
    depth: usize,
    copy: Arc<OpenCopy>,
    pool: BufferPool,
    zeros: Option<Buffer>,
    flights: Slab<Flight>,
    /// By the engine's token.
    running: Slab<Running>,
    waiting: VecDeque<(usize, Piece)>,
    /// Reads that wait for a buffer.
    starved: VecDeque<(usize, Piece)>,
    done: VecDeque<usize>,
    completions: Vec<Completion>,
}

/// A request that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Which.
    pub flight: FlightId,
    /// How it ended, or an error number.
    pub result: Result<Applied, i32>,
    /// The buffer of a write, to be given back, or of a read, whose bytes come first in it. None where the
    /// memory was the caller's, and for a read of zeros or a digest.
    pub payload: Option<Buffer>,
}

/// The memory of a request.
pub struct Payload(Memory);

enum Memory {
    None,
    Owned(Buffer),
    Borrowed(Segment),
}

impl Payload {
    /// For requests that move no bytes, digests, and for reads into a buffer of the executor's.
    pub fn none() -> Payload {
        Payload(Memory::None)
    }

    /// The bytes of a write, in a buffer from [`Executor::buffer`].
    pub fn owned(buffer: Buffer) -> Payload {
        Payload(Memory::Owned(buffer))
    }

    /// Memory of the caller's: the bytes of a write, or room for those of a read.
    ///
    /// # Safety
    ///
    /// It must be aligned as a [`Buffer`] is, stay valid until the request has ended or the executor is
    /// dropped, and not be touched by anybody else until then, except that it may be read during a write.
    pub unsafe fn borrowed(memory: Segment) -> Payload {
        Payload(Memory::Borrowed(memory))
    }

    fn segment(&self) -> Option<Segment> {
        match &self.0 {
            Memory::None => None,
            Memory::Owned(buffer) => Some(Segment::new(buffer.as_ptr(), buffer.capacity())),
            Memory::Borrowed(memory) => Some(*memory),
        }
    }
}

/// A request between [`Executor::apply`] and its end.
struct Flight {
    id: FlightId,
    payload: Payload,
    /// Bytes of a read.
    read: Option<usize>,
    /// What was read is wanted as a digest only.
    digest: bool,
    /// Pieces that have not ended.
    pieces: usize,
    /// A sync is to follow when all pieces have ended.
    sync: bool,
    writes: bool,
    result: Result<(), Errno>,
}

/// A piece in flight.
struct Running {
    flight: usize,
    piece: Piece,
    /// How it zeroes, if it does.
    zeroing: Zeroing,
}

impl Executor {
    pub(super) fn new(copy: Arc<OpenCopy>, depth: usize) -> io::Result<Executor> {
        Ok(Executor {
            engine: copy.engines.engine(depth)?,
            depth,
            copy,
            pool: BufferPool::new(POOL_BYTES_MAX),
            zeros: None,
            flights: Slab::new(),
            running: Slab::new(),
            waiting: VecDeque::new(),
            starved: VecDeque::new(),
            done: VecDeque::new(),
            completions: Vec::new(),
        })
    }

    /// The same by another engine, while nothing is in flight.
    #[cfg(test)]
    pub fn with_engine(self, engine: Box<dyn Engine>) -> Executor {
        Executor { engine, ..self }
    }

    /// A buffer for the bytes of a write of at most [`BUFFER_BYTES_MAX`]; none while too many are out.
    pub fn buffer(&mut self, len: usize) -> Option<Buffer> {
        self.pool.take(len)
    }

    /// Has at most so many bytes in buffers from now on, those of reads included: at least one largest buffer.
    pub fn limit_buffers(&mut self, bytes_max: usize) {
        self.pool.set_bytes_max(bytes_max);
    }

    /// Takes a buffer back.
    pub fn give(&mut self, buffer: Buffer) {
        self.pool.give(buffer);
    }

    /// Begins a request, which will end in [`drive`](Self::drive). One that the volume cannot have, or
    /// whose memory is too short, ends with `EINVAL` and touches nothing.
    pub fn apply(&mut self, id: FlightId, request: &Request, payload: Payload) {
        let plan = self.plan(request, &payload);
        let mut flight = Flight {
            id,
            payload,
            read: None,
            digest: matches!(request, Request::Digest { .. }),
            pieces: 0,
            sync: false,
            writes: matches!(request, Request::Write { .. } | Request::Zero { .. } | Request::Flush),
            result: Ok(()),
        };
        match plan {
            Ok(Plan { pieces, sync, read }) => {
                (flight.pieces, flight.sync, flight.read) = (pieces.len(), sync, read);
                let starves = read.is_some() && matches!(flight.payload.0, Memory::None);
                let key = self.flights.insert(flight);
                let queue = if starves { &mut self.starved } else { &mut self.waiting };
                queue.extend(pieces.into_iter().map(|piece| (key, piece)));
            }
            Err(errno) => {
                flight.result = Err(errno);
                let key = self.flights.insert(flight);
                self.done.push_back(key);
            }
        }
    }

    /// Does what can be done now without waiting, and appends the requests that have ended.
    ///
    /// # Errors
    ///
    /// When the engine has failed.
    pub fn drive(&mut self, ended: &mut Vec<Ended>) -> io::Result<()> {
        loop {
            let ends = ended.len();
            while let Some(key) = self.done.pop_front() {
                self.end(key, ended);
            }
            self.feed();
            let mut completions = std::mem::take(&mut self.completions);
            self.engine.drive(&mut completions)?;
            let progress = !completions.is_empty();
            for completion in completions.drain(..) {
                self.complete(completion, ended);
            }
            self.completions = completions;
            if ended.len() > ends || !progress && self.done.is_empty() {
                return Ok(());
            }
        }
    }

    /// Sleeps until there is something to [`drive`](Self::drive), or one of `wakers` is readable: the same
    /// at every call, at most [`WAKERS_MAX`](crate::io::WAKERS_MAX). May return early.
    ///
    /// # Errors
    ///
    /// When the engine has failed.
    pub fn wait(&mut self, wakers: &[BorrowedFd<'_>]) -> io::Result<()> {
        if !self.done.is_empty() {
            return Ok(());
        }
        // Buffers may have been given back since, and operations have ended: what waited for them goes now, as
        // nothing else would end the sleep.
        self.feed();
        self.engine.wait(wakers)
    }

    /// Requests that have not ended.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    fn plan(&self, request: &Request, payload: &Payload) -> Result<Plan, Errno> {
        let memory = payload.segment();
        let room = memory.map_or(BUFFER_BYTES_MAX, |memory| memory.len);
        if !self.copy.covers(ViewNumber::MAX, request) {
            return Err(EINVAL);
        }
        let plain = |piece| Plan { pieces: vec![piece], sync: false, read: None };
        match *request {
            Request::Read { len, .. } if len as usize > room => Err(EINVAL),
            Request::Read { offset, len } => {
                let len = len as usize;
                Ok(Plan { read: Some(len), ..plain(Piece::Read { offset, len }) })
            }
            Request::Digest { offset, len } => {
                // Into a buffer of this room's own, whatever the caller has.
                let len = len as usize;
                if memory.is_some() {
                    Err(EINVAL)
                } else {
                    Ok(Plan { read: Some(len), ..plain(Piece::Read { offset, len }) })
                }
            }
            _ if self.copy.has_lost() => Err(EIO),
            Request::Write { offset, len, durable, sparse } => {
                let len = len as usize;
                let memory = memory.filter(|memory| len <= memory.len).ok_or(EINVAL)?;
                if !sparse || self.copy.zeroing().best() != Zeroing::PunchHole {
                    return Ok(plain(Piece::Write { offset, at: 0, len, durable }));
                }
                // SAFETY: the memory is an owned buffer, or borrowed under the promise that nobody writes to it.
                // Buffers are filled before they are given here.
                let data = unsafe { std::slice::from_raw_parts(memory.base, len) };
                Ok(Plan { pieces: sparse_write(offset, data), sync: durable, read: None })
            }
            Request::Zero { offset, len, durable } => Ok(Plan { sync: durable, ..plain(Piece::Zero { offset, len }) }),
            Request::Flush => Ok(plain(Piece::Sync)),
            _ => Err(EINVAL),
        }
    }

    /// Hands pieces to the engine while it may have more.
    fn feed(&mut self) {
        while let Some(&(key, piece)) = self.starved.front() {
            let Some(buffer) = self.pool.take(self.flights[key].read.unwrap_or_default()) else { break };
            self.flights[key].payload = Payload::owned(buffer);
            self.starved.pop_front();
            self.waiting.push_back((key, piece));
        }
        while self.engine.in_flight() < self.depth {
            let Some((key, piece)) = self.waiting.pop_front() else { return };
            self.submit(key, piece);
        }
    }

    fn submit(&mut self, key: usize, piece: Piece) {
        let zeroing = self.copy.zeroing().best();
        let token = |running: &mut Slab<Running>, piece| running.insert(Running { flight: key, piece, zeroing }) as u64;
        let base = self.flights[key].payload.segment().map(|memory| memory.base);
        let segment = |at: usize, len| base.map(|base| Segment::new(base.wrapping_add(at), len));
        match piece {
            Piece::Read { offset, len } => {
                let token = token(&mut self.running, piece);
                // SAFETY: the flight keeps the memory until its last piece has ended, and has room for the bytes.
                unsafe { self.engine.submit(Operation::Read { offset }, segment(0, len).as_slice(), token) };
            }
            Piece::Write { offset, at, len, durable } => {
                let token = token(&mut self.running, piece);
                let operation = Operation::Write { offset, durable };
                // SAFETY: as above.
                unsafe { self.engine.submit(operation, segment(at, len).as_slice(), token) };
            }
            Piece::Zero { offset, len } => match zeroing.method() {
                Some(method) => {
                    let token = token(&mut self.running, piece);
                    // SAFETY: no memory is involved.
                    unsafe { self.engine.submit(Operation::Zero { offset, len, method }, &[], token) };
                }
                None => self.submit_zeros(key, offset, len),
            },
            Piece::WriteZeros { offset, len } => self.submit_zeros(key, offset, len),
            Piece::Sync => {
                let token = token(&mut self.running, piece);
                // SAFETY: no memory is involved.
                unsafe { self.engine.submit(Operation::Sync, &[], token) };
            }
        }
    }

    /// Writes the first of `len` zeros; the rest waits its turn.
    fn submit_zeros(&mut self, key: usize, offset: u64, len: u64) {
        let zeros = self.zeros.get_or_insert_with(zeros);
        let now = len.min((ZERO_SEGMENTS * BUFFER_BYTES_MAX) as u64);
        if now < len {
            self.flights[key].pieces += 1;
            self.waiting.push_front((key, Piece::WriteZeros { offset: offset + now, len: len - now }));
        }
        let mut left = now as usize;
        let mut segments = Vec::with_capacity(ZERO_SEGMENTS);
        while left > 0 {
            let step = left.min(BUFFER_BYTES_MAX);
            segments.push(Segment::new(zeros.as_ptr(), step));
            left -= step;
        }
        let piece = Piece::WriteZeros { offset, len: now };
        let token = self.running.insert(Running { flight: key, piece, zeroing: Zeroing::Write }) as u64;
        // SAFETY: the buffer of zeros lives as long as the engine, and nobody writes to it.
        unsafe { self.engine.submit(Operation::Write { offset, durable: false }, &segments, token) };
    }

    fn complete(&mut self, completion: Completion, ended: &mut Vec<Ended>) {
        let Some(Running { flight: key, piece, zeroing }) = self.running.try_remove(completion.token as usize) else {
            return;
        };
        if let (Piece::Zero { .. }, Err(error)) = (piece, completion.result)
            && error.is_unsupported()
        {
            self.copy.zeroing().rule_out(zeroing, self.copy.dir());
            self.waiting.push_front((key, piece));
            return;
        }
        if let Err(error) = completion.result {
            match piece {
                Piece::Sync | Piece::Write { durable: true, .. } => self.copy.note_loss(error),
                piece => self.copy.complain(piece, error),
            }
        }
        let flight = &mut self.flights[key];
        flight.result = flight.result.and(completion.result);
        flight.pieces -= 1;
        if flight.pieces > 0 {
            return;
        }
        if flight.result.is_ok() && std::mem::take(&mut flight.sync) {
            flight.pieces = 1;
            self.waiting.push_front((key, Piece::Sync));
            return;
        }
        self.end(key, ended);
    }

    fn end(&mut self, key: usize, ended: &mut Vec<Ended>) {
        let Flight { id, mut payload, read, digest, writes, mut result, .. } = self.flights.remove(key);
        if writes && result.is_ok() && self.copy.has_lost() {
            // It may have been among what a sync of another thread has lost.
            result = Err(EIO);
        }
        let mut applied = Applied::Done;
        if let (Ok(()), Some(len), Some(memory)) = (result, read, payload.segment()) {
            if digest {
                // SAFETY: the read has filled that many bytes of a buffer of ours.
                let bytes = unsafe { std::slice::from_raw_parts(memory.base, len) };
                applied = Applied::Digest(Sha256::digest(bytes).into());
            // SAFETY: the read has filled that many bytes, and nobody writes to them.
            } else if unsafe { is_zero_raw(memory.base, len) } {
                applied = Applied::Zeros;
                if let Memory::Owned(buffer) = std::mem::replace(&mut payload.0, Memory::None) {
                    self.pool.give(buffer);
                }
            }
        }
        if digest && let Memory::Owned(buffer) = std::mem::replace(&mut payload.0, Memory::None) {
            self.pool.give(buffer);
        }
        let payload = match payload.0 {
            Memory::Owned(buffer) => Some(buffer),
            Memory::None | Memory::Borrowed(_) => None,
        };
        let result = result.map(|()| applied).map_err(|Errno(errno)| errno);
        ended.push(Ended { flight: id, result, payload });
    }
}

/// What a request comes to.
struct Plan {
    pieces: Vec<Piece>,
    sync: bool,
    read: Option<usize>,
}

fn zeros() -> Buffer {
    let mut pool = BufferPool::new(BUFFER_BYTES_MAX);
    let mut buffer = pool.take(BUFFER_BYTES_MAX).expect("the pool has room for one buffer");
    // SAFETY: the buffer has that many bytes and is nobody else's.
    unsafe { buffer.as_mut_ptr().write_bytes(0, BUFFER_BYTES_MAX) };
    buffer
}

const EINVAL: Errno = Errno(libc::EINVAL);
const EIO: Errno = Errno(libc::EIO);
/// As much as 64 requests of the largest size take.
const POOL_BYTES_MAX: usize = 64 * BUFFER_BYTES_MAX;
/// How many times the buffer of zeros is written by one operation.
const ZERO_SEGMENTS: usize = 16;
