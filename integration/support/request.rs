//! virtio-blk requests (virtio 1.2, 5.2.6) in any descriptor layout.
//!
//! A request is two streams of bytes: what the device reads (header, then data out) and what it
//! writes (data in, then status). A [`Layout`] says into pieces of which lengths each stream is
//! cut; every piece gets a buffer and a descriptor of its own, so header and data, or data and
//! status, share a descriptor whenever a cut does not fall between them.

use std::collections::HashMap;

use super::guest::Guest;
use super::ring::{Descriptor, INDIRECT, NEXT, Used};

/// Read.
pub const IN: u32 = 0;
/// Write.
pub const OUT: u32 = 1;
/// Make completed writes durable.
pub const FLUSH: u32 = 4;
/// Read the serial.
pub const GET_ID: u32 = 8;
/// Give sectors back.
pub const DISCARD: u32 = 11;
/// Make sectors zero.
pub const WRITE_ZEROES: u32 = 13;

/// The request was done.
pub const OK: u8 = 0;
/// The request failed.
pub const IOERR: u8 = 1;
/// The device does not know the request.
pub const UNSUPP: u8 = 2;
/// What the status byte holds until the device writes it.
pub const UNTOUCHED: u8 = 0xee;

/// The length of the request header in bytes.
pub const HEADER: usize = 16;

/// The most bytes in one request of [`Guest::read`] and [`Guest::write`].
const PIECE: usize = 64 << 10;

/// One request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// [`IN`], [`OUT`], …
    pub kind: u32,
    /// First sector, in units of 512 bytes.
    pub sector: u64,
    /// What the device reads after the header.
    pub out: &'a [u8],
    /// How many bytes the device writes before the status.
    pub in_length: usize,
}

impl<'a> Request<'a> {
    /// Reads `length` bytes at byte `offset`.
    pub fn read(offset: u64, length: usize) -> Self {
        Self { in_length: length, ..Self::bare(IN, offset / 512) }
    }

    /// Writes `data` at byte `offset`.
    pub fn write(offset: u64, data: &'a [u8]) -> Self {
        Self { out: data, ..Self::bare(OUT, offset / 512) }
    }

    /// A request of a header alone.
    pub fn bare(kind: u32, sector: u64) -> Self {
        Self { kind, sector, out: &[], in_length: 0 }
    }

    /// Makes completed writes durable.
    pub fn flush() -> Self {
        Self::bare(FLUSH, 0)
    }

    /// A DISCARD or WRITE_ZEROES of `segments`, which [`segments`] encodes.
    pub fn ranges(kind: u32, segments: &'a [u8]) -> Self {
        Self { out: segments, ..Self::bare(kind, 0) }
    }

    /// The header as it lies in memory.
    pub fn header(&self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&self.kind.to_le_bytes());
        header[8..].copy_from_slice(&self.sector.to_le_bytes());
        header
    }
}

/// Encodes segments of a DISCARD or WRITE_ZEROES: first sector, number of sectors, flags.
pub fn segments(segments: &[(u64, u32, u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (sector, count, flags) in segments {
        bytes.extend_from_slice(&sector.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&flags.to_le_bytes());
    }
    bytes
}

/// How a request is cut into descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Lengths of the pieces of header and data out.
    pub readable: Vec<usize>,
    /// Lengths of the pieces of data in and status.
    pub writable: Vec<usize>,
    /// Whether the descriptors lie in an indirect table.
    pub indirect: bool,
    /// How many bytes past an aligned address each buffer starts.
    pub skew: u64,
}

impl Layout {
    /// How Linux lays a request out: header, one buffer of data, status.
    pub fn usual(request: &Request<'_>) -> Self {
        let some = |length: usize| (length > 0).then_some(length);
        Self {
            readable: [HEADER].into_iter().chain(some(request.out.len())).collect(),
            writable: some(request.in_length).into_iter().chain([1]).collect(),
            indirect: false,
            skew: 0,
        }
    }

    /// The same in an indirect table.
    pub fn indirect(self) -> Self {
        Self { indirect: true, ..self }
    }
}

/// A request that has been made available.
#[derive(Debug)]
#[must_use]
pub struct Pending {
    /// The queue it is on.
    pub queue: usize,
    /// Head of its chain.
    pub head: u16,
    pieces: Vec<(u64, usize)>,
}

/// What the device made of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status byte.
    pub status: u8,
    /// Data in.
    pub data: Vec<u8>,
    /// The length in the used ring.
    pub used_length: u32,
}

/// Completions that came while another was waited for.
pub type Early = HashMap<(usize, u16), Used>;

