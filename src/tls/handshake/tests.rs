//! Handshakes over real sockets, with a thread at each end.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, RootCertStore};

use super::super::authority::Issued;
use super::super::configs::Configs;
use super::super::files::TlsPaths;
use super::super::fixture::{Fixture, configs, life, over_and_early, revocation_list};
use super::*;

type Outcome = Result<Established, TlsError>;

/// Both ends of a new connection.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// What the client that looks for `name` and the server make of each other.
fn meet(client: Arc<ClientConfig>, server: Arc<ServerConfig>, name: &str) -> (Outcome, Outcome) {
    let (client_stream, server_stream) = pair();
    thread::scope(|scope| {
        let server = scope.spawn(|| accept(server_stream, server, deadline()));
        let client = connect(client_stream, client, name, deadline());
        (client, server.join().unwrap())
    })
}

/// Node a calls node b.
fn meet_nodes(a: &Configs, b: &Configs) -> (Outcome, Outcome) {
    meet(a.client.clone(), b.server.clone(), "node-b")
}

fn reason(outcome: Outcome) -> Reason {
    outcome.unwrap_err().reason
}

/// The reason why the server refuses us, which comes with the first bytes that are read, also when we
/// have sent something that the server will never read.
fn refusal(outcome: Outcome) -> Reason {
    let Established { stream, mut connection, .. } = outcome.unwrap();
    connection.writer().write_all(b"hello").unwrap();
    connection.write_tls(&mut &stream).unwrap();
    let error = loop {
        assert_ne!(connection.read_tls(&mut &stream).unwrap(), 0, "the server says why it closes");
        if let Err(error) = connection.process_new_packets() {
            break error;
        }
    };
    TlsError::after(Peer { node: None, address: None }, error).reason
}

/// The same, but with a certificate that would not be read from a file.
fn showing(configs: &Configs, issued: &Issued) -> Configs {
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let chain = vec![CertificateDer::from(issued.certificate_der().to_vec())];
    let key = aws_lc_rs::sign::any_supported_type(&key).unwrap();
    let shown = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)));
    let (mut client, mut server) = ((*configs.client).clone(), (*configs.server).clone());
    client.client_auth_cert_resolver = shown.clone();
    server.cert_resolver = shown;
    Configs { client: Arc::new(client), server: Arc::new(server), names: configs.names.clone(), ..configs.clone() }
}

#[test]
fn both_ends_know_each_other_and_share_a_value() {
    let fixture = Fixture::new();
    let (a, b) = (configs(&fixture.node("node-a")), configs(&fixture.node("node-b")));
    let mut exporters = Vec::new();
    for _ in 0..2 {
        let (client, server) = meet_nodes(&a, &b);
        let (mut client, mut server) = (client.unwrap(), server.unwrap());
        assert!(client.peer.has("node-b") && !client.peer.has("node-a"));
        assert!(server.peer.has("node-a") && !server.peer.has("node-b"));
        assert_eq!(client.exporter, server.exporter);
        exporters.push(client.exporter);
        let suite = client.connection.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(client.connection.handshake_kind(), Some(rustls::HandshakeKind::Full));

        client.connection.writer().write_all(b"hello").unwrap();
        client.connection.write_tls(&mut &client.stream).unwrap();
        let mut bytes = [0; 5];
        while let Err(error) = server.connection.reader().read_exact(&mut bytes) {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            server.connection.read_tls(&mut &server.stream).unwrap();
            server.connection.process_new_packets().unwrap();
        }
        assert_eq!(&bytes, b"hello");
        assert_eq!(server.stream.read_timeout().unwrap(), None);
        assert_eq!(server.stream.write_timeout().unwrap(), None);
    }
    assert_ne!(exporters[0], exporters[1]);
    assert_ne!(exporters[0], [0; 32]);
}

#[test]
fn the_cheapest_suite_is_taken_whatever_the_client_prefers() {
    let fixture = Fixture::new();
    let (a, b) = (configs(&fixture.node("node-a")), configs(&fixture.node("node-b")));
    let mut provider = (**a.client.crypto_provider()).clone();
    provider.cipher_suites.reverse();
    let mut client = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots(&fixture))
        .with_client_cert_resolver(a.client.client_auth_cert_resolver.clone());
    client.alpn_protocols = vec![ALPN.to_vec()];
    let (client, server) = meet(Arc::new(client), b.server.clone(), "node-b");
    let suite = client.unwrap().connection.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert!(server.is_ok());
}

#[test]
fn a_non_blocking_socket_will_do() {
    let fixture = Fixture::new();
    let (a, b) = (configs(&fixture.node("node-a")), configs(&fixture.node("node-b")));
    let (client_stream, server_stream) = pair();
    client_stream.set_nonblocking(true).unwrap();
    server_stream.set_nonblocking(true).unwrap();
    thread::scope(|scope| {
        let server = scope.spawn(|| accept(server_stream, b.server.clone(), deadline()));
        assert!(connect(client_stream, a.client.clone(), "node-b", deadline()).is_ok());
        assert!(server.join().unwrap().is_ok());
    });
}

