//! One request to the API server, and what its answer means.
//!
//! The answer is read as it comes, not through the library's typed interface: that logs the whole
//! body of an object that it cannot read, and drops the `Retry-After` header.
//!
//! What others wrote (a server's message, a proxy's page) is passed on as one short printable line, in
//! which anything that could be an encoded key is left out.

use std::error::Error;
use std::io;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::http::request::Builder;
use hyper::{HeaderMap, Request};
use kube::Client;
use kube::client::{AuthError, Body};
use kube::core::Status;

/// Why the API server did not give what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No answer came: the server is down, or something lies in between.
    #[error("it cannot be reached ({reason}): check that it runs and that the network lets you through")]
    Unreachable {
        /// What happened.
        reason: String,
    },
    /// No answer came in time.
    #[error("it gives no answer within {:.1} s: check how busy it is, and what it waits for", .limit.as_secs_f32())]
    NoAnswer {
        /// How long it was waited for.
        limit: Duration,
    },
    /// The server is busy, starting, or has failed inside: 429 and 5xx.
    #[error("it is not able to answer ({code}: {message}): look into the API server's log")]
    Unable {
        /// HTTP status.
        code: u16,
        /// What it says.
        message: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// The other side is not who it should be, or does not speak TLS.
    #[error(
        "its certificate is not accepted ({reason}): check the certificate authority and the server's name in the kubeconfig"
    )]
    Untrusted {
        /// What is wrong.
        reason: String,
    },
    /// 401.
    #[error("it does not accept the credentials (401): the token has run out or is not valid, so get a new one")]
    Unauthorized,
    /// Credentials cannot be had, so that nothing was sent.
    #[error("there are no credentials ({reason}): check the token file or the login command in the kubeconfig")]
    NoCredentials {
        /// What is wrong.
        reason: &'static str,
    },
    /// 403.
    #[error("it forbids that ({message})")]
    Forbidden {
        /// What it says.
        message: String,
    },
    /// 404, from a server that knows what was asked for.
    #[error("it has no such object ({message})")]
    NotFound {
        /// What it says.
        message: String,
    },
    /// 409: the object is there already, or has changed since it was read.
    #[error("somebody else has changed it meanwhile ({message}): try again")]
    Conflict {
        /// What it says.
        message: String,
    },
    /// More bytes than an answer may have.
    #[error("its answer has more than {bytes_max} bytes: check that its address is the one of an API server")]
    TooLong {
        /// How many it may have.
        bytes_max: usize,
    },
    /// Any other status.
    #[error("it answers with something else ({code}: {message}): check that its address is the one of an API server")]
    Unexpected {
        /// HTTP status.
        code: u16,
        /// What it says.
        message: String,
    },
}

impl RequestError {
    /// Whether the same request may succeed later with nothing changed on this side.
    pub fn may_pass(&self) -> bool {
        matches!(self, RequestError::Unreachable { .. } | RequestError::NoAnswer { .. } | RequestError::Unable { .. })
    }

    /// The time that the server asked for before the next request.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            RequestError::Unable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Gets the JSON text at `path`. One request, which may take until `limit`.
///
/// # Errors
///
/// [`RequestError`].
pub async fn get(client: &Client, path: &str, limit: Duration) -> Result<Bytes, RequestError> {
    send(client, Request::get(path), Body::empty(), limit).await
}

/// Creates an object in the collection at `path`, and returns it as it is then.
///
/// # Errors
///
/// [`RequestError`]; [`RequestError::Conflict`] when there is one of that name.
pub async fn create(client: &Client, path: &str, object: Vec<u8>, limit: Duration) -> Result<Bytes, RequestError> {
    let request = Request::post(path).header(CONTENT_TYPE, "application/json");
    send(client, request, object.into(), limit).await
}

/// Changes the object at `path` by a JSON merge patch (RFC 7386), and returns what it is then. With
/// the `metadata.resourceVersion` that was read in the patch, it is changed only if nobody else has.
///
/// # Errors
///
/// [`RequestError`]; [`RequestError::Conflict`] when somebody else has changed it.
pub async fn merge_patch(client: &Client, path: &str, patch: Vec<u8>, limit: Duration) -> Result<Bytes, RequestError> {
    let request = Request::patch(path).header(CONTENT_TYPE, "application/merge-patch+json");
    send(client, request, patch.into(), limit).await
}

async fn send(client: &Client, request: Builder, body: Body, limit: Duration) -> Result<Bytes, RequestError> {
    let request = request.body(body).expect("the names in a path are checked");
    match tokio::time::timeout(limit, answer(client, request)).await {
        Ok(result) => result,
        Err(_) => Err(RequestError::NoAnswer { limit }),
    }
}

async fn answer(client: &Client, request: Request<Body>) -> Result<Bytes, RequestError> {
    let (head, body) = client.send(request).await.map_err(|error| of_transport(&error))?.into_parts();
    let code = head.status.as_u16();
    let body = match Limited::new(body, ANSWER_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(RequestError::TooLong { bytes_max: ANSWER_BYTES_MAX });
        }
        Err(error) => return Err(of_transport(error.as_ref())),
    };
    match code {
        200 | 201 => Ok(body),
        _ => Err(of_status(code, &head.headers, &body)),
    }
}

