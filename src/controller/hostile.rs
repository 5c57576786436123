//! Anything in the place of what an API server asks of the controller, or answers it.

use std::time::{Duration, SystemTime};

use super::{admission, certificate};
use crate::kubernetes::request;

/// Reads `bytes` as a review, as the controller's own Secret, and as an answer that is none: the entry of the fuzz
/// target `cluster`. Whether one of them is taken.
///
/// # Panics
///
/// When a claim that was answered would be answered otherwise again; when what a person reads is no line.
pub fn review_hostile(bytes: &[u8]) -> bool {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    request::refuse_hostile(bytes) | admission::answer_hostile(bytes) | certificate::read_hostile(bytes, now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus;

    #[test]
    fn the_fuzzing_corpus_passes() {
        for (name, review) in admission::seeds() {
            corpus::assert_seed("cluster", name, review.to_string().as_bytes());
        }
        for (name, head) in [("busy", "\u{1}\u{ad}7"), ("missing", "\u{1}\u{94}")] {
            let mut answer: Vec<u8> = head.chars().map(|c| c as u8).collect();
            answer.extend(br#"
{"kind":"Status","apiVersion":"v1","status":"Failure","message":"it is so","details":{"retryAfterSeconds":3},"code":0}"#);
            corpus::assert_seed("cluster", name, &answer);
        }
        assert!(corpus::taken("cluster", review_hostile) >= 8);
    }
}
