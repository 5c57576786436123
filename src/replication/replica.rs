//! The gatekeeper of one copy: what it lets a writer do, as a state machine.
//!
//! Events go in, [`Action`]s come out; whoever drives it moves the bytes. It keeps these promises:
//!
//! - **One writer.** A view is accepted durably before anything is done in it, and from then on every
//!   lower one is refused, on every message.
//! - **One session.** A writer that connects again replaces its earlier session: what came over the old
//!   connections and is not yet applied never will be, and the new session is welcomed only when nothing of
//!   the old one is in flight any more. So a late message cannot undo a newer one.
//! - **Intent first.** Before a region is written, its row says so durably. Changes of rows are gathered
//!   while one is being written: see [`Action::Persist`].
//! - **A failed flush is final.** The copy then answers nothing else until it is opened again, in a new
//!   incarnation.
//!
//! With [write-behind](Replica::write_behind) a write is answered when it has been given to the disk, and a
//! flush when the disk has everything. A write that fails after it was answered is as final as a failed flush.

mod behind;

use std::collections::{BTreeMap, BTreeSet};

use behind::{Behind, Held};

use super::message::{Digest, Hello, Reply, Request, Welcome};
use super::region::{RegionIndex, Regions, Row};
use super::view::{Incarnation, View, ViewNumber, WriterId};

/// A connection, by a number that is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Something that the copy is asked to do, by a number that is never used twice in one life of it. The writer's id of
/// it may be: a write can be answered before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlightId(pub u64);

/// What whoever drives a [`Replica`] has to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answer the hello of a connection: from now on it may send requests.
    Welcome(ConnectionId, Welcome),
    /// End a connection, after saying why.
    Refuse(ConnectionId, Refusal),
    /// Answer a request.
    Reply {
        /// Where it came from.
        connection: ConnectionId,
        /// The writer's id of it.
        id: u64,
        /// The answer.
        reply: Reply,
    },
    /// Do on the copy what the request says, then call [`Replica::applied`]; even if the connection is
    /// gone by then. Its bytes are kept until then.
    Apply {
        /// Where it came from.
        connection: ConnectionId,
        /// The writer's id of it.
        id: u64,
        /// What it is to be known by when it has been done. It may be answered before.
        flight: FlightId,
        /// A write, zero, flush, read or digest.
        request: Request,
    },
    /// The request will not be applied: its bytes can go.
    Forget {
        /// Where it came from.
        connection: ConnectionId,
        /// The writer's id of it.
        id: u64,
    },
    /// Make these rows and then the view durable, and call [`Replica::persisted`]. There is one at a time.
    Persist {
        /// Regions and their new rows.
        rows: Vec<(RegionIndex, Row)>,
        /// The view to record as the highest one accepted, after the rows.
        view: Option<Box<View>>,
    },
}

/// Why a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A higher view than the writer's has been accepted or announced.
    #[error("the copy knows view {0}: the writer has been replaced")]
    Superseded(ViewNumber),
    /// The view is another writer's.
    #[error("the view is that of another writer")]
    NotTheWriter,
    /// The writer has connected again.
    #[error("a newer session of the writer has taken over")]
    OldSession,
    /// A flush has failed, or the region table could not be written.
    #[error("the copy has failed and must be opened again")]
    CopyFailed,
    /// Something that no writer does.
    #[error("{0}")]
    Protocol(&'static str),
}

/// The gatekeeper of one copy.
pub struct Replica {
    regions: Regions,
    incarnation: Incarnation,
    accepted: ViewNumber,
    /// The writer of the accepted view.
    writer: Option<WriterId>,
    /// The highest view that a hello has named.
    greeted: ViewNumber,
    session: Option<Session>,
    /// Operations in flight from sessions before this one.
    older_in_flight: usize,
    connections: BTreeMap<ConnectionId, Connection>,
    flights: BTreeMap<FlightId, Flight>,
    next_flight: FlightId,
    behind: Behind,
    rows: Vec<Row>,
    /// For regions with an intent: the last operation that may have written them.
    touched: BTreeMap<RegionIndex, u64>,
    operations: u64,
    /// The operation count when the last flush that succeeded began.
    flushed: u64,
    persisting: Option<Batch>,
    next: Batch,
    /// Why nothing is done any more.
    failed: Option<i32>,
    actions: Vec<Action>,
}

