//! What somebody wants a volume of a cluster to be: the `spec` of a `Volume`.
//!
//! The schema of `deploy/volumes.yaml` says the same, but an API server may have another one, so whatever
//! matters is checked again here.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::replication::view::{FailureMode, NewMember, NodeName};

/// What a volume is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// Bytes of the disk.
    pub size: Size,
    /// Bytes of a sector.
    #[serde(default = "sector_size_default")]
    pub sector_size: u32,
    /// Whether its sectors are sealed.
    #[serde(default = "encrypted_default")]
    pub encrypted: bool,
    /// Where its key is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyPlace>,
    /// The nodes that keep copies.
    pub members: Vec<NewMember>,
    /// Nodes that may write the volume beside the members, if it is not encrypted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub writers: Vec<NodeName>,
    /// How many copies must be in sync for a write.
    #[serde(default = "failure_mode_default")]
    pub failure_mode: FailureMode,
    /// What happens to writes while fewer are.
    #[serde(default)]
    pub below_min: BelowMinimum,
    /// See [`View::lease_ms`](crate::replication::View::lease_ms).
    #[serde(default = "lease_default")]
    pub lease_milliseconds: u32,
}

/// Where the key is, in the volume's own namespace: a volume may not take the keys of others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KeyPlace {
    /// In this Secret.
    SecretName(String),
    /// In the Secret of this claim.
    ClaimName(String),
}

/// What happens to writes while too few copies are in sync.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BelowMinimum {
    /// They wait.
    #[default]
    Suspend,
    /// They fail.
    Error,
}

/// Bytes, as Kubernetes writes them: a number, or one with Ki, Mi, Gi or Ti.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl Size {
    fn parse(text: &str) -> Option<Size> {
        let units = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40)];
        let with_unit = units.iter().find_map(|&(unit, shift)| Some((text.strip_suffix(unit)?, shift)));
        let (digits, shift) = with_unit.unwrap_or((text, 0));
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        digits.parse::<u64>().ok()?.checked_mul(1 << shift).map(Size)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let units = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
        let whole = |&&(_, shift): &&(&str, u32)| self.0 > 0 && self.0.trailing_zeros() >= shift;
        match units.iter().find(whole) {
            Some((unit, shift)) => serializer.collect_str(&format_args!("{}{unit}", self.0 >> shift)),
            None => serializer.collect_str(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number of bytes, or one with Ki, Mi, Gi or Ti")]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Ok(Size(bytes)),
            Written::Text(text) => Size::parse(&text)
                .ok_or_else(|| serde::de::Error::custom("a size is a number of bytes, or one with Ki, Mi, Gi or Ti")),
        }
    }
}

fn sector_size_default() -> u32 {
    512
}

fn encrypted_default() -> bool {
    true
}

fn failure_mode_default() -> FailureMode {
    FailureMode::Soft
}

fn lease_default() -> u32 {
    4000
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn least() -> Value {
        json!({"size": "1Gi", "members": [{"node": "node-a", "address": "10.0.0.1:7420"}]})
    }

    #[test]
    fn a_spec_says_little_and_the_rest_is_as_usual() {
        let spec: Spec = serde_json::from_value(least()).unwrap();
        assert_eq!((spec.size, spec.sector_size, spec.encrypted), (Size(1 << 30), 512, true));
        assert_eq!((spec.failure_mode, spec.below_min), (FailureMode::Soft, BelowMinimum::Suspend));
        assert_eq!((spec.key.clone(), spec.lease_milliseconds), (None, 4000));
        assert_eq!(serde_json::from_value::<Spec>(serde_json::to_value(&spec).unwrap()).unwrap(), spec);
    }

    #[test]
    fn a_key_is_in_a_secret_or_that_of_a_claim() {
        let key = |value: Value| serde_json::from_value::<KeyPlace>(value);
        assert_eq!(key(json!({"secretName": "s"})).unwrap(), KeyPlace::SecretName("s".to_owned()));
        assert_eq!(key(json!({"claimName": "c"})).unwrap(), KeyPlace::ClaimName("c".to_owned()));
        assert!(key(json!({})).is_err());
        assert!(key(json!({"secretName": "s", "claimName": "c"})).is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        for (field, value) in [
            ("size", json!("1.5Gi")),
            ("size", json!(-1)),
            ("size", json!("Gi")),
            ("size", json!("99999999Ti")),
            ("failureMode", json!("9")),
            ("belowMin", json!("panic")),
            ("members", json!([{"node": "Node_A", "address": "a:1"}])),
            ("members", json!([{"node": "node-a", "address": "a:1", "zone": "-"}])),
            ("members", json!({})),
            ("encrypted", json!("yes")),
        ] {
            let mut spec = least();
            spec[field] = value.clone();
            assert!(serde_json::from_value::<Spec>(spec).is_err(), "{field}: {value}");
        }
    }

    #[test]
    fn sizes_are_written_in_the_largest_unit() {
        for (bytes, text) in [(0, "0"), (512, "512"), (1 << 20, "1Mi"), (10 << 30, "10Gi"), (3 << 39, "1536Gi")] {
            assert_eq!(serde_json::to_value(Size(bytes)).unwrap(), json!(text));
            assert_eq!(Size::parse(text), Some(Size(bytes)));
        }
    }
}
