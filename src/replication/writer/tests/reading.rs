//! Whom a writer without a copy of its own reads from.

use super::*;
use crate::replication::writer::reading::MEMORY_US_MAX;

impl Bench {
    /// Copies that are all in sync, and reads that wait for their answers.
    fn reading(copies: usize) -> Bench {
        let mut bench = Bench::serving(&vec![1; copies], false);
        bench.held = |request| matches!(request, Request::Read { .. });
        bench.seen.clear();
        bench
    }

    /// Submits a read; who is asked.
    fn read(&mut self, token: u64) -> u8 {
        self.submit(token, Operation::Read { offset: 0, len: 512 });
        self.held_back.last().expect("a read is sent to somebody").0.0
    }

    /// Submits a read, which is answered when as much time has passed as its copy takes; who was asked.
    fn read_timed(&mut self, token: u64, us: impl Fn(u8) -> u64) -> u8 {
        self.seen.clear();
        let asked = self.read(token);
        self.now += us(asked);
        self.writer.tick(Time(self.now));
        self.run();
        self.answer_read(Reply::Data);
        assert_eq!(self.ended(token), Some(Ok(())));
        asked
    }

    /// Answers the read that was sent last.
    fn answer_read(&mut self, reply: Reply) {
        let (member, id) = self.held_back.pop().expect("a read waits for its answer");
        self.reply(member, id, reply);
        self.run();
    }
}

#[test]
fn reads_are_spread_over_copies_that_are_alike() {
    let mut bench = Bench::reading(3);
    let mut counts = [0; 3];
    for token in 0..30 {
        // As quick as measures differ.
        counts[usize::from(bench.read_timed(token, |member| 80 + u64::from(member)))] += 1;
    }
    assert_eq!(counts, [10; 3]);
    // And many at once.
    let mut counts = [0; 3];
    for token in 100..112 {
        counts[usize::from(bench.read(token))] += 1;
    }
    assert_eq!(counts, [4; 3]);
}

#[test]
fn a_copy_that_is_slow_is_read_from_now_and_then_only() {
    let mut bench = Bench::reading(3);
    let slow = |member: u8| if member == 1 { 20_000 } else { 100 };
    let asked: Vec<u8> = (0..300).map(|token| bench.read_timed(token, slow)).collect();
    assert_eq!(asked.iter().filter(|&&member| member == 1).count(), 1, "{asked:?}");
    assert!((100..=200).contains(&asked.iter().filter(|&&member| member == 0).count()), "{asked:?}");

    // For long nothing is heard of it, and then it is as quick as the others.
    bench.pass(MEMORY_US_MAX);
    let asked: Vec<u8> = (1000..1030).map(|token| bench.read_timed(token, |_| 100)).collect();
    assert_eq!(asked.iter().filter(|&&member| member == 1).count(), 10, "{asked:?}");
}

#[test]
fn a_copy_that_is_slow_is_tried_again_while_others_are_busy_with_reads() {
    let mut bench = Bench::reading(2);
    let slow = |member: u8| if member == 1 { 20_000 } else { 500 };
    let mut tried = Vec::new();
    for token in 0..(2 * MEMORY_US_MAX / 500) {
        if bench.read_timed(token, slow) == 1 {
            tried.push(bench.now);
        }
    }
    assert!((3..20).contains(&tried.len()), "{tried:?}");
    assert!(tried.windows(2).all(|pair| pair[1] - pair[0] <= MEMORY_US_MAX), "{tried:?}");
}

#[test]
fn a_read_that_waits_for_long_is_answered_by_another_copy() {
    let mut bench = Bench::reading(2);
    let stalled = bench.read(1);
    let (member, id) = bench.held_back.pop().unwrap();
    assert_eq!(member.0, stalled);
    bench.pass(PATIENCE_US);
    let abandoned = bench.find(|action| *action == Action::Abandon { member, lane: Lane(1), id }).unwrap();
    let asked = |action: &Action| matches!(action, Action::Send { member, request: Request::Read { .. }, .. } if member.0 != stalled);
    assert!(abandoned < bench.find(asked).unwrap(), "the late bytes might come between");
    bench.answer_read(Reply::Data);
    assert_eq!(bench.ended(1), Some(Ok(())));
    // Others do not wait for it at all.
    for token in 2..60 {
        assert_ne!(bench.read_timed(token, |_| 2_000), stalled);
    }
    // Its number is not free before the answer has come, which is worth nothing.
    assert_eq!(bench.writer.in_flight(member).0, 1);
    bench.seen.clear();
    bench.reply(member, id, Reply::Data);
    bench.run();
    assert_eq!(bench.find(|action| matches!(action, Action::Complete { .. })), None);
    assert_eq!(bench.writer.in_flight(member).0, 0);
}

