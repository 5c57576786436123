//! The arguments by which every command that opens a volume is given its key.

use std::str::FromStr;

use clap::Args;

use super::CliError;
use crate::crypto::xts::XtsKey;
use crate::keys::{NamespaceKeys, Source, SourceError};

/// A volume's key: exactly one of `--key` and `--no-encryption`.
#[derive(Args)]
pub struct KeyArgs {
    #[command(flatten)]
    choice: Choice,
    /// The namespace's key, for a Secret that holds the volume key only wrapped
    #[arg(long, value_name = "SOURCE", requires = "key", conflicts_with = "no_encryption")]
    namespace_key: Option<String>,
}

// The sources are kept as text until they are loaded, because the parser's errors would repeat them
// and what was given by mistake may be the key itself.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Choice {
    /// Where the volume's key is: file:PATH, a Secret manifest in YAML or JSON or 64 raw bytes
    #[arg(long, value_name = "SOURCE")]
    key: Option<String>,
    /// The volume is not encrypted
    #[arg(long)]
    no_encryption: bool,
}

impl KeyArgs {
    /// Loads the key; `None` when the volume is not to be encrypted.
    ///
    /// # Errors
    ///
    /// [`CliError::Source`] for a source that cannot be one, [`CliError::Key`] when it holds no good
    /// key.
    pub fn load(&self) -> Result<Option<XtsKey>, CliError> {
        let Some(key) = &self.choice.key else {
            return Ok(None);
        };
        let source = Source::from_str(key)?;
        let namespace_keys = self.namespace_key.as_deref().map(load_namespace_keys).transpose()?;
        Ok(Some(source.load(namespace_keys.as_ref())?))
    }
}

/// Loads a namespace's keys from a source, or from a file named without a scheme.
pub fn load_namespace_keys(text: &str) -> Result<NamespaceKeys, CliError> {
    let source = match Source::from_str(text) {
        Err(SourceError::UnknownScheme) if !text.contains(':') => Source::File(text.into()),
        source => source?,
    };
    Ok(source.load_namespace_keys()?)
}
