//! Views in a cluster: each in the status of a `Volume`, a custom resource that the API server keeps.
//!
//! | file | what it is |
//! | --- | --- |
//! | `name` | which object a volume is |
//! | `spec` | what somebody wants a volume to be |
//! | `status` | its view, and what people look for |
//! | `object` | getting the object, and changing it |
//! | `events` | what `kubectl describe` tells of changes |
//!
//! A change is a compare-and-swap by the object's resource version: the object is read, its view compared with
//! the one that is to be replaced, and the status patched on condition that nobody has changed the object since.
//! If somebody has, without changing the view (a label, an annotation), it is read again and tried again.
//!
//! Whether a change landed can be unknown: the server may go away, or run out of time, after etcd has it. What
//! the server did not clearly refuse counts as unknown. A late one does no harm: it is the same change, on the
//! same condition.
//!
//! An object that was deleted and made anew, or came back from a backup, has a past that copies do not share.
//! So what this process has seen once it holds against all that it reads later: the same object, and a number
//! that never goes down.

mod events;
mod hostile;
mod name;
mod object;
mod spec;
mod status;

use std::thread;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use uuid::Uuid;

use events::Events;
pub(super) use hostile::read_hostile;
#[cfg(test)]
pub(super) use hostile::seeds;
pub use name::{VolumeName, VolumeNameError};
pub use object::AccessError;
use object::{Conversation, Object};
pub use spec::{BelowMinimum, KeyPlace, Size, Spec};
use status::Status;

use super::{RecordDamage, Swap, ViewStore, ViewStoreError, check_next, check_storable};
use crate::kubernetes::patience::jittered;
use crate::kubernetes::{Access, RequestError};
use crate::replication::View;
use crate::replication::view::{Member, NewMember, ViewNumber};

/// A volume of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterVolume {
    /// Which.
    pub name: VolumeName,
    /// The way to the API server.
    pub access: Access,
    /// How long a server is waited for that is away or busy, when the volume is attached.
    pub patience: Duration,
}

/// The view of one volume, in a cluster.
#[derive(Debug)]
pub struct KubernetesViews {
    at: ClusterVolume,
    volume: Uuid,
    /// The object and the highest number that were read in it.
    seen: Option<(String, ViewNumber)>,
    failures: u32,
    not_before: Option<Instant>,
    events: Events,
}

impl ClusterVolume {
    /// What the volume is to be, and its view, if it has one.
    ///
    /// # Errors
    ///
    /// As those of [`ViewStore::load`].
    pub fn read(&self) -> Result<(Spec, Option<View>), ViewStoreError> {
        let object = self.run(async {
            let conversation = Conversation::open(&self.access, &self.name).await?;
            conversation.get_patiently(self.patience).await
        })?;
        let (status, spec) = (object.status(), object.spec());
        let spec = spec.map_err(|what| self.damaged(RecordDamage::Field { what }))?;
        let view = self.view_of(&status.map_err(|what| self.damaged(RecordDamage::Field { what }))?)?;
        Ok((spec, view))
    }

    /// Makes the object, without a view.
    ///
    /// # Errors
    ///
    /// [`ViewStoreError::Exists`] when there is one of its name.
    pub fn create(&self, spec: &Spec) -> Result<(), ViewStoreError> {
        let made = object::run(async { Conversation::open(&self.access, &self.name).await?.create(spec).await });
        match made {
            Ok(Err(error)) if matches!(error.request(), Some(RequestError::Conflict { .. })) => {
                Err(ViewStoreError::Exists { place: self.place() })
            }
            made => self.changed(made).map(|_| ()),
        }
    }

