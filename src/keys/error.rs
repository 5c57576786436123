//! What can go wrong with a key. No sentence here ever contains what a field holds.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::cluster::ClusterError;
use super::names::{NameError, Namespace, ObjectName};
use crate::crypto::LockedError;

/// The text after `--key` is not a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The scheme before the colon is not one of those there are. The text is not repeated: it may
    /// be a key that was pasted.
    #[error("unknown kind of key source: write file:PATH, kubernetes:NAMESPACE/NAME or pvc:NAMESPACE/NAME")]
    UnknownScheme,
    /// `file:` with nothing behind it.
    #[error("the key source names no file: write file:PATH")]
    NoPath,
    /// `kubernetes:` or `pvc:` without both names.
    #[error("the key source names no object of a namespace: write kubernetes:NAMESPACE/NAME or pvc:NAMESPACE/NAME")]
    NoObject,
    /// A name that Kubernetes would not take.
    #[error("the key source holds a name that is {0}")]
    Name(#[from] NameError),
    /// `pvc:` where a namespace's key is asked for.
    #[error("a claim names a volume's key and not a namespace's: write file:PATH or kubernetes:NAMESPACE/NAME")]
    NotOfNamespace,
}

/// A key could not be read, checked or made.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot read key file {}: {source}: check its path and permissions", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is too long to be a key.
    #[error("key file {} is larger than a Secret can be: name the right file", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Neither raw bytes of the right number nor a manifest.
    #[error(
        "key file {} has {length_bytes} bytes and is no Secret manifest: give a manifest in YAML or JSON, or exactly {expected_bytes} raw bytes",
        .path.display()
    )]
    NotAKey {
        /// The file.
        path: PathBuf,
        /// Its length.
        length_bytes: usize,
        /// The length that would make it a raw key.
        expected_bytes: usize,
    },
    /// Text that is not YAML or JSON, or not of a Secret's structure.
    #[error(
        "key file {} ({length_bytes} bytes) is no valid manifest at line {line}, column {column}: correct it, or give exactly {expected_bytes} raw bytes",
        .path.display()
    )]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Its length.
        length_bytes: usize,
        /// The length that would make it a raw key.
        expected_bytes: usize,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// A manifest of something else.
    #[error("key file {} holds a manifest of kind {kind}: give one of kind Secret", .path.display())]
    WrongKind {
        /// The file.
        path: PathBuf,
        /// The kind found.
        kind: String,
    },
    /// Several documents, and none or more than one of them is the Secret that is looked for.
    #[error(
        "key file {} has {found} Secrets that could hold the {wanted} key: leave exactly one in it",
        .path.display()
    )]
    NotOne {
        /// The file.
        path: PathBuf,
        /// How many fit.
        found: usize,
        /// `volume` or `namespace`.
        wanted: &'static str,
    },
    /// A field is not there.
    #[error("{origin} has no field `{field}`: restore the Secret from a copy")]
    MissingField {
        /// The Secret.
        origin: Origin,
        /// The field.
        field: &'static str,
    },
    /// The key is there only wrapped.
    #[error("{origin} has no clear field `key`: give the namespace's key with --namespace-key to open its `vuk`")]
    Wrapped {
        /// The Secret.
        origin: Origin,
    },
    /// A field has the wrong number of bytes.
    #[error(
        "field `{field}` of {origin} has {length_bytes} bytes and must have {expected_bytes}: restore the Secret from a copy"
    )]
    FieldLength {
        /// The Secret.
        origin: Origin,
        /// The field.
        field: &'static str,
        /// Bytes found, after decoding.
        length_bytes: usize,
        /// Bytes that the format asks for.
        expected_bytes: usize,
    },
    /// A value under `data` is not base64.
    #[error("field `{field}` of {origin} is not valid base64: encode it again, or restore the Secret from a copy")]
    Base64 {
        /// The Secret.
        origin: Origin,
        /// The field.
        field: &'static str,
    },
    /// A value is a number, a list or the like.
    #[error("field `{field}` of {origin} is not text: write it in quotes")]
    NotText {
        /// The Secret.
        origin: Origin,
        /// The field.
        field: &'static str,
    },
    /// `key` is not the key that `hmac` was made of.
    #[error(
        "field `key` of {origin} does not match its `hmac`, so one of them is damaged: restore the Secret from a copy"
    )]
    HmacMismatch {
        /// The Secret.
        origin: Origin,
    },
    /// What `vuk` opens to is not the key.
    #[error(
        "field `vuk` of {origin} does not open to its key with this namespace key: give the key of the Secret's own namespace, or restore the Secret from a copy"
    )]
    UnwrapMismatch {
        /// The Secret.
        origin: Origin,
    },
    /// The two halves of the key are equal, which weakens XTS (FIPS 140-3 IG C.I).
    #[error("{origin} holds a key whose two halves are equal, which XTS must not use: make another key")]
    EqualHalves {
        /// The Secret or file.
        origin: Origin,
    },
    /// The key is in a cluster and cannot be had from there.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The source is of the wrong kind.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// No thread to read the key on.
    #[error("cannot start a thread to read the key on: {0}: check the limit of processes")]
    Thread(#[source] io::Error),
    /// The process was told to end before it had the key.
    #[error("told to stop before the key was read")]
    Stopped,
    /// No protected memory for the key.
    #[error(transparent)]
    Memory(#[from] LockedError),
    /// No random bytes.
    #[error("cannot draw random bytes for a key: {0}: check that getrandom(2) is allowed in this sandbox")]
    Random(#[source] getrandom::Error),
}

/// What a key was found in, as errors name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(Place);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    File(PathBuf),
    Manifest { path: PathBuf, secret: String },
    Cluster { secret: String },
}

impl Origin {
    /// A file of raw bytes.
    pub(super) fn raw(path: &Path) -> Origin {
        Origin(Place::File(path.to_owned()))
    }

    /// A Secret in a manifest.
    pub(super) fn secret(path: &Path, namespace: Option<&str>, name: Option<&str>) -> Origin {
        let name = name.unwrap_or("(unnamed)");
        let secret = match namespace {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.to_owned(),
        };
        Origin(Place::Manifest { path: path.to_owned(), secret })
    }

    /// A Secret of a cluster.
    pub fn cluster(namespace: &Namespace, name: &ObjectName) -> Origin {
        Origin(Place::Cluster { secret: format!("{namespace}/{name}") })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::File(path) => write!(f, "key file {}", path.display()),
            Place::Manifest { path, secret } => write!(f, "Secret {secret} in {}", path.display()),
            Place::Cluster { secret } => write!(f, "Secret {secret} of the cluster"),
        }
    }
}
