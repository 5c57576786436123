//! What can be wrong with a frame.

use super::header::{Kind, Role};
use super::refusal::RefusalCode;
use super::version::ProtocolVersion;
use crate::replication::view::{NodeNameError, ViewError, ViewNumber};

/// A frame could not be read or made. The connection that brought it has no next frame that could be
/// found: it has to be closed.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// A kind of this version's future, or no frame at all.
    #[error("a frame is of kind {kind:#04x}, which protocol version {} does not have: check that the peer is a sealblk, and which version it runs", ProtocolVersion::HIGHEST.number())]
    UnknownKind {
        /// The byte.
        kind: u8,
    },
    /// A flag that frames of this kind do not have.
    #[error("a frame {kind} has the flags {flags:#04x}, which mean nothing there: check which version the peer runs")]
    UnknownFlags {
        /// Of which frame.
        kind: Kind,
        /// All its flags.
        flags: u8,
    },
    /// A field that frames of this kind do not use is not zero.
    #[error("a frame {kind} fills the field {field}, which it does not use: check which version the peer runs")]
    NotZero {
        /// Of which frame.
        kind: Kind,
        /// Which field.
        field: &'static str,
    },
    /// A body that is shorter or longer than frames of this kind may have, or ends within a value.
    #[error(
        "a frame {kind} announces a body of {bytes} bytes, which it cannot have: check which version the peer runs"
    )]
    BodyLength {
        /// Of which frame.
        kind: Kind,
        /// How long the body is said to be.
        bytes: u64,
    },
    /// The body given to a decoder is not the one that the header announces, or its parts do not fill it.
    #[error("the body of a frame {kind} does not have the bytes that it announces: close the connection")]
    BodyMismatch {
        /// Of which frame.
        kind: Kind,
    },
    /// A frame that does not belong where it came.
    #[error("a frame {kind} came where only {expected} may come: check that writer and replica are not mixed up")]
    Misplaced {
        /// What came.
        kind: Kind,
        /// What would have been in order.
        expected: Role,
    },
    /// An answer to an opening of another kind.
    #[error(
        "a frame {kind} came as the answer to an opening that it does not answer: check which version the peer runs"
    )]
    WrongAnswer {
        /// What came.
        kind: Kind,
    },
    /// A number that no view has.
    #[error("a frame {kind} is of view {view}, and no view has that number: close the connection")]
    ViewNumber {
        /// Of which frame.
        kind: Kind,
        /// The number.
        view: ViewNumber,
    },
    /// An opening that is not of this protocol.
    #[error("a connection was opened with other bytes than sealblk's: check that the peer is a sealblk")]
    Magic,
    /// Versions that are no range.
    #[error("a writer offers the protocol versions {lowest} to {highest}, which is no range: close the connection")]
    VersionRange {
        /// The first.
        lowest: u16,
        /// The last.
        highest: u16,
    },
    /// None of the versions offered is spoken here.
    #[error("a writer offers the protocol versions {lowest} to {highest}, and this sealblk speaks {} to {}: upgrade the older of the two", ProtocolVersion::LOWEST.number(), ProtocolVersion::HIGHEST.number())]
    NoCommonVersion {
        /// The first offered.
        lowest: u16,
        /// The last offered.
        highest: u16,
    },
    /// A replica chose a version that was not offered.
    #[error("a replica chose protocol version {number}, which it was not offered: check which version it runs")]
    UnknownVersion {
        /// The number.
        number: u16,
    },
    /// A value that a field cannot have.
    #[error("a frame {kind} has an impossible {field}: check which version the peer runs")]
    Field {
        /// Of which frame.
        kind: Kind,
        /// Which field.
        field: &'static str,
    },
    /// A range of bytes or regions that is empty, too long, or goes beyond what numbers can say.
    #[error("a frame {kind} is about {len} from {offset}, which is no possible range: close the connection")]
    Range {
        /// Of which frame.
        kind: Kind,
        /// Where the range begins.
        offset: u64,
        /// How long it is.
        len: u64,
    },
    /// A writer with an impossible name.
    #[error("a writer names its node wrongly: {source}")]
    Node {
        /// What is wrong with the name.
        source: NodeNameError,
    },
    /// A view that is not written as views are.
    #[error("the view in a frame {kind} cannot be read: {source}: check which version the peer runs")]
    ViewSyntax {
        /// Of which frame.
        kind: Kind,
        /// Where it stops being one.
        source: serde_json::Error,
    },
    /// A view that cannot be.
    #[error("a frame {kind} brings a view that is none: {source}")]
    View {
        /// Of which frame.
        kind: Kind,
        /// What is wrong with the view.
        source: ViewError,
    },
    /// A refusal for a reason that this version does not know.
    #[error("a replica refused for reason {code}, which is unknown here: see that replica's log")]
    UnknownRefusal {
        /// The number of the reason.
        code: u16,
    },
}

impl WireError {
    /// What a replica answers to an opening that is wrong in this way.
    pub fn refusal_code(&self) -> RefusalCode {
        match self {
            Self::NoCommonVersion { .. } => RefusalCode::Version,
            _ => RefusalCode::Malformed,
        }
    }
}
