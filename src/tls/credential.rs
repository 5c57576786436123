//! What a peer has shown to be let in, looked at again for as long as its connection lasts.
//!
//! A handshake says that a certificate was good at that moment. Later it can be revoked, its authority can be
//! dropped, and its time comes to an end; the connection knows nothing of that. So whoever keeps connections
//! keeps this beside each, and asks now and then. It is cheap as long as nothing has changed: signatures are
//! checked only when the files of this node were read again, or when the certificate's time is over.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::configs::Configs;
use super::error::Reason;
use super::peer::time;

/// The certificates of a peer, and what they had to be good for.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credential {
    /// The peer's own first.
    chain: Vec<CertificateDer<'static>>,
    /// The name it was called by; none for a peer that called us.
    called: Option<ServerName<'static>>,
    end: SystemTime,
}

impl Credential {
    /// Of a peer that has shown these in its handshake, which was found in order.
    pub(super) fn new(chain: &[CertificateDer<'_>], called: Option<ServerName<'static>>) -> Credential {
        let chain: Vec<_> = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        // One that cannot be read has been found in order by TLS, or was not looked at.
        let end = chain.iter().filter_map(|certificate| end(certificate)).min().unwrap_or(SystemTime::UNIX_EPOCH);
        Credential { chain, called, end }
    }

    /// The first moment at which one of the certificates is no longer valid.
    pub fn end(&self) -> SystemTime {
        self.end
    }

    /// Whether a new handshake would find it in order, at `now` and by what the files say.
    ///
    /// # Errors
    ///
    /// Why it would not.
    pub fn check(&self, configs: &Configs, now: SystemTime) -> Result<(), Reason> {
        let (own, others) = self.chain.split_first().ok_or(Reason::NoCertificate)?;
        let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        match &self.called {
            Some(name) => configs.servers.verify_server_cert(own, others, name, &[], now).map(|_verified| ())?,
            None => configs.clients.verify_client_cert(own, others, now).map(|_verified| ())?,
        }
        Ok(())
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("called", &self.called).field("end", &self.end).finish_non_exhaustive()
    }
}

/// A credential, and by what it was last found in order.
#[derive(Clone, Debug)]
pub struct Standing {
    credential: Arc<Credential>,
    checked: Arc<Configs>,
}

impl Standing {
    /// Of a peer whose handshake was made with `configs`.
    pub fn new(credential: Arc<Credential>, configs: Arc<Configs>) -> Standing {
        Standing { credential, checked: configs }
    }

    /// The credential.
    pub fn credential(&self) -> &Arc<Credential> {
        &self.credential
    }

    /// Whether it was last found in order by these.
    pub fn is_by(&self, configs: &Arc<Configs>) -> bool {
        Arc::ptr_eq(&self.checked, configs)
    }

    /// Whether it has to be checked again.
    pub fn is_due(&self, current: &Arc<Configs>, now: SystemTime) -> bool {
        !self.is_by(current) || now >= self.credential.end
    }

    /// Notes that it was found in order.
    pub fn passed(&mut self, current: &Arc<Configs>) {
        self.checked = current.clone();
    }
}

fn end(certificate: &[u8]) -> Option<SystemTime> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(time(certificate.validity().not_after.timestamp()))
}

#[cfg(test)]
mod tests {
    use super::super::authority::Issued;
    use super::super::files::TlsPaths;
    use super::super::fixture::{Fixture, HOUR, configs, life};
    use super::*;

    fn credential(issued: &Issued, called: Option<&str>) -> Credential {
        let chain = [CertificateDer::from(issued.certificate_der().to_vec())];
        Credential::new(&chain, called.map(|name| ServerName::try_from(name.to_owned()).unwrap()))
    }

    #[test]
    fn it_is_good_until_its_end_its_revocation_or_the_end_of_its_authority() {
        let fixture = Fixture::new();
        let issued = fixture.issue("node-b");
        let own = fixture.node("node-a");
        let crl = Some(fixture.write("crl", fixture.revoke(&[&issued])));
        let others = Fixture::new();
        for called in [None, Some("node-b")] {
            let credential = credential(&issued, called);
            let now = SystemTime::now();
            let check = |paths: &TlsPaths, now| credential.check(&configs(paths), now);
            check(&own, now).unwrap();
            assert!(credential.end() > now + HOUR / 2 && credential.end() <= life().end);
            assert!(matches!(check(&own, credential.end() + HOUR), Err(Reason::Expired)));
            let revoking = TlsPaths { crl: crl.clone(), ..own.clone() };
            assert!(matches!(check(&revoking, now), Err(Reason::Revoked)));
            assert!(matches!(check(&others.node("node-a"), now), Err(Reason::UnknownAuthority)));
        }
        let other = credential(&issued, Some("node-c"));
        assert!(matches!(other.check(&configs(&own), SystemTime::now()), Err(Reason::WrongName { .. })));
    }

    #[test]
    fn it_is_checked_again_when_the_files_have_changed_and_when_its_time_is_over() {
        let fixture = Fixture::new();
        let [first, second] = [0, 1].map(|_| Arc::new(configs(&fixture.node("node-a"))));
        let credential = Arc::new(credential(&fixture.issue("node-b"), None));
        let now = SystemTime::now();
        let mut standing = Standing::new(credential.clone(), first.clone());
        assert!(!standing.is_due(&first, now));
        assert!(standing.is_due(&second, now));
        standing.passed(&second);
        assert!(!standing.is_due(&second, now));
        assert!(standing.is_due(&second, credential.end()));
    }
}
