//! Asking a cluster's API server for a `Volume`, and changing it.
//!
//! Each conversation has a connection of its own, made anew with the credentials as they are then. Between
//! changes of a view, which may be days apart, a volume so holds no connection that could have died unseen,
//! and costs the API server nothing.

use std::future::Future;
use std::io;
use std::time::Duration;

use kube::Client;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Spec, Status, VolumeName};
use crate::kubernetes::{self, Access, ConnectError, Patience, RequestError, request};
use crate::replication::view::NewMember;

/// A `Volume` as it was read.
#[derive(Clone, Debug)]
pub struct Object {
    /// What nobody else ever has, not even one of the same name later.
    pub uid: String,
    /// What it had when it was read, and will not have again once it has changed.
    pub resource_version: String,
    /// Counts changes of the spec.
    pub generation: Option<i64>,
    spec: Value,
    status: Value,
}

/// A conversation about one volume.
pub struct Conversation<'a> {
    client: Client,
    server: String,
    volume: &'a VolumeName,
}

impl<'a> Conversation<'a> {
    /// Begins one. Nothing is sent yet.
    pub async fn open(access: &Access, volume: &'a VolumeName) -> Result<Conversation<'a>, AccessError> {
        let configuration = kubernetes::configuration(access).await?;
        let server = configuration.cluster_url.to_string().trim_end_matches('/').to_owned();
        Ok(Conversation { client: kubernetes::client(configuration)?, server, volume })
    }

    /// Gets the object as it is now, not as a cache has it: no resource version is asked for.
    pub async fn get(&self) -> Result<Object, AccessError> {
        let answer = request::get(&self.client, &self.path(), ANSWER_TIME_MAX).await;
        self.parse(&answer.map_err(|source| self.failed(source))?)
    }

    /// The same, with the patience to wait for a server that is away or busy.
    pub async fn get_patiently(&self, patience: Duration) -> Result<Object, AccessError> {
        let what = format!("volume {}", self.volume);
        let answer = Patience::new(patience).get(&self.client, &self.path(), &what).await;
        self.parse(&answer.map_err(|source| self.failed(source))?)
    }

    /// Makes the object.
    pub async fn create(&self, spec: &Spec) -> Result<Object, AccessError> {
        let object = json!({
            "apiVersion": "sealblk.io/v1alpha1",
            "kind": "Volume",
            "metadata": {"namespace": self.volume.namespace(), "name": self.volume.name()},
            "spec": spec,
        });
        let answer = request::create(&self.client, &self.folder(), object.to_string().into(), ANSWER_TIME_MAX).await;
        self.parse(&answer.map_err(|source| self.failed(source))?)
    }

    /// Replaces the status if the object is still as it was read.
    pub async fn replace_status(&self, read: &Object, status: &Status) -> Result<Object, AccessError> {
        let patch = json!({"metadata": {"resourceVersion": read.resource_version}, "status": status});
        let path = format!("{}/status", self.path());
        let answer = request::merge_patch(&self.client, &path, patch.to_string().into(), ANSWER_TIME_MAX).await;
        self.parse(&answer.map_err(|source| self.failed(source))?)
    }

    /// Replaces the members of the spec if the object is still as it was read.
    pub async fn replace_members(&self, read: &Object, members: &[NewMember]) -> Result<Object, AccessError> {
        let patch = json!({"metadata": {"resourceVersion": read.resource_version}, "spec": {"members": members}});
        let answer = request::merge_patch(&self.client, &self.path(), patch.to_string().into(), ANSWER_TIME_MAX).await;
        self.parse(&answer.map_err(|source| self.failed(source))?)
    }

    fn folder(&self) -> String {
        format!("/apis/sealblk.io/v1alpha1/namespaces/{}/volumes", self.volume.namespace())
    }

    fn path(&self) -> String {
        format!("{}/{}", self.folder(), self.volume.name())
    }

    fn parse(&self, answer: &[u8]) -> Result<Object, AccessError> {
        Object::parse(answer).ok_or_else(|| AccessError::NotTheObject { server: self.server.clone() })
    }

    fn failed(&self, source: RequestError) -> AccessError {
        AccessError::Request { server: self.server.clone(), source }
    }
}

impl Object {
    /// Reads what an API server answers; none if that is no `Volume`.
    pub fn parse(answer: &[u8]) -> Option<Object> {
        let answer = serde_json::from_slice::<Answer>(answer).ok().filter(|answer| answer.kind == "Volume")?;
        let Answer { metadata: Metadata { uid, resource_version, generation }, spec, status, .. } = answer;
        Some(Object { uid, resource_version, generation, spec, status })
    }

