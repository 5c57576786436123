//! Ciphers, key derivation and locked memory: everything that touches key bytes.
//!
//! The room's rule: **a key byte lives in a [`Locked`] page or nowhere.** Keys are read straight
//! into locked pages, expanded inside them, wiped when dropped, and redacted in `Debug`. Nothing
//! here knows of volumes, files or guests; [`xts::Xts`] turns bytes into bytes.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`xts`] | AES-256-XTS (IEEE 1619), the fastest implementation that this CPU can run |
//! | [`mod@derive`] | what is derived from a volume's key: the key check and the writer's identity |
//! | [`self_test`] | the fast path against an independent implementation, before it is trusted |
//! | [`benchmark`] | how fast this machine encrypts |

pub mod benchmark;
pub mod derive;
mod locked;
pub mod self_test;
pub mod xts;

pub use locked::{Locked, LockedError};
