//! Certificates in a folder, for the tests of this room.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority::{Authority, Issued, Life};
use super::configs::Configs;
use super::files::TlsPaths;

/// A folder with an authority, and files that are named for nodes.
pub struct Fixture {
    root: tempfile::TempDir,
    pub authority: Authority,
}

impl Fixture {
    pub fn new() -> Fixture {
        let authority = Authority::create(life()).unwrap();
        let fixture = Fixture { root: tempfile::tempdir().unwrap(), authority };
        fixture.write("ca", fixture.authority.certificate());
        fixture
    }

    /// Puts a file into its place as a whole, as those who renew certificates do.
    pub fn write(&self, file: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.root.path().join(file);
        fs::write(path.with_extension("new"), content).unwrap();
        fs::rename(path.with_extension("new"), &path).unwrap();
        path
    }

    pub fn write_issued(&self, name: &str, issued: &Issued) -> TlsPaths {
        TlsPaths {
            cert: self.write(&format!("{name}-cert"), &issued.certificate),
            key: self.write(&format!("{name}-key"), issued.key.as_bytes()),
            ca: self.root.path().join("ca"),
            crl: None,
        }
    }

    pub fn issue(&self, name: &str) -> Issued {
        self.authority.issue(&[name.to_owned()], life()).unwrap()
    }

    pub fn node(&self, name: &str) -> TlsPaths {
        self.write_issued(name, &self.issue(name))
    }

    /// A revocation list of the authority, in PEM.
    pub fn revoke(&self, revoked: &[&Issued]) -> String {
        revocation_list(&self.authority, revoked)
    }
}

/// A revocation list in PEM, of which the next is due an hour from now.
pub fn revocation_list(authority: &Authority, revoked: &[&Issued]) -> String {
    let Life { begin, end } = life();
    let revoked = revoked.iter().map(|issued| {
        let (_, certificate) = X509Certificate::from_der(issued.certificate_der()).unwrap();
        RevokedCertParams {
            serial_number: SerialNumber::from_slice(certificate.raw_serial()),
            revocation_time: begin.into(),
            reason_code: None,
            invalidity_date: None,
        }
    });
    let parameters = CertificateRevocationListParams {
        this_update: begin.into(),
        next_update: end.into(),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    parameters.signed_by(authority.issuer()).unwrap().pem().unwrap()
}

/// An hour from now on.
pub fn life() -> Life {
    Life::from_now(SystemTime::now(), HOUR)
}

/// One that is over, and one that has not begun.
pub fn over_and_early() -> (Life, Life) {
    let now = SystemTime::now();
    (Life { begin: now - 2 * HOUR, end: now - HOUR }, Life { begin: now + HOUR, end: now + 2 * HOUR })
}

pub fn configs(paths: &TlsPaths) -> Configs {
    Configs::load(paths, SystemTime::now()).unwrap()
}

pub const HOUR: Duration = Duration::from_secs(3600);
