//! Why a connection is at its end.

use std::io;

use crate::replication::wire::WireError;
use crate::tls::TlsError;
use crate::tls::error::Peer;

/// A connection that was open cannot be used any more. What was asked on it and not answered may or may not
/// have been done.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The peer has ended it, in good order or not.
    #[error("{peer} has closed the connection: see its log if it does not come back")]
    Closed {
        /// Whom with.
        peer: Peer,
    },
    /// The kernel gave it up.
    #[error("the connection with {peer} failed: {source}: check the network between the two")]
    Network {
        /// Whom with.
        peer: Peer,
        /// Why.
        source: io::Error,
    },
    /// The peer breaks the rules of TLS, or says that we do.
    #[error(transparent)]
    Tls(TlsError),
    /// The peer breaks the rules of replication.
    #[error("{peer} sends what cannot be understood: {source}")]
    Frame {
        /// Whom with.
        peer: Peer,
        /// What is wrong.
        source: WireError,
    },
}
