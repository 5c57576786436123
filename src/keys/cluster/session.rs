//! A conversation with an API server about Secrets and the claims that name them.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::body::Bytes;
use kube::Client;

use super::error::{Claim, ClusterError};
use crate::keys::error::{KeyError, Origin};
use crate::keys::manifest::{self, Secret};
use crate::keys::names::{Namespace, ObjectName, SECRET_NAME_ANNOTATION, SECRET_NAMESPACE_ANNOTATION};
use crate::keys::secret;
use crate::kubernetes::{self, Access, Patience, RequestError};

/// A conversation. The calling thread must wipe what it frees as long as it lasts.
pub struct Session {
    client: Client,
    server: String,
    patience: Patience,
}

impl Session {
    /// Begins one, which may take until `patience` in all. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Connect`].
    pub async fn open(access: &Access, patience: Duration) -> Result<Session, ClusterError> {
        let configuration = kubernetes::configuration(access).await?;
        let server = configuration.cluster_url.to_string();
        let server = server.trim_end_matches('/').to_owned();
        let client = kubernetes::client(configuration)?;
        Ok(Session { client, server, patience: Patience::new(patience) })
    }

    /// Begins one over a client that is there, by what errors call its server.
    pub fn over(client: Client, server: &str, patience: Duration) -> Session {
        Session { client, server: server.to_owned(), patience: Patience::new(patience) }
    }

    /// Gets a Secret.
    ///
    /// # Errors
    ///
    /// [`KeyError::Cluster`].
    pub async fn secret(&mut self, namespace: &Namespace, name: &ObjectName) -> Result<Secret, KeyError> {
        let origin = Origin::cluster(namespace, name);
        let object = format!("Secret {namespace}/{name}");
        let answer = match self.get(SECRETS, namespace, name, &object).await {
            Err(ClusterError::Request { source: RequestError::NotFound { .. }, server, .. }) => {
                return Err(ClusterError::NoSecret { origin, server }.into());
            }
            answer => answer?,
        };
        let secret = manifest::parse_object(origin, &answer);
        Ok(secret.ok_or_else(|| ClusterError::NotTheObject { server: self.server.clone(), object })?)
    }

    /// Gets a claim and returns where its annotations say that its key is.
    ///
    /// # Errors
    ///
    /// [`KeyError::Cluster`].
    pub async fn secret_of_claim(
        &mut self,
        namespace: &Namespace,
        name: &ObjectName,
    ) -> Result<(Namespace, ObjectName), KeyError> {
        let claim = Claim { namespace: namespace.clone(), name: name.clone() };
        let object = format!("claim {claim}");
        let answer = match self.get(CLAIMS, namespace, name, &object).await {
            Err(ClusterError::Request { source: RequestError::NotFound { .. }, server, .. }) => {
                return Err(ClusterError::NoClaim { claim, server }.into());
            }
            answer => answer?,
        };
        let not_it = || ClusterError::NotTheObject { server: self.server.clone(), object: object.clone() };
        let secret = secret_of_answer(claim, &answer).ok_or_else(not_it)??;
        log::debug!("{object} names Secret {namespace}/{secret}");
        Ok((namespace.clone(), secret))
    }

    /// All Secrets of a namespace that hold a volume's key, in order of their names.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Action`] and [`ClusterError::NotTheObject`].
    pub async fn volume_secrets(&mut self, namespace: &Namespace) -> Result<Vec<(ObjectName, Secret)>, ClusterError> {
        let object = format!("the Secrets of namespace {namespace}");
        let mut secrets = Vec::new();
        let mut next = String::new();
        let mut page_length = PAGE_LENGTH;
        loop {
            let path = format!("/api/v1/namespaces/{namespace}/{SECRETS}?limit={page_length}{next}");
            let answer = self.patience.get(&self.client, &path, &object).await;
            // Other people's Secrets may be large.
            if page_length > 1 && matches!(answer, Err(RequestError::TooLong { .. })) {
                page_length /= 4;
                continue;
            }
            let answer = answer.map_err(|source| self.action(format!("list {object}"), source))?;
            let page = manifest::parse_page(namespace, &answer)
                .filter(|page| page.next.chars().all(|c| c.is_ascii_alphanumeric() || "-_.=".contains(c)))
                .ok_or_else(|| ClusterError::NotTheObject { server: self.server.clone(), object: object.clone() })?;
            secrets.extend(page.secrets.into_iter().filter(|(name, secret)| secret::is_of_volume(name, secret)));
            if page.next.is_empty() {
                return Ok(secrets);
            }
            next = format!("&continue={}", page.next);
        }
    }

    /// Creates a Secret; none if there is one of that name.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Action`] and [`ClusterError::NotTheObject`].
    pub async fn create_secret(
        &mut self,
        (namespace, name): (&Namespace, &ObjectName),
        object: Vec<u8>,
    ) -> Result<Option<Secret>, ClusterError> {
        let what = format!("Secret {namespace}/{name}");
        let path = format!("/api/v1/namespaces/{namespace}/{SECRETS}");
        match kubernetes::request::create(&self.client, &path, object, CHANGE_TIME_MAX).await {
            Ok(answer) => match manifest::parse_object(Origin::cluster(namespace, name), &answer) {
                Some(secret) => Ok(Some(secret)),
                None => Err(ClusterError::NotTheObject { server: self.server.clone(), object: what }),
            },
            Err(RequestError::Conflict { .. }) => Ok(None),
            Err(source) => Err(self.action(format!("create {what}"), source)),
        }
    }

