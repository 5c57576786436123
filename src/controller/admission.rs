//! What an API server is answered that asks about a new claim.
//!
//! A claim that asks for encryption gets a key before it is stored: the namespace's, if it has none,
//! then the volume's, with the Role by which nodes may read it. The answer is the two annotations that
//! say where it is. Whatever goes wrong, the claim is refused with a sentence that says so; then there
//! may be a Secret that no claim names, which does no harm.
//!
//! The API server may ask again about the same claim, after an answer that came too late. It uses the
//! same id, which is a random UUID; so that is the UUID in the name of the volume's Secret, and the
//! second time the Secret of the first time is found.

mod hostile;

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::classes;
use super::encryption::{self, BadWish, Form};
use super::grants::{self, ServiceAccount};
use super::protection::{self, Change, Key};
use super::server::Review;
use super::volume_keys::VolumeKeys;
use crate::keys::generate::Pvc;
use crate::keys::names::{
    NAMESPACE_KEY_SECRET, Namespace, ObjectName, SECRET_NAME_ANNOTATION, SECRET_NAMESPACE_ANNOTATION,
    VOLUME_KEY_SECRET_PREFIX,
};
use crate::keys::{KeyError, secret};
pub(super) use hostile::answer_hostile;
#[cfg(test)]
pub(super) use hostile::seeds;

/// What the controller is told of the cluster.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whose volumes are ours.
    pub provisioners: Vec<String>,
    /// Who attaches them.
    pub reader: ServiceAccount,
}

/// Answers reviews.
pub struct Admission {
    client: Client,
    settings: Settings,
}

