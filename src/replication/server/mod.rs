//! A node's copies, for writers on other nodes: what `sealblk replica` runs.
//!
//! Below one folder lie the copies, each in a folder that is named for its volume and as
//! `sealblk volume create` makes it. Connections come in over mutual TLS and wait until they have something
//! to say; a few at a time show who they are and what they may; each that may has a thread, which drives
//! the copy for its writer.
//!
//! | file | what it is |
//! | --- | --- |
//! | `lobby`, `gate` | connections that have not shown who they are: how many, and whose turn it is |
//! | `admission` | the checks before anything is opened |
//! | `denied` | why a connection is refused, in the log and on the wire |
//! | `create` | a copy of a volume that is new here |
//! | `copies` | which copies are open, and for whom |
//! | `fence` | ending a process of this node that holds a copy and has been replaced |
//! | `budget` | how much memory connections take |
//! | `visitors` | connections that were let in, and whether they may stay |
//! | `served` | a copy that connections share |
//! | `persist` | the thread that makes its rows and views durable |
//! | `service` | one connection, from its hello to its end |
//! | `control` | giving a copy to a process of this node that asks, and saying how the replica stands |
//! | [`status`] | how it stands |
//!
//! Invariants: nothing of a copy is opened or changed for a peer that has not shown that it may, or whose certificate
//! has not been good any more for seconds, and nothing is told to one but what `volume.json` says; and whatever peers
//! do, the memory, threads and descriptors they cost are bounded, and those who may come in do.

mod admission;
mod budget;
mod control;
mod copies;
mod create;
mod denied;
mod error;
mod fence;
mod gate;
mod lobby;
mod persist;
pub(super) mod served;
mod service;
pub mod status;
#[cfg(test)]
mod tests;
mod visitors;

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::FlockOperation;

use crate::io::Kind;
use crate::replication::replica::ConnectionId;
use crate::tls::Reloading;
use budget::Budget;
use control::Control;
use copies::Copies;
use denied::{RefusalLog, Refused};
use gate::Gate;
use lobby::{Caller, Lobby};
use visitors::Visitors;

pub use control::{ask_for, ask_for_status};
pub use error::ServerError;

/// How a replica does its work.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How to do I/O; what suits the file of each copy if it is not said.
    pub engine: Option<Kind>,
    /// How long a connection has to show who it is and what it wants.
    pub opening_time: Duration,
    /// Memory that connections share for what is in flight, in bytes, beyond the little that each has anyway.
    pub shared_bytes: usize,
    /// The longest time that a connection watches its disk before it sleeps.
    pub watch_time: Duration,
    /// How many bytes of writes that a copy has been given, and its disk has not done, may be answered.
    pub write_behind_bytes: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            engine: None,
            opening_time: OPENING_TIME,
            shared_bytes: SHARED_BYTES,
            watch_time: Duration::ZERO,
            write_behind_bytes: WRITE_BEHIND_BYTES,
        }
    }
}

/// What all connections share.
struct House {
    copies: Arc<Copies>,
    budget: Arc<Budget>,
    watch_time: Duration,
    tls: Reloading,
    refusals: RefusalLog,
    visitors: Visitors,
    /// Held while a copy is made.
    creating: Mutex<()>,
    connections: AtomicU64,
}

impl House {
    fn next_id(&self) -> ConnectionId {
        ConnectionId(self.connections.fetch_add(1, Ordering::Relaxed))
    }
}

/// The replica of a node.
pub struct Server {
    house: Arc<House>,
    listener: TcpListener,
    gate: Arc<Gate>,
    lobby: Lobby,
    control: Control,
    /// Holds the lock by which there is one replica for a folder.
    _root: File,
}

impl Server {
    /// Serves the copies below `root` until `stop` is readable. When this returns, nothing is in flight and
    /// all is durable.
    ///
    /// # Errors
    ///
    /// [`ServerError`]: it could not start, or not go on, or not end in order.
    pub fn run(
        root: PathBuf,
        listener: TcpListener,
        tls: Reloading,
        settings: Settings,
        stop: BorrowedFd<'_>,
    ) -> Result<(), ServerError> {
        let server = Server::new(root, listener, tls, settings)?;
        let address = server.listener.local_addr().map_err(ServerError::Network)?;
        let House { copies, tls, .. } = &*server.house;
        let names = tls.current().names.iter().collect::<Vec<_>>().join(", ");
        log::info!("copies in {}, for node {names}; listening on {address}", copies.root().display());
        server.serve(stop)
    }

    fn new(root: PathBuf, listener: TcpListener, tls: Reloading, settings: Settings) -> Result<Server, ServerError> {
        let held = hold(&root)?;
        let failed = |action| {
            let root = root.clone();
            move |source| ServerError::Root { action, root, source }
        };
        create::clear(&root).map_err(failed("clear unfinished copies away in"))?;
        let control = Control::listen(&root).map_err(failed("listen on the control socket in"))?;
        listener.set_nonblocking(true).map_err(ServerError::Network)?;
        let gate = Arc::new(Gate::new().map_err(ServerError::Network)?);
        let lobby = Lobby::new(gate.clone(), settings.opening_time).map_err(ServerError::Network)?;
        let house = Arc::new(House {
            copies: Arc::new(Copies::new(root, settings.engine, settings.write_behind_bytes)),
            budget: Arc::new(Budget::new(settings.shared_bytes)),
            watch_time: settings.watch_time,
            tls,
            refusals: RefusalLog::default(),
            visitors: Visitors::default(),
            creating: Mutex::new(()),
            connections: AtomicU64::new(0),
        });
        Ok(Server { house, listener, gate, lobby, control, _root: held })
    }

