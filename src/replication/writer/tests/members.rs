//! Members that are added and removed.

use super::*;
use crate::replication::view::NewMember;

impl Bench {
    fn serving_in_mode(lives: &[u128], failure_mode: FailureMode) -> Self {
        let mut bench = Self::claim_in_mode(lives, false, failure_mode);
        bench.run();
        bench
    }

    fn serving_with_a_copy(lives: &[u128]) -> Self {
        let mut bench = Self::claim_with(Some(MemberIndex(0)), lives, false, FailureMode::AlwaysOn);
        bench.run();
        bench
    }

    fn change(&mut self, token: u64, edit: MemberEdit) {
        self.writer.change_members(Time(self.now), token, edit);
        self.run();
    }

    /// Adds a node, whose copy is in life `life` and has no rows.
    fn add(&mut self, token: u64, node: &str, life: u128) {
        let member = MemberIndex(self.lives.len() as u8);
        self.lives.push(life);
        self.sessions.push(0);
        self.other_rows.insert(member.0, vec![Row::default(); 4]);
        self.change(token, added(node));
    }

    fn remove(&mut self, token: u64, node: &str) {
        self.change(token, MemberEdit::Remove { node: node.parse().unwrap() });
    }

    fn edited(&self, of: u64) -> Option<Result<(), EditRefusal>> {
        self.seen.iter().find_map(|action| match action {
            Action::Edited { token, result } if *token == of => Some(result.clone()),
            _ => None,
        })
    }

    /// How often a member was asked for something like this.
    fn asked(&self, of: u8, like: fn(&Request) -> bool) -> usize {
        let is_like = |action: &&Action| matches!(action, Action::Send { member, request, .. } if member.0 == of && like(request));
        self.seen.iter().filter(is_like).count()
    }
}

fn added(node: &str) -> MemberEdit {
    MemberEdit::Add(NewMember { node: node.parse().unwrap(), address: "node.example:1".to_owned(), zone: None })
}

fn node(name: &str) -> crate::replication::view::NodeName {
    name.parse().unwrap()
}

#[test]
fn a_fresh_member_is_sent_all_that_was_ever_written_before_it_is_in_sync() {
    let mut bench = Bench::serving(&[1], false);
    bench.add(7, "node-9", 5);
    assert_eq!(bench.edited(7), Some(Ok(())));
    bench.pass(500_000);
    let writes = bench.asked(1, |request| matches!(request, Request::Write { .. }));
    assert_eq!(writes, 4, "one for each region");
    assert_eq!(bench.swaps(), [vec![1], vec![1, ADDED], vec![1, ADDED], vec![1, 5]]);
}

#[test]
fn a_member_that_was_added_does_not_count_before_it_has_been_in_sync() {
    let mut bench = Bench::serving_in_mode(&[1, 1], FailureMode::Hard);
    bench.deaf = vec![2];
    bench.add(7, "node-9", 5);
    bench.write(1, 0);
    assert_eq!(bench.ended(1), Some(Ok(())), "nobody waits for one that cannot be reached yet");

    bench.deaf.clear();
    bench.pass(10_000_000);
    assert_eq!(bench.writer.view().in_sync().count(), 3);
    bench.deaf = vec![2];
    let session = bench.sessions[2];
    bench.writer.disconnected(Time(bench.now), MemberIndex(2), session, None);
    bench.pass(TIMEOUT_US * 2);
    bench.write(2, 0);
    assert_eq!(bench.ended(2), None, "now it counts");
}

