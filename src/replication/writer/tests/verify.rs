//! Comparing and healing, one rule at a time.

use super::*;

const PLAN: RoundPlan = RoundPlan { from: 0, repair: Repair::Majority, rate: u64::MAX };

fn set(members: &[u8]) -> MemberSet {
    members.iter().map(|&member| MemberIndex(member)).collect()
}

impl Bench {
    fn verify(&mut self, plan: RoundPlan) -> Result<u64, NoRound> {
        let begun = self.writer.verify(Time(self.now), plan);
        self.run();
        begun
    }

    fn findings(&self) -> Vec<Finding> {
        let found = self.seen.iter().filter_map(|action| match action {
            Action::Found(finding) => Some(*finding),
            _ => None,
        });
        found.collect()
    }

    fn round_ended(&self) -> Option<&Round> {
        self.seen.iter().find_map(|action| match action {
            Action::RoundEnded(round) => Some(&**round),
            _ => None,
        })
    }

    /// Who was sent a write that heals, and where.
    fn healing(&self) -> Vec<(u8, u64, u32, bool)> {
        let healing = self.seen.iter().filter_map(|action| match action {
            Action::Send {
                member,
                request: Request::Write { offset, len, durable, .. },
                payload: Payload::Copy(_),
                ..
            } => Some((member.0, *offset, *len, *durable)),
            _ => None,
        });
        healing.collect()
    }
}

#[test]
fn copies_that_are_equal_are_found_equal() {
    let mut bench = Bench::serving(&[1, 1, 1], false);
    assert_eq!(bench.verify(PLAN), Ok(1));
    let round = bench.round_ended().unwrap();
    assert_eq!((round.position, round.left_bytes, round.healed_bytes), (4 * REGION_BYTES, 0, 0));
    assert_eq!(round.compared, (0..3).map(|member| (MemberIndex(member), 4 * REGION_BYTES)).collect());
    assert_eq!((bench.findings(), bench.healing()), (vec![], vec![]));
    assert_eq!(bench.writer.round(), None);
}

#[test]
fn a_block_that_differs_is_healed_from_what_most_have() {
    let mut bench = Bench::serving(&[1, 1, 1], false);
    let at = REGION_BYTES + 512;
    bench.wrong = vec![(1, at, Wrong::Differs(7)), (2, 3 * REGION_BYTES, Wrong::Unreadable)];
    bench.verify(PLAN).unwrap();
    let finding = |offset, right: &[u8], differing: &[u8], unreadable: &[u8]| Finding {
        round: Some(1),
        offset,
        len: 512,
        right: set(right),
        differing: set(differing),
        unreadable: set(unreadable),
        outcome: Outcome::Healed,
    };
    let expected = [finding(at, &[0, 2], &[1], &[]), finding(3 * REGION_BYTES, &[0, 1], &[], &[2])];
    assert_eq!(bench.findings(), expected);
    assert_eq!(bench.healing(), [(1, at, 512, true), (2, 3 * REGION_BYTES, 512, true)], "those alone, durably");
    let round = bench.round_ended().unwrap();
    assert_eq!((round.healed_bytes, round.left_bytes), (1024, 0));
    assert!(round.compared.values().all(|&bytes| bytes == 4 * REGION_BYTES), "{round:?}");
    // The intents of what was written are cleared like those of any write.
    bench.pass(2 * SETTLE_US);
    assert!(bench.writer.is_settled(), "{:?}", bench.writer.describe());
}

#[test]
fn nothing_is_changed_that_was_not_asked_for() {
    let mut bench = Bench::serving(&[1, 1, 1], false);
    bench.wrong = vec![(1, 512, Wrong::Differs(7))];
    bench.verify(RoundPlan { repair: Repair::None, ..PLAN }).unwrap();
    assert_eq!(bench.findings().iter().map(|finding| finding.outcome).collect::<Vec<_>>(), [Outcome::Reported]);
    assert_eq!(bench.round_ended().map(|round| round.left_bytes), Some(512));
    assert_eq!(bench.healing(), []);
}

