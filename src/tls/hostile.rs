//! Anything in the place of certificates, keys and revocation lists.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{MemfdFlags, memfd_create};
use rustls::pki_types::CertificateDer;

use super::credential::Credential;
use super::files::{self, FilesError, Identity, TlsPaths};
use super::peer::{NAMES_MAX, PeerNames};

/// Reads `bytes` as a file that has all there is in PEM, as a certificate that a peer shows, and as a revocation list:
/// the entry of the fuzz target `certificates`. Whether one of them is taken.
///
/// # Panics
///
/// When there is no name in what was taken, or too many.
pub fn read_hostile(bytes: &[u8]) -> bool {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let is_identity = load(bytes, now).is_some_and(|loaded| match loaded {
        Ok(identity) => {
            assert!(identity.not_after() > now && identity.not_after() <= identity.names().end());
            true
        }
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains(char::is_control), "{text:?} is no line");
            false
        }
    });
    is_identity | is_shown(bytes, now) | is_revocation_list(bytes)
}

/// As a node reads its own files.
fn load(bytes: &[u8], now: SystemTime) -> Option<Result<Identity, FilesError>> {
    let mut file = File::from(memfd_create("bundle", MemfdFlags::CLOEXEC).ok()?);
    file.write_all(bytes).ok()?;
    let path = Path::new("/proc/self/fd").join(file.as_raw_fd().to_string());
    let crl = bytes.len().is_multiple_of(2).then(|| path.clone());
    Some(Identity::load(&TlsPaths { cert: path.clone(), key: path.clone(), ca: path, crl }, now))
}

/// As a peer's certificate is read, in DER.
fn is_shown(bytes: &[u8], now: SystemTime) -> bool {
    let path = Path::new("shown");
    let credential = Credential::new(&[CertificateDer::from(bytes)], None);
    let is_good = files::check_time(path, bytes, now).is_ok() && files::check_purpose(path, bytes).is_ok();
    let Ok(names) = PeerNames::of(bytes) else { return false };
    let all: Vec<&str> = names.iter().collect();
    assert!((1..=NAMES_MAX).contains(&all.len()) && names.end() == credential.end());
    assert!(all.iter().all(|name| !name.contains('*') && names.has(name)));
    is_good
}

fn is_revocation_list(bytes: &[u8]) -> bool {
    let pem = format!("-----BEGIN X509 CRL-----\n{}\n-----END X509 CRL-----\n", STANDARD.encode(bytes));
    files::lists_of(Path::new("lists"), pem.as_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus;

    /// The seeds are of `sealblk tls bootstrap`, and good until 2036.
    #[test]
    fn the_fuzzing_corpus_passes() {
        assert!(corpus::taken("certificates", read_hostile) >= 4);
    }
}
