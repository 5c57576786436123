//! One queue's way to the volume: requests in plaintext above, operations on ciphertext below.
//!
//! A lane belongs to one thread and takes no lock. A request is cut into pieces, each one operation
//! of the engine:
//!
//! - A **read** whose segments are aligned goes straight into guest memory and is opened in place;
//!   any other goes through buffers.
//! - A **write** is sealed from guest memory into buffers in one pass, and exactly those bytes go to
//!   the disk. Without encryption, aligned guest memory is written as it lies.
//! - **Zeroing** and **discarding** punch holes, which needs no key.
//!
//! Buffers are bounded: a request that finds none waits its turn, in order, for one to come back.
//! A request ends once, whole or with the first error of its pieces.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use slab::Slab;

use super::attachment::Attachment;
use super::sectors;
use crate::io::buffer::{BUFFER_BYTES_MAX, Buffer, BufferPool};
use crate::io::segments::{Cursor, Segment, clear, total};
use crate::io::zeroing::Zeroing;
use crate::io::{Completion, Engine, Errno, Operation, SEGMENTS_MAX, sigbus};

/// One queue's way to the volume.
pub struct Lane {
    attachment: Arc<Attachment>,
    engine: Box<dyn Engine>,
    buffers: BufferPool,
    requests: Slab<Request>,
    pieces: Slab<Piece>,
    waiting: VecDeque<usize>,
    ended: Vec<Completion>,
    completions: Vec<Completion>,
    spare: Vec<Vec<Segment>>,
}

/// A range of the volume, in bytes: multiples of the sector size, within the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

struct Request {
    token: u64,
    kind: Kind,
    /// First byte on the volume.
    offset: u64,
    /// Bytes that pieces have been made for, of `bytes`.
    issued: usize,
    bytes: usize,
    segments: Vec<Segment>,
    cursor: Cursor,
    extents: VecDeque<Extent>,
    durable: bool,
    in_flight: usize,
    error: Option<Errno>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Zero,
    Discard,
    Flush,
}

/// One operation of the engine.
struct Piece {
    request: usize,
    action: Action,
}

enum Action {
    /// A read straight into the request's segments.
    ReadInPlace,
    /// A read into a buffer, to be copied to the segments from `cursor` on.
    Read {
        buffer: Buffer,
        start: usize,
        len: usize,
        cursor: Cursor,
    },
    /// A write of sealed bytes, or of zeros.
    Write {
        buffer: Buffer,
    },
    /// A write straight from the request's segments.
    WriteInPlace,
    /// A range to be zeroed by a method that may turn out not to exist here.
    Zero {
        extent: Extent,
        zeroing: Zeroing,
    },
    Sync,
}

