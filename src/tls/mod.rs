//! Mutual TLS between nodes, over plain sockets of the standard library.
//!
//! Every node has a certificate from the cluster's one authority, and its name stands in it as a DNS
//! name. Both ends of a connection show theirs and check the other's, so that each knows which node it
//! speaks with. That is all this room knows; who may do what is decided above.
//!
//! Invariants: TLS 1.3 only; no session is resumed, so that the certificates are checked each time; a
//! certificate that a revocation list names, or whose state the given lists do not tell, is refused; a
//! handshake ends within its deadline, whatever the peer does.
//!
//! | file | what it is |
//! | --- | --- |
//! | [`files`] | certificate, key, authority and revocation lists, read from files and checked |
//! | [`reloading`] | the same, kept fresh while the files change |
//! | [`handshake`] | a TCP connection becomes one with a known node |
//! | [`peer`] | the names in a certificate |
//! | [`credential`] | what a peer has shown, looked at again while its connection lasts |
//! | [`error`] | why there is no connection, for the person on call |
//! | [`authority`] | making certificates |
//! | [`bootstrap`] | a folder of certificates for a cluster that has no authority yet |

pub mod authority;
pub mod bootstrap;
mod configs;
pub mod credential;
pub mod error;
pub mod files;
#[cfg(test)]
pub(crate) mod fixture;
pub mod handshake;
mod hostile;
pub mod peer;
mod provider;
pub mod reloading;

pub use configs::{ALPN, Configs};
pub use credential::{Credential, Standing};
pub use error::{Reason, TlsError};
pub use files::{FilesError, Identity, TlsPaths};
pub use handshake::{Established, accept, connect, tune};
pub use hostile::read_hostile;
pub use peer::PeerNames;
pub use reloading::Reloading;
