//! The names in a certificate: which nodes its holder may call itself.
//!
//! Only DNS names count. An address in a certificate says where its holder can be reached, not who it
//! is; a name with a `*` would be many nodes at once, and stands for none. A certificate with no name, or
//! with more than anybody needs, is refused.

use std::time::{Duration, SystemTime};

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The DNS names in a node's certificate, in lower case, and how long it is valid. At least one name, at
/// most [`NAMES_MAX`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerNames {
    names: Vec<String>,
    end: SystemTime,
}

/// Why a certificate says of no node that it is the one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamesError {
    /// It cannot be read.
    #[error("the certificate is damaged: make a new one")]
    Damaged,
    /// It has no DNS name, or only ones with a `*`.
    #[error("the certificate names no node: make one with the node's name as a DNS name among its alternative names")]
    None,
    /// It has too many.
    #[error("the certificate has more than {NAMES_MAX} DNS names: make one for a single node")]
    TooMany,
}

impl PeerNames {
    /// Reads them from a certificate in DER.
    ///
    /// # Errors
    ///
    /// [`NamesError`].
    pub fn of(certificate: &[u8]) -> Result<PeerNames, NamesError> {
        let (_, certificate) = X509Certificate::from_der(certificate).map_err(|_| NamesError::Damaged)?;
        let end = time(certificate.validity().not_after.timestamp());
        let extension = certificate.subject_alternative_name().map_err(|_| NamesError::Damaged)?;
        let all = extension.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
        let dns = all.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) if !name.contains('*') => Some(name.to_ascii_lowercase()),
            _ => None,
        });
        let names: Vec<_> = dns.take(NAMES_MAX + 1).collect();
        match names.len() {
            0 => Err(NamesError::None),
            1..=NAMES_MAX => Ok(PeerNames { names, end }),
            _ => Err(NamesError::TooMany),
        }
    }

    /// Whether this is one of them. Upper and lower case are the same.
    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|own| own.eq_ignore_ascii_case(name))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// The moment from which the certificate is no longer valid.
    pub fn end(&self) -> SystemTime {
        self.end
    }
}

/// A time in a certificate, in seconds since 1970; one before that is 1970.
pub(super) fn time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// The most names of a certificate.
pub const NAMES_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::super::authority::{Authority, Life};
    use super::*;

    fn names(names: &[&str]) -> Result<PeerNames, NamesError> {
        let life = Life::from_now(SystemTime::now(), Duration::from_secs(3600));
        let authority = Authority::create(life).unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let issued = authority.issue(&names, life).unwrap();
        let read = PeerNames::of(issued.certificate_der());
        if let Ok(read) = &read {
            assert!(read.end() <= life.end && read.end() > life.end - Duration::from_secs(1));
        }
        read
    }

    #[test]
    fn dns_names_are_the_names() {
        let read = names(&["node-a", "Node-A.example", "10.0.0.1", "::1"]).unwrap();
        assert!(read.has("node-a") && read.has("NODE-A") && read.has("node-a.example"));
        assert!(!read.has("10.0.0.1") && !read.has("::1") && !read.has("example") && !read.has(""));
        assert_eq!(read.iter().collect::<Vec<_>>(), ["node-a", "node-a.example"]);
    }

    #[test]
    fn a_name_with_a_star_stands_for_no_node() {
        let read = names(&["*.example", "node-a"]).unwrap();
        assert!(!read.has("*.example") && !read.has("node-b.example") && read.has("node-a"));
        assert_eq!(names(&["*.example"]), Err(NamesError::None));
    }

    #[test]
    fn names_are_bounded_and_there_is_one() {
        let many: Vec<_> = (0..=NAMES_MAX).map(|index| format!("node-{index}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert!(names(&many[..NAMES_MAX]).unwrap().has("node-31"));
        assert_eq!(names(&many), Err(NamesError::TooMany));
        assert_eq!(names(&["10.0.0.1"]), Err(NamesError::None));
        assert_eq!(names(&[]), Err(NamesError::None));
        assert_eq!(PeerNames::of(b"nonsense"), Err(NamesError::Damaged));
    }
}
