//! A folder of certificates for a cluster that has no authority of its own yet.
//!
//! The folder has the authority (`ca.pem`, `ca-key.pem`) and a folder for each node with what that node
//! needs (`cert.pem`, `key.pem`, `ca.pem`). Whoever has `ca-key.pem` can be any node: it is needed for
//! new certificates only, and no node gets it.
//!
//! Invariants: what is there is not replaced unless that is asked for; a file is there whole or not at
//! all; private keys are for their owner's eyes only from the first byte on. Keys are written before
//! their certificates, so that a certificate tells that its key is there, too. A run that was interrupted
//! in between is told apart from a finished one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls::pki_types::DnsName;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::authority::{Authority, AuthorityError, Life};

/// A node to make a certificate for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name, a DNS name in lower case. Also the name of its folder.
    pub name: String,
    /// Addresses to put in the certificate, for other programs that look for them. No names: each would
    /// let this node be the node of that name.
    pub addresses: Vec<IpAddr>,
}

/// What a run has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Whether it made the authority.
    pub made_authority: bool,
    /// Of each node, in the order given.
    pub nodes: Vec<NodeDone>,
}

/// What a run has done for a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeDone {
    /// Its name.
    pub name: String,
    /// Whether it has a new certificate. If not, it has the one of before.
    pub made: bool,
}

/// Certificates cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// A name of a node that can be none.
    #[error("{name:?} is no node name: use a DNS name in lower case, of letters, digits, '-' and '.'")]
    Name {
        /// The name.
        name: String,
    },
    /// The authority lacks its key or its certificate.
    #[error("{} has no {missing}, but the other half of the authority: restore it from a copy, or take another folder", .dir.display())]
    HalfAuthority {
        /// The folder.
        dir: PathBuf,
        /// The file that is not there.
        missing: &'static str,
    },
    /// The authority's time is over.
    #[error("the authority in {} has expired: make another one in another folder, and give its ca.pem to all nodes", .dir.display())]
    Expired {
        /// The folder.
        dir: PathBuf,
    },
    /// A node lacks its certificate, but has a key.
    #[error("{} has a key but no certificate: give --renew to make both anew", .dir.display())]
    HalfNode {
        /// The node's folder.
        dir: PathBuf,
    },
    /// The authority cannot be used, or makes no certificate.
    #[error("{}: {source}", .dir.display())]
    Authority {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: AuthorityError,
    },
    /// A file or folder cannot be read or written.
    #[error("cannot read or write {}: {source}: check its path, its permissions and the space on its disk", .path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes what is not there: the authority, and the certificates of the nodes, valid from `now` for `life`
/// or as long as the authority. With `renew`, also the certificates of nodes that have one.
///
/// # Errors
///
/// [`BootstrapError`]. Nodes before the one that failed have their certificates.
pub fn bootstrap(
    dir: &Path,
    nodes: &[Node],
    life: Duration,
    renew: bool,
    now: SystemTime,
) -> Result<Done, BootstrapError> {
    if let Some(node) = nodes.iter().find(|node| !is_node_name(&node.name)) {
        return Err(BootstrapError::Name { name: node.name.clone() });
    }
    make_folder(dir)?;
    let (authority, made_authority) = authority(dir, now)?;
    let mut life = Life::from_now(now, life);
    life.end = life.end.min(authority.life().end);
    let mut done = Vec::with_capacity(nodes.len());
    for node in nodes {
        let made = certify(dir, node, &authority, life, renew)?;
        done.push(NodeDone { name: node.name.clone(), made });
    }
    Ok(Done { made_authority, nodes: done })
}

/// The one in the folder, or a new one; and whether it is new.
fn authority(dir: &Path, now: SystemTime) -> Result<(Authority, bool), BootstrapError> {
    let failed = |source| BootstrapError::Authority { dir: dir.to_owned(), source };
    let (certificate_path, key_path) = (dir.join(AUTHORITY), dir.join(AUTHORITY_KEY));
    let half = |missing| BootstrapError::HalfAuthority { dir: dir.to_owned(), missing };
    match (read(&certificate_path)?, read(&key_path)?) {
        (None, None) => {
            let authority = Authority::create(Life::from_now(now, AUTHORITY_LIFE)).map_err(failed)?;
            write(&key_path, authority.key().as_bytes(), SECRET)?;
            write(&certificate_path, authority.certificate().as_bytes(), PUBLIC)?;
            Ok((authority, true))
        }
        (Some(certificate), Some(key)) => {
            let authority = Authority::from_pem(&certificate, &key).map_err(failed)?;
            if authority.life().end <= now {
                return Err(BootstrapError::Expired { dir: dir.to_owned() });
            }
            Ok((authority, false))
        }
        (None, Some(_)) => Err(half(AUTHORITY)),
        (Some(_), None) => Err(half(AUTHORITY_KEY)),
    }
}

