//! Why there is no TLS connection, in the words of the person who has to mend it.
//!
//! There are always two certificates, and the sentence says whose is at fault. What we find wrong with
//! the peer's we know exactly. What the peer finds wrong with ours it tells by an alert (RFC 8446 §6.2),
//! which is less exact: [`Reason::Refused`]. In TLS 1.3 a client has finished its handshake before the
//! server has seen its certificate, so this alert comes with the first bytes that are read afterwards:
//! [`TlsError::after`] makes the same sentence of it.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use rustls::{AlertDescription, CertificateError, PeerIncompatible};

use super::peer::NamesError;

/// There is no connection with a peer, or no longer.
#[derive(Debug, thiserror::Error)]
#[error("no TLS connection with {peer}: {reason}")]
pub struct TlsError {
    /// Whom with.
    pub peer: Peer,
    /// Why.
    #[source]
    pub reason: Reason,
}

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The node it should be, where we connect.
    pub node: Option<String>,
    /// Where it is, unless the connection is already gone.
    pub address: Option<SocketAddr>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// It showed no certificate.
    #[error("it shows no certificate: give it one, and its key")]
    NoCertificate,
    /// Its certificate does not come from an authority that we trust.
    #[error("its certificate is not from our authority: give both nodes certificates of one authority")]
    UnknownAuthority,
    /// The time of its certificate is over.
    #[error("its certificate has expired: renew it there, or check the clocks")]
    Expired,
    /// The time of its certificate has not come.
    #[error("its certificate is not valid yet: check the clocks of both machines")]
    NotYetValid,
    /// Its certificate is another node's.
    #[error("its certificate is for {}: check its address and its certificate", list(.presented))]
    WrongName {
        /// The names in it.
        presented: Vec<String>,
    },
    /// Its certificate says of no node that it is the one.
    #[error(transparent)]
    Names(NamesError),
    /// Its certificate is on a revocation list.
    #[error("its certificate has been revoked: make it another one, or put it out of the cluster")]
    Revoked,
    /// No revocation list tells about its certificate.
    #[error("no revocation list of ours is from the authority of its certificate: add one of each authority")]
    RevocationUnknown,
    /// Its certificate is not for this end of a connection.
    #[error("its certificate is not for both clients and servers: make it one with both usages")]
    Purpose,
    /// Something else is wrong with its certificate.
    #[error("its certificate is refused: {0}: make it another one")]
    Certificate(#[source] Box<rustls::Error>),
    /// It refuses our certificate, or does not like something else about us.
    #[error("it refuses us: {}", refusal(*.0))]
    Refused(AlertDescription),
    /// It speaks no TLS 1.3.
    #[error("it does not speak TLS 1.3: check that it is a sealblk replica")]
    Version,
    /// It speaks TLS for something else.
    #[error("it does not speak sealblk's protocol: check its address and its version of sealblk")]
    Protocol,
    /// It speaks no TLS at all.
    #[error("what it sends is not TLS: check that the address and port are those of a sealblk replica")]
    NotTls,
    /// It took too long.
    #[error("the handshake was not done in time: check the network and the load of both machines")]
    Timeout,
    /// It went away in the middle.
    #[error("it closed the connection: see its log")]
    Closed,
    /// The name that we look for can stand in no certificate.
    #[error("a node's name must be a DNS name to stand in a certificate: rename the node")]
    NodeName,
    /// The network failed.
    #[error("{0}: check the network")]
    Network(#[source] io::Error),
    /// Something else.
    #[error("{0}: see the log of both")]
    Other(#[source] Box<rustls::Error>),
}

impl TlsError {
    /// What an error means that the connection gave after its handshake.
    pub fn after(peer: Peer, error: rustls::Error) -> TlsError {
        TlsError { peer, reason: error.into() }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.node, &self.address) {
            (Some(node), Some(address)) => write!(f, "node {node} at {address}"),
            (Some(node), None) => write!(f, "node {node}"),
            (None, Some(address)) => address.fmt(f),
            (None, None) => f.write_str("a peer that is gone"),
        }
    }
}

impl From<rustls::Error> for Reason {
    fn from(error: rustls::Error) -> Reason {
        match error {
            rustls::Error::NoCertificatesPresented => Reason::NoCertificate,
            rustls::Error::InvalidCertificate(why) => why.into(),
            rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) => Reason::Version,
            rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => Reason::Protocol,
            rustls::Error::AlertReceived(alert) => Reason::Refused(alert),
            rustls::Error::NoApplicationProtocol => Reason::Protocol,
            rustls::Error::PeerIncompatible(
                PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::SupportedVersionsExtensionRequired,
            ) => Reason::Version,
            rustls::Error::InvalidMessage(_) => Reason::NotTls,
            error => Reason::Other(Box::new(error)),
        }
    }
}

