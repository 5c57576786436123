//! The HTTPS server that API servers send their reviews to.
//!
//! It speaks HTTP/1.1 only, as API servers do to webhooks, and asks nobody for a certificate: what it
//! answers is a patch without secrets, and whoever reaches it could as well create a claim. All of it
//! runs on one thread.
//!
//! Invariants: connections, reviews at a time, and the bytes and seconds of one are bounded; a review
//! that is at work when the process is told to end is answered. An API server reuses its connections
//! and does not repeat a POST that went into one as it was being closed, so the end comes in two steps:
//! for a while everything is answered with `Connection: close`, and only then idle connections are
//! closed. They also outlast the 90 s after which an API server drops them by itself.

use std::cell::Cell;
use std::convert::Infallible;
use std::fmt::Display;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::{AlertDescription, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::certificate::Slot;

/// What answers a review.
pub trait Review {
    /// Why a body is no review.
    type Bad: Display;

    /// Answers one AdmissionReview with another, both JSON. It may be dropped halfway, when the API
    /// server has lost its patience.
    fn review(&self, body: &[u8]) -> impl Future<Output = Result<Vec<u8>, Self::Bad>>;
}

/// Serves until `stop`, and then for `drain` longer. Runs in a [`LocalSet`](tokio::task::LocalSet).
pub async fn serve<R: Review + 'static>(
    listener: TcpListener,
    review: R,
    certificate: Arc<Slot>,
    stop: impl Future<Output = ()>,
    drain: Duration,
) {
    let (phase, _) = watch::channel(Phase::Serving);
    let desk = Rc::new(Desk {
        review,
        certificate: certificate.clone(),
        reviews: Semaphore::new(REVIEWS_MAX),
        phase: phase.subscribe(),
        last_distrust: Cell::new(None),
    });
    let acceptor = TlsAcceptor::from(Arc::new(tls(certificate)));
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut tasks = JoinSet::new();
    let mut end = pin!(async {
        stop.await;
        phase.send_replace(Phase::Leaving);
        log::info!("told to end: serving for another {drain:?}, while API servers go elsewhere");
        tokio::time::sleep(drain).await;
    });
    loop {
        let permit = tokio::select! {
            () = &mut end => break,
            permit = connections.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
        };
        tokio::select! {
            () = &mut end => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (acceptor, desk) = (acceptor.clone(), desk.clone());
                    tasks.spawn_local(async move {
                        connection(stream, &acceptor, &desk).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    log::warn!("cannot accept a connection: {error}: check the limit of open files");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
        while tasks.try_join_next().is_some() {}
    }
    drop(listener);
    phase.send_replace(Phase::Closing);
    let ended = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(REVIEW_TIME_MAX, ended).await.is_err() {
        log::warn!("some connections did not end and are cut");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// No longer ready, and whoever asks is told to close.
    Leaving,
    /// Idle connections are closed.
    Closing,
}

/// What every connection shares.
struct Desk<R> {
    review: R,
    certificate: Arc<Slot>,
    reviews: Semaphore,
    phase: watch::Receiver<Phase>,
    last_distrust: Cell<Option<Instant>>,
}

fn tls(certificate: Arc<Slot>) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.expect("the provider supports the default versions of TLS").with_no_client_auth();
    let mut config = builder.with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

async fn connection<R: Review>(stream: TcpStream, acceptor: &TlsAcceptor, desk: &Desk<R>) {
    let stream = match tokio::time::timeout(HANDSHAKE_TIME_MAX, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return desk.note_handshake(&error),
        Err(_) => return,
    };
    let service = service_fn(|request| async { Ok::<_, Infallible>(desk.answer(request).await) });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(IDLE_TIME_MAX).max_buf_size(BUFFER_BYTES_MAX);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let mut phase = desk.phase.clone();
    let result = tokio::select! {
        result = connection.as_mut() => result,
        _ = phase.wait_for(|&phase| phase == Phase::Closing) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        log::debug!("a connection has ended: {error}");
    }
}

impl<R: Review> Desk<R> {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let mut response = match (path.as_str(), method) {
            ("/mutate", Method::POST) => match tokio::time::timeout(REVIEW_TIME_MAX, self.mutate(request)).await {
                Ok(response) => response,
                Err(_) => {
                    log::warn!(
                        "a review took longer than {REVIEW_TIME_MAX:?} and is given up: look for a slow API server"
                    );
                    text(StatusCode::GATEWAY_TIMEOUT, "the review took too long")
                }
            },
            ("/healthz", Method::GET) => text(StatusCode::OK, "ok"),
            ("/readyz", Method::GET) => self.readiness(),
            ("/mutate", _) => not_allowed("POST"),
            ("/healthz" | "/readyz", _) => not_allowed("GET"),
            _ => text(StatusCode::NOT_FOUND, "there are /mutate, /healthz and /readyz"),
        };
        if *self.phase.borrow() != Phase::Serving {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn mutate(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let kind = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if kind.split(';').next().map(str::trim) != Some("application/json") {
            return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "a review is sent as application/json");
        }
        let _permit = self.reviews.acquire().await.expect("the semaphore is never closed");
        let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
        let body = match tokio::time::timeout(BODY_TIME_MAX, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return text(StatusCode::PAYLOAD_TOO_LARGE, "a review of a claim is never that long");
            }
            Ok(Err(_)) => return text(StatusCode::BAD_REQUEST, "the body ends early"),
            Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the body does not come"),
        };
        match self.review.review(&body).await {
            Ok(answer) => respond(StatusCode::OK, "application/json", answer),
            Err(bad) => {
                log::warn!("a request that is no review was turned away: {bad}");
                text(StatusCode::BAD_REQUEST, bad.to_string())
            }
        }
    }

    fn readiness(&self) -> Response<Full<Bytes>> {
        if *self.phase.borrow() != Phase::Serving {
            return text(StatusCode::SERVICE_UNAVAILABLE, "ending");
        }
        match self.certificate.readiness() {
            Ok(()) => text(StatusCode::OK, "ok"),
            Err(obstacle) => text(StatusCode::SERVICE_UNAVAILABLE, obstacle),
        }
    }

    /// Tells of clients that do not trust the certificate, a line a minute; others just leave.
    fn note_handshake(&self, error: &std::io::Error) {
        use AlertDescription::{BadCertificate, CertificateExpired, CertificateUnknown, UnknownCA};
        let inner = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
        let Some(rustls::Error::AlertReceived(
            alert @ (BadCertificate | CertificateExpired | CertificateUnknown | UnknownCA),
        )) = inner
        else {
            return log::debug!("a TLS handshake failed: {error}");
        };
        if self.last_distrust.get().is_none_or(|last| last.elapsed() >= DISTRUST_SILENCE) {
            self.last_distrust.set(Some(Instant::now()));
            log::warn!(
                "a client does not accept the certificate ({alert:?}): check the caBundle and the name in the webhook configuration"
            );
        }
    }
}

fn text(status: StatusCode, line: impl Into<String>) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", format!("{}\n", line.into()).into_bytes())
}

fn not_allowed(allowed: &'static str) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("use {allowed}"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

fn respond(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Far more than the API servers of a cluster open.
const CONNECTIONS_MAX: usize = 256;
const REVIEWS_MAX: usize = 32;

/// A claim has at most the 1.5 MiB that etcd takes.
const BODY_BYTES_MAX: usize = 2 << 20;
const BUFFER_BYTES_MAX: usize = 64 << 10;
const BODY_TIME_MAX: Duration = Duration::from_secs(5);

/// The webhooks' own limit: the API server does not wait any longer.
const REVIEW_TIME_MAX: Duration = Duration::from_secs(9);
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
const IDLE_TIME_MAX: Duration = Duration::from_secs(120);
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
const DISTRUST_SILENCE: Duration = Duration::from_secs(60);
