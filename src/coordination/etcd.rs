//! Views in etcd, for nodes that share one and no Kubernetes: each under a key of its own.
//!
//! The value is a [`record`], and a change a transaction on condition that the key's modification
//! revision is still the one that was read. Reads are linearizable: a member that is cut off from the others answers none.
//!
//! Whether a transaction was carried out can be unknown: what the server does not clearly refuse counts as unknown.
//! A late one does no harm: it is the same change, on the same condition.
//!
//! A key that was deleted and made anew, or came back from a backup, has a past that copies do not share. So what this
//! process has seen once it holds against all that it reads later: the same key, and a number that never goes down.
//!
//! No connection is held between two changes.

use std::error::Error;
use std::path::PathBuf;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use etcd_client::{Certificate, Client, Compare, CompareOp, ConnectOptions, Identity, TlsOptions, Txn, TxnOp};
use http::Uri;
use uuid::Uuid;

use super::record;
use super::{RecordDamage, Swap, ViewStore, ViewStoreError, check_next, check_storable};
use crate::kubernetes::patience::jittered;
use crate::replication::View;
use crate::replication::view::ViewNumber;

/// Where an etcd is: the members of it that may be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints(Vec<String>);

/// Who this process is to an etcd, and whom it trusts. Files in PEM, read whenever a connection is made.
#[derive(Clone, Debug, Default)]
pub struct EtcdTls {
    /// Certificates of the authorities that etcd's own is of; none for those of the machine.
    pub authorities: Option<PathBuf>,
    /// Certificate chain and key of this process, if etcd asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// The view of one volume, in an etcd.
#[derive(Clone, Debug)]
pub struct EtcdViews {
    endpoints: Endpoints,
    tls: EtcdTls,
    key: String,
    volume: Uuid,
    patience: Duration,
    /// Which endpoint is asked first: the last that answered.
    first: usize,
    /// The revision in which the key was made, and the highest number that was read there.
    seen: Option<(i64, ViewNumber)>,
    failures: u32,
    not_before: Option<Instant>,
}

/// What is under a key.
struct Stored {
    view: View,
    revision: i64,
}

impl FromStr for Endpoints {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let endpoints: Vec<String> = text.split(',').map(str::to_owned).collect();
        for endpoint in &endpoints {
            let uri: Uri = endpoint.parse().map_err(|error| format!("{endpoint:?} is no address of etcd: {error}"))?;
            let host = uri.host().unwrap_or_default();
            let is_local = matches!(host, "localhost" | "[::1]") || host.starts_with("127.");
            match (uri.scheme_str(), uri.path()) {
                (_, path) if !matches!(path, "" | "/") => return Err(format!("{endpoint:?} must not have a path")),
                (Some("https"), _) => {}
                (Some("http"), _) if is_local => {}
                (Some("http"), _) => {
                    return Err(format!(
                        "{endpoint:?} is not of this machine: whoever can change a view can stop a \
                                        volume or have it lose data: use https"
                    ));
                }
                _ => return Err(format!("{endpoint:?} is no address of etcd: write https://HOST:PORT")),
            }
        }
        Ok(Endpoints(endpoints))
    }
}

impl Endpoints {
    fn use_tls(&self) -> bool {
        self.0.iter().any(|endpoint| endpoint.starts_with("https:"))
    }
}

impl EtcdViews {
    /// The view of `volume`, under `PREFIX/UUID`. An attach waits for at most `patience` for an etcd that does not
    /// answer.
    pub fn new(endpoints: Endpoints, tls: EtcdTls, prefix: &str, volume: Uuid, patience: Duration) -> EtcdViews {
        let key = format!("{}/{}", prefix.trim_end_matches('/'), volume.hyphenated());
        EtcdViews { endpoints, tls, key, volume, patience, first: 0, seen: None, failures: 0, not_before: None }
    }

    /// A client of the first endpoint that answers, and what it has. One after the other: the library's own choice among
    /// several takes one that refuses connections for the readiest, and asks nobody else.
    async fn reach(&mut self) -> Result<(Client, Option<Stored>), ViewStoreError> {
        let (count, first, failures) = (self.endpoints.0.len(), self.first, self.failures);
        let mut reasons = Vec::new();
        for index in (0..count).map(|step| (first + step) % count) {
            let answered = match self.connect(index).await {
                Ok(mut client) => self.get(&mut client).await.map(|stored| (client, stored)),
                Err(failure) => Err(self.unavailable(failure)),
            };
            match answered {
                Ok(answered) => {
                    (self.first, self.failures) = (index, failures);
                    return Ok(answered);
                }
                Err(ViewStoreError::Unavailable { source, .. }) => reasons.push(source.to_string()),
                Err(error) => return Err(error),
            }
        }
        reasons.dedup();
        // That none answered is one failure.
        self.failures = failures;
        self.note();
        Err(ViewStoreError::Unavailable { place: self.place(), source: reasons.join("; ").into() })
    }