#[test]
fn nothing_that_a_removed_member_lacks_is_acknowledged_before_the_view_without_it() {
    let mut bench = Bench::serving(&[1, 1], false);
    bench.held = |request| matches!(request, Request::Write { .. });
    bench.write(1, 0);
    let (mine, id) = bench.held_back[0];
    bench.reply(mine, id, Reply::Done);
    bench.run();
    bench.stores = false;
    bench.remove(7, "node-1");
    assert_eq!((bench.ended(1), bench.edited(7)), (None, None));

    // Not waited for once it is stored, although it has not answered.
    bench.writer.swapped(Time(bench.now), Swapped::Stored);
    bench.run();
    assert_eq!((bench.ended(1), bench.edited(7)), (Some(Ok(())), Some(Ok(()))));
    assert_eq!(bench.swaps().last().unwrap(), &[1, RETIRED]);
    bench.pass(10_000_000);
    let again = bench.seen.iter().filter(|action| matches!(action, Action::Connect { member, .. } if member.0 == 1));
    assert_eq!(again.count(), 1, "nobody calls it any more");
}

#[test]
fn nobody_reads_from_a_member_whose_removal_may_be_stored() {
    let mut bench = Bench::serving(&[1, 1], false);
    bench.stores = false;
    bench.remove(7, "node-0");
    bench.submit(1, Operation::Read { offset: 0, len: 512 });
    assert_eq!(bench.asked(0, |request| matches!(request, Request::Read { .. })), 0);
    assert_eq!(bench.ended(1), Some(Ok(())));

    // It was not: the member is as good as any.
    bench.writer.swapped(Time(bench.now), Swapped::Unavailable);
    bench.submit(2, Operation::Read { offset: 0, len: 512 });
    assert_eq!(bench.asked(0, |request| matches!(request, Request::Read { .. })), 1);
}

#[test]
fn the_last_copy_and_those_that_writes_need_stay() {
    let mut bench = Bench::serving(&[1, 1], false);
    bench.deaf = vec![1];
    let session = bench.sessions[1];
    bench.writer.disconnected(Time(bench.now), MemberIndex(1), session, None);
    // It may be lost, and is still called in sync.
    bench.remove(1, "node-0");
    assert_eq!(bench.edited(1), Some(Err(EditRefusal::LastInSync(node("node-0")))));
    bench.pass(TIMEOUT_US * 2);
    assert_eq!(bench.swaps().last().unwrap(), &[1, BEHIND]);
    bench.remove(2, "node-0");
    assert_eq!(bench.edited(2), Some(Err(EditRefusal::LastInSync(node("node-0")))));
    bench.remove(3, "node-1");
    assert_eq!(bench.edited(3), Some(Ok(())));

    let mut bench = Bench::serving_in_mode(&[1, 1, 1], FailureMode::Hard);
    bench.deaf = vec![1];
    let session = bench.sessions[1];
    bench.writer.disconnected(Time(bench.now), MemberIndex(1), session, None);
    bench.pass(TIMEOUT_US * 2);
    bench.write(1, 0);
    assert_eq!(bench.ended(1), None);
    bench.remove(1, "node-2");
    let refused = EditRefusal::TooFewInSync { node: node("node-2"), in_sync: 1, min: 2 };
    assert_eq!(bench.edited(1), Some(Err(refused)));
    bench.remove(2, "node-1");
    assert_eq!((bench.edited(2), bench.ended(1)), (Some(Ok(())), Some(Ok(()))));
}

#[test]
fn what_cannot_be_is_refused() {
    let mut bench = Bench::serving(&[1; MEMBERS_MAX], false);
    bench.change(1, added("node-0"));
    assert_eq!(bench.edited(1), Some(Err(EditRefusal::IsMember(node("node-0")))));
    bench.change(2, added("node-9"));
    assert_eq!(bench.edited(2), Some(Err(EditRefusal::TooMany)));
    bench.remove(3, "node-9");
    assert_eq!(bench.edited(3), Some(Err(EditRefusal::NotAMember(node("node-9")))));
    bench.change(4, MemberEdit::Add(NewMember { node: node("node-9"), address: "here".to_owned(), zone: None }));
    assert_eq!(bench.edited(4), Some(Err(EditRefusal::Address("here".to_owned()))));
    bench.stores = false;
    bench.remove(5, "node-1");
    bench.remove(6, "node-2");
    assert_eq!((bench.edited(5), bench.edited(6)), (None, Some(Err(EditRefusal::Busy))));
}

