//! `sealblk controller`: what runs once for a cluster.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use super::{CliError, duration};
use crate::controller::admission::{self, Admission};
use crate::controller::certificate::files::Files;
use crate::controller::certificate::renewal::{Requirements, Settings};
use crate::controller::grants::ServiceAccount;
use crate::controller::process::{self, CertificateSource, Options};
use crate::keys::names::{NameError, Namespace, ObjectName};
use crate::kubernetes::Access;

/// Where to listen, with which certificate, and what for.
#[derive(Args)]
pub struct ControllerArgs {
    /// Address and port for API servers
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:8443")]
    listen: SocketAddr,
    #[command(flatten)]
    certificate: CertificateArgs,
    /// Provisioner of the storage classes whose claims are looked at; may be given more than once
    #[arg(long = "provisioner", value_name = "NAME", default_values = ["csi.sealblk.io", "csi.storageos.com"])]
    provisioners: Vec<String>,
    /// ServiceAccount of the nodes, which may read the keys that are made
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "sealblk-system/sealblk-node")]
    node_service_account: NamespacedName,
    /// How long a key may be there before its claim is; until then it is guarded in any case
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration::parse)]
    orphan_grace: Duration,
    /// How long to go on serving when told to end, while API servers go elsewhere
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::parse)]
    drain: Duration,
    /// Kubeconfig that says how to reach the cluster [default: in a pod its ServiceAccount, elsewhere what
    /// kubectl takes]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

/// The webhook's certificate: either of somebody else's making or of our own.
#[derive(Args)]
#[group(id = "certificate")]
struct CertificateArgs {
    /// Certificate chain in PEM, which somebody else writes and renews
    #[arg(long, value_name = "FILE", requires = "tls_key", required_unless_present = "tls_secret")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Secret to keep a certificate in that is made and renewed here
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "tls_cert", requires = "service_names")]
    tls_secret: Option<NamespacedName>,
    /// DNS name or IP address that the certificate is for, such as SERVICE.NAMESPACE.svc; may be given more
    /// than once
    #[arg(long = "service-name", value_name = "NAME", requires = "tls_secret")]
    service_names: Vec<String>,
    /// MutatingWebhookConfiguration that is told to trust the certificate
    #[arg(long, value_name = "NAME", default_value = "sealblk")]
    webhook_configuration: ObjectName,
    /// How long the certificate is valid; it is renewed at two thirds of that
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = duration::parse_life)]
    certificate_life: Duration,
}

/// An object of a namespace.
#[derive(Clone)]
struct NamespacedName {
    namespace: Namespace,
    name: ObjectName,
}

impl FromStr for NamespacedName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<NamespacedName, NameError> {
        let (namespace, name) = text.split_once('/').unwrap_or((text, ""));
        Ok(NamespacedName { namespace: namespace.parse()?, name: name.parse()? })
    }
}

/// Runs until SIGTERM or SIGINT.
pub fn run(args: ControllerArgs) -> Result<(), CliError> {
    let options = Options {
        access: Access { kubeconfig: args.kubeconfig, context: args.context },
        listen: args.listen,
        certificate: args.certificate.source()?,
        orphan_grace: args.orphan_grace,
        drain: args.drain,
    };
    let NamespacedName { namespace, name } = args.node_service_account;
    let settings = admission::Settings { provisioners: args.provisioners, reader: ServiceAccount { namespace, name } };
    Ok(process::run(&options, |client| Admission::new(client, settings))?)
}

impl CertificateArgs {
    fn source(self) -> Result<CertificateSource, CliError> {
        match (self.tls_cert, self.tls_key, self.tls_secret) {
            (Some(certificate), Some(key), None) => Ok(CertificateSource::Files(Files { certificate, key })),
            (None, None, Some(secret)) => Ok(CertificateSource::Own(Settings {
                namespace: secret.namespace,
                secret: secret.name,
                configuration: self.webhook_configuration,
                required: Requirements { names: self.service_names, life: self.certificate_life },
            })),
            _ => Err(CliError::Usage("give either --tls-cert with --tls-key, or --tls-secret".to_owned())),
        }
    }
}