/// A writer's session.
#[derive(Clone, Debug)]
struct Session {
    writer: WriterId,
    number: u64,
    in_flight: usize,
}

struct Connection {
    session: u64,
    writer: WriterId,
    welcomed: bool,
    /// What is in flight, answered or not.
    in_flight: usize,
    /// The writer's ids of what is in flight and not answered.
    unanswered: BTreeSet<u64>,
    closed: bool,
}

struct Flight {
    connection: ConnectionId,
    id: u64,
    request: Request,
    /// The operation count when it began.
    operation: u64,
}

/// Changes of the region table that become durable together.
#[derive(Default)]
struct Batch {
    rows: BTreeMap<RegionIndex, Row>,
    view: Option<Box<View>>,
    waiters: Vec<Waiter>,
}

enum Waiter {
    Apply { connection: ConnectionId, id: u64, request: Request },
    Reply { connection: ConnectionId, id: u64 },
}

impl Replica {
    /// A copy that has just been opened: in a new life, with what its region table says.
    pub fn new(regions: Regions, incarnation: Incarnation, accepted: Option<&View>, rows: Vec<Row>) -> Self {
        let number = accepted.map_or(ViewNumber::NONE, |view| view.number);
        let touched = intents(&rows).map(|region| (region, 0)).collect();
        Self {
            regions,
            incarnation,
            accepted: number,
            writer: accepted.and_then(|view| view.writer.clone()),
            greeted: number,
            session: None,
            older_in_flight: 0,
            connections: BTreeMap::new(),
            flights: BTreeMap::new(),
            next_flight: FlightId(0),
            behind: Behind::new(0),
            rows,
            touched,
            operations: 1,
            flushed: 0,
            persisting: None,
            next: Batch::default(),
            failed: None,
            actions: Vec::new(),
        }
    }

    /// Answers writes that need not be durable as soon as they are given to the disk, while at most so many
    /// bytes are not done. To be called before anything is asked of the copy.
    pub fn write_behind(&mut self, bytes_max: u64) {
        self.behind = Behind::new(bytes_max);
    }

    /// The life that the copy is in.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The highest view accepted.
    pub fn accepted(&self) -> ViewNumber {
        self.accepted
    }

    /// Whether the copy has failed and must be opened again.
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// The rows of the region table, as they are durable.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// What there is to do now.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// A connection has said hello, and has proven what it must prove.
    pub fn hello(&mut self, connection: ConnectionId, hello: &Hello) {
        if let Err(refusal) = self.admit(hello) {
            self.actions.push(Action::Refuse(connection, refusal));
            return;
        }
        let newer = match &self.session {
            Some(session) => session.writer != hello.writer || session.number < hello.session,
            None => true,
        };
        if newer {
            self.begin_session(hello);
        }
        self.greeted = self.greeted.max(hello.view);
        let entry = Connection {
            session: hello.session,
            writer: hello.writer.clone(),
            welcomed: false,
            in_flight: 0,
            unanswered: BTreeSet::new(),
            closed: false,
        };
        self.connections.insert(connection, entry);
        self.welcome_if_drained();
    }

    /// A request has arrived over a connection that was welcomed. The bytes of a write are kept by whoever
    /// drives this until [`Action::Apply`] or [`Action::Forget`].
    pub fn request(&mut self, connection: ConnectionId, view: ViewNumber, id: u64, request: Request) {
        match self.check(connection, view, id, &request) {
            Ok(()) => self.begin(connection, view, id, request),
            Err(Answer::Reply(reply)) => self.turn_down(connection, id, &request, reply),
            Err(Answer::Refuse(refusal)) => {
                self.forget(connection, id, &request);
                self.close(connection, refusal);
            }
            Err(Answer::Nothing) => self.forget(connection, id, &request),
        }
    }

