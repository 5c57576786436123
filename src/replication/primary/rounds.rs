//! Rounds in which the copies are compared, for whoever asks: one at a time.
//!
//! Someone who asks goes before a scrub, which goes on afterwards where it was.

use std::sync::Arc;
use std::time::Duration;

use super::request::{Compared, FoundRange, VerifyOutcome};
use super::shared::{Shared, State};
use crate::replication::view::MemberIndex;
use crate::replication::writer::{Finding, MemberSet, NoRound, Outcome, Round, RoundPlan};

/// What the round under way has come to, behind the writer's lock.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    /// Whose it is.
    owner: Option<Owner>,
    number: Option<u64>,
    found: Vec<Finding>,
    untold: u64,
    ended: Option<Box<Round>>,
    /// How many wait for a scrub to make way.
    waiting: usize,
}

/// On whose behalf copies are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// Someone who has asked.
    Client,
    /// The process itself.
    Scrub,
}

/// What becomes known on the way.
pub(super) enum Event {
    /// Everything before this byte has been looked at.
    Position(u64),
    /// Something is, or was, wrong.
    Found(FoundRange),
}

/// How a round ended.
#[derive(Debug)]
pub(super) enum End {
    /// At the end of the volume.
    Done(VerifyOutcome),
    /// Nobody listens any more, the process ends, or someone else goes first: everything before this byte has been
    /// looked at.
    GivenUp(u64),
}

impl Rounds {
    /// The writer has found something.
    pub(super) fn found(&mut self, finding: &Finding) {
        if finding.round.is_none() || finding.round != self.number {
            return;
        }
        if let Some(last) = self.found.last_mut().filter(|last| continues(last, finding)) {
            last.len += finding.len;
        } else if self.found.len() < FOUND_MAX {
            self.found.push(*finding);
        } else {
            self.untold += 1;
        }
    }

    /// The writer has ended a round.
    pub(super) fn ended(&mut self, round: Box<Round>) {
        if Some(round.number) == self.number {
            self.ended = Some(round);
        }
    }
}

/// Has the copies compared, and says what becomes known as long as `tell` wants to hear more.
///
/// # Errors
///
/// [`NoRound`] says why they cannot be compared now.
pub(super) fn run(
    shared: &Arc<Shared>,
    owner: Owner,
    plan: RoundPlan,
    mut tell: impl FnMut(Event) -> bool,
) -> Result<End, NoRound> {
    let number = begin(shared, owner, plan)?;
    loop {
        let is_news = |state: &State| state.rounds.ended.is_some() || shared.is_closing();
        let stopped = shared.wait(LOOK, is_news).is_err();
        let (found, ended, position, makes_way) = shared.with_writer(None, |state, _| {
            let found = std::mem::take(&mut state.rounds.found);
            let found: Vec<FoundRange> = found.iter().map(|finding| named(state, finding)).collect();
            let position = state.writer.round().map_or(plan.from, |round| round.position);
            let makes_way = owner == Owner::Scrub && state.rounds.waiting > 0;
            (found, state.rounds.ended.take(), position, makes_way)
        });
        let mut is_heard = true;
        for found in found {
            log::warn!("{}", sentence(&found));
            is_heard &= tell(Event::Found(found));
        }
        if let Some(round) = ended {
            let outcome = shared.with_writer(None, |state, _| {
                let outcome = outcome(state, &round);
                state.rounds = Rounds { waiting: state.rounds.waiting, ..Rounds::default() };
                outcome
            });
            shared.notify();
            return Ok(End::Done(outcome));
        }
        if !is_heard || !tell(Event::Position(position)) || shared.is_closing() || stopped || makes_way {
            shared.with_writer(None, |state, now| {
                state.writer.end_verify(now, number);
                state.rounds = Rounds { waiting: state.rounds.waiting, ..Rounds::default() };
            });
            shared.notify();
            return Ok(End::GivenUp(position));
        }
    }
}

fn begin(shared: &Arc<Shared>, owner: Owner, plan: RoundPlan) -> Result<u64, NoRound> {
    let begin = |state: &mut State, now| {
        if state.rounds.owner.is_some() || owner == Owner::Scrub && state.rounds.waiting > 0 {
            return Err(NoRound::Busy);
        }
        let number = state.writer.verify(now, plan)?;
        state.rounds.owner = Some(owner);
        state.rounds.number = Some(number);
        Ok(number)
    };
    let first = shared.with_writer(None, |state, now| {
        let begun = begin(state, now);
        let waits = begun == Err(NoRound::Busy) && owner == Owner::Client && state.rounds.owner == Some(Owner::Scrub);
        state.rounds.waiting += usize::from(waits);
        if waits { None } else { Some(begun) }
    });
    if let Some(begun) = first {
        return begun;
    }
    let _ = shared.wait(WAY_TIME_MAX, |state| state.rounds.owner.is_none());
    shared.with_writer(None, |state, now| {
        state.rounds.waiting -= 1;
        begin(state, now)
    })
}

