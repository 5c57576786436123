//! The StorageClass of a claim, found as Kubernetes finds it.

use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use super::encryption::{Class, Storage};
use crate::keys::ObjectName;

/// Where the volume of a claim comes from that names this class, or none; an empty name is the word for
/// a volume that is there already.
///
/// # Errors
///
/// The library's.
pub async fn storage(client: &Client, name: Option<&str>) -> Result<Storage, kube::Error> {
    let (class, otherwise) = match name {
        Some("") => return Ok(Storage::Present),
        // The API server has not looked at it yet, and it would stand in a path.
        Some(name) if name.parse::<ObjectName>().is_err() => {
            return Ok(Storage::Unknown("the name of its StorageClass is none".to_owned()));
        }
        Some(name) => (named(client, name).await?, format!("there is no StorageClass {name}")),
        None => (default(client).await?, "there is no default StorageClass".to_owned()),
    };
    Ok(class.map_or(Storage::Unknown(otherwise), Storage::Class))
}

async fn named(client: &Client, name: &str) -> Result<Option<Class>, kube::Error> {
    Ok(Api::<StorageClass>::all(client.clone()).get_opt(name).await?.map(class))
}

/// The class of claims that name none. Of several the newest is taken, and of those of one second the
/// first by name, as Kubernetes does since 1.26.
async fn default(client: &Client) -> Result<Option<Class>, kube::Error> {
    let classes = Api::<StorageClass>::all(client.clone()).list(&ListParams::default()).await?;
    let mut defaults: Vec<_> = classes.items.into_iter().filter(is_default).collect();
    defaults.sort_by(|one, other| {
        let newest_first = other.creation_timestamp().cmp(&one.creation_timestamp());
        newest_first.then_with(|| one.name_any().cmp(&other.name_any()))
    });
    Ok(defaults.into_iter().next().map(class))
}

fn is_default(class: &StorageClass) -> bool {
    DEFAULT_ANNOTATIONS.iter().any(|&name| class.annotations().get(name).is_some_and(|value| value == "true"))
}

fn class(class: StorageClass) -> Class {
    Class { name: class.name_any(), provisioner: class.provisioner, parameters: class.parameters.unwrap_or_default() }
}

const DEFAULT_ANNOTATIONS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
