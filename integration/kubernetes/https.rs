//! The other side of the webhook's TLS: certificates for it, and requests to it.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, SystemTime};

use openssl::ssl::{Ssl, SslConnector, SslMethod, SslStream, SslVerifyMode};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// A certificate for 127.0.0.1, its key and its authority, in PEM.
pub struct Pair {
    pub certificate: String,
    pub key: String,
    pub authority: String,
}

impl Pair {
    /// Makes one, with an authority of its own.
    pub fn make(life: Duration) -> Pair {
        let now = SystemTime::now();
        let mut parameters = CertificateParams::default();
        // A name of its own: who has the name of his authority is taken for one that signs itself.
        parameters.distinguished_name.push(DnType::CommonName, "webhook authority of a test");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority = parameters.self_signed(&key).expect("a certificate");
        let issuer = Issuer::new(parameters, key);
        let mut parameters = CertificateParams::new(["127.0.0.1".to_owned()]).expect("a name");
        (parameters.not_before, parameters.not_after) = (now.into(), (now + life).into());
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.signed_by(&key, &issuer).expect("a certificate");
        Pair { certificate: certificate.pem(), key: key.serialize_pem(), authority: authority.pem() }
    }

    /// Writes `tls.crt` and `tls.key`, one after the other.
    pub fn write(&self, folder: &Path) {
        fs::write(folder.join("tls.crt"), &self.certificate).expect("writing a certificate");
        fs::write(folder.join("tls.key"), &self.key).expect("writing a key");
    }
}

/// The head and body that the server at `port` answers with, whatever its certificate is.
pub fn get(port: u16, path: &str) -> Result<String, String> {
    request(port, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
}

/// The same for any request, which has to ask the server to close.
pub fn request(port: u16, request: &str) -> Result<String, String> {
    let mut stream = connect(port, None)?;
    stream.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| error.to_string())?;
    Ok(answer)
}

/// The certificate that the server shows to somebody who trusts these authorities, in PEM.
pub fn certificate_trusted_by(port: u16, authorities: &[u8]) -> Result<Vec<u8>, String> {
    let stream = connect(port, Some(authorities))?;
    let certificate = stream.ssl().peer_certificate().ok_or("no certificate")?;
    certificate.to_pem().map_err(|error| error.to_string())
}

/// Shakes hands; the certificate has to be for 127.0.0.1 where there are authorities.
pub fn connect(port: u16, authorities: Option<&[u8]>) -> Result<SslStream<TcpStream>, String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(crate::support::PATIENCE)).expect("a limit");
    let mut builder = SslConnector::builder(SslMethod::tls_client()).expect("a connector");
    match authorities {
        None => builder.set_verify(SslVerifyMode::NONE),
        Some(authorities) => {
            let mut store = X509StoreBuilder::new().expect("a store");
            for certificate in X509::stack_from_pem(authorities).map_err(|error| error.to_string())? {
                store.add_cert(certificate).expect("room in the store");
            }
            builder.set_cert_store(store.build());
        }
    }
    let mut ssl = Ssl::new(builder.build().context()).expect("a session");
    if authorities.is_some() {
        ssl.param_mut().set_ip("127.0.0.1".parse().expect("an address")).expect("an address");
    }
    ssl.connect(stream).map_err(|error| error.to_string())
}
