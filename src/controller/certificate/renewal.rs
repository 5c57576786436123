//! A certificate that the controller makes for itself and renews at two thirds of its life.
//!
//! All replicas do the same, level-triggered: look at the webhook configuration and at the Secret, take
//! one step, and look again after a while. Whoever writes says which state he has seen, so that of two
//! who take the same step one is told to look again.
//!
//! A renewal has no moment in which an API server meets a certificate that it does not trust. The next
//! one is put beside the one that is shown; the configuration tells API servers to trust both; when they
//! have had time to hear of it, the next one takes the place of the other; the other stays trusted as
//! long as a replica may show it.
//!
//! Invariant: what is trusted is never set back. The configuration is read before the Secret, so that
//! trust computed from an old Secret belongs to an old configuration and is refused.

use std::convert::Infallible;
use std::time::{Duration, Instant, SystemTime};

use kube::Client;
use serde_json::json;

use super::issue::issue;
use super::stored::{Step, Stored, fields};
use super::webhooks::{REQUEST_TIME_MAX, Webhooks};
use super::{CertificateError, Slot};
use crate::keys::names::{COMPONENT_LABEL, MANAGED_BY_LABEL, NAME_LABEL, Namespace, ObjectName, SEALBLK};
use crate::kubernetes::request::{self, RequestError};

pub use super::stored::Requirements;

/// Where the certificate is kept and who is told of it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The Secret's namespace, which is the controller's own.
    pub namespace: Namespace,
    /// The Secret.
    pub secret: ObjectName,
    /// The MutatingWebhookConfiguration.
    pub configuration: ObjectName,
    /// What the certificate has to be.
    pub required: Requirements,
}

/// Keeps a certificate in the slot.
pub struct Renewal {
    client: Client,
    settings: Settings,
    /// What the configuration says, and when that was first seen.
    trusted: Option<(String, Instant)>,
}

impl Renewal {
    /// Begins.
    pub fn new(client: Client, settings: Settings) -> Renewal {
        Renewal { client, settings, trusted: None }
    }

    /// Looks and does what is to be done. Never ends.
    pub async fn run(mut self, slot: &Slot) -> Infallible {
        let interval = (self.settings.required.life / 60).clamp(INTERVAL_MIN, INTERVAL_MAX);
        let mut complaint: Option<String> = None;
        loop {
            let delay = match self.look(slot).await {
                Ok(()) => {
                    if complaint.take().is_some() {
                        log::info!("the certificate is in order again");
                    }
                    interval
                }
                Err(error) if error.is_conflict() => CONFLICT_DELAY,
                Err(error) => {
                    let text = error.to_string();
                    if complaint.as_ref() != Some(&text) {
                        log::warn!("{text}; trying again");
                    }
                    complaint = Some(text);
                    interval.min(FAILURE_DELAY)
                }
            };
            tokio::time::sleep(delay).await;
        }
    }

    async fn look(&mut self, slot: &Slot) -> Result<(), CertificateError> {
        let webhooks = Webhooks::read(&self.client, self.settings.configuration.as_str()).await;
        if let (Ok(webhooks), Some((trusted, _))) = (&webhooks, &self.trusted)
            && !webhooks.trust(trusted)
        {
            // Somebody has changed it, so the time to hear of it begins again.
            self.trusted = None;
        }
        let stored = match self.read().await? {
            None => self.create().await?,
            Some(stored) => self.advance(stored).await?,
        };
        let Some(current) = stored.current() else {
            return Err(CertificateError::NotTheObject { object: self.secret() });
        };
        let is_first = slot.readiness().is_err();
        // What is shown for the first time may be trusted already; what follows was trusted before.
        slot.show(current);
        let (webhooks, bundle) = (webhooks?, stored.bundle());
        if !webhooks.trust(&bundle) {
            webhooks.set_trust(&self.client, &bundle).await?;
            self.trusted = None;
        }
        if self.trusted.as_ref().is_none_or(|(trusted, _)| *trusted != bundle) {
            self.trusted = Some((bundle, Instant::now()));
        }
        slot.note_trust();
        if is_first {
            log::info!("showing the certificate of {}", self.secret());
        }
        Ok(())
    }

