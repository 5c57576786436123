//! Replacing a namespace's key while its volumes are in use.
//!
//! 1. A new key is put beside the old one, into the field `next` of the namespace's Secret. From here
//!    on whoever opens a wrapped key tries both, and whoever makes a volume key wraps it under `next`.
//! 2. Every volume key that is not yet wrapped under `next` is wrapped anew, until a look at all of
//!    them finds none that is not.
//! 3. `next` takes the place of `key`, and the old key is gone.
//!
//! Every step changes one Secret, and only if it is still as it was read. So it can end after any of
//! them, be run again, or be run twice at once. A maker that read the namespace's key before step 1
//! and makes its Secret after step 2 finds, reading the namespace's Secret once more, that it has
//! changed, and wraps anew.
//!
//! Invariant: at every moment each volume key opens with what the namespace's Secret holds.

use subtle::ConstantTimeEq;

use super::error::ClusterError;
use super::session::Session;
use super::{Cluster, seclusion};
use crate::keys::error::{KeyError, Origin};
use crate::keys::manifest::Secret;
use crate::keys::names::{KEY_FIELD, NEXT_KEY_FIELD, Namespace, ObjectName};
use crate::keys::secret::{self, NamespaceKey, NamespaceKeys};
use crate::kubernetes::RequestError;

/// What a rotation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// Volume keys that are wrapped under the new namespace key now.
    pub wrapped_anew: usize,
    /// Whether an earlier rotation had been left unfinished, and this one finished it.
    pub resumed: bool,
}

/// Replaces the key of a namespace.
///
/// # Errors
///
/// [`KeyError`]. All volumes can be attached as before, and the same again goes on where this ended.
pub fn rotate(namespace: &Namespace, cluster: &Cluster<'_>) -> Result<Rotation, KeyError> {
    let (namespace, access, patience) = (namespace.clone(), cluster.access.clone(), cluster.patience);
    seclusion::run(cluster.stop, move || async move {
        let session = Session::open(&access, patience).await?;
        Rotator { session, namespace, done: Rotation::default() }.run().await
    })
}

struct Rotator {
    session: Session,
    namespace: Namespace,
    done: Rotation,
}

impl Rotator {
    async fn run(mut self) -> Result<Rotation, KeyError> {
        let name = ObjectName::of_namespace_key();
        for attempt in 0..ATTEMPTS_MAX {
            let read = self.session.secret(&self.namespace, &name).await?;
            let keys = secret::open_namespace_keys(&read)?;
            let begun = match keys.next {
                Some(_) => {
                    self.done.resumed |= attempt == 0;
                    Some((read, keys))
                }
                None => self.begin(&name, &read, keys).await?,
            };
            let Some((read, keys)) = begun else { continue };
            self.wrap_all_anew(&keys).await?;
            if self.finish(&name, &read, &keys).await? {
                return Ok(self.done);
            }
        }
        let object = Origin::cluster(&self.namespace, &name).to_string();
        Err(ClusterError::Contended { object }.into())
    }

    /// Step 1. None if somebody else was faster.
    async fn begin(
        &mut self,
        name: &ObjectName,
        read: &Secret,
        keys: NamespaceKeys,
    ) -> Result<Option<(Secret, NamespaceKeys)>, KeyError> {
        let next = NamespaceKey::generate()?;
        let fields = [(NEXT_KEY_FIELD, Some(&next.bytes()[..]))];
        let changed = self.session.change_secret((&self.namespace, name), read, &fields).await;
        Ok(unless_overtaken(changed)?.map(|changed| (changed, NamespaceKeys { next: Some(next), ..keys })))
    }

    /// Step 2.
    async fn wrap_all_anew(&mut self, keys: &NamespaceKeys) -> Result<(), KeyError> {
        for _ in 0..PASSES_MAX {
            let mut changed = 0;
            let mut stuck = 0;
            let mut first = None;
            for (name, secret) in self.session.volume_secrets(&self.namespace).await? {
                match self.wrap_anew(&name, secret, keys).await {
                    Ok(true) => changed += 1,
                    Ok(false) => {}
                    // The server's failures end the run; a damaged key does not keep the others back.
                    Err(error @ KeyError::Cluster(_)) => return Err(error),
                    Err(error) => {
                        stuck += 1;
                        first.get_or_insert(error);
                    }
                }
            }
            self.done.wrapped_anew += changed;
            match first {
                Some(first) if changed == 0 => {
                    let namespace = self.namespace.clone();
                    return Err(ClusterError::RotationStuck { namespace, count: stuck, first: first.into() }.into());
                }
                None if changed == 0 => return Ok(()),
                _ => {}
            }
        }
        let object = format!("the volume keys of namespace {}", self.namespace);
        Err(ClusterError::Contended { object }.into())
    }

    /// Wraps one volume key under the next namespace key, unless it is already.
    async fn wrap_anew(
        &mut self,
        name: &ObjectName,
        mut secret: Secret,
        keys: &NamespaceKeys,
    ) -> Result<bool, KeyError> {
        for _ in 0..ATTEMPTS_MAX {
            if secret::is_wrapped_under(&secret, keys.for_wrapping()) {
                return Ok(false);
            }
            // A clear key is enough, even where `vuk` is of another namespace's key: it is mended here.
            let key = secret::open_volume_key(&secret, secret::is_wrapped(&secret).then_some(keys))?;
            let wrapping = secret::wrap(&key, keys.for_wrapping())?;
            let at = (&self.namespace, name);
            if unless_overtaken(self.session.change_secret(at, &secret, &wrapping.fields()).await)?.is_some() {
                return Ok(true);
            }
            secret = match self.session.secret(&self.namespace, name).await {
                Err(KeyError::Cluster(ClusterError::NoSecret { .. })) => return Ok(false),
                secret => secret?,
            };
        }
        let object = Origin::cluster(&self.namespace, name).to_string();
        Err(ClusterError::Contended { object }.into())
    }

    /// Step 3. Whether the namespace's key is now the next one, by whatever hand.
    async fn finish(&mut self, name: &ObjectName, read: &Secret, keys: &NamespaceKeys) -> Result<bool, KeyError> {
        let next = keys.for_wrapping().bytes();
        let fields = [(KEY_FIELD, Some(&next[..])), (NEXT_KEY_FIELD, None)];
        let changed = self.session.change_secret((&self.namespace, name), read, &fields).await;
        if unless_overtaken(changed)?.is_some() {
            return Ok(true);
        }
        // Another run may have come to the same end.
        let now = secret::open_namespace_keys(&self.session.secret(&self.namespace, name).await?)?;
        Ok(bool::from(now.current.bytes().ct_eq(next)))
    }
}

/// None when somebody else has changed or deleted the Secret since it was read.
fn unless_overtaken(changed: Result<Secret, ClusterError>) -> Result<Option<Secret>, ClusterError> {
    match changed {
        Ok(secret) => Ok(Some(secret)),
        Err(ClusterError::Action { source: RequestError::Conflict { .. } | RequestError::NotFound { .. }, .. }) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// How often one Secret may change between reading and writing it.
const ATTEMPTS_MAX: usize = 8;

/// How often the volume keys are looked at. The second look finds what was made during the first.
const PASSES_MAX: usize = 16;
