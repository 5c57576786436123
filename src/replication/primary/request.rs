//! What other processes of this machine may ask the process that serves a volume, and what they are answered.
//!
//! A request is one line of JSON. It is answered by lines of JSON, the last of which says how it ended. Who sends
//! nothing is told how the volume stands, as for [`OwnerRequest::Status`], whose answer is a
//! [`Status`](super::status::Status).

use serde::{Deserialize, Serialize};

use crate::replication::view::{NewMember, NodeName};
use crate::replication::writer;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum OwnerRequest {
    /// How the volume stands.
    Status,
    /// Make a node a member, and have it make its copy.
    AddMember(NewMember),
    /// Go on without a member for good.
    RemoveMember {
        /// Its node.
        node: NodeName,
    },
    /// Compare the copies: answered by a [`VerifyLine`] each time there is something to say, the last of which is the
    /// outcome. A client that goes away ends it.
    Verify(VerifyRequest),
}

/// A request was not understood, or not taken on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Why, as a sentence.
    pub refused: String,
}

/// How a request ended that changes something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// As was asked.
    Done,
    /// Not so.
    Failed {
        /// Why, in a sentence.
        reason: String,
    },
}

/// How copies are to be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyRequest {
    /// Heal copies that differ from what most have.
    #[serde(default)]
    pub repair: bool,
    /// Heal from the copy on this node instead, where it can be read.
    #[serde(default)]
    pub trust: Option<String>,
    /// Bytes of each copy a second, at most; without it, as fast as the guest does not mind.
    #[serde(default)]
    pub rate: Option<u64>,
}

/// One line of the answer to [`OwnerRequest::Verify`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerifyLine {
    /// How far it is.
    Progress {
        /// Everything before this byte has been looked at.
        position: u64,
        /// Bytes of the volume.
        size: u64,
    },
    /// Something is, or was, wrong with a copy.
    Found(FoundRange),
    /// It has ended.
    Outcome(VerifyOutcome),
    /// It could not begin, or not end.
    Refused(String),
}

/// A range where something is, or was, wrong with copies in sync.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundRange {
    /// First byte.
    pub offset: u64,
    /// How many.
    pub len: u64,
    /// Nodes whose copies are right, as far as can be known.
    pub right: Vec<String>,
    /// Nodes whose copies differ from those; where none is right, from each other.
    pub differing: Vec<String>,
    /// Nodes whose copies cannot be read there.
    pub unreadable: Vec<String>,
    /// What was done about it.
    pub outcome: writer::Outcome,
}

/// How a comparison ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyOutcome {
    /// Bytes of the volume.
    pub size: u64,
    /// Bytes that were wrong on some copy and are healed.
    pub healed_bytes: u64,
    /// Bytes where some copy is wrong, or cannot be read, still.
    pub left_bytes: u64,
    /// Findings that were too many to be told one by one.
    pub untold: u64,
    /// Every member of the volume.
    pub members: Vec<Compared>,
}

/// How much of a copy was compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// Its node.
    pub node: String,
    /// Bytes that were held against those of another copy. The rest could not be read, or the copy was not in sync.
    pub bytes: u64,
}

impl VerifyOutcome {
    /// Whether every byte of every copy is known to be equal to the others'.
    pub fn is_equal(&self) -> bool {
        self.left_bytes == 0 && self.members.iter().all(|member| member.bytes >= self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_outcomes_are_said_in_these_words() {
        let node: NodeName = "node-d".parse().unwrap();
        let address = "10.0.0.4:7420".to_owned();
        let new = NewMember { node: node.clone(), address, zone: Some("a".parse().unwrap()) };
        let requests = [
            (OwnerRequest::Status, r#"{"request":"status"}"#),
            (
                OwnerRequest::AddMember(NewMember { zone: None, ..new.clone() }),
                r#"{"request":"add-member","node":"node-d","address":"10.0.0.4:7420"}"#,
            ),
            (
                OwnerRequest::AddMember(new),
                r#"{"request":"add-member","node":"node-d","address":"10.0.0.4:7420","zone":"a"}"#,
            ),
            (OwnerRequest::RemoveMember { node }, r#"{"request":"remove-member","node":"node-d"}"#),
        ];
        for (request, text) in requests {
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
            assert_eq!(serde_json::from_str::<OwnerRequest>(text).unwrap(), request);
        }
        for text in
            [r#"{"request":"grow"}"#, r#"{"request":"remove-member"}"#, r#"{"request":"remove-member","node":"A"}"#]
        {
            assert!(serde_json::from_str::<OwnerRequest>(text).is_err(), "{text}");
        }
        let failed = Outcome::Failed { reason: "no".to_owned() };
        for (outcome, text) in
            [(Outcome::Done, r#"{"outcome":"done"}"#), (failed, r#"{"outcome":"failed","reason":"no"}"#)]
        {
            assert_eq!(serde_json::to_string(&outcome).unwrap(), text);
            assert_eq!(serde_json::from_str::<Outcome>(text).unwrap(), outcome);
        }
    }

    #[test]
    fn comparisons_are_asked_for_and_told_of_in_these_lines() {
        let verify = |text: &str| serde_json::from_str::<OwnerRequest>(text).unwrap();
        assert_eq!(serde_json::to_string(&OwnerRequest::Status).unwrap(), r#"{"request":"status"}"#);
        assert_eq!(verify(r#"{"request":"verify"}"#), OwnerRequest::Verify(VerifyRequest::default()));
        let all = VerifyRequest { repair: true, trust: Some("node-b".to_owned()), rate: Some(1 << 20) };
        let text = r#"{"request":"verify","repair":true,"trust":"node-b","rate":1048576}"#;
        assert_eq!(serde_json::to_string(&OwnerRequest::Verify(all.clone())).unwrap(), text);
        assert_eq!(verify(text), OwnerRequest::Verify(all));
        assert!(serde_json::from_str::<OwnerRequest>(r#"{"request":"nonsense"}"#).is_err());

        let found = FoundRange {
            offset: 4096,
            len: 512,
            right: vec!["a".to_owned()],
            differing: vec!["b".to_owned()],
            unreadable: Vec::new(),
            outcome: writer::Outcome::Healed,
        };
        let text =
            r#"{"found":{"offset":4096,"len":512,"right":["a"],"differing":["b"],"unreadable":[],"outcome":"healed"}}"#;
        assert_eq!(serde_json::to_string(&VerifyLine::Found(found)).unwrap(), text);
    }

    #[test]
    fn a_copy_of_which_something_was_not_compared_is_not_known_to_be_equal() {
        let outcome = |left_bytes, bytes| VerifyOutcome {
            size: 100,
            healed_bytes: 7,
            left_bytes,
            untold: 0,
            members: vec![Compared { node: "a".to_owned(), bytes: 100 }, Compared { node: "b".to_owned(), bytes }],
        };
        assert!(outcome(0, 100).is_equal());
        assert!(!outcome(1, 100).is_equal());
        assert!(!outcome(0, 99).is_equal());
    }
}
