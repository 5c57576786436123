//! The arguments by which every command that opens a volume is given its key.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use super::{CliError, duration};
use crate::crypto::xts::XtsKey;
use crate::keys::{Cluster, Source, SourceError};
use crate::kubernetes::Access;

/// A volume's key: one of `--key` and `--no-encryption`, unless the volume's description in a cluster says where it is.
#[derive(Args)]
pub struct KeyArgs {
    #[command(flatten)]
    choice: Choice,
    /// The namespace's key, for a Secret that holds the volume key only wrapped [default: for a Secret
    /// of a cluster, the key of its namespace]
    #[arg(long, value_name = "SOURCE", conflicts_with = "no_encryption")]
    namespace_key: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

// The sources are kept as text until they are loaded, because the parser's errors would repeat them
// and what was given by mistake may be the key itself.
#[derive(Args)]
#[group(multiple = false)]
struct Choice {
    /// Where the volume's key is: kubernetes:NAMESPACE/NAME, a Secret of the cluster; pvc:NAMESPACE/NAME,
    /// the Secret of a claim; or file:PATH, a Secret manifest in YAML or JSON or 64 raw bytes
    #[arg(long, value_name = "SOURCE")]
    key: Option<String>,
    /// The volume is not encrypted
    #[arg(long)]
    no_encryption: bool,
}

/// Which cluster keys and volumes are read from.
#[derive(Args)]
pub struct ClusterArgs {
    /// Kubeconfig that says how to reach the cluster [default: in a pod its ServiceAccount, elsewhere what
    /// kubectl takes]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The longest time to wait for an API server that cannot be reached or is busy
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::parse)]
    key_timeout: Duration,
}

impl KeyArgs {
    /// Loads the key; `None` when the volume is not to be encrypted.
    ///
    /// # Errors
    ///
    /// [`CliError::Source`] for a source that cannot be one, [`CliError::Key`] when it holds no good
    /// key.
    pub fn load(&self) -> Result<Option<XtsKey>, CliError> {
        self.load_unless(None)
    }

    /// The same, until `stop` is readable.
    ///
    /// # Errors
    ///
    /// As above, and [`KeyError::Stopped`](crate::keys::KeyError::Stopped).
    pub fn load_unless(&self, stop: Option<BorrowedFd<'_>>) -> Result<Option<XtsKey>, CliError> {
        match self.source()? {
            Some(source) => self.load_from(&source, stop).map(Some),
            None if self.choice.no_encryption => Ok(None),
            None => Err(CliError::Usage("give --key SOURCE or --no-encryption".to_owned())),
        }
    }

    /// The key from another source than `--key`.
    ///
    /// # Errors
    ///
    /// As above.
    pub fn load_from(&self, source: &Source, stop: Option<BorrowedFd<'_>>) -> Result<XtsKey, CliError> {
        let namespace_key = self.namespace_key.as_deref().map(namespace_source).transpose()?;
        let cluster = Cluster { stop, ..self.cluster() };
        Ok(source.load(namespace_key.as_ref(), &cluster)?)
    }

    /// What `--key` names.
    ///
    /// # Errors
    ///
    /// [`CliError::Source`].
    pub fn source(&self) -> Result<Option<Source>, CliError> {
        Ok(self.choice.key.as_deref().map(Source::from_str).transpose()?)
    }

    /// Whether `--key` is given.
    pub fn is_key(&self) -> bool {
        self.choice.key.is_some()
    }

    /// Whether `--no-encryption` is given.
    pub fn is_no_encryption(&self) -> bool {
        self.choice.no_encryption
    }

    /// The cluster of keys and volumes.
    pub fn cluster(&self) -> Cluster<'static> {
        self.cluster.cluster()
    }
}

impl ClusterArgs {
    /// The cluster, which nothing makes stop waiting.
    pub fn cluster(&self) -> Cluster<'static> {
        let access = Access { kubeconfig: self.kubeconfig.clone(), context: self.context.clone() };
        Cluster { access, patience: self.key_timeout, stop: None }
    }
}

/// The source of a namespace's key; a file may be named without a scheme, if there is one: what was given by mistake
/// may be the key itself, and errors name files.
pub fn namespace_source(text: &str) -> Result<Source, SourceError> {
    match Source::from_str(text) {
        Err(SourceError::UnknownScheme) if Path::new(text).exists() => Ok(Source::File(text.into())),
        Ok(Source::Pvc { .. }) => Err(SourceError::NotOfNamespace),
        source => source,
    }
}
