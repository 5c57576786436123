//! Which object of a cluster a volume is.

use std::fmt;
use std::str::FromStr;

/// A `Volume` of a cluster, by its namespace and name. Nothing in either means anything in a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeName {
    namespace: String,
    name: String,
}

impl VolumeName {
    /// Its namespace, in which its key is, too.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its name in that.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for VolumeName {
    type Err = VolumeNameError;

    fn from_str(text: &str) -> Result<Self, VolumeNameError> {
        let (namespace, name) = text.split_once('/').ok_or(VolumeNameError)?;
        if is_label(namespace) && name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label) {
            Ok(VolumeName { namespace: namespace.to_owned(), name: name.to_owned() })
        } else {
            Err(VolumeNameError)
        }
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A text that names no object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a volume of a cluster: write NAMESPACE/NAME, both as Kubernetes has them")]
pub struct VolumeNameError;

/// A DNS label (RFC 1123).
fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

const NAME_BYTES_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_a_namespace_and_no_way_out_of_it() {
        for text in ["vms/disk-0", "a/b.c"] {
            assert_eq!(text.parse::<VolumeName>().unwrap().to_string(), text);
        }
        for text in ["", "vms", "/", "vms/", "/disk", "vms/a/b", "vms/../a", "vms/a?b", "VMS/a", "a.b/c", "vms/-a"] {
            assert_eq!(text.parse::<VolumeName>(), Err(VolumeNameError), "{text}");
        }
    }
}
