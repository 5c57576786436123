//! A volume key's Secret cannot be deleted while a claim uses it.
//!
//! The Secret has a finalizer as long as there is a claim whose annotation names it: Kubernetes then
//! keeps the Secret, deleted or not. When the last such claim is gone the finalizer is taken away; the
//! Secret itself stays, as StorageOS leaves it, for whoever still has the volume or a copy of it.
//!
//! The controller may not list Secrets. It finds them by the Roles that it makes beside them, one for
//! each and of the same name, and it sees nothing of what they hold: it only adds to their metadata and
//! takes from it, and asks for nothing but metadata in return.
//!
//! A Secret is made before its claim is stored, so one without a claim is left alone for a while.
//!
//! All is decided from what there is, not from what has happened (`inventory`): after a restart, a
//! lost watch or beside another replica, which does the same, the result is the same.

mod inventory;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Secret};
use k8s_openapi::api::rbac::v1::Role;
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Config, Error, Event};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use crate::keys::names::{PROTECTION_FINALIZER, SECRET_NAME_ANNOTATION};
use inventory::{Inventory, Seen};

pub(super) use inventory::{Change, Key};

/// Adds and takes away finalizers, until the caller drops this. A Secret that no claim names is left
/// alone until its Role is `orphan_grace` old.
pub async fn run(client: Client, orphan_grace: Duration) {
    let ours = super::grants::selector();
    let mut roles = pin!(watched::<Role>(&client, Config::default().labels(&ours), "Roles"));
    let mut claims = pin!(watched::<PersistentVolumeClaim>(&client, Config::default(), "claims"));
    let mut tick = interval((orphan_grace / 4).clamp(TICK_MIN, TICK_MAX));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut inventory = Inventory::new(orphan_grace);
    let mut failing = false;
    loop {
        let mut retry = true;
        tokio::select! {
            Some(event) = roles.next() => {
                inventory.see_role(seen(event, made_at));
                retry = false;
            }
            Some(event) = claims.next() => {
                inventory.see_claim(seen(event, named_secret));
                retry = false;
            }
            _ = tick.tick() => {}
        }
        // After a failure only the tick tries again.
        if failing && !retry {
            continue;
        }
        failing = false;
        let mut looked = Looked::default();
        for change in inventory.due(SystemTime::now()) {
            let made = match looked.names(&client, &change).await {
                // It is open until the watch shows that claim, too.
                Ok(true) => {
                    log::debug!("Secret {}: a claim names it that no watch has shown yet", change.secret);
                    continue;
                }
                Ok(false) => apply(&client, &change).await,
                Err(error) => Err(error),
            };
            match made {
                Ok(()) => inventory.done(change),
                // Gone, or being deleted already, when Kubernetes takes no new finalizer.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 422) => inventory.done(change),
                // One Secret that cannot be changed does not keep the others back; a server that does not
                // answer does.
                Err(error) => {
                    log::warn!("cannot change the finalizer of Secret {}: {error}; trying again", change.secret);
                    failing = true;
                    if !matches!(error, kube::Error::Api(_)) {
                        break;
                    }
                }
            }
        }
    }
}

/// What the claims of a namespace name, as the server says, not as a watch does that may lag: before a Secret's
/// protection ends. Good for one round of changes.
#[derive(Default)]
struct Looked(BTreeMap<String, BTreeSet<String>>);

impl Looked {
    /// Whether a change would take its protection from a Secret that a claim names.
    async fn names(&mut self, client: &Client, change: &Change) -> Result<bool, kube::Error> {
        let Key { namespace, name } = &change.secret;
        if change.protected {
            return Ok(false);
        }
        if !self.0.contains_key(namespace) {
            let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), namespace);
            let claims = claims.list_metadata(&ListParams::default()).await?;
            self.0.insert(namespace.clone(), claims.iter().filter_map(named_secret).collect());
        }
        Ok(self.0.get(namespace).is_some_and(|names| names.contains(name)))
    }
}

/// Makes a change. Only metadata comes back.
pub(super) async fn apply(client: &Client, change: &Change) -> Result<(), kube::Error> {
    // Strategic merge patches add to the list and take from it, whatever else is in it.
    let list = if change.protected { "finalizers" } else { "$deleteFromPrimitiveList/finalizers" };
    let patch = Patch::Strategic(json!({ "metadata": { list: [PROTECTION_FINALIZER] } }));
    let secrets = Api::<Secret>::namespaced(client.clone(), &change.secret.namespace);
    secrets.patch_metadata(&change.secret.name, &PatchParams::default(), &patch).await?;
    let what = if change.protected { "is protected" } else { "is no longer protected: no claim names it" };
    log::info!("Secret {} {what}", change.secret);
    Ok(())
}

/// Watches the metadata of all objects of a kind, and begins again when the watch is lost.
fn watched<K>(client: &Client, config: Config, what: &'static str) -> impl Stream<Item = Event<PartialObjectMeta<K>>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let events = watcher::watcher(Api::<PartialObjectMeta<K>>::all(client.clone()), config).default_backoff();
    events.filter_map(move |event| {
        let event = event.inspect_err(|error: &Error| log::warn!("cannot watch {what}: {error}; trying again"));
        std::future::ready(event.ok())
    })
}

fn seen<K, T>(event: Event<PartialObjectMeta<K>>, value: impl Fn(&PartialObjectMeta<K>) -> T) -> Seen<T>
where
    K: Resource<DynamicType = ()>,
{
    let key = |object: &PartialObjectMeta<K>| Key {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
    };
    match event {
        Event::Init => Seen::ListBegins,
        Event::InitApply(object) => Seen::Listed(key(&object), value(&object)),
        Event::InitDone => Seen::ListEnds,
        Event::Apply(object) => Seen::There(key(&object), value(&object)),
        Event::Delete(object) => Seen::Gone(key(&object)),
    }
}

fn made_at(role: &PartialObjectMeta<Role>) -> SystemTime {
    role.creation_timestamp().map_or(SystemTime::UNIX_EPOCH, |time| time.0.into())
}

fn named_secret(claim: &PartialObjectMeta<PersistentVolumeClaim>) -> Option<String> {
    claim.annotations().get(SECRET_NAME_ANNOTATION).cloned()
}

const TICK_MIN: Duration = Duration::from_millis(200);
const TICK_MAX: Duration = Duration::from_secs(15);
