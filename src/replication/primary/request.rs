//! What other processes of this machine may ask the process that serves a volume, and what they are answered.
//!
//! A request is one line of JSON. It is answered by lines of JSON, the last of which says how it ended. Who sends
//! nothing is told how the volume stands, as for [`OwnerRequest::Status`], whose answer is a
//! [`Status`](super::status::Status).

use serde::{Deserialize, Serialize};

use crate::replication::view::NodeName;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum OwnerRequest {
    /// How the volume stands.
    Status,
    /// Make a node a member, and have it make its copy.
    AddMember {
        /// The node.
        node: NodeName,
        /// Where its replica listens: HOST:PORT.
        address: String,
    },
    /// Go on without a member for good.
    RemoveMember {
        /// Its node.
        node: NodeName,
    },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_outcomes_are_said_in_these_words() {
        let node: NodeName = "node-d".parse().unwrap();
        let requests = [
            (OwnerRequest::Status, r#"{"request":"status"}"#),
            (
                OwnerRequest::AddMember { node: node.clone(), address: "10.0.0.4:7420".to_owned() },
                r#"{"request":"add-member","node":"node-d","address":"10.0.0.4:7420"}"#,
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
}
