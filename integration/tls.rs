//! `sealblk tls bootstrap` as its users run it, and whether OpenSSL, which shares nothing with the code
//! under test, finds that what it makes is good for mutual TLS; and the other way round, whether what
//! `docs/certificates.md` has OpenSSL make is good for sealblk.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use openssl::ssl::{SslAcceptor, SslConnector, SslFiletype, SslMethod, SslVerifyMode, SslVersion};
use openssl::x509::X509;
use sealblk::tls::{Configs, PeerNames, Reason, TlsPaths};

fn run(dir: &Path, arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
    command.args(arguments.split_whitespace()).current_dir(dir).stdin(Stdio::null());
    command.output().unwrap()
}

/// Runs a command that must succeed, and returns what it printed.
fn succeeds(dir: &Path, arguments: &str) -> String {
    let output = run(dir, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{arguments}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must fail with this status and one line that has all of `parts`.
fn fails(dir: &Path, status: i32, arguments: &str, parts: &[&str]) {
    let output = run(dir, arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{arguments}: {error}");
    assert!(output.stdout.is_empty(), "{arguments}");
    assert!(error.starts_with("sealblk: ") && error.lines().count() == 1, "{arguments}: {error}");
    for part in parts {
        assert!(error.contains(part), "{arguments}: no {part:?} in {error}");
    }
}

fn certificate(path: PathBuf) -> X509 {
    X509::from_pem(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn openssl_makes_a_mutual_connection_with_what_bootstrap_makes() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    let printed = succeeds(dir, "tls bootstrap pki --node node-a --node node-b,10.0.0.2,::1 --days 30");
    assert_eq!(printed, "authority: made pki/ca.pem\nnode node-a: made pki/node-a\nnode node-b: made pki/node-b\n");

    let (a, b) = (dir.join("pki/node-a"), dir.join("pki/node-b"));
    let mut acceptor = SslAcceptor::mozilla_modern_v5(SslMethod::tls()).unwrap();
    acceptor.set_certificate_chain_file(b.join("cert.pem")).unwrap();
    acceptor.set_private_key_file(b.join("key.pem"), SslFiletype::PEM).unwrap();
    acceptor.set_ca_file(b.join("ca.pem")).unwrap();
    acceptor.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    let acceptor = acceptor.build();
    let mut connector = SslConnector::builder(SslMethod::tls()).unwrap();
    connector.set_min_proto_version(Some(SslVersion::TLS1_3)).unwrap();
    connector.set_certificate_chain_file(a.join("cert.pem")).unwrap();
    connector.set_private_key_file(a.join("key.pem"), SslFiletype::PEM).unwrap();
    connector.set_ca_file(a.join("ca.pem")).unwrap();
    let connector = connector.build();

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            let names = |_| {
                let stream = acceptor.accept(listener.accept().unwrap().0).ok()?;
                let peer = stream.ssl().peer_certificate()?;
                Some(peer.subject_alt_names()?.iter().filter_map(|name| name.dnsname().map(str::to_owned)).collect())
            };
            (0..2).map(names).collect::<Vec<Option<Vec<String>>>>()
        });
        let met = connector.connect("node-b", TcpStream::connect(address).unwrap()).unwrap();
        let met = met.ssl().peer_certificate().unwrap();
        let names = met.subject_alt_names().unwrap();
        assert_eq!(names.iter().filter_map(|name| name.dnsname()).collect::<Vec<_>>(), ["node-b"]);
        assert_eq!(names.iter().filter_map(|name| name.ipaddress().map(<[u8]>::len)).collect::<Vec<_>>(), [4, 16]);
        assert!(connector.connect("node-c", TcpStream::connect(address).unwrap()).is_err());
        assert_eq!(server.join().unwrap(), [Some(vec!["node-a".to_owned()]), None]);
    });

    let now = openssl::asn1::Asn1Time::days_from_now(0).unwrap();
    let days = |path: &str| now.diff(certificate(dir.join(path)).not_after()).unwrap().days;
    assert!((29..=30).contains(&days("pki/node-a/cert.pem")));
    assert!((3651..=3652).contains(&days("pki/ca.pem")));
}

