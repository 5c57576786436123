//! One lane of the writer: its connections with the members, and its hands on the copy in this process.
//!
//! A lane belongs to one thread. The lane of a queue of the device carries that queue's requests, and is driven
//! by the queue's own thread, so that no other has to be woken on their way; the lane for control has a thread of
//! its own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, epoll};

use super::local::{LocalCopy, LocalHands, Told};
use super::mailbox::Mail;
use super::memory::{Memory, Outgoing};
use super::peer::{Peer, PeerError};
use super::shared::Shared;
use crate::io::WAKERS_MAX;
use crate::replication::message::Reply;
use crate::replication::replica::ConnectionId;
use crate::replication::server::served::Served;
use crate::replication::view::{MEMBERS_MAX, MemberIndex, ViewNumber};
use crate::replication::writer::{Lane, Time};

/// One lane.
pub(super) struct Hands {
    lane: Lane,
    shared: Arc<Shared>,
    peers: Vec<Peer>,
    /// The member whose copy is in this process.
    here: Option<MemberIndex>,
    // Before the memory: it ends what is in flight.
    local: LocalHands,
    copy: Option<Arc<LocalCopy>>,
    memory: Memory,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    mail: Vec<Mail>,
    replies: Vec<Answered>,
    received: Vec<(u64, Reply)>,
    again: Vec<Outgoing>,
    for_control: Vec<ForControl>,
    /// Whether the writer wants to hear that all that has come has been taken.
    to_look: bool,
}

/// A reply, and whose.
struct Answered {
    member: MemberIndex,
    session: u64,
    id: u64,
    reply: Reply,
}

/// What only the lane for control does.
pub(super) enum ForControl {
    /// Make a session with the copy in this process.
    JoinLocal { session: u64, view: ViewNumber },
    /// The session with it is over.
    LeaveLocal,
    /// The copy in this process is a member no more.
    CloseCopy,
    /// What the copy in this process says of its session.
    Told(Told),
}