/// A body that is no review of a claim.
#[derive(Debug, thiserror::Error)]
pub enum BadReview {
    /// Not an AdmissionReview of version v1.
    #[error("this is no AdmissionReview of admission.k8s.io/v1: {0}")]
    Syntax(#[from] serde_json::Error),
    /// Of another version, or of something else.
    #[error("this is {0} and no AdmissionReview of admission.k8s.io/v1")]
    Kind(String),
}

/// Why a claim is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Wish(#[from] BadWish),
    #[error("annotation `{SECRET_NAMESPACE_ANNOTATION}` names a namespace that is not the claim's own: leave it out")]
    ForeignNamespace,
    #[error(
        "annotation `{SECRET_NAME_ANNOTATION}` is not the name of a Secret that can hold a volume's key: correct it or leave it out"
    )]
    BadName,
    #[error(
        "annotation `{SECRET_NAME_ANNOTATION}` names Secret {name}, which is not there: restore it before the claim; for a \
         new volume leave the annotation out"
    )]
    Lost { name: ObjectName },
    #[error("Secret {name} is being deleted, and will be gone before the volume is: name another, or none")]
    BeingDeleted { name: ObjectName },
    #[error(
        "Secret {NAMESPACE_KEY_SECRET} is not there, and this namespace has volume keys that are wrapped under it: restore \
         it; if it was destroyed on purpose, delete their Secrets first, and before these the claims that name them"
    )]
    NamespaceKeyLost,
    #[error("the request has no namespace that could hold a key")]
    NoNamespace,
    #[error("the StorageClass cannot be looked up: {0}: try again, and look into the controller's log")]
    Class(#[source] kube::Error),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the Role by which nodes read the key cannot be made: {0}: try again, and look into the controller's log")]
    Grant(#[source] kube::Error),
    #[error("the key's Secret cannot be protected: {0}: try again, and look into the controller's log")]
    Protection(#[source] kube::Error),
}

impl Admission {
    /// Answers with this client's rights.
    pub fn new(client: Client, settings: Settings) -> Admission {
        Admission { client, settings }
    }

    async fn decide(&self, request: &Request) -> Result<Verdict, Refusal> {
        let Some(claim) = request.object.as_ref().filter(|_| request.is_new_claim()) else {
            return Ok(Verdict::default());
        };
        let storage = classes::storage(&self.client, claim.class_name()).await.map_err(Refusal::Class)?;
        let Some(form) = encryption::wish(&claim.metadata.labels, &storage, &self.settings.provisioners)? else {
            return Ok(Verdict::default());
        };
        let namespace: Namespace =
            request.namespace.as_deref().unwrap_or_default().parse().map_err(|_| Refusal::NoNamespace)?;
        let secret = claim.secret(&namespace, &request.uid)?;
        self.provide(&namespace, &secret, form, claim, request.dry_run).await?;
        Ok(Verdict { patch: claim.annotate(&namespace, &secret) })
    }

    /// Sees to it that the Secret is there, is good, is protected, and can be read by nodes.
    async fn provide(
        &self,
        namespace: &Namespace,
        name: &ObjectName,
        form: Form,
        claim: &Claim,
        dry_run: bool,
    ) -> Result<(), Refusal> {
        let (pvc, named) = (claim.pvc(), claim.annotation(SECRET_NAME_ANNOTATION).is_some());
        let mut keys = VolumeKeys::new(self.client.clone(), namespace, PATIENCE);
        let found = keys.find(name).await?;
        if dry_run {
            return Ok(());
        }
        let secret = match found {
            Some(secret) if secret.is_being_deleted() => return Err(Refusal::BeingDeleted { name: name.clone() }),
            Some(secret) => secret,
            None if named && name.as_str().starts_with(VOLUME_KEY_SECRET_PREFIX) => {
                return Err(Refusal::Lost { name: name.clone() });
            }
            None => {
                let lost = !keys.has_namespace_key().await?
                    && grants::any(&self.client, namespace).await.map_err(Refusal::Grant)?
                    // It may have been made just before the first grant was.
                    && !keys.has_namespace_key().await?;
                if lost {
                    return Err(Refusal::NamespaceKeyLost);
                }
                let secret = keys.make(name, pvc.as_ref(), form).await?;
                log::info!("made Secret {namespace}/{name}");
                secret
            }
        };
        let form = if secret::is_wrapped(&secret) { Form::Wrapped } else { Form::Clear };
        let uid = secret.uid().unwrap_or_default();
        let granted = grants::grant(&self.client, namespace, (name, uid), form, &self.settings.reader).await;
        granted.map_err(Refusal::Grant)?;
        // Last, because without its Role nobody would find the Secret to take its finalizer away.
        let secret = Key { namespace: namespace.to_string(), name: name.to_string() };
        let change = Change { secret, protected: true };
        protection::apply(&self.client, &change).await.map_err(Refusal::Protection)
    }
}

impl Review for Admission {
    type Bad = BadReview;

    async fn review(&self, body: &[u8]) -> Result<Vec<u8>, BadReview> {
        let request = AdmissionReview::parse(body)?.request;
        let verdict = self.decide(&request).await;
        let response = match verdict {
            Ok(verdict) => verdict.allow(&request.uid),
            Err(refusal) => {
                let namespace = request.namespace.as_deref().unwrap_or_default();
                log::warn!("refused claim {namespace}/{}: {refusal}", request.claim_name());
                let status = json!({"code": refusal.code(), "message": refusal.to_string()});
                json!({"uid": request.uid, "allowed": false, "status": status})
            }
        };
        let answer = json!({"apiVersion": VERSION, "kind": KIND, "response": response});
        Ok(answer.to_string().into_bytes())
    }
}

impl Refusal {
    /// 403 for what the claim must change, 503 for what may pass.
    fn code(&self) -> u16 {
        match self {
            Refusal::Class(_) | Refusal::Grant(_) | Refusal::Protection(_) | Refusal::Key(KeyError::Cluster(_)) => 503,
            _ => 403,
        }
    }
}

/// What becomes of a claim that is let through.
#[derive(Default)]
struct Verdict {
    patch: Vec<Value>,
}

impl Verdict {
    fn allow(self, uid: &str) -> Value {
        let mut response = json!({"uid": uid, "allowed": true});
        if !self.patch.is_empty() {
            response["patchType"] = "JSONPatch".into();
            response["patch"] = STANDARD.encode(Value::Array(self.patch).to_string()).into();
        }
        response
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AdmissionReview {
    api_version: String,
    kind: String,
    request: Request,
}

impl AdmissionReview {
    fn parse(body: &[u8]) -> Result<AdmissionReview, BadReview> {
        let review: AdmissionReview = serde_json::from_slice(body)?;
        if (review.kind.as_str(), review.api_version.as_str()) != (KIND, VERSION) {
            return Err(BadReview::Kind(format!("{} of {}", review.kind, review.api_version)));
        }
        Ok(review)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    operation: String,
    resource: Resource,
    #[serde(default)]
    sub_resource: String,
    namespace: Option<String>,
    #[serde(default)]
    dry_run: bool,
    object: Option<Claim>,
}

impl Request {
    fn is_new_claim(&self) -> bool {
        let Resource { group, resource } = &self.resource;
        let is_claim = group.is_empty() && resource == "persistentvolumeclaims" && self.sub_resource.is_empty();
        is_claim && self.operation == "CREATE"
    }

    fn claim_name(&self) -> &str {
        self.object
            .as_ref()
            .map(|claim| claim.metadata.name.as_str())
            .filter(|name| !name.is_empty())
            .unwrap_or("(new)")
    }
}

#[derive(Deserialize)]
struct Resource {
    group: String,
    resource: String,
}

/// A PersistentVolumeClaim, as far as it matters here.
#[derive(Deserialize)]
struct Claim {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize)]
struct Metadata {
    /// Empty while the API server is still to make one up from `generateName`.
    #[serde(default)]
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    storage_class_name: Option<String>,
}

impl Claim {
    fn annotation(&self, name: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(name).map(String::as_str)
    }

    fn class_name(&self) -> Option<&str> {
        // The older of the two wins, as in Kubernetes: the other way round a claim could be looked at under
        // one class and have its volume made by another.
        self.annotation(CLASS_ANNOTATION).or(self.spec.storage_class_name.as_deref())
    }

    /// The claim's name as a label can carry it.
    fn pvc(&self) -> Option<Pvc> {
        self.metadata.name.parse().ok()
    }

    /// The Secret that the claim names, or else one of its own.
    fn secret(&self, namespace: &Namespace, review: &str) -> Result<ObjectName, Refusal> {
        if self.annotation(SECRET_NAMESPACE_ANNOTATION).is_some_and(|named| named != namespace.as_str()) {
            return Err(Refusal::ForeignNamespace);
        }
        match self.annotation(SECRET_NAME_ANNOTATION) {
            Some(NAMESPACE_KEY_SECRET) => Err(Refusal::BadName),
            Some(name) => name.parse().map_err(|_| Refusal::BadName),
            None => {
                let id = Uuid::parse_str(review).ok().filter(|id| id.get_version_num() == 4);
                let id = id.unwrap_or_else(Uuid::new_v4).hyphenated();
                format!("{VOLUME_KEY_SECRET_PREFIX}{id}").parse().map_err(|_| Refusal::BadName)
            }
        }
    }

    /// The JSON patch (RFC 6902) that adds what the annotations lack.
    fn annotate(&self, namespace: &Namespace, secret: &ObjectName) -> Vec<Value> {
        let wanted = [(SECRET_NAME_ANNOTATION, secret.as_str()), (SECRET_NAMESPACE_ANNOTATION, namespace.as_str())];
        let missing: Vec<_> =
            wanted.into_iter().filter(|&(name, value)| self.annotation(name) != Some(value)).collect();
        if self.metadata.annotations.is_none() {
            let annotations: BTreeMap<_, _> = missing.into_iter().collect();
            return vec![json!({"op": "add", "path": "/metadata/annotations", "value": annotations})];
        }
        let path = |name: &str| format!("/metadata/annotations/{}", name.replace('~', "~0").replace('/', "~1"));
        missing.into_iter().map(|(name, value)| json!({"op": "add", "path": path(name), "value": value})).collect()
    }
}

const KIND: &str = "AdmissionReview";
const VERSION: &str = "admission.k8s.io/v1";

/// What named a claim's class before there was a field for it; Kubernetes still looks at it.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// How long to wait for the API server, which waits itself: less than the webhook's timeout.
const PATIENCE: Duration = Duration::from_secs(6);

#[cfg(test)]
mod tests {
    use super::*;

    fn class_of(annotations: Value, spec: Value) -> Option<String> {
        let claim = json!({"metadata": {"annotations": annotations}, "spec": spec});
        serde_json::from_value::<Claim>(claim).unwrap().class_name().map(str::to_owned)
    }

    /// Prevents a claim from being looked at under another class than the one that makes its volume.
    #[test]
    fn the_class_in_the_annotation_wins_as_in_kubernetes() {
        let (none, old) = (json!({}), json!({CLASS_ANNOTATION: "old"}));
        let named = json!({"storageClassName": "new"});
        assert_eq!(class_of(old.clone(), named.clone()).as_deref(), Some("old"));
        assert_eq!(class_of(old, json!({})).as_deref(), Some("old"));
        assert_eq!(class_of(json!({CLASS_ANNOTATION: ""}), named.clone()).as_deref(), Some(""));
        assert_eq!(class_of(none.clone(), named).as_deref(), Some("new"));
        assert_eq!(class_of(none, json!({})), None);
    }
}