impl From<CertificateError> for Reason {
    fn from(error: CertificateError) -> Reason {
        match error {
            // An authority of the same name as ours, but with another key, makes a bad signature.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Reason::UnknownAuthority,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Reason::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Reason::NotYetValid,
            CertificateError::NotValidForNameContext { mut presented, .. } => {
                presented.truncate(NAMES_SHOWN_MAX);
                Reason::WrongName { presented }
            }
            CertificateError::NotValidForName => Reason::WrongName { presented: Vec::new() },
            CertificateError::Revoked => Reason::Revoked,
            CertificateError::UnknownRevocationStatus
            | CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. } => Reason::RevocationUnknown,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Reason::Purpose,
            error => Reason::Certificate(Box::new(rustls::Error::InvalidCertificate(error))),
        }
    }
}

fn refusal(alert: AlertDescription) -> String {
    let text = match alert {
        AlertDescription::CertificateRequired => "it wants a certificate of ours: give this node one, and its key",
        AlertDescription::UnknownCA => {
            "our certificate is not from its authority, or its revocation lists do not cover it: \
             give both nodes certificates of one authority"
        }
        AlertDescription::CertificateExpired => {
            "our certificate has expired or is not valid yet: renew it, or check the clocks"
        }
        AlertDescription::CertificateRevoked => "our certificate has been revoked: get another one",
        AlertDescription::BadCertificate => {
            "our certificate is for another name, or damaged: check this node's certificate and address"
        }
        AlertDescription::UnsupportedCertificate => {
            "our certificate is not for both clients and servers: get one with both usages"
        }
        AlertDescription::DecryptError => "our certificate's signature is not its authority's: get another one",
        alert => return format!("alert {alert:?}: see its log"),
    };
    text.to_owned()
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "another node".to_owned() } else { names.join(", ") }
}

/// How many names of a wrong certificate are told.
const NAMES_SHOWN_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_say_whom_with_what_and_what_to_do() {
        let peer = Peer { node: Some("node-b".into()), address: Some("127.0.0.1:7000".parse().unwrap()) };
        let revoked = rustls::Error::InvalidCertificate(CertificateError::Revoked);
        assert_eq!(
            TlsError::after(peer.clone(), revoked).to_string(),
            "no TLS connection with node node-b at 127.0.0.1:7000: its certificate has been revoked: make it another \
             one, or put it out of the cluster"
        );
        let refused = rustls::Error::AlertReceived(AlertDescription::CertificateRevoked);
        assert_eq!(
            TlsError::after(Peer { node: None, ..peer }, refused).to_string(),
            "no TLS connection with 127.0.0.1:7000: it refuses us: our certificate has been revoked: get another one"
        );
        assert_eq!(
            Reason::WrongName { presented: vec!["node-c".into(), "node-d".into()] }.to_string(),
            "its certificate is for node-c, node-d: check its address and its certificate"
        );
    }

    #[test]
    fn every_refusal_of_a_certificate_has_its_own_sentence() {
        let mut sentences: Vec<_> = [
            AlertDescription::CertificateRequired,
            AlertDescription::UnknownCA,
            AlertDescription::CertificateExpired,
            AlertDescription::CertificateRevoked,
            AlertDescription::BadCertificate,
            AlertDescription::UnsupportedCertificate,
            AlertDescription::DecryptError,
            AlertDescription::InternalError,
        ]
        .map(refusal)
        .into();
        sentences.sort();
        sentences.dedup();
        assert_eq!(sentences.len(), 8);
    }
}