#[test]
fn the_copy_in_this_process_leaves_when_all_is_kept_that_no_flush_has_covered() {
    let mut bench = Bench::serving_with_a_copy(&[1, 1, 1]);
    let kept = |bench: &Bench, of: u64| {
        bench.find(|action| matches!(action, Action::Retain { token, .. } if *token == of)).is_some()
    };
    bench.write(1, 0);
    bench.held = |request| *request == Request::Flush;
    bench.remove(7, "node-0");
    bench.write(2, 1);
    bench.pass(SETTLE_US * 2);
    assert_eq!((kept(&bench, 1), kept(&bench, 2)), (false, true));
    assert_eq!((bench.edited(7), bench.swaps().len()), (None, 1), "the first write is nowhere but in caches");
    bench.answer();
    bench.pass(SETTLE_US);
    assert_eq!(bench.edited(7), Some(Ok(())));
    assert_eq!(bench.swaps().last().unwrap(), &[RETIRED, 1, 1]);

    // From then on it is as if there had never been one: what is written is kept, and survives all others' lives.
    bench.write(3, 2);
    assert!(kept(&bench, 3));
    bench.submit(4, Operation::Read { offset: 0, len: 512 });
    assert_eq!(bench.ended(4), Some(Ok(())));
    assert_eq!(bench.asked(0, |request| matches!(request, Request::Read { .. })), 0);
    let writes = |bench: &Bench, of: u8| bench.asked(of, |request| matches!(request, Request::Write { .. }));
    let before = (writes(&bench, 0), writes(&bench, 1), writes(&bench, 2));
    bench.restart(1, 8);
    bench.restart(2, 9);
    assert!(writes(&bench, 1) > before.1 && writes(&bench, 2) > before.2 && writes(&bench, 0) == before.0);
    assert!(!bench.writer.is_stopped());

    // Its place is free for whoever keeps the next copy, also for a replica on the same node.
    bench.pass(10_000_000);
    bench.change(8, added("node-0"));
    assert_eq!(bench.edited(8), Some(Ok(())));
    bench.pass(10_000_000);
    assert_eq!(bench.writer.view().in_sync().count(), 3);
}

#[test]
fn the_copy_in_this_process_stays_while_it_is_the_last_and_is_not_kept_for_when_it_stays() {
    let mut bench = Bench::serving_with_a_copy(&[1, 1]);
    bench.deaf = vec![1];
    let session = bench.sessions[1];
    bench.writer.disconnected(Time(bench.now), MemberIndex(1), session, None);
    bench.pass(TIMEOUT_US * 2);
    bench.remove(1, "node-0");
    assert_eq!(bench.edited(1), Some(Err(EditRefusal::LastInSync(node("node-0")))));
    bench.write(1, 0);
    let kept = bench.find(|action| matches!(action, Action::Retain { .. }));
    assert_eq!((bench.ended(1), kept), (Some(Ok(())), None));
}

#[test]
fn a_member_that_is_only_in_another_zone_stays_in_sync() {
    let mut bench = Bench::serving(&[1, 1], false);
    let address = bench.writer.view().members[1].address.clone();
    let zone =
        |name: &str| NewMember { node: node("node-1"), address: address.clone(), zone: Some(name.parse().unwrap()) };
    bench.change(1, MemberEdit::Add(zone("a")));
    assert_eq!(bench.edited(1), Some(Ok(())));
    let view = bench.writer.view();
    assert_eq!((view.members[1].zone.clone(), view.in_sync().count()), (zone("a").zone, 2));
    bench.change(2, MemberEdit::Add(zone("a")));
    assert_eq!(bench.edited(2), Some(Err(EditRefusal::IsMember(node("node-1")))), "there is nothing to change");
    bench.change(3, MemberEdit::Add(NewMember { address: "elsewhere:1".to_owned(), ..zone("b") }));
    assert_eq!(bench.edited(3), Some(Err(EditRefusal::IsMember(node("node-1")))), "it is reached as before");
}

