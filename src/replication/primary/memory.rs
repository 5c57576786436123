//! The bytes that a lane has in its keeping: those of the guest's requests, and of pieces that are copied.
//!
//! Bytes are lent to the disk of the copy in this process. Invariant: what is lent is neither given back to the
//! guest nor used for anything else before it has come back. So a request of the guest that has ended may have to
//! wait for its disk, and a read that is begun anew from another copy waits for the one before.

use std::collections::HashMap;
use std::sync::Arc;

use slab::Slab;

use super::shared::Shared;
use crate::io::buffer::{Buffer, BufferPool};
use crate::io::segments::Segment;
use crate::io::{Completion, Errno};
use crate::replication::message::{PAYLOAD_BYTES_MAX, Request};
use crate::replication::view::{MemberIndex, ViewNumber};
use crate::replication::writer::Payload;

/// The bytes that a lane has in its keeping.
pub(super) struct Memory {
    shared: Arc<Shared>,
    guest: Slab<GuestRequest>,
    pieces: HashMap<u64, Piece>,
    pool: BufferPool,
    ended: Vec<Completion>,
}

/// A request of the guest that has not ended for it.
struct GuestRequest {
    /// What the guest's side knows it by.
    token: u64,
    segment: Segment,
    lent: u32,
    result: Option<Result<(), i32>>,
    postponed: Option<Outgoing>,
}

/// A piece on its way from one copy to others.
struct Piece {
    buffer: Buffer,
    lent: u32,
    over: bool,
}

/// A request to a member, as it is to be sent.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) member: MemberIndex,
    pub(super) id: u64,
    pub(super) view: ViewNumber,
    pub(super) request: Request,
    pub(super) payload: Payload,
}

/// The bytes of a write.
pub(super) enum Source {
    /// In memory that stays where it is until the request has been answered.
    Here(Segment),
    /// What was kept of a write that has ended, from some byte on.
    Kept(Arc<[u8]>, usize),
}

impl Memory {
    /// With room for so many pieces at a time.
    pub(super) fn new(shared: Arc<Shared>, pieces_max: usize) -> Memory {
        let pool = BufferPool::new((pieces_max + 1) * PAYLOAD_BYTES_MAX as usize);
        Memory { shared, guest: Slab::new(), pieces: HashMap::new(), pool, ended: Vec::new() }
    }

    /// Keeps the bytes of a request of the guest; the number is that by which the writer will know it.
    pub(super) fn keep(&mut self, token: u64, segment: Segment) -> u64 {
        self.guest.insert(GuestRequest { token, segment, lent: 0, result: None, postponed: None }) as u64
    }

    /// Requests of the guest that have not ended for it.
    pub(super) fn requests(&self) -> usize {
        self.guest.len() + self.ended.len()
    }

    /// Whether there is something for [`take_ended`](Self::take_ended).
    pub(super) fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    /// Moves the requests that have ended to `completions`.
    pub(super) fn take_ended(&mut self, completions: &mut Vec<Completion>) {
        completions.append(&mut self.ended);
    }

    /// The writer has ended a request of the guest.
    pub(super) fn end(&mut self, number: u64, result: Result<(), i32>) {
        if let Some(request) = self.guest.get_mut(number as usize) {
            request.result = Some(result);
            request.postponed = None;
            self.end_if_back(number);
        }
    }

    /// The bytes of a piece are not needed any more.
    pub(super) fn end_piece(&mut self, copy: u64) {
        if let Some(piece) = self.pieces.get_mut(&copy) {
            piece.over = true;
            self.drop_piece_if_back(copy);
        }
    }

    /// The `len` bytes of a write; none if they are not there (any more).
    pub(super) fn source(&self, payload: Payload, len: usize) -> Option<Source> {
        let here = |segment: Segment| (len <= segment.len).then_some(Source::Here(Segment::new(segment.base, len)));
        match payload {
            Payload::None => None,
            Payload::Guest { token, .. } => here(self.guest.get(token as usize)?.segment),
            Payload::Copy(copy) => {
                let buffer = &self.pieces.get(&copy)?.buffer;
                here(Segment::new(buffer.as_ptr(), buffer.capacity()))
            }
            Payload::Retained { entry, skip } => {
                let bytes = self.shared.retained(entry)?;
                let skip = skip as usize;
                (skip.checked_add(len)? <= bytes.len()).then_some(Source::Kept(bytes, skip))
            }
        }
    }

