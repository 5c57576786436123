//! The two configurations that come of an identity: one to connect with, one to accept with.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};

use super::files::{FilesError, Identity, TlsPaths};
use super::peer::PeerNames;
use super::provider::provider;

/// How this node connects and accepts.
#[derive(Clone)]
pub struct Configs {
    /// To connect.
    pub client: Arc<ClientConfig>,
    /// To accept.
    pub server: Arc<ServerConfig>,
    /// What finds a server's certificates in order, and a client's: as the two above do in a handshake.
    pub(super) servers: Arc<WebPkiServerVerifier>,
    pub(super) clients: Arc<dyn ClientCertVerifier>,
    /// The moment from which the node's certificate is no longer valid.
    pub not_after: SystemTime,
    /// The names that peers read in it.
    pub names: PeerNames,
    /// When a newer revocation list is due. Lists stay in force after it.
    pub crl_next_update: Option<SystemTime>,
}

impl Configs {
    /// Makes them from what is in the files.
    ///
    /// # Errors
    ///
    /// [`FilesError`], also for certificates that are not valid at `now`.
    pub fn load(paths: &TlsPaths, now: SystemTime) -> Result<Configs, FilesError> {
        let identity = Identity::load(paths, now)?;
        Configs::new(&identity).map_err(|source| match (&paths.crl, source) {
            (Some(path), VerifierBuilderError::InvalidCrl(_)) => FilesError::RevocationList { path: path.clone() },
            (_, source) => FilesError::Verifier { path: paths.ca.clone(), source },
        })
    }

    /// Certificates of unknown revocation state are refused if there are lists: that is the verifiers'
    /// default, for the whole chain. A list that is overdue is still used: it tells what it told, and to
    /// stop all replication for the lack of a newer one would be worse.
    fn new(identity: &Identity) -> Result<Configs, VerifierBuilderError> {
        let provider = Arc::new(provider());
        let shown = Arc::new(SingleCertAndKey::from(identity.certified_key.clone()));

        let servers = WebPkiServerVerifier::builder_with_provider(identity.roots.clone(), provider.clone())
            .with_crls(identity.crls.iter().cloned())
            .build()?;
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites of TLS 1.3")
            .with_webpki_verifier(servers.clone())
            .with_client_cert_resolver(shown.clone());
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();

        let clients = WebPkiClientVerifier::builder_with_provider(identity.roots.clone(), provider.clone())
            .with_crls(identity.crls.iter().cloned())
            .build()?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites of TLS 1.3")
            .with_client_cert_verifier(clients.clone())
            .with_cert_resolver(shown);
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.ignore_client_order = true;
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});

        Ok(Configs {
            client: Arc::new(client),
            server: Arc::new(server),
            servers,
            clients,
            not_after: identity.not_after,
            names: identity.names.clone(),
            crl_next_update: identity.crl_next_update,
        })
    }
}

impl fmt::Debug for Configs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Configs { names, not_after, .. } = self;
        f.debug_struct("Configs").field("names", names).field("not_after", not_after).finish_non_exhaustive()
    }
}

/// The protocol that both ends must name.
pub const ALPN: &[u8] = b"sealblk/1";
