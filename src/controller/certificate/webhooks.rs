//! The webhook configuration, as far as it says what API servers are to trust.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::Client;
use serde_json::{Value, json};

use super::CertificateError;
use crate::kubernetes::request::{self, RequestError};

/// A MutatingWebhookConfiguration as it was read.
pub struct Webhooks {
    name: String,
    object: Value,
}

impl Webhooks {
    /// Reads one.
    pub async fn read(client: &Client, name: &str) -> Result<Webhooks, CertificateError> {
        let answer = request::get(client, &path(name), REQUEST_TIME_MAX).await.map_err(failed("get", name))?;
        let object: Option<Value> = serde_json::from_slice(&answer).ok();
        let object = object.filter(|object| object["kind"] == "MutatingWebhookConfiguration");
        let not_it = || CertificateError::NotTheObject { object: format!("MutatingWebhookConfiguration {name}") };
        Ok(Webhooks { name: name.to_owned(), object: object.ok_or_else(not_it)? })
    }

    /// Whether all its webhooks trust exactly this.
    pub fn trust(&self, bundle: &str) -> bool {
        let encoded = STANDARD.encode(bundle);
        let mut webhooks = self.object["webhooks"].as_array().into_iter().flatten();
        webhooks.all(|webhook| webhook["clientConfig"]["caBundle"] == encoded.as_str())
    }

    /// Has all its webhooks trust this, unless the configuration has changed since it was read.
    pub async fn set_trust(&self, client: &Client, bundle: &str) -> Result<(), CertificateError> {
        let mut webhooks = self.object["webhooks"].clone();
        for webhook in webhooks.as_array_mut().into_iter().flatten() {
            webhook["clientConfig"]["caBundle"] = STANDARD.encode(bundle).into();
        }
        let version = &self.object["metadata"]["resourceVersion"];
        let patch = json!({ "metadata": { "resourceVersion": version }, "webhooks": webhooks });
        let patch = patch.to_string().into_bytes();
        let changed = request::merge_patch(client, &path(&self.name), patch, REQUEST_TIME_MAX).await;
        changed.map_err(failed("patch", &self.name)).map(|_| ())
    }
}

fn path(name: &str) -> String {
    format!("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{name}")
}

fn failed(verb: &'static str, name: &str) -> impl FnOnce(RequestError) -> CertificateError {
    move |source| CertificateError::Configuration { verb, name: name.to_owned(), source }
}

/// One request, before it is tried again.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
