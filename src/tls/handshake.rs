//! A TCP connection becomes one with a known node, within a deadline.
//!
//! [`connect`] and [`accept`] block until the handshake is done, the peer has failed it, or the deadline is
//! there: each read and write gets only the time that is left, so a peer that sends a byte now and then gains
//! nothing. What is read before the end is bounded by the TLS library.
//!
//! A connection that we refuse is told why by an alert, and closed. What the peer has sent meanwhile is
//! not read: its kernel shows it the alert before the reset that answers those bytes.

use std::fmt;
use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use rustls::pki_types::{DnsName, ServerName};
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use super::configs::ALPN;
use super::credential::Credential;
use super::error::{Peer, Reason, TlsError};
use super::peer::PeerNames;

/// A connection whose other end is known.
pub struct Established {
    /// The socket: blocking, without timeouts.
    pub stream: TcpStream,
    /// The state of TLS. It may already hold what the peer sent right after its handshake: read from it
    /// before the socket is waited for.
    pub connection: Connection,
    /// The node at the other end, by its certificate.
    pub peer: PeerNames,
    /// What it has shown for that, to be looked at again.
    pub credential: Arc<Credential>,
    /// What only the two ends of this connection know (RFC 8446 §7.5).
    pub exporter: [u8; 32],
}

impl fmt::Debug for Established {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Established { stream, peer, .. } = self;
        f.debug_struct("Established").field("stream", stream).field("peer", peer).finish_non_exhaustive()
    }
}

/// Makes a connection to a node, whose name must be in its certificate.
///
/// That this returns does not say that the server accepts our certificate: if it does not, the first
/// read fails, see [`TlsError::after`].
///
/// # Errors
///
/// [`TlsError`] says what is wrong, and with which peer. The connection is closed.
pub fn connect(
    stream: TcpStream,
    config: Arc<ClientConfig>,
    node_name: &str,
    deadline: Instant,
) -> Result<Established, TlsError> {
    let peer = Peer { node: Some(node_name.to_owned()), address: stream.peer_addr().ok() };
    let name = DnsName::try_from(node_name.to_owned()).map(ServerName::DnsName).map_err(|_| Reason::NodeName);
    name.and_then(|name| {
        let connection = ClientConnection::new(config, name.clone())?;
        establish(stream, connection.into(), Some(name), deadline)
    })
    .map_err(|reason| TlsError { peer, reason })
}

/// Takes a connection from a node.
///
/// # Errors
///
/// [`TlsError`] says what is wrong, and with which peer. The connection is closed.
pub fn accept(stream: TcpStream, config: Arc<ServerConfig>, deadline: Instant) -> Result<Established, TlsError> {
    let peer = Peer { node: None, address: stream.peer_addr().ok() };
    ServerConnection::new(config)
        .map_err(Reason::from)
        .and_then(|connection| establish(stream, connection.into(), None, deadline))
        .map_err(|reason| TlsError { peer, reason })
}

/// Has small messages sent at once, and a peer that is gone noticed: bytes that are not acknowledged for
/// `patience` end the connection, and so does a silence in which no probe is answered for as long.
///
/// # Errors
///
/// What the kernel says.
pub fn tune(stream: &TcpStream, patience: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let patience_ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(stream, patience_ms)?;
    let interval = (patience / PROBES).max(Duration::from_secs(1));
    sockopt::set_tcp_keepidle(stream, interval)?;
    sockopt::set_tcp_keepintvl(stream, interval)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    sockopt::set_socket_keepalive(stream, true)?;
    Ok(())
}

fn establish(
    stream: TcpStream,
    mut connection: Connection,
    called: Option<ServerName<'static>>,
    deadline: Instant,
) -> Result<Established, Reason> {
    stream.set_nonblocking(false).map_err(Reason::Network)?;
    shake_hands(&stream, &mut connection, deadline)?;
    let checked = check(&connection, called);
    if checked.is_err() {
        connection.send_close_notify();
        take_leave(&stream, &mut connection, deadline);
    }
    let (peer, credential, exporter) = checked?;
    stream.set_read_timeout(None).and_then(|()| stream.set_write_timeout(None)).map_err(Reason::Network)?;
    Ok(Established { stream, connection, peer, credential: Arc::new(credential), exporter })
}

