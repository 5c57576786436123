//! Processes that serve a guest: the writer of each, and what it is told and asked for.

use std::collections::BTreeMap;

use sealblk::replication::message::Request;
use sealblk::replication::replica::ConnectionId;
use sealblk::replication::view::{MemberIndex, NodeName, View, ViewNumber, WriterId};
use sealblk::replication::writer::{self, Lane, Payload, Round, StopReason, Swapped, Time, Writer};
use uuid::Uuid;

use super::connections::Session;
use super::{Event, TICK_US, World, name_of, node_of};
use crate::disk::{Value, is_rot};
use crate::faults::{self, Sequel};
use crate::guest::Guest;

/// A process that serves a guest.
pub struct Process {
    pub node: usize,
    /// The member whose copy it holds; none from when that was removed.
    pub local: Option<MemberIndex>,
    pub id: WriterId,
    pub writer: Writer,
    pub guest: Guest,
    pub served: bool,
    /// The round that is under way, if one is, and whether it trusts a copy.
    pub(super) round: Option<(u64, bool)>,
    /// The round that ended last.
    pub ended: Option<Round>,
    /// The highest number of a view that it has heard of from the store.
    seen: ViewNumber,
    /// When it attached: from then on it may miss that a copy loses its cache.
    attached: u64,
    pub(super) sessions: BTreeMap<MemberIndex, Session>,
    pub(super) copies: BTreeMap<u64, Vec<Value>>,
    pub(super) retained: BTreeMap<u64, Vec<Value>>,
    /// Where the bytes of reads go.
    pub(super) reads: BTreeMap<(MemberIndex, u64), Payload>,
}

impl World {
    pub(super) fn attach(&mut self, on: Option<usize>) {
        let able: Vec<usize> = (0..self.nodes.len()).filter(|&node| self.nodes[node].powered).collect();
        if able.is_empty() {
            self.attach_at(self.now + 100_000);
            return;
        }
        let node = match on.filter(|node| able.contains(node)) {
            Some(node) => node,
            None => {
                let away: Vec<usize> = able.iter().copied().filter(|&node| node >= self.scenario.members).collect();
                let is_away = self.scenario.away && !away.is_empty() && self.random.chance(80);
                *self.random.pick(if is_away { &away } else { &able })
            }
        };
        // One process a node; the old one goes first.
        let old: Vec<u64> =
            self.processes.iter().filter(|(_, process)| process.node == node).map(|(&number, _)| number).collect();
        for process in old {
            self.kill_process(process);
        }
        let number = self.next_process;
        self.next_process += 1;
        let id = WriterId { node: name_of(node), attachment: Uuid::from_u128(0xa000 + u128::from(number)) };
        let regions = self.regions();
        let stored = self.store.read();
        let seen = stored.number;
        // A copy that was removed is nobody's.
        let local = stored.member_on(&name_of(node)).filter(|_| self.nodes[node].disk.is_some());
        if local.is_some() {
            self.release_copy(node, false);
            self.open_copy(node, Some(number));
        }
        let is_stale = if seen < self.store.view.number { ", which was replaced" } else { "" };
        self.note(|| format!("process {number} attaches on node {node}, view {seen}{is_stale}"));
        self.counts.stale_reads += u64::from(!is_stale.is_empty());
        let settings = self.scenario.settings.clone();
        let writer = Writer::attach(id.clone(), local, regions, settings, stored, Time(self.now));
        let Ok(writer) = writer else {
            return self.fail("a stored view cannot be attached".to_owned());
        };
        let guest = Guest::new(self.random.next());
        self.processes.insert(
            number,
            Process {
                node,
                local,
                id,
                writer,
                guest,
                served: false,
                round: None,
                ended: None,
                seen,
                attached: self.now,
                sessions: BTreeMap::new(),
                copies: BTreeMap::new(),
                retained: BTreeMap::new(),
                reads: BTreeMap::new(),
            },
        );
        self.counts.attaches += 1;
        self.at(self.now + TICK_US, Event::Tick { process: number });
        self.drive_writer(number);
    }

