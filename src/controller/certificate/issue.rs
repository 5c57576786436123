//! Making a certificate that API servers can be told to trust.
//!
//! Each comes from an authority of its own, whose key is thrown away as soon as it has signed the one
//! certificate: to trust it means to trust that certificate and nothing that could ever follow. A
//! renewal therefore always is a change of what is trusted, and that way is walked every time, not once
//! in ten years.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use zeroize::Zeroizing;

use super::CertificateError;

/// A certificate, its key and its authority, each in PEM.
pub struct Issued {
    pub certificate: String,
    pub key: Zeroizing<String>,
    pub authority: String,
}

/// Makes one for DNS names or IP addresses, which is valid for `life` from `now` on.
pub fn issue(names: &[String], life: Duration, now: SystemTime) -> Result<Issued, CertificateError> {
    let (begin, end) = (now - CLOCK_DIFFERENCE_MAX, now + life);
    let authority_key = KeyPair::generate().map_err(CertificateError::Make)?;
    let mut authority = CertificateParams::default();
    authority.distinguished_name = name("sealblk webhook authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    (authority.not_before, authority.not_after) = (begin.into(), end.into());
    let authority_certificate = authority.self_signed(&authority_key).map_err(CertificateError::Make)?;
    let issuer = Issuer::new(authority, authority_key);

    let key = KeyPair::generate().map_err(CertificateError::Make)?;
    let mut parameters = CertificateParams::new(names).map_err(CertificateError::Make)?;
    parameters.distinguished_name = name("sealblk webhook");
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    parameters.use_authority_key_identifier_extension = true;
    (parameters.not_before, parameters.not_after) = (begin.into(), end.into());
    let certificate = parameters.signed_by(&key, &issuer).map_err(CertificateError::Make)?;
    Ok(Issued {
        certificate: certificate.pem(),
        key: Zeroizing::new(key.serialize_pem()),
        authority: authority_certificate.pem(),
    })
}

fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// By how much an API server's clock may be behind ours.
const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_secs(5 * 60);

#[cfg(test)]
mod tests {
    use super::super::{Identity, IdentityError};
    use super::*;

    #[test]
    fn a_certificate_fits_its_key_its_names_and_its_time() {
        let now = SystemTime::now();
        let life = Duration::from_secs(3600);
        let names = ["sealblk.system.svc".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let issued = issue(&names, life, now).unwrap();
        let identity = |now| Identity::from_pem(issued.certificate.as_bytes(), issued.key.as_bytes(), now);
        let read = identity(now).unwrap();
        assert!(names.iter().all(|name| read.is_for(name)) && !read.is_for("sealblk.system"));
        assert!(read.end() <= now + life && read.end() > now + life - Duration::from_secs(1));
        assert_eq!(identity(now + life).unwrap_err(), IdentityError::Expired);
        assert_eq!(identity(now - CLOCK_DIFFERENCE_MAX * 2).unwrap_err(), IdentityError::Early);

        let other = issue(&names, life, now).unwrap();
        let mixed = Identity::from_pem(issued.certificate.as_bytes(), other.key.as_bytes(), now);
        assert_eq!(mixed.unwrap_err(), IdentityError::Mismatch);
        for (certificate, key, expected) in [
            (&b""[..], issued.key.as_bytes(), IdentityError::Certificate),
            (b"nonsense", issued.key.as_bytes(), IdentityError::Certificate),
            (issued.certificate.as_bytes(), b"", IdentityError::Key),
        ] {
            assert_eq!(Identity::from_pem(certificate, key, now).unwrap_err(), expected);
        }
    }
}
