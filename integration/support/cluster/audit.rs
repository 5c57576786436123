//! What the API server was asked, from its audit log.

use std::fs;
use std::path::Path;

use serde::Deserialize;

/// One request that has been answered.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who asked: `system:serviceaccount:NAMESPACE:NAME`, or the name in a certificate.
    pub user: String,
    /// `get`, `list`, `watch`, `create`, …
    pub verb: String,
    /// Path and query.
    pub uri: String,
    /// HTTP status of the answer.
    pub status: u16,
}

/// Reads the log, oldest request first. Nothing is lost in buffers: the server writes the line before
/// it answers.
pub fn read(path: &Path) -> Vec<Request> {
    let log = fs::read_to_string(path).expect("the audit log");
    // A last line without its end is still being written.
    let lines = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let events = lines.map(|line| serde_json::from_str::<Event>(line).expect("an audit event"));
    events
        .filter(|event| event.stage != "ResponseStarted")
        .map(|event| Request {
            user: event.user.username.unwrap_or_default(),
            verb: event.verb,
            uri: event.request_uri,
            status: event.response_status.map_or(0, |status| status.code),
        })
        .collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    stage: String,
    verb: String,
    #[serde(rename = "requestURI")]
    request_uri: String,
    user: User,
    response_status: Option<Status>,
}

#[derive(Deserialize)]
struct User {
    username: Option<String>,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
}
