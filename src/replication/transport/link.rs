//! A socket and the TLS around it, as two streams of bytes that never wait.
//!
//! **Out.** Small pieces are gathered, and become one TLS record when there is no room for the next or when it
//! is time to send; large ones go to the cipher from where they are. Records wait in the TLS library, in one
//! buffer each, and are handed to the kernel many at a time.
//!
//! **In.** One system call reads as much as the kernel has, up to [`INBOUND_BYTES`]. It is decrypted when it
//! is asked for, a record at a time, so that no more than that and one record are ever kept, however slow
//! the owner is.
//!
//! An end or an error is told only after everything that came before it has been taken. It makes the socket
//! readable: an owner who waits for bytes is woken.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};

/// The two streams.
pub(super) struct Link {
    socket: TcpStream,
    channel: Channel,
    inbound: Inbound,
    /// Plain bytes that are not in a record yet: at most [`RECORD_BYTES`].
    gathered: Vec<u8>,
    /// Bytes in records that are not sent yet.
    sealed_bytes: usize,
    /// The last look at the socket has taken all that it had.
    drained: bool,
    /// Nothing comes any more.
    ended: bool,
    fault: Option<Fault>,
}

/// Why nothing comes or goes any more.
#[derive(Debug)]
pub(super) enum Fault {
    /// The peer has ended the connection.
    Closed,
    /// The network failed.
    Network(io::Error),
    /// What came is not what TLS allows, or an alert.
    Tls(rustls::Error),
}

/// What stands between plain bytes and the socket.
enum Channel {
    Tls(Box<rustls::Connection>),
    /// Nothing: see `Connection::without_tls`.
    #[cfg(feature = "bench-plaintext")]
    Plaintext(Vec<u8>),
}

impl Link {
    /// # Errors
    ///
    /// What the kernel says of the options of the socket.
    pub(super) fn new(socket: TcpStream, mut connection: rustls::Connection) -> io::Result<Link> {
        // What is queued is bounded by whoever queues it.
        connection.set_buffer_limit(None);
        Link::over(socket, Channel::Tls(Box::new(connection)))
    }

    /// One without TLS.
    ///
    /// # Errors
    ///
    /// What the kernel says of the options of the socket.
    #[cfg(feature = "bench-plaintext")]
    pub(super) fn plaintext(socket: TcpStream) -> io::Result<Link> {
        Link::over(socket, Channel::Plaintext(Vec::new()))
    }

