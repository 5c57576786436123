//! Writes that were answered before they were done.
//!
//! For its writer such a write is stored. So a request that meets it is held until it is done, and a flush until
//! all are that were answered before the flush came. How much may be answered so is bounded: the bytes are
//! in memory meanwhile, and a flush has to wait for them.

use std::collections::{BTreeMap, VecDeque};

use super::{ConnectionId, FlightId, written_range};
use crate::replication::message::Request;

/// The book of them, and of what they hold up.
pub(super) struct Behind {
    bytes_max: u64,
    bytes: u64,
    /// First byte and length of each.
    writes: BTreeMap<FlightId, (u64, u64)>,
    held: VecDeque<Held>,
}

/// A request that waits for writes that came before it.
pub(super) struct Held {
    pub(super) flight: FlightId,
    pub(super) connection: ConnectionId,
    pub(super) id: u64,
    pub(super) request: Request,
}

impl Behind {
    /// An empty one for so many bytes. With none, no write is answered early.
    pub(super) fn new(bytes_max: u64) -> Behind {
        Behind { bytes_max, bytes: 0, writes: BTreeMap::new(), held: VecDeque::new() }
    }

    /// Notes a write that begins, if it may be answered now.
    pub(super) fn admit(&mut self, flight: FlightId, request: &Request) -> bool {
        let Request::Write { offset, len, durable: false, .. } = *request else { return false };
        let bytes = self.bytes + u64::from(len);
        if bytes > self.bytes_max {
            return false;
        }
        self.bytes = bytes;
        self.writes.insert(flight, (offset, len.into()));
        true
    }

    /// A write is done, or has failed; whether it had been answered.
    pub(super) fn end(&mut self, flight: FlightId) -> bool {
        let Some((_, len)) = self.writes.remove(&flight) else { return false };
        self.bytes -= len;
        true
    }

    /// Whether a request has to wait for writes before it.
    pub(super) fn is_in_the_way(&self, flight: FlightId, request: &Request) -> bool {
        let mut older = self.writes.range(..flight).map(|(_, &write)| write);
        let Some(range) = range(request) else { return older.next().is_some() };
        let mut held = self.held.iter().filter(|held| held.flight < flight);
        older.any(|write| meet(write, range))
            || written_range(request).is_some()
                && held.any(|held| written_range(&held.request).is_some_and(|write| meet(write, range)))
    }

    /// Keeps a request that has to wait.
    pub(super) fn hold(&mut self, held: Held) {
        self.held.push_back(held);
    }

    /// The first of those that were held and need not wait any more.
    pub(super) fn release(&mut self) -> Option<Held> {
        let free = self.held.iter().position(|held| !self.is_in_the_way(held.flight, &held.request))?;
        self.held.remove(free)
    }

    /// All that are held.
    pub(super) fn release_all(&mut self) -> VecDeque<Held> {
        std::mem::take(&mut self.held)
    }
}

/// First byte and length; none for what is about all of the copy.
fn range(request: &Request) -> Option<(u64, u64)> {
    match *request {
        Request::Read { offset, len } | Request::Digest { offset, len } => Some((offset, len.into())),
        ref request => written_range(request),
    }
}

fn meet((one, one_len): (u64, u64), (other, other_len): (u64, u64)) -> bool {
    one < other.saturating_add(other_len) && other < one.saturating_add(one_len)
}