#[test]
fn a_peer_without_a_certificate_is_refused() {
    let fixture = Fixture::new();
    let b = configs(&fixture.node("node-b"));
    let (client, server) = meet(anonymous(&fixture, &[&TLS13]), b.server.clone(), "node-b");
    assert!(matches!(reason(server), Reason::NoCertificate));
    assert!(matches!(refusal(client), Reason::Refused(AlertDescription::CertificateRequired)));
}

/// A client that shows no certificate, but is right in everything else.
fn anonymous(fixture: &Fixture, versions: &[&'static rustls::SupportedProtocolVersion]) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots(fixture))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Arc::new(config)
}

fn roots(fixture: &Fixture) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(fixture.authority.certificate().as_bytes()).unwrap()).unwrap();
    roots
}

#[test]
fn a_peer_of_another_authority_is_refused_by_either_end() {
    let (fixture, other) = (Fixture::new(), Fixture::new());
    let (a, b) = (configs(&fixture.node("node-a")), configs(&fixture.node("node-b")));
    let stranger_b = configs(&other.node("node-b"));
    let (client, server) = meet_nodes(&a, &stranger_b);
    assert!(matches!(reason(client), Reason::UnknownAuthority));
    assert!(matches!(reason(server), Reason::Refused(AlertDescription::UnknownCA)));

    // It trusts our authority, so it is only the server that objects.
    let mut paths = other.node("node-a");
    paths.ca = other.write("ca-of-both", fixture.authority.certificate().to_owned() + other.authority.certificate());
    let (client, server) = meet_nodes(&configs(&paths), &b);
    assert!(matches!(reason(server), Reason::UnknownAuthority));
    assert!(matches!(refusal(client), Reason::Refused(AlertDescription::UnknownCA)));
}

#[test]
fn a_certificate_out_of_its_time_is_refused_by_either_end() {
    let fixture = Fixture::new();
    let (a, b) = (configs(&fixture.node("node-a")), configs(&fixture.node("node-b")));
    let (over, early) = over_and_early();
    for (life, is_expected) in [
        (over, (|reason| matches!(reason, Reason::Expired)) as fn(Reason) -> bool),
        (early, |reason| matches!(reason, Reason::NotYetValid)),
    ] {
        let untimely = |name: &str| fixture.authority.issue(&[name.to_owned()], life).unwrap();
        let (client, server) = meet_nodes(&a, &showing(&b, &untimely("node-b")));
        assert!(is_expected(reason(client)));
        assert!(matches!(reason(server), Reason::Refused(AlertDescription::CertificateExpired)));

        let (client, server) = meet_nodes(&showing(&a, &untimely("node-a")), &b);
        assert!(is_expected(reason(server)));
        assert!(matches!(refusal(client), Reason::Refused(AlertDescription::CertificateExpired)));
    }
}

#[test]
fn another_node_than_was_looked_for_is_refused() {
    let fixture = Fixture::new();
    let (a, c) = (configs(&fixture.node("node-a")), configs(&fixture.node("node-c")));
    let (client, server) = meet_nodes(&a, &c);
    let error = client.unwrap_err();
    assert!(error.to_string().contains("node node-b at 127.0.0.1:"), "{error}");
    assert!(error.to_string().contains("is for"), "{error}");
    match error.reason {
        Reason::WrongName { presented } => assert!(presented.iter().any(|name| name.contains("node-c"))),
        reason => panic!("{reason:?}"),
    }
    assert!(matches!(reason(server), Reason::Refused(AlertDescription::BadCertificate)));

    let (client, _) = pair();
    let error = connect(client, a.client.clone(), "127.0.0.1", deadline()).unwrap_err();
    assert!(matches!(error.reason, Reason::NodeName));
}

#[test]
fn a_name_with_an_asterisk_is_that_of_no_node() {
    let fixture = Fixture::new();
    let a = configs(&fixture.node("node-a"));
    let names = ["*.nodes.example", "node-c.nodes.example"].map(str::to_owned);
    let issued = fixture.authority.issue(&names, life()).unwrap();
    let server_of = || showing(&configs(&fixture.node("node-b")), &issued).server;
    let (client, _) = meet(a.client.clone(), server_of(), "node-b.nodes.example");
    assert!(matches!(reason(client), Reason::WrongName { presented } if presented == ["node-c.nodes.example"]));
    let (client, server) = meet(a.client, server_of(), "node-c.nodes.example");
    assert!(client.is_ok() && server.is_ok());
}

#[test]
fn a_peer_that_names_no_node_is_refused() {
    let fixture = Fixture::new();
    let b = configs(&fixture.node("node-b"));
    let issued = fixture.authority.issue(&["10.0.0.1".to_owned()], life()).unwrap();
    let (_, server) = meet_nodes(&showing(&configs(&fixture.node("node-a")), &issued), &b);
    assert!(matches!(reason(server), Reason::Names(_)));
}

