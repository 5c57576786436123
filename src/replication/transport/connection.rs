//! A connection that gives out frames.
//!
//! Its owner calls [`header`](Connection::header) before it waits for the socket for the first time, since
//! bytes may have come with the handshake, and whenever [`receive`](Connection::receive) tells of new ones. A
//! header stays until its body is taken: by [`body`](Connection::body), or for sectors by
//! [`payload`](Connection::payload) or [`skip_payload`](Connection::skip_payload), which go on where they
//! stopped. An owner that has no room for a body leaves it, and does not wait for the socket to be readable
//! meanwhile: bytes that nobody takes fill the buffers at both ends, and the peer has to wait.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::TransportError;
use super::link::{Fault, Link};
use crate::replication::wire::{HEADER_BYTES, Header};
use crate::tls::error::Peer;
use crate::tls::{Credential, Established, PeerNames, TlsError};

/// A connection, of one thread.
pub struct Connection {
    link: Link,
    names: PeerNames,
    credential: Arc<Credential>,
    exporter: [u8; 32],
    peer: Peer,
    /// The bytes of the next header, of which `head_bytes` are there.
    head: [u8; HEADER_BYTES],
    head_bytes: usize,
    header: Option<Header>,
    /// What is there of a body that is not sectors.
    body: Vec<u8>,
    /// How many bytes of a payload were taken.
    payload_bytes: usize,
}

impl Connection {
    /// Takes a connection over after its handshake; from now on its socket does not block.
    ///
    /// # Errors
    ///
    /// What the kernel says of the options of the socket.
    pub fn new(established: Established) -> io::Result<Connection> {
        #[cfg(feature = "bench-plaintext")]
        if std::env::var_os("SEALBLK_BENCH_PLAINTEXT").is_some() {
            return Connection::without_tls(established);
        }
        let Established { stream, connection, peer, credential, exporter } = established;
        let link = Link::new(stream, connection)?;
        Ok(Connection::over(link, peer, credential, exporter))
    }

    /// A connection that has no TLS from its handshake on, to measure what TLS costs. Not for use. The peer must
    /// do the same: the one that took the connection says when it is through with TLS, and the other waits for it.
    ///
    /// # Errors
    ///
    /// What the kernel says of the socket, also when the other does not say it in time.
    #[cfg(feature = "bench-plaintext")]
    pub fn without_tls(established: Established) -> io::Result<Connection> {
        use std::io::{Read, Write};
        let Established { mut stream, connection, peer, credential, exporter } = established;
        stream.set_nonblocking(false)?;
        match connection {
            rustls::Connection::Server(_) => stream.write_all(b"!")?,
            rustls::Connection::Client(_) => {
                stream.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
                stream.read_exact(&mut [0])?;
            }
        }
        Ok(Connection::over(Link::plaintext(stream)?, peer, credential, exporter))
    }

    fn over(link: Link, names: PeerNames, credential: Arc<Credential>, exporter: [u8; 32]) -> Connection {
        let peer = Peer { node: names.iter().next().map(str::to_owned), address: link.socket().peer_addr().ok() };
        Connection {
            link,
            names,
            credential,
            exporter,
            peer,
            head: [0; HEADER_BYTES],
            head_bytes: 0,
            header: None,
            body: Vec::new(),
            payload_bytes: 0,
        }
    }

    /// The node at the other end, by its certificate.
    pub fn peer(&self) -> &PeerNames {
        &self.names
    }

    /// What it has shown for that.
    pub fn credential(&self) -> &Arc<Credential> {
        &self.credential
    }

    /// What only the two ends of this connection know (RFC 8446 §7.5).
    pub fn exporter(&self) -> &[u8; 32] {
        &self.exporter
    }

    /// Queues a frame and its payload, which may be empty. Nothing is sent before [`send`](Self::send): what
    /// is queued together travels together. How much may be queued is for the owner to bound.
    pub fn queue(&mut self, frame: &[u8], payload: &[u8]) {
        self.link.queue(frame, payload);
    }

    /// Sends what the socket takes now; true when nothing is left.
    ///
    /// # Errors
    ///
    /// [`TransportError`]. What the peer has said before may still be received, and may tell why.
    pub fn send(&mut self) -> Result<bool, TransportError> {
        self.link.send().map_err(|fault| self.error(fault))
    }

    /// How many bytes are queued and not sent, with what TLS adds to them. Zero only when
    /// [`send`](Self::send) has nothing to do.
    pub fn outbound_bytes(&self) -> usize {
        self.link.outbound_bytes()
    }

