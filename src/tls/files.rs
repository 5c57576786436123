//! What a node shows and whom it trusts, read from PEM files and checked.
//!
//! Everything that would make each handshake fail is found here, when the files are read, and is said
//! with the name of the file: a missing file, a key of another certificate, a certificate that has
//! expired or is good for one end only, an empty list of revocations. The files are small; one of more
//! than [`FILE_BYTES_MAX`] bytes is refused unread.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::VerifierBuilderError;
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::peer::{NamesError, PeerNames, time};

/// Where a node's certificate and what belongs to it are, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsPaths {
    /// The chain, the node's own certificate first.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
    /// The authorities whose certificates are accepted.
    pub ca: PathBuf,
    /// Revocation lists. If there are any, every certificate's authority needs one.
    pub crl: Option<PathBuf>,
}

/// What a node shows and whom it trusts. It was valid when it was read.
pub struct Identity {
    pub(super) certified_key: Arc<CertifiedKey>,
    pub(super) roots: Arc<RootCertStore>,
    pub(super) crls: Vec<CertificateRevocationListDer<'static>>,
    pub(super) names: PeerNames,
    pub(super) not_after: SystemTime,
    pub(super) crl_next_update: Option<SystemTime>,
}

/// Why files make no identity.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file is missing or cannot be read.
    #[error("cannot read {}: {source}: check its path and permissions", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds no certificate.
    #[error("{} has no certificate in PEM: check that it is the right file", .path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A certificate cannot be read.
    #[error("a certificate in {} is damaged: write the file anew", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// A file holds no private key.
    #[error("{} has no private key in PEM: check that it is the right file", .path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// A key that TLS has no use for.
    #[error("the private key in {} is of a kind that TLS does not use: make one of ECDSA over P-256", .path.display())]
    KeyKind {
        /// The file.
        path: PathBuf,
    },
    /// The two do not belong together.
    #[error("the private key in {} is not that of the certificate in {}: write both anew", .key.display(), .cert.display())]
    Mismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        cert: PathBuf,
    },
    /// Its time is over.
    #[error("a certificate in {} has expired ({end}): renew it", .path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// Until when it was valid.
        end: String,
    },
    /// Its time has not come.
    #[error("a certificate in {} is not valid before {begin}: check this machine's clock", .path.display())]
    Early {
        /// The file.
        path: PathBuf,
        /// From when on it will be.
        begin: String,
    },
    /// It is not for both ends of a connection.
    #[error("the certificate in {} is not for both clients and servers: make one with both usages", .path.display())]
    Purpose {
        /// The file.
        path: PathBuf,
    },
    /// It names no node.
    #[error("{}: {source}", .path.display())]
    Names {
        /// The file.
        path: PathBuf,
        /// Why.
        source: NamesError,
    },
    /// An authority that TLS has no use for.
    #[error("{} has a certificate that cannot be an authority's: {source}: make another one", .path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// A file holds no revocation list.
    #[error("{} has no revocation list in PEM: write one, or do without the option", .path.display())]
    NoRevocationList {
        /// The file.
        path: PathBuf,
    },
    /// A revocation list cannot be used.
    #[error("a revocation list in {} is damaged or of an unknown kind: write the file anew", .path.display())]
    RevocationList {
        /// The file.
        path: PathBuf,
    },
    /// TLS cannot work with what the files hold.
    #[error("{} cannot be used to check certificates: {source}: write the file anew", .path.display())]
    Verifier {
        /// The file of authorities.
        path: PathBuf,
        /// Why.
        source: VerifierBuilderError,
    },
}

impl Identity {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// [`FilesError`], also for certificates that are not valid at `now`.
    pub fn load(paths: &TlsPaths, now: SystemTime) -> Result<Identity, FilesError> {
        let chain = certificates(&paths.cert)?;
        let first = chain.first().ok_or_else(|| FilesError::NoCertificate { path: paths.cert.clone() })?;
        let names = PeerNames::of(first).map_err(|source| FilesError::Names { path: paths.cert.clone(), source })?;
        check_purpose(&paths.cert, first)?;
        let mut not_after = names.end();
        for certificate in &chain {
            not_after = not_after.min(check_time(&paths.cert, certificate, now)?);
        }
        let key = private_key(&paths.key)?;
        let key =
            aws_lc_rs::sign::any_supported_type(&key).map_err(|_| FilesError::KeyKind { path: paths.key.clone() })?;
        let certified_key = CertifiedKey::new(chain, key);
        certified_key
            .keys_match()
            .map_err(|_| FilesError::Mismatch { key: paths.key.clone(), cert: paths.cert.clone() })?;
        let (crls, crl_next_update) = match &paths.crl {
            Some(path) => revocation_lists(path)?,
            None => (Vec::new(), None),
        };
        let roots = Arc::new(roots(&paths.ca, now)?);
        Ok(Identity { certified_key: Arc::new(certified_key), roots, crls, names, not_after, crl_next_update })
    }