    /// Its spec, or what is wrong with it.
    pub fn spec(&self) -> Result<Spec, String> {
        Spec::deserialize(&self.spec).map_err(|error| format!("spec: {error}"))
    }

    /// Its status, or what is wrong with it.
    pub fn status(&self) -> Result<Status, String> {
        match &self.status {
            Value::Null => Ok(Status::default()),
            status => Status::deserialize(status).map_err(|error| format!("status: {error}")),
        }
    }
}

/// Runs a conversation to its end, on this thread.
pub fn run<T>(conversation: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(conversation);
    // Waits for no name server.
    runtime.shutdown_background();
    Ok(result)
}

/// The API server was not asked, or did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// There is no way to it.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It did not do it.
    #[error("the API server at {server} was asked for it: {source}")]
    Request {
        /// The server.
        server: String,
        /// Why.
        source: RequestError,
    },
    /// It answered with something else.
    #[error(
        "what the API server at {server} answers is no Volume of sealblk.io/v1alpha1: check its custom resource definitions"
    )]
    NotTheObject {
        /// The server.
        server: String,
    },
}

impl AccessError {
    /// Whether a change that failed like this may have happened, or may happen yet.
    pub fn may_have_changed(&self) -> bool {
        match self {
            AccessError::Connect(_) => false,
            AccessError::NotTheObject { .. } => true,
            AccessError::Request { source, .. } => match source {
                // A connection may break in the middle of an answer.
                RequestError::Unreachable { .. }
                | RequestError::Untrusted { .. }
                | RequestError::NoAnswer { .. }
                | RequestError::TooLong { .. } => true,
                RequestError::Unable { code, .. } => *code != TOO_MANY_REQUESTS,
                RequestError::Unexpected { code, .. } => !(400..500).contains(code),
                RequestError::Unauthorized
                | RequestError::NoCredentials { .. }
                | RequestError::Forbidden { .. }
                | RequestError::NotFound { .. }
                | RequestError::Conflict { .. } => false,
            },
        }
    }

    /// What the server answered, if it was asked.
    pub fn request(&self) -> Option<&RequestError> {
        match self {
            AccessError::Request { source, .. } => Some(source),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    kind: String,
    metadata: Metadata,
    #[serde(default)]
    spec: Value,
    #[serde(default)]
    status: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    uid: String,
    resource_version: String,
    generation: Option<i64>,
}

const TOO_MANY_REQUESTS: u16 = 429;

/// While a view waits to be changed the guest's writes may wait, so a server that hangs is asked anew soon.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_that_says_so_means_that_nothing_has_changed() {
        let failed = |source| AccessError::Request { server: String::new(), source };
        let unable = |code| failed(RequestError::Unable { code, message: String::new(), retry_after: None });
        let other = |code| failed(RequestError::Unexpected { code, message: String::new() });
        for (error, unknown) in [
            (unable(429), false),
            (unable(500), true),
            (unable(504), true),
            (other(422), false),
            (other(302), true),
            (failed(RequestError::NoAnswer { limit: ANSWER_TIME_MAX }), true),
            (failed(RequestError::Unreachable { reason: String::new() }), true),
            (failed(RequestError::Forbidden { message: String::new() }), false),
            (failed(RequestError::Conflict { message: String::new() }), false),
        ] {
            assert_eq!(error.may_have_changed(), unknown, "{error}");
        }
    }
}
