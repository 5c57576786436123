//! `sealblk key`: keys as Secret manifests.

use clap::{Args, Subcommand};

use super::key_args::{ClusterArgs, namespace_source};
use super::{CliError, output};
use crate::keys::generate::{Namespace, Pvc, Request, generate};

#[derive(Subcommand)]
pub enum KeyCommand {
    /// Print the manifest of a new volume key, and of a namespace key unless one is given
    Generate(GenerateArgs),
}

#[derive(Args)]
pub struct GenerateArgs {
    /// Namespace that the Secret goes to
    #[arg(long, value_name = "NS")]
    namespace: Option<Namespace>,
    /// Persistent volume claim that the key is for
    #[arg(long, value_name = "NAME")]
    pvc: Option<Pvc>,
    /// Leave the clear key out of the Secret; the namespace key is then needed to use it
    #[arg(long, requires = "namespace_key")]
    wrapped_only: bool,
    /// The namespace's key: a file with a Secret manifest or 32 raw bytes, or kubernetes:NAMESPACE/NAME
    #[arg(long, value_name = "SOURCE")]
    namespace_key: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub fn run(command: KeyCommand) -> Result<(), CliError> {
    let KeyCommand::Generate(args) = command;
    let namespace_keys = match args.namespace_key.as_deref().map(namespace_source).transpose()? {
        Some(source) => Some(source.load_namespace_keys(&args.cluster.cluster())?),
        None => None,
    };
    let request = Request { namespace: args.namespace, pvc: args.pvc, namespace_keys, wrapped_only: args.wrapped_only };
    output::print(&generate(&request)?)
}
