//! The certificate that the webhook shows to API servers, and how it is kept fresh.
//!
//! It comes from one of two places. [`files`]: somebody else, such as cert-manager, writes it and sees
//! to it that API servers trust it. [`renewal`]: the controller makes it, keeps it in a Secret that its
//! replicas share, and writes what makes it trusted into the webhook configuration.
//!
//! Invariant: what is in the [`Slot`] is whole (a chain and the key that belongs to it) and was not
//! expired when it was put there; a newer one takes its place between two handshakes, and connections
//! that are there stay.

mod error;
pub mod files;
mod identity;
mod issue;
pub mod renewal;
mod stored;
mod webhooks;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

pub use error::CertificateError;
pub use identity::{Identity, IdentityError};
pub(super) use stored::read_hostile;

/// Where the server takes its certificate from, at every handshake.
#[derive(Default)]
pub struct Slot {
    content: RwLock<Content>,
}

#[derive(Default)]
struct Content {
    identity: Option<Arc<Identity>>,
    is_trusted: bool,
}

impl Slot {
    /// Shows this certificate from now on.
    pub fn show(&self, identity: Arc<Identity>) {
        self.content.write().unwrap_or_else(PoisonError::into_inner).identity = Some(identity);
    }

    /// Notes that API servers have been told to trust it.
    pub fn note_trust(&self) {
        self.content.write().unwrap_or_else(PoisonError::into_inner).is_trusted = true;
    }

    /// Whether reviews can be served.
    ///
    /// # Errors
    ///
    /// What is in the way.
    pub fn readiness(&self) -> Result<(), &'static str> {
        let content = self.content.read().unwrap_or_else(PoisonError::into_inner);
        match &content.identity {
            None => Err("there is no certificate yet"),
            Some(identity) if identity.end() <= SystemTime::now() => Err("the certificate has expired"),
            Some(_) if !content.is_trusted => Err("the webhook configuration does not trust the certificate yet"),
            Some(_) => Ok(()),
        }
    }
}

impl ResolvesServerCert for Slot {
    /// The same for every name: API servers ask for the service's name, or for none at an IP address.
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let content = self.content.read().unwrap_or_else(PoisonError::into_inner);
        content.identity.as_ref().map(|identity| identity.certified_key())
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").finish_non_exhaustive()
    }
}
