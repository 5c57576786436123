//! The arguments that say where the views of volumes are kept, and which volume of a cluster is meant.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use uuid::Uuid;

use clap::Args;

use crate::coordination::etcd::{Endpoints, EtcdTls};
use crate::coordination::kubernetes::{ClusterVolume, VolumeName};
use crate::coordination::{EtcdViews, FileViews, KubernetesViews, ViewStore};
use crate::keys::Cluster;

/// Where the view of a volume is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ViewPlace {
    /// In a folder, for nodes that are all on one machine or see the same files.
    Folder(PathBuf),
    /// In the status of a Volume of a cluster.
    Kubernetes(VolumeName),
    /// Under a key of an etcd.
    Etcd(Endpoints),
}

/// For views in an etcd.
#[derive(Args)]
pub struct EtcdArgs {
    /// Certificates of the authorities that etcd's own certificate is of, in PEM [default: those of the machine]
    #[arg(long, value_name = "FILE", requires = "view")]
    etcd_ca: Option<PathBuf>,
    /// Certificate for etcd, in PEM
    #[arg(long, value_name = "FILE", requires_all = ["view", "etcd_key"])]
    etcd_cert: Option<PathBuf>,
    /// Its key, in PEM
    #[arg(long, value_name = "FILE", requires_all = ["view", "etcd_cert"])]
    etcd_key: Option<PathBuf>,
    /// What the keys of views begin with in etcd
    #[arg(long, value_name = "PREFIX", requires = "view", default_value = "/sealblk/views")]
    etcd_prefix: String,
}

impl EtcdArgs {
    fn tls(&self) -> EtcdTls {
        let identity = self.etcd_cert.clone().zip(self.etcd_key.clone());
        EtcdTls { authorities: self.etcd_ca.clone(), identity }
    }
}

impl ViewPlace {
    /// The view of one volume there.
    pub fn of(&self, volume: Uuid, cluster: &Cluster<'_>, etcd: &EtcdArgs) -> Box<dyn ViewStore> {
        match self {
            Self::Folder(dir) => Box::new(FileViews::new(dir, volume, LOCK_WAIT)),
            Self::Kubernetes(name) => Box::new(KubernetesViews::new(in_cluster(name, cluster), volume)),
            Self::Etcd(endpoints) => {
                let (endpoints, tls, prefix) = (endpoints.clone(), etcd.tls(), &etcd.etcd_prefix);
                Box::new(EtcdViews::new(endpoints, tls, prefix, volume, cluster.patience))
            }
        }
    }
}

impl FromStr for ViewPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("file", dir)) if !dir.is_empty() => Ok(Self::Folder(dir.into())),
            Some(("kubernetes", name)) => name.parse().map(Self::Kubernetes).map_err(|error| format!("{error}")),
            Some(("etcd", endpoints)) => endpoints.parse().map(Self::Etcd),
            _ => {
                let what =
                    "not a place of views: write file:DIR, kubernetes:NAMESPACE/NAME or etcd:https://HOST:PORT,...";
                Err(what.to_owned())
            }
        }
    }
}

/// A volume of a cluster, as an argument.
pub fn volume_name(text: &str) -> Result<VolumeName, String> {
    match text.split_once(':') {
        Some(("kubernetes", name)) => name.parse().map_err(|error| format!("{error}")),
        _ => Err("not a volume of a cluster: write kubernetes:NAMESPACE/NAME".to_owned()),
    }
}

/// A volume, and the way to its cluster.
pub fn in_cluster(name: &VolumeName, cluster: &Cluster<'_>) -> ClusterVolume {
    ClusterVolume { name: name.clone(), access: cluster.access.clone(), patience: cluster.patience }
}

/// How long others may take that change a view.
const LOCK_WAIT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_folder_or_a_volume_of_a_cluster() {
        assert_eq!("file:/a:b".parse(), Ok(ViewPlace::Folder("/a:b".into())));
        assert_eq!("kubernetes:vms/disk".parse(), Ok(ViewPlace::Kubernetes("vms/disk".parse().unwrap())));
        assert!(matches!("etcd:https://a:1,https://b:2".parse(), Ok(ViewPlace::Etcd(_))));
        for text in ["", "file:", "/views", "etcd:/views", "kubernetes:", "kubernetes:vms", "kubernetes:vms/../a"] {
            assert!(text.parse::<ViewPlace>().is_err(), "{text}");
        }
        assert!(volume_name("vms/disk").is_err() && volume_name("kubernetes:vms/disk").is_ok());
    }
}