    /// Makes the members of the spec those of the view. That is not for nodes to do, which may not change a spec.
    ///
    /// # Errors
    ///
    /// As those of [`ViewStore::load`], and [`ViewStoreError::Unknown`].
    pub fn adopt_members(&self) -> Result<(), ViewStoreError> {
        for _ in 0..TRIES_MAX {
            let object = self.run(async {
                let conversation = Conversation::open(&self.access, &self.name).await?;
                conversation.get_patiently(self.patience).await
            })?;
            let field = |what| self.damaged(RecordDamage::Field { what });
            let spec = object.spec().map_err(field)?;
            let view = self.view_of(&object.status().map_err(field)?)?;
            let view = view.ok_or_else(|| ViewStoreError::NotFound { place: self.place() })?;
            let members: Vec<NewMember> = view.present().map(Member::as_new).collect();
            if spec.members == members {
                return Ok(());
            }
            let changed = object::run(async {
                Conversation::open(&self.access, &self.name).await?.replace_members(&object, &members).await
            });
            match changed {
                Ok(Err(error)) if matches!(error.request(), Some(RequestError::Conflict { .. })) => {}
                changed => return self.changed(changed).map(|_| ()),
            }
        }
        Err(self.busy())
    }

    /// What became of a change.
    fn changed<T>(&self, result: std::io::Result<Result<T, AccessError>>) -> Result<T, ViewStoreError> {
        match result {
            Ok(Err(error)) if error.may_have_changed() => {
                Err(ViewStoreError::Unknown { place: self.place(), source: error.into() })
            }
            result => self.unchanged(result),
        }
    }

    /// For those that may have changed nothing.
    fn run<T>(&self, conversation: impl Future<Output = Result<T, AccessError>>) -> Result<T, ViewStoreError> {
        self.unchanged(object::run(conversation))
    }

    fn unchanged<T>(&self, result: std::io::Result<Result<T, AccessError>>) -> Result<T, ViewStoreError> {
        match result {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.unavailable(error)),
            Err(error) => Err(ViewStoreError::Unavailable { place: self.place(), source: error.into() }),
        }
    }

    fn view_of(&self, status: &Status) -> Result<Option<View>, ViewStoreError> {
        match &status.view {
            Some(stored) => stored.view().map(Some).ok_or_else(|| self.damaged(RecordDamage::Impossible)),
            None => Ok(None),
        }
    }

    fn place(&self) -> String {
        format!("volume {} of the cluster", self.name)
    }

    fn unavailable(&self, error: AccessError) -> ViewStoreError {
        match error.request() {
            Some(RequestError::NotFound { .. }) => ViewStoreError::NotFound { place: self.place() },
            _ => ViewStoreError::Unavailable { place: self.place(), source: error.into() },
        }
    }

    fn busy(&self) -> ViewStoreError {
        let busy = std::io::Error::other("others change it all the time");
        ViewStoreError::Unavailable { place: self.place(), source: busy.into() }
    }

    fn damaged(&self, reason: RecordDamage) -> ViewStoreError {
        ViewStoreError::Damaged { place: self.place(), reason }
    }
}

impl KubernetesViews {
    /// The view of `volume`, which is this one of a cluster.
    pub fn new(at: ClusterVolume, volume: Uuid) -> KubernetesViews {
        KubernetesViews { at, volume, seen: None, failures: 0, not_before: None, events: Events::default() }
    }

    /// Puts `next` in the place of the view of this number, or of none.
    fn put(&mut self, current: Option<ViewNumber>, next: &View) -> Result<Swap, ViewStoreError> {
        if let Some(moment) = self.not_before.take() {
            thread::sleep(moment.saturating_duration_since(Instant::now()));
        }
        let at = self.at.clone();
        let result = object::run(async {
            let conversation = Conversation::open(&at.access, &at.name).await.map_err(|error| self.failed(error))?;
            for _ in 0..TRIES_MAX {
                let object = conversation.get().await.map_err(|error| self.failed(error))?;
                let (status, stored) = self.examine(&object)?;
                match &stored {
                    Some(actual) if current.is_none_or(|current| actual.number != current) => {
                        return Ok(Swap::Conflict(actual.clone()));
                    }
                    None if current.is_some() => return Err(ViewStoreError::NotFound { place: at.place() }),
                    _ => {}
                }
                let status = status.next(next, object.generation, Timestamp::now());
                match conversation.replace_status(&object, &status).await {
                    // A server whose definition lacks a field has dropped it.
                    Ok(changed) if self.examine(&changed)?.1.as_ref() == Some(next) => {
                        self.events.tell(&at, &object.uid, stored, next);
                        return Ok(Swap::Stored);
                    }
                    Ok(_) => {
                        let what = "the server keeps less than it is given: apply the manifests of this version";
                        // It may keep the view and drop something else.
                        let source = std::io::Error::other(what).into();
                        return Err(ViewStoreError::Unknown { place: at.place(), source });
                    }
                    Err(error) if matches!(error.request(), Some(RequestError::Conflict { .. })) => {}
                    Err(error) if error.may_have_changed() => {
                        self.note(&error);
                        return Err(ViewStoreError::Unknown { place: at.place(), source: error.into() });
                    }
                    Err(error) => return Err(self.failed(error)),
                }
            }
            Err(at.busy())
        });
        let result =
            result.unwrap_or_else(|error| Err(ViewStoreError::Unavailable { place: at.place(), source: error.into() }));
        if result.is_ok() {
            self.failures = 0;
        }
        result
    }