    fn over(socket: TcpStream, channel: Channel) -> io::Result<Link> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let gathered = Vec::with_capacity(RECORD_BYTES);
        Ok(Link {
            socket,
            channel,
            inbound: Inbound::new(),
            gathered,
            sealed_bytes: 0,
            drained: false,
            ended: false,
            fault: None,
        })
    }

    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Queues `frame` and `payload`, in one record if one can hold them.
    pub(super) fn queue(&mut self, frame: &[u8], payload: &[u8]) {
        let len = frame.len() + payload.len();
        let total = self.gathered.len() + len;
        if total > RECORD_BYTES && len > RECORD_BYTES {
            let left_over = total % RECORD_BYTES;
            let payload_whole = payload.len().saturating_sub(left_over);
            let frame_whole = frame.len() - left_over.saturating_sub(payload.len());
            let whole = [&self.gathered[..], &frame[..frame_whole], &payload[..payload_whole]];
            self.sealed_bytes += self.channel.seal(whole);
            self.gathered.clear();
            self.gathered.extend_from_slice(&frame[frame_whole..]);
            self.gathered.extend_from_slice(&payload[payload_whole..]);
        } else {
            if total > RECORD_BYTES {
                self.seal_gathered();
            }
            self.gathered.extend_from_slice(frame);
            self.gathered.extend_from_slice(payload);
        }
    }

    /// Bytes that are queued and not sent, with what TLS adds to them.
    pub(super) fn outbound_bytes(&self) -> usize {
        // What TLS says for itself, such as the answer to a change of keys, goes out uncounted before what is
        // queued: the count may be at zero while a little is left.
        let unsent = usize::from(self.channel.wants_write());
        self.gathered.len() + self.sealed_bytes.max(unsent)
    }

    /// Sends what the socket takes; true when nothing is left.
    pub(super) fn send(&mut self) -> Result<bool, Fault> {
        self.seal_gathered();
        while self.channel.wants_write() {
            match self.channel.write(&self.socket) {
                Ok(0) => return Err(Fault::Closed),
                Ok(sent) => self.sealed_bytes = self.sealed_bytes.saturating_sub(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        // What TLS says for itself was not counted.
        self.sealed_bytes = 0;
        Ok(true)
    }

    /// Tells the peer that nothing follows, after what is queued, if the socket takes it now.
    pub(super) fn close(mut self) {
        self.seal_gathered();
        self.channel.say_farewell();
        // The peer sees the end of the connection also without it.
        let _ = self.send();
    }

    /// Receives what the socket has, as far as there is room for it; false when nothing came.
    pub(super) fn receive(&mut self) -> Result<bool, Fault> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        if self.ended {
            return Err(Fault::Closed);
        }
        let room = self.inbound.room();
        if room.is_empty() {
            return Ok(false);
        }
        let room_bytes = room.len();
        self.drained = false;
        let received = loop {
            match (&self.socket).read(room) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => break received,
            }
        };
        match received {
            Ok(0) => {
                self.ended = true;
                if self.inbound.filled().is_empty() { Err(Fault::Closed) } else { Ok(true) }
            }
            Ok(count) => {
                self.inbound.end += count;
                self.drained = count < room_bytes;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.drained = true;
                Ok(false)
            }
            Err(error) => {
                self.ended = true;
                Err(error.into())
            }
        }
    }

    /// Whether the last [`receive`](Self::receive) has taken all that the socket had: until it is readable again
    /// there is nothing to receive.
    pub(super) fn is_drained(&self) -> bool {
        self.drained
    }

    /// Moves received bytes to the front of `target` until it is full or none are left; tells how many.
    pub(super) fn pull(&mut self, target: &mut [u8]) -> usize {
        let mut moved = 0;
        while moved < target.len() {
            match self.read_plain(&mut target[moved..]) {
                0 if self.decrypt_more() => {}
                0 => break,
                count => moved += count,
            }
        }
        moved
    }

    /// To be asked when [`pull`](Self::pull) gave less than was wanted: whether more can come.
    pub(super) fn check(&mut self) -> Result<(), Fault> {
        match self.fault.take() {
            Some(fault) => Err(fault),
            None if self.ended && self.inbound.filled().is_empty() => Err(Fault::Closed),
            None => Ok(()),
        }
    }

    /// Moves bytes that are plain to `target`; tells how many.
    fn read_plain(&mut self, target: &mut [u8]) -> usize {
        match &mut self.channel {
            // That there are none now, or none any more, is no matter here.
            Channel::Tls(connection) => connection.reader().read(target).unwrap_or_default(),
            #[cfg(feature = "bench-plaintext")]
            Channel::Plaintext(_) => {
                let count = self.inbound.filled().len().min(target.len());
                target[..count].copy_from_slice(&self.inbound.filled()[..count]);
                self.inbound.consume(count);
                count
            }
        }
    }

    fn seal_gathered(&mut self) {
        if !self.gathered.is_empty() {
            self.sealed_bytes += self.channel.seal([&self.gathered[..], &[], &[]]);
            self.gathered.clear();
        }
    }

    /// Decrypts some of what has been received; false when there is nothing to decrypt.
    fn decrypt_more(&mut self) -> bool {
        let Some(connection) = self.channel.tls() else { return false };
        let mut bytes = self.inbound.filled();
        if bytes.is_empty() || self.fault.is_some() {
            return false;
        }
        let taken = connection.read_tls(&mut bytes).unwrap_or_default();
        if taken == 0 {
            // What comes after the peer's close_notify counts for nothing.
            self.ended = true;
            self.inbound.consume(self.inbound.filled().len());
            return false;
        }
        self.inbound.consume(taken);
        match connection.process_new_packets() {
            Ok(state) if state.peer_has_closed() => {
                self.ended = true;
                let _ = self.socket.shutdown(Shutdown::Read);
            }
            Ok(_) => {}
            Err(error) => {
                self.ended = true;
                self.fault = Some(Fault::Tls(error));
                self.inbound.consume(self.inbound.filled().len());
                // The alert that says so, if the socket takes it.
                let _ = connection.write_tls(&mut &self.socket);
                let _ = self.socket.shutdown(Shutdown::Both);
            }
        }
        true
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => {
                Fault::Closed
            }
            _ => Fault::Network(error),
        }
    }
}