#[test]
fn where_nobody_is_right_nothing_is_changed_unless_somebody_is_trusted() {
    let mut bench = Bench::serving(&[1, 1], false);
    bench.wrong = vec![(1, 512, Wrong::Differs(7))];
    bench.verify(PLAN).unwrap();
    let found = bench.findings();
    assert_eq!((found.len(), found[0].outcome), (1, Outcome::Undecided));
    assert_eq!((found[0].right, found[0].differing), (set(&[]), set(&[0, 1])));
    assert_eq!(bench.healing(), []);

    bench.seen.clear();
    assert_eq!(bench.verify(RoundPlan { repair: Repair::Trust(MemberIndex(0)), ..PLAN }), Ok(2));
    assert_eq!(bench.findings().iter().map(|finding| finding.outcome).collect::<Vec<_>>(), [Outcome::Healed]);
    assert_eq!(bench.healing(), [(1, 512, 512, true)]);
}

#[test]
fn the_guest_waits_for_a_piece_and_a_piece_for_the_guest() {
    let mut bench = Bench::serving(&[1, 1], false);
    bench.held = |request| matches!(request, Request::Digest { offset: 0, .. });
    bench.verify(PLAN).unwrap();
    bench.write(1, 0);
    assert!(!bench.sent(1), "a write goes to where copies are compared");
    bench.write(2, 1);
    assert_eq!(bench.ended(2), Some(Ok(())), "elsewhere the guest goes on");
    bench.held = |_| false;
    for (member, id) in std::mem::take(&mut bench.held_back) {
        bench.reply(member, id, Reply::DigestOf([0; 32]));
    }
    bench.run();
    assert_eq!(bench.ended(1), Some(Ok(())));
    assert!(bench.round_ended().is_some());

    bench.seen.clear();
    bench.held = |request| matches!(request, Request::Write { .. });
    bench.write(3, 2);
    bench.verify(PLAN).unwrap();
    let asked = |action: &Action| matches!(action, Action::Send { request: Request::Digest { offset, .. }, .. } if *offset == 2 * REGION_BYTES);
    assert_eq!(bench.find(asked), None, "copies are compared where the guest writes");
    bench.answer();
    assert!(bench.find(asked).is_some() && bench.round_ended().is_some());
    assert_eq!(bench.findings(), []);
}

#[test]
fn the_guest_does_not_wait_for_a_copy_that_is_away() {
    let mut bench = Bench::serving(&[1, 1, 1], false);
    bench.held = |request| matches!(request, Request::Digest { .. });
    bench.verify(PLAN).unwrap();
    bench.deaf = vec![1];
    let session = bench.sessions[1];
    bench.writer.disconnected(Time(bench.now), MemberIndex(1), session, None);
    bench.run();
    bench.submit(1, Operation::Read { offset: 0, len: 512 });
    assert_eq!(bench.ended(1), Some(Ok(())), "a read waits for a copy that does not answer");
    // It leaves, and the others are compared without it.
    bench.held = |_| false;
    for (member, id) in std::mem::take(&mut bench.held_back) {
        bench.reply(member, id, Reply::DigestOf([9; 32]));
    }
    bench.pass(2 * TIMEOUT_US);
    let round = bench.round_ended().unwrap();
    assert_eq!(round.compared, [(MemberIndex(0), 4 * REGION_BYTES), (MemberIndex(2), 4 * REGION_BYTES)].into());
    assert_eq!(bench.findings(), [], "old answers count");
}

