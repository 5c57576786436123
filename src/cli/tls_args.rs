//! The arguments by which a command that talks to other nodes knows who it is and whom to trust.

use std::path::PathBuf;

use clap::Args;

use super::CliError;
use crate::replication::view::NodeName;
use crate::tls::{Reloading, TlsPaths};

/// The files of a node's certificate, which are read again when they change.
#[derive(Args)]
pub struct TlsArgs {
    /// Certificate of this node, and those that follow it in its chain, in PEM
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Certificates of the authorities that nodes' certificates must come from, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,
    /// Revocation lists in PEM; if there are any, there must be one of each authority
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_crl: Option<PathBuf>,
}

impl TlsArgs {
    /// Reads the files.
    pub fn open(&self) -> Result<Reloading, CliError> {
        let (Some(cert), Some(key), Some(ca)) = (&self.tls_cert, &self.tls_key, &self.tls_ca) else {
            return Err(CliError::Usage("give --tls-cert, --tls-key and --tls-ca".to_owned()));
        };
        let paths = TlsPaths { cert: cert.clone(), key: key.clone(), ca: ca.clone(), crl: self.tls_crl.clone() };
        Ok(Reloading::open(paths)?)
    }
}

/// The name of this node: the first one in its certificate.
pub fn own_name(tls: &Reloading) -> Result<NodeName, CliError> {
    let configs = tls.current();
    let name = configs.names.iter().find_map(|name| name.parse().ok());
    name.ok_or_else(|| CliError::Usage("the certificate has no name that a node can have: give --node".to_owned()))
}