fn shake_hands(stream: &TcpStream, connection: &mut Connection, deadline: Instant) -> Result<(), Reason> {
    while connection.is_handshaking() || connection.wants_write() {
        let progress = if connection.wants_write() {
            write(stream, connection, deadline)
        } else {
            read(stream, connection, deadline)
        };
        match progress {
            Ok(()) => {}
            Err(Step::Failed(reason)) => return Err(reason),
            Err(Step::Refused(reason)) => {
                take_leave(stream, connection, deadline);
                return Err(reason);
            }
        }
    }
    Ok(())
}

/// How a step fails: with nothing more to say to the peer, or with an alert to be sent.
enum Step {
    Failed(Reason),
    Refused(Reason),
}

fn write(mut stream: &TcpStream, connection: &mut Connection, deadline: Instant) -> Result<(), Step> {
    let time = time_left(deadline)?;
    let written = stream.set_write_timeout(Some(time)).and_then(|()| connection.write_tls(&mut stream));
    match written {
        Ok(0) => Err(Step::Failed(Reason::Closed)),
        Ok(_) => Ok(()),
        Err(error) => network(error),
    }
}

fn read(mut stream: &TcpStream, connection: &mut Connection, deadline: Instant) -> Result<(), Step> {
    let time = time_left(deadline)?;
    let read = stream.set_read_timeout(Some(time)).and_then(|()| connection.read_tls(&mut stream));
    match read {
        Ok(0) => Err(Step::Failed(Reason::Closed)),
        Ok(_) => match connection.process_new_packets() {
            Ok(_) => Ok(()),
            Err(error) => Err(Step::Refused(error.into())),
        },
        Err(error) => network(error),
    }
}

/// Whether to try again, and if not, why.
fn network(error: io::Error) -> Result<(), Step> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        // Which of the two it is when a timeout of the socket's is over depends on the system. Whether the
        // deadline is there is seen at the next step.
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Ok(()),
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => Err(Step::Failed(Reason::Closed)),
        _ => Err(Step::Failed(Reason::Network(error))),
    }
}

fn time_left(deadline: Instant) -> Result<Duration, Step> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(Step::Failed(Reason::Timeout)) } else { Ok(left.max(TIMEOUT_MIN)) }
}

/// What TLS itself does not check: the protocol, also when the peer names none, and the names.
fn check(
    connection: &Connection,
    called: Option<ServerName<'static>>,
) -> Result<(PeerNames, Credential, [u8; 32]), Reason> {
    if connection.alpn_protocol() != Some(ALPN) {
        return Err(Reason::Protocol);
    }
    let chain = connection.peer_certificates().unwrap_or_default();
    let certificate = chain.first().ok_or(Reason::NoCertificate)?;
    let peer = PeerNames::of(certificate).map_err(Reason::Names)?;
    if let Some(ServerName::DnsName(name)) = &called
        && !peer.has(name.as_ref())
    {
        // By a name with `*`, which counts for nothing here.
        return Err(Reason::WrongName { presented: peer.iter().map(str::to_owned).collect() });
    }
    let exporter = connection.export_keying_material([0; 32], EXPORTER_LABEL, None)?;
    Ok((peer, Credential::new(chain, called), exporter))
}

/// Sends what is left to say, but does not wait long for a peer that does not take it.
fn take_leave(stream: &TcpStream, connection: &mut Connection, deadline: Instant) {
    let deadline = deadline.min(Instant::now() + LEAVE_TIME_MAX);
    while connection.wants_write() {
        if write(stream, connection, deadline).is_err() {
            return;
        }
    }
}

const EXPORTER_LABEL: &[u8] = b"EXPORTER-sealblk-attach";
/// How many probes are lost before a silent peer counts as gone.
const PROBES: u32 = 3;
/// The kernel counts timeouts of sockets in ticks of some milliseconds; none at all would mean for ever.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);
const LEAVE_TIME_MAX: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests;
