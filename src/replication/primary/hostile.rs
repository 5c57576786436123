//! Anything in the place of what is said over the owner's socket.

use std::fmt::Debug;
use std::io::BufRead;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::asking::read_line;
use super::report::read_request;
use super::request::{Outcome, VerifyLine};
use super::sentence;
use super::status::Status;

/// Reads `bytes` as a request, and as an answer to each: the entry of the fuzz target `owner`. Whether one of them is
/// taken.
///
/// # Panics
///
/// When what was taken is not what it would be said as again.
pub fn hear_hostile(bytes: &[u8]) -> bool {
    let request = read_request(bytes).is_ok_and(|request| request.is_ok_and(|request| is_said_again(&request)));
    let mut lines = bytes;
    let mut is_verification = false;
    while !lines.is_empty()
        && let Ok(line) = read_line::<VerifyLine>(&mut lines)
    {
        is_verification = is_said_again(&line);
        match line {
            VerifyLine::Found(found) => drop(sentence(&found)),
            VerifyLine::Outcome(outcome) => drop(outcome.is_equal()),
            VerifyLine::Progress { .. } | VerifyLine::Refused(_) => {}
        }
    }
    request | is_verification | is_answer::<Status>(bytes) | is_answer::<Outcome>(bytes)
}

fn is_answer<T: DeserializeOwned + Serialize + PartialEq + Debug>(mut bytes: impl BufRead) -> bool {
    read_line::<T>(&mut bytes).is_ok_and(|answer| is_said_again(&answer))
}

fn is_said_again<T: DeserializeOwned + Serialize + PartialEq + Debug>(what: &T) -> bool {
    let text = serde_json::to_string(what).expect("what can be read can be said");
    assert!(!text.contains('\n'), "{text} is more than a line");
    assert_eq!(serde_json::from_str::<T>(&text).expect("what was said can be read"), *what);
    true
}

#[cfg(test)]
mod tests {
    use super::super::request::{Compared, FoundRange, OwnerRequest, VerifyOutcome, VerifyRequest};
    use super::*;
    use crate::corpus;
    use crate::replication::view::{NewMember, NodeName};
    use crate::replication::writer;

    #[test]
    fn the_fuzzing_corpus_passes() {
        let node: NodeName = "node-d".parse().unwrap();
        let verify = VerifyRequest { repair: true, trust: Some("node-b".to_owned()), rate: Some(1 << 20) };
        let zone = Some("eu-1a".parse().unwrap());
        let new = NewMember { node: node.clone(), address: "10.0.0.4:7420".to_owned(), zone };
        for (name, request) in [
            ("status", OwnerRequest::Status),
            ("add-member", OwnerRequest::AddMember(new)),
            ("remove-member", OwnerRequest::RemoveMember { node }),
            ("verify", OwnerRequest::Verify(verify)),
        ] {
            assert_line(name, &[request]);
        }
        assert_line("done", &[Outcome::Done]);
        assert_line("failed", &[Outcome::Failed { reason: "no".to_owned() }]);
        let nodes = |nodes: &[&str]| nodes.iter().map(|&node| node.to_owned()).collect::<Vec<_>>();
        assert_line(
            "verification",
            &[
                VerifyLine::Progress { position: 4096, size: 1 << 20 },
                VerifyLine::Found(FoundRange {
                    offset: 4096,
                    len: 512,
                    right: nodes(&["a"]),
                    differing: nodes(&["b"]),
                    unreadable: nodes(&["c"]),
                    outcome: writer::Outcome::Healed,
                }),
                VerifyLine::Outcome(VerifyOutcome {
                    size: 1 << 20,
                    healed_bytes: 512,
                    left_bytes: 0,
                    untold: 0,
                    members: vec![Compared { node: "a".to_owned(), bytes: 1 << 20 }],
                }),
            ],
        );
        assert_line("verification-refused", &[VerifyLine::Refused("the volume is not served".to_owned())]);
        assert!(corpus::taken("owner", hear_hostile) >= 8);
    }

    fn assert_line(name: &str, lines: &[impl Serialize]) {
        let lines = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n");
        corpus::assert_seed("owner", name, lines.collect::<String>().as_bytes());
    }
}
