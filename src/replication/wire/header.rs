//! The 32 bytes before every body: what follows, how much of it, and the numbers that most frames have.
//!
//! A header decides how many bytes are read and kept, so nothing of it is believed before
//! [`Header::parse`] has held it against the [`Rules`] of its kind: the bound of the body, the flags,
//! and zeros in each field that the kind does not use. Writers of frames pass through the same rules.

use std::fmt;
use std::ops::RangeInclusive;

use super::WireError;
use super::opening::{
    CREATE_BODY_BYTES_MAX, DESCRIBE_BODY_BYTES_MAX, DESCRIPTION_BODY_BYTES_MAX, DESCRIPTION_BODY_BYTES_MIN,
    HELLO_BODY_BYTES_MAX, OPENING_BODY_BYTES_MIN, WELCOME_BODY_BYTES,
};
use super::refusal::{REFUSED_BODY_BYTES_MAX, REFUSED_BODY_BYTES_MIN};
use super::view::VIEW_BYTES_MAX;
use crate::replication::message::{PAYLOAD_BYTES_MAX, ROWS_MAX, SETTLED_MAX};
use crate::replication::view::ViewNumber;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 32;

/// What stands before a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub(super) kind: Kind,
    pub(super) durable: bool,
    pub(super) sparse: bool,
    pub(super) body_bytes: u32,
    pub(super) view: ViewNumber,
    pub(super) id: u64,
    pub(super) offset: u64,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    ///
    /// [`WireError`] when no frame of this version can begin so.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Header, WireError> {
        let [kind, flags, reserved_low, reserved_high, ..] = *bytes;
        let kind = Kind::try_from(kind)?;
        if flags & !(DURABLE | SPARSE) != 0 {
            return Err(WireError::UnknownFlags { kind, flags });
        }
        if (reserved_low, reserved_high) != (0, 0) {
            return Err(WireError::NotZero { kind, field: "reserved" });
        }
        let header = Header {
            kind,
            durable: flags & DURABLE != 0,
            sparse: flags & SPARSE != 0,
            body_bytes: u32::from_le_bytes(part(bytes, 4)),
            view: ViewNumber(u64::from_le_bytes(part(bytes, 8))),
            id: u64::from_le_bytes(part(bytes, 16)),
            offset: u64::from_le_bytes(part(bytes, 24)),
        };
        header.check()?;
        Ok(header)
    }

    /// Which frame it begins.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How many bytes follow, within the bound of the kind.
    pub fn body_bytes(&self) -> u32 {
        self.body_bytes
    }

    /// Whether the body is sectors. Those are read to where they are needed, and the decoders are given
    /// an empty body. All other bodies are given to them whole.
    pub fn is_payload(&self) -> bool {
        matches!(self.kind, Kind::Write | Kind::Data)
    }

    /// That the frame may come here: to be asked before its body is read.
    ///
    /// # Errors
    ///
    /// [`WireError::Misplaced`].
    pub fn expect(&self, role: Role) -> Result<(), WireError> {
        if self.kind.role() == role { Ok(()) } else { Err(WireError::Misplaced { kind: self.kind, expected: role }) }
    }

    /// A header of this kind with zeros in it.
    pub(super) fn of(kind: Kind) -> Header {
        Header { kind, durable: false, sparse: false, body_bytes: 0, view: ViewNumber::NONE, id: 0, offset: 0 }
    }

    /// Appends a frame: this header, with the length of the body filled in, and the body. For payload
    /// kinds the body is not there and its length is already filled in.
    ///
    /// # Errors
    ///
    /// [`WireError`] when [`parse`](Self::parse) would refuse it; then nothing is appended.
    pub(super) fn append(mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), WireError> {
        if !self.is_payload() {
            let bytes = body.len();
            self.body_bytes =
                u32::try_from(bytes).map_err(|_| WireError::BodyLength { kind: self.kind, bytes: bytes as u64 })?;
        }
        self.check()?;
        out.extend_from_slice(&self.to_bytes());
        out.extend_from_slice(body);
        Ok(())
    }

    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.kind as u8;
        bytes[1] = self.flags();
        bytes[4..8].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.view.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.id.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    fn flags(&self) -> u8 {
        (u8::from(self.durable) * DURABLE) | (u8::from(self.sparse) * SPARSE)
    }

    fn check(&self) -> Result<(), WireError> {
        let kind = self.kind;
        let rules = kind.rules();
        if self.flags() & !rules.flags != 0 {
            return Err(WireError::UnknownFlags { kind, flags: self.flags() });
        }
        if !rules.body.contains(&self.body_bytes) || !self.body_bytes.is_multiple_of(rules.body_unit) {
            return Err(WireError::BodyLength { kind, bytes: self.body_bytes.into() });
        }
        if self.view > ViewNumber::MAX {
            return Err(WireError::ViewNumber { kind, view: self.view });
        }
        let used =
            [("view", self.view.0, rules.view), ("id", self.id, rules.id), ("offset", self.offset, rules.offset)];
        for (field, value, used) in used {
            if value != 0 && !used {
                return Err(WireError::NotZero { kind, field });
            }
        }
        Ok(())
    }
}

