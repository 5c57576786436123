//! The copy in the writer's own process, as one of the members.
//!
//! It is asked for everything through its [`Replica`](crate::replication::replica::Replica), as the others
//! are, only without a network: each lane has a connection with it in name, and the hands to do what it is asked
//! for. [`LocalCopy`] is what all lanes share; [`LocalHands`] are those of one.
//!
//! A copy that has failed is opened again, in a new incarnation, once every lane has let go of it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::memory::{Memory, Outgoing, Source};
use crate::io::Kind;
use crate::io::segments::Segment;
use crate::replication::copy::{CopyError, Ended, Executor, OpenCopy, Payload as Bytes};
use crate::replication::message::{Hello, Reply, Request, Welcome};
use crate::replication::replica::{Action, ConnectionId, FlightId, Refusal};
use crate::replication::server::served::{Mail, Mailbox, NOBODY, Served};
use crate::replication::view::ViewNumber;
use crate::replication::writer::Payload;

/// The copy in this process.
pub(super) struct LocalCopy {
    dir: PathBuf,
    kind: Option<Kind>,
    served: Mutex<Option<Arc<Served>>>,
    next_connection: AtomicU64,
    /// Of each lane.
    mailboxes: Vec<Arc<Mailbox>>,
}

impl LocalCopy {
    /// Of a copy that has just been opened, for so many lanes.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left.
    pub(super) fn new(copy: Arc<OpenCopy>, kind: Option<Kind>, lanes: u16) -> io::Result<LocalCopy> {
        Ok(LocalCopy {
            dir: copy.dir().to_owned(),
            kind,
            served: Mutex::new(Some(Arc::new(Served::new(copy)))),
            next_connection: AtomicU64::new(1),
            mailboxes: (0..lanes).map(|_| Mailbox::new().map(Arc::new)).collect::<io::Result<_>>()?,
        })
    }

    /// Its folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The copy, if it is open.
    pub(super) fn served(&self) -> Option<Arc<Served>> {
        self.lock().clone()
    }

    /// What the replica wants of a lane.
    pub(super) fn mailbox(&self, lane: u16) -> &Arc<Mailbox> {
        &self.mailboxes[usize::from(lane)]
    }

    /// The copy, opened again if it has failed; none while some lane still holds the one that has.
    ///
    /// # Errors
    ///
    /// [`CopyError`] when it cannot be opened.
    pub(super) fn reopened(&self) -> Result<Option<Arc<Served>>, CopyError> {
        let mut slot = self.lock();
        if let Some(served) = slot.take() {
            if !served.copy().replica().has_failed() {
                *slot = Some(served.clone());
                return Ok(Some(served));
            }
            if Arc::strong_count(&served) > 1 || Arc::strong_count(served.copy()) > 1 {
                *slot = Some(served);
                return Ok(None);
            }
        }
        let served = Arc::new(Served::new(OpenCopy::open(&self.dir, self.kind)?));
        log::info!("{}: opened again", self.dir.display());
        *slot = Some(served.clone());
        Ok(Some(served))
    }

    /// Says hello on a connection for each lane; what the replica makes of it comes into the mailbox of lane 0.
    pub(super) fn join(&self, served: &Arc<Served>, hello: &Hello) -> Vec<ConnectionId> {
        let mut joined = Vec::new();
        for (lane, mailbox) in (0u16..).zip(&self.mailboxes) {
            let connection = ConnectionId(self.next_connection.fetch_add(1, Ordering::Relaxed));
            served.join(connection, mailbox.clone());
            let hello = Hello { lane, ..hello.clone() };
            carry_out(served, served.with_replica(NOBODY, |replica| replica.hello(connection, &hello)));
            joined.push(connection);
        }
        joined
    }

    /// Ends connections; what they have in flight is finished by their lanes.
    pub(super) fn close_connections(served: &Arc<Served>, connections: &[ConnectionId]) {
        for &connection in connections {
            carry_out(served, served.with_replica(NOBODY, |replica| replica.closed(connection)));
        }
    }

    /// Syncs and closes the copy for good, unless some lane still holds it; whether it is closed.
    pub(super) fn close_if_unused(&self) -> bool {
        let is_used = self
            .lock()
            .as_ref()
            .is_some_and(|served| Arc::strong_count(served) > 1 || Arc::strong_count(served.copy()) > 1);
        if !is_used {
            self.close();
            log::info!("{}: closed, for the volume is served without this copy from now on", self.dir.display());
        }
        !is_used
    }