    /// What peers will read in the certificate.
    pub fn names(&self) -> &PeerNames {
        &self.names
    }

    /// The moment from which a certificate of the chain is no longer valid.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity { names, not_after, .. } = self;
        f.debug_struct("Identity").field("names", names).field("not_after", not_after).finish_non_exhaustive()
    }
}

/// The authorities of a file, of which one must be valid now. One that no longer is is left out: the old one stays in the
/// file for a while after it was replaced. One that is not yet is taken: what it has signed says for itself from when
/// on it is valid, and nobody would look at the file again when the moment comes.
fn roots(path: &Path, now: SystemTime) -> Result<RootCertStore, FilesError> {
    let mut roots = RootCertStore::empty();
    let mut refusal = Some(FilesError::NoCertificate { path: path.to_owned() });
    for certificate in certificates(path)? {
        match check_time(path, &certificate, now) {
            Ok(_) => refusal = None,
            Err(early @ FilesError::Early { .. }) => refusal = refusal.map(|_| early),
            Err(error) => {
                refusal = refusal.map(|_| error);
                continue;
            }
        }
        roots.add(certificate).map_err(|source| FilesError::Authority { path: path.to_owned(), source })?;
    }
    refusal.map_or(Ok(roots), Err)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FilesError> {
    let content = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content).collect();
    all.map_err(|_| FilesError::Damaged { path: path.to_owned() })
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, FilesError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|_| FilesError::NoKey { path: path.to_owned() })
}

/// The lists of a file, and the first moment at which a newer one of any of them is due.
type RevocationLists = (Vec<CertificateRevocationListDer<'static>>, Option<SystemTime>);

/// A file without a list is an error: to go on would mean to check nothing.
fn revocation_lists(path: &Path) -> Result<RevocationLists, FilesError> {
    lists_of(path, &read(path)?)
}

pub(super) fn lists_of(path: &Path, content: &[u8]) -> Result<RevocationLists, FilesError> {
    let refused = || FilesError::RevocationList { path: path.to_owned() };
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(content).collect();
    let lists = lists.map_err(|_| refused())?;
    if lists.is_empty() {
        return Err(FilesError::NoRevocationList { path: path.to_owned() });
    }
    let mut next_update: Option<SystemTime> = None;
    for list in &lists {
        let (_, list) = CertificateRevocationList::from_der(list).map_err(|_| refused())?;
        let due = list.next_update().map(|due| time(due.timestamp()));
        next_update = next_update.into_iter().chain(due).min();
    }
    Ok((lists, next_update))
}

/// When a certificate that is valid now no longer is.
pub(super) fn check_time(path: &Path, certificate: &[u8], now: SystemTime) -> Result<SystemTime, FilesError> {
    let damaged = |_| FilesError::Damaged { path: path.to_owned() };
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(damaged)?;
    let (begin, end) = (certificate.validity().not_before, certificate.validity().not_after);
    if time(end.timestamp()) <= now {
        return Err(FilesError::Expired { path: path.to_owned(), end: end.to_string() });
    }
    if time(begin.timestamp()) > now {
        return Err(FilesError::Early { path: path.to_owned(), begin: begin.to_string() });
    }
    Ok(time(end.timestamp()))
}

pub(super) fn check_purpose(path: &Path, certificate: &[u8]) -> Result<(), FilesError> {
    let damaged = || FilesError::Damaged { path: path.to_owned() };
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|_| damaged())?;
    match certificate.extended_key_usage().map_err(|_| damaged())? {
        Some(usage) if !(usage.value.client_auth && usage.value.server_auth) => {
            Err(FilesError::Purpose { path: path.to_owned() })
        }
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, FilesError> {
    let read = || {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        if length > FILE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "more than 1 MiB"));
        }
        // Room for all of it from the start: a buffer that grows leaves copies of a key behind.
        let mut content = Zeroizing::new(Vec::with_capacity(length as usize + 1));
        file.take(FILE_BYTES_MAX).read_to_end(&mut content)?;
        Ok(content)
    };
    read().map_err(|source| FilesError::Read { path: path.to_owned(), source })
}

/// The longest file that is read, in bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests;