/// Which frame. Those of a replica have the highest bit set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Opens a connection of a session.
    Hello = 0x01,
    /// Opens a connection to make a copy.
    Create = 0x02,
    /// [`Request::Accept`](crate::replication::message::Request::Accept).
    Accept = 0x03,
    /// [`Request::Write`](crate::replication::message::Request::Write).
    Write = 0x04,
    /// [`Request::Zero`](crate::replication::message::Request::Zero).
    Zero = 0x05,
    /// [`Request::Flush`](crate::replication::message::Request::Flush).
    Flush = 0x06,
    /// [`Request::Read`](crate::replication::message::Request::Read).
    Read = 0x07,
    /// [`Request::Rows`](crate::replication::message::Request::Rows).
    Rows = 0x08,
    /// [`Request::Settle`](crate::replication::message::Request::Settle).
    Settle = 0x09,
    /// [`Request::Ping`](crate::replication::message::Request::Ping).
    Ping = 0x0a,
    /// Opens a connection to hear what a volume is.
    Describe = 0x0b,
    /// [`Request::Digest`](crate::replication::message::Request::Digest).
    Digest = 0x0c,
    /// The opening is accepted.
    Welcome = 0x81,
    /// The opening is refused.
    Refused = 0x82,
    /// [`Reply::Done`](crate::replication::message::Reply::Done).
    Done = 0x83,
    /// [`Reply::Data`](crate::replication::message::Reply::Data).
    Data = 0x84,
    /// [`Reply::Rows`](crate::replication::message::Reply::Rows).
    RowList = 0x85,
    /// [`Reply::Failed`](crate::replication::message::Reply::Failed).
    Failed = 0x86,
    /// [`Reply::Superseded`](crate::replication::message::Reply::Superseded).
    Superseded = 0x87,
    /// [`Reply::Zeros`](crate::replication::message::Reply::Zeros).
    Zeros = 0x88,
    /// What the volume is.
    Description = 0x89,
    /// [`Reply::DigestOf`](crate::replication::message::Reply::DigestOf).
    DigestOf = 0x8a,
}

impl Kind {
    /// Where frames of this kind may come.
    pub fn role(self) -> Role {
        match self {
            Self::Hello | Self::Create | Self::Describe => Role::Opening,
            Self::Welcome | Self::Description | Self::Refused => Role::Answer,
            Self::Accept | Self::Write | Self::Zero | Self::Flush => Role::Request,
            Self::Read | Self::Digest | Self::Rows | Self::Settle | Self::Ping => Role::Request,
            Self::Done | Self::Data | Self::Zeros | Self::DigestOf | Self::RowList => Role::Reply,
            Self::Failed | Self::Superseded => Role::Reply,
        }
    }

