//! A certificate with its key, read from PEM and checked.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// A chain and the key that belongs to its first certificate.
pub struct Identity {
    certified_key: Arc<CertifiedKey>,
    end: SystemTime,
    names: Vec<String>,
}

/// Why something is no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// No certificate in PEM, or one that cannot be read.
    #[error("the certificate is not PEM, or is damaged")]
    Certificate,
    /// No private key in PEM, or of a kind that TLS does not use.
    #[error("the private key is not PEM, or is of a kind that TLS does not use")]
    Key,
    /// The two do not belong together.
    #[error("the private key is not the certificate's")]
    Mismatch,
    /// Its time is over.
    #[error("the certificate has expired")]
    Expired,
    /// Its time has not come.
    #[error("the certificate is not valid yet")]
    Early,
}

impl Identity {
    /// Reads one.
    ///
    /// # Errors
    ///
    /// [`IdentityError`], also for one that is not valid at `now`.
    pub fn from_pem(chain: &[u8], key: &[u8], now: SystemTime) -> Result<Identity, IdentityError> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
        let chain = chain.map_err(|_| IdentityError::Certificate)?;
        let first = chain.first().ok_or(IdentityError::Certificate)?;
        let (_, certificate) = X509Certificate::from_der(first).map_err(|_| IdentityError::Certificate)?;
        let (begin, end) = (certificate.validity().not_before, certificate.validity().not_after);
        let (begin, end) = (time(begin.timestamp()), time(end.timestamp()));
        let names = names(&certificate);

        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| IdentityError::Key)?;
        let key = aws_lc_rs::sign::any_supported_type(&key).map_err(|_| IdentityError::Key)?;
        let certified_key = CertifiedKey::new(chain, key);
        certified_key.keys_match().map_err(|_| IdentityError::Mismatch)?;
        match () {
            () if end <= now => Err(IdentityError::Expired),
            () if begin > now => Err(IdentityError::Early),
            () => Ok(Identity { certified_key: Arc::new(certified_key), end, names }),
        }
    }

    /// What a TLS server shows.
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        self.certified_key.clone()
    }

    /// The moment from which it is no longer valid.
    pub fn end(&self) -> SystemTime {
        self.end
    }

    /// Whether it is for this DNS name or IP address.
    pub fn is_for(&self, name: &str) -> bool {
        self.names.iter().any(|own| own.eq_ignore_ascii_case(name))
    }

    /// Whether the two are the same certificate.
    pub fn is_same(&self, other: &Identity) -> bool {
        self.certified_key.cert == other.certified_key.cert
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("names", &self.names).field("end", &self.end).finish_non_exhaustive()
    }
}

fn time(seconds: i64) -> SystemTime {
    let seconds = u64::try_from(seconds).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// The DNS names and IP addresses as text.
fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let address = |bytes: &[u8]| match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
        _ => None,
    };
    extension.value.general_names.iter().filter_map(name).collect()
}
