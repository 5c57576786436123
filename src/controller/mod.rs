//! What runs once for a cluster, beside the processes that serve its volumes.
//!
//! It answers API servers that ask about new claims ([`admission`], through [`server`] with a
//! [`certificate`]), and guards the keys of claims that are there ([`protection`]). [`process`] is the
//! whole of it.

pub mod admission;
pub mod certificate;
pub mod classes;
pub mod encryption;
pub mod grants;
mod hostile;
pub mod process;
pub mod protection;
pub mod server;
pub mod volume_keys;

pub use hostile::review_hostile;