#[test]
fn one_round_at_a_time_and_none_once_it_is_given_up() {
    let mut bench = Bench::serving(&[1, 1], false);
    bench.held = |request| matches!(request, Request::Digest { .. });
    assert_eq!(bench.verify(PLAN), Ok(1));
    assert_eq!(bench.verify(PLAN), Err(NoRound::Busy));
    bench.writer.end_verify(Time(bench.now), 1);
    bench.run();
    bench.write(1, 0);
    assert_eq!(bench.ended(1), Some(Ok(())), "a range is held for nobody");
    let trusted = RoundPlan { repair: Repair::Trust(MemberIndex(5)), ..PLAN };
    assert_eq!(bench.verify(trusted), Err(NoRound::NotInSync));
    bench.held = |_| false;
    assert_eq!(bench.verify(PLAN), Ok(2));
    for (member, id) in std::mem::take(&mut bench.held_back) {
        bench.reply(member, id, Reply::DigestOf([1; 32]));
    }
    bench.run();
    assert_eq!(bench.round_ended().map(|round| round.number), Some(2));
    assert_eq!(bench.findings(), []);
}

#[test]
fn a_rate_is_kept() {
    let mut bench = Bench::serving(&[1, 1], false);
    bench.verify(RoundPlan { rate: REGION_BYTES, ..PLAN }).unwrap();
    bench.pass(1_500_000);
    assert!(bench.round_ended().is_none(), "four pieces at one a second have taken less than two");
    bench.pass(4_000_000);
    assert!(bench.round_ended().is_some(), "{:?}", bench.writer.round());
}

#[test]
fn what_a_copy_cannot_read_comes_from_another_and_is_written_again() {
    let mut bench = Bench::serving(&[1, 1, 1], false);
    bench.wrong = vec![(0, 1024, Wrong::Unreadable)];
    bench.submit(1, Operation::Read { offset: 512, len: 2048 });
    assert_eq!(bench.ended(1), Some(Ok(())));
    let noted = Action::Unreadable { member: MemberIndex(0), offset: 512, len: 2048, errno: 5 };
    assert!(bench.seen.contains(&noted), "{:?}", bench.seen);
    assert_eq!(bench.healing(), [(0, 1024, 512, true)], "the block that cannot be read, and no other");
    let found = bench.findings();
    assert_eq!((found.len(), found[0].round, found[0].outcome), (1, None, Outcome::Healed));
    assert_eq!(found[0].unreadable, set(&[0]));
    bench.pass(2 * SETTLE_US);
    assert!(bench.writer.is_settled());
}

#[test]
fn a_read_that_no_copy_can_do_is_done_when_each_is_healed_from_another() {
    let mut bench = Bench::serving(&[1, 1], false);
    bench.wrong = vec![(0, 0, Wrong::Unreadable), (1, 1024, Wrong::Unreadable)];
    bench.submit(1, Operation::Read { offset: 0, len: 2048 });
    assert_eq!(bench.ended(1), Some(Ok(())));
    let mut healed = bench.healing();
    healed.sort_unstable();
    assert_eq!(healed, [(0, 0, 512, true), (1, 1024, 512, true)]);

    // But what nobody has is an error.
    bench.wrong = vec![(0, 512, Wrong::Unreadable), (1, 512, Wrong::Unreadable)];
    bench.submit(2, Operation::Read { offset: 0, len: 2048 });
    assert_eq!(bench.ended(2), Some(Err(5)));
    bench.submit(3, Operation::Read { offset: 1024, len: 512 });
    assert_eq!(bench.ended(3), Some(Ok(())));
}

#[test]
fn what_cannot_be_read_is_not_filled_with_what_the_others_do_not_agree_on() {
    let mut bench = Bench::serving(&[1, 1, 1], false);
    bench.wrong = vec![(0, 0, Wrong::Unreadable), (1, 0, Wrong::Differs(3))];
    bench.submit(1, Operation::Read { offset: 0, len: 512 });
    assert_eq!(bench.ended(1), Some(Ok(())));
    assert_eq!(bench.healing(), []);
    assert_eq!(bench.findings().iter().map(|finding| finding.outcome).collect::<Vec<_>>(), [Outcome::Undecided]);
    // Nor is that looked at each time that it is read.
    bench.submit(2, Operation::Read { offset: 0, len: 512 });
    assert_eq!((bench.ended(2), bench.findings().len()), (Some(Ok(())), 1));
    bench.pass(61_000_000);
    bench.submit(3, Operation::Read { offset: 0, len: 512 });
    assert_eq!((bench.ended(3), bench.findings().len()), (Some(Ok(())), 2));
}

