//! The way to a cluster's API server: which one, as whom, and what it answers.
//!
//! The room knows nothing of keys. Which server and which user is decided once, by [`configuration`]:
//! a kubeconfig that somebody named, else the ServiceAccount of the pod that this runs in, else the
//! kubeconfig that `kubectl` would take.
//!
//! Invariant: a client made here sends a request exactly once and decides nothing by itself. Whether
//! to try again, and what to say of it, is for the caller, who knows how long it may take. (The
//! library's own policy would try sixteen times, over hours, in silence.)

mod error;
pub mod patience;
pub mod request;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use hyper::Uri;
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};

pub use error::ConnectError;
pub use patience::Patience;
pub use request::RequestError;

/// Which API server to speak to, as far as the command line says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The kubeconfig file.
    pub kubeconfig: Option<PathBuf>,
    /// The context in the kubeconfig; without one its current context.
    pub context: Option<String>,
}

/// A client of the API server. Nothing is sent yet.
///
/// # Errors
///
/// [`ConnectError`] when there is no usable configuration.
pub async fn connect(access: &Access) -> Result<Client, ConnectError> {
    client(configuration(access).await?)
}

/// Where the API server is and how to be let in.
///
/// # Errors
///
/// [`ConnectError`] when there is no usable configuration.
pub async fn configuration(access: &Access) -> Result<Config, ConnectError> {
    let mut config = match kubeconfig_path(access) {
        None => Config::incluster().map_err(ConnectError::ServiceAccount)?,
        Some(path) => from_kubeconfig(access, &path).await?,
    };
    config.default_retry = false;
    Ok(config)
}

/// A client for a configuration. Nothing is sent yet.
///
/// # Errors
///
/// [`ConnectError::Credentials`] when the certificates or credentials in it are of no use.
pub fn client(config: Config) -> Result<Client, ConnectError> {
    let server = config.cluster_url.to_string();
    Client::try_from(config).map_err(|error| ConnectError::of_client(error, server))
}

/// The kubeconfig that is to be used, as errors name it; none where the pod's ServiceAccount is.
fn kubeconfig_path(access: &Access) -> Option<PathBuf> {
    if let Some(path) = &access.kubeconfig {
        return Some(path.clone());
    }
    if let Some(list) = named_by_environment() {
        return Some(list.into());
    }
    let in_pod = env::var_os("KUBERNETES_SERVICE_HOST").is_some() && Path::new(SERVICE_ACCOUNT_TOKEN).exists();
    if in_pod && access.context.is_none() {
        return None;
    }
    let home = env::home_dir().unwrap_or_default();
    Some(home.join(".kube/config"))
}

fn named_by_environment() -> Option<OsString> {
    env::var_os("KUBECONFIG").filter(|list| !list.is_empty())
}

async fn from_kubeconfig(access: &Access, path: &Path) -> Result<Config, ConnectError> {
    let is_named = access.kubeconfig.is_some() || named_by_environment().is_some();
    let failed = |error| ConnectError::of_kubeconfig(error, path, is_named);
    let kubeconfig = match &access.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let kubeconfig = kubeconfig.map_err(failed)?;
    let clusters = kubeconfig.clusters.iter().filter_map(|named| named.cluster.as_ref());
    let proxies: Vec<Uri> = clusters.filter_map(|cluster| cluster.proxy_url.as_ref()?.parse().ok()).collect();
    let options = KubeConfigOptions { context: access.context.clone(), ..KubeConfigOptions::default() };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(failed)?;
    // What the kubeconfig does not say comes from HTTPS_PROXY, which the library would follow even to a
    // server that NO_PROXY excepts.
    config.proxy_url = config.proxy_url.filter(|url| proxies.contains(url));
    Ok(config)
}

const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