    /// The status and the view of an object, which must be a later one than all before.
    fn examine(&mut self, object: &Object) -> Result<(Status, Option<View>), ViewStoreError> {
        let status = object.status().map_err(|what| self.at.damaged(RecordDamage::Field { what }))?;
        let view = self.at.view_of(&status)?;
        if let Some((uid, _)) = &self.seen
            && *uid != object.uid
        {
            return Err(self.at.damaged(RecordDamage::OtherObject));
        }
        let number = view.as_ref().map_or(ViewNumber::NONE, |view| view.number);
        if let Some(view) = &view
            && view.volume != self.volume
        {
            return Err(self.at.damaged(RecordDamage::OtherVolume { found: view.volume }));
        }
        if let Some((_, seen)) = &self.seen
            && number < *seen
        {
            return Err(self.at.damaged(RecordDamage::WentBack { seen: *seen, found: number }));
        }
        self.seen = Some((object.uid.clone(), number));
        Ok((status, view))
    }

    fn failed(&mut self, error: AccessError) -> ViewStoreError {
        self.note(&error);
        self.at.unavailable(error)
    }

    /// Whoever has failed comes back later, and not when all others do.
    fn note(&mut self, error: &AccessError) {
        let pause = jittered((PAUSE_MIN * (1 << self.failures.min(PAUSE_DOUBLINGS_MAX))).min(PAUSE_MAX));
        let asked = error.request().and_then(RequestError::retry_after).unwrap_or_default();
        self.failures += 1;
        self.not_before = Some(Instant::now() + pause.max(asked.min(ASKED_PAUSE_MAX)));
    }
}

impl ViewStore for KubernetesViews {
    fn create(&mut self, first: &View) -> Result<(), ViewStoreError> {
        check_storable(self.volume, first)?;
        match self.put(None, first) {
            Ok(Swap::Stored) => Ok(()),
            Ok(Swap::Conflict(_)) | Err(ViewStoreError::Damaged { reason: RecordDamage::OtherVolume { .. }, .. }) => {
                Err(ViewStoreError::Exists { place: self.at.place() })
            }
            Err(error) => Err(error),
        }
    }

    fn load(&mut self) -> Result<View, ViewStoreError> {
        let at = self.at.clone();
        let object =
            at.run(async { Conversation::open(&at.access, &at.name).await?.get_patiently(at.patience).await })?;
        let (_, view) = self.examine(&object)?;
        view.ok_or_else(|| ViewStoreError::NotFound { place: at.place() })
    }

    fn swap(&mut self, current: ViewNumber, next: &View) -> Result<Swap, ViewStoreError> {
        check_next(self.volume, current, next)?;
        self.put(Some(current), next)
    }
}

/// How often a change is tried that only meets changes of something else.
const TRIES_MAX: u32 = 5;
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_DOUBLINGS_MAX: u32 = 5;
const PAUSE_MAX: Duration = Duration::from_secs(4);
/// A server that asks for more is asked sooner: the guest's writes may be waiting.
const ASKED_PAUSE_MAX: Duration = Duration::from_secs(10);
