//! What the threads of a primary share: the writer, behind one lock, and a mailbox for each lane.
//!
//! Any thread may tell the writer of an event. What the writer then wants done is handed out before the
//! lock is released, so that every lane finds in its mailbox what concerns it in the order in which it was
//! decided: the end of a session before the first message of the next.
//!
//! Invariant: the bytes of a guest's write that has not ended can be read by whoever holds the lock. Its
//! lane lets go of them only when it has found the end in its mailbox.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::calls::{Call, Called};
use super::log_events;
use super::mailbox::{Mail, Mailbox};
use super::members::MembersError;
use super::rounds::Rounds;
use super::trust::Trusted;
use super::views::Swap;
use crate::io::segments::Segment;
use crate::replication::message::{Request, Welcome};
use crate::replication::replica::ConnectionId;
use crate::replication::transport::Connection;
use crate::replication::view::{MEMBERS_MAX, MemberIndex, NodeName, ViewNumber};
use crate::replication::writer::{Action, EditRefusal, Lane, MemberEdit, Operation, StopReason, Time, Writer};
use crate::tls::Standing;

/// The time since the machine has been started. It goes on while the machine sleeps: a lease does not wait for that.
pub(super) fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// What the threads of a primary share.
pub(super) struct Shared {
    began: Duration,
    state: Mutex<State>,
    changed: Condvar,
    mailboxes: Vec<Mailbox>,
    stopped: AtomicBool,
    closing: AtomicBool,
}

/// What the lock guards.
pub(super) struct State {
    pub(super) writer: Writer,
    /// The member whose copy is in this process; none from when that was removed.
    local: Option<MemberIndex>,
    /// The session with each member, if there is one or one is being made.
    sessions: Vec<Option<Session>>,
    /// What members on other nodes have shown in their sessions.
    trusted: Vec<Option<Trusted>>,
    /// The lanes' connections with the copy in this process, from lane 0 on, while there is a session with it.
    joined: Vec<ConnectionId>,
    /// The highest view that any replica was told of.
    announced: ViewNumber,
    /// Lanes that somebody drives.
    occupied: Vec<bool>,
    /// The bytes of the guest's writes that have not ended.
    sources: HashMap<(Lane, u64), Segment>,
    /// Those of writes that have ended and were kept.
    retained: BTreeMap<u64, Arc<[u8]>>,
    flushes: BTreeMap<u64, Option<Result<(), i32>>>,
    next_flush: u64,
    /// Changes of the members that somebody waits for.
    edits: BTreeMap<u64, Option<Result<(), EditRefusal>>>,
    next_edit: u64,
    /// What the copies are being compared for.
    pub(super) rounds: Rounds,
    served: bool,
    stop: Option<StopReason>,
    /// None when the primary is closed.
    swaps: Option<Sender<Swap>>,
    calls: Option<Sender<Call>>,
}

/// A session with a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Session {
    number: u64,
    /// Its first connections are there.
    is_up: bool,
}

impl Shared {
    /// For a writer that was made at `began`, with `lanes` lanes.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left.
    pub(super) fn new(
        began: Duration,
        writer: Writer,
        local: Option<MemberIndex>,
        lanes: usize,
        swaps: Sender<Swap>,
        calls: Sender<Call>,
    ) -> io::Result<Shared> {
        let announced = writer.view().number;
        let mailboxes = (0..lanes).map(|_| Mailbox::new()).collect::<io::Result<_>>()?;
        let state = State {
            writer,
            local,
            sessions: vec![None; MEMBERS_MAX],
            trusted: (0..MEMBERS_MAX).map(|_| None).collect(),
            joined: Vec::new(),
            announced,
            occupied: vec![false; lanes],
            sources: HashMap::new(),
            retained: BTreeMap::new(),
            flushes: BTreeMap::new(),
            next_flush: 0,
            edits: BTreeMap::new(),
            next_edit: 0,
            rounds: Rounds::default(),
            served: false,
            stop: None,
            swaps: Some(swaps),
            calls: Some(calls),
        };
        Ok(Shared {
            began,
            state: Mutex::new(state),
            changed: Condvar::new(),
            mailboxes,
            stopped: AtomicBool::new(false),
            closing: AtomicBool::new(false),
        })
    }