impl Hands {
    /// Of a lane, for at most so many operations of the disk at once.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left.
    pub(super) fn new(
        shared: Arc<Shared>,
        copy: Option<Arc<LocalCopy>>,
        lane: Lane,
        depth: usize,
        pieces_max: usize,
    ) -> io::Result<Hands> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let add = |fd: BorrowedFd<'_>, number| {
            epoll::add(&epoll, fd, epoll::EventData::new_u64(number), epoll::EventFlags::IN)
        };
        add(shared.mailbox(lane).as_fd(), MAIL)?;
        if let Some(copy) = &copy {
            add(copy.mailbox(lane.0).as_fd(), COPY_MAIL)?;
        }
        Ok(Hands {
            lane,
            peers: (0..MEMBERS_MAX).map(|_| Peer::default()).collect(),
            here: shared.look(|state| state.local()),
            local: LocalHands::new(depth),
            copy,
            memory: Memory::new(shared.clone(), pieces_max),
            shared,
            epoll,
            events: Vec::with_capacity(MEMBERS_MAX + 2),
            mail: Vec::new(),
            replies: Vec::new(),
            received: Vec::new(),
            again: Vec::new(),
            for_control: Vec::new(),
            to_look: false,
        })
    }

    /// The lane.
    pub(super) fn lane(&self) -> Lane {
        self.lane
    }

    /// Requests of the guest that have not ended for it.
    pub(super) fn requests(&self) -> usize {
        self.memory.requests()
    }

    /// The bytes in its keeping.
    pub(super) fn memory(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// What the lane for control has to do.
    pub(super) fn take_for_control(&mut self) -> Vec<ForControl> {
        std::mem::take(&mut self.for_control)
    }

    /// Takes the lane's connection with the copy in this process.
    ///
    /// # Errors
    ///
    /// When there are no hands to be had for the disk.
    pub(super) fn join(&mut self, served: Arc<Served>, session: u64, connection: ConnectionId) -> io::Result<()> {
        self.local.joined(served, session, connection)
    }

    /// Does what there is to do and can be done without waiting.
    ///
    /// # Errors
    ///
    /// When the sockets cannot be looked at.
    pub(super) fn drive(&mut self) -> io::Result<()> {
        self.look()?;
        self.work();
        Ok(())
    }

    /// As [`drive`](Self::drive), without a look at what has come meanwhile: for what the lane itself was given.
    pub(super) fn work(&mut self) {
        loop {
            self.read_mail();
            self.pass_on();
            self.work_locally();
            self.receive();
            for outgoing in std::mem::take(&mut self.again) {
                self.send(outgoing);
            }
            if self.replies.is_empty() && !self.to_look && !self.shared.mailbox(self.lane).has_mail() {
                break;
            }
            self.tell_writer();
        }
        self.pass_on();
    }

    /// Sleeps until there is something to [`drive`](Self::drive), or one of `wakers` is readable: one fewer than
    /// an engine can watch. May return early.
    ///
    /// # Errors
    ///
    /// When the sockets cannot be watched.
    pub(super) fn wait(&mut self, wakers: &[BorrowedFd<'_>]) -> io::Result<()> {
        if self.shared.mailbox(self.lane).has_mail() {
            return Ok(());
        }
        for (number, peer) in (PEERS..).zip(&mut self.peers) {
            peer.watch(&self.epoll, number)?;
        }
        // The same place for it at every call.
        let mut watched = vec![self.epoll.as_fd()];
        watched.extend_from_slice(&wakers[..wakers.len().min(WAKERS_MAX - 1)]);
        match self.local.executor() {
            Some(executor) => {
                if let Err(error) = executor.wait(&watched) {
                    self.give_up(&error);
                }
                Ok(())
            }
            None => {
                let mut polled: Vec<_> = watched.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
                match rustix::event::poll(&mut polled, None) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    /// Notes which sockets are readable: one system call, however many there are.
    fn look(&mut self) -> io::Result<()> {
        self.events.clear();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), Some(&now)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &self.events {
            match event.data.u64() {
                MAIL => self.shared.mailbox(self.lane).acknowledge(),
                COPY_MAIL => {}
                number => self.peers[(number - PEERS) as usize].readable(),
            }
        }
        Ok(())
    }

    fn read_mail(&mut self) {
        let mut mail = std::mem::take(&mut self.mail);
        self.shared.mailbox(self.lane).take(&mut mail);
        for mail in mail.drain(..) {
            self.read(mail);
        }
        self.mail = mail;
    }

    fn read(&mut self, mail: Mail) {
        match mail {
            Mail::Send { member, id, view, request, payload } => {
                self.send(Outgoing { member, id, view, request, payload });
            }
            Mail::Abandon { member, id } => self.peers[usize::from(member.0)].abandon(id),
            Mail::Complete { token, result } => self.memory.end(token, result),
            Mail::Connected { member, session, connection } => {
                let peer = &mut self.peers[usize::from(member.0)];
                let connected = peer.connected(session, connection, &mut self.memory);
                self.check(member, connected);
            }
            Mail::Joined { session, connection } => {
                let Some(served) = self.copy.as_ref().and_then(|copy| copy.served()) else { return };
                if let Err(error) = self.local.joined(served, session, connection) {
                    log::error!("the copy in this process cannot be used: {error}");
                    self.local_failed(None);
                }
            }
            Mail::Disconnect { member } if Some(member) == self.here => {
                if let Some(copy) = &self.copy {
                    self.local.disconnect(copy.mailbox(self.lane.0), &mut self.memory);
                }
                self.memory.forget_postponed(member);
                if self.lane == Lane::CONTROL {
                    self.for_control.push(ForControl::LeaveLocal);
                }
            }
            Mail::Disconnect { member } => {
                self.peers[usize::from(member.0)].disconnect();
                self.memory.forget_postponed(member);
            }
            Mail::JoinLocal { session, view } => self.for_control.push(ForControl::JoinLocal { session, view }),
            // Its session is over. From now on the place may be another's.
            Mail::CopyRetired => {
                self.here = None;
                if self.lane == Lane::CONTROL {
                    self.for_control.push(ForControl::CloseCopy);
                }
            }
            Mail::Look => {
                self.to_look = true;
                // Also what has come since the sockets were looked at.
                self.peers.iter_mut().for_each(Peer::readable);
            }
            Mail::CopyEnded { copy } => self.memory.end_piece(copy),
        }
    }

    fn send(&mut self, outgoing: Outgoing) {
        let member = outgoing.member;
        if Some(member) == self.here {
            self.local.send(outgoing);
        } else if let Some(outgoing) = self.memory.may_send(outgoing) {
            let sent = self.peers[usize::from(member.0)].send(outgoing, &mut self.memory);
            self.check(member, sent);
        }
    }

    /// Sends what is queued.
    fn pass_on(&mut self) {
        for (index, peer) in (0u8..).zip(&mut self.peers) {
            if let Err(error) = peer.pass_on() {
                let session = peer.session;
                fail(&self.shared, self.lane, MemberIndex(index), session, &error);
            }
        }
    }

    /// Takes the replies of the members on other nodes.
    fn receive(&mut self) {
        for (index, peer) in (0u8..).zip(&mut self.peers) {
            let (member, session) = (MemberIndex(index), peer.session);
            let received = peer.receive(&mut self.memory, &mut self.received);
            let replies = self.received.drain(..).map(|(id, reply)| Answered { member, session, id, reply });
            self.replies.extend(replies);
            if let Err(error) = received {
                fail(&self.shared, self.lane, member, session, &error);
            }
        }
    }

    /// Does what the copy in this process is asked for.
    fn work_locally(&mut self) {
        // Also one that is a member no more has to end what it was asked for, and its answers are nobody's.
        let Some(copy) = &self.copy else { return };
        let mailbox = copy.mailbox(self.lane.0).clone();
        let session = self.local.session();
        let worked = self.local.work(&mailbox, &mut self.memory, &mut self.received, &mut self.again);
        for (id, reply) in self.received.drain(..) {
            self.replies.extend(self.here.map(|member| Answered { member, session, id, reply }));
        }
        match self.local.take_told() {
            Some(told) if self.lane == Lane::CONTROL => self.for_control.push(ForControl::Told(told)),
            Some(Told::Refused(superseded)) => self.local_failed(superseded),
            _ => {}
        }
        if let Err(error) = worked {
            self.give_up(&error);
        }
    }

    /// The engine of the copy in this process has failed: what the lane was given is asked again in another session.
    fn give_up(&mut self, error: &io::Error) {
        log::error!(
            "the I/O engine of a queue failed: {error}: the session with the copy in this process is begun anew"
        );
        if let Some(copy) = &self.copy {
            self.local.give_up(copy.mailbox(self.lane.0), &mut self.memory);
        }
        self.local_failed(None);
    }

    fn tell_writer(&mut self) {
        let (replies, has_looked) = (std::mem::take(&mut self.replies), std::mem::take(&mut self.to_look));
        if replies.is_empty() && !has_looked {
            return;
        }
        let lane = self.lane;
        self.shared.with_writer(Some(lane), |state, now: Time| {
            for Answered { member, session, id, reply } in replies {
                state.writer.replied(now, member, session, id, reply);
            }
            if has_looked {
                state.writer.looked(now, lane);
            }
        });
    }

    fn check(&self, member: MemberIndex, result: Result<(), PeerError>) {
        if let Err(error) = result {
            fail(&self.shared, self.lane, member, self.peers[usize::from(member.0)].session, &error);
        }
    }

    fn local_failed(&self, superseded: Option<ViewNumber>) {
        if let Some(member) = self.here {
            self.shared.disconnected(Some(self.lane), member, self.local.session(), superseded);
        }
    }
}

/// A connection cannot be used any more, and so its session cannot.
fn fail(shared: &Arc<Shared>, lane: Lane, member: MemberIndex, session: u64, error: &PeerError) {
    shared.note_failure(member, session, error);
    shared.disconnected(Some(lane), member, session, None);
}

/// What the events of the epoll set are about: the lane's mail, that of its connection with the copy in this
/// process, and from here on the members on other nodes.
const MAIL: u64 = 0;
const COPY_MAIL: u64 = 1;
const PEERS: u64 = 2;
