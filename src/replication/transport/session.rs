//! Opening a connection to a replica, until a deadline.
//!
//! Reach its address, shake hands, prove that the volume's key is held, and hear whether that is enough. The proof
//! is made here because it covers the TLS connection. Each step has what is left of the time, save one: the
//! system's resolver of names has its own patience. So this is for threads that nobody waits for.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use uuid::Uuid;

use super::{Connection, TransportError};
use crate::crypto::derive::WriterKey;
use crate::replication::message::{Hello, Welcome};
use crate::replication::proof;
use crate::replication::view::{NodeName, View, ViewNumber};
use crate::replication::wire::{Answer, Opening, ProtocolVersion, Refusal, RefusalCode, Role, WireError};
use crate::tls::{self, Configs, Reason, TlsError};

/// Opens a connection of a session with the replica on a node.
///
/// The `proof` of the hello is made here, with `signer`: the volume's writer key, or none for a volume without
/// encryption.
///
/// # Errors
///
/// [`OpenError`]. If the copy has accepted a higher view, [`OpenError::superseded`] says which.
pub fn open(
    address: &str,
    node: &NodeName,
    configs: &Configs,
    hello: &Hello,
    signer: Option<&WriterKey>,
    deadline: Instant,
) -> Result<(Connection, Welcome, ProtocolVersion), OpenError> {
    let attempt = Attempt { address, node, deadline };
    let mut connection = attempt.connect(configs)?;
    let proof = signer.map(|key| {
        let Hello { volume, view, lane, session, .. } = *hello;
        key.sign(&proof::message(connection.exporter(), volume, view, lane, session))
    });
    let (welcome, version) =
        attempt.ask_for_welcome(&mut connection, &Opening::Hello(Hello { proof, ..hello.clone() }))?;
    Ok((connection, welcome, version))
}

/// Has the replica on a node make a copy of a volume, from the content of its `volume.json`, in a view. The
/// answer has the incarnation of the new copy.
///
/// # Errors
///
/// [`OpenError`].
pub fn create(
    address: &str,
    node: &NodeName,
    configs: &Configs,
    superblock: Vec<u8>,
    view: &View,
    signer: Option<&WriterKey>,
    deadline: Instant,
) -> Result<Welcome, OpenError> {
    let attempt = Attempt { address, node, deadline };
    let mut connection = attempt.connect(configs)?;
    let proof = signer.map(|key| key.sign(&proof::message(connection.exporter(), view.volume, view.number, 0, 0)));
    let opening = Opening::Create { superblock, view: Box::new(view.clone()), proof };
    let (welcome, _) = attempt.ask_for_welcome(&mut connection, &opening)?;
    connection.close();
    Ok(welcome)
}

/// Asks the replica on a node what a volume is: the content of its `volume.json`, not looked into here.
///
/// # Errors
///
/// [`OpenError`].
pub fn describe(
    address: &str,
    node: &NodeName,
    configs: &Configs,
    volume: Uuid,
    deadline: Instant,
) -> Result<Vec<u8>, OpenError> {
    let attempt = Attempt { address, node, deadline };
    let mut connection = attempt.connect(configs)?;
    let answer = attempt.ask(&mut connection, &Opening::Describe { volume })?;
    connection.close();
    match answer {
        Answer::Description { superblock, .. } => Ok(superblock),
        other => Err(attempt.not_an_answer(&other)),
    }
}

/// A connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nothing answers at the address.
    #[error(
        "cannot reach node {node} at {address}: {source}: check the address, the network, and that sealblk replica runs there"
    )]
    Unreachable {
        /// Whom.
        node: NodeName,
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// One of the two does not accept the other's certificate, or TLS fails otherwise.
    #[error(transparent)]
    Tls(TlsError),
    /// The replica refuses.
    #[error("the replica on node {node} refuses: {refusal}")]
    Refused {
        /// Whom.
        node: NodeName,
        /// Its reasons.
        refusal: Refusal,
    },
    /// What was to be said, or what was answered, is not of this protocol.
    #[error("the opening with the replica on node {node} is not in order: {source}")]
    Protocol {
        /// Whom.
        node: NodeName,
        /// What is wrong.
        source: WireError,
    },
    /// The connection ended before there was an answer.
    #[error("no answer from the replica: {0}")]
    Lost(#[source] TransportError),
    /// The deadline is over.
    #[error("node {node} at {address} took too long to answer: check the network and the load of both machines")]
    Timeout {
        /// Whom.
        node: NodeName,
        /// Where.
        address: String,
    },
}

impl OpenError {
    /// The higher view that the copy has accepted, if that is why and the replica says it.
    pub fn superseded(&self) -> Option<ViewNumber> {
        match self {
            Self::Refused { refusal, .. } => refusal.accepted(),
            _ => None,
        }
    }

    /// Whether there is such a copy already that was to be made.
    pub fn is_existing(&self) -> bool {
        matches!(self, Self::Refused { refusal, .. } if refusal.code() == RefusalCode::Exists)
    }
}

/// Whom to open a connection to, and until when.
struct Attempt<'a> {
    address: &'a str,
    node: &'a NodeName,
    deadline: Instant,
}