impl Channel {
    /// Makes records of the pieces, as if they were one; tells how many bytes they have.
    fn seal(&mut self, pieces: [&[u8]; 3]) -> usize {
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        match self {
            Self::Tls(connection) => {
                let mut slices = pieces.map(IoSlice::new);
                let mut rest = slices.as_mut_slice();
                IoSlice::advance_slices(&mut rest, 0);
                while !rest.is_empty() {
                    // It takes all, as there is no limit, or nothing, after a fatal alert of ours.
                    match connection.writer().write_vectored(rest) {
                        Ok(taken @ 1..) => IoSlice::advance_slices(&mut rest, taken),
                        _ => break,
                    }
                }
                len + len.div_ceil(RECORD_BYTES) * RECORD_OVERHEAD_BYTES
            }
            #[cfg(feature = "bench-plaintext")]
            Self::Plaintext(outbound) => {
                pieces.iter().for_each(|piece| outbound.extend_from_slice(piece));
                len
            }
        }
    }

    fn wants_write(&self) -> bool {
        match self {
            Self::Tls(connection) => connection.wants_write(),
            #[cfg(feature = "bench-plaintext")]
            Self::Plaintext(outbound) => !outbound.is_empty(),
        }
    }

    fn write(&mut self, mut socket: &TcpStream) -> io::Result<usize> {
        match self {
            Self::Tls(connection) => connection.write_tls(&mut socket),
            #[cfg(feature = "bench-plaintext")]
            Self::Plaintext(outbound) => {
                let sent = socket.write(outbound)?;
                outbound.drain(..sent);
                Ok(sent)
            }
        }
    }

    fn say_farewell(&mut self) {
        match self {
            Self::Tls(connection) => connection.send_close_notify(),
            #[cfg(feature = "bench-plaintext")]
            Self::Plaintext(_) => {}
        }
    }

    fn tls(&mut self) -> Option<&mut rustls::Connection> {
        match self {
            Self::Tls(connection) => Some(connection),
            #[cfg(feature = "bench-plaintext")]
            Self::Plaintext(_) => None,
        }
    }
}

/// Bytes as the socket gave them: those from `start` to `end` are still to be looked at.
struct Inbound {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Inbound {
    fn new() -> Inbound {
        Inbound { bytes: vec![0; INBOUND_BYTES], start: 0, end: 0 }
    }

    fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Where more bytes may be put. They are moved together only when the end is reached.
    fn room(&mut self) -> &mut [u8] {
        if self.end == self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }
}

/// What one system call reads at most.
pub(super) const INBOUND_BYTES: usize = 256 * 1024;
/// The most plain bytes of a record (RFC 8446 §5.1).
pub(super) const RECORD_BYTES: usize = 16 * 1024;
/// What a record has beside them, with each of our cipher suites: header, type and tag.
pub(super) const RECORD_OVERHEAD_BYTES: usize = 5 + 1 + 16;
