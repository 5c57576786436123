//! The Secret in which the replicas of the controller share their certificate, and what is to become
//! of it.
//!
//! `tls.crt`, `tls.key` and `ca.crt` are the certificate that is shown, with its authority. While it is
//! renewed the one that comes after it is there under the same names with `next-` before them, and for
//! some time after that the authority of the one before as `previous-ca.crt`. All authorities that are
//! there are trusted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::Identity;
use super::issue::Issued;

/// The Secret as it was read.
pub struct Stored {
    resource_version: String,
    current: Option<Kept>,
    next: Option<Kept>,
    previous_authority: Option<String>,
}

/// A usable certificate in the Secret.
struct Kept {
    identity: Arc<Identity>,
    pem: Issued,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Keep,
    /// A new certificate takes the place of one that is of no use any more.
    Replace,
    /// A new certificate is put beside the one that is shown, so that API servers can learn to trust it.
    Stage,
    /// The one beside takes the place of the one that is shown.
    Promote,
}

/// What a certificate has to be.
#[derive(Clone, Debug)]
pub struct Requirements {
    /// DNS names and IP addresses that it is for.
    pub names: Vec<String>,
    /// How long it is valid.
    pub life: Duration,
}

impl Stored {
    /// Reads the API server's answer. None if it is no Secret.
    pub fn parse(answer: &[u8], now: SystemTime) -> Option<Stored> {
        let object: Object = serde_json::from_slice(answer).ok().filter(|object: &Object| object.kind == "Secret")?;
        let field = |prefix: &str, name: &str| {
            let text = object.data.get(&format!("{prefix}{name}"))?;
            String::from_utf8(STANDARD.decode(text).ok()?).ok()
        };
        let kept = |prefix: &str| {
            let key = Zeroizing::new(field(prefix, KEY)?);
            let pem = Issued { certificate: field(prefix, CERTIFICATE)?, key, authority: field(prefix, AUTHORITY)? };
            let identity = Identity::from_pem(pem.certificate.as_bytes(), pem.key.as_bytes(), now).ok()?;
            Some(Kept { identity: Arc::new(identity), pem })
        };
        Some(Stored {
            current: kept(""),
            next: kept(NEXT),
            previous_authority: field(PREVIOUS, AUTHORITY),
            resource_version: object.metadata.resource_version,
        })
    }

    /// The certificate to show.
    pub fn current(&self) -> Option<Arc<Identity>> {
        self.current.as_ref().map(|kept| kept.identity.clone())
    }

    /// What API servers are to trust, in PEM. The order does not depend on which certificate is shown.
    pub fn bundle(&self) -> String {
        let kept = self.current.iter().chain(&self.next).map(|kept| kept.pem.authority.as_str());
        let all: BTreeSet<&str> = kept.chain(self.previous_authority.as_deref()).collect();
        all.into_iter().collect()
    }

    /// What to do next, where API servers have been told to trust [`Stored::bundle`] this long ago.
    pub fn step(&self, required: &Requirements, trusted_for: Option<Duration>, now: SystemTime) -> Step {
        let Some(current) = &self.current else { return Step::Replace };
        match &self.next {
            Some(next) if required.fits(&next.identity) => match trusted_for {
                Some(time) if time >= required.trust_time() => Step::Promote,
                _ => Step::Keep,
            },
            _ if !required.fits(&current.identity) || required.renewal(&current.identity) <= now => Step::Stage,
            _ => Step::Keep,
        }
    }

    /// A merge patch that takes a step, and fails if anybody else has changed the Secret.
    pub fn patch(&self, step: Step, issued: Option<&Issued>) -> Value {
        let none = || [CERTIFICATE, KEY, AUTHORITY].map(|name| (format!("{NEXT}{name}"), Value::Null));
        let previous = |authority: Value| (format!("{PREVIOUS}{AUTHORITY}"), authority);
        let mut data = serde_json::Map::new();
        match (step, issued) {
            (Step::Replace, Some(issued)) => {
                data.extend(fields("", issued));
                data.extend(none());
                data.extend([previous(Value::Null)]);
            }
            // The one before is no longer shown by anybody: it has expired since it was renewed.
            (Step::Stage, Some(issued)) => {
                data.extend(fields(NEXT, issued));
                data.extend([previous(Value::Null)]);
            }
            (Step::Promote, _) => {
                data.extend(self.next.iter().flat_map(|next| fields("", &next.pem)));
                data.extend(none());
                let authority = self.current.as_ref().map(|current| STANDARD.encode(&current.pem.authority));
                data.extend([previous(authority.into())]);
            }
            _ => {}
        }
        json!({ "metadata": { "resourceVersion": self.resource_version }, "data": data })
    }
}

impl Requirements {
    /// How long API servers have to learn what they are to trust, before they are shown it.
    fn trust_time(&self) -> Duration {
        (self.life / 30).clamp(TRUST_TIME_MIN, TRUST_TIME_MAX)
    }

    fn fits(&self, identity: &Identity) -> bool {
        self.names.iter().all(|name| identity.is_for(name))
    }

    /// Two thirds of its life after it began.
    fn renewal(&self, identity: &Identity) -> SystemTime {
        identity.end() - self.life / 3
    }
}

/// Reads `answer` as the Secret, and takes every step with it. Whether there is a certificate to show.
pub fn read_hostile(answer: &[u8], now: SystemTime) -> bool {
    let Some(stored) = Stored::parse(answer, now) else { return false };
    for life in [Duration::from_secs(10), Duration::from_secs(397 * 24 * 3600)] {
        let required = Requirements { names: vec!["sealblk.vms.svc".to_owned()], life };
        for trusted_for in [None, Some(Duration::MAX)] {
            stored.patch(stored.step(&required, trusted_for, now), None);
        }
    }
    let bundle = stored.bundle();
    stored.current().is_some_and(|current| current.end() > now && !bundle.is_empty())
}

/// The data of a Secret that is to hold this.
pub fn fields(prefix: &str, issued: &Issued) -> [(String, Value); 3] {
    let content = [(CERTIFICATE, &issued.certificate), (KEY, &*issued.key), (AUTHORITY, &issued.authority)];
    content.map(|(name, text)| (format!("{prefix}{name}"), STANDARD.encode(text).into()))
}

#[derive(Deserialize)]
struct Object {
    kind: String,
    metadata: Metadata,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: String,
}

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const AUTHORITY: &str = "ca.crt";
const NEXT: &str = "next-";
const PREVIOUS: &str = "previous-";

const TRUST_TIME_MIN: Duration = Duration::from_millis(100);
const TRUST_TIME_MAX: Duration = Duration::from_secs(60);
