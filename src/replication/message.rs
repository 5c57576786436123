//! What a writer asks of a replica, and the answers, without the bytes that some of them carry.
//!
//! A session between a writer and a replica has a connection for control and one for each queue. The
//! first message on each is a [`Hello`]; everything after it is a [`Request`] with an id of the
//! writer's and the number of the view in which it asks. Each is answered once, in any order.
//! `docs/protocol.md` has the bytes.

use uuid::Uuid;

use super::region::{RegionIndex, Row};
use super::view::{Incarnation, View, ViewNumber, WriterId};

/// What a writer says first on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The volume.
    pub volume: Uuid,
    /// The writer's view.
    pub view: ViewNumber,
    /// The writer.
    pub writer: WriterId,
    /// Which session of this writer with this replica: each replaces the ones before it.
    pub session: u64,
    /// Which connection of the session: 0 for control, else the queue's number plus one.
    pub lane: u16,
    /// Ed25519 signature by the writer's key over what `docs/protocol.md` says; none for a volume without
    /// encryption.
    pub proof: Option<[u8; 64]>,
}

/// The answer to a [`Hello`] that is accepted: nothing of earlier sessions will be applied any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The life that the copy is in.
    pub incarnation: Incarnation,
    /// The highest view that the copy has accepted.
    pub accepted: ViewNumber,
}

/// What a writer asks of a replica. Offsets and lengths are in bytes of the volume, multiples of its
/// sector size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Accept this view, durably, and nothing in a lower one from then on.
    Accept(Box<View>),
    /// Store the bytes that follow.
    Write {
        /// First byte.
        offset: u64,
        /// How many.
        len: u32,
        /// Answer when they would survive a power loss.
        durable: bool,
        /// Store long runs of zeros as holes.
        sparse: bool,
    },
    /// Make a range read as zeros and give its space back.
    Zero {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
        /// Answer when that would survive a power loss.
        durable: bool,
    },
    /// Make every write that was answered before this was sent durable.
    Flush,
    /// Give back what is stored.
    Read {
        /// First byte.
        offset: u64,
        /// How many.
        len: u32,
    },
    /// Give back the digest of what is stored, for copies to be compared without their bytes.
    Digest {
        /// First byte.
        offset: u64,
        /// How many, at most [`PAYLOAD_BYTES_MAX`].
        len: u32,
    },
    /// Give back rows of the region table.
    Rows {
        /// The first.
        first: RegionIndex,
        /// How many, at most [`ROWS_MAX`].
        count: u32,
    },
    /// These regions are equal on all copies, and durable: clear their intents, and note the last view in
    /// which each was written. At most [`SETTLED_MAX`]. A region that was written since the last flush
    /// keeps its intent.
    Settle(Vec<(RegionIndex, ViewNumber)>),
    /// Show a sign of life.
    Ping,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done.
    Done,
    /// The bytes that follow are what is stored.
    Data,
    /// All that was asked for reads as zeros; no bytes follow.
    Zeros,
    /// What is stored, holes as zeros, has this digest.
    DigestOf(Digest),
    /// Rows of the region table.
    Rows(Vec<Row>),
    /// The copy could not do it: an error number of errno(3).
    Failed(i32),
    /// The copy has accepted a higher view than that of the request, and does nothing in this one.
    Superseded(ViewNumber),
}

/// SHA-256 of bytes as they are stored.
pub type Digest = [u8; 32];

/// The most bytes of one write, read or digest.
pub const PAYLOAD_BYTES_MAX: u32 = 1 << 18;
/// The most rows of one answer.
pub const ROWS_MAX: u32 = 1 << 16;
/// The most regions of one [`Request::Settle`].
pub const SETTLED_MAX: usize = 1 << 14;
