//! Where keys come from: a source named on the command line, opened into an [`XtsKey`].
//!
//! A source is a file with a Kubernetes Secret manifest in the format of StorageOS ([`secret`]), or
//! with the 64 raw bytes of a key, or it is a Secret of a cluster, which is read through its API server
//! ([`cluster`]). What is read passes only through memory that is wiped when it is freed ([`wiping`])
//! and ends in one copy, in the locked pages of the [`XtsKey`].
//!
//! Invariant: no error and no log line of this room contains a byte of a key, encoded or not. Errors
//! name the file, the Secret and the field, and say what to do.

pub mod cluster;
mod error;
pub mod generate;
mod hostile;
pub mod manifest;
pub mod names;
pub mod process;
pub mod secret;
pub mod wiping;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use zeroize::Zeroizing;

use crate::crypto::xts::XtsKey;

pub use cluster::Cluster;
pub use error::{KeyError, Origin, SourceError};
pub use hostile::open_hostile;
pub use names::{Namespace, ObjectName};
pub use secret::{NamespaceKey, NamespaceKeys};

/// Where a key is to be read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `file:PATH`: a Secret manifest in YAML or JSON, or the raw bytes.
    File(PathBuf),
    /// `kubernetes:NAMESPACE/NAME`: a Secret of the cluster.
    Kubernetes {
        /// Its namespace.
        namespace: Namespace,
        /// Its name.
        name: ObjectName,
    },
    /// `pvc:NAMESPACE/NAME`: the Secret that a claim's annotations name.
    Pvc {
        /// The claim's namespace.
        namespace: Namespace,
        /// The claim's name.
        name: ObjectName,
    },
}

impl Source {
    /// Reads the volume key. A Secret that holds the key only wrapped needs the namespace's key: from
    /// `namespace_key`, or else, for a Secret of a cluster, from the namespace that it is in. One that
    /// holds it in the clear is checked against `namespace_key` when that is given.
    ///
    /// # Errors
    ///
    /// [`KeyError`] when the source cannot be read or does not hold one good key.
    pub fn load(&self, namespace_key: Option<&Source>, cluster: &Cluster<'_>) -> Result<XtsKey, KeyError> {
        if self.is_file() && namespace_key.is_none_or(Source::is_file) {
            let _wiping = wiping::Wiping::start();
            let namespace_keys = namespace_key.map(Source::read_namespace_keys).transpose()?;
            return self.read_volume_key(namespace_keys.as_ref());
        }
        cluster::load_volume_key(self, namespace_key, cluster)
    }

    /// Reads a namespace's keys, which open wrapped volume keys.
    ///
    /// # Errors
    ///
    /// [`KeyError`] when the source cannot be read or does not hold one good key.
    pub fn load_namespace_keys(&self, cluster: &Cluster<'_>) -> Result<NamespaceKeys, KeyError> {
        if self.is_file() {
            let _wiping = wiping::Wiping::start();
            return self.read_namespace_keys();
        }
        cluster::load_namespace_keys(self, cluster)
    }

    fn is_file(&self) -> bool {
        matches!(self, Source::File(_))
    }

    /// The volume key of a file. The calling thread wipes what it frees.
    fn read_volume_key(&self, namespace_keys: Option<&NamespaceKeys>) -> Result<XtsKey, KeyError> {
        let Source::File(path) = self else { return Err(SourceError::NoPath.into()) };
        volume_key(path, &read(path)?, namespace_keys)
    }

    /// The namespace's keys of a file. The calling thread wipes what it frees.
    fn read_namespace_keys(&self) -> Result<NamespaceKeys, KeyError> {
        let Source::File(path) = self else { return Err(SourceError::NoPath.into()) };
        self::namespace_keys(path, &read(path)?)
    }
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Source, SourceError> {
        match text.split_once(':') {
            Some(("file", "")) => Err(SourceError::NoPath),
            Some(("file", path)) => Ok(Source::File(path.into())),
            Some(("kubernetes", object)) => {
                let (namespace, name) = parse_object(object)?;
                Ok(Source::Kubernetes { namespace, name })
            }
            Some(("pvc", object)) => {
                let (namespace, name) = parse_object(object)?;
                Ok(Source::Pvc { namespace, name })
            }
            _ => Err(SourceError::UnknownScheme),
        }
    }
}

/// The volume key in the content of a file.
fn volume_key(path: &Path, content: &[u8], namespace_keys: Option<&NamespaceKeys>) -> Result<XtsKey, KeyError> {
    if content.len() == secret::VOLUME_KEY_BYTES {
        return secret::xts_key(content, || Origin::raw(path));
    }
    let secrets = manifest::parse(path, content, secret::VOLUME_KEY_BYTES)?;
    secret::open_volume_key(&secret::pick_volume_secret(path, secrets)?, namespace_keys)
}

/// The namespace's keys in the content of a file.
fn namespace_keys(path: &Path, content: &[u8]) -> Result<NamespaceKeys, KeyError> {
    if content.len() == secret::NAMESPACE_KEY_BYTES {
        return Ok(NamespaceKey::new(content)?.into());
    }
    let secrets = manifest::parse(path, content, secret::NAMESPACE_KEY_BYTES)?;
    secret::open_namespace_keys(&secret::pick_namespace_secret(path, secrets)?)
}

fn parse_object(text: &str) -> Result<(Namespace, ObjectName), SourceError> {
    let (namespace, name) = text.split_once('/').ok_or(SourceError::NoObject)?;
    if namespace.is_empty() || name.is_empty() {
        return Err(SourceError::NoObject);
    }
    Ok((namespace.parse()?, name.parse()?))
}

/// Reads a whole key file into memory that is wiped when it is freed.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let failed = |source: io::Error| KeyError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode();
    if mode & OTHERS_MAY_READ != 0 {
        log::warn!(
            "key file {} can be read by every user of this machine: take that away with `chmod o-rwx`",
            path.display()
        );
    }
    // One buffer that never grows: growing would leave copies behind.
    let mut content = Zeroizing::new(vec![0; FILE_BYTES_MAX + 1]);
    let mut length = 0;
    while length < content.len() {
        match file.read(&mut content[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    if length > FILE_BYTES_MAX {
        return Err(KeyError::TooLarge { path: path.to_owned() });
    }
    content.truncate(length);
    Ok(content)
}

/// Kubernetes' own limit for a Secret is 1 MiB.
const FILE_BYTES_MAX: usize = 2 << 20;

const OTHERS_MAY_READ: u32 = 0o004;

#[cfg(test)]
mod tests;
