//! Who may read a volume's key: a Role for each Secret, bound to the ServiceAccount of the nodes.
//!
//! RBAC knows no names by prefix, and a right to all Secrets is what this is to avoid. So each Secret
//! comes with a Role and a RoleBinding of its own name. They belong to it: when it is deleted, Kubernetes
//! deletes them. They are also the list of Secrets that the controller itself does not have.

use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, Resource};

use super::encryption::Form;
use crate::keys::names::{
    COMPONENT_LABEL, MANAGED_BY_LABEL, NAME_LABEL, NAMESPACE_KEY_SECRET, Namespace, ObjectName, SEALBLK,
    VOLUME_KEY_COMPONENT,
};

/// A ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: ObjectName,
}

/// Lets `reader` get one volume key's Secret, and the namespace's key where that is needed to open it.
/// What is there already stays as it is.
///
/// # Errors
///
/// The library's.
pub async fn grant(
    client: &Client,
    namespace: &Namespace,
    (secret, uid): (&ObjectName, &str),
    form: Form,
    reader: &ServiceAccount,
) -> Result<(), kube::Error> {
    let mut names = vec![secret.to_string()];
    if form == Form::Wrapped {
        names.push(NAMESPACE_KEY_SECRET.to_owned());
    }
    let metadata = metadata(namespace, secret, uid);
    let role = Role {
        metadata: metadata.clone(),
        rules: Some(vec![PolicyRule {
            api_groups: Some(vec![String::new()]),
            resources: Some(vec!["secrets".to_owned()]),
            resource_names: Some(names),
            verbs: vec!["get".to_owned()],
            ..PolicyRule::default()
        }]),
    };
    let binding = RoleBinding {
        metadata,
        role_ref: RoleRef { api_group: RBAC_GROUP.to_owned(), kind: "Role".to_owned(), name: secret.to_string() },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: reader.name.to_string(),
            namespace: Some(reader.namespace.to_string()),
            ..Subject::default()
        }]),
    };
    create(&Api::namespaced(client.clone(), namespace.as_str()), &role).await?;
    create(&Api::namespaced(client.clone(), namespace.as_str()), &binding).await
}

/// Whether there is a Role by which nodes read a volume's key, and so a volume.
///
/// # Errors
///
/// The library's.
pub async fn any(client: &Client, namespace: &Namespace) -> Result<bool, kube::Error> {
    let roles: Api<Role> = Api::namespaced(client.clone(), namespace.as_str());
    Ok(!roles.list_metadata(&ListParams::default().labels(&selector()).limit(1)).await?.items.is_empty())
}

/// The label selector of what is made here.
pub fn selector() -> String {
    format!("{MANAGED_BY_LABEL}={SEALBLK},{COMPONENT_LABEL}={VOLUME_KEY_COMPONENT}")
}

async fn create<K>(api: &Api<K>, object: &K) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug,
{
    match api.create(&PostParams::default(), object).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(error),
    }
}

fn metadata(namespace: &Namespace, secret: &ObjectName, uid: &str) -> ObjectMeta {
    let labels = [(NAME_LABEL, SEALBLK), (COMPONENT_LABEL, VOLUME_KEY_COMPONENT), (MANAGED_BY_LABEL, SEALBLK)];
    let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
    ObjectMeta {
        name: Some(secret.to_string()),
        namespace: Some(namespace.to_string()),
        labels: Some(labels.into()),
        owner_references: Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Secret".to_owned(),
            name: secret.to_string(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        }]),
        ..ObjectMeta::default()
    }
}

const RBAC_GROUP: &str = "rbac.authorization.k8s.io";