    /// Syncs and closes the copy, if nobody holds it.
    pub(super) fn close(&self) {
        let Some(served) = self.lock().take() else { return };
        served.finish_persisting();
        if !served.copy().replica().has_failed()
            && let Err(error) = served.copy().sync()
        {
            log::error!("{}: the last sync before closing failed: {error}", self.dir.display());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Served>>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one lane does with the copy.
pub(super) struct LocalHands {
    // The executor comes first: it ends what is in flight before the copy may go.
    executor: Option<Executor>,
    served: Option<Arc<Served>>,
    session: u64,
    connection: Option<ConnectionId>,
    depth: usize,
    /// Reads and writes that the replica has not answered.
    pending: HashMap<(ConnectionId, u64), Pending>,
    /// What the disk is doing: for which requests.
    applying: HashMap<FlightId, (ConnectionId, u64)>,
    /// Requests that it has not seen.
    batch: Vec<Outgoing>,
    /// What came before the connection did.
    early: Vec<Outgoing>,
    ended: Vec<Ended>,
    told: Option<Told>,
    replies: Vec<(u64, Reply)>,
    /// Reads that waited for bytes to come back.
    again: Vec<Outgoing>,
}

/// A request whose bytes are lent to the copy.
struct Pending {
    payload: Payload,
    applied: bool,
}

/// What the replica says of the lane's connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Told {
    /// It may be used.
    Welcome(Welcome),
    /// It is over; the higher view that the replica knows, if that is why.
    Refused(Option<ViewNumber>),
}

impl LocalHands {
    /// For at most so many operations of the disk at once.
    pub(super) fn new(depth: usize) -> LocalHands {
        LocalHands {
            executor: None,
            served: None,
            session: 0,
            connection: None,
            depth,
            pending: HashMap::new(),
            applying: HashMap::new(),
            batch: Vec::new(),
            early: Vec::new(),
            ended: Vec::new(),
            told: None,
            replies: Vec::new(),
            again: Vec::new(),
        }
    }

    /// Takes the lane's connection of a session.
    ///
    /// # Errors
    ///
    /// When there are no hands to be had for the disk.
    pub(super) fn joined(&mut self, served: Arc<Served>, session: u64, connection: ConnectionId) -> io::Result<()> {
        if self.executor.is_none() {
            self.executor = Some(served.copy().executor(self.depth)?);
        }
        self.served = Some(served);
        self.session = session;
        self.connection = Some(connection);
        self.told = None;
        self.batch.append(&mut self.early);
        Ok(())
    }

    /// The session is over. What the disk is doing is finished, nothing else is begun; then the copy is let go.
    pub(super) fn disconnect(&mut self, mailbox: &Mailbox, memory: &mut Memory) {
        let connection = self.connection.take();
        if let (Some(served), Some(connection)) = (self.served.clone(), connection) {
            // From here on the replica asks nothing more of the lane, and what it has asked until now is in the mailbox.
            let actions = served.with_replica(connection, |replica| replica.closed(connection));
            self.act(&served, actions, memory);
            self.read_mail(&served, mailbox, memory);
        }
        self.batch.clear();
        self.early.clear();
        self.told = None;
        let unused: Vec<_> = self.pending.iter().filter(|(_, pending)| !pending.applied).map(|(key, _)| *key).collect();
        for key in unused {
            self.resolve(key, memory);
        }
        self.let_go();
    }

    /// The disk cannot be used by this lane any more, and so the session is over: what it was doing counts as failed,
    /// once the kernel has let go of the memory.
    pub(super) fn give_up(&mut self, mailbox: &Mailbox, memory: &mut Memory) {
        let connection = self.connection.take();
        let served = self.served.clone();
        self.end_flights();
        if let (Some(served), Some(connection)) = (&served, connection) {
            let actions = served.with_replica(connection, |replica| replica.closed(connection));
            self.act(served, actions, memory);
        }
        self.batch.clear();
        self.early.clear();
        self.told = None;
        let unused: Vec<_> = self.pending.keys().copied().collect();
        for key in unused {
            self.resolve(key, memory);
        }
        if let Some(served) = &served {
            self.read_mail(served, mailbox, memory);
        }
    }

    /// Takes a request, which [`work`](Self::work) gives to the replica.
    pub(super) fn send(&mut self, outgoing: Outgoing) {
        if self.connection.is_some() { self.batch.push(outgoing) } else { self.early.push(outgoing) }
    }

    /// The session that the lane's connection belongs to.
    pub(super) fn session(&self) -> u64 {
        self.session
    }

    /// The hands for the disk, while there are any.
    pub(super) fn executor(&mut self) -> Option<&mut Executor> {
        self.executor.as_mut()
    }

    /// What the replica has said of the lane's connection, once.
    pub(super) fn take_told(&mut self) -> Option<Told> {
        self.told.take()
    }

    /// Does what can be done now without waiting for the data: gives requests to the replica, does what it wants,
    /// and appends the replies. Reads that had to wait for bytes to come back are appended to `again`.
    ///
    /// # Errors
    ///
    /// When the engine has failed.
    pub(super) fn work(
        &mut self,
        mailbox: &Mailbox,
        memory: &mut Memory,
        replies: &mut Vec<(u64, Reply)>,
        again: &mut Vec<Outgoing>,
    ) -> io::Result<()> {
        let Some(served) = self.served.clone() else {
            // What comes for a connection that is over is about nothing that anybody waits for.
            drop(mailbox.take());
            return Ok(());
        };
        self.read_mail(&served, mailbox, memory);
        self.ask(&served, memory);
        if let Some(executor) = &mut self.executor {
            let mut ended = std::mem::take(&mut self.ended);
            let driven = executor.drive(&mut ended);
            self.settle(&served, &mut ended, memory);
            self.ended = ended;
            driven?;
        }
        replies.append(&mut self.replies);
        again.append(&mut self.again);
        drop(served);
        self.let_go();
        Ok(())
    }

    fn read_mail(&mut self, served: &Arc<Served>, mailbox: &Mailbox, memory: &mut Memory) {
        for mail in mailbox.take() {
            match mail {
                Mail::Action(action) => self.act(served, vec![action], memory),
                Mail::Close => self.told = Some(Told::Refused(None)),
                // The memory is the guest's side's, which keeps its own bounds.
                Mail::GiveBack => {}
            }
        }
    }

    /// Gives the replica what was sent.
    fn ask(&mut self, served: &Arc<Served>, memory: &mut Memory) {
        let Some(connection) = self.connection.filter(|_| !self.batch.is_empty()) else { return };
        let mut asked = Vec::with_capacity(self.batch.len());
        for outgoing in std::mem::take(&mut self.batch) {
            if !served.copy().covers(outgoing.view, &outgoing.request) {
                self.replies.push((outgoing.id, Reply::Failed(libc::EINVAL)));
                continue;
            }
            let has_bytes = matches!(outgoing.request, Request::Write { .. } | Request::Read { .. });
            let outgoing = if has_bytes { memory.lend(outgoing) } else { Some(outgoing) };
            let Some(Outgoing { id, view, request, payload, .. }) = outgoing else { continue };
            if has_bytes {
                self.pending.insert((connection, id), Pending { payload, applied: false });
            }
            asked.push((view, id, request));
        }
        let actions = served.with_replica(connection, |replica| {
            for (view, id, request) in asked {
                replica.request(connection, view, id, request);
            }
        });
        self.act(served, actions, memory);
    }

    fn act(&mut self, served: &Arc<Served>, actions: Vec<Action>, memory: &mut Memory) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Welcome(connection, welcome) if Some(connection) == self.connection => {
                    self.told = Some(Told::Welcome(welcome));
                }
                Action::Refuse(connection, refusal) if Some(connection) == self.connection => {
                    self.told = Some(Told::Refused(superseded(refusal)));
                }
                Action::Welcome(..) | Action::Refuse(..) => {}
                Action::Reply { connection, id, reply } => {
                    self.resolve((connection, id), memory);
                    if Some(connection) == self.connection {
                        self.replies.push((id, reply));
                    }
                }
                Action::Forget { connection, id } => self.resolve((connection, id), memory),
                Action::Apply { connection, id, flight, request } if Some(connection) == self.connection => {
                    self.apply((connection, id), flight, &request, memory);
                }
                // Nobody waits for it any more; the replica waits to hear that it is over.
                Action::Apply { flight, .. } => {
                    let caller = self.connection.unwrap_or(NOBODY);
                    actions
                        .extend(served.with_replica(caller, |replica| replica.applied(flight, Err(libc::ECANCELED))));
                }
                Action::Persist { rows, view } => served.persist(rows, view),
            }
        }
    }

    fn apply(&mut self, key: (ConnectionId, u64), flight: FlightId, request: &Request, memory: &mut Memory) {
        let Some(executor) = &mut self.executor else { return };
        let payload = self.pending.get_mut(&key).map_or(Payload::None, |pending| {
            pending.applied = true;
            pending.payload
        });
        let bytes = match *request {
            Request::Write { len, .. } => match memory.source(payload, len as usize) {
                Some(Source::Here(segment)) => lend(segment),
                Some(Source::Kept(bytes, skip)) => copy(executor, &bytes[skip..skip + len as usize]),
                None => Bytes::none(),
            },
            Request::Read { len, .. } => memory.target(payload, len as usize).map_or_else(Bytes::none, lend),
            _ => Bytes::none(),
        };
        self.applying.insert(flight, key);
        executor.apply(flight, request, bytes);
    }

    /// Tells the replica what has been done.
    fn settle(&mut self, served: &Arc<Served>, ended: &mut Vec<Ended>, memory: &mut Memory) {
        if ended.is_empty() {
            return;
        }
        let mut results = Vec::with_capacity(ended.len());
        for Ended { flight, result, payload } in ended.drain(..) {
            results.push((flight, result));
            if let (Some(buffer), Some(executor)) = (payload, &mut self.executor) {
                executor.give(buffer);
            }
            if let Some(key) = self.applying.remove(&flight) {
                self.resolve(key, memory);
            }
        }
        let actions = served.with_replica(self.connection.unwrap_or(NOBODY), |replica| {
            for (flight, result) in results {
                replica.applied(flight, result);
            }
        });
        self.act(served, actions, memory);
    }

    /// The copy does not use the bytes of a request any more.
    fn resolve(&mut self, key: (ConnectionId, u64), memory: &mut Memory) {
        if let Some(pending) = self.pending.remove(&key)
            && let Some(again) = memory.give_back(pending.payload)
        {
            self.again.push(again);
        }
    }

    fn let_go(&mut self) {
        let idle = self.executor.as_ref().is_none_or(|executor| executor.in_flight() == 0);
        if self.connection.is_none() && idle {
            self.executor = None;
            self.applying.clear();
            self.served = None;
        }
    }

    /// What the disk is doing nobody may wait for any more, and the replica has to hear how it ended.
    fn end_flights(&mut self) {
        let (Some(served), Some(mut executor)) = (self.served.take(), self.executor.take()) else { return };
        let mut ended = Vec::new();
        while executor.in_flight() > 0 && executor.drive(&mut ended).is_ok() {
            thread::sleep(LOOK);
        }
        // Waits for what a failed engine may still have in the kernel.
        drop(executor);
        let results = ended.into_iter().map(|Ended { flight, result, .. }| (flight, result));
        let mut results: Vec<_> = results.filter(|(flight, _)| self.applying.remove(flight).is_some()).collect();
        results.extend(self.applying.drain().map(|(flight, _)| (flight, Err(libc::EIO))));
        carry_out(
            &served,
            served.with_replica(NOBODY, |replica| {
                for (flight, result) in results {
                    replica.applied(flight, result);
                }
            }),
        );
    }
}

