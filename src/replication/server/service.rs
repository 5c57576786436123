//! One connection of a writer, by the thread that serves it.
//!
//! Requests come in as frames and go to the replica; what the replica wants done for this connection is
//! done by this thread's executor, and its replies go out. In between the thread sleeps in its engine, where
//! one epoll descriptor wakes it for the socket and for its mailbox.
//!
//! What a writer has in flight is bounded, in requests and in bytes: beyond that its bytes are left in
//! the socket until something has ended, and so they are while it does not read its replies.
//!
//! How it ends: the peer goes or breaks the protocol, the replica refuses it, or it is told to close. In
//! each case what is in flight on the copy is finished first, and the replica told of it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, epoll};

use super::budget::{Grant, OWN_BYTES};
use super::copies::Lease;
use super::denied::Denied;
use super::served::{Mail, Mailbox, Served};
use crate::io::buffer::{BUFFER_BYTES_MAX, Buffer, buffer_bytes};
use crate::io::patience::Patience;
use crate::replication::copy::{Ended, Executor, Payload};
use crate::replication::message::{Hello, PAYLOAD_BYTES_MAX, Reply, Request};
use crate::replication::replica::{Action, ConnectionId, FlightId, Refusal};
use crate::replication::transport::{Connection, TransportError};
use crate::replication::view::ViewNumber;
use crate::replication::wire::{Answer, ProtocolVersion, RequestFrame, Role, WireError, encode_reply};

/// A connection that was let in.
pub struct Service {
    connection: Connection,
    // Before the lease: it holds the copy.
    executor: Executor,
    epoll: OwnedFd,
    interest: epoll::EventFlags,
    events: Vec<epoll::Event>,
    /// The socket may have more than was taken from it.
    readable: bool,
    mailbox: Arc<Mailbox>,
    lease: Lease,
    id: ConnectionId,
    version: ProtocolVersion,
    welcomed: bool,
    /// Requests that are not answered.
    pending: BTreeMap<u64, Pending>,
    /// What the disk is doing: for which requests.
    applying: BTreeMap<FlightId, Applying>,
    /// Of requests that are not answered, or are but not done.
    bytes_pending: usize,
    /// The bytes that requests and replies may take.
    grant: Grant,
    /// A write of which not all bytes are there.
    incoming: Option<(RequestFrame, Buffer)>,
    patience: Patience,
    closing: bool,
    refused: Option<Refusal>,
    ended: Vec<Ended>,
    frame: Vec<u8>,
}

struct Pending {
    bytes: usize,
    /// The disk is busy with it.
    flight: Option<FlightId>,
    /// Bytes of a read.
    read: usize,
    /// What came with a write, or was read.
    buffer: Option<Buffer>,
}

/// What the disk is busy with.
enum Applying {
    /// The request with this id.
    Pending(u64),
    /// A write that is answered, and takes so many bytes.
    Answered(usize),
}

/// How a connection came to its end.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// It was told to.
    #[error("the copy is closed")]
    Closed,
    /// The replica would not have it (any more).
    #[error(transparent)]
    Refused(Denied),
    /// The peer has gone, or breaks the rules.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The peer breaks the rules of frames.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The peer breaks the rules of requests.
    #[error("the writer breaks the protocol: {0}")]
    Protocol(&'static str),
    /// The engine has failed.
    #[error("the I/O engine failed: {0}: the copy is given up until it is opened again")]
    Engine(#[source] io::Error),
}

/// What it takes to serve a connection, beside the connection.
pub struct Tools {
    executor: Executor,
    epoll: OwnedFd,
    mailbox: Arc<Mailbox>,
    grant: Grant,
}

impl Tools {
    /// Tools for a connection to the copy that is leased.
    ///
    /// # Errors
    ///
    /// When there are no descriptors or no memory left.
    pub fn new(lease: &Lease, grant: Grant) -> io::Result<Tools> {
        let mut executor = lease.served().copy().executor(DEPTH)?;
        executor.limit_buffers(grant.bytes());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mailbox = Arc::new(Mailbox::new()?);
        epoll::add(&epoll, mailbox.as_fd(), epoll::EventData::new_u64(MAIL), epoll::EventFlags::IN)?;
        Ok(Tools { executor, epoll, mailbox, grant })
    }

    /// Where the connection is told what others want of it.
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }
}

