//! Zones, and whether copies are spread over them.
//!
//! A **zone** is what fails together: a rack, a room, a zone of a cloud. Nobody here finds out in which one a node is:
//! whoever makes it a member says so, in a cluster by the label `topology.kubernetes.io/zone` of the `Node`. It decides
//! nothing; it only shows whether a volume would outlive the loss of a zone.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The name of a zone: what Kubernetes takes for the value of a label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Zone(String);

impl Zone {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Zone {
    type Err = ZoneError;

    fn from_str(text: &str) -> Result<Self, ZoneError> {
        let bytes = text.as_bytes();
        let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let is_inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
        let is_name = bytes.len() <= ZONE_BYTES_MAX && bytes.iter().all(is_inner);
        if is_name && is_end(bytes.first()) && is_end(bytes.last()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ZoneError { name: text.chars().take(ZONE_BYTES_MAX).collect() })
        }
    }
}

impl TryFrom<String> for Zone {
    type Error = ZoneError;

    fn try_from(text: String) -> Result<Self, ZoneError> {
        text.parse()
    }
}

impl From<Zone> for String {
    fn from(zone: Zone) -> String {
        zone.0
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that names no zone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no zone: use at most {ZONE_BYTES_MAX} letters, digits, '-', '_' and '.', like a label's value")]
pub struct ZoneError {
    name: String,
}

/// A copy, and the zone that it is in, if that is known.
#[derive(Clone, Copy, Debug)]
pub struct Placement<'a> {
    /// The copy's node.
    pub node: &'a str,
    /// Its zone.
    pub zone: Option<&'a Zone>,
}

/// Whether copies are in more zones than one, so that the loss of no zone takes them all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spread {
    /// They are in several: which, and the nodes in each.
    Zones(BTreeMap<Zone, Vec<String>>),
    /// All are in this one.
    OneZone(Zone),
    /// They may be in one, for it is not known of these nodes where they are.
    Unknown(Vec<String>),
    /// It is known of none.
    NotGiven,
}

impl Spread {
    /// Of these copies.
    pub fn of<'a>(copies: impl Iterator<Item = Placement<'a>>) -> Spread {
        let (mut zones, mut unknown) = (BTreeMap::<Zone, Vec<String>>::new(), Vec::new());
        for Placement { node, zone } in copies {
            match zone {
                Some(zone) => zones.entry(zone.clone()).or_default().push(node.to_owned()),
                None => unknown.push(node.to_owned()),
            }
        }
        match zones.len() {
            0 => Spread::NotGiven,
            1 if !unknown.is_empty() => Spread::Unknown(unknown),
            1 => zones.into_keys().next().map_or(Spread::NotGiven, Spread::OneZone),
            _ => Spread::Zones(zones),
        }
    }

    /// Why copies that will be placed like `after` are spread worse than they could be, judging by the zones of those
    /// that were placed like `before`; none if they are not, or nobody knows. So it is if all are in one zone, if they
    /// are in fewer than before, or if one zone has more than one copy more than another.
    pub fn worse<'a>(
        before: impl Iterator<Item = Placement<'a>>,
        after: impl Iterator<Item = Placement<'a>>,
    ) -> Option<String> {
        let mut counts = BTreeMap::<&Zone, usize>::new();
        before.filter_map(|copy| copy.zone).for_each(|zone| _ = counts.entry(zone).or_default());
        let zones_before = counts.len();
        let mut unknown = Vec::new();
        let mut total = 0;
        for Placement { node, zone } in after {
            total += 1;
            match zone {
                Some(zone) => *counts.entry(zone).or_default() += 1,
                None => unknown.push(node),
            }
        }
        if counts.is_empty() || total < 2 {
            return None;
        }
        if !unknown.is_empty() {
            return Some(format!("it is not known in which zone {} is", unknown.join(", ")));
        }
        let used = counts.values().filter(|&&count| count > 0).count();
        let (most, least) = (counts.iter().max_by_key(|(_, count)| **count)?, counts.values().min()?);
        if used == 1 {
            return Some(format!("all {total} copies are in zone {}", most.0));
        }
        if used < zones_before {
            return Some(format!("the copies are in {used} zones and were in {zones_before}"));
        }
        (most.1 - least > 1).then(|| format!("zone {} has {} copies and another has {least}", most.0, most.1))
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zones(zones) => {
                let zones = zones.iter().map(|(zone, nodes)| format!("{zone} ({})", nodes.join(", ")));
                write!(f, "the copies in sync are in zones {}", zones.collect::<Vec<_>>().join(", "))
            }
            Self::OneZone(zone) => write!(f, "every copy in sync is in zone {zone}"),
            Self::Unknown(nodes) => write!(f, "it is not known in which zone {} is", nodes.join(", ")),
            Self::NotGiven => f.write_str("no copy in sync has a zone"),
        }
    }
}

const ZONE_BYTES_MAX: usize = 63;

#[cfg(test)]
mod tests {
    use super::*;

    /// One copy for each letter, in the zone of that name; in an unknown one for a dash.
    fn zones(text: &str) -> Vec<Option<Zone>> {
        text.chars().map(|zone| (zone != '-').then(|| zone.to_string().parse().unwrap())).collect()
    }

    fn placed(zones: &[Option<Zone>]) -> impl Iterator<Item = Placement<'_>> {
        zones.iter().map(|zone| Placement { node: "node", zone: zone.as_ref() })
    }

    #[test]
    fn a_zone_is_what_a_label_may_say() {
        for text in ["a", "eu-central-1a", "rack_7", "A.b", &"z".repeat(63)] {
            assert_eq!(text.parse::<Zone>().unwrap().as_str(), text);
        }
        for text in ["", "-a", "a-", "a b", "a/b", "a=b", "z\u{fc}rich", &"z".repeat(64)] {
            assert!(text.parse::<Zone>().is_err(), "{text}");
        }
    }

    #[test]
    fn copies_are_spread_when_no_zone_has_them_all() {
        let spread = |text: &str| Spread::of(placed(&zones(text)));
        assert!(matches!(spread("ab"), Spread::Zones(zones) if zones.len() == 2));
        assert!(matches!(spread("aab-"), Spread::Zones(_)), "wherever the last one is");
        assert_eq!(spread("aaa"), Spread::OneZone("a".parse().unwrap()));
        assert_eq!(spread("a"), Spread::OneZone("a".parse().unwrap()));
        assert_eq!(spread("aa-"), Spread::Unknown(vec!["node".to_owned()]));
        assert_eq!((spread("---"), spread("")), (Spread::NotGiven, Spread::NotGiven));
        let text = spread("abb").to_string();
        assert_eq!(text, "the copies in sync are in zones a (node), b (node, node)");
    }

    #[test]
    fn a_change_that_spreads_copies_worse_is_told_from_one_that_does_not() {
        let worse = |before: &str, after: &str| {
            let (before, after) = (zones(before), zones(after));
            Spread::worse(placed(&before), placed(&after))
        };
        for (before, after) in [("ab", "abc"), ("ab", "abb"), ("ab", "a"), ("a", "a"), ("--", "---"), ("aa", "ab")] {
            assert_eq!(worse(before, after), None, "{before} {after}");
        }
        for (before, after, why) in [
            ("a", "aa", "all 2 copies are in zone a"),
            ("abc", "aab", "in 2 zones and were in 3"),
            ("aab", "aaab", "zone a has 3 copies and another has 1"),
            ("ab", "aa", "all 2 copies are in zone a"),
            ("a", "a-", "not known"),
        ] {
            let told = worse(before, after).unwrap();
            assert!(told.contains(why), "{before} {after}: {told}");
        }
    }
}