    /// What an [`Action::Apply`] asked for has been done, or has failed with an error number. `zeros`: what
    /// was read is all zeros.
    pub fn applied(&mut self, flight: FlightId, result: Result<Applied, i32>) {
        let Some(Flight { connection, id, request, operation }) = self.flights.remove(&flight) else { return };
        let Some(entry) = self.connections.get_mut(&connection) else { return };
        entry.in_flight -= 1;
        let current = is_current(&self.session, entry);
        match &mut self.session {
            Some(session) if current => session.in_flight -= 1,
            _ => self.older_in_flight -= 1,
        }
        let is_answered = self.behind.end(flight);
        if !is_answered {
            entry.unanswered.remove(&id);
        }
        if entry.closed && entry.in_flight == 0 {
            self.connections.remove(&connection);
        }
        if let Some((offset, len)) = written_range(&request) {
            // A flush that began while it was in flight may not have covered it.
            self.operations += 1;
            for region in self.regions.touched(offset, len) {
                self.touched.insert(region, self.operations);
            }
        }
        if is_answered {
            // The writer counts on it.
            if let Err(errno) = result {
                self.fail(errno);
            }
        } else {
            let reply = self.reply_to(&request, operation, result);
            if self.is_live(connection) {
                self.actions.push(Action::Reply { connection, id, reply });
            }
        }
        while let Some(Held { flight, connection, id, request }) = self.behind.release() {
            if self.is_live(connection) {
                self.start(flight, connection, id, request);
            } else {
                self.actions.push(Action::Forget { connection, id });
            }
        }
        self.welcome_if_drained();
    }

    /// The answer to what has been done, or has failed.
    fn reply_to(&mut self, request: &Request, operation: u64, result: Result<Applied, i32>) -> Reply {
        match (result, request) {
            // The kernel tells of lost data once: a flush that ends well after another has failed says nothing.
            (Ok(_), request) if self.has_failed() && is_durable(request) => Reply::Failed(EIO),
            (Ok(_), Request::Flush) => {
                self.flushed = self.flushed.max(operation);
                Reply::Done
            }
            (Ok(Applied::Digest(digest)), Request::Digest { .. }) => Reply::DigestOf(digest),
            (Ok(_), Request::Digest { .. }) => Reply::Failed(EIO),
            (Ok(Applied::Zeros), Request::Read { .. }) => Reply::Zeros,
            (Ok(Applied::Done), Request::Read { .. }) => Reply::Data,
            (Ok(_), _) => Reply::Done,
            (Err(errno), request) => {
                // One that was never begun has not met anything wrong.
                let is_sync = *request == Request::Flush && errno != ECANCELED;
                if is_sync || is_durable(request) && errno == EIO {
                    self.fail(EIO);
                }
                Reply::Failed(errno)
            }
        }
    }

    /// What the last [`Action::Persist`] asked for is durable, or could not be made so.
    pub fn persisted(&mut self, durable: bool) {
        let Some(batch) = self.persisting.take() else { return };
        if !durable {
            self.fail(EIO);
            self.abandon(batch);
            return;
        }
        for (region, row) in batch.rows {
            self.rows[region.0 as usize] = row;
        }
        if let Some(view) = batch.view {
            self.accepted = view.number;
            self.writer = view.writer;
        }
        for waiter in batch.waiters {
            match waiter {
                Waiter::Apply { connection, id, request } => {
                    if self.is_live(connection) {
                        self.apply(connection, id, request);
                    } else {
                        self.actions.push(Action::Forget { connection, id });
                    }
                }
                Waiter::Reply { connection, id } => {
                    if self.is_live(connection) {
                        self.actions.push(Action::Reply { connection, id, reply: Reply::Done });
                    }
                }
            }
        }
        self.persist_next();
        self.welcome_if_drained();
    }