/// What an answer other than 200 means.
fn of_status(code: u16, headers: &HeaderMap, body: &[u8]) -> RequestError {
    let status = serde_json::from_slice::<Status>(body).ok().filter(|status| status.is_failure());
    let message = match &status {
        Some(status) => printable(&status.message),
        None => printable(&String::from_utf8_lossy(&body[..body.len().min(PAGE_BYTES_MAX)])),
    };
    match code {
        401 => RequestError::Unauthorized,
        403 => RequestError::Forbidden { message },
        409 => RequestError::Conflict { message },
        404 if status.is_some() => RequestError::NotFound { message },
        429 | 500..=599 => {
            // Only seconds: what gives a date instead is not an API server.
            let header = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
            let details = status.and_then(|status| status.details).map(|details| details.retry_after_seconds);
            let seconds = header.or(details.map(u64::from)).filter(|&seconds| seconds > 0);
            RequestError::Unable { code, message, retry_after: seconds.map(Duration::from_secs) }
        }
        _ => RequestError::Unexpected { code, message },
    }
}

/// What an answer of `bytes` means, of which the first two are a status code and the rest of the line after them is
/// its Retry-After: a part of the fuzz target `cluster`. Whether it is the API server's own.
///
/// # Panics
///
/// When a person is shown more than a line, and a long one; when the time to wait has no end.
pub fn refuse_hostile(bytes: &[u8]) -> bool {
    let Some((code, rest)) = bytes.split_first_chunk() else { return false };
    let (code, line) = (u16::from_be_bytes(*code), rest.split(|&byte| byte == b'\n').next().unwrap_or_default());
    let mut headers = HeaderMap::new();
    headers.extend(line.try_into().ok().map(|value: HeaderValue| (RETRY_AFTER, value)));
    let body = &rest[rest.len().min(line.len() + 1)..];
    let error = of_status(code, &headers, body);
    let text = error.to_string();
    assert!(text.chars().count() < 2 * LINE_LENGTH_MAX && !text.contains(char::is_control), "{text:?} is no line");
    let delay = super::Patience::new(Duration::from_secs(1)).delay(&error);
    assert!(delay.is_none_or(|delay| delay <= Duration::from_secs(1)));
    serde_json::from_slice::<Status>(body).is_ok_and(|status| status.is_failure())
}

/// What the failure of a connection means: the innermost cause that says something.
fn of_transport(error: &(dyn Error + 'static)) -> RequestError {
    let mut reason = None;
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return RequestError::Untrusted { reason: printable(&error.to_string()) };
        }
        if let Some(error) = error.downcast_ref::<AuthError>() {
            return RequestError::NoCredentials { reason: of_credentials(error) };
        }
        reason = Some(error.to_string());
        // The source of an I/O error that only wraps another is the source of that other.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = wrapped.map(|error| error as &(dyn Error + 'static)).or_else(|| error.source());
    }
    RequestError::Unreachable { reason: printable(&reason.unwrap_or_default()) }
}

fn of_credentials(error: &AuthError) -> &'static str {
    match error {
        AuthError::ReadTokenFile(..) => "the token's file cannot be read",
        AuthError::InvalidBearerToken(_) | AuthError::InvalidBasicAuth(_) => "the token is not one line of text",
        _ => "the login command has failed",
    }
}

