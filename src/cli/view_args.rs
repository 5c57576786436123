//! The arguments that say where the views of volumes are kept, and which volume of a cluster is meant.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use uuid::Uuid;

use crate::coordination::kubernetes::{ClusterVolume, VolumeName};
use crate::coordination::{FileViews, KubernetesViews, ViewStore};
use crate::keys::Cluster;

/// Where the view of a volume is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ViewPlace {
    /// In a folder, for nodes that are all on one machine or see the same files.
    Folder(PathBuf),
    /// In the status of a Volume of a cluster.
    Kubernetes(VolumeName),
}

impl ViewPlace {
    /// The view of one volume there.
    pub fn of(&self, volume: Uuid, cluster: &Cluster<'_>) -> Box<dyn ViewStore> {
        match self {
            Self::Folder(dir) => Box::new(FileViews::new(dir, volume, LOCK_WAIT)),
            Self::Kubernetes(name) => Box::new(KubernetesViews::new(in_cluster(name, cluster), volume)),
        }
    }
}

impl FromStr for ViewPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("file", dir)) if !dir.is_empty() => Ok(Self::Folder(dir.into())),
            Some(("kubernetes", name)) => name.parse().map(Self::Kubernetes).map_err(|error| format!("{error}")),
            _ => Err("not a place of views: write file:DIR or kubernetes:NAMESPACE/NAME".to_owned()),
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
        for text in ["", "file:", "/views", "etcd:/views", "kubernetes:", "kubernetes:vms", "kubernetes:vms/../a"] {
            assert!(text.parse::<ViewPlace>().is_err(), "{text}");
        }
        assert!(volume_name("vms/disk").is_err() && volume_name("kubernetes:vms/disk").is_ok());
    }
}