impl Service {
    /// Prepares to serve a connection as number `id`. The disk is watched for `watch_time` at most.
    pub fn new(
        connection: Connection,
        lease: Lease,
        tools: Tools,
        id: ConnectionId,
        version: ProtocolVersion,
        watch_time: Duration,
    ) -> Service {
        let Tools { executor, epoll, mailbox, grant } = tools;
        lease.served().join(id, mailbox.clone());
        Service {
            connection,
            executor,
            epoll,
            interest: epoll::EventFlags::empty(),
            events: Vec::with_capacity(2),
            // What came before is not in the socket any more, which would tell of it.
            readable: true,
            mailbox,
            lease,
            id,
            version,
            welcomed: false,
            pending: BTreeMap::new(),
            applying: BTreeMap::new(),
            bytes_pending: 0,
            grant,
            incoming: None,
            // The writer's thread may need this very CPU to ask again.
            patience: Patience::new(watch_time).for_disk_alone().giving_way(),
            closing: false,
            refused: None,
            ended: Vec::new(),
            frame: Vec::new(),
        }
    }

    /// Serves it to its end, beginning with its hello, which has been found in order.
    pub fn run(mut self, hello: &Hello) -> End {
        let served = self.lease.served().clone();
        let actions = served.with_replica(self.id, |replica| replica.hello(self.id, hello));
        let end = self.act(&served, actions).and_then(|()| self.serve(&served)).err().unwrap_or(End::Closed);
        if matches!(end, End::Refused(_) | End::Closed) {
            say_last(&mut self.connection);
        }
        self.leave(served, &end);
        end
    }

    fn serve(&mut self, served: &Arc<Served>) -> Result<(), End> {
        loop {
            let mut busy = self.read_mail(served)?;
            if !self.closing {
                busy |= self.take_requests(served)?;
            }
            let mut was_full = self.is_full();
            // What is answered before it is done need not wait until the disk is asked.
            self.connection.send()?;
            busy |= self.settle(served)?;
            if let Some(refusal) = self.refused.take() {
                return Err(End::Refused(refusal.into()));
            }
            if self.closing && self.pending.is_empty() {
                return Ok(());
            }
            was_full |= self.is_full();
            self.connection.send()?;
            // Requests that were left where they are may be in memory already, where no socket tells of them.
            busy |= was_full && !self.is_full();
            // For what is answered nobody waits.
            if !busy && !self.patience.keep_watching(!self.pending.is_empty()) {
                self.patience.sleeps();
                self.sleep().map_err(End::Engine)?;
            }
        }
    }

    fn read_mail(&mut self, served: &Arc<Served>) -> Result<bool, End> {
        let mail = self.mailbox.take();
        let busy = !mail.is_empty();
        let mut actions = Vec::new();
        for mail in mail {
            match mail {
                Mail::Action(action) => actions.push(action),
                Mail::Close => self.closing = true,
                Mail::GiveBack => self.give_back(),
            }
        }
        self.act(served, actions)?;
        Ok(busy)
    }

    /// Takes the requests that are there, as far as they may be in flight. True if anything came.
    fn take_requests(&mut self, served: &Arc<Served>) -> Result<bool, End> {
        let mut busy = false;
        let mut batch = Vec::new();
        while batch.len() < BATCH_MAX && self.has_room() {
            match self.next_frame()? {
                Some((frame, buffer)) => {
                    busy = true;
                    batch.extend(self.admit(served, frame, buffer)?);
                }
                None if self.readable && self.receive()? => busy = true,
                None => break,
            }
        }
        if !batch.is_empty() {
            self.patience.asked();
            let id = self.id;
            let actions = served.with_replica(id, |replica| {
                for (view, request_id, request) in batch {
                    replica.request(id, view, request_id, request);
                }
            });
            self.act(served, actions)?;
        }
        Ok(busy)
    }

