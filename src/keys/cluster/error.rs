//! Why a key cannot be had from a cluster.

use super::super::error::Origin;
use super::super::names::{Namespace, ObjectName, SECRET_NAME_ANNOTATION};
use crate::kubernetes::{ConnectError, RequestError};

/// A key cannot be had from a cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is no way to an API server.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// There is no such Secret.
    #[error("there is no {origin} at {server}: check the namespace and the name, or restore it from a copy")]
    NoSecret {
        /// The Secret.
        origin: Origin,
        /// The API server.
        server: String,
    },
    /// A volume's key is there only wrapped, and the namespace's key is gone.
    #[error("{volume} holds its key only wrapped, and there is no {namespace} to open it: restore that from a copy")]
    NoNamespaceKey {
        /// The volume key's Secret.
        volume: Origin,
        /// The namespace key's Secret.
        namespace: Origin,
    },
    /// There is no such claim.
    #[error("there is no claim {claim} at {server}: check the namespace and the name")]
    NoClaim {
        /// The claim.
        claim: Claim,
        /// The API server.
        server: String,
    },
    /// The claim has no annotation that names a Secret.
    #[error(
        "claim {claim} has no annotation `{SECRET_NAME_ANNOTATION}`, so it has no key: make it again while `sealblk controller` runs, or name the Secret with kubernetes:NAMESPACE/NAME"
    )]
    NotAnnotated {
        /// The claim.
        claim: Claim,
    },
    /// The claim's annotations name a Secret of another namespace. Whoever may write a claim could
    /// otherwise have keys read that they may not read themselves.
    #[error(
        "the annotations of claim {claim} name a Secret outside of its namespace, which is refused: correct the annotations"
    )]
    ForeignSecret {
        /// The claim.
        claim: Claim,
    },
    /// The claim's annotations name nothing that could be a Secret.
    #[error("the annotations of claim {claim} do not hold the name of a Secret: correct the annotations")]
    BadAnnotation {
        /// The claim.
        claim: Claim,
    },
    /// RBAC says no.
    #[error(
        "{server} forbids to get {namespace}/{name} ({message}): bind this user to a Role in namespace {namespace} with verb `get`, resource `{resource}` and resourceNames `{name}`"
    )]
    Forbidden {
        /// The API server.
        server: String,
        /// What the API server says.
        message: String,
        /// The object's namespace.
        namespace: Namespace,
        /// `secrets` or `persistentvolumeclaims`.
        resource: &'static str,
        /// The object's name.
        name: ObjectName,
    },
    /// Any other answer, or none.
    #[error("cannot get {object} from {server}: {source}")]
    Request {
        /// What was asked for.
        object: String,
        /// The API server.
        server: String,
        /// What it answered.
        source: RequestError,
    },
    /// What was to be done there, beyond getting one object, was not done.
    #[error("cannot {what} at {server}: {source}")]
    Action {
        /// What was to be done.
        what: String,
        /// The API server.
        server: String,
        /// What it answered.
        source: RequestError,
    },
    /// Volume keys that do not open stand in the way of a rotation.
    #[error(
        "{count} volume keys of namespace {namespace} do not open, such as: {first}; the others are wrapped under the new namespace key, and the old one stays as well: restore or delete them (see `sealblk key verify`), then run this again"
    )]
    RotationStuck {
        /// The namespace.
        namespace: Namespace,
        /// How many.
        count: usize,
        /// Why the first of them does not.
        first: Box<super::super::error::KeyError>,
    },
    /// Others change the same Secrets faster than they can be read.
    #[error("somebody else keeps changing {object}: see whether another rotation is running, then run this again")]
    Contended {
        /// The Secret or Secrets.
        object: String,
    },
    /// The answer is no such object.
    #[error("{server} answered with something else than {object}: check that its address is the one of an API server")]
    NotTheObject {
        /// The API server.
        server: String,
        /// What was asked for.
        object: String,
    },
    /// No asynchronous I/O in this process.
    #[error("cannot prepare to speak to the API server: {0}: check the limit of open files")]
    Runtime(#[source] std::io::Error),
}

/// A claim, as errors name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: ObjectName,
}

impl std::fmt::Display for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
