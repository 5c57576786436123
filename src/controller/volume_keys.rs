//! The Secrets of a namespace's keys: found, made, and checked.
//!
//! Any number of claims may be made at once, through any number of controllers, while the namespace's
//! key is rotated. A Secret is made once because the API server lets one of a name be created once; who
//! comes second reads it. A rotation that begins between reading the namespace's key and creating a
//! volume's Secret may have looked at all Secrets before that one was there; so the namespace's Secret
//! is read once more, and if it has changed the volume's key is wrapped anew
//! (`keys::cluster::rotation` has the other half of this).

use std::time::Duration;

use kube::Client;

use super::encryption::Form;
use crate::keys::cluster::{ClusterError, Session};
use crate::keys::generate::{self, Pvc};
use crate::keys::manifest::Secret;
use crate::keys::names::{Namespace, ObjectName};
use crate::keys::secret::{self, NamespaceKeys};
use crate::keys::{KeyError, Origin};
use crate::kubernetes::RequestError;

/// The keys of one namespace. The calling thread must wipe what it frees.
pub struct VolumeKeys<'a> {
    session: Session,
    namespace: &'a Namespace,
    namespace_secret: ObjectName,
}

impl VolumeKeys<'_> {
    /// For what takes no longer than `patience`.
    pub fn new(client: Client, namespace: &Namespace, patience: Duration) -> VolumeKeys<'_> {
        let session = Session::over(client, "the API server", patience);
        VolumeKeys { session, namespace, namespace_secret: ObjectName::of_namespace_key() }
    }

    /// The Secret with a volume's key, if there is one.
    ///
    /// # Errors
    ///
    /// [`KeyError`] when it does not hold a key that opens.
    pub async fn find(&mut self, name: &ObjectName) -> Result<Option<Secret>, KeyError> {
        let Some(volume) = found(self.session.secret(self.namespace, name).await)? else {
            return Ok(None);
        };
        // A clear key opens without the namespace's, but then its wrapped form should not be of another
        // namespace: better found out now than when one of the two is lost.
        let keys = match found(self.session.secret(self.namespace, &self.namespace_secret).await)? {
            Some(secret) => Some(secret::open_namespace_keys(&secret)?),
            None => None,
        };
        secret::open_volume_key(&volume, keys.as_ref())?;
        Ok(Some(volume))
    }

    /// Whether the namespace has its key.
    ///
    /// # Errors
    ///
    /// [`KeyError::Cluster`].
    pub async fn has_namespace_key(&mut self) -> Result<bool, KeyError> {
        Ok(found(self.session.secret(self.namespace, &self.namespace_secret).await)?.is_some())
    }

    /// Makes a volume key's Secret, and before it the namespace's if there is none. If somebody else has
    /// just made the volume's, it is that one.
    ///
    /// # Errors
    ///
    /// [`KeyError`].
    pub async fn make(&mut self, name: &ObjectName, pvc: Option<&Pvc>, form: Form) -> Result<Secret, KeyError> {
        let (keys, version) = self.namespace_keys().await?;
        let object = generate::volume_secret(name, pvc, form == Form::Wrapped, &keys)?;
        match self.session.create_secret((self.namespace, name), object).await? {
            Some(secret) => self.keep_up(name, secret, keys, version).await,
            None => {
                let found = self.find(name).await?;
                let gone = || ClusterError::Contended { object: Origin::cluster(self.namespace, name).to_string() };
                Ok(found.ok_or_else(gone)?)
            }
        }
    }

    /// The namespace's keys, made if they are not there, and the version of their Secret.
    async fn namespace_keys(&mut self) -> Result<(NamespaceKeys, Option<String>), KeyError> {
        let at = (self.namespace, &self.namespace_secret);
        let read = match found(self.session.secret(at.0, at.1).await)? {
            Some(secret) => secret,
            None => match self.session.create_secret(at, generate::namespace_secret()?).await? {
                Some(secret) => {
                    log::info!("made Secret {}/{}", at.0, at.1);
                    secret
                }
                None => self.session.secret(at.0, at.1).await?,
            },
        };
        Ok((secret::open_namespace_keys(&read)?, read.resource_version().map(str::to_owned)))
    }

    /// Wraps a Secret that was made under `keys` anew for as long as those change.
    async fn keep_up(
        &mut self,
        name: &ObjectName,
        mut volume: Secret,
        mut keys: NamespaceKeys,
        mut version: Option<String>,
    ) -> Result<Secret, KeyError> {
        for _ in 0..ROTATIONS_MAX {
            let read = self.session.secret(self.namespace, &self.namespace_secret).await?;
            if read.resource_version() == version.as_deref() {
                return Ok(volume);
            }
            let now = secret::open_namespace_keys(&read)?;
            if !secret::is_wrapped_under(&volume, now.for_wrapping()) {
                let key = secret::open_volume_key(&volume, Some(&keys))?;
                let wrapping = secret::wrap(&key, now.for_wrapping())?;
                let at = (self.namespace, name);
                volume = match self.session.change_secret(at, &volume, &wrapping.fields()).await {
                    Ok(changed) => changed,
                    // The rotation has seen it after all.
                    Err(ClusterError::Action { source: RequestError::Conflict { .. }, .. }) => {
                        self.session.secret(self.namespace, name).await?
                    }
                    Err(error) => return Err(error.into()),
                };
            }
            version = read.resource_version().map(str::to_owned);
            keys = now;
        }
        let object = Origin::cluster(self.namespace, &self.namespace_secret).to_string();
        Err(ClusterError::Contended { object }.into())
    }
}

fn found(secret: Result<Secret, KeyError>) -> Result<Option<Secret>, KeyError> {
    match secret {
        Ok(secret) => Ok(Some(secret)),
        Err(KeyError::Cluster(ClusterError::NoSecret { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

/// More rotations than can begin during one review.
const ROTATIONS_MAX: usize = 4;