#[test]
fn a_copy_that_never_answers_is_lost_although_nobody_waits_for_it() {
    let mut bench = Bench::reading(3);
    let stalled = bench.read(1);
    bench.held_back.clear();
    bench.pass(PATIENCE_US);
    bench.answer_read(Reply::Data);
    bench.pass(TIMEOUT_US);
    let lost = Action::Lost(MemberIndex(stalled), Loss::Slow);
    assert!(bench.find(|action| *action == lost).is_some());
}

#[test]
fn where_all_copies_are_slow_none_is_asked_twice() {
    let mut bench = Bench::reading(2);
    assert_ne!(bench.read(1), bench.read(2));
    bench.pass(TIMEOUT_US / 2);
    assert_eq!(bench.held_back.len(), 2);
    assert_eq!(bench.find(|action| matches!(action, Action::Abandon { .. })), None);
}

#[test]
fn what_nobody_waits_for_ends_with_its_session_or_its_lane() {
    for lane_ends in [false, true] {
        let mut bench = Bench::reading(2);
        let stalled = bench.read(1);
        let (member, id) = bench.held_back.pop().unwrap();
        bench.pass(PATIENCE_US);
        bench.answer_read(Reply::Data);
        assert_eq!(bench.writer.in_flight(member).0, 1);
        bench.seen.clear();
        if lane_ends {
            bench.writer.lane_ended(Time(bench.now), Lane(2));
            assert_eq!(bench.writer.in_flight(member).0, 1, "of another lane");
            bench.writer.lane_ended(Time(bench.now), Lane(1));
        } else {
            bench.writer.disconnected(Time(bench.now), member, bench.sessions[usize::from(stalled)], None);
        }
        assert_eq!(bench.writer.in_flight(member).0, 0);
        bench.pass(TIMEOUT_US / 2);
        let again = |action: &Action| matches!(action, Action::Send { member: to, id: of, request: Request::Read { .. }, .. } if (*to, *of) == (member, id));
        assert_eq!(bench.find(again), None);
        assert_eq!(bench.writer.view().in_sync().count(), 2);
    }
}

#[test]
fn a_copy_that_was_too_slow_is_asked_again_if_the_other_cannot_read() {
    let mut bench = Bench::reading(2);
    let stalled = bench.read(1);
    let first = bench.held_back.pop().unwrap();
    bench.pass(PATIENCE_US);
    bench.answer_read(Reply::Failed(5));
    let second = *bench.held_back.last().unwrap();
    assert!(second.0.0 == stalled && second.1 != first.1, "its first number is in use");
    bench.reply(first.0, first.1, Reply::Data);
    bench.run();
    assert_eq!(bench.ended(1), None, "that is not the answer which is waited for");
    bench.answer_read(Reply::Data);
    assert_eq!(bench.ended(1), Some(Ok(())));
}

#[test]
fn a_copy_that_cannot_read_costs_a_read_another_try_and_is_avoided() {
    let mut bench = Bench::reading(2);
    let broken = bench.read(1);
    bench.answer_read(Reply::Failed(5));
    assert_eq!(bench.ended(1), None);
    assert_ne!(bench.held_back.last().unwrap().0.0, broken);
    bench.answer_read(Reply::Data);
    assert_eq!(bench.ended(1), Some(Ok(())));
    for token in 2..30 {
        assert_ne!(bench.read_timed(token, |_| 100), broken);
    }
}

#[test]
fn a_session_that_ends_costs_a_read_another_copy_and_no_error() {
    let mut bench = Bench::reading(3);
    let asked = bench.read(1);
    bench.held_back.clear();
    bench.deaf = vec![asked];
    bench.writer.disconnected(Time(bench.now), MemberIndex(asked), bench.sessions[usize::from(asked)], None);
    bench.run();
    bench.pass(PATIENCE_US);
    assert_eq!(bench.find(|action| matches!(action, Action::Lost(..))), None, "it may come back in time");
    let (member, _) = *bench.held_back.last().expect("it was sent to another copy");
    assert_ne!(member.0, asked);
    bench.answer_read(Reply::Data);
    assert_eq!(bench.ended(1), Some(Ok(())));
}

/// A little longer than a read waits for one copy.
const PATIENCE_US: u64 = TIMEOUT_US / 8 + 20_000;