#[test]
fn a_revoked_certificate_is_refused_by_either_end() {
    let fixture = Fixture::new();
    let (issued_a, issued_b) = (fixture.issue("node-a"), fixture.issue("node-b"));
    let (paths_a, paths_b) = (fixture.write_issued("node-a", &issued_a), fixture.write_issued("node-b", &issued_b));
    let with_list = |paths: &TlsPaths, list: String| {
        let crl = Some(fixture.write("crl", list));
        configs(&TlsPaths { crl, ..paths.clone() })
    };
    let (a, b) = (configs(&paths_a), configs(&paths_b));

    let (client, server) = meet_nodes(&with_list(&paths_a, fixture.revoke(&[&issued_b])), &b);
    assert!(matches!(reason(client), Reason::Revoked));
    assert!(matches!(reason(server), Reason::Refused(AlertDescription::CertificateRevoked)));

    let (client, server) = meet_nodes(&a, &with_list(&paths_b, fixture.revoke(&[&issued_a])));
    assert!(matches!(reason(server), Reason::Revoked));
    assert!(matches!(refusal(client), Reason::Refused(AlertDescription::CertificateRevoked)));

    // A list is not more than a list.
    let list = fixture.revoke(&[&fixture.issue("node-c")]);
    let (client, server) = meet_nodes(&with_list(&paths_a, list.clone()), &with_list(&paths_b, list));
    assert!(client.is_ok() && server.is_ok());

    // One of another authority tells nothing about ours.
    let list = revocation_list(&Fixture::new().authority, &[]);
    let (client, _) = meet_nodes(&with_list(&paths_a, list), &b);
    assert!(matches!(reason(client), Reason::RevocationUnknown));
}

#[test]
fn older_tls_is_refused() {
    let fixture = Fixture::new();
    let b = configs(&fixture.node("node-b"));
    let (client, server) = meet(anonymous(&fixture, &[&TLS12]), b.server.clone(), "node-b");
    assert!(matches!(reason(server), Reason::Version));
    assert!(matches!(reason(client), Reason::Version));
}

#[test]
fn another_protocol_is_refused() {
    let fixture = Fixture::new();
    let (a, b) = (configs(&fixture.node("node-a")), configs(&fixture.node("node-b")));
    for protocols in [vec![], vec![b"sealblk/0".to_vec()]] {
        let mut client = (*a.client).clone();
        client.alpn_protocols = protocols;
        let (_, server) = meet(Arc::new(client), b.server.clone(), "node-b");
        assert!(matches!(reason(server), Reason::Protocol));
    }
}

#[test]
fn what_is_not_tls_is_told() {
    let fixture = Fixture::new();
    let b = configs(&fixture.node("node-b"));
    let (mut client, server) = pair();
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(matches!(reason(accept(server, b.server.clone(), deadline())), Reason::NotTls));

    let (client, server) = pair();
    drop(client);
    assert!(matches!(reason(accept(server, b.server.clone(), deadline())), Reason::Closed));
}

#[test]
fn a_peer_that_sends_a_byte_now_and_then_is_cut_at_the_deadline() {
    let fixture = Fixture::new();
    let b = configs(&fixture.node("node-b"));
    let (mut client, server) = pair();
    let (done, is_done) = mpsc::channel::<()>();
    let (time, begin) = (Duration::from_millis(300), Instant::now());
    let sent = thread::scope(|scope| {
        let peer = scope.spawn(move || {
            // The beginning of a record of 16 KiB, which never ends.
            let mut sent = 0;
            let bytes = [0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3].into_iter().chain([0; 4096]);
            for byte in bytes {
                if client.write_all(&[byte]).is_ok() {
                    sent += 1;
                }
                if is_done.recv_timeout(Duration::from_millis(10)) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
            sent
        });
        let outcome = accept(server, b.server.clone(), begin + time);
        let took = begin.elapsed();
        drop(done);
        assert!(matches!(reason(outcome), Reason::Timeout));
        assert!(took >= time && took < Duration::from_secs(10), "{took:?}");
        peer.join().unwrap()
    });
    assert!((2..4000).contains(&sent), "it never stopped sending: {sent}");
}

#[test]
fn a_silent_peer_is_cut_at_the_deadline() {
    let fixture = Fixture::new();
    let a = configs(&fixture.node("node-a"));
    let (client, _server) = pair();
    let (time, begin) = (Duration::from_millis(100), Instant::now());
    assert!(matches!(reason(connect(client, a.client.clone(), "node-b", begin + time)), Reason::Timeout));
    assert!(begin.elapsed() >= time);
}

#[test]
fn sockets_are_tuned() {
    let (client, _server) = pair();
    tune(&client, Duration::from_secs(9)).unwrap();
    assert!(client.nodelay().unwrap() && sockopt::socket_keepalive(&client).unwrap());
    assert_eq!(sockopt::tcp_user_timeout(&client).unwrap(), 9000);
    assert_eq!(sockopt::tcp_keepidle(&client).unwrap(), Duration::from_secs(3));
    assert_eq!(sockopt::tcp_keepintvl(&client).unwrap(), Duration::from_secs(3));
    assert_eq!(sockopt::tcp_keepcnt(&client).unwrap(), 3);
}