    fn serve(mut self, stop: BorrowedFd<'_>) -> Result<(), ServerError> {
        let (mut asked, mut reviewed) = (Instant::now(), Instant::now());
        close_idle_copies(&self.house.copies).map_err(ServerError::Network)?;
        while !self.wait(stop)? {
            self.accept();
            self.gate.acknowledge();
            for caller in self.lobby.callers(Instant::now()) {
                self.attend(caller);
            }
            self.control.accept(&self.house);
            if reviewed.elapsed() >= TICK {
                reviewed = Instant::now();
                self.house.visitors.review(&self.house.tls.current(), SystemTime::now());
            }
            if asked.elapsed() >= TICK && self.house.budget.was_short() {
                asked = Instant::now();
                self.house.copies.ask_for_memory();
            }
        }
        let Server { house, listener, lobby, control, .. } = self;
        drop((listener, lobby, control));
        let (copies, connections) = house.copies.counts();
        log::info!("stopping: {copies} copies are open, with {connections} connections");
        house.copies.close_all(Instant::now() + STOP_PATIENCE)
    }

    /// Sleeps until there is something to do, but not for long. True if it is time to stop.
    fn wait(&self, stop: BorrowedFd<'_>) -> Result<bool, ServerError> {
        let (listener, control) = (self.listener.as_fd(), self.control.as_fd());
        let (lobby, gate) = (self.lobby.as_fd(), self.gate.as_fd());
        let mut polled = [&stop, &listener, &control, &lobby, &gate].map(|fd| PollFd::new(fd, PollFlags::IN));
        let time = Timespec { tv_sec: TICK.as_secs() as i64, tv_nsec: TICK.subsec_nanos().into() };
        match rustix::event::poll(&mut polled, Some(&time)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(!polled[0].revents().is_empty()),
            Err(error) => Err(ServerError::Network(error.into())),
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTED_MAX {
            match self.listener.accept() {
                Ok((stream, address)) => match self.lobby.add(stream, address, Instant::now()) {
                    Ok(None) => {}
                    Ok(Some(address)) => {
                        let refused = Refused { address, names: None, volume: None };
                        let reason = "too many connections wait, most of them from this address";
                        self.house.refusals.note(&refused, "lobby", &reason);
                    }
                    Err(error) => log::error!("{address}: {error}"),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The peer was quicker, or there are no descriptors: then others have to end first.
                Err(error) => {
                    log::warn!("a connection could not be accepted: {error}");
                    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) {
                        thread::park_timeout(ACCEPT_PAUSE);
                    }
                    return;
                }
            }
        }
    }

    fn attend(&self, caller: Caller) {
        let Caller { stream, address, deadline, permit } = caller;
        let house = self.house.clone();
        let spawned = thread::Builder::new()
            .name("connection".to_owned())
            .spawn(move || admission::attend(&house, stream, address, deadline, permit));
        if let Err(error) = spawned {
            log::error!("{address}: no thread for the connection: {error}: raise the limit of processes");
        }
    }
}

/// Closes copies that nobody uses, on a thread of its own as long as there are any copies: each may have to wait for its
/// disk.
fn close_idle_copies(copies: &Arc<Copies>) -> io::Result<()> {
    let copies = Arc::downgrade(copies);
    let close = move || {
        while let Some(copies) = copies.upgrade() {
            copies.close_idle(Instant::now());
            drop(copies);
            thread::sleep(TICK);
        }
    };
    thread::Builder::new().name("idle-copies".to_owned()).spawn(close).map(drop)
}

/// Takes the lock by which there is one replica for `root`.
fn hold(root: &Path) -> Result<File, ServerError> {
    let failed = |action| move |source| ServerError::Root { action, root: root.to_owned(), source };
    let held = File::open(root).map_err(failed("open"))?;
    if !held.metadata().map_err(failed("examine"))?.is_dir() {
        return Err(failed("use")(io::ErrorKind::NotADirectory.into()));
    }
    match rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(held),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ServerError::InUse { root: root.to_owned() }),
        Err(error) => Err(failed("lock")(error.into())),
    }
}

/// How often it is looked at what time alone changes.
const TICK: Duration = Duration::from_secs(1);
const SHARED_BYTES: usize = 1 << 30;
/// What a slow disk, a hundred writes a second, has done after a few seconds.
const WRITE_BEHIND_BYTES: u64 = 1 << 20;
const OPENING_TIME: Duration = Duration::from_secs(10);
const ACCEPTED_MAX: usize = 64;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const STOP_PATIENCE: Duration = Duration::from_secs(30);