impl Drop for LocalHands {
    fn drop(&mut self) {
        self.end_flights();
    }
}

/// Carries out what the replica wants of nobody in particular.
fn carry_out(served: &Arc<Served>, actions: Vec<Action>) {
    for action in actions {
        if let Action::Persist { rows, view } = action {
            served.persist(rows, view);
        }
    }
}

fn superseded(refusal: Refusal) -> Option<ViewNumber> {
    match refusal {
        Refusal::Superseded(number) => Some(number),
        _ => None,
    }
}

/// Lends memory to the disk.
fn lend(segment: Segment) -> Bytes {
    // SAFETY: the memory has room, it is kept until the disk has given it back, and a request's bytes are with
    // one disk at a time, or only read. Buffers are what segments point to, so they are aligned as those are.
    unsafe { Bytes::borrowed(segment) }
}

/// Copies bytes to a buffer of the executor's. If there is none, the request fails for lack of bytes.
fn copy(executor: &mut Executor, bytes: &[u8]) -> Bytes {
    let Some(mut buffer) = executor.buffer(bytes.len()) else { return Bytes::none() };
    // SAFETY: the buffer is ours, and was taken for that many bytes.
    unsafe { buffer.as_mut_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    Bytes::owned(buffer)
}

/// Between two looks at a disk that nobody waits for.
const LOOK: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests;
