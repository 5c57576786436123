//! The view of a volume: who writes it, which copies are in sync, and when that is too few.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

mod check;
mod zone;

pub(in crate::replication) use check::is_address;
pub use check::{LEASE_MS_MAX, ViewError, ViewFault};
pub use zone::{Placement, Spread, Zone, ZoneError};

/// The most copies that a volume may have.
pub const MEMBERS_MAX: usize = 8;

/// The most nodes that a view may name as writers beside its members.
pub const WRITERS_MAX: usize = 64;

/// Which view of a volume this is. The first is 1; 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ViewNumber(pub u64);

impl ViewNumber {
    /// Before any view.
    pub const NONE: ViewNumber = ViewNumber(0);
    /// The last: a row of the region table has 63 bits for the number.
    pub const MAX: ViewNumber = ViewNumber(u64::MAX >> 1);

    /// The number of the view after this one.
    pub fn next(self) -> ViewNumber {
        ViewNumber(self.0 + 1)
    }
}

impl fmt::Display for ViewNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a node: a DNS name in lower case, as it stands in the node's certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

impl NodeName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NodeNameError;

    fn from_str(text: &str) -> Result<Self, NodeNameError> {
        let label = |label: &str| {
            let bytes = label.as_bytes();
            let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
            (1..=63).contains(&bytes.len())
                && bytes.iter().all(inner)
                && bytes.first() != Some(&b'-')
                && bytes.last() != Some(&b'-')
        };
        if text.len() <= NODE_NAME_BYTES_MAX && text.split('.').all(label) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NodeNameError { name: text.chars().take(NODE_NAME_BYTES_MAX).collect() })
        }
    }
}

impl TryFrom<String> for NodeName {
    type Error = NodeNameError;

    fn try_from(text: String) -> Result<Self, NodeNameError> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> String {
        name.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that names no node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no node name: use a DNS name in lower case, of letters, digits, '-' and '.'")]
pub struct NodeNameError {
    name: String,
}

/// One life of a copy: from when its process opened it to the end of that process, or to its first
/// failed flush. A copy in a new incarnation may have lost what the old one had not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub Uuid);

/// One attachment of a volume: the node, and an id of the process's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriterId {
    /// Where the writer runs.
    pub node: NodeName,
    /// Drawn at attach.
    pub attachment: Uuid,
}

/// Which member of a view: its place in [`View::members`]. A place is never taken away, so that this stays true for as
/// long as the member is one. That of a member that was removed may be another's in a later view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberIndex(pub u8);

/// The configuration of a volume at one time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct View {
    /// The volume.
    pub volume: Uuid,
    /// Grows by one with each change.
    pub number: ViewNumber,
    /// Who may write; none before the first attach.
    pub writer: Option<WriterId>,
    /// Every copy, at most [`MEMBERS_MAX`], and the places of those that were removed.
    pub members: Vec<Member>,
    /// How many copies must be in sync for a write.
    pub failure_mode: FailureMode,
    /// For how long a writer may serve reads after it last heard from the other copies, and for how long
    /// one that replaces it waits if it could not reach them all. Milliseconds.
    pub lease_ms: u32,
    /// Nodes that may write the volume beside its members: at most [`WRITERS_MAX`]. They count for a volume without
    /// encryption only; of any other, whoever has the key may be the writer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub writers: Vec<NodeName>,
}

/// One copy of the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// The node that keeps it.
    pub node: NodeName,
    /// Where its replica listens: HOST:PORT.
    pub address: String,
    /// The zone that the node is in, if whoever made it a member has said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Zone>,
    /// Whether it has every acknowledged write.
    pub state: MemberState,
}

impl Member {
    /// What it was made a member with.
    pub fn as_new(&self) -> NewMember {
        NewMember { node: self.node.clone(), address: self.address.clone(), zone: self.zone.clone() }
    }
}

/// A node that is to keep a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewMember {
    /// Which one.
    pub node: NodeName,
    /// Where its replica listens: HOST:PORT.
    pub address: String,
    /// The zone that it is in, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Zone>,
}

/// What a view says about a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberState {
    /// It has every acknowledged write, if it is still in this incarnation; in a later one it has every
    /// flushed write.
    InSync(Incarnation),
    /// It may lack writes.
    Behind,
    /// It was made a member, and has not been in sync since. Until it is, it does not count for the failure mode: so
    /// that nothing has to wait because a member is added.
    Added,
    /// It was removed: nobody reads from it, writes to it or waits for it. Only its place is kept.
    Retired,
}

impl View {
    /// The members that are in sync.
    pub fn in_sync(&self) -> impl Iterator<Item = MemberIndex> {
        let indexed = (0u8..).zip(&self.members);
        indexed
            .filter(|(_, member)| matches!(member.state, MemberState::InSync(_)))
            .map(|(index, _)| MemberIndex(index))
    }

    /// The member on a node, unless it was removed.
    pub fn member_on(&self, node: &NodeName) -> Option<MemberIndex> {
        self.place_of(node).filter(|&index| !self.is_retired(index))
    }

    /// Whether a node may write the volume if that has no key by which a node could show that it may.
    pub fn may_write(&self, node: &NodeName) -> bool {
        self.member_on(node).is_some() || self.writers.contains(node)
    }

    /// The place of a node, also of one whose copy was removed.
    pub fn place_of(&self, node: &NodeName) -> Option<MemberIndex> {
        (0u8..).zip(&self.members).find(|(_, member)| member.node == *node).map(|(index, _)| MemberIndex(index))
    }

    /// Whether a place is that of a member which was removed.
    pub fn is_retired(&self, member: MemberIndex) -> bool {
        self.members.get(usize::from(member.0)).is_some_and(|member| member.state == MemberState::Retired)
    }

