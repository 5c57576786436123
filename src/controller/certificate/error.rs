//! Why there is no certificate, or no newer one.

use std::io;
use std::path::PathBuf;

use super::identity::IdentityError;
use crate::kubernetes::RequestError;

/// A certificate cannot be had, kept or made trusted.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}: check its path and permissions", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The files are of no use.
    #[error("{} with {} is of no use: {source}: check who writes them", .certificate.display(), .key.display())]
    Files {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: IdentityError,
    },
    /// The library makes none.
    #[error("cannot make a certificate: {0}: check the names that it is to be for")]
    Make(#[source] rcgen::Error),
    /// The Secret cannot be read or written.
    #[error("cannot {verb} Secret {secret}, which the certificate is kept in: {source}")]
    Secret {
        /// `get`, `create` or `patch`.
        verb: &'static str,
        /// Namespace and name.
        secret: String,
        /// What the API server says.
        source: RequestError,
    },
    /// The webhook configuration cannot be read or written.
    #[error(
        "cannot {verb} MutatingWebhookConfiguration {name}, which API servers learn the certificate from: {source}"
    )]
    Configuration {
        /// `get` or `patch`.
        verb: &'static str,
        /// Its name.
        name: String,
        /// What the API server says.
        source: RequestError,
    },
    /// An answer that is no such object.
    #[error(
        "the API server answered with something else than {object}: check that its address is the one of an API server"
    )]
    NotTheObject {
        /// What was asked for.
        object: String,
    },
}

impl CertificateError {
    /// Whether somebody else was faster, so that it has to be looked at again.
    pub(super) fn is_conflict(&self) -> bool {
        let (CertificateError::Secret { source, .. } | CertificateError::Configuration { source, .. }) = self else {
            return false;
        };
        matches!(source, RequestError::Conflict { .. })
    }
}
