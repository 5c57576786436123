//! Keys that are read from a cluster's API server when a volume is attached.
//!
//! Most attaches are one request: the volume key's Secret. `pvc:` asks for the claim before it, and a
//! Secret that holds its key only wrapped asks for the namespace's key after it, all on one connection.
//!
//! A namespace's key may be rotated between two requests, so that the one Secret is from before and
//! the other from after it. Then a wrapped key does not open, and both are read again as long as that
//! brings anything new.
//!
//! Invariant: whatever of a key passes through here (the connection's buffers, the answer, the fields)
//! lives on a thread that wipes what it frees, and its stack, before it ends (`seclusion`).

mod error;
pub mod rotation;
mod seclusion;
mod session;
pub mod verification;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::Source;
use super::error::{KeyError, SourceError};
use super::manifest::Secret;
use super::names::{Namespace, ObjectName};
use super::secret::{self, NamespaceKeys};
use crate::crypto::xts::XtsKey;
use crate::kubernetes::Access;

pub use error::{Claim, ClusterError};
pub use session::Session;
pub(super) use session::secret_of_answer;

/// Which cluster keys are read from, and how long to try.
#[derive(Clone, Debug)]
pub struct Cluster<'stop> {
    /// The API server.
    pub access: Access,
    /// How long an API server is waited for that cannot be reached or is busy.
    pub patience: Duration,
    /// Readable as soon as the process is told to end; it then stops waiting.
    pub stop: Option<BorrowedFd<'stop>>,
}

impl Cluster<'_> {
    /// How long to wait where nobody says anything else.
    pub const PATIENCE: Duration = Duration::from_secs(30);
}

impl Default for Cluster<'_> {
    fn default() -> Self {
        Self { access: Access::default(), patience: Self::PATIENCE, stop: None }
    }
}

/// Reads a volume's key, at least one part of which is in the cluster.
pub(super) fn load_volume_key(
    volume: &Source,
    namespace_key: Option<&Source>,
    cluster: &Cluster<'_>,
) -> Result<XtsKey, KeyError> {
    let (volume, namespace_key) = (volume.clone(), namespace_key.cloned());
    let (access, patience) = (cluster.access.clone(), cluster.patience);
    seclusion::run(cluster.stop, move || async move {
        let mut session = Session::open(&access, patience).await?;
        read_volume_key(&mut session, &volume, namespace_key.as_ref()).await
    })
}

/// Reads the keys of a namespace from the cluster.
pub(super) fn load_namespace_keys(source: &Source, cluster: &Cluster<'_>) -> Result<NamespaceKeys, KeyError> {
    let Source::Kubernetes { namespace, name } = source.clone() else {
        return Err(SourceError::NotOfNamespace.into());
    };
    let (access, patience) = (cluster.access.clone(), cluster.patience);
    seclusion::run(cluster.stop, move || async move {
        let mut session = Session::open(&access, patience).await?;
        secret::open_namespace_keys(&session.secret(&namespace, &name).await?)
    })
}

async fn read_volume_key(
    session: &mut Session,
    volume: &Source,
    namespace_key: Option<&Source>,
) -> Result<XtsKey, KeyError> {
    let (namespace, name) = match volume {
        Source::File(_) => {
            let Some(Source::Kubernetes { namespace, name }) = namespace_key else {
                return Err(SourceError::NotOfNamespace.into());
            };
            let keys = secret::open_namespace_keys(&session.secret(namespace, name).await?)?;
            return volume.read_volume_key(Some(&keys));
        }
        Source::Kubernetes { namespace, name } => (namespace.clone(), name.clone()),
        Source::Pvc { namespace, name } => session.secret_of_claim(namespace, name).await?,
    };
    match namespace_key {
        Some(Source::File(_)) => {
            let keys = namespace_key.map(Source::read_namespace_keys).transpose()?;
            secret::open_volume_key(&session.secret(&namespace, &name).await?, keys.as_ref())
        }
        Some(Source::Pvc { .. }) => Err(SourceError::NotOfNamespace.into()),
        Some(Source::Kubernetes { namespace: at, name: key_name }) => {
            let wrapped = Wrapped { volume: (&namespace, &name), namespace_key: (at, key_name), always: true };
            wrapped.open(session).await
        }
        None => {
            let key_name = ObjectName::of_namespace_key();
            let wrapped =
                Wrapped { volume: (&namespace, &name), namespace_key: (&namespace, &key_name), always: false };
            wrapped.open(session).await
        }
    }
}

/// Two Secrets of the cluster, of which the second opens the first.
struct Wrapped<'a> {
    volume: (&'a Namespace, &'a ObjectName),
    namespace_key: (&'a Namespace, &'a ObjectName),
    /// Whether the second is read even if the first holds a clear key.
    always: bool,
}

impl Wrapped<'_> {
    async fn open(&self, session: &mut Session) -> Result<XtsKey, KeyError> {
        let mut volume = session.secret(self.volume.0, self.volume.1).await?;
        if !self.always && !secret::is_wrapped(&volume) {
            return secret::open_volume_key(&volume, None);
        }
        let mut namespace_key = self.namespace_key(session, &volume).await?;
        for _ in 0..ROTATIONS_MAX {
            let keys = secret::open_namespace_keys(&namespace_key)?;
            let error = match secret::open_volume_key(&volume, Some(&keys)) {
                Err(error @ KeyError::UnwrapMismatch { .. }) => error,
                result => return result,
            };
            let before = [&volume, &namespace_key].map(|secret| secret.resource_version().map(str::to_owned));
            volume = session.secret(self.volume.0, self.volume.1).await?;
            namespace_key = self.namespace_key(session, &volume).await?;
            let after = [&volume, &namespace_key].map(|secret| secret.resource_version().map(str::to_owned));
            if before == after {
                return Err(error);
            }
        }
        let keys = secret::open_namespace_keys(&namespace_key)?;
        secret::open_volume_key(&volume, Some(&keys))
    }

    async fn namespace_key(&self, session: &mut Session, volume: &Secret) -> Result<Secret, KeyError> {
        match session.secret(self.namespace_key.0, self.namespace_key.1).await {
            Err(KeyError::Cluster(ClusterError::NoSecret { origin, .. })) if !self.always => {
                Err(ClusterError::NoNamespaceKey { volume: volume.origin().clone(), namespace: origin }.into())
            }
            result => result,
        }
    }
}

/// More rotations than can end between a few requests.
const ROTATIONS_MAX: usize = 4;
