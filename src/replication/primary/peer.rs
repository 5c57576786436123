//! One lane's connection with one member on another node.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll;

use super::memory::{Memory, Outgoing, Source};
use crate::replication::message::{Reply, Request};
use crate::replication::transport::{Connection, TransportError};
use crate::replication::wire::{ReplyFrame, Role, WireError, encode_request};
use crate::replication::writer::Payload;

/// One lane's connection with one member.
#[derive(Default)]
pub(super) struct Peer {
    /// The session that it belongs to.
    pub(super) session: u64,
    connection: Option<Box<Connection>>,
    interest: epoll::EventFlags,
    /// The socket may have more than was taken from it.
    readable: bool,
    /// Where the bytes of reads go, and how many; nowhere if nobody waits for them any more.
    reads: HashMap<u64, (Payload, u32)>,
    /// What came before the connection did.
    early: Vec<Outgoing>,
    frame: Vec<u8>,
}

/// Why a connection cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("what was to be sent or was answered breaks the protocol: {0}")]
    Wire(#[from] WireError),
    #[error("the replica breaks the protocol: {0}")]
    Protocol(&'static str),
    #[error("the bytes of a request are gone")]
    NoBytes,
    #[error("the socket cannot be watched: {0}")]
    Watch(#[from] io::Error),
}

impl Peer {
    /// Takes the connection of a session, and sends what came before it.
    ///
    /// # Errors
    ///
    /// [`PeerError`]: the session is over.
    pub(super) fn connected(
        &mut self,
        session: u64,
        connection: Box<Connection>,
        memory: &mut Memory,
    ) -> Result<(), PeerError> {
        if self.connection.is_some() {
            // Called for twice: by whoever had the lane before, and by its owner now.
            connection.close();
            return Ok(());
        }
        self.session = session;
        self.connection = Some(connection);
        // What came with the handshake is not in the socket any more, which would tell of it.
        self.readable = true;
        for outgoing in std::mem::take(&mut self.early) {
            self.send(outgoing, memory)?;
        }
        Ok(())
    }

    /// The session is over.
    pub(super) fn disconnect(&mut self) {
        if let Some(connection) = self.connection.take() {
            // Closing the socket takes it out of the epoll set.
            connection.close();
        }
        self.interest = epoll::EventFlags::empty();
        self.reads.clear();
        self.early.clear();
    }

    /// Queues a request.
    ///
    /// # Errors
    ///
    /// [`PeerError`]: the session is over.
    pub(super) fn send(&mut self, outgoing: Outgoing, memory: &mut Memory) -> Result<(), PeerError> {
        let Some(connection) = &mut self.connection else {
            self.early.push(outgoing);
            return Ok(());
        };
        let Outgoing { id, view, request, payload, .. } = outgoing;
        self.frame.clear();
        encode_request(view, id, &request, &mut self.frame)?;
        match request {
            Request::Write { len, .. } => match memory.source(payload, len as usize).ok_or(PeerError::NoBytes)? {
                Source::Here(segment) => {
                    // SAFETY: the memory has that many bytes, and nobody writes to it before the request has
                    // been answered.
                    let bytes = unsafe { std::slice::from_raw_parts(segment.base, segment.len) };
                    connection.queue(&self.frame, bytes);
                }
                Source::Kept(bytes, skip) => connection.queue(&self.frame, &bytes[skip..skip + len as usize]),
            },
            Request::Read { len, .. } => {
                self.reads.insert(id, (payload, len));
                connection.queue(&self.frame, &[]);
            }
            _ => connection.queue(&self.frame, &[]),
        }
        Ok(())
    }

    /// The bytes of a read are not wanted any more. From now on they are not moved to where they were to go, also if
    /// some have been.
    pub(super) fn abandon(&mut self, id: u64) {
        if let Some((payload, _)) = self.reads.get_mut(&id) {
            *payload = Payload::None;
        }
        for outgoing in self.early.iter_mut().filter(|outgoing| outgoing.id == id) {
            outgoing.payload = Payload::None;
        }
    }

    /// Sends what the socket takes of what is queued.
    ///
    /// # Errors
    ///
    /// [`PeerError`]: the session is over.
    pub(super) fn pass_on(&mut self) -> Result<(), PeerError> {
        if let Some(connection) = &mut self.connection
            && connection.outbound_bytes() > 0
        {
            connection.send()?;
        }
        Ok(())
    }

    /// The socket is readable.
    pub(super) fn readable(&mut self) {
        self.readable = true;
    }

    /// Takes the replies that are there.
    ///
    /// # Errors
    ///
    /// [`PeerError`]: the session is over. The replies before are there all the same.
    pub(super) fn receive(&mut self, memory: &mut Memory, replies: &mut Vec<(u64, Reply)>) -> Result<(), PeerError> {
        loop {
            let Some(reply) = self.next_reply(memory)? else {
                let Some(connection) = self.connection.as_mut().filter(|_| self.readable) else { return Ok(()) };
                let came = connection.receive()?;
                self.readable = !connection.is_drained();
                if came {
                    continue;
                }
                return Ok(());
            };
            replies.push(reply);
        }
    }

    /// Has the socket watched for what can be done with it.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(super) fn watch(&mut self, epoll: &OwnedFd, number: u64) -> io::Result<()> {
        let Some(connection) = &self.connection else { return Ok(()) };
        let mut wanted = epoll::EventFlags::IN;
        wanted.set(epoll::EventFlags::OUT, connection.outbound_bytes() > 0);
        if wanted == self.interest {
            return Ok(());
        }
        let data = epoll::EventData::new_u64(number);
        if self.interest.is_empty() {
            epoll::add(epoll, connection.as_fd(), data, wanted)?;
        } else {
            epoll::modify(epoll, connection.as_fd(), data, wanted)?;
        }
        self.interest = wanted;
        Ok(())
    }

    fn next_reply(&mut self, memory: &mut Memory) -> Result<Option<(u64, Reply)>, PeerError> {
        let Some(connection) = &mut self.connection else { return Ok(None) };
        let Some(header) = connection.header()? else { return Ok(None) };
        header.expect(Role::Reply)?;
        let frame = if header.is_payload() {
            let frame = ReplyFrame::decode(&header, &[])?;
            let (payload, len) =
                *self.reads.get(&frame.id).ok_or(PeerError::Protocol("bytes that nobody asked for"))?;
            if header.body_bytes() != len {
                return Err(PeerError::Protocol("another number of bytes than was asked for"));
            }
            let is_whole = if payload == Payload::None {
                connection.skip_payload()
            } else {
                let target = memory.target(payload, len as usize).ok_or(PeerError::NoBytes)?;
                // SAFETY: the memory has room for that many bytes, and nobody else uses it: a read is with one
                // member at a time, and is begun anew only when the session before is over or it was abandoned.
                let target = unsafe { std::slice::from_raw_parts_mut(target.base, target.len) };
                connection.payload(target)
            };
            if !is_whole {
                return Ok(None);
            }
            frame
        } else {
            let Some(body) = connection.body() else { return Ok(None) };
            ReplyFrame::decode(&header, &body)?
        };
        if let Some((payload, len)) = self.reads.remove(&frame.id) {
            match (&frame.reply, payload) {
                (Reply::Zeros, Payload::Guest { .. } | Payload::Copy(_)) => {
                    let target = memory.target(payload, len as usize).ok_or(PeerError::NoBytes)?;
                    // SAFETY: as above.
                    unsafe { target.base.write_bytes(0, target.len) };
                }
                (Reply::Zeros | Reply::Data | Reply::Failed(_) | Reply::Superseded(_), _) => {}
                _ => return Err(PeerError::Protocol("a read is answered without its bytes")),
            }
        }
        Ok(Some((frame.id, frame.reply)))
    }
}