    /// Changes fields of a Secret if it is still as it was read; a field of `None` is taken away.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Action`], whose source is [`RequestError::Conflict`] or [`RequestError::NotFound`]
    /// when somebody else has changed or deleted it.
    pub async fn change_secret(
        &mut self,
        (namespace, name): (&Namespace, &ObjectName),
        read: &Secret,
        fields: &[(&str, Option<&[u8]>)],
    ) -> Result<Secret, ClusterError> {
        let object = format!("Secret {namespace}/{name}");
        let path = format!("/api/v1/namespaces/{namespace}/{SECRETS}/{name}");
        let patch = manifest::merge_patch(read.resource_version().unwrap_or_default(), fields);
        let answer = kubernetes::request::merge_patch(&self.client, &path, patch, CHANGE_TIME_MAX).await;
        let answer = answer.map_err(|source| self.action(format!("change {object}"), source))?;
        manifest::parse_object(Origin::cluster(namespace, name), &answer)
            .ok_or_else(|| ClusterError::NotTheObject { server: self.server.clone(), object })
    }

    fn action(&self, what: String, source: RequestError) -> ClusterError {
        ClusterError::Action { what, server: self.server.clone(), source }
    }

    async fn get(
        &mut self,
        resource: &'static str,
        namespace: &Namespace,
        name: &ObjectName,
        object: &str,
    ) -> Result<Bytes, ClusterError> {
        // The names are checked: nothing in them means anything in a path.
        let path = format!("/api/v1/namespaces/{namespace}/{resource}/{name}");
        self.patience.get(&self.client, &path, object).await.map_err(|source| {
            let (server, object) = (self.server.clone(), object.to_owned());
            match source {
                RequestError::Forbidden { message } => {
                    let (namespace, name) = (namespace.clone(), name.clone());
                    ClusterError::Forbidden { server, message, namespace, resource, name }
                }
                source => ClusterError::Request { object, server, source },
            }
        })
    }
}

/// The Secret of a claim as the API server gives it. None if it is anything else.
pub fn secret_of_answer(claim: Claim, answer: &[u8]) -> Option<Result<ObjectName, ClusterError>> {
    let object: Object = serde_json::from_slice(answer).ok()?;
    (object.kind == "PersistentVolumeClaim").then(|| annotated_secret(claim, &object.metadata.annotations))
}

/// The Secret that a claim names, which is always one of its own namespace.
fn annotated_secret(claim: Claim, annotations: &BTreeMap<String, String>) -> Result<ObjectName, ClusterError> {
    let Some(name) = annotations.get(SECRET_NAME_ANNOTATION) else {
        return Err(ClusterError::NotAnnotated { claim });
    };
    match annotations.get(SECRET_NAMESPACE_ANNOTATION) {
        Some(namespace) if namespace != claim.namespace.as_str() => Err(ClusterError::ForeignSecret { claim }),
        _ => name.parse().map_err(|_| ClusterError::BadAnnotation { claim }),
    }
}

#[derive(serde::Deserialize)]
struct Object {
    #[serde(default)]
    kind: String,
    metadata: Metadata,
}

#[derive(serde::Deserialize)]
struct Metadata {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

const SECRETS: &str = "secrets";

/// Secrets in one answer. A page may be as large as all of them together: 500 of the size of a volume
/// key's take half a megabyte.
const PAGE_LENGTH: usize = 256;

/// A server that has not changed an object by then does not.
const CHANGE_TIME_MAX: Duration = Duration::from_secs(10);
const CLAIMS: &str = "persistentvolumeclaims";

#[cfg(test)]
mod tests {
    use super::*;

    fn secret_of(annotations: &[(&str, &str)]) -> Result<ObjectName, ClusterError> {
        let claim = Claim { namespace: "vms".parse().unwrap(), name: "disk".parse().unwrap() };
        let annotations = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        annotated_secret(claim, &annotations.collect())
    }

    #[test]
    fn a_claim_names_a_secret_of_its_own_namespace_only() {
        let name = (SECRET_NAME_ANNOTATION, "key");
        assert_eq!(secret_of(&[name]).unwrap().as_str(), "key");
        assert_eq!(secret_of(&[name, (SECRET_NAMESPACE_ANNOTATION, "vms")]).unwrap().as_str(), "key");
        for other in ["", "kube-system", "vms ", "VMS"] {
            let error = secret_of(&[name, (SECRET_NAMESPACE_ANNOTATION, other)]).unwrap_err();
            assert!(matches!(error, ClusterError::ForeignSecret { .. }), "{error}");
        }
        for bad in ["", "a/b", "../x", "a?b", "A"] {
            let error = secret_of(&[(SECRET_NAME_ANNOTATION, bad)]).unwrap_err();
            assert!(matches!(error, ClusterError::BadAnnotation { .. }), "{error}");
        }
        assert!(matches!(secret_of(&[]), Err(ClusterError::NotAnnotated { .. })));
    }
}
