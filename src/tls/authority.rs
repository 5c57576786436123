//! Making certificates for nodes: an authority, and what it signs.
//!
//! All keys are ECDSA over P-256, which every TLS 1.3 implementation has. A node is both a client and a
//! server, so its certificate is good for both. Serial numbers come from the certificate's fresh key:
//! two certificates never share one, and a revocation list names one only.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use uuid::Uuid;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::peer::time;

/// Who signs the certificates of a cluster's nodes. It holds the private key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    life: Life,
}

/// A certificate that was just made, and its key.
pub struct Issued {
    der: CertificateDer<'static>,
    /// In PEM.
    pub certificate: String,
    /// In PEM, PKCS #8.
    pub key: Zeroizing<String>,
}

/// From when until when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// First moment.
    pub begin: SystemTime,
    /// Last moment.
    pub end: SystemTime,
}

/// A certificate cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The library refuses.
    #[error("cannot make a certificate: {0}: check the names that it is for")]
    Make(#[source] rcgen::Error),
    /// The authority's certificate or key is damaged.
    #[error("the authority's certificate or key is damaged: {0}: restore them from a copy")]
    Damaged(#[source] rcgen::Error),
    /// The certificate is there, and is none of an authority, or has no key that fits.
    #[error(
        "the authority's certificate is not for signing others, or its key is another one: restore both from a copy"
    )]
    NoAuthority,
}

impl Life {
    /// From `now` on for this long, and from a little before, for clocks that are behind.
    pub fn from_now(now: SystemTime, length: Duration) -> Life {
        Life { begin: now - CLOCK_DIFFERENCE_MAX, end: now + length }
    }
}

impl Authority {
    /// Makes one, with a new key and a name that no other has.
    ///
    /// # Errors
    ///
    /// [`AuthorityError::Make`].
    pub fn create(life: Life) -> Result<Authority, AuthorityError> {
        let key = new_key()?;
        let mut parameters = CertificateParams::default();
        let id = Uuid::new_v4().simple().to_string();
        parameters.distinguished_name = name(&format!("sealblk authority {}", &id[..12]));
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (parameters.not_before, parameters.not_after) = (life.begin.into(), life.end.into());
        let certificate = parameters.self_signed(&key).map_err(AuthorityError::Make)?.pem();
        Ok(Authority { issuer: Issuer::new(parameters, key), certificate, life })
    }

    /// Takes one up that was made before, from its certificate and key in PEM.
    ///
    /// # Errors
    ///
    /// [`AuthorityError::Damaged`] and [`AuthorityError::NoAuthority`].
    pub fn from_pem(certificate: &str, key: &str) -> Result<Authority, AuthorityError> {
        let key = KeyPair::from_pem(key).map_err(AuthorityError::Damaged)?;
        let damaged = || AuthorityError::Damaged(rcgen::Error::CouldNotParseCertificate);
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|_| damaged())?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| damaged())?;
        let is_its_key = parsed.public_key().subject_public_key.data.as_ref() == key.public_key_raw();
        if !parsed.is_ca() || !is_its_key {
            return Err(AuthorityError::NoAuthority);
        }
        let (begin, end) = (parsed.validity().not_before, parsed.validity().not_after);
        let life = Life { begin: time(begin.timestamp()), end: time(end.timestamp()) };
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(AuthorityError::Damaged)?;
        Ok(Authority { issuer, certificate: certificate.to_owned(), life })
    }

    /// The certificate, in PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The private key, in PEM.
    pub fn key(&self) -> Zeroizing<String> {
        Zeroizing::new(self.issuer.key().serialize_pem())
    }

    /// For how long it is valid itself.
    pub fn life(&self) -> Life {
        self.life
    }

    /// Makes the certificate of a node, for its DNS names and IP addresses.
    ///
    /// # Errors
    ///
    /// [`AuthorityError::Make`], such as for a name that is not ASCII.
    pub fn issue(&self, names: &[String], life: Life) -> Result<Issued, AuthorityError> {
        let key = new_key()?;
        let mut parameters = CertificateParams::new(names).map_err(AuthorityError::Make)?;
        parameters.distinguished_name = name(names.first().map_or("sealblk node", String::as_str));
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        parameters.use_authority_key_identifier_extension = true;
        (parameters.not_before, parameters.not_after) = (life.begin.into(), life.end.into());
        let certificate = parameters.signed_by(&key, &self.issuer).map_err(AuthorityError::Make)?;
        Ok(Issued { certificate: certificate.pem(), der: certificate.into(), key: Zeroizing::new(key.serialize_pem()) })
    }

    #[cfg(test)]
    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }
}

impl Issued {
    /// The certificate, in DER.
    pub fn certificate_der(&self) -> &[u8] {
        &self.der
    }
}

fn new_key() -> Result<KeyPair, AuthorityError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Make)
}

fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// By how much a node's clock may be behind that of the machine where certificates are made.
const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_secs(5 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_taken_up_again_with_its_own_key_only() {
        let life = Life::from_now(SystemTime::now(), Duration::from_secs(3600));
        let authority = Authority::create(life).unwrap();
        let again = Authority::from_pem(authority.certificate(), &authority.key()).unwrap();
        assert_eq!(again.certificate(), authority.certificate());
        assert_eq!(*again.key(), *authority.key());
        assert!(again.life().end <= life.end && again.life().end > life.end - Duration::from_secs(1));

        let other = Authority::create(life).unwrap();
        let refused = |certificate: &str, key: &str| Authority::from_pem(certificate, key).err().unwrap();
        assert!(matches!(refused(authority.certificate(), &other.key()), AuthorityError::NoAuthority));
        let node = authority.issue(&["node-a".to_owned()], life).unwrap();
        assert!(matches!(refused(&node.certificate, &node.key), AuthorityError::NoAuthority));
        assert!(matches!(refused("nonsense", &authority.key()), AuthorityError::Damaged(_)));
        assert!(matches!(refused(authority.certificate(), "nonsense"), AuthorityError::Damaged(_)));
    }

    #[test]
    fn a_node_certificate_is_for_both_ends_and_no_authority() {
        let life = Life::from_now(SystemTime::now(), Duration::from_secs(3600));
        let issued = Authority::create(life).unwrap().issue(&["node-a".to_owned()], life).unwrap();
        let (_, parsed) = X509Certificate::from_der(issued.certificate_der()).unwrap();
        let usage = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && usage.client_auth && !usage.any);
        assert!(!parsed.is_ca());
    }
}