    /// The copies that there are: every member that was not removed.
    pub fn present(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.state != MemberState::Retired)
    }

    /// Whether the copies in sync are in more zones than one.
    pub fn spread(&self) -> Spread {
        let in_sync = self.members.iter().filter(|member| matches!(member.state, MemberState::InSync(_)));
        Spread::of(in_sync.map(|member| Placement { node: member.node.as_str(), zone: member.zone.as_ref() }))
    }

    /// How many copies the failure mode is about.
    pub fn counted(&self) -> usize {
        self.present().filter(|member| member.state != MemberState::Added).count()
    }

    /// How many copies must be in sync for a write.
    pub fn in_sync_min(&self) -> usize {
        self.failure_mode.in_sync_min(self.counted())
    }
}

/// How many copies must be in sync for a write, as StorageOS names it in the label
/// `storageos.com/failure-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum FailureMode {
    /// Every copy.
    Hard,
    /// All but one, and at least one.
    Soft,
    /// One.
    AlwaysOn,
    /// This many, or all if there are fewer.
    AtLeast(u8),
}

impl FailureMode {
    /// How many of `members` copies must be in sync for a write; at least one.
    pub fn in_sync_min(self, members: usize) -> usize {
        match self {
            Self::Hard => members,
            Self::Soft => members.saturating_sub(1),
            Self::AlwaysOn => 1,
            Self::AtLeast(count) => usize::from(count).min(members),
        }
        .max(1)
    }
}

impl FromStr for FailureMode {
    type Err = FailureModeError;

    fn from_str(text: &str) -> Result<Self, FailureModeError> {
        match text {
            "hard" => Ok(Self::Hard),
            "soft" => Ok(Self::Soft),
            "alwayson" => Ok(Self::AlwaysOn),
            _ => match text.parse() {
                Ok(count) if (1..=MEMBERS_MAX).contains(&usize::from(count)) => Ok(Self::AtLeast(count)),
                _ => Err(FailureModeError),
            },
        }
    }
}

impl fmt::Display for FailureMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hard => f.write_str("hard"),
            Self::Soft => f.write_str("soft"),
            Self::AlwaysOn => f.write_str("alwayson"),
            Self::AtLeast(count) => count.fmt(f),
        }
    }
}

impl TryFrom<String> for FailureMode {
    type Error = FailureModeError;

    fn try_from(text: String) -> Result<Self, FailureModeError> {
        text.parse()
    }
}

impl From<FailureMode> for String {
    fn from(mode: FailureMode) -> String {
        mode.to_string()
    }
}

/// A text that is no failure mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a failure mode is hard, soft, alwayson, or how many copies must be in sync (1 to {MEMBERS_MAX})")]
pub struct FailureModeError;

const NODE_NAME_BYTES_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_modes_say_how_many_copies_a_write_needs() {
        for (text, members, min) in [
            ("hard", 3, 3),
            ("hard", 1, 1),
            ("soft", 3, 2),
            ("soft", 2, 1),
            ("soft", 1, 1),
            ("alwayson", 5, 1),
            ("2", 3, 2),
            ("3", 2, 2),
        ] {
            let mode: FailureMode = text.parse().unwrap();
            assert_eq!(mode.in_sync_min(members), min, "{text} of {members}");
            assert_eq!(mode.to_string(), text);
        }
        for text in ["", "0", "9", "Hard", "-1", "1.5"] {
            assert!(text.parse::<FailureMode>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn states_are_said_in_these_words() {
        let life = Incarnation(Uuid::from_bytes([1; 16]));
        for (state, text) in [
            (MemberState::InSync(life), r#"{"in-sync":"01010101-0101-0101-0101-010101010101"}"#),
            (MemberState::Behind, r#""behind""#),
            (MemberState::Added, r#""added""#),
            (MemberState::Retired, r#""retired""#),
        ] {
            assert_eq!(serde_json::to_string(&state).unwrap(), text);
            assert_eq!(serde_json::from_str::<MemberState>(text).unwrap(), state);
        }
    }

    #[test]
    fn members_that_were_removed_or_only_added_do_not_count() {
        let life = MemberState::InSync(Incarnation(Uuid::nil()));
        let states = [life, MemberState::Behind, MemberState::Added, MemberState::Retired];
        let member = |(index, &state)| Member {
            node: format!("n{index}").parse().unwrap(),
            address: "n:1".into(),
            zone: None,
            state,
        };
        let view = View {
            volume: Uuid::nil(),
            number: ViewNumber(1),
            writer: None,
            members: states.iter().enumerate().map(member).collect(),
            failure_mode: FailureMode::Hard,
            lease_ms: 1000,
            writers: Vec::new(),
        };
        assert_eq!((view.in_sync_min(), view.present().count(), view.in_sync().count()), (2, 3, 1));
        let on = |node: &str| view.member_on(&node.parse().unwrap());
        assert_eq!((on("n2"), on("n3")), (Some(MemberIndex(2)), None));
        assert_eq!(view.place_of(&"n3".parse().unwrap()), Some(MemberIndex(3)));
    }

    #[test]
    fn node_names_are_dns_names() {
        for name in ["a", "node-1", "node-1.rack2.example", "10.0.0.1"] {
            assert_eq!(name.parse::<NodeName>().unwrap().as_str(), name);
        }
        for name in ["", ".", "a.", "-a", "a-", "Node", "a_b", "a/b", "..", &"a".repeat(64), &"a.".repeat(150)] {
            assert!(name.parse::<NodeName>().is_err(), "{name:?}");
        }
    }
}