#[test]
fn a_place_goes_to_whoever_had_it_or_to_the_next() {
    let mut bench = Bench::serving(&[1, 1, 1], false);
    bench.remove(1, "node-1");
    bench.remove(2, "node-2");
    let session = bench.sessions[2];
    bench.change(3, added("node-2"));
    assert_eq!(bench.swaps().last().unwrap(), &[1, RETIRED, ADDED]);
    bench.pass(500_000);
    assert!(bench.sessions[2] > session, "nothing of its last session is taken for something of this one");
    bench.change(4, added("node-9"));
    let view = bench.writer.view();
    assert_eq!(view.members[1].node, node("node-9"));
    assert_eq!((view.members.len(), view.present().count()), (3, 3));
}

#[test]
fn a_claim_goes_on_with_the_members_that_it_finds() {
    let mut bench = Bench::claim(&[1, 1], false);
    bench.stores = false;
    bench.run();
    let mut actual = bench.writer.view().clone();
    actual.number = ViewNumber(2);
    actual.members[1].state = MemberState::Retired;
    actual.members.push(Member {
        node: node("node-9"),
        address: "node.example:1".to_owned(),
        zone: None,
        state: MemberState::Added,
    });
    bench.sessions.push(0);
    bench.lives.push(5);
    bench.stores = true;
    bench.writer.swapped(Time(0), Swapped::Conflict(Box::new(actual)));
    bench.run();
    bench.pass(500_000);
    assert!(bench.find(|action| *action == Action::Serve).is_some());
    assert_eq!(bench.find(|action| matches!(action, Action::Connect { member, .. } if member.0 == 1)), None);
    assert_eq!(bench.swaps().last().unwrap(), &[1, RETIRED, 5]);
}

#[test]
fn a_conflict_may_tell_of_a_view_that_was_replaced_since() {
    let mut bench = Bench::claim(&[1, 1], false);
    bench.stores = false;
    bench.run();
    let view = |number, writer| View { number: ViewNumber(number), writer, ..bench.writer.view().clone() };
    let (second, fifth) = (view(2, None), view(5, None));
    let other = WriterId { node: "other".parse().unwrap(), attachment: Uuid::from_u128(7) };
    let replaced = view(7, Some(other.clone()));
    for (actual, claimed) in [(second, 3), (fifth, 6)] {
        bench.writer.swapped(Time(0), Swapped::Conflict(Box::new(actual)));
        bench.run();
        let swap = |action: &Action| matches!(action, Action::Swap { current, next } if (current.0, next.number.0) == (claimed - 1, claimed));
        assert!(bench.find(swap).is_some(), "what was read is claimed as any view: {:?}", bench.seen);
        assert_eq!(bench.find(|action| matches!(action, Action::Connect { .. })), None, "it is not claimed yet");
    }
    bench.writer.swapped(Time(0), Swapped::Conflict(Box::new(replaced)));
    bench.run();
    assert!(bench.seen.contains(&Action::Stop(StopReason::Replaced(Some(other)))), "{:?}", bench.seen);
}

#[test]
fn nothing_is_compared_yet_of_who_takes_the_place_of_another() {
    let mut bench = Bench::serving(&[1, 1, 1], false);
    let plan = RoundPlan { from: 0, repair: Repair::Majority, rate: REGION_BYTES };
    bench.writer.verify(Time(bench.now), plan).unwrap();
    bench.pass(1_500_000);
    let compared = bench.writer.round().expect("it takes seconds").compared;
    assert!(compared.contains_key(&MemberIndex(2)), "{compared:?}");
    bench.deaf = vec![2];
    bench.remove(1, "node-2");
    bench.change(2, added("node-9"));
    assert_eq!(bench.writer.view().members[2].node, node("node-9"));
    bench.pass(5_000_000);
    let round = bench.seen.iter().find_map(|action| match action {
        Action::RoundEnded(round) => Some(round),
        _ => None,
    });
    let compared = &round.expect("all the others are here").compared;
    assert_eq!(*compared, [0, 1].map(|member| (MemberIndex(member), 4 * REGION_BYTES)).into());
}
