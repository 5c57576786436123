//! Why there is no way to an API server. No sentence repeats a token, a password or a certificate's
//! key: a parser's own message, which may quote them, is never passed on.

use std::io;
use std::path::{Path, PathBuf};

use kube::config::{InClusterError, KubeconfigError, LoadDataError};

/// There is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No kubeconfig anywhere, and this is no pod.
    #[error(
        "there is no kubeconfig ({} cannot be read: {source}) and this is not a pod with a ServiceAccount: name a kubeconfig with --kubeconfig",
        .path.display()
    )]
    NoKubeconfig {
        /// Where it was looked for.
        path: PathBuf,
        /// Why it cannot be read.
        source: io::Error,
    },
    /// The kubeconfig that somebody named cannot be read.
    #[error("kubeconfig {} cannot be read: {source}: check its path and permissions", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kubeconfig is no YAML of the right structure.
    #[error("kubeconfig {} is not valid{place}: correct it, or name another with --kubeconfig", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// ` at line N, column N`, where that is known.
        place: String,
    },
    /// The kubeconfig has no such context, or none that is current.
    #[error("kubeconfig {} has no {what}: see `kubectl config get-contexts`, and choose one with --context", .path.display())]
    NoContext {
        /// The file.
        path: PathBuf,
        /// What is not there.
        what: String,
    },
    /// A file that the kubeconfig names, or a value in it, is of no use.
    #[error("kubeconfig {} is of no use: {what}: correct it, or name another with --kubeconfig", .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The pod's ServiceAccount is not mounted as it should be.
    #[error("cannot use this pod's ServiceAccount: {0}: mount its token, or name a kubeconfig with --kubeconfig")]
    ServiceAccount(#[source] InClusterError),
    /// Certificates or credentials that cannot be used.
    #[error("cannot use the credentials for {server}: {what}: correct them in the kubeconfig")]
    Credentials {
        /// The API server.
        server: String,
        /// What is wrong.
        what: &'static str,
    },
}

impl ConnectError {
    /// For what the library says of a kubeconfig, which somebody may have named.
    pub(super) fn of_kubeconfig(error: KubeconfigError, path: &Path, is_named: bool) -> ConnectError {
        let path = path.to_owned();
        let unusable = |what: String, path| ConnectError::Unusable { path, what };
        match error {
            KubeconfigError::ReadConfig(source, path) if is_named => ConnectError::Read { path, source },
            KubeconfigError::ReadConfig(source, path) => ConnectError::NoKubeconfig { path, source },
            KubeconfigError::FindPath => ConnectError::NoKubeconfig { path, source: io::ErrorKind::NotFound.into() },
            KubeconfigError::Parse(error) => {
                let place = error.location().map(|at| format!(" at line {}, column {}", at.line(), at.column()));
                ConnectError::Syntax { path, place: place.unwrap_or_default() }
            }
            KubeconfigError::CurrentContextNotSet => {
                ConnectError::NoContext { path, what: "current context".to_owned() }
            }
            KubeconfigError::LoadContext(name) => ConnectError::NoContext { path, what: format!("context `{name}`") },
            KubeconfigError::LoadClusterOfContext(name) => {
                ConnectError::NoContext { path, what: format!("cluster `{name}`, which the context names") }
            }
            KubeconfigError::MissingClusterUrl => unusable("the cluster has no `server`".to_owned(), path),
            KubeconfigError::ParseClusterUrl(_) => unusable("the cluster's `server` is no URL".to_owned(), path),
            KubeconfigError::LoadCertificateAuthority(error) => unusable(data("certificate-authority", &error), path),
            KubeconfigError::LoadClientCertificate(error) => unusable(data("client-certificate", &error), path),
            KubeconfigError::LoadClientKey(error) => unusable(data("client-key", &error), path),
            KubeconfigError::ParseCertificates(_) => unusable("`certificate-authority` is not PEM".to_owned(), path),
            _ => unusable("its parts do not fit together".to_owned(), path),
        }
    }

    /// For what the library says when it makes a client.
    pub(super) fn of_client(error: kube::Error, server: String) -> ConnectError {
        use kube::Error;
        let what = match error {
            Error::ProxyProtocolDisabled { .. } | Error::ProxyProtocolUnsupported { .. } => {
                "the cluster has a `proxy-url`, which sealblk cannot go through"
            }
            Error::Auth(kube::client::AuthError::ReadTokenFile(..)) => "the token's file cannot be read",
            Error::Auth(kube::client::AuthError::InvalidBearerToken(_)) => "the token is not one line of text",
            Error::Auth(_) => "the login command or user's entry does not give any",
            Error::RustlsTls(_) => "a certificate or its key is damaged, or is not PEM",
            _ => "they do not make a client",
        };
        ConnectError::Credentials { server, what }
    }
}

fn data(field: &str, error: &LoadDataError) -> String {
    match error {
        LoadDataError::DecodeBase64(_) => format!("`{field}-data` is not base64"),
        LoadDataError::ReadFile(error, path) => format!("`{field}` {} cannot be read ({error})", path.display()),
        LoadDataError::NoBase64DataOrFile => format!("`{field}` is empty"),
    }
}