    async fn connect(&self, index: usize) -> Result<Client, Failure> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIME)
            .with_timeout(REQUEST_TIME)
            .with_require_leader(true);
        if self.endpoints.use_tls() {
            options = options.with_tls(self.tls()?);
        }
        Ok(Client::connect(&self.endpoints.0[index..=index], Some(options)).await?)
    }

    fn tls(&self) -> Result<TlsOptions, Failure> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| Failure(format!("cannot read {}: {error}", path.display()).into()))
        };
        let mut tls = TlsOptions::new();
        tls = match &self.tls.authorities {
            Some(path) => tls.ca_certificate(Certificate::from_pem(read(path)?)),
            None => tls.with_native_roots(),
        };
        if let Some((certificate, key)) = &self.tls.identity {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        Ok(tls)
    }

    async fn get(&mut self, client: &mut Client) -> Result<Option<Stored>, ViewStoreError> {
        let answer = client.get(self.key.as_str(), None).await.map_err(|error| self.failed(error))?;
        let Some(pair) = answer.kvs().first() else { return Ok(None) };
        let view = record::parse(pair.value(), self.volume).map_err(|reason| self.damaged(reason))?;
        if let Some((made, seen)) = self.seen {
            if made != pair.create_revision() {
                return Err(self.damaged(RecordDamage::OtherObject));
            }
            if view.number < seen {
                return Err(self.damaged(RecordDamage::WentBack { seen, found: view.number }));
            }
        }
        self.seen = Some((pair.create_revision(), view.number));
        Ok(Some(Stored { view, revision: pair.mod_revision() }))
    }

    /// Puts `next` there if the key was last modified in `revision`, or if there is none for 0; whether it was so.
    /// Then nothing older may be read there any more.
    async fn put(&mut self, client: &mut Client, revision: i64, next: &View) -> Result<bool, ViewStoreError> {
        let condition = Compare::mod_revision(self.key.as_str(), CompareOp::Equal, revision);
        let put = TxnOp::put(self.key.as_str(), record::render(next), None);
        match client.txn(Txn::new().when([condition]).and_then([put])).await {
            Ok(answer) if answer.succeeded() => {
                let now = answer.header().map_or(0, |header| header.revision());
                let made = self.seen.filter(|_| revision != 0).map_or(now, |(made, _)| made);
                self.seen = Some((made, next.number));
                Ok(true)
            }
            Ok(_) => Ok(false),
            Err(error) if is_refusal(&error) => Err(self.failed(error)),
            Err(error) => {
                self.note();
                Err(ViewStoreError::Unknown { place: self.place(), source: Failure::from(error).0 })
            }
        }
    }

    async fn change(&mut self, current: Option<ViewNumber>, next: &View) -> Result<Swap, ViewStoreError> {
        let (mut client, mut found) = self.reach().await?;
        for _ in 0..TRIES_MAX {
            let revision = match (found, current) {
                (Some(stored), Some(current)) if stored.view.number == current => stored.revision,
                (Some(stored), _) => return Ok(Swap::Conflict(stored.view)),
                (None, Some(_)) => return Err(ViewStoreError::NotFound { place: self.place() }),
                (None, None) => 0,
            };
            if self.put(&mut client, revision, next).await? {
                self.failures = 0;
                return Ok(Swap::Stored);
            }
            found = self.get(&mut client).await?;
        }
        Err(self.unavailable(Failure("others change it all the time".into())))
    }

    fn run<T>(
        &mut self,
        conversation: impl AsyncFnOnce(&mut EtcdViews) -> Result<T, ViewStoreError>,
    ) -> Result<T, ViewStoreError> {
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let result = runtime.block_on(conversation(self));
                runtime.shutdown_background();
                result
            }
            Err(error) => Err(self.unavailable(Failure(error.into()))),
        }
    }

    fn pause(&mut self) {
        if let Some(moment) = self.not_before.take() {
            thread::sleep(moment.saturating_duration_since(Instant::now()));
        }
    }

    /// Whoever has failed comes back later, and not when all others do.
    fn note(&mut self) {
        let pause = PAUSE_MIN * (1 << self.failures.min(PAUSE_DOUBLINGS_MAX));
        self.failures += 1;
        self.not_before = Some(Instant::now() + jittered(pause));
    }

    fn failed(&mut self, error: etcd_client::Error) -> ViewStoreError {
        self.unavailable(error.into())
    }

    fn unavailable(&mut self, failure: Failure) -> ViewStoreError {
        self.note();
        // One that misses a certificate may close the connection without a word.
        let source = match &self.tls.identity {
            None if self.endpoints.use_tls() => {
                format!("{} (no certificate was shown to it: see --etcd-cert)", failure.0).into()
            }
            _ => failure.0,
        };
        ViewStoreError::Unavailable { place: self.place(), source }
    }

    fn damaged(&self, reason: RecordDamage) -> ViewStoreError {
        ViewStoreError::Damaged { place: self.place(), reason }
    }

    fn place(&self) -> String {
        format!("key {} of etcd at {}", self.key, self.endpoints.0.join(", "))
    }
}

