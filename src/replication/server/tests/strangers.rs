//! Peers that TLS does not let in, and what the log says of everybody who is refused.

use std::io::{Read, Write};
use std::net::SocketAddr;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

use super::lines::Lines;
use super::*;
use crate::tls;
use crate::tls::authority::Issued;
use crate::tls::fixture::over_and_early;

#[test]
fn who_is_no_node_of_the_cluster_is_refused_and_logged_once() {
    let lines = Lines::listen();
    let scene = Scene::new();
    let revoked = scene.tls.issue("node-a");
    let mut paths = scene.tls.node("node-b");
    paths.crl = Some(scene.tls.write("crl", scene.tls.revoke(&[&revoked])));
    let replica = Running::start_with(&scene, Reloading::open(paths).unwrap(), Settings::default());
    let made = scene.create(&replica).unwrap();

    let (over, early) = over_and_early();
    let issue = |life| scene.tls.authority.issue(&["node-a".to_owned()], life).unwrap();
    let elsewhere = Fixture::new().issue("node-a");
    for (who, client, reason) in [
        ("without a certificate", bare(&scene, &TLS13), "it shows no certificate"),
        ("of another authority", showing(&scene, &elsewhere), "not from our authority"),
        ("expired", showing(&scene, &issue(over)), "has expired"),
        ("too early", showing(&scene, &issue(early)), "is not valid yet"),
        ("revoked", showing(&scene, &revoked), "has been revoked"),
        ("of an older TLS", bare(&scene, &TLS12), "does not speak TLS 1.3"),
    ] {
        let addresses = [0, 1].map(|_| knock(&replica, client.clone(), who));
        let told = lines.await_one(|line| line.contains(reason) && addresses.iter().any(|own| is_about(line, own)));
        assert!(told.starts_with("refused ") && told.contains("no certificate"), "{who}: {told}");
        let is_it = |line: &str| addresses.iter().any(|own| is_about(line, own));
        assert_eq!(lines.count(is_it), 1, "{who}: twice within moments is one line");
    }

    let mut client = scene.open(&replica, &scene.hello(1, 1)).unwrap();
    assert_eq!(client.welcome, made, "the copy has not been touched");
    assert_eq!(client.rows(), vec![Row::default(); REGIONS as usize]);
}

#[test]
fn who_may_not_have_a_volume_is_logged_once_with_name_and_reason() {
    let lines = Lines::listen();
    let scene = Scene::new();
    let replica = scene.run();
    scene.create(&replica).unwrap();
    let mut client = scene.open(&replica, &scene.hello(1, 1)).unwrap();
    assert_eq!(client.accept(scene.view(5)), Reply::Done);
    let refuse = |scene: &Scene, name: &str, view: u64, reason: &str| {
        for _ in 0..2 {
            scene.open_as(name, &replica, &scene.hello(view, 2)).unwrap_err();
        }
        let volume = scene.volume.to_string();
        let is_it = |line: &str| line.contains(&volume) && line.contains(reason);
        let told = lines.await_one(is_it);
        assert!(told.starts_with("refused 127.0.0.1:") && told.contains(name), "{told}");
        assert_eq!(lines.count(is_it), 1, "{reason}");
    };
    refuse(&scene, "node-c", 5, "calls itself node-a, which is not in its certificate");
    refuse(&scene, "node-a", 4, "the copy knows view 5");
    let keyless = Scene { key: None, ..scene };
    refuse(&keyless, "node-a", 5, "does not prove that it has the volume's key");
    let unknown = Scene { volume: Uuid::new_v4(), ..keyless };
    refuse(&unknown, "node-a", 5, "there is no copy of volume");
    assert_eq!(client.reply(&Request::Ping), Reply::Done);
}

/// Does what a client of that kind can, until it is sent away. Where it came from.
fn knock(replica: &Running, client: Arc<ClientConfig>, who: &str) -> SocketAddr {
    let stream = TcpStream::connect(&replica.address).unwrap();
    let address = stream.local_addr().unwrap();
    // A client has shaken hands before it hears what the server makes of its certificate.
    if let Ok(mut established) = tls::connect(stream, client, "node-b", deadline()) {
        established.connection.writer().write_all(b"let me in").unwrap();
        let _ = established.connection.write_tls(&mut &established.stream);
        let mut stream = &established.stream;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let refused = loop {
            match established.connection.read_tls(&mut stream) {
                Ok(0) => break true,
                Ok(_) => match established.connection.process_new_packets() {
                    Ok(_) => assert_eq!(established.connection.reader().read(&mut [0]).ok(), None, "{who}: an answer"),
                    Err(_) => break true,
                },
                Err(error) => break error.kind() == io::ErrorKind::ConnectionReset,
            }
        };
        assert!(refused, "{who} is not sent away");
    }
    address
}

/// A client that shows no certificate.
fn bare(scene: &Scene, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    let authority = CertificateDer::from_pem_slice(scene.tls.authority.certificate().as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(authority).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = scene.node("node-a").client.alpn_protocols.clone();
    Arc::new(config)
}

/// A client that shows a certificate which a node would not read from its own files.
fn showing(scene: &Scene, issued: &Issued) -> Arc<ClientConfig> {
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let key = aws_lc_rs::sign::any_supported_type(&key).unwrap();
    let chain = vec![CertificateDer::from(issued.certificate_der().to_vec())];
    let mut config = (*scene.node("node-a").client).clone();
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)));
    Arc::new(config)
}

fn is_about(line: &str, address: &SocketAddr) -> bool {
    line.starts_with(&format!("refused {address} "))
}
