//! `sealblk key`: keys as Secret manifests.

use std::fmt::Write;

use clap::{Args, Subcommand};

use super::key_args::{ClusterArgs, namespace_source};
use super::{CliError, output};
use crate::keys::cluster::rotation;
use crate::keys::cluster::verification::{self, Finding, Report};
use crate::keys::generate::{self, Namespace, Pvc, Request};

#[derive(Subcommand)]
pub enum KeyCommand {
    /// Print the manifest of a new volume key, and of a namespace key unless one is given
    Generate(GenerateArgs),
    /// Replace the key of a namespace and wrap the keys of all its volumes under the new one
    RotateNamespace(NamespaceArgs),
    /// Tell of each volume key of a namespace whether it opens, without showing it
    Verify(VerifyArgs),
}

#[derive(Args)]
pub struct NamespaceArgs {
    /// The namespace
    namespace: Namespace,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    of: NamespaceArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
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
    match command {
        KeyCommand::Generate(args) => generate(args),
        KeyCommand::RotateNamespace(args) => rotate_namespace(&args),
        KeyCommand::Verify(args) => verify(&args),
    }
}

fn generate(args: GenerateArgs) -> Result<(), CliError> {
    let namespace_keys = match args.namespace_key.as_deref().map(namespace_source).transpose()? {
        Some(source) => Some(source.load_namespace_keys(&args.cluster.cluster())?),
        None => None,
    };
    let request = Request { namespace: args.namespace, pvc: args.pvc, namespace_keys, wrapped_only: args.wrapped_only };
    output::print(&generate::generate(&request)?)
}

fn rotate_namespace(args: &NamespaceArgs) -> Result<(), CliError> {
    let rotation = rotation::rotate(&args.namespace, &args.cluster.cluster())?;
    let how = if rotation.resumed { "finished the rotation that was under way" } else { "replaced its key" };
    output::print(&format!(
        "namespace {}: {how}; volume keys wrapped anew: {}\n",
        args.namespace, rotation.wrapped_anew
    ))
}

fn verify(args: &VerifyArgs) -> Result<(), CliError> {
    let report = verification::verify(&args.of.namespace, &args.of.cluster.cluster())?;
    let text = if args.json {
        serde_json::to_string_pretty(&report).expect("a record of texts") + "\n"
    } else {
        for_people(&report)
    };
    output::print(&text)?;
    match report.problems() {
        0 => Ok(()),
        problems => Err(CliError::BadKeys { namespace: args.of.namespace.clone(), problems }),
    }
}

fn for_people(report: &Report) -> String {
    let mut text = String::new();
    for Finding { secret, form, problem } in &report.volume_keys {
        let result = problem.as_deref().unwrap_or("opens");
        let _ = writeln!(text, "{secret}  {form:7}  {result}");
    }
    let (count, namespace) = (report.volume_keys.len(), &report.namespace);
    let _ = writeln!(text, "namespace {namespace}: {count} volume keys, of which {} do not open", report.problems());
    if report.rotation_unfinished {
        let _ = writeln!(
            text,
            "a rotation of the namespace's key is under way: `sealblk key rotate-namespace {namespace}` goes on with it"
        );
    }
    text
}