/// Makes a node's certificate, unless it has one; tells whether it did.
fn certify(dir: &Path, node: &Node, authority: &Authority, life: Life, renew: bool) -> Result<bool, BootstrapError> {
    let folder = dir.join(&node.name);
    let (certificate_path, key_path) = (folder.join(CERTIFICATE), folder.join(KEY));
    if !renew {
        match (exists(&certificate_path)?, exists(&key_path)?) {
            (false, false) => {}
            (true, _) => return Ok(false),
            (false, true) => return Err(BootstrapError::HalfNode { dir: folder }),
        }
    }
    let addresses = node.addresses.iter().map(IpAddr::to_string);
    let names: Vec<_> = [node.name.clone()].into_iter().chain(addresses).collect();
    let issued =
        authority.issue(&names, life).map_err(|source| BootstrapError::Authority { dir: dir.to_owned(), source })?;
    make_folder(&folder)?;
    write(&key_path, issued.key.as_bytes(), SECRET)?;
    write(&folder.join(AUTHORITY), authority.certificate().as_bytes(), PUBLIC)?;
    write(&certificate_path, issued.certificate.as_bytes(), PUBLIC)?;
    Ok(true)
}

/// Whether it can be the name of a node, which also makes it a safe name for a folder: it has no slash,
/// and is neither `.` nor `..`. An address is none: it would not be looked for among the DNS names.
fn is_node_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    name.bytes().all(plain) && !name.ends_with('.') && DnsName::try_from(name).is_ok()
}

fn exists(path: &Path) -> Result<bool, BootstrapError> {
    path.try_exists().map_err(|source| BootstrapError::File { path: path.to_owned(), source })
}

fn make_folder(path: &Path) -> Result<(), BootstrapError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| BootstrapError::File { path: path.to_owned(), source })
}

/// The text of a file, or nothing if there is no such file.
fn read(path: &Path) -> Result<Option<Zeroizing<String>>, BootstrapError> {
    let read = || -> io::Result<_> {
        let file = File::open(path)?;
        let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX));
        file.take(FILE_BYTES_MAX as u64).read_to_string(&mut text)?;
        Ok(text)
    };
    match read() {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(BootstrapError::File { path: path.to_owned(), source }),
    }
}

/// Writes a file beside its place, makes it durable, and moves it there.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), BootstrapError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let temporary = folder.join(format!(".new-{}", Uuid::new_v4().simple()));
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|source| {
        // What failed is told; that it leaves an unfinished file as well would help nobody.
        let _ = fs::remove_file(&temporary);
        BootstrapError::File { path: path.to_owned(), source }
    })
}