fn outcome(state: &State, round: &Round) -> VerifyOutcome {
    let view = state.writer.view();
    let places = (0u8..).map(MemberIndex).zip(&view.members);
    let members = places.filter(|&(place, _)| !view.is_retired(place)).map(|(place, member)| Compared {
        node: member.node.to_string(),
        bytes: round.compared.get(&place).copied().unwrap_or_default(),
    });
    VerifyOutcome {
        size: state.writer.regions().size_bytes(),
        healed_bytes: round.healed_bytes,
        left_bytes: round.left_bytes,
        untold: state.rounds.untold,
        members: members.collect(),
    }
}

/// A finding with the names of nodes.
pub(super) fn named(state: &State, finding: &Finding) -> FoundRange {
    let names = |members: MemberSet| members.iter().map(|member| state.node(member).to_string()).collect();
    FoundRange {
        offset: finding.offset,
        len: finding.len,
        right: names(finding.right),
        differing: names(finding.differing),
        unreadable: names(finding.unreadable),
        outcome: finding.outcome,
    }
}

/// Whether one finding is of the bytes behind those of another, and the same in everything else.
fn continues(last: &Finding, finding: &Finding) -> bool {
    last.offset + last.len == finding.offset && Finding { offset: last.offset, len: last.len, ..*finding } == *last
}

/// What people read of it.
pub fn sentence(found: &FoundRange) -> String {
    let FoundRange { offset, len, right, differing, unreadable, outcome } = found;
    let mut wrong = Vec::new();
    if !differing.is_empty() {
        let from = if right.is_empty() { "one another".to_owned() } else { right.join(", ") };
        wrong.push(format!("{} differs from {from}", differing.join(", ")));
    }
    if !unreadable.is_empty() {
        wrong.push(format!("{} cannot be read", unreadable.join(", ")));
    }
    let what = match outcome {
        Outcome::Reported => "left as it is",
        Outcome::Healed => "healed",
        Outcome::Undecided => "left as it is: no more than half of the copies agree",
        Outcome::Failed => "not healed: it is wrong again after it was written",
    };
    format!("{len} bytes at {offset}: {}: {what}", wrong.join("; "))
}

/// How often those who ask hear how far it is.
const LOOK: Duration = Duration::from_millis(250);
/// For so long someone waits for a scrub to make way.
const WAY_TIME_MAX: Duration = Duration::from_secs(5);
/// Findings that wait to be told.
const FOUND_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(offset: u64, outcome: Outcome) -> Finding {
        Finding {
            round: Some(1),
            offset,
            len: 4096,
            right: MemberSet::only(MemberIndex(0)),
            differing: MemberSet::only(MemberIndex(1)),
            unreadable: MemberSet::EMPTY,
            outcome,
        }
    }

    #[test]
    fn neighbours_are_told_as_one_and_strangers_not_at_all() {
        let mut rounds = Rounds { number: Some(1), ..Rounds::default() };
        for offset in [0, 4096, 8192] {
            rounds.found(&finding(offset, Outcome::Reported));
        }
        rounds.found(&finding(12288, Outcome::Healed));
        rounds.found(&finding(20480, Outcome::Healed));
        rounds.found(&Finding { round: Some(2), ..finding(24576, Outcome::Healed) });
        rounds.found(&Finding { round: None, ..finding(24576, Outcome::Healed) });
        let told: Vec<(u64, u64)> = rounds.found.iter().map(|finding| (finding.offset, finding.len)).collect();
        assert_eq!(told, [(0, 12288), (12288, 4096), (20480, 4096)]);
    }

    #[test]
    fn people_read_who_differs_from_whom() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<String>>();
        let found = |right: &[&str], outcome| FoundRange {
            offset: 8192,
            len: 4096,
            right: names(right),
            differing: names(&["node-c"]),
            unreadable: names(&[]),
            outcome,
        };
        assert_eq!(
            sentence(&found(&["node-a", "node-b"], Outcome::Healed)),
            "4096 bytes at 8192: node-c differs from node-a, node-b: healed"
        );
        let none = FoundRange { differing: names(&["node-a", "node-b"]), ..found(&[], Outcome::Undecided) };
        assert!(sentence(&none).contains("node-a, node-b differs from one another: left as it is"), "{none:?}");
        let unreadable =
            FoundRange { differing: names(&[]), unreadable: names(&["node-b"]), ..found(&["node-a"], Outcome::Healed) };
        assert_eq!(sentence(&unreadable), "4096 bytes at 8192: node-b cannot be read: healed");
    }
}