impl Guest {
    /// Makes a request available without notifying the device.
    pub fn submit(&mut self, queue: usize, request: &Request<'_>, layout: &Layout) -> Pending {
        let mut readable = request.header().to_vec();
        readable.extend_from_slice(request.out);
        assert_eq!(layout.readable.iter().sum::<usize>(), readable.len());
        assert_eq!(layout.writable.iter().sum::<usize>(), request.in_length + 1);
        self.start_request();

        let mut chain = Vec::new();
        let mut rest = readable.as_slice();
        for &length in &layout.readable {
            let (piece, later) = rest.split_at(length);
            let address = self.memory.allocate(length + 8, 512) + layout.skew;
            self.memory.write(address, piece);
            chain.push(Descriptor::readable(address, length as u32));
            rest = later;
        }
        let mut pieces = Vec::new();
        for &length in &layout.writable {
            let address = self.memory.allocate(length + 8, 512) + layout.skew;
            self.memory.write(address, &vec![UNTOUCHED; length]);
            chain.push(Descriptor::writable(address, length as u32));
            pieces.push((address, length));
        }
        if layout.indirect {
            chain = vec![self.indirect_table(&chain)];
        }
        let head = self.rings[queue].add(&self.memory, &chain).expect("the test put more on the ring than it holds");
        Pending { queue, head, pieces }
    }

    /// Writes a table of linked descriptors and returns the descriptor that names it.
    pub fn indirect_table(&mut self, chain: &[Descriptor]) -> Descriptor {
        let address = self.memory.allocate(16 * chain.len(), 16);
        for (index, descriptor) in chain.iter().enumerate() {
            let linked = if index + 1 < chain.len() { descriptor.with(NEXT, index as u16 + 1) } else { *descriptor };
            self.memory.write(address + 16 * index as u64, &linked.bytes());
        }
        Descriptor::readable(address, 16 * chain.len() as u32).with(INDIRECT, 0)
    }

    /// Notifies the device of what has been submitted on `queue`.
    pub fn kick(&mut self, queue: usize) {
        self.rings[queue].kick_if_wanted(&self.memory);
    }

    /// Waits until the device is done with a request.
    pub fn finish(&mut self, pending: &Pending) -> Reply {
        let used = loop {
            if let Some(used) = self.early.remove(&(pending.queue, pending.head)) {
                break used;
            }
            let used = self.rings[pending.queue].wait(&self.memory);
            let duplicate = self.early.insert((pending.queue, used.head), used);
            assert_eq!(duplicate, None, "the device completed a chain twice");
        };
        self.end_request();
        self.reply(pending, used)
    }

    /// What lies in the buffers of a request that the device completed as `used`.
    pub fn reply(&self, pending: &Pending, used: Used) -> Reply {
        let mut data = Vec::new();
        for &(address, length) in &pending.pieces {
            data.extend(self.memory.read(address, length));
        }
        let status = data.pop().expect("every request has a status byte");
        Reply { status, data, used_length: used.length }
    }

    /// Makes a request in a given layout and waits for it.
    pub fn call_in(&mut self, queue: usize, request: &Request<'_>, layout: &Layout) -> Reply {
        let pending = self.submit(queue, request, layout);
        self.kick(queue);
        self.finish(&pending)
    }

    /// Makes a request in the usual layout and waits for it.
    pub fn call(&mut self, queue: usize, request: &Request<'_>) -> Reply {
        self.call_in(queue, request, &Layout::usual(request))
    }

    /// Makes a request that must succeed with the used length that the standard asks for.
    pub fn done(&mut self, queue: usize, request: &Request<'_>) -> Vec<u8> {
        let reply = self.call(queue, request);
        assert_eq!(reply.status, OK, "{request:?} failed");
        assert_eq!(reply.used_length as usize, request.in_length + 1);
        reply.data
    }

    /// Reads `length` bytes at byte `offset` through the first queue.
    pub fn read(&mut self, offset: u64, length: usize) -> Vec<u8> {
        let mut data = Vec::with_capacity(length);
        while data.len() < length {
            let piece = PIECE.min(length - data.len());
            let request = Request::read(offset + data.len() as u64, piece);
            data.extend(self.done(0, &request));
        }
        data
    }

    /// Writes `data` at byte `offset` through the first queue.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        for (piece, start) in data.chunks(PIECE).zip((offset..).step_by(PIECE)) {
            self.done(0, &Request::write(start, piece));
        }
    }

    /// Makes completed writes durable.
    pub fn flush(&mut self) {
        self.done(0, &Request::flush());
    }

    /// Discards or zeroes segments.
    pub fn ranges(&mut self, kind: u32, list: &[(u64, u32, u32)]) -> u8 {
        self.call(0, &Request::ranges(kind, &segments(list))).status
    }
}