const AUTHORITY: &str = "ca.pem";
const AUTHORITY_KEY: &str = "ca-key.pem";
const CERTIFICATE: &str = "cert.pem";
const KEY: &str = "key.pem";
const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;
const AUTHORITY_LIFE: Duration = Duration::from_secs(3652 * 24 * 3600);
const FILE_BYTES_MAX: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::super::files::TlsPaths;
    use super::super::{Configs, FilesError};
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn node(name: &str) -> Node {
        Node { name: name.to_owned(), addresses: vec!["10.0.0.1".parse().unwrap()] }
    }

    fn load(dir: &Path, name: &str, now: SystemTime) -> Result<Configs, FilesError> {
        let of = |file| dir.join(name).join(file);
        Configs::load(&TlsPaths { cert: of("cert.pem"), key: of("key.pem"), ca: of("ca.pem"), crl: None }, now)
    }

    fn made(done: &Done) -> Vec<bool> {
        done.nodes.iter().map(|node| node.made).collect()
    }

    #[test]
    fn nodes_get_what_they_need_and_nobody_else_reads_the_keys() {
        let root = tempfile::tempdir().unwrap();
        let (dir, now) = (root.path().join("pki"), SystemTime::now());
        let done = bootstrap(&dir, &[node("node-a"), node("node-b")], DAY, false, now).unwrap();
        assert!(done.made_authority && made(&done) == [true, true]);
        for name in ["node-a", "node-b"] {
            let configs = load(&dir, name, now).unwrap();
            assert_eq!(configs.names.iter().collect::<Vec<_>>(), [name]);
            assert!(configs.not_after <= now + DAY && configs.not_after > now + DAY - Duration::from_secs(1));
            assert!(matches!(load(&dir, name, now + DAY), Err(FilesError::Expired { .. })));
        }
        for (file, mode) in [("ca-key.pem", 0o600), ("node-a/key.pem", 0o600), ("node-b/key.pem", 0o600), (".", 0o700)]
        {
            assert_eq!(fs::metadata(dir.join(file)).unwrap().permissions().mode() & 0o777, mode, "{file}");
        }
        let names: Vec<_> = fs::read_dir(dir.join("node-a")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 3, "nothing is left over: {names:?}");
    }

    #[test]
    fn what_is_there_stays_until_it_is_renewed() {
        let root = tempfile::tempdir().unwrap();
        let (dir, now) = (root.path(), SystemTime::now());
        bootstrap(dir, &[node("node-a")], DAY, false, now).unwrap();
        let inode = |file: &str| fs::metadata(dir.join(file)).unwrap().ino();
        let before = ["ca.pem", "ca-key.pem", "node-a/cert.pem", "node-a/key.pem"].map(inode);

        let done = bootstrap(dir, &[node("node-a"), node("node-b")], DAY, false, now).unwrap();
        assert!(!done.made_authority && made(&done) == [false, true]);
        assert_eq!(["ca.pem", "ca-key.pem", "node-a/cert.pem", "node-a/key.pem"].map(inode), before);
        assert_eq!(fs::read(dir.join("node-b/ca.pem")).unwrap(), fs::read(dir.join("ca.pem")).unwrap());

        let done = bootstrap(dir, &[node("node-a")], 2 * DAY, true, now).unwrap();
        assert!(!done.made_authority && made(&done) == [true]);
        assert!(load(dir, "node-a", now).unwrap().not_after > now + DAY);
        assert_eq!(["ca.pem", "ca-key.pem"].map(inode), before[..2]);
    }

    #[test]
    fn halves_are_told_apart_and_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let (dir, now) = (root.path(), SystemTime::now());
        let run = |renew| bootstrap(dir, &[node("node-a")], DAY, renew, now);
        run(false).unwrap();
        fs::remove_file(dir.join("node-a/cert.pem")).unwrap();
        assert!(matches!(run(false), Err(BootstrapError::HalfNode { .. })));
        run(true).unwrap();
        load(dir, "node-a", now).unwrap();

        for missing in ["ca.pem", "ca-key.pem"] {
            fs::rename(dir.join(missing), dir.join("away")).unwrap();
            let error = run(true).unwrap_err();
            assert!(matches!(error, BootstrapError::HalfAuthority { missing: file, .. } if file == missing), "{error}");
            assert!(!dir.join(missing).exists());
            fs::rename(dir.join("away"), dir.join(missing)).unwrap();
        }
        load(dir, "node-a", now).unwrap();
    }

    #[test]
    fn no_certificate_outlives_the_authority() {
        let root = tempfile::tempdir().unwrap();
        let (dir, now) = (root.path(), SystemTime::now());
        bootstrap(dir, &[node("node-a")], 5000 * DAY, false, now).unwrap();
        assert!(load(dir, "node-a", now).unwrap().not_after <= now + AUTHORITY_LIFE);
        let later = bootstrap(dir, &[node("node-b")], DAY, false, now + AUTHORITY_LIFE);
        assert!(matches!(later, Err(BootstrapError::Expired { .. })));
        assert!(!dir.join("node-b").exists());
    }

    #[test]
    fn a_name_that_is_none_makes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("pki");
        for name in ["", "..", ".", "a/b", "../a", "/a", "Node", "a_b", "10.0.0.1", "*.a", "a.", "-a"] {
            let result = bootstrap(&dir, &[node("node-a"), node(name)], DAY, false, SystemTime::now());
            assert!(matches!(result, Err(BootstrapError::Name { .. })), "{name:?}");
            assert!(!dir.exists(), "{name:?}");
        }
    }
}