    /// A connection has ended.
    pub fn closed(&mut self, connection: ConnectionId) {
        let Some(entry) = self.connections.get_mut(&connection) else { return };
        entry.closed = true;
        if entry.in_flight == 0 {
            self.connections.remove(&connection);
        }
    }

    fn admit(&self, hello: &Hello) -> Result<(), Refusal> {
        if self.has_failed() {
            return Err(Refusal::CopyFailed);
        }
        let known = self.accepted.max(self.greeted);
        if hello.view < known {
            return Err(Refusal::Superseded(known));
        }
        if hello.view == self.accepted && self.writer.as_ref() != Some(&hello.writer) {
            return Err(Refusal::NotTheWriter);
        }
        match &self.session {
            Some(session) if session.writer == hello.writer && session.number > hello.session => {
                Err(Refusal::OldSession)
            }
            Some(session) if session.writer != hello.writer && hello.view == self.greeted => Err(Refusal::NotTheWriter),
            _ => Ok(()),
        }
    }

    fn begin_session(&mut self, hello: &Hello) {
        let old = self.session.replace(Session { writer: hello.writer.clone(), number: hello.session, in_flight: 0 });
        self.older_in_flight += old.map_or(0, |session| session.in_flight);
        let connections: Vec<ConnectionId> = self.connections.keys().copied().collect();
        for connection in connections {
            self.close(connection, Refusal::OldSession);
        }
    }

    fn welcome_if_drained(&mut self) {
        // A batch that is being written may hold rows for the old session; its requests are dropped then.
        if self.older_in_flight > 0 || self.has_failed() {
            return;
        }
        let welcome = Welcome { incarnation: self.incarnation, accepted: self.accepted };
        for (&connection, entry) in &mut self.connections {
            if !entry.closed && !entry.welcomed && is_current(&self.session, entry) {
                entry.welcomed = true;
                self.actions.push(Action::Welcome(connection, welcome));
            }
        }
    }