    fn receive(&mut self) -> Result<bool, End> {
        let came = self.connection.receive()?;
        self.readable = !self.connection.is_drained();
        Ok(came)
    }

    fn next_frame(&mut self) -> Result<Option<(RequestFrame, Option<Buffer>)>, End> {
        if self.incoming.is_none() {
            let Some(header) = self.connection.header()? else { return Ok(None) };
            header.expect(Role::Request)?;
            if !header.is_payload() {
                let Some(body) = self.connection.body() else { return Ok(None) };
                return Ok(Some((RequestFrame::decode(&header, &body)?, None)));
            }
            let frame = RequestFrame::decode(&header, &[])?;
            let len = header.body_bytes() as usize;
            let buffer = self.executor.buffer(len).ok_or(End::Protocol("more bytes than there may be in flight"))?;
            self.incoming = Some((frame, buffer));
        }
        if let Some((RequestFrame { request: Request::Write { len, .. }, .. }, buffer)) = &mut self.incoming {
            // SAFETY: the buffer is ours alone, initialized, and was taken for that many bytes.
            let target = unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr(), *len as usize) };
            if !self.connection.payload(target) {
                return Ok(None);
            }
        }
        Ok(self.incoming.take().map(|(frame, buffer)| (frame, Some(buffer))))
    }

    /// Notes a request as pending; answers one that the volume cannot have.
    fn admit(
        &mut self,
        served: &Arc<Served>,
        frame: RequestFrame,
        buffer: Option<Buffer>,
    ) -> Result<Option<(ViewNumber, u64, Request)>, End> {
        let RequestFrame { view, id, request } = frame;
        if self.pending.contains_key(&id) {
            return Err(End::Protocol("an id is in use twice"));
        }
        if !served.copy().covers(view, &request) {
            if let Some(buffer) = buffer {
                self.executor.give(buffer);
            }
            self.reply(id, &Reply::Failed(libc::EINVAL))?;
            return Ok(None);
        }
        let (bytes, read) = match &request {
            Request::Write { len, .. } => (buffer_bytes(*len as usize), 0),
            Request::Read { len, .. } => (buffer_bytes(*len as usize), *len as usize),
            Request::Digest { len, .. } => (buffer_bytes(*len as usize), 0),
            Request::Rows { count, .. } => (*count as usize * 8, 0),
            Request::Settle(settled) => (settled.len() * 12, 0),
            _ => (0, 0),
        };
        self.bytes_pending += bytes;
        self.pending.insert(id, Pending { bytes, flight: None, read, buffer });
        Ok(Some((view, id, request)))
    }

    /// Carries out what the replica wants, and what follows from that.
    fn act(&mut self, served: &Arc<Served>, actions: Vec<Action>) -> Result<(), End> {
        let mut result = Ok(());
        // All of them, also after one has failed: others may wait for what is in them.
        for action in actions {
            match action {
                Action::Welcome(_, welcome) => {
                    self.welcomed = true;
                    result = result.and(self.answer(&Answer::Welcome { version: self.version, welcome }));
                }
                Action::Refuse(_, refusal) => {
                    if !self.welcomed {
                        result = result.and(self.answer(&Answer::Refused(Denied::from(refusal).refusal())));
                    }
                    self.refused = Some(refusal);
                }
                Action::Reply { id, reply, .. } => result = result.and(self.reply(id, &reply)),
                Action::Forget { id, .. } => {
                    if let Some(buffer) = self.pending.get_mut(&id).and_then(|pending| pending.buffer.take()) {
                        self.executor.give(buffer);
                    }
                }
                Action::Apply { id, flight, request, .. } => {
                    let buffer = self.pending.get_mut(&id).and_then(|pending| {
                        pending.flight = Some(flight);
                        pending.buffer.take()
                    });
                    let payload = buffer.map_or_else(Payload::none, Payload::owned);
                    self.applying.insert(flight, Applying::Pending(id));
                    self.executor.apply(flight, &request, payload);
                }
                Action::Persist { rows, view } => served.persist(rows, view),
            }
        }
        result
    }

    /// Looks at what has been done on the copy. True if there was anything.
    fn settle(&mut self, served: &Arc<Served>) -> Result<bool, End> {
        let mut ended = std::mem::take(&mut self.ended);
        let driven = self.executor.drive(&mut ended);
        let busy = !ended.is_empty();
        let mut awaited = false;
        let mut results = Vec::with_capacity(ended.len());
        for Ended { flight, result, payload } in ended.drain(..) {
            results.push((flight, result));
            let pending = match self.applying.remove(&flight) {
                Some(Applying::Pending(id)) => self.pending.get_mut(&id),
                Some(Applying::Answered(bytes)) => {
                    self.bytes_pending -= bytes;
                    None
                }
                None => None,
            };
            awaited |= pending.is_some();
            match (pending, payload) {
                (Some(pending), Some(buffer)) if pending.read > 0 => {
                    (pending.flight, pending.buffer) = (None, Some(buffer));
                }
                (pending, payload) => {
                    pending.into_iter().for_each(|pending| pending.flight = None);
                    payload.into_iter().for_each(|buffer| self.executor.give(buffer));
                }
            }
        }
        self.ended = ended;
        if awaited {
            self.patience.disk_came();
        }
        if busy {
            let own = self.id;
            let actions = served.with_replica(own, |replica| {
                for (flight, result) in results {
                    replica.applied(flight, result);
                }
            });
            self.act(served, actions)?;
        }
        if awaited {
            self.patience.answered();
        }
        driven.map_err(End::Engine)?;
        Ok(busy)
    }

    fn answer(&mut self, answer: &Answer) -> Result<(), End> {
        self.frame.clear();
        answer.encode(&mut self.frame)?;
        self.connection.queue(&self.frame, &[]);
        Ok(())
    }

    /// Queues a reply, and the bytes that belong to it; the request is then over.
    fn reply(&mut self, id: u64, reply: &Reply) -> Result<(), End> {
        let pending = self.pending.remove(&id);
        let bytes = pending.as_ref().map_or(0, |pending| pending.bytes);
        match pending.as_ref().and_then(|pending| pending.flight) {
            Some(flight) => _ = self.applying.insert(flight, Applying::Answered(bytes)),
            None => self.bytes_pending -= bytes,
        }
        let read = pending.as_ref().map_or(0, |pending| pending.read);
        let buffer = pending.and_then(|pending| pending.buffer);
        let reply = match reply {
            // What no error number is cannot be sent.
            Reply::Failed(errno) if !(1..=ERRNO_MAX).contains(errno) => &Reply::Failed(libc::EIO),
            reply => reply,
        };
        self.frame.clear();
        encode_reply(id, reply, read as u32, &mut self.frame)?;
        match (&buffer, reply) {
            (Some(buffer), Reply::Data) => {
                // SAFETY: the read has filled that many bytes, and nobody writes to them.
                let data = unsafe { std::slice::from_raw_parts(buffer.as_ptr(), read) };
                self.connection.queue(&self.frame, data);
            }
            (None, Reply::Data) => return Err(End::Protocol("there are no bytes for a read")),
            _ => self.connection.queue(&self.frame, &[]),
        }
        if let Some(buffer) = buffer {
            self.executor.give(buffer);
        }
        Ok(())
    }

    /// Whether another request may come, be it with more memory.
    fn has_room(&mut self) -> bool {
        while self.is_full() && self.requests() < REQUESTS_MAX && self.grant.grow() {
            self.executor.limit_buffers(self.grant.bytes());
        }
        !self.is_full()
    }

    /// Whether no more requests may come for now.
    fn is_full(&self) -> bool {
        let used = self.bytes_pending + self.connection.outbound_bytes();
        self.requests() >= REQUESTS_MAX || used + PAYLOAD_BYTES_MAX as usize > self.grant.bytes()
    }

    /// Requests that are not answered, or are but not done.
    fn requests(&self) -> usize {
        self.pending.len().max(self.executor.in_flight())
    }

    /// Makes do with little memory, if nothing is in flight.
    fn give_back(&mut self) {
        if self.requests() == 0 && self.incoming.is_none() && self.connection.outbound_bytes() == 0 {
            self.grant.shrink();
            self.executor.limit_buffers(self.grant.bytes());
        }
    }

    fn sleep(&mut self) -> io::Result<()> {
        let mut wanted = epoll::EventFlags::empty();
        wanted.set(epoll::EventFlags::IN, !self.closing && !self.is_full());
        wanted.set(epoll::EventFlags::OUT, self.connection.outbound_bytes() > 0);
        self.watch(wanted)?;
        self.executor.wait(&[self.epoll.as_fd()])?;
        self.events.clear();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), Some(&now)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.readable |= self.events.iter().any(|event| event.data.u64() == SOCKET);
        Ok(())
    }

    /// Has the socket watched for what is wanted. For nothing it is taken out, as errors are always told.
    fn watch(&mut self, wanted: epoll::EventFlags) -> io::Result<()> {
        if wanted == self.interest {
            return Ok(());
        }
        let data = epoll::EventData::new_u64(SOCKET);
        match (self.interest.is_empty(), wanted.is_empty()) {
            (true, _) => epoll::add(&self.epoll, self.connection.as_fd(), data, wanted)?,
            (_, true) => epoll::delete(&self.epoll, self.connection.as_fd())?,
            _ => epoll::modify(&self.epoll, self.connection.as_fd(), data, wanted)?,
        }
        self.interest = wanted;
        Ok(())
    }

    /// Takes leave of the replica, and finishes what is in flight. The lease ends last: who waits for the copy to be
    /// closed finds nothing of it in use then.
    fn leave(mut self, served: Arc<Served>, end: &End) {
        let id = self.id;
        let actions = served.with_replica(id, |replica| replica.closed(id));
        let mut engine_failed = matches!(end, End::Engine(_)) || self.watch(epoll::EventFlags::empty()).is_err();
        // What it would say to the peer does not matter any more.
        let _ = self.act(&served, actions);
        let _ = self.read_mail(&served);
        while !engine_failed && self.executor.in_flight() > 0 {
            engine_failed = matches!(self.settle(&served), Err(End::Engine(_)));
            let _ = self.read_mail(&served);
            if !engine_failed && self.executor.in_flight() > 0 {
                engine_failed = self.executor.wait(&[self.epoll.as_fd()]).is_err();
            }
        }
        let Service { executor, connection, applying, lease, .. } = self;
        connection.close();
        // Waits for what a failed engine may still have in the kernel.
        drop(executor);
        if engine_failed {
            log::error!("{}: the I/O engine of a connection failed", served.copy().dir().display());
            let actions = served.with_replica(id, |replica| {
                for flight in applying.into_keys() {
                    replica.applied(flight, Err(libc::EIO));
                }
            });
            log::debug!("left behind: {actions:?}");
        }
        served.leave(id);
        drop(served);
        drop(lease);
    }
}

