//! The controller as a process: everything it does, from its start to its orderly end.
//!
//! Invariant: all of it runs on this one thread, which wipes whatever it frees. Keys are made here, and
//! they pass through buffers of JSON, HTTP and TLS that are not ours to wipe one by one.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use super::certificate::files::Files;
use super::certificate::renewal::{self, Renewal};
use super::certificate::{CertificateError, Slot};
use super::protection;
use super::server::{self, Review};
use crate::keys::wiping::Wiping;
use crate::kubernetes::{self, Access, ConnectError};

/// How the controller runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The API server.
    pub access: Access,
    /// Where API servers reach the webhook.
    pub listen: SocketAddr,
    /// Where its certificate comes from.
    pub certificate: CertificateSource,
    /// How long a key's Secret may be there before its claim is.
    pub orphan_grace: Duration,
    /// How long reviews are still answered after the process is told to end.
    pub drain: Duration,
}

/// Where the webhook's certificate comes from.
#[derive(Clone, Debug)]
pub enum CertificateSource {
    /// Somebody else writes it.
    Files(Files),
    /// The controller makes it.
    Own(renewal::Settings),
}

/// The controller cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// No usable configuration.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The certificate that somebody else should have written.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The address is taken, or is none of this machine's.
    #[error("cannot listen on {address}: {source}: choose another address with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No asynchronous I/O, or no signals, in this process.
    #[error("cannot prepare to serve: {0}: check the limit of open files")]
    Prepare(#[source] io::Error),
}

/// Runs until SIGTERM or SIGINT. `review` makes what answers reviews.
///
/// # Errors
///
/// [`ControllerError`] for what cannot even start; whatever fails later is logged and tried again.
pub fn run<R: Review + 'static>(options: &Options, review: impl FnOnce(Client) -> R) -> Result<(), ControllerError> {
    let _wiping = Wiping::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(ControllerError::Prepare)?;
    let result = LocalSet::new().block_on(&runtime, work(options, review));
    // Drops its connections on this thread, and waits for no name server.
    runtime.shutdown_background();
    result
}

async fn work<R: Review + 'static>(options: &Options, review: impl FnOnce(Client) -> R) -> Result<(), ControllerError> {
    let stop = stop_signal().map_err(ControllerError::Prepare)?;
    let client = kubernetes::connect(&options.access).await?;
    let failed = |source| ControllerError::Listen { address: options.listen, source };
    let listener = listen(options.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    log::info!("serving reviews on {address}");

    let slot = Arc::new(Slot::default());
    let server = server::serve(listener, review(client.clone()), slot.clone(), stop, options.drain);
    let certificate = async {
        match &options.certificate {
            CertificateSource::Files(files) => files.follow(&slot).await.map(|never| match never {}),
            CertificateSource::Own(settings) => {
                match Renewal::new(client.clone(), settings.clone()).run(&slot).await {}
            }
        }
    };
    let protection = protection::run(client.clone(), options.orphan_grace);
    tokio::select! {
        () = server => {}
        result = certificate => result?,
        () = protection => {}
    }
    log::info!("stopped");
    Ok(())
}

/// Listens; for all of this machine's addresses also where there is no IPv6.
async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error)
            if error.raw_os_error() == Some(libc::EAFNOSUPPORT)
                && address.ip() == IpAddr::from(Ipv6Addr::UNSPECIFIED) =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}

/// Ends with the first SIGTERM or SIGINT from now on.
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