    /// Receives what the socket has now, at most 256 KiB; false when nothing came. The frames that are there
    /// are to be taken first: those after which the peer ended the connection would be lost.
    ///
    /// # Errors
    ///
    /// [`TransportError`], [`TransportError::Closed`] for an end.
    pub fn receive(&mut self) -> Result<bool, TransportError> {
        self.link.receive().map_err(|fault| self.error(fault))
    }

    /// Whether the last [`receive`](Self::receive) has taken all that the socket had. An owner who is told when
    /// the socket is readable need not try again before that.
    pub fn is_drained(&self) -> bool {
        self.link.is_drained()
    }

    /// The header of the next frame, once all of it is there. It stays the same until the frame is taken.
    ///
    /// # Errors
    ///
    /// [`TransportError`], when no frame comes any more.
    pub fn header(&mut self) -> Result<Option<Header>, TransportError> {
        if self.header.is_none() {
            self.head_bytes += self.link.pull(&mut self.head[self.head_bytes..]);
            if self.head_bytes < HEADER_BYTES {
                return self.link.check().map(|()| None).map_err(|fault| self.error(fault));
            }
            let parsed = Header::parse(&self.head);
            let header = parsed.map_err(|source| TransportError::Frame { peer: self.peer.clone(), source })?;
            self.header = Some(header);
        }
        Ok(self.header)
    }

    /// The body of the frame whose header is there, once all of it is there; the frame is taken then. For
    /// frames that end with payload the body is what comes before it: nothing.
    ///
    /// An end or an error within it is told by the next [`receive`](Self::receive), for which the socket is
    /// ready then.
    ///
    /// # Panics
    ///
    /// For a frame with payload.
    pub fn body(&mut self) -> Option<Vec<u8>> {
        let header = self.header?;
        assert!(!header.is_payload(), "sectors go where they are needed, not to a body");
        let len = header.body_bytes() as usize;
        while self.body.len() < len {
            // Memory is taken as the bytes come, not as they are announced.
            let there = self.body.len();
            self.body.resize(len.min(there + BODY_STEP_BYTES), 0);
            let moved = self.link.pull(&mut self.body[there..]);
            let is_filled = there + moved == self.body.len();
            self.body.truncate(there + moved);
            if !is_filled {
                return None;
            }
        }
        self.taken();
        Some(std::mem::take(&mut self.body))
    }

    /// Moves what is there of the payload of the frame whose header is there to its place in `target`; true
    /// once all of it is there, and the frame is taken. Each call for one frame is given the same bytes, as
    /// long as the header says.
    ///
    /// An end or an error within it is told as by [`body`](Self::body).
    ///
    /// # Panics
    ///
    /// When there is no header of a frame with so much payload.
    pub fn payload(&mut self, target: &mut [u8]) -> bool {
        let announced = self.header.filter(Header::is_payload).map(|header| header.body_bytes() as usize);
        assert_eq!(announced, Some(target.len()), "a payload goes to as many bytes as it has");
        self.payload_bytes += self.link.pull(&mut target[self.payload_bytes..]);
        let is_whole = self.payload_bytes == target.len();
        if is_whole {
            self.taken();
        }
        is_whole
    }

    /// As [`payload`](Self::payload), but what was not taken of it yet is thrown away.
    ///
    /// # Panics
    ///
    /// When there is no header of a frame with payload.
    pub fn skip_payload(&mut self) -> bool {
        let announced = self.header.filter(Header::is_payload).map(|header| header.body_bytes() as usize);
        let len = announced.expect("only a payload is skipped");
        let mut nowhere = [0; BODY_STEP_BYTES];
        while self.payload_bytes < len {
            let step = BODY_STEP_BYTES.min(len - self.payload_bytes);
            let moved = self.link.pull(&mut nowhere[..step]);
            self.payload_bytes += moved;
            if moved < step {
                return false;
            }
        }
        self.taken();
        true
    }

    /// Ends the connection after what is queued, if the socket takes that now. Dropping it ends it without a
    /// word, which a peer takes no differently.
    pub fn close(self) {
        self.link.close();
    }

    fn taken(&mut self) {
        (self.header, self.head_bytes, self.payload_bytes) = (None, 0, 0);
    }

    fn error(&self, fault: Fault) -> TransportError {
        let peer = self.peer.clone();
        match fault {
            Fault::Closed => TransportError::Closed { peer },
            Fault::Network(source) => TransportError::Network { peer, source },
            Fault::Tls(error) => TransportError::Tls(TlsError::after(peer, error)),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.socket().as_fd()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

const BODY_STEP_BYTES: usize = 16 * 1024;