impl Attempt<'_> {
    fn connect(&self, configs: &Configs) -> Result<Connection, OpenError> {
        let stream = self.reach()?;
        tls::tune(&stream, PATIENCE).map_err(|source| self.unreachable(source))?;
        let established = tls::connect(stream, configs.client.clone(), self.node.as_str(), self.deadline);
        let established = established.map_err(|error| match error.reason {
            Reason::Timeout => self.timeout(),
            _ => OpenError::Tls(error),
        })?;
        Connection::new(established).map_err(|source| self.unreachable(source))
    }

    /// Connects to the first of its addresses that answers.
    fn reach(&self) -> Result<TcpStream, OpenError> {
        let addresses = self.address.to_socket_addrs().map_err(|source| self.unreachable(source))?;
        let addresses: Vec<SocketAddr> = addresses.take(ADDRESSES_MAX).collect();
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for (tried, address) in addresses.iter().enumerate() {
            // One that swallows what is sent to it leaves time for those after it.
            let share = self.time_left()? / (addresses.len() - tried) as u32;
            match TcpStream::connect_timeout(address, share.max(Duration::from_millis(1))) {
                Ok(stream) => return Ok(stream),
                Err(source) => last = source,
            }
        }
        self.time_left()?;
        Err(self.unreachable(last))
    }

    /// Sends an opening and waits to be welcomed.
    fn ask_for_welcome(
        &self,
        connection: &mut Connection,
        opening: &Opening,
    ) -> Result<(Welcome, ProtocolVersion), OpenError> {
        match self.ask(connection, opening)? {
            Answer::Welcome { version, welcome } => Ok((welcome, version)),
            other => Err(self.not_an_answer(&other)),
        }
    }

    /// Sends an opening and waits for the answer, which is no refusal.
    fn ask(&self, connection: &mut Connection, opening: &Opening) -> Result<Answer, OpenError> {
        let mut frame = Vec::new();
        opening.encode(&mut frame).map_err(|source| self.protocol(source))?;
        connection.queue(&frame, &[]);
        let body = loop {
            if let Some(header) = connection.header().map_err(|error| self.lost(error))? {
                header.expect(Role::Answer).map_err(|source| self.protocol(source))?;
                if let Some(body) = connection.body() {
                    break Answer::decode(&header, &body);
                }
            }
            // If it cannot be sent, the peer may have said why.
            let is_sent = connection.send().unwrap_or(true);
            self.wait(connection, is_sent)?;
            connection.receive().map_err(|error| self.lost(error))?;
        };
        match body.map_err(|source| self.protocol(source))? {
            Answer::Refused(refusal) => Err(OpenError::Refused { node: self.node.clone(), refusal }),
            answer => Ok(answer),
        }
    }

    /// Waits until the socket has something, or takes something if not all is sent.
    fn wait(&self, connection: &Connection, is_sent: bool) -> Result<(), OpenError> {
        let wanted = if is_sent { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let timeout = Timespec::try_from(self.time_left()?).ok();
        match rustix::event::poll(&mut [PollFd::new(connection, wanted)], timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(self.unreachable(error.into())),
        }
    }

    /// The answer is one to another opening.
    fn not_an_answer(&self, answer: &Answer) -> OpenError {
        self.protocol(WireError::WrongAnswer { kind: answer.kind() })
    }

    fn time_left(&self) -> Result<Duration, OpenError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(self.timeout()) } else { Ok(left) }
    }

    fn lost(&self, error: TransportError) -> OpenError {
        match error {
            TransportError::Tls(error) => OpenError::Tls(error),
            TransportError::Frame { source, .. } => self.protocol(source),
            error => OpenError::Lost(error),
        }
    }

    fn unreachable(&self, source: io::Error) -> OpenError {
        OpenError::Unreachable { node: self.node.clone(), address: self.address.to_owned(), source }
    }

    fn protocol(&self, source: WireError) -> OpenError {
        OpenError::Protocol { node: self.node.clone(), source }
    }

    fn timeout(&self) -> OpenError {
        OpenError::Timeout { node: self.node.clone(), address: self.address.to_owned() }
    }
}

/// How long the kernel waits for bytes to be acknowledged before it gives the connection up.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many addresses of a name are tried.
const ADDRESSES_MAX: usize = 8;