    fn check(&mut self, connection: ConnectionId, view: ViewNumber, id: u64, request: &Request) -> Result<(), Answer> {
        let Some(entry) = self.connections.get(&connection).filter(|entry| !entry.closed) else {
            return Err(Answer::Nothing);
        };
        if !entry.welcomed {
            return Err(Answer::Refuse(Refusal::Protocol("a request came before the welcome")));
        }
        if entry.unanswered.contains(&id) {
            return Err(Answer::Refuse(Refusal::Protocol("an id is in use twice")));
        }
        if let Some(errno) = self.failed {
            return Err(Answer::Reply(Reply::Failed(errno)));
        }
        if view < self.accepted {
            return Err(Answer::Reply(Reply::Superseded(self.accepted)));
        }
        match request {
            Request::Accept(next) if next.number != view => {
                Err(Answer::Refuse(Refusal::Protocol("a view is announced under another number")))
            }
            Request::Accept(next) if next.writer.as_ref() != Some(&entry.writer) => {
                Err(Answer::Refuse(Refusal::NotTheWriter))
            }
            Request::Accept(_) | Request::Ping => Ok(()),
            _ if view > self.accepted => {
                Err(Answer::Refuse(Refusal::Protocol("a request came in a view that was not announced")))
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, connection: ConnectionId, view: ViewNumber, id: u64, request: Request) {
        match request {
            Request::Write { .. } | Request::Zero { .. } => self.mark_and_apply(connection, view, id, request),
            Request::Flush | Request::Read { .. } | Request::Digest { .. } => self.apply(connection, id, request),
            Request::Accept(next) => self.accept(connection, id, next),
            Request::Settle(settled) => self.settle(connection, id, &settled),
            Request::Rows { first, count } => {
                let start = (first.0 as usize).min(self.rows.len());
                let end = start.saturating_add(count as usize).min(self.rows.len());
                let reply = Reply::Rows(self.rows[start..end].to_vec());
                self.actions.push(Action::Reply { connection, id, reply });
            }
            Request::Ping => self.actions.push(Action::Reply { connection, id, reply: Reply::Done }),
        }
    }

    /// Applies a write as soon as the rows of its regions say durably that it may happen.
    fn mark_and_apply(&mut self, connection: ConnectionId, view: ViewNumber, id: u64, request: Request) {
        let Some((offset, len)) = written_range(&request) else { return };
        self.operations += 1;
        let marked = Row { written: view, intent: true };
        let mut wait = Wait::None;
        for region in self.regions.touched(offset, len) {
            self.touched.insert(region, self.operations);
            if self.next.rows.get(&region) == Some(&marked) {
                wait = Wait::Next;
            } else if self.next.rows.contains_key(&region) {
                self.next.rows.insert(region, marked);
                wait = Wait::Next;
            } else {
                match self.persisting.as_ref().and_then(|batch| batch.rows.get(&region)) {
                    Some(row) if *row == marked => wait = wait.max(Wait::Persisting),
                    None if self.rows[region.0 as usize] == marked => {}
                    _ => {
                        self.next.rows.insert(region, marked);
                        wait = Wait::Next;
                    }
                }
            }
        }
        match (wait, &mut self.persisting) {
            (Wait::None, _) => self.apply(connection, id, request),
            (Wait::Persisting, Some(batch)) => batch.waiters.push(Waiter::Apply { connection, id, request }),
            _ => {
                self.next.waiters.push(Waiter::Apply { connection, id, request });
                self.persist_next();
            }
        }
    }

    fn accept(&mut self, connection: ConnectionId, id: u64, view: Box<View>) {
        let pending = [self.next.view.as_ref(), self.persisting.as_ref().and_then(|batch| batch.view.as_ref())];
        if pending.into_iter().flatten().any(|other| other.number > view.number) {
            // It came before this one over another connection and will have been accepted.
            self.close(connection, Refusal::Superseded(self.greeted));
            return;
        }
        self.greeted = self.greeted.max(view.number);
        // What may differ from other copies now may differ in the new view: so a copy that is left behind by
        // this change knows later what it has to be sent.
        let open: Vec<RegionIndex> = self.touched.keys().copied().collect();
        for region in open {
            if self.planned(region).intent {
                self.next.rows.insert(region, Row { written: view.number, intent: true });
            }
        }
        self.next.view = Some(view);
        self.next.waiters.push(Waiter::Reply { connection, id });
        self.persist_next();
    }

    fn settle(&mut self, connection: ConnectionId, id: u64, settled: &[(RegionIndex, ViewNumber)]) {
        for &(region, written) in settled {
            let since_flush = self.touched.get(&region).is_some_and(|&operation| operation > self.flushed);
            if region.0 < self.regions.count() && !since_flush {
                self.touched.remove(&region);
                self.next.rows.insert(region, Row { written, intent: false });
            }
        }
        self.next.waiters.push(Waiter::Reply { connection, id });
        self.persist_next();
    }

    /// The row as it will be when all that was asked for so far is durable.
    fn planned(&self, region: RegionIndex) -> Row {
        let persisting = self.persisting.as_ref().and_then(|batch| batch.rows.get(&region));
        *self.next.rows.get(&region).or(persisting).unwrap_or(&self.rows[region.0 as usize])
    }

    fn persist_next(&mut self) {
        if self.persisting.is_some() || self.has_failed() || self.next.waiters.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.next);
        let rows = batch.rows.iter().map(|(&region, &row)| (region, row)).collect();
        self.actions.push(Action::Persist { rows, view: batch.view.clone() });
        self.persisting = Some(batch);
    }

    fn apply(&mut self, connection: ConnectionId, id: u64, request: Request) {
        let flight = self.next_flight;
        self.next_flight.0 += 1;
        if self.behind.is_in_the_way(flight, &request) {
            self.behind.hold(Held { flight, connection, id, request });
        } else {
            self.start(flight, connection, id, request);
        }
    }

    fn start(&mut self, flight: FlightId, connection: ConnectionId, id: u64, request: Request) {
        let (Some(entry), Some(session)) = (self.connections.get_mut(&connection), &mut self.session) else { return };
        session.in_flight += 1;
        entry.in_flight += 1;
        let is_answered = self.behind.admit(flight, &request);
        let operation = self.operations;
        self.flights.insert(flight, Flight { connection, id, request: request.clone(), operation });
        self.actions.push(Action::Apply { connection, id, flight, request });
        if is_answered {
            self.actions.push(Action::Reply { connection, id, reply: Reply::Done });
        } else {
            entry.unanswered.insert(id);
        }
    }

    fn turn_down(&mut self, connection: ConnectionId, id: u64, request: &Request, reply: Reply) {
        self.forget(connection, id, request);
        self.actions.push(Action::Reply { connection, id, reply });
    }

    fn forget(&mut self, connection: ConnectionId, id: u64, request: &Request) {
        if matches!(request, Request::Write { .. }) {
            self.actions.push(Action::Forget { connection, id });
        }
    }

    fn close(&mut self, connection: ConnectionId, refusal: Refusal) {
        let Some(entry) = self.connections.get_mut(&connection) else { return };
        if !std::mem::replace(&mut entry.closed, true) {
            self.actions.push(Action::Refuse(connection, refusal));
        }
        if entry.in_flight == 0 {
            self.connections.remove(&connection);
        }
    }

    fn fail(&mut self, errno: i32) {
        self.failed.get_or_insert(errno);
        let mut next = std::mem::take(&mut self.next);
        let held = self.behind.release_all().into_iter();
        next.waiters.extend(held.map(|Held { connection, id, request, .. }| Waiter::Apply { connection, id, request }));
        self.abandon(next);
    }

    fn abandon(&mut self, batch: Batch) {
        for waiter in batch.waiters {
            let (connection, id) = match waiter {
                Waiter::Apply { connection, id, .. } => {
                    self.actions.push(Action::Forget { connection, id });
                    (connection, id)
                }
                Waiter::Reply { connection, id } => (connection, id),
            };
            if self.is_live(connection) {
                let reply = Reply::Failed(self.failed.unwrap_or(EIO));
                self.actions.push(Action::Reply { connection, id, reply });
            }
        }
    }

    fn is_live(&self, connection: ConnectionId) -> bool {
        self.connections.get(&connection).is_some_and(|entry| !entry.closed)
    }
}

/// How a request that was applied ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It was done; the bytes of a read have been fetched.
    Done,
    /// All that was read is zeros.
    Zeros,
    /// What was to be digested has this digest.
    Digest(Digest),
}

enum Answer {
    Reply(Reply),
    Refuse(Refusal),
    Nothing,
}

/// Which batch a write waits for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wait {
    None,
    Persisting,
    Next,
}

fn is_current(session: &Option<Session>, connection: &Connection) -> bool {
    session.as_ref().is_some_and(|session| session.writer == connection.writer && session.number == connection.session)
}

/// Whether the answer says that something would survive a power loss.
fn is_durable(request: &Request) -> bool {
    matches!(request, Request::Flush | Request::Write { durable: true, .. } | Request::Zero { durable: true, .. })
}

fn written_range(request: &Request) -> Option<(u64, u64)> {
    match *request {
        Request::Write { offset, len, .. } => Some((offset, u64::from(len))),
        Request::Zero { offset, len, .. } => Some((offset, len)),
        _ => None,
    }
}

fn intents(rows: &[Row]) -> impl Iterator<Item = RegionIndex> {
    (0u32..).zip(rows).filter(|(_, row)| row.intent).map(|(index, _)| RegionIndex(index))
}

const EIO: i32 = 5;
const ECANCELED: i32 = 125;

#[cfg(test)]
mod tests;