    /// Room for the `len` bytes of a read; none if they are not wanted (any more).
    pub(super) fn target(&mut self, payload: Payload, len: usize) -> Option<Segment> {
        let segment = match payload {
            Payload::Guest { token, .. } => self.guest.get(token as usize)?.segment,
            Payload::Copy(copy) => {
                let buffer = &self.piece(copy, len)?.buffer;
                Segment::new(buffer.as_ptr(), buffer.capacity())
            }
            Payload::None | Payload::Retained { .. } => return None,
        };
        (len <= segment.len).then_some(Segment::new(segment.base, len))
    }

    /// Whether the bytes may go to the disk now, or come from there. If not, it is kept and comes out of
    /// [`give_back`](Self::give_back).
    pub(super) fn lend(&mut self, outgoing: Outgoing) -> Option<Outgoing> {
        match outgoing.payload {
            Payload::Guest { token, .. } => {
                let request = self.guest.get_mut(token as usize)?;
                if request.lent > 0 && matches!(outgoing.request, Request::Read { .. }) {
                    request.postponed = Some(outgoing);
                    return None;
                }
                request.lent += 1;
            }
            Payload::Copy(copy) => {
                let len = match outgoing.request {
                    Request::Read { len, .. } | Request::Write { len, .. } => len as usize,
                    _ => 0,
                };
                if let Some(piece) = self.piece(copy, len) {
                    piece.lent += 1;
                }
            }
            Payload::None | Payload::Retained { .. } => {}
        }
        Some(outgoing)
    }

    /// Whether a read may be sent to another member now: not while a disk may still write to where it goes. If
    /// not, it is kept and comes out of [`give_back`](Self::give_back).
    pub(super) fn may_send(&mut self, outgoing: Outgoing) -> Option<Outgoing> {
        if let (Payload::Guest { token, .. }, Request::Read { .. }) = (outgoing.payload, &outgoing.request) {
            let request = self.guest.get_mut(token as usize)?;
            if request.lent > 0 {
                request.postponed = Some(outgoing);
                return None;
            }
        }
        Some(outgoing)
    }

    /// The disk does not use the bytes any more; what waited for that.
    pub(super) fn give_back(&mut self, payload: Payload) -> Option<Outgoing> {
        match payload {
            Payload::Guest { token, .. } => {
                let request = self.guest.get_mut(token as usize)?;
                request.lent -= 1;
                if request.lent == 0 && request.postponed.is_some() {
                    return request.postponed.take();
                }
                self.end_if_back(token);
            }
            Payload::Copy(copy) => {
                if let Some(piece) = self.pieces.get_mut(&copy) {
                    // It may not have been there when its bytes were lent.
                    piece.lent = piece.lent.saturating_sub(1);
                    self.drop_piece_if_back(copy);
                }
            }
            Payload::None | Payload::Retained { .. } => {}
        }
        None
    }

    /// A session is over: what was to be sent on it is not.
    pub(super) fn forget_postponed(&mut self, member: MemberIndex) {
        for (_, request) in &mut self.guest {
            if request.postponed.as_ref().is_some_and(|outgoing| outgoing.member == member) {
                request.postponed = None;
            }
        }
    }

    /// A piece, with room for its bytes from now on; none while too many are kept.
    fn piece(&mut self, copy: u64, len: usize) -> Option<&mut Piece> {
        if !self.pieces.contains_key(&copy) {
            let buffer = self.pool.take(len)?;
            self.pieces.insert(copy, Piece { buffer, lent: 0, over: false });
        }
        self.pieces.get_mut(&copy)
    }

    fn end_if_back(&mut self, number: u64) {
        let Some(GuestRequest { token, lent: 0, result: Some(result), .. }) = self.guest.get(number as usize) else {
            return;
        };
        self.ended.push(Completion { token: *token, result: result.map_err(Errno) });
        self.guest.remove(number as usize);
    }

    fn drop_piece_if_back(&mut self, copy: u64) {
        if self.pieces.get(&copy).is_some_and(|piece| piece.over && piece.lent == 0)
            && let Some(piece) = self.pieces.remove(&copy)
        {
            self.pool.give(piece.buffer);
        }
    }
}
