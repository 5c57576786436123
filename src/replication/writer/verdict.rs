//! Which copies are right, by the digests of what they store.

use super::MemberSet;
use crate::replication::message::Digest;
use crate::replication::view::MemberIndex;

/// Who is right: the one that is trusted and those that agree with it, else more than half of those that can be read.
pub fn weigh(answers: &[(MemberIndex, Option<Digest>)], trusted: Option<MemberIndex>) -> Verdict {
    let with =
        |wanted: Option<Digest>| answers.iter().filter(move |(_, digest)| *digest == wanted).map(|(member, _)| *member);
    let unreadable: MemberSet = with(None).collect();
    let readable = answers.iter().map(|(member, _)| *member).collect::<MemberSet>().without(unreadable);
    let trusted = answers.iter().find(|(member, digest)| Some(*member) == trusted && digest.is_some());
    let groups = answers.iter().filter(|(_, digest)| digest.is_some()).map(|(_, digest)| with(*digest).collect());
    let right = match trusted {
        Some((_, digest)) => with(*digest).collect(),
        None => groups.into_iter().find(|group: &MemberSet| group.len() * 2 > readable.len()).unwrap_or_default(),
    };
    Verdict { readable, unreadable, right }
}

/// What digests say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub readable: MemberSet,
    pub unreadable: MemberSet,
    pub right: MemberSet,
}

impl Verdict {
    /// Whether every copy can be read, and all say the same.
    pub fn is_equal(self) -> bool {
        self.unreadable.is_empty() && self.right == self.readable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(members: &[u8]) -> MemberSet {
        members.iter().map(|&member| MemberIndex(member)).collect()
    }

    fn weighed(digests: &[Option<u8>], trusted: Option<u8>) -> Verdict {
        let answers: Vec<_> =
            (0u8..).zip(digests).map(|(member, digest)| (MemberIndex(member), digest.map(|byte| [byte; 32]))).collect();
        weigh(&answers, trusted.map(MemberIndex))
    }

    #[test]
    fn more_than_half_of_those_that_can_be_read_are_right() {
        for (digests, right) in [
            (&[Some(1), Some(1)][..], &[0, 1][..]),
            (&[Some(1), Some(2)], &[]),
            (&[Some(1), Some(2), Some(2)], &[1, 2]),
            (&[Some(1), Some(2), Some(3)], &[]),
            (&[Some(1), None], &[0]),
            (&[Some(1), Some(2), None], &[]),
            (&[Some(1), Some(1), Some(2), Some(2)], &[]),
            (&[Some(1), Some(1), Some(2), None], &[0, 1]),
            (&[None, None], &[]),
            (&[None, None, Some(7)], &[2]),
        ] {
            let verdict = weighed(digests, None);
            assert_eq!(verdict.right, set(right), "{digests:?}");
            let equal = digests.iter().all(|digest| digest.is_some() && *digest == digests[0]);
            assert_eq!(verdict.is_equal(), equal, "{digests:?}");
        }
    }

    #[test]
    fn whom_the_operator_trusts_is_right_where_it_can_be_read() {
        assert_eq!(weighed(&[Some(1), Some(2), Some(2)], Some(0)).right, set(&[0]));
        assert_eq!(weighed(&[Some(1), Some(2)], Some(1)).right, set(&[1]));
        assert_eq!(weighed(&[None, Some(2), Some(2), Some(1)], Some(0)).right, set(&[1, 2]));
        assert_eq!(weighed(&[None, Some(2), Some(1)], Some(0)).right, set(&[]));
        let lone = weighed(&[Some(1), Some(2), None], Some(0));
        assert_eq!((lone.readable, lone.unreadable), (set(&[0, 1]), set(&[2])));
    }
}
