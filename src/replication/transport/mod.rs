//! How frames travel: mutually authenticated TLS over TCP, without waiting.
//!
//! A [`Connection`] belongs to one thread, which drives it from its own loop around poll(2): it queues frames,
//! sends when the socket takes bytes, receives when it has some, and takes out the frames that are there. Opening
//! one does wait, until a deadline; [`open`], [`create`] and [`describe`] are for a thread that may.
//!
//! Invariants: what is kept of a peer's bytes is bounded, whatever it sends; a frame is given out only when its
//! header fits the rules; after an error or an end nothing more comes.
//!
//! | file | what it is |
//! | --- | --- |
//! | `connection` | frames in and out |
//! | `link` | the bytes of them: gathering, encryption, the socket |
//! | `session` | opening a connection to a replica |
//! | `error` | why a connection ends |

mod connection;
mod error;
mod link;
mod session;

pub use connection::Connection;
pub use error::TransportError;
pub use session::{OpenError, create, describe, open};

#[cfg(test)]
mod tests;
