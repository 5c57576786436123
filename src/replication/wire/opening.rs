//! The first frame in each direction: who wants what, in which version, and whether it may.
//!
//! An opening is read before anything is known of the peer but its certificate. Its first bytes, and
//! the refusal that may answer it, are the same in all versions of the protocol.

use uuid::Uuid;

use super::body::Body;
use super::header::{Header, Kind, Role};
use super::refusal::Refusal;
use super::{ProtocolVersion, WireError, view};
use crate::replication::message::{Hello, Welcome};
use crate::replication::view::{Incarnation, NodeName, View, ViewNumber, WriterId};

/// What every opening begins with.
pub const MAGIC: [u8; 8] = *b"sealblk\0";

/// The most bytes of a superblock.
pub const SUPERBLOCK_BYTES_MAX: usize = 16 * 1024;

/// What may come first on a connection, from the writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// A connection of a session.
    Hello(Hello),
    /// Make a copy of a volume that has none here. The connection ends with the answer.
    Create {
        /// The content of `volume.json`, not looked into here: 1 to [`SUPERBLOCK_BYTES_MAX`] bytes.
        superblock: Vec<u8>,
        /// The view in which the copy is made.
        view: Box<View>,
        /// Signature by the writer's key as for lane 0 of session 0 in that view; none for a volume
        /// without encryption.
        proof: Option<[u8; 64]>,
    },
    /// Say what a volume is. The connection ends with the answer. There is no proof: who does not know the volume
    /// yet has nothing to derive one from.
    Describe {
        /// Which volume.
        volume: Uuid,
    },
}

impl Opening {
    /// Appends the frame, which offers every version that this code speaks.
    ///
    /// # Errors
    ///
    /// [`WireError`] for values out of their bounds; then nothing is appended.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        let mut body = Vec::with_capacity(256);
        body.extend_from_slice(&MAGIC);
        body.extend_from_slice(&ProtocolVersion::LOWEST.number().to_le_bytes());
        body.extend_from_slice(&ProtocolVersion::HIGHEST.number().to_le_bytes());
        match self {
            Self::Hello(hello) => {
                body.extend_from_slice(&hello.lane.to_le_bytes());
                body.extend_from_slice(&[hello.proof.is_some().into(), 0]);
                body.extend_from_slice(&hello.session.to_le_bytes());
                body.extend_from_slice(hello.volume.as_bytes());
                body.extend_from_slice(hello.writer.attachment.as_bytes());
                body.extend_from_slice(hello.proof.as_ref().map_or(&[], |proof| proof));
                body.extend_from_slice(hello.writer.node.as_str().as_bytes());
                Header { view: hello.view, ..Header::of(Kind::Hello) }.append(&body, out)
            }
            Self::Create { superblock, view, proof } => {
                if !(1..=SUPERBLOCK_BYTES_MAX).contains(&superblock.len()) {
                    return Err(WireError::Field { kind: Kind::Create, field: "superblock" });
                }
                body.extend_from_slice(&[proof.is_some().into(), 0, 0, 0]);
                body.extend_from_slice(&(superblock.len() as u32).to_le_bytes());
                body.extend_from_slice(proof.as_ref().map_or(&[], |proof| proof));
                body.extend_from_slice(superblock);
                body.extend_from_slice(&view::encode(Kind::Create, view)?);
                Header { view: view.number, ..Header::of(Kind::Create) }.append(&body, out)
            }
            Self::Describe { volume } => {
                body.extend_from_slice(volume.as_bytes());
                Header::of(Kind::Describe).append(&body, out)
            }
        }
    }

    /// Reads an opening, and chooses the version of the connection: the highest that both sides speak.
    ///
    /// # Errors
    ///
    /// [`WireError`], whose [`refusal_code`](WireError::refusal_code) is what to answer.
    pub fn decode(header: &Header, body: &[u8]) -> Result<(Opening, ProtocolVersion), WireError> {
        header.expect(Role::Opening)?;
        let kind = header.kind;
        let mut body = Body::new(header, body)?;
        if body.array()? != MAGIC {
            return Err(WireError::Magic);
        }
        // What follows is laid out as in the lowest version offered; so far there is one.
        let version = ProtocolVersion::choose(body.u16()?, body.u16()?)?;
        let opening = match kind {
            Kind::Hello => Self::Hello(decode_hello(header.view, &mut body)?),
            Kind::Describe => Self::Describe { volume: body.uuid()? },
            _ => decode_create(header.view, &mut body)?,
        };
        body.end()?;
        Ok((opening, version))
    }
}

/// The answer to an opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is accepted. After a `Hello`, requests may follow.
    Welcome {
        /// The version of all that follows.
        version: ProtocolVersion,
        /// The state of the copy.
        welcome: Welcome,
    },
    /// What the volume is that a `Describe` asked for. The connection ends.
    Description {
        /// The version in which this is said.
        version: ProtocolVersion,
        /// The content of `volume.json`, not looked into here: 1 to [`SUPERBLOCK_BYTES_MAX`] bytes.
        superblock: Vec<u8>,
    },
    /// It is not, and the connection ends.
    Refused(Refusal),
}