    /// Takes the step that is due, and returns what the Secret is then.
    async fn advance(&self, stored: Stored) -> Result<Stored, CertificateError> {
        let bundle = stored.bundle();
        let trusted = self.trusted.as_ref().filter(|(trusted, _)| *trusted == bundle);
        let trusted_for = trusted.map(|(_, since)| since.elapsed());
        let now = SystemTime::now();
        let required = &self.settings.required;
        let step = stored.step(required, trusted_for, now);
        let issued = match step {
            Step::Keep => return Ok(stored),
            Step::Replace | Step::Stage => Some(issue(&required.names, required.life, now)?),
            Step::Promote => None,
        };
        let patch = stored.patch(step, issued.as_ref()).to_string().into_bytes();
        let path = format!("{}/{}", self.collection(), self.settings.secret);
        let answer = request::merge_patch(&self.client, &path, patch, REQUEST_TIME_MAX).await;
        let stored = self.parse(&answer.map_err(self.failed("patch"))?)?;
        match step {
            Step::Replace => log::warn!("the certificate in {} was of no use and is replaced", self.secret()),
            Step::Stage => {
                log::info!("renewing the certificate in {}: API servers are told of the next one", self.secret())
            }
            _ => log::info!("the certificate in {} is renewed", self.secret()),
        }
        Ok(stored)
    }

    async fn read(&self) -> Result<Option<Stored>, CertificateError> {
        let path = format!("{}/{}", self.collection(), self.settings.secret);
        match request::get(&self.client, &path, REQUEST_TIME_MAX).await {
            Ok(answer) => self.parse(&answer).map(Some),
            Err(RequestError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("get")(error)),
        }
    }

    async fn create(&self) -> Result<Stored, CertificateError> {
        let required = &self.settings.required;
        let issued = issue(&required.names, required.life, SystemTime::now())?;
        let data: serde_json::Map<_, _> = fields("", &issued).into_iter().collect();
        let labels = json!({ NAME_LABEL: SEALBLK, COMPONENT_LABEL: COMPONENT, MANAGED_BY_LABEL: SEALBLK });
        let object = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": { "name": self.settings.secret.as_str(), "labels": labels },
            "data": data,
        });
        let object = object.to_string().into_bytes();
        let answer = request::create(&self.client, &self.collection(), object, REQUEST_TIME_MAX).await;
        let stored = self.parse(&answer.map_err(self.failed("create"))?)?;
        log::info!("made {} for {}", self.secret(), required.names.join(", "));
        Ok(stored)
    }

    fn parse(&self, answer: &[u8]) -> Result<Stored, CertificateError> {
        let not_it = || CertificateError::NotTheObject { object: self.secret() };
        Stored::parse(answer, SystemTime::now()).ok_or_else(not_it)
    }

    fn failed(&self, verb: &'static str) -> impl FnOnce(RequestError) -> CertificateError {
        let secret = format!("{}/{}", self.settings.namespace, self.settings.secret);
        move |source| CertificateError::Secret { verb, secret, source }
    }

    fn secret(&self) -> String {
        format!("Secret {}/{}", self.settings.namespace, self.settings.secret)
    }

    fn collection(&self) -> String {
        format!("/api/v1/namespaces/{}/secrets", self.settings.namespace)
    }
}

/// Of the Secret, as a label.
const COMPONENT: &str = "webhook";

const INTERVAL_MIN: Duration = Duration::from_millis(200);
const INTERVAL_MAX: Duration = Duration::from_secs(60);
const CONFLICT_DELAY: Duration = Duration::from_millis(50);
const FAILURE_DELAY: Duration = Duration::from_secs(5);
