//! The conversation with the VMM (the vhost-user protocol, back-end side).
//!
//! [`server`] listens and serves one front end after another; [`session`] is the conversation with
//! one of them; [`memory`] maps what it shares, and [`rings`] turns what it says about its queues
//! into running workers; [`inflight`] is where the next process finds what this one had in flight.
//! The process outlives its front ends: when one leaves, in whatever way, what it had in flight is
//! finished, the volume stays, and the next one is served.

mod hostile;
pub mod inflight;
pub mod memory;
pub mod rings;
pub mod server;
pub mod session;
pub mod socket;

pub use hostile::converse_hostile;
use vhost::vhost_user::Error as VhostError;

/// What a front end did wrong; it is told, and its connection may go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A queue number beyond the device's.
    #[error("queue {index} is asked for and there are {max}: start fewer queues or serve with a larger --queues")]
    NoSuchQueue {
        /// The number asked for.
        index: u32,
        /// How many there are.
        max: u16,
    },
    /// A queue size that no split ring can have here.
    #[error("queue {index}: a size of {size} is not a power of two up to {max}")]
    QueueSize {
        /// The queue.
        index: u16,
        /// The size asked for.
        size: u32,
        /// The largest allowed.
        max: u16,
    },
    /// Ring addresses that are misaligned or not in the memory table.
    #[error("queue {index}: the ring is misaligned or outside the memory table")]
    RingAddress {
        /// The queue.
        index: u16,
    },
    /// A change that a running queue cannot take.
    #[error("queue {index}: its geometry cannot change while it runs")]
    Running {
        /// The queue.
        index: u16,
    },
    /// A feature bit that was not offered.
    #[error("features {accepted:#x} include some that were not offered ({offered:#x})")]
    Features {
        /// What the front end sent.
        accepted: u64,
        /// What was offered.
        offered: u64,
    },
    /// A protocol feature that was not offered.
    #[error("protocol features {accepted:#x} include some that were not offered ({offered:#x})")]
    ProtocolFeatures {
        /// What the front end sent.
        accepted: u64,
        /// What was offered.
        offered: u64,
    },
    /// A ring without a kick, which would have to be polled.
    #[error("queue {index}: SET_VRING_KICK brings no descriptor and rings are not polled: send an eventfd with it")]
    NoKick {
        /// The queue.
        index: u16,
    },
    /// A memory region that cannot be used.
    #[error("memory region of {size:#x} bytes at guest address {address:#x}: {reason}")]
    Memory {
        /// Guest physical address.
        address: u64,
        /// Size in bytes.
        size: u64,
        /// Why.
        reason: String,
    },
    /// A kick, call or error descriptor that is no eventfd.
    #[error("queue {index}: the descriptor is not an eventfd")]
    NotAnEventFd {
        /// The queue.
        index: u16,
    },
    /// A write to the configuration space that the standard does not allow.
    #[error("the configuration space cannot be written at {offset} with {len} bytes")]
    Config {
        /// Offset in the configuration space.
        offset: u32,
        /// Length of the write.
        len: usize,
    },
    /// Memory for what is in flight that cannot be used.
    #[error("the memory for what is in flight cannot be used: {0}")]
    Inflight(String),
    /// A message for something that was not offered.
    #[error("{0} was not offered")]
    NotOffered(&'static str),
    /// The host refused something that the message needs.
    #[error("queue {index}: {source}")]
    Host {
        /// The queue.
        index: u16,
        /// The host's error.
        source: std::io::Error,
    },
}

impl From<SessionError> for VhostError {
    fn from(error: SessionError) -> Self {
        Self::ReqHandlerError(std::io::Error::other(error))
    }
}
