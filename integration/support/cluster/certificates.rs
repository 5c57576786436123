//! The authority of a test's cluster and what it certifies.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};

/// An authority, the API server's certificate, and the key that ServiceAccounts' tokens are signed
/// with.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: PathBuf,
    /// The authority's certificate.
    pub certificate: PathBuf,
    /// The API server's.
    pub server: Pair,
    /// What tokens are signed with, and its public half.
    pub tokens: TokenKey,
}

/// The files of a certificate and its private key.
pub struct Pair {
    /// In PEM.
    pub certificate: PathBuf,
    /// In PEM, PKCS #8.
    pub key: PathBuf,
}

/// The files of the key for tokens.
pub struct TokenKey {
    /// In PEM, PKCS #8.
    pub private: PathBuf,
    /// In PEM.
    pub public: PathBuf,
}

impl Authority {
    /// Makes one, with its files in `folder`.
    pub fn make(folder: &Path) -> Authority {
        let mut parameters = named("test authority", None);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = new_key();
        let certificate = folder.join("ca.crt");
        write(&certificate, &parameters.self_signed(&key).expect("a certificate").pem());
        let issuer = Issuer::new(parameters, key);

        let mut server = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()]).expect("two names");
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let server = sign(&issuer, &server, folder, "server");
        let tokens = TokenKey { private: folder.join("tokens.key"), public: folder.join("tokens.pub") };
        let key = new_key();
        write(&tokens.private, &key.serialize_pem());
        write(&tokens.public, &key.public_key_pem());
        Authority { issuer, folder: folder.to_owned(), certificate, server, tokens }
    }

    /// A certificate by which the API server knows a user.
    pub fn client(&self, user: &str, group: Option<&str>) -> Pair {
        let mut parameters = named(user, group);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        sign(&self.issuer, &parameters, &self.folder, user)
    }
}

fn named(common_name: &str, organization: Option<&str>) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    parameters.distinguished_name = name;
    parameters
}

fn sign(issuer: &Issuer<'_, KeyPair>, parameters: &CertificateParams, folder: &Path, name: &str) -> Pair {
    let key = new_key();
    let certificate = parameters.signed_by(&key, issuer).expect("a certificate");
    let pair = Pair { certificate: folder.join(format!("{name}.crt")), key: folder.join(format!("{name}.key")) };
    write(&pair.certificate, &certificate.pem());
    write(&pair.key, &key.serialize_pem());
    pair
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("writing a certificate or key");
}