impl Lane {
    pub(super) fn new(attachment: Arc<Attachment>, engine: Box<dyn Engine>) -> Self {
        Self {
            attachment,
            engine,
            buffers: BufferPool::new(BUFFERED_BYTES_MAX),
            requests: Slab::new(),
            pieces: Slab::new(),
            waiting: VecDeque::new(),
            ended: Vec::new(),
            completions: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Reads from byte `offset` on into the segments.
    ///
    /// # Safety
    ///
    /// The segments must stay writable until the completion with `token` has come out of
    /// [`drive`](Self::drive). Offset and total length are multiples of the sector size and within
    /// the volume.
    pub unsafe fn read(&mut self, token: u64, offset: u64, segments: &[Segment]) {
        self.start(token, Kind::Read, offset, segments, false);
    }

    /// Writes the segments from byte `offset` on. With `durable`, completes when they would survive
    /// a power loss.
    ///
    /// # Safety
    ///
    /// As for [`read`](Self::read), but the segments need only be readable.
    pub unsafe fn write(&mut self, token: u64, offset: u64, segments: &[Segment], durable: bool) {
        self.start(token, Kind::Write, offset, segments, durable);
    }

    /// Makes all writes durable that had completed when this was called, on whatever lane.
    pub fn flush(&mut self, token: u64) {
        self.start(token, Kind::Flush, 0, &[], false);
    }

    /// Makes the extents read as zeros, without taking space where the file system can do that.
    pub fn zero(&mut self, token: u64, extents: impl IntoIterator<Item = Extent>, durable: bool) {
        self.start_extents(token, Kind::Zero, extents, durable);
    }

    /// Gives the space of the extents back where that is possible; they then read as zeros.
    pub fn discard(&mut self, token: u64, extents: impl IntoIterator<Item = Extent>, durable: bool) {
        self.start_extents(token, Kind::Discard, extents, durable);
    }

    /// Passes operations on and appends the requests that have ended. Never waits.
    pub fn drive(&mut self, ended: &mut Vec<Completion>) -> io::Result<()> {
        let mut completions = std::mem::take(&mut self.completions);
        self.engine.drive(&mut completions)?;
        for completion in completions.drain(..) {
            self.finish_piece(completion);
        }
        self.completions = completions;
        while let Some(&key) = self.waiting.front() {
            if !self.issue(key) {
                break;
            }
            self.waiting.pop_front();
            self.finish_if_done(key);
        }
        ended.append(&mut self.ended);
        Ok(())
    }

    /// Sleeps until [`drive`](Self::drive) has something to do or a waker is readable.
    pub fn wait(&mut self, wakers: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.engine.wait(wakers)
    }

    /// How many requests to start before [`drive`](Self::drive) is called.
    pub fn burst_max(&self) -> usize {
        self.engine.burst_max()
    }

    /// Requests that have not ended.
    pub fn in_flight(&self) -> usize {
        self.requests.len() + self.ended.len()
    }

    fn start_extents(&mut self, token: u64, kind: Kind, extents: impl IntoIterator<Item = Extent>, durable: bool) {
        let key = self.insert(token, kind, 0, &[], durable);
        self.requests[key].extents.extend(extents);
        self.begin(key);
    }

    fn start(&mut self, token: u64, kind: Kind, offset: u64, segments: &[Segment], durable: bool) {
        let key = self.insert(token, kind, offset, segments, durable);
        self.begin(key);
    }

    fn insert(&mut self, token: u64, kind: Kind, offset: u64, segments: &[Segment], durable: bool) -> usize {
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.extend_from_slice(segments);
        self.requests.insert(Request {
            token,
            kind,
            offset,
            issued: 0,
            bytes: total(segments),
            segments: copy,
            cursor: Cursor::default(),
            extents: VecDeque::new(),
            durable,
            in_flight: 0,
            error: None,
        })
    }

    fn begin(&mut self, key: usize) {
        let request = &mut self.requests[key];
        let refused = request.kind != Kind::Read
            && (self.attachment.flush_failed() || self.attachment.read_only() && request.kind != Kind::Flush);
        if refused {
            request.error = Some(Errno(libc::EIO));
        } else if !self.waiting.is_empty() || !self.issue(key) {
            // Behind those that wait for buffers already: nobody overtakes forever.
            self.waiting.push_back(key);
            return;
        }
        self.finish_if_done(key);
    }

    /// Makes pieces of what remains of the request. False if it must wait for a buffer.
    fn issue(&mut self, key: usize) -> bool {
        if self.requests[key].error.is_some() {
            return true;
        }
        match self.requests[key].kind {
            Kind::Read | Kind::Write if self.requests[key].bytes == 0 => true,
            Kind::Read | Kind::Write if self.goes_in_place(key) => {
                let request = &mut self.requests[key];
                request.issued = request.bytes;
                let (offset, durable) = (request.offset, request.durable);
                let (operation, action) = match request.kind {
                    Kind::Read => (Operation::Read { offset }, Action::ReadInPlace),
                    _ => (Operation::Write { offset, durable }, Action::WriteInPlace),
                };
                let segments = std::mem::take(&mut request.segments);
                self.submit(key, operation, &segments, action);
                self.requests[key].segments = segments;
                true
            }
            Kind::Read => self.issue_buffered(key, Self::issue_read),
            Kind::Write => self.issue_buffered(key, Self::issue_write),
            Kind::Zero | Kind::Discard => self.issue_zero(key),
            Kind::Flush => {
                if self.requests[key].issued == 0 && !self.attachment.read_only() {
                    self.submit(key, Operation::Sync, &[], Action::Sync);
                }
                true
            }
        }
    }

    /// Whether the kernel can move the bytes between the disk and guest memory as it lies.
    fn goes_in_place(&self, key: usize) -> bool {
        let request = &self.requests[key];
        // What goes to several copies is read more than once, and must not change meanwhile.
        let Some(file) = self.attachment.file() else { return false };
        let encrypted = self.attachment.cipher().is_some();
        if request.issued > 0 || request.segments.len() > SEGMENTS_MAX || encrypted && request.kind == Kind::Write {
            return false;
        }
        // Units are opened in place, so none may be split over segments.
        let unit = if encrypted { self.unit_bytes() } else { file.offset_align() };
        request.segments.iter().all(|segment| segment.is_aligned(file.memory_align(), unit))
    }

    fn issue_buffered(&mut self, key: usize, issue: fn(&mut Self, usize, Buffer, usize)) -> bool {
        loop {
            let request = &self.requests[key];
            let len = (request.bytes - request.issued).min(BUFFER_BYTES_MAX);
            if len == 0 || request.error.is_some() {
                return true;
            }
            let Some(buffer) = self.buffers.take(len) else { return false };
            issue(self, key, buffer, len);
        }
    }

    fn issue_read(&mut self, key: usize, mut buffer: Buffer, len: usize) {
        let request = &mut self.requests[key];
        let (start, cursor) = (request.issued, request.cursor);
        request.issued += len;
        let mut left = len;
        while let Some(piece) = request.cursor.take(&request.segments, left) {
            left -= piece.len;
            if left == 0 {
                break;
            }
        }
        let offset = request.offset + start as u64;
        let target = [Segment::new(buffer.as_mut_ptr(), len)];
        self.submit(key, Operation::Read { offset }, &target, Action::Read { buffer, start, len, cursor });
    }

    fn issue_write(&mut self, key: usize, mut buffer: Buffer, len: usize) {
        let unit_bytes = self.unit_bytes();
        let request = &mut self.requests[key];
        let offset = request.offset + request.issued as u64;
        let faults = sigbus::fault_count();
        let target = buffer.as_mut_ptr();
        // SAFETY: whoever started the request keeps its segments readable and said that they hold
        // `bytes`, of which `issued` are behind the cursor; the buffer has room for `len`.
        unsafe {
            match self.attachment.cipher() {
                Some(xts) => {
                    let unit = offset / unit_bytes as u64;
                    sectors::seal(xts, &request.segments, &mut request.cursor, target, len, unit_bytes, unit);
                }
                None => request.cursor.gather(&request.segments, target, len),
            }
        }
        request.issued += len;
        if sigbus::fault_count() != faults {
            // Part of the source has vanished: what was sealed is not what the guest wrote.
            request.error = Some(Errno(libc::EFAULT));
            self.buffers.give(buffer);
            return;
        }
        let durable = request.durable;
        let source = [Segment::new(target, len)];
        self.submit(key, Operation::Write { offset, durable }, &source, Action::Write { buffer });
    }

    fn issue_zero(&mut self, key: usize) -> bool {
        loop {
            let Some(&extent) = self.requests[key].extents.front() else { return true };
            match (self.attachment.zeroing().best(), self.requests[key].kind) {
                // Nothing here can give space back, and a discard is only a hint. To zero the range would keep the space
                // all the same, and many devices then write every zero.
                (Zeroing::ZeroRange | Zeroing::Write, Kind::Discard) => {}
                (Zeroing::Write, _) => {
                    let len = extent.len.min(BUFFER_BYTES_MAX as u64) as usize;
                    let Some(mut buffer) = self.buffers.take(len) else { return false };
                    let source = [Segment::new(buffer.as_mut_ptr(), len)];
                    // SAFETY: the buffer has room for `len` bytes.
                    unsafe { clear(&source) };
                    let operation = Operation::Write { offset: extent.offset, durable: false };
                    self.submit(key, operation, &source, Action::Write { buffer });
                    if (len as u64) < extent.len {
                        let rest = Extent { offset: extent.offset + len as u64, len: extent.len - len as u64 };
                        self.requests[key].extents[0] = rest;
                        continue;
                    }
                }
                (zeroing, _) => self.submit_zero(key, extent, zeroing),
            }
            self.requests[key].extents.pop_front();
        }
    }

    fn submit_zero(&mut self, key: usize, extent: Extent, zeroing: Zeroing) {
        if let Some(method) = zeroing.method() {
            let operation = Operation::Zero { offset: extent.offset, len: extent.len, method };
            self.submit(key, operation, &[], Action::Zero { extent, zeroing });
        }
    }

    fn submit(&mut self, request: usize, operation: Operation, segments: &[Segment], action: Action) {
        self.requests[request].in_flight += 1;
        let token = self.pieces.insert(Piece { request, action }) as u64;
        // SAFETY: segments are a buffer that the piece owns, or guest memory that whoever started
        // the request keeps until it has ended, which is not before this piece has.
        unsafe { self.engine.submit(operation, segments, token) };
    }

    fn finish_piece(&mut self, completion: Completion) {
        let Some(piece) = self.pieces.try_remove(completion.token as usize) else { return };
        let key = piece.request;
        self.requests[key].in_flight -= 1;
        let result = match (completion.result, &piece.action) {
            (Err(error), &Action::Zero { extent, zeroing }) if error.is_unsupported() => {
                self.attachment.zeroing().rule_out(zeroing, self.attachment.volume().data_path());
                self.requests[key].extents.push_front(extent);
                if self.issue_zero(key) {
                    self.finish_if_done(key);
                } else if !self.waiting.contains(&key) {
                    self.waiting.push_back(key);
                }
                return;
            }
            (result, _) => result,
        };
        let faults = sigbus::fault_count();
        match result {
            Ok(()) => self.complete(key, &piece.action),
            Err(error) => self.fail(key, &piece.action, error),
        }
        if sigbus::fault_count() != faults {
            self.requests[key].error.get_or_insert(Errno(libc::EFAULT));
        }
        if let Action::Read { buffer, .. } | Action::Write { buffer } = piece.action {
            self.buffers.give(buffer);
        }
        self.finish_if_done(key);
    }

    fn complete(&mut self, key: usize, action: &Action) {
        let Some(xts) = self.attachment.cipher() else {
            if let Action::Read { .. } = action {
                self.deliver(key, action);
            }
            return;
        };
        let unit_bytes = self.unit_bytes();
        let request = &self.requests[key];
        let mut unit = request.offset / unit_bytes as u64;
        match action {
            Action::ReadInPlace => {
                for segment in &request.segments {
                    // SAFETY: whoever started the request keeps its segments writable, and
                    // `goes_in_place` found each a multiple of the unit.
                    unsafe { sectors::open(xts, segment.base, segment.len, unit_bytes, unit) };
                    unit += (segment.len / unit_bytes) as u64;
                }
            }
            Action::Read { buffer, start, len, .. } => {
                unit += (start / unit_bytes) as u64;
                // SAFETY: the buffer holds `len` bytes and no operation uses it any more.
                unsafe { sectors::open(xts, buffer.as_ptr(), *len, unit_bytes, unit) };
                self.deliver(key, action);
            }
            _ => {}
        }
    }

    fn deliver(&self, key: usize, action: &Action) {
        if let Action::Read { buffer, len, cursor, .. } = action {
            let mut cursor = *cursor;
            // SAFETY: whoever started the request keeps its segments writable; the cursor stands
            // where this piece begins and the buffer holds `len` bytes.
            unsafe { cursor.scatter(&self.requests[key].segments, buffer.as_ptr(), *len) };
        }
    }

    fn fail(&mut self, key: usize, action: &Action, error: Errno) {
        let request = &mut self.requests[key];
        let what = match request.kind {
            Kind::Read => "reading",
            Kind::Write => "writing",
            Kind::Zero => "zeroing",
            Kind::Discard => "discarding",
            Kind::Flush => "flushing",
        };
        self.attachment.report(what, request.offset, error);
        request.error.get_or_insert(error);
        match action {
            Action::Sync => self.attachment.poison(error),
            // A durable write syncs too, and may be told of what others lost.
            Action::Write { .. } | Action::WriteInPlace if request.durable && !is_harmless(error) => {
                self.attachment.poison(error);
            }
            // What arrived of the ciphertext is of no use to the guest.
            // SAFETY: whoever started the request keeps its segments writable.
            Action::ReadInPlace if error != Errno(libc::EFAULT) => unsafe { clear(&request.segments) },
            _ => {}
        }
    }

    fn finish_if_done(&mut self, key: usize) {
        let request = &mut self.requests[key];
        let issued = request.error.is_some() || request.issued == request.bytes && request.extents.is_empty();
        if request.in_flight > 0 || !issued {
            return;
        }
        if request.error.is_none() && request.durable && matches!(request.kind, Kind::Zero | Kind::Discard) {
            request.durable = false;
            self.submit(key, Operation::Sync, &[], Action::Sync);
            return;
        }
        self.waiting.retain(|&waiting| waiting != key);
        let mut request = self.requests.remove(key);
        if request.segments.iter().any(Segment::is_lost) {
            // Another thread found it missing: what was read from it, or into it, is not the guest's.
            request.error.get_or_insert(Errno(libc::EFAULT));
        }
        request.segments.clear();
        self.spare.push(request.segments);
        let result = request.error.map_or(Ok(()), Err);
        self.ended.push(Completion { token: request.token, result });
    }

    fn unit_bytes(&self) -> usize {
        self.attachment.volume().sector_size_bytes() as usize
    }
}

/// Errors that say that nothing was written, rather than that something was lost.
fn is_harmless(error: Errno) -> bool {
    matches!(error.0, libc::EFAULT | libc::EINVAL | libc::ENOSPC | libc::EDQUOT)
}

/// The most memory that one lane's buffers take.
const BUFFERED_BYTES_MAX: usize = 16 * 1024 * 1024;

#[cfg(test)]
mod tests;