impl Answer {
    /// Which frame it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Welcome { .. } => Kind::Welcome,
            Self::Description { .. } => Kind::Description,
            Self::Refused(_) => Kind::Refused,
        }
    }

    /// Appends the frame.
    ///
    /// # Errors
    ///
    /// [`WireError`] for values out of their bounds; then nothing is appended.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        match self {
            Self::Welcome { version, welcome } => {
                let mut body = [0; WELCOME_BODY_BYTES as usize];
                body[..2].copy_from_slice(&version.number().to_le_bytes());
                body[2..].copy_from_slice(welcome.incarnation.0.as_bytes());
                Header { view: welcome.accepted, ..Header::of(Kind::Welcome) }.append(&body, out)
            }
            Self::Description { version, superblock } => {
                let mut body = Vec::with_capacity(2 + superblock.len());
                body.extend_from_slice(&version.number().to_le_bytes());
                body.extend_from_slice(superblock);
                Header::of(Kind::Description).append(&body, out)
            }
            Self::Refused(refusal) => refusal.encode(out),
        }
    }

    /// Reads an answer.
    ///
    /// # Errors
    ///
    /// [`WireError`] when it is none, or chooses a version that was not offered.
    pub fn decode(header: &Header, body: &[u8]) -> Result<Answer, WireError> {
        header.expect(Role::Answer)?;
        let mut body = Body::new(header, body)?;
        if header.kind == Kind::Refused {
            return Refusal::decode(header.view, body).map(Answer::Refused);
        }
        let version = ProtocolVersion::try_from(body.u16()?)?;
        if header.kind == Kind::Description {
            return Ok(Answer::Description { version, superblock: body.remainder().to_vec() });
        }
        let welcome = Welcome { incarnation: Incarnation(body.uuid()?), accepted: header.view };
        body.end()?;
        Ok(Answer::Welcome { version, welcome })
    }
}

fn decode_hello(view: ViewNumber, body: &mut Body<'_>) -> Result<Hello, WireError> {
    let lane = body.u16()?;
    let has_proof = decode_has_proof(Kind::Hello, body.array::<2>()?)?;
    let session = body.u64()?;
    let volume = body.uuid()?;
    let attachment = body.uuid()?;
    let proof = has_proof.then(|| body.array()).transpose()?;
    let node = str::from_utf8(body.remainder());
    let node = node.map_err(|_| WireError::Field { kind: Kind::Hello, field: "node name" })?;
    let node: NodeName = node.parse().map_err(|source| WireError::Node { source })?;
    Ok(Hello { volume, view, writer: WriterId { node, attachment }, session, lane, proof })
}

fn decode_create(number: ViewNumber, body: &mut Body<'_>) -> Result<Opening, WireError> {
    let kind = Kind::Create;
    let has_proof = decode_has_proof(kind, body.array::<4>()?)?;
    let superblock_bytes = body.u32()? as usize;
    if !(1..=SUPERBLOCK_BYTES_MAX).contains(&superblock_bytes) {
        return Err(WireError::Field { kind, field: "superblock" });
    }
    let proof = has_proof.then(|| body.array()).transpose()?;
    let superblock = body.bytes(superblock_bytes)?.to_vec();
    let view = view::decode(kind, body.remainder())?;
    if view.number == number {
        Ok(Opening::Create { superblock, view, proof })
    } else {
        Err(WireError::ViewNumber { kind, view: number })
    }
}

/// Whether a proof follows, from the byte that says so and the zeros after it.
fn decode_has_proof<const N: usize>(kind: Kind, bytes: [u8; N]) -> Result<bool, WireError> {
    match bytes.split_first() {
        Some((flag @ (0 | 1), reserved)) if reserved.iter().all(|byte| *byte == 0) => Ok(*flag == 1),
        _ => Err(WireError::Field { kind, field: "proof" }),
    }
}

/// Magic and versions.
pub(super) const OPENING_BODY_BYTES_MIN: u32 = 12;
/// More than version 1 needs, so that an opening of a later one is not cut off before its versions.
pub(super) const HELLO_BODY_BYTES_MAX: u32 = 1024;
pub(super) const CREATE_BODY_BYTES_MAX: u32 = 1024 + SUPERBLOCK_BYTES_MAX as u32 + view::VIEW_BYTES_MAX;
/// As those of a hello.
pub(super) const DESCRIBE_BODY_BYTES_MAX: u32 = 1024;
pub(super) const WELCOME_BODY_BYTES: u32 = 2 + 16;
pub(super) const DESCRIPTION_BODY_BYTES_MIN: u32 = 2 + 1;
pub(super) const DESCRIPTION_BODY_BYTES_MAX: u32 = 2 + SUPERBLOCK_BYTES_MAX as u32;