/// One line that may be shown.
fn printable(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut line = String::new();
    for word in plain.split_whitespace() {
        let could_be_key = word.split(|c| !is_base64(c)).any(could_be_key);
        let word = if could_be_key { "(left out)" } else { word };
        if line.chars().count() + word.chars().count() > LINE_LENGTH_MAX {
            line.push_str(" …");
            break;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    line
}

/// Whether a run of base64 is as long as a key and as mixed as random bytes make it; a path is not.
fn could_be_key(run: &str) -> bool {
    let has = |kind: fn(&char) -> bool| run.chars().any(|c| kind(&c));
    let mixed = has(char::is_ascii_uppercase) && has(char::is_ascii_lowercase) && has(char::is_ascii_digit);
    run.len() >= ENCODED_KEY_LENGTH_MIN && mixed
}

fn is_base64(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=' | '_')
}

/// Kubernetes' own limit for an object is 1.5 MiB.
const ANSWER_BYTES_MAX: usize = 4 << 20;
const PAGE_BYTES_MAX: usize = 2000;
const LINE_LENGTH_MAX: usize = 500;

/// 32 bytes in base64 take 43 characters.
const ENCODED_KEY_LENGTH_MIN: usize = 43;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: u16, retry_after: Option<&str>, body: &str) -> RequestError {
        let mut headers = HeaderMap::new();
        if let Some(value) = retry_after {
            headers.insert(RETRY_AFTER, value.parse().unwrap());
        }
        of_status(code, &headers, body.as_bytes())
    }

    const STATUS: &str = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"it is so","code":0}"#;

    #[test]
    fn a_status_tells_what_may_pass() {
        for (code, passes) in [(401, false), (403, false), (404, false), (409, false), (418, false)]
            .into_iter()
            .chain([429, 500, 502, 503, 504].map(|code| (code, true)))
        {
            assert_eq!(of(code, None, STATUS).may_pass(), passes, "{code}");
        }
    }

    #[test]
    fn a_page_of_something_else_is_not_taken_for_a_missing_object() {
        assert!(matches!(of(404, None, STATUS), RequestError::NotFound { .. }));
        for page in ["404 page not found\n", "", "{}", "<html>nothing</html>"] {
            assert!(matches!(of(404, None, page), RequestError::Unexpected { code: 404, .. }), "{page}");
        }
    }

    #[test]
    fn the_server_may_say_when_to_ask_again() {
        assert_eq!(of(429, Some("7"), STATUS).retry_after(), Some(Duration::from_secs(7)));
        let details = STATUS.replace("\"code\":0", "\"details\":{\"retryAfterSeconds\":3}");
        assert_eq!(of(503, None, &details).retry_after(), Some(Duration::from_secs(3)));
        assert_eq!(of(503, Some("9"), &details).retry_after(), Some(Duration::from_secs(9)));
        for odd in ["-1", "soon", "Wed, 21 Oct 2015 07:28:00 GMT", "0", "99999999999999999999"] {
            assert_eq!(of(503, Some(odd), STATUS).retry_after(), None, "{odd}");
        }
    }

    #[test]
    fn what_others_wrote_becomes_one_line_without_keys() {
        assert_eq!(printable("a\r\n  b\x1b[31m\tc\0"), "a b [31m c");
        let key = "c2VhbGJsay1zZWFsYmxrLXNlYWxibGstc2VhbGJsay1zZWFsYmxr";
        assert_eq!(printable(&format!("field: {key} end")), "field: (left out) end");
        assert_eq!(printable(&format!("\"{key}\"")), "(left out)");
        let path = "\"/registry/secrets/vms/storageos-volume-key-5b8e7ad0-1c41-4d1e-9a53-f1f3a2ab3f10\":";
        assert_eq!(printable(path), path);
        let path = "/var/lib/something/that/is/long/and/has/no/dots/or/dashes/kms";
        assert_eq!(printable(path), path);
        let long = printable(&"word ".repeat(1000));
        assert!(long.chars().count() <= LINE_LENGTH_MAX + 2 && long.ends_with(" …"), "{long}");
    }

    #[test]
    fn tls_failures_are_told_from_lost_connections() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, tls));
        assert!(matches!(of_transport(&wrapped), RequestError::Untrusted { .. }));
        let lost = io::Error::from_raw_os_error(libc::ECONNRESET);
        assert!(matches!(of_transport(&lost), RequestError::Unreachable { .. }));
    }
}
