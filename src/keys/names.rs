//! What keys are called in a cluster: StorageOS's names, which its volumes come with, and our own
//! next to them.

use std::fmt;
use std::str::FromStr;

/// The Secret that holds a namespace's key.
pub const NAMESPACE_KEY_SECRET: &str = "storageos-namespace-key";

/// What the name of a volume key's Secret begins with; a random UUID follows.
pub const VOLUME_KEY_SECRET_PREFIX: &str = "storageos-volume-key-";

/// Field of a namespace key's Secret: the key.
pub const KEY_FIELD: &str = "key";

/// Field of a namespace key's Secret, there only while the key is rotated: the key that comes next.
pub const NEXT_KEY_FIELD: &str = "next";

/// Label of a volume key's Secret: the claim that it is for.
pub const PVC_LABEL: &str = "storageos.com/pvc";

/// Label of a claim, and parameter of a storage class, that asks for encryption.
pub const ENCRYPTION: &str = "storageos.com/encryption";

/// Annotation of a claim: the name of its key's Secret.
pub const SECRET_NAME_ANNOTATION: &str = "storageos.com/encryption-secret-name";

/// Annotation of a claim: the namespace of its key's Secret, which is the claim's own.
pub const SECRET_NAMESPACE_ANNOTATION: &str = "storageos.com/encryption-secret-namespace";

/// Finalizer of a volume key's Secret, there as long as a claim names the Secret.
pub const PROTECTION_FINALIZER: &str = "sealblk.io/pvc-protection";

/// Label of a claim, and parameter of a storage class, that says in which form its Secret holds the
/// key.
pub const KEY_FORM: &str = "sealblk.io/key-form";

/// Value of [`KEY_FORM`]: in the clear and wrapped, as StorageOS does. The default.
pub const KEY_FORM_CLEAR: &str = "clear";

/// Value of [`KEY_FORM`]: wrapped under the namespace's key only.
pub const KEY_FORM_WRAPPED: &str = "wrapped";

/// Label of every object that is made here.
pub const NAME_LABEL: &str = "app.kubernetes.io/name";

/// Label of every object that is made here: [`VOLUME_KEY_COMPONENT`] or [`NAMESPACE_KEY_COMPONENT`].
pub const COMPONENT_LABEL: &str = "app.kubernetes.io/component";

/// Label of every object that is made here.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";

/// Value of [`NAME_LABEL`] and [`MANAGED_BY_LABEL`].
pub const SEALBLK: &str = "sealblk";

/// Value of [`COMPONENT_LABEL`].
pub const VOLUME_KEY_COMPONENT: &str = "volume-key";

/// Value of [`COMPONENT_LABEL`].
pub const NAMESPACE_KEY_COMPONENT: &str = "namespace-key";

/// Name of a namespace: a DNS label (RFC 1123).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Namespace(String);

impl Namespace {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Namespace {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Namespace, NameError> {
        let fits = text.len() <= LABEL_LENGTH_MAX && is_label(text);
        if fits { Ok(Namespace(text.to_owned())) } else { Err(NameError::Namespace) }
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of a Secret or a claim: a DNS subdomain (RFC 1123), so that it can stand in a path as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectName(String);

impl ObjectName {
    /// The Secret of a namespace's key.
    pub fn of_namespace_key() -> ObjectName {
        ObjectName(NAMESPACE_KEY_SECRET.to_owned())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ObjectName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<ObjectName, NameError> {
        let fits = text.len() <= SUBDOMAIN_LENGTH_MAX && text.split('.').all(is_label);
        if fits { Ok(ObjectName(text.to_owned())) } else { Err(NameError::Object) }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that Kubernetes would not take. The text is not repeated: it may be a key that was pasted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not the name of a namespace.
    #[error(
        "not the name of a namespace: use 1 to 63 lower-case letters, digits and `-`, with a letter or digit at both ends"
    )]
    Namespace,
    /// Not the name of a Secret or a claim.
    #[error(
        "not the name of a Secret or claim: use 1 to 253 lower-case letters, digits, `-` and `.`, with a letter or digit at both ends of every part"
    )]
    Object,
    /// Not the name of a claim that fits a label.
    #[error(
        "not the name of a claim that a label can carry: use 1 to 63 lower-case letters, digits, `-` and `.`, with a letter or digit at both ends of every part"
    )]
    Pvc,
}

/// Lower-case letters, digits and `-`, with a letter or digit at both ends.
fn is_label(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.chars().all(|c| alphanumeric(c) || c == '-') && text.starts_with(alphanumeric) && text.ends_with(alphanumeric)
}

/// What a DNS label, and the value of a Kubernetes label, may have at most.
pub(super) const LABEL_LENGTH_MAX: usize = 63;

const SUBDOMAIN_LENGTH_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_kubernetes_takes() {
        for text in ["a", "vms", "a-b", "1234", &"a".repeat(63)] {
            assert_eq!(text.parse::<Namespace>().unwrap().as_str(), text);
            assert_eq!(text.parse::<ObjectName>().unwrap().as_str(), text);
        }
        for text in ["", "A", "a_b", "-a", "a-", "a/b", "a b", "ä", "a\n", "..", "%2e"] {
            assert_eq!(text.parse::<Namespace>(), Err(NameError::Namespace), "{text:?}");
            assert_eq!(text.parse::<ObjectName>(), Err(NameError::Object), "{text:?}");
        }
        for text in ["a.b", &"a".repeat(64), &"a".repeat(253)] {
            assert!(text.parse::<Namespace>().is_err(), "{text:?}");
            assert!(text.parse::<ObjectName>().is_ok(), "{text:?}");
        }
        for text in ["a..b", ".a", "a.", "a.-b", &"a".repeat(254)] {
            assert_eq!(text.parse::<ObjectName>(), Err(NameError::Object), "{text:?}");
        }
    }
}