impl ViewStore for EtcdViews {
    fn create(&mut self, first: &View) -> Result<(), ViewStoreError> {
        check_storable(self.volume, first)?;
        match self.run(async |views| views.change(None, first).await)? {
            Swap::Stored => Ok(()),
            Swap::Conflict(_) => Err(ViewStoreError::Exists { place: self.place() }),
        }
    }

    fn load(&mut self) -> Result<View, ViewStoreError> {
        let until = Instant::now() + self.patience;
        loop {
            match self.run(async |views| views.reach().await.map(|(_, stored)| stored)) {
                Ok(Some(stored)) => {
                    self.failures = 0;
                    return Ok(stored.view);
                }
                Ok(None) => return Err(ViewStoreError::NotFound { place: self.place() }),
                Err(ViewStoreError::Unavailable { .. }) if Instant::now() < until => self.pause(),
                Err(error) => return Err(error),
            }
        }
    }

    fn swap(&mut self, current: ViewNumber, next: &View) -> Result<Swap, ViewStoreError> {
        check_next(self.volume, current, next)?;
        self.pause();
        self.run(async |views| views.change(Some(current), next).await)
    }
}

/// Why etcd was not asked, or did not answer.
struct Failure(Box<dyn Error + Send + Sync>);

impl From<etcd_client::Error> for Failure {
    /// In words for people: a status says its code, its metadata and an empty string for details.
    fn from(error: etcd_client::Error) -> Failure {
        let mut text = match &error {
            etcd_client::Error::GRpcStatus(status) if !status.message().is_empty() => status.message().to_owned(),
            error => error.to_string(),
        };
        let mut source = match &error {
            etcd_client::Error::GRpcStatus(status) => status.source(),
            etcd_client::Error::TransportError(error) => error.source(),
            _ => None,
        };
        while let Some(reason) = source {
            let reason_text = reason.to_string();
            if !text.contains(&reason_text) {
                text = format!("{text}: {reason_text}");
            }
            source = reason.source();
        }
        Failure(text.into())
    }
}

/// Whether etcd says for certain that it has not done what it was asked for. That its space is exhausted it may say of a
/// change that it has just made.
fn is_refusal(error: &etcd_client::Error) -> bool {
    use tonic::Code;
    matches!(error, etcd_client::Error::GRpcStatus(status) if matches!(
        status.code(),
        Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition
            | Code::Unimplemented
    ))
}

const CONNECT_TIME: Duration = Duration::from_secs(3);
/// Longer than etcd takes to say that it has no quorum.
const REQUEST_TIME: Duration = Duration::from_secs(8);
/// How often a change is tried that only meets changes of something else.
const TRIES_MAX: u32 = 5;
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_DOUBLINGS_MAX: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_certainly_not_done_is_a_refusal() {
        use tonic::{Code, Status};
        let refused = |code| is_refusal(&etcd_client::Error::GRpcStatus(Status::new(code, "")));
        assert!([Code::PermissionDenied, Code::Unauthenticated, Code::InvalidArgument].into_iter().all(refused));
        let unknown =
            [Code::ResourceExhausted, Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Unknown];
        assert!(
            !unknown.into_iter().any(refused),
            "etcd applies a change that takes the last of its space, and says so"
        );
    }

    #[test]
    fn endpoints_off_this_machine_are_reached_by_tls_only() {
        for text in
            ["https://etcd-0.example:2379", "http://127.0.0.1:2379", "https://[::1]:2379,https://10.0.0.1:2379/"]
        {
            assert!(text.parse::<Endpoints>().is_ok(), "{text}");
        }
        for text in ["", "etcd:2379", "http://10.0.0.1:2379", "https://a:2379,", "https://a:2379/views", "ftp://a:1"] {
            assert!(text.parse::<Endpoints>().is_err(), "{text}");
        }
    }
}
