//! Files that are good, and each way in which they are not.

use std::fs;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair};

use super::super::Configs;
use super::super::fixture::{Fixture, HOUR, over_and_early};
use super::*;

/// Why files are refused; the sentence names one of them.
fn refusal(paths: &TlsPaths, file: &str) -> FilesError {
    let error = Configs::load(paths, SystemTime::now()).unwrap_err();
    assert!(error.to_string().contains(file), "{error}");
    error
}

#[test]
fn good_files_are_read() {
    let fixture = Fixture::new();
    let now = SystemTime::now();
    let identity = Identity::load(&fixture.node("node-a"), now).unwrap();
    assert!(identity.names().has("node-a"));
    assert!(identity.not_after() <= now + HOUR * 2 && identity.not_after() > now);
    let shown = format!("{identity:?}");
    assert!(shown.contains("node-a") && !shown.contains("key"), "{shown}");
}

#[test]
fn every_file_must_be_there_and_be_what_it_is_for() {
    let fixture = Fixture::new();
    let good = fixture.node("node-a");
    let crl = fixture.write("node-a-crl", fixture.revoke(&[]));
    let good = TlsPaths { crl: Some(crl), ..good };
    Configs::load(&good, SystemTime::now()).unwrap();
    for file in ["node-a-cert", "node-a-key", "ca", "node-a-crl"] {
        let path = good.cert.with_file_name(file);
        let content = fs::read(&path).unwrap();

        fs::remove_file(&path).unwrap();
        assert!(matches!(refusal(&good, file), FilesError::Read { .. }), "{file}");
        for wrong in ["", "nonsense"] {
            fixture.write(file, wrong);
            let error = refusal(&good, file);
            let is_right = match file {
                "node-a-key" => matches!(error, FilesError::NoKey { .. }),
                "node-a-crl" => matches!(error, FilesError::NoRevocationList { .. }),
                _ => matches!(error, FilesError::NoCertificate { .. }),
            };
            assert!(is_right, "{file}: {error}");
        }
        File::create(&path).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        assert!(matches!(refusal(&good, file), FilesError::Read { .. }), "{file}");
        fixture.write(file, content);
    }
    for (file, label) in [("node-a-cert", "CERTIFICATE"), ("ca", "CERTIFICATE"), ("node-a-crl", "X509 CRL")] {
        let content = fs::read(good.cert.with_file_name(file)).unwrap();
        fixture.write(file, format!("-----BEGIN {label}-----\nMAA=\n-----END {label}-----\n"));
        refusal(&good, file);
        fixture.write(file, content);
    }
    Configs::load(&good, SystemTime::now()).unwrap();
}

#[test]
fn a_key_of_another_certificate_is_told() {
    let fixture = Fixture::new();
    let paths = TlsPaths { key: fixture.node("node-b").key, ..fixture.node("node-a") };
    assert!(matches!(refusal(&paths, "node-b-key"), FilesError::Mismatch { .. }));
}

#[test]
fn certificates_must_be_in_their_time() {
    let fixture = Fixture::new();
    let (over, early) = over_and_early();
    for (life, is_over) in [(over, true), (early, false)] {
        let issued = fixture.authority.issue(&["node-a".to_owned()], life).unwrap();
        let error = refusal(&fixture.write_issued("node-a", &issued), "node-a-cert");
        assert_eq!(matches!(error, FilesError::Expired { .. }), is_over, "{error}");
        assert_eq!(matches!(error, FilesError::Early { .. }), !is_over, "{error}");

        let authority = super::super::authority::Authority::create(life).unwrap();
        let paths = fixture.node("node-a");
        let ca = fixture.write("ca-untimely", authority.certificate());
        let paths = TlsPaths { ca, ..paths };
        let error = refusal(&paths, "ca-untimely");
        assert_eq!(matches!(error, FilesError::Expired { .. }), is_over, "{error}");

        // Beside one that is good, one that is over is left out. For one that is early nobody will look again.
        fixture.write("ca-untimely", authority.certificate().to_owned() + fixture.authority.certificate());
        assert_eq!(Identity::load(&paths, SystemTime::now()).unwrap().roots.len(), if is_over { 1 } else { 2 });
    }
}

#[test]
fn a_certificate_is_for_both_ends_and_names_a_node() {
    let fixture = Fixture::new();
    let key = KeyPair::generate().unwrap();
    let paths = fixture.node("node-a");
    fixture.write("node-a-key", key.serialize_pem());
    let write = |names: &[&str], purposes: &[ExtendedKeyUsagePurpose]| {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names).unwrap();
        parameters.extended_key_usages = purposes.to_vec();
        fixture.write("node-a-cert", parameters.signed_by(&key, fixture.authority.issuer()).unwrap().pem());
    };
    let (client, server) = (ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth);
    for one in [&client, &server] {
        write(&["node-a"], std::slice::from_ref(one));
        assert!(matches!(refusal(&paths, "node-a-cert"), FilesError::Purpose { .. }));
    }
    write(&["10.0.0.1"], &[client.clone(), server.clone()]);
    assert!(matches!(refusal(&paths, "node-a-cert"), FilesError::Names { .. }));
    write(&["node-a"], &[client, server]);
    Configs::load(&paths, SystemTime::now()).unwrap();
}