#[test]
fn certificates_are_replaced_only_when_that_is_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    succeeds(dir, "tls bootstrap pki --node node-a");
    for key in ["pki/ca-key.pem", "pki/node-a/key.pem"] {
        assert_eq!(fs::metadata(dir.join(key)).unwrap().permissions().mode() & 0o777, 0o600, "{key}");
    }
    let read = |file: &str| fs::read(dir.join(file)).unwrap();
    let (authority, first) = (read("pki/ca.pem"), read("pki/node-a/cert.pem"));

    let printed = succeeds(dir, "tls bootstrap pki --node node-a --node node-b");
    assert_eq!(printed, "node node-a: left pki/node-a as it is; --renew replaces it\nnode node-b: made pki/node-b\n");
    assert!(read("pki/ca.pem") == authority && read("pki/node-a/cert.pem") == first);
    assert!(read("pki/node-b/ca.pem") == authority);

    assert_eq!(succeeds(dir, "tls bootstrap pki --node node-a --renew"), "node node-a: made pki/node-a\n");
    assert!(read("pki/ca.pem") == authority && read("pki/node-a/cert.pem") != first);
    let key = openssl::pkey::PKey::private_key_from_pem(&read("pki/node-a/key.pem")).unwrap();
    assert!(certificate(dir.join("pki/node-a/cert.pem")).public_key().unwrap().public_eq(&key));
}

#[test]
fn what_cannot_be_done_is_said_in_a_line() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    fails(dir, 2, "tls bootstrap pki", &["--node"]);
    fails(dir, 2, "tls bootstrap pki --node ../up", &["\"../up\"", "DNS name"]);
    fails(dir, 2, "tls bootstrap pki --node node-a,node-b", &["\"node-b\"", "IP address"]);
    fails(dir, 2, "tls bootstrap pki --node node-a --days 0", &["--days"]);
    assert!(!dir.join("pki").exists());
    succeeds(dir, "tls bootstrap pki --node node-a");
    fs::remove_file(dir.join("pki/ca-key.pem")).unwrap();
    fails(dir, 1, "tls bootstrap pki --node node-b", &["pki has no ca-key.pem", "restore"]);
}

#[test]
fn what_the_documentation_has_openssl_make_is_good_until_it_is_revoked() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    shell(dir, documented("## A private CA with OpenSSL"));
    let paths = |node: &str, crl: bool| {
        let [cert, key] = ["tls.crt", "tls.key"].map(|file| dir.join(node).join(file));
        TlsPaths { cert, key, ca: dir.join("ca.crt"), crl: crl.then(|| dir.join("crl.pem")) }
    };
    for key in ["ca.key", "node-a/tls.key"] {
        assert_eq!(fs::metadata(dir.join(key)).unwrap().permissions().mode() & 0o077, 0, "{key}");
    }
    for (one, other) in [("node-a", "node-b"), ("node-c", "node-a")] {
        let [calls, called] = meet(&paths(one, false), &paths(other, false), other);
        assert!(calls.unwrap().has(other) && called.unwrap().has(one));
    }

    shell(dir, documented("## Revocation"));
    let [calls, called] = meet(&paths("node-b", true), &paths("node-a", true), "node-a");
    assert!(calls.unwrap().has("node-a") && called.unwrap().has("node-b"), "the others are let in");
    let [_, called] = meet(&paths("node-c", true), &paths("node-a", true), "node-a");
    assert!(matches!(called, Err(Reason::Revoked)), "{called:?}");
    let [calls, _] = meet(&paths("node-a", true), &paths("node-c", true), "node-c");
    assert!(matches!(calls, Err(Reason::Revoked)), "{calls:?}");
    // The same once more, as for the next node.
    shell(dir, &documented("## Revocation").replace("node-c", "node-b"));
    let [_, called] = meet(&paths("node-b", true), &paths("node-a", true), "node-a");
    assert!(matches!(called, Err(Reason::Revoked)), "{called:?}");
}

/// Whom each end of a connection meets, the one that calls first.
fn meet(calls: &TlsPaths, called: &TlsPaths, name: &str) -> [Result<PeerNames, Reason>; 2] {
    let [calls, called] = [calls, called].map(|paths| Configs::load(paths, SystemTime::now()).unwrap());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || sealblk::tls::accept(listener.accept().unwrap().0, called.server, deadline));
    let met = sealblk::tls::connect(TcpStream::connect(address).unwrap(), calls.client, name, deadline);
    let ends = [met, server.join().unwrap()];
    ends.map(|end| end.map(|established| established.peer).map_err(|error| error.reason))
}

/// The first block of commands below a heading of `docs/certificates.md`.
fn documented(heading: &str) -> &'static str {
    let (_, section) = CERTIFICATES.split_once(&format!("\n{heading}\n")).expect("the heading");
    let (_, block) = section.split_once("```sh\n").expect("a block of commands");
    block.split_once("```").expect("its end").0
}

fn shell(dir: &Path, commands: &str) {
    let output = Command::new("sh").args(["-euc", commands]).current_dir(dir).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

const CERTIFICATES: &str = include_str!("../docs/certificates.md");