    /// A process ends, and its guest with it.
    pub fn kill_process(&mut self, number: u64) {
        let Some(process) = self.processes.remove(&number) else { return };
        self.note(|| format!("process {number} on node {} dies", process.node));
        let mine: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.process == number && connection.at_writer)
            .map(|(&id, _)| id)
            .collect();
        for id in mine {
            self.close_at_writer(id);
        }
        if self.nodes[process.node].holder.as_ref().is_some_and(|holder| holder.process == Some(number)) {
            self.release_copy(process.node, true);
        }
    }

    /// A guest is served from now on, and the one before it, if there was one, no more.
    pub(super) fn begin_guest(&mut self, number: u64) {
        let now = self.now;
        let Some(process) = self.processes.get_mut(&number) else { return };
        process.served = true;
        let attached = process.attached;
        let view = process.writer.view();
        let in_sync: Vec<usize> = view.in_sync().map(|member| node_of(view, member)).collect();
        let view = view.number;
        self.at(now, Event::GuestActs { process: number });
        if view < self.guest_view {
            // It has been replaced and does not know yet: what it says must go with what the newer one says.
            return;
        }
        self.guest_view = view;
        self.guest_process = number;
        // What the one before did not flush may be gone only if caches were lost since it began, and no copy is
        // left that lived through; what was not acknowledged may be gone or not.
        let oldest = in_sync.iter().map(|&node| self.nodes[node].opened).min();
        let renewed = std::mem::take(&mut self.renewed);
        let lost = renewed && self.lost_cache.is_some_and(|lost| lost >= self.guest_attached);
        self.guest_attached = attached;
        let lost = if lost { oldest } else { None };
        self.history.end_era(self.flush_began, lost, now);
        self.guest_began = now;
    }

    pub fn with_writer(&mut self, number: u64, event: impl FnOnce(&mut Writer, Time)) {
        let now = Time(self.now);
        if let Some(process) = self.processes.get_mut(&number) {
            event(&mut process.writer, now);
            self.drive_writer(number);
        }
    }

    pub fn drive_writer(&mut self, number: u64) {
        while let Some(process) = self.processes.get_mut(&number) {
            let actions = process.writer.take_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                self.do_for_writer(number, action);
            }
        }
    }

    pub(super) fn do_for_writer(&mut self, number: u64, action: writer::Action) {
        if !matches!(action, writer::Action::Send { request: Request::Ping, .. }) {
            self.note(|| format!("  writer {number}: {action:?}"));
        }
        match action {
            writer::Action::Swap { current, next } => {
                let delay = self.random.delay(2_000);
                self.trouble_a_removal(number, &next);
                self.at(self.now + delay, Event::StoreAsked { process: number, current, next, answer: true });
                if self.random.chance(self.scenario.troubled) {
                    faults::trouble_a_change(self);
                }
            }
            writer::Action::Connect { member, session, view } => self.connect(number, member, session, view),
            writer::Action::Disconnect { member } => self.disconnect(number, member),
            writer::Action::Send { member, lane, id, view, request, payload } => {
                if matches!(payload, Payload::Retained { .. }) && self.random.chance(2) {
                    // In the midst of a replay it shows whether a copy goes back in time.
                    let soon = self.now + self.random.below(10_000);
                    self.follow_at(soon, Sequel::WriterDies);
                }
                self.check_copying(number, &request, payload);
                self.send_request(number, member, lane, id, view, request, payload);
            }
            writer::Action::Abandon { member, id, .. } => {
                self.counts.asked_others += 1;
                let process = self.processes.get_mut(&number);
                if process.and_then(|process| process.reads.remove(&(member, id))).is_none() {
                    self.fail(format!("a read is abandoned that {member:?} was not asked for"));
                }
            }
            writer::Action::Complete { lane, token, result } => self.complete(number, lane, token, result),
            writer::Action::Retain { lane, token, entry } => {
                if let Some(process) = self.processes.get_mut(&number) {
                    match process.guest.bytes(lane, token) {
                        Some(values) => _ = process.retained.insert(entry, values),
                        None => self.fail(format!("request {token} is retained after its end")),
                    }
                }
            }
            writer::Action::Release { before } => {
                if let Some(process) = self.processes.get_mut(&number) {
                    process.retained = process.retained.split_off(&before);
                }
            }
            writer::Action::Look { lane } => {
                let stands_still = !self.peace && self.lanes.chance(20);
                self.counts.still_lanes += u64::from(stands_still);
                let delay = if stands_still { self.lanes.below(3_000_000) } else { 0 };
                self.at(self.now + delay, Event::Looked { process: number, lane });
            }
            writer::Action::CopyEnded { copy } => {
                self.counts.copied += 1;
                if self.random.below(400) == 0 {
                    let soon = self.now + self.random.below(100_000);
                    self.follow_at(soon, Sequel::PowerFailsEverywhere);
                }
                if let Some(process) = self.processes.get_mut(&number) {
                    process.copies.remove(&copy);
                }
            }
            writer::Action::Serve => self.begin_guest(number),
            writer::Action::Unreadable { .. } => {}
            writer::Action::Found(finding) => self.found(number, &finding),
            writer::Action::RoundEnded(round) => self.round_ended(number, *round),
            writer::Action::Adopted(view) => {
                self.counts.views += 1;
                self.let_copy_go(number, &view);
            }
            writer::Action::Lost(..) => {
                self.check_lost(number);
                if self.random.chance(self.scenario.troubled) {
                    // What is left is put to the test.
                    let soon = self.now + self.random.below(1_000_000);
                    self.follow_at(soon, Sequel::CopiesRestart);
                }
            }
            writer::Action::Edited { result, .. } => self.edited(number, result),
            writer::Action::Stop(reason) => {
                if let StopReason::View(what) = reason {
                    self.fail(format!("a writer stopped: {what}"));
                }
                let is_replaced = matches!(reason, StopReason::Replaced(_));
                let me = self.processes.get(&number).map(|process| &process.id);
                if is_replaced && self.store.view.writer.as_ref() == me {
                    self.fail("a writer stopped that nobody has replaced".to_owned());
                }
                self.counts.replaced += 1;
                self.kill_process(number);
                if self.processes.is_empty() {
                    let delay = self.random.below(1_000_000);
                    self.attach_at(self.now + delay);
                }
            }
        }
    }

    /// A process goes on without its copy when that is a member no more.
    fn let_copy_go(&mut self, number: u64, view: &View) {
        let Some(process) = self.processes.get_mut(&number) else { return };
        let node = process.node;
        if process.local.take_if(|local| view.is_retired(*local)).is_some()
            && self.nodes[node].holder.as_ref().is_some_and(|holder| holder.process == Some(number))
        {
            self.release_copy(node, false);
        }
    }

    pub(super) fn store_asked(&mut self, process: u64, current: ViewNumber, next: &View, answer: bool) {
        let node = self.processes.get(&process).map(|process| process.node);
        let cut_off = node.is_some_and(|node| self.store.cut_off.contains(&node));
        if answer && (cut_off || self.store.unreachable_until > self.now) {
            // Perhaps the question got there, and only the answer did not; perhaps it gets there much later.
            let result = if self.random.chance(50) {
                Swapped::Unavailable
            } else {
                let late = self.random.below(3_000_000);
                let event = Event::StoreAsked { process, current, next: Box::new(next.clone()), answer: false };
                if self.random.chance(70) {
                    self.at(self.now + late, event);
                }
                Swapped::Unknown
            };
            self.at(self.now + 200_000, Event::StoreAnswered { process, result });
            return;
        }
        let old = self.store.view.clone();
        let seen = self.processes.get(&process).map_or(ViewNumber::NONE, |process| process.seen);
        // What gets there late was read before.
        let result = if answer { self.store.change(seen, current, next) } else { self.store.swap(current, next) };
        if let Swapped::Conflict(read) = &result {
            self.counts.stale_reads += u64::from(read.number < self.store.view.number);
        }
        if result == Swapped::Stored && process != self.guest_process {
            let lives = |view: &View, node: &NodeName| {
                view.place_of(node).map(|place| view.members[usize::from(place.0)].state)
            };
            let mut in_sync = old.in_sync().map(|member| &old.members[usize::from(member.0)].node);
            self.renewed |= in_sync.all(|node| lives(&old, node) != lives(next, node));
        }
        self.check_regions();
        self.note(|| format!("store: {result:?} for {} by process {process}", next.number));
        if answer {
            let is_deaf = node.is_some_and(|node| self.store.deaf.contains(&node));
            let silent = is_deaf || self.store.silent_until > self.now;
            let result = if silent { Swapped::Unknown } else { result };
            if let Some(process) = self.processes.get_mut(&process) {
                process.seen = match &result {
                    Swapped::Stored => next.number,
                    Swapped::Conflict(read) => read.number,
                    Swapped::Unavailable | Swapped::Unknown => process.seen,
                };
            }
            let delay = self.random.delay(2_000);
            self.at(self.now + delay, Event::StoreAnswered { process, result });
        }
    }

    pub(super) fn guest_acts(&mut self, number: u64) {
        let now = self.now;
        let shape = (self.scenario.sectors, self.scenario.lanes);
        let Some(process) = self.processes.get_mut(&number) else { return };
        let begun = process.guest.act(shape.0, shape.1, &mut self.next_value, now);
        if let Some((lane, token, operation)) = begun {
            self.counts.operations += 1;
            if number == self.guest_process {
                for (sector, value) in process.guest.written(lane, token) {
                    self.history.write_began(sector, value, now);
                }
            }
            process.writer.submit(Time(now), lane, token, operation);
            self.note(|| format!("guest {number}: {lane:?} {token} {operation:?}"));
            self.drive_writer(number);
        }
        let Some(process) = self.processes.get_mut(&number) else { return };
        let pause = process.guest.pause();
        self.at(now + pause, Event::GuestActs { process: number });
    }

    pub(super) fn complete(&mut self, number: u64, lane: Lane, token: u64, result: Result<(), i32>) {
        let now = self.now;
        let Some(process) = self.processes.get_mut(&number) else { return };
        let Some(request) = process.guest.complete(lane, token) else {
            return self.fail(format!("request {token} ended twice"));
        };
        if result.is_err() {
            self.check_failed_read(number, &request);
            if request.began < now && self.random.chance(20) {
                // It may have been done, and seen: it must not be undone.
                let soon = now + self.random.below(300_000);
                self.follow_at(soon, Sequel::CopiesRestart);
            }
            return;
        }
        if number != self.guest_process && request.began >= self.guest_began && request.read.is_none() {
            return self.fail(format!("process {number} has been replaced and changes something: {request:?}"));
        }
        let view = process.writer.view();
        if request.read.is_none() && view.in_sync().count() < view.in_sync_min() {
            return self.fail(format!("acknowledged with too few copies in sync: {request:?}"));
        }
        if request.flush {
            self.flush_began = self.flush_began.max(request.began);
        }
        for (sector, value) in request.written {
            self.history.write_ended(sector, value, now);
        }
        // What a replaced one began to read before the newer guest began may be from before.
        let is_of_era = number == self.guest_process || request.began >= self.guest_began;
        if let Some((start, count)) = request.read.filter(|_| is_of_era) {
            if request.values.len() != count {
                return self.fail(format!("read {token} ended without its bytes"));
            }
            for (at, value) in request.values.into_iter().enumerate() {
                if is_rot(value) {
                    // Nothing tells it from what was written.
                    self.counts.rot_read += 1;
                    continue;
                }
                if let Err(error) = self.history.read(start + at, value, request.began, now) {
                    return self.fail(error);
                }
            }
        }
    }
}