/// Sends what is queued, but does not wait long for a peer that does not take it.
pub fn say_last(connection: &mut Connection) {
    let deadline = Instant::now() + LAST_WORDS;
    while let Ok(false) = connection.send() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || !wait_for(connection.as_fd(), PollFlags::OUT, left) {
            return;
        }
    }
}

/// Waits for a socket; false if the time is over.
pub fn wait_for(socket: BorrowedFd<'_>, what: PollFlags, time: Duration) -> bool {
    let time = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
    let mut polled = [PollFd::new(&socket, what)];
    !matches!(rustix::event::poll(&mut polled, Some(&time)), Ok(0))
}

/// What the events of the epoll set are about.
const MAIL: u64 = 0;
const SOCKET: u64 = 1;
/// Operations of a connection's engine that are in flight at once.
const DEPTH: usize = 128;
const REQUESTS_MAX: usize = 64;
const BATCH_MAX: usize = 64;
const ERRNO_MAX: i32 = 4095;
const LAST_WORDS: Duration = Duration::from_secs(1);
const _: () = assert!(PAYLOAD_BYTES_MAX as usize <= BUFFER_BYTES_MAX, "a payload fits into one buffer");
const _: () = assert!(2 * BUFFER_BYTES_MAX <= OWN_BYTES, "a connection goes on with what is its own");