    fn rules(self) -> Rules {
        let plain = Rules {
            flags: 0,
            view: matches!(self.role(), Role::Opening | Role::Request),
            id: matches!(self.role(), Role::Request | Role::Reply),
            offset: false,
            body: 0..=0,
            body_unit: 1,
        };
        match self {
            Self::Hello => Rules { body: OPENING_BODY_BYTES_MIN..=HELLO_BODY_BYTES_MAX, ..plain },
            Self::Create => Rules { body: OPENING_BODY_BYTES_MIN..=CREATE_BODY_BYTES_MAX, ..plain },
            // Who asks may have seen no view.
            Self::Describe => Rules { view: false, body: OPENING_BODY_BYTES_MIN..=DESCRIBE_BODY_BYTES_MAX, ..plain },
            Self::Accept => Rules { body: 1..=VIEW_BYTES_MAX, ..plain },
            Self::Write => Rules { flags: DURABLE | SPARSE, offset: true, body: 1..=PAYLOAD_BYTES_MAX, ..plain },
            Self::Zero => Rules { flags: DURABLE, offset: true, body: 8..=8, ..plain },
            Self::Read | Self::Digest | Self::Rows => Rules { offset: true, body: 4..=4, ..plain },
            Self::Settle => Rules { body: 0..=SETTLED_MAX as u32 * 12, body_unit: 12, ..plain },
            Self::Flush | Self::Ping | Self::Done | Self::Zeros => plain,
            Self::Welcome => Rules { view: true, body: WELCOME_BODY_BYTES..=WELCOME_BODY_BYTES, ..plain },
            Self::Description => Rules { body: DESCRIPTION_BODY_BYTES_MIN..=DESCRIPTION_BODY_BYTES_MAX, ..plain },
            Self::Refused => Rules { view: true, body: REFUSED_BODY_BYTES_MIN..=REFUSED_BODY_BYTES_MAX, ..plain },
            Self::Data => Rules { body: 1..=PAYLOAD_BYTES_MAX, ..plain },
            Self::DigestOf => Rules { body: 32..=32, ..plain },
            Self::RowList => Rules { body: 0..=ROWS_MAX * 8, body_unit: 8, ..plain },
            Self::Failed => Rules { body: 4..=4, ..plain },
            Self::Superseded => Rules { view: true, ..plain },
        }
    }
}

impl TryFrom<u8> for Kind {
    type Error = WireError;

    fn try_from(byte: u8) -> Result<Self, WireError> {
        Ok(match byte {
            0x01 => Self::Hello,
            0x02 => Self::Create,
            0x03 => Self::Accept,
            0x04 => Self::Write,
            0x05 => Self::Zero,
            0x06 => Self::Flush,
            0x07 => Self::Read,
            0x08 => Self::Rows,
            0x09 => Self::Settle,
            0x0a => Self::Ping,
            0x0b => Self::Describe,
            0x0c => Self::Digest,
            0x81 => Self::Welcome,
            0x82 => Self::Refused,
            0x83 => Self::Done,
            0x84 => Self::Data,
            0x85 => Self::RowList,
            0x86 => Self::Failed,
            0x87 => Self::Superseded,
            0x88 => Self::Zeros,
            0x89 => Self::Description,
            0x8a => Self::DigestOf,
            kind => return Err(WireError::UnknownKind { kind }),
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Where a frame may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// First, from the writer.
    Opening,
    /// First, from the replica.
    Answer,
    /// Later, from the writer.
    Request,
    /// Later, from the replica.
    Reply,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opening => "an opening",
            Self::Answer => "the answer to an opening",
            Self::Request => "a request",
            Self::Reply => "a reply",
        })
    }
}

/// What the header of a kind may have: any of `flags`. `view`, `id` and `offset` say which of these fields it uses.
struct Rules {
    flags: u8,
    view: bool,
    id: bool,
    offset: bool,
    body: RangeInclusive<u32>,
    body_unit: u32,
}

/// The `N` bytes at a place that is known to be within the header.
fn part<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[at + index])
}

const DURABLE: u8 = 1;
const SPARSE: u8 = 2;