    /// The mailbox of a lane.
    pub(super) fn mailbox(&self, lane: Lane) -> &Mailbox {
        &self.mailboxes[usize::from(lane.0)]
    }

    /// Tells the writer of something, on behalf of lane `own`, which looks at its mail afterwards: it is not
    /// woken for it.
    pub(super) fn with_writer<R>(self: &Arc<Self>, own: Option<Lane>, event: impl FnOnce(&mut State, Time) -> R) -> R {
        let mut state = self.lock();
        let result = event(&mut state, self.now());
        self.hand_out(&mut state, own);
        result
    }

    /// A look at the writer that changes nothing.
    pub(super) fn look<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.lock())
    }

    /// Takes a lane of a queue to drive it, and has it connected with the members that are there.
    pub(super) fn occupy(&self) -> Option<Lane> {
        let mut state = self.lock();
        let lane = (1..state.occupied.len()).find(|&lane| !state.occupied[lane])?;
        state.occupied[lane] = true;
        let lane = Lane(lane as u16);
        // What is left there was meant for whoever had the lane before.
        self.mailbox(lane).take(&mut Vec::new());
        for (index, session) in (0u8..).zip(state.sessions.clone()) {
            let Some(Session { number, is_up: true }) = session else { continue };
            if Some(MemberIndex(index)) != state.local {
                state.call(MemberIndex(index), number, Called::Lanes(vec![lane]));
            } else if let Some(&connection) = state.joined.get(usize::from(lane.0)) {
                self.mailbox(lane).put(Mail::Joined { session: number, connection }, true);
            }
        }
        Some(lane)
    }

    /// Gives a lane back, on which nothing is in flight any more.
    pub(super) fn vacate(self: &Arc<Self>, lane: Lane) {
        self.with_writer(None, |state, now| {
            state.occupied[usize::from(lane.0)] = false;
            state.sources.retain(|(owner, _), _| *owner != lane);
            state.writer.lane_ended(now, lane);
        });
    }

    /// A session that was asked for has its first connections: gives them to their lanes and tells the writer.
    pub(super) fn connected(
        self: &Arc<Self>,
        member: MemberIndex,
        session: u64,
        connections: Vec<(Lane, Connection, Standing)>,
        welcome: Welcome,
    ) {
        self.begin_session(None, member, session, welcome, |state| {
            let mut missing = state.occupied_lanes();
            let standings = connections.iter().map(|(_, _, standing)| standing.clone()).collect();
            state.trusted[usize::from(member.0)] = Some(Trusted::new(session, standings));
            for (lane, connection, _) in connections {
                missing.retain(|&other| other != lane);
                let connection = Box::new(connection);
                self.mailbox(lane).put(Mail::Connected { member, session, connection }, true);
            }
            // Those that were taken meanwhile.
            if !missing.is_empty() {
                state.call(member, session, Called::Lanes(missing));
            }
        });
    }

    /// As [`connected`](Self::connected), for the copy in this process, by the lane for control, which has its
    /// connection already.
    pub(super) fn joined(
        self: &Arc<Self>,
        member: MemberIndex,
        session: u64,
        connections: Vec<ConnectionId>,
        welcome: Welcome,
    ) {
        self.begin_session(Some(Lane::CONTROL), member, session, welcome, |state| {
            for lane in state.occupied_lanes() {
                let connection = connections[usize::from(lane.0)];
                self.mailbox(lane).put(Mail::Joined { session, connection }, true);
            }
            state.joined = connections;
        });
    }

    /// A lane that was taken late has its connection.
    pub(super) fn lane_connected(
        &self,
        member: MemberIndex,
        session: u64,
        lane: Lane,
        connection: Connection,
        standing: Standing,
    ) {
        let mut state = self.lock();
        if state.is_session(member, session) {
            if let Some(trusted) = &mut state.trusted[usize::from(member.0)] {
                trusted.add(standing);
            }
            let connection = Box::new(connection);
            self.mailbox(lane).put(Mail::Connected { member, session, connection }, true);
        }
    }

    /// There is no session, or none any more.
    pub(super) fn disconnected(
        self: &Arc<Self>,
        own: Option<Lane>,
        member: MemberIndex,
        session: u64,
        superseded: Option<ViewNumber>,
    ) {
        self.with_writer(own, |state, now| {
            if state.is_session(member, session) {
                // The writer does not ask for the end of a session that it is told of.
                self.end_session(state, member, own);
            }
            state.writer.disconnected(now, member, session, superseded);
        });
    }

    /// A connection failed: says so, if its session was not over already.
    pub(super) fn note_failure(&self, member: MemberIndex, session: u64, error: &dyn std::error::Error) {
        let state = self.lock();
        if state.is_session(member, session) {
            let node = state.node(member);
            log::warn!("the session with node {node} has ended: {error}");
        }
    }

    /// Has a look at what each member with a session has shown.
    pub(super) fn with_trusted(&self, mut look: impl FnMut(MemberIndex, &mut Trusted)) {
        for (member, trusted) in (0u8..).zip(&mut self.lock().trusted) {
            if let Some(trusted) = trusted {
                look(MemberIndex(member), trusted);
            }
        }
    }

    /// The highest view that any replica was told of.
    pub(super) fn announced(&self) -> ViewNumber {
        self.lock().announced
    }

    /// Makes everything that was acknowledged durable on every copy in sync; waits for that.
    ///
    /// # Errors
    ///
    /// An error number, `ETIMEDOUT` when it takes too long, or `ESHUTDOWN` when the writer has stopped.
    pub(super) fn flush(self: &Arc<Self>, time: Duration) -> Result<(), i32> {
        let token = self.with_writer(None, |state, now| {
            let token = state.next_flush;
            state.next_flush += 1;
            state.flushes.insert(token, None);
            state.writer.submit(now, Lane::CONTROL, token, Operation::Flush);
            token
        });
        let deadline = Instant::now() + time;
        let mut state = self.lock();
        loop {
            if let Some(Some(result)) = state.flushes.get(&token) {
                let result = *result;
                state.flushes.remove(&token);
                return result;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.stop.is_some() || left.is_zero() {
                let errno = if state.stop.is_some() { libc::ESHUTDOWN } else { libc::ETIMEDOUT };
                state.flushes.remove(&token);
                return Err(errno);
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Has the members changed; waits until the view without or with them is in force.
    ///
    /// # Errors
    ///
    /// [`MembersError`] says why it is not, or not yet.
    pub(super) fn change_members(self: &Arc<Self>, edit: MemberEdit, time: Duration) -> Result<(), MembersError> {
        let token = self.with_writer(None, |state, now| {
            let token = state.next_edit;
            state.next_edit += 1;
            state.edits.insert(token, None);
            state.writer.change_members(now, token, edit);
            token
        });
        let deadline = Instant::now() + time;
        let mut state = self.lock();
        loop {
            if let Some(Some(result)) = state.edits.get(&token) {
                let result = result.clone();
                state.edits.remove(&token);
                return Ok(result?);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let given_up = match &state.stop {
                Some(reason) => Some(reason.clone().into()),
                None if self.is_closing() => Some(MembersError::Closing),
                None if left.is_zero() => Some(MembersError::Slow),
                None => None,
            };
            if let Some(error) = given_up {
                state.edits.remove(&token);
                return Err(error);
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits, at most for `time`, for something to be so.
    pub(super) fn wait(&self, time: Duration, is_so: impl Fn(&State) -> bool) -> Result<bool, StopReason> {
        let deadline = Instant::now() + time;
        let mut state = self.lock();
        loop {
            if let Some(reason) = &state.stop {
                return Err(reason.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if is_so(&state) || left.is_zero() {
                return Ok(is_so(&state));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Has everybody look who waits for something.
    pub(super) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Whether the writer has stopped.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Tells every thread to end.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        let mut state = self.lock();
        (state.swaps, state.calls) = (None, None);
        drop(state);
        self.changed.notify_all();
        self.mailboxes.iter().for_each(Mailbox::wake);
    }

    /// Whether every thread is to end.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// The bytes that were kept under a number.
    pub(super) fn retained(&self, entry: u64) -> Option<Arc<[u8]>> {
        self.lock().retained.get(&entry).cloned()
    }

    /// The time of the writer.
    pub(super) fn now(&self) -> Time {
        Time(uptime().saturating_sub(self.began).as_micros() as u64)
    }

    fn begin_session(
        self: &Arc<Self>,
        own: Option<Lane>,
        member: MemberIndex,
        number: u64,
        welcome: Welcome,
        hand_out: impl FnOnce(&mut State),
    ) {
        self.with_writer(own, |state, now| {
            if state.is_session(member, number) {
                state.sessions[usize::from(member.0)] = Some(Session { number, is_up: true });
                hand_out(state);
                state.writer.connected(now, member, number, welcome);
            }
        });
    }

    fn end_session(&self, state: &mut State, member: MemberIndex, own: Option<Lane>) {
        state.sessions[usize::from(member.0)] = None;
        state.trusted[usize::from(member.0)] = None;
        if Some(member) == state.local {
            state.joined.clear();
        }
        for (lane, mailbox) in (0u16..).zip(&self.mailboxes) {
            mailbox.forget(member, state.local);
            mailbox.put(Mail::Disconnect { member }, own != Some(Lane(lane)));
        }
    }

    fn hand_out(self: &Arc<Self>, state: &mut State, own: Option<Lane>) {
        loop {
            let actions = state.writer.take_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                self.hand_out_one(state, own, action);
            }
        }
    }

    fn hand_out_one(self: &Arc<Self>, state: &mut State, own: Option<Lane>, action: Action) {
        log_events(&state.writer, &action);
        let deliver = |lane: Lane, mail| self.mailbox(lane).put(mail, own != Some(lane));
        match action {
            Action::Swap { current, next } => {
                if let Some(swaps) = &state.swaps {
                    // If nobody takes it, nobody will wait for it either.
                    let _ = swaps.send(Swap { current, next });
                }
            }
            Action::Connect { member, session, view } => {
                state.sessions[usize::from(member.0)] = Some(Session { number: session, is_up: false });
                state.announced = state.announced.max(view);
                if Some(member) == state.local {
                    deliver(Lane::CONTROL, Mail::JoinLocal { session, view });
                } else {
                    let lanes = state.occupied_lanes();
                    state.call(member, session, Called::Session(lanes));
                }
            }
            Action::Disconnect { member } => self.end_session(state, member, own),
            Action::Send { member, lane, id, view, request, payload } => {
                if let Request::Accept(accepted) = &request {
                    state.announced = state.announced.max(accepted.number);
                }
                deliver(lane, Mail::Send { member, id, view, request, payload });
            }
            Action::Abandon { member, lane, id } => deliver(lane, Mail::Abandon { member, id }),
            Action::Retain { lane, token, entry } => state.retain(lane, token, entry),
            Action::Release { before } => state.retained = state.retained.split_off(&before),
            Action::Complete { lane: Lane::CONTROL, token, result } => {
                if let Some(flush) = state.flushes.get_mut(&token) {
                    *flush = Some(result);
                }
                self.changed.notify_all();
            }
            Action::Complete { lane, token, result } => {
                state.sources.remove(&(lane, token));
                deliver(lane, Mail::Complete { token, result });
            }
            Action::Edited { token, result } => {
                // Unless nobody waits for it any more.
                if let Some(edit) = state.edits.get_mut(&token) {
                    *edit = Some(result);
                }
                self.changed.notify_all();
            }
            // Nobody else will, and nothing more will come on it.
            Action::Look { lane } if !state.is_driven(lane) => state.writer.looked(self.now(), lane),
            Action::Look { lane } => deliver(lane, Mail::Look),
            Action::CopyEnded { copy } => deliver(Lane::CONTROL, Mail::CopyEnded { copy }),
            Action::Serve => {
                state.served = true;
                self.changed.notify_all();
            }
            Action::Adopted(view) => {
                if state.local.take_if(|local| view.is_retired(*local)).is_some() {
                    (0..self.mailboxes.len() as u16).for_each(|lane| deliver(Lane(lane), Mail::CopyRetired));
                }
                self.changed.notify_all();
            }
            Action::Lost(..) => self.changed.notify_all(),
            Action::Unreadable { .. } => {}
            Action::Found(finding) => state.rounds.found(&finding),
            Action::RoundEnded(round) => {
                state.rounds.ended(round);
                self.changed.notify_all();
            }
            Action::Stop(reason) => {
                state.stop = Some(reason);
                self.stopped.store(true, Ordering::Release);
                self.changed.notify_all();
                self.mailboxes.iter().for_each(Mailbox::wake);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether the guest may be served.
    pub(super) fn is_served(&self) -> bool {
        self.served
    }

    /// The member whose copy is in this process; none if there is none, or none any more.
    pub(super) fn local(&self) -> Option<MemberIndex> {
        self.local
    }

    /// The node of a member.
    pub(super) fn node(&self, member: MemberIndex) -> &NodeName {
        &self.writer.view().members[usize::from(member.0)].node
    }

    /// A request of the guest. `source` has the bytes of a write.
    pub(super) fn submit(&mut self, now: Time, lane: Lane, token: u64, operation: Operation, source: Option<Segment>) {
        if let Some(source) = source {
            self.sources.insert((lane, token), source);
        }
        self.writer.submit(now, lane, token, operation);
    }

    /// The number of the session with each member; none where there is none.
    #[cfg(test)]
    pub(super) fn session_numbers(&self) -> Vec<Option<u64>> {
        self.sessions
            .iter()
            .take(self.writer.view().members.len())
            .map(|session| session.filter(|session| session.is_up).map(|session| session.number))
            .collect()
    }

    /// Has connections made with a member.
    fn call(&mut self, member: MemberIndex, session: u64, called: Called) {
        let peer = self.writer.view().members[usize::from(member.0)].clone();
        let call = Call { member, peer, session, view: self.announced, called };
        if let Some(calls) = &self.calls {
            // If nobody takes it, nobody will wait for it either.
            let _ = calls.send(call);
        }
    }

    fn is_session(&self, member: MemberIndex, number: u64) -> bool {
        self.sessions[usize::from(member.0)].is_some_and(|session| session.number == number)
    }

    fn retain(&mut self, lane: Lane, token: u64, entry: u64) {
        if let Some(source) = self.sources.get(&(lane, token)) {
            // SAFETY: the lane keeps the memory, and nobody writes to it, until it hears of the end of the
            // request, which comes after this.
            let bytes = unsafe { std::slice::from_raw_parts(source.base, source.len) };
            self.retained.insert(entry, bytes.into());
        }
    }

    /// Whether somebody looks into the mail of a lane.
    fn is_driven(&self, lane: Lane) -> bool {
        lane == Lane::CONTROL || self.occupied[usize::from(lane.0)]
    }

    fn occupied_lanes(&self) -> Vec<Lane> {
        (0u16..)
            .zip(&self.occupied)
            .filter(|(lane, occupied)| **occupied && *lane > 0)
            .map(|(lane, _)| Lane(lane))
            .collect()
    }
}