#[test]
fn what_differs_where_another_could_not_be_read_is_left_to_a_round() {
    let mut bench = Bench::serving(&[1, 1, 1, 1], false);
    bench.wrong = vec![(0, 0, Wrong::Unreadable), (1, 0, Wrong::Differs(3))];
    bench.submit(1, Operation::Read { offset: 0, len: 512 });
    assert_eq!(bench.healing(), [(0, 0, 512, true)]);
    let found = bench.findings();
    assert_eq!((found.len(), found[0].outcome, found[0].wrong()), (1, Outcome::Healed, set(&[0])));
    bench.verify(PLAN).unwrap();
    assert_eq!(bench.healing(), [(0, 0, 512, true), (1, 0, 512, true)]);
}

#[test]
fn a_copy_that_can_be_read_after_all_is_let_be() {
    let mut bench = Bench::serving(&[1, 1], false);
    bench.held = |request| matches!(request, Request::Digest { .. });
    let answer = |bench: &mut Bench, failing: bool| {
        for (member, id) in std::mem::take(&mut bench.held_back) {
            let fails = failing && member == MemberIndex(1);
            bench.reply(member, id, if fails { Reply::Failed(5) } else { Reply::DigestOf([0; 32]) });
        }
        bench.run();
    };
    bench.verify(PLAN).unwrap();
    // Whole pieces, and the blocks of one the first time that they are asked for.
    answer(&mut bench, true);
    answer(&mut bench, true);
    for _ in 0..200 {
        answer(&mut bench, false);
    }
    let round = bench.round_ended().unwrap();
    assert!(round.compared.values().all(|&bytes| bytes == 4 * REGION_BYTES), "{round:?}");
    assert_eq!((bench.findings(), bench.healing()), (vec![], vec![]));
}

#[test]
fn a_copy_that_cannot_be_written_either_is_lost() {
    let mut bench = Bench::serving(&[1, 1, 1], false);
    bench.wrong = vec![(0, 0, Wrong::Unreadable)];
    bench.failing = |request| matches!(request, Request::Write { .. });
    bench.submit(1, Operation::Read { offset: 0, len: 512 });
    assert_eq!(bench.ended(1), Some(Ok(())));
    let lost = |action: &Action| matches!(action, Action::Lost(MemberIndex(0), Loss::Failed(5)));
    assert!(bench.find(lost).is_some());
}

#[test]
fn nothing_is_healed_in_a_region_that_copies_are_told_to_settle() {
    let mut bench = Bench::serving(&[1, 1, 1], false);
    bench.write(1, 0);
    bench.wrong = vec![(1, 512, Wrong::Differs(7))];
    bench.held = |request| matches!(request, Request::Read { .. });
    bench.verify(PLAN).unwrap();
    let (source, read) = bench.held_back.pop().expect("what is right is being read");

    // Meanwhile the region is found quiet.
    bench.held = |request| matches!(request, Request::Read { .. } | Request::Settle(_));
    bench.pass(SETTLE_US);
    let settling = std::mem::take(&mut bench.held_back);
    assert_eq!(settling.len(), 3, "every copy is told");
    bench.reply(source, read, Reply::Data);
    bench.run();
    assert_eq!(bench.healing(), [], "a copy that is told late takes the intent for one of before");

    bench.held = |_| false;
    let again = std::mem::take(&mut bench.held_back);
    for (member, id) in settling {
        bench.reply(member, id, Reply::Done);
    }
    for (member, id) in again {
        bench.reply(member, id, Reply::Data);
    }
    bench.run();
    assert_eq!(bench.healing(), [(1, 512, 512, true)]);
    let round = bench.round_ended().unwrap();
    assert_eq!((round.healed_bytes, round.left_bytes), (512, 0));
}
