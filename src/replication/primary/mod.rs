//! The writer at work: a volume's guest is served, and everything it writes is on every copy.
//!
//! [`Primary`] drives the [`Writer`] with real sockets, disks and clocks. Its work is divided into **lanes**. Each
//! queue of the device has one, driven by the queue's own thread, so that a write goes from the guest's ring to the
//! sockets and to the disk, and its answers back, without a word to another thread. One more is for control. The
//! writer decides for all of them, behind one lock that is held while it decides and never while anything is
//! moved.
//!
//! | file | what it does |
//! | --- | --- |
//! | `shared` | the writer behind its lock |
//! | `mailbox` | what it wants of each lane |
//! | `hands` | one lane: mail, replies, waiting |
//! | `peer` | a lane's connection with a member on another node |
//! | `local` | the copy in this process, as one of the members |
//! | `memory` | the bytes that a lane has in its keeping |
//! | `engine` | the requests of a queue, as an engine |
//! | `control` | the lane for control, and the passing of time |
//! | `calls` | making connections |
//! | `trust` | the members' certificates, for as long as sessions last |
//! | `views` | changing the stored view |
//! | `members` | members that come and go |
//! | `report` | what other processes of this machine ask for |
//! | `asking` | the other end: asking that process |
//! | `request` | in which words they do |
//! | `rounds` | comparing the copies for whoever asks |
//! | `scrub` | comparing them from time to time |
//! | `status` | how it stands, for people and programs |
//!
//! How it ends: [`Primary::close`] in order; or the writer stops, because another has taken its place or because
//! something acknowledged may be lost. Then no request is answered any more, and the process has to end.

mod asking;
mod calls;
mod control;
mod engine;
mod error;
mod hands;
mod hostile;
mod local;
mod mailbox;
mod members;
mod memory;
mod peer;
mod report;
pub mod request;
mod rounds;
mod scrub;
mod shared;
pub mod status;
#[cfg(test)]
mod tests;
mod trust;
mod views;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{channel, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use uuid::Uuid;

use super::copy::OpenCopy;
use super::region::Regions;
use super::view::{MemberState, NodeName, WriterId};
use super::writer::{self, Action, Lane, StopReason, Writer};
use crate::coordination::ViewStore;
use crate::crypto::derive::WriterKey;
use crate::io::{Engine, Kind};
use crate::store::Superblock;
use crate::tls::Reloading;
pub use asking::{ask, order, verify};
use calls::Caller;
use control::Control;
use engine::ReplicatedEngine;
pub use error::PrimaryError;
use hands::Hands;
pub use hostile::hear_hostile;
use local::LocalCopy;
use members::Members;
use report::Reporter;
pub use rounds::sentence;
pub use scrub::ScrubPlan;
use shared::Shared;
use status::Status;

/// A volume's writer at work.
pub struct Primary {
    shared: Arc<Shared>,
    copy: Option<Arc<LocalCopy>>,
    threads: Vec<JoinHandle<()>>,
}

/// What a primary is made of.
pub struct Setup {
    /// The node that this process runs on.
    pub node: NodeName,
    /// The copy in this process, if it has one.
    pub copy: Option<Arc<OpenCopy>>,
    /// The socket of the guest's monitor: without a copy, or when it has been removed, other processes ask beside it
    /// how the volume stands, if they can.
    pub socket: Option<PathBuf>,
    /// The engine that the copy is to be opened with again if it fails; none for what suits it.
    pub engine: Option<Kind>,
    /// The volume, as all its copies have it.
    pub superblock: Superblock,
    /// Where its view is.
    pub views: Box<dyn ViewStore>,
    /// Who this node is, to others.
    pub tls: Arc<Reloading>,
    /// What shows that the volume's key is held; none for one without encryption.
    pub signer: Option<WriterKey>,
    /// The most queues that will be served at a time.
    pub queues: u16,
    /// How long it may take to make a connection.
    pub opening_time: Duration,
    /// When the copies are compared without anybody asking; none for never.
    pub scrub: Option<ScrubPlan>,
    /// What can be set of the writer.
    pub settings: writer::Settings,
}

impl Primary {
    /// Claims the volume and begins to gather its copies. The guest may be served when
    /// [`wait_until_served`](Self::wait_until_served) says so.
    ///
    /// # Errors
    ///
    /// [`PrimaryError`] says why the volume cannot be claimed.
    pub fn attach(setup: Setup) -> Result<Primary, PrimaryError> {
        let Setup { node, copy, engine, superblock, mut views, tls, signer, queues, .. } = setup;
        let (opening_time, settings, socket, scrub) = (setup.opening_time, setup.settings, setup.socket, setup.scrub);
        let (volume, size_bytes) = (superblock.id, superblock.size_bytes);
        let view = views.load()?;
        if view.volume != volume {
            return Err(PrimaryError::OtherVolume { expected: volume, found: view.volume });
        }
        let index = view.member_on(&node);
        let local = match (index, &copy) {
            (Some(index), Some(_)) => Some(index),
            (None, None) => None,
            (Some(_), None) => return Err(PrimaryError::NoCopy { node }),
            (None, Some(copy)) => return Err(PrimaryError::NotAMember { node, dir: copy.dir().to_owned() }),
        };
        let id = WriterId { node, attachment: Uuid::new_v4() };
        let lanes = queues + 1;
        let pieces_max = settings.copies_in_flight_max * 2 + writer::CHECKS_MAX * 2;
        let tick = Duration::from_micros(settings.ping_interval_us.min(settings.store_retry_us) / 8);
        let tick = tick.clamp(TICK_MIN, TICK_MAX);
        let began = shared::uptime();
        let writer = Writer::attach(id.clone(), local, Regions::of(size_bytes), settings, view, writer::Time(0))
            .map_err(PrimaryError::Stopped)?;

        let copy = copy.map(|copy| LocalCopy::new(copy, engine, lanes)).transpose()?.map(Arc::new);
        let (swaps, to_swap) = channel();
        let (calls, to_call) = channel();
        let shared = Arc::new(Shared::new(began, writer, local, usize::from(lanes), swaps, calls)?);
        let caller = Arc::new(Caller::new(volume, id.clone(), tls.clone(), signer, opening_time));
        let mut primary = Primary { shared: shared.clone(), copy: copy.clone(), threads: Vec::new() };
        let reporter = match (&copy, &socket) {
            (Some(copy), _) => Some(Reporter::listen(copy.dir(), socket.clone())?),
            (None, Some(socket)) => {
                let listening = Reporter::listen_beside(socket);
                Some(listening.map_err(|source| PrimaryError::Report { path: socket.clone(), source })?)
            }
            (None, None) => None,
        };
        if let Some(reporter) = reporter {
            let theirs = shared.clone();
            let members = Members { caller: caller.clone(), superblock };
            primary.spawn("report", move || reporter.run(&theirs, &members))?;
        }
        if let Some(scrub) = scrub {
            let (theirs, dir) = (shared.clone(), copy.as_ref().map(|copy| copy.dir().to_owned()));
            primary.spawn("scrub", move || scrub::run(&theirs, dir, &scrub))?;
        }
        let theirs = shared.clone();
        primary.spawn("view-store", move || views::run(&theirs, &mut *views, &to_swap))?;
        let theirs = shared.clone();
        primary.spawn("callers", move || caller.run(&theirs, &to_call))?;
        let (ready, begun) = sync_channel(1);
        primary.spawn("control", move || {
            // What moves bytes belongs to the thread that makes it.
            let hands = Hands::new(shared.clone(), copy.clone(), Lane::CONTROL, DEPTH, pieces_max);
            match hands.and_then(|hands| Control::new(shared, hands, copy, id, tls, tick)) {
                Ok(control) => {
                    let _ = ready.send(Ok(()));
                    control.run();
                }
                Err(error) => _ = ready.send(Err(error)),
            }
        })?;
        begun.recv().unwrap_or_else(|_| Err(io::Error::other("the lane for control has ended")))?;
        Ok(primary)
    }

    /// Waits, at most for `time`, until the guest can be served; whether it can be.
    ///
    /// # Errors
    ///
    /// Why the writer has stopped.
    pub fn wait_until_served(&self, time: Duration) -> Result<bool, StopReason> {
        self.shared.wait(time, |state| state.is_served())
    }

    /// Calls `then` if the writer stops, from another thread: nothing that the guest asked for will be answered.
    ///
    /// # Errors
    ///
    /// When there is no thread to be had.
    pub fn when_stopped(&mut self, then: impl FnOnce(StopReason) + Send + 'static) -> io::Result<()> {
        let shared = self.shared.clone();
        self.spawn("watch", move || {
            while !shared.is_closing() {
                if let Err(reason) = shared.wait(WATCH_TIME, |_| shared.is_closing()) {
                    return then(reason);
                }
            }
        })
    }

    /// The engine of a queue, for at most `depth` operations at once; the calling thread's.
    ///
    /// # Errors
    ///
    /// When there are as many as there may be, or no descriptors left.
    pub fn engine(&self, depth: usize) -> io::Result<Box<dyn Engine>> {
        let Some(lane) = self.shared.occupy() else {
            return Err(io::Error::other("every lane is in use: there are more queues than were announced"));
        };
        match Hands::new(self.shared.clone(), self.copy.clone(), lane, depth, 0) {
            Ok(hands) => Ok(Box::new(ReplicatedEngine::new(self.shared.clone(), hands))),
            Err(error) => {
                self.shared.vacate(lane);
                Err(error)
            }
        }
    }

    /// Makes everything that was acknowledged durable on every copy in sync.
    ///
    /// # Errors
    ///
    /// Why that cannot be said.
    pub fn flush(&self) -> io::Result<()> {
        self.shared.flush(FLUSH_TIME_MAX).map_err(|errno| match errno {
            libc::ETIMEDOUT => io::Error::new(io::ErrorKind::TimedOut, "the copies in sync took too long to flush"),
            libc::ESHUTDOWN => io::Error::other("the writer has stopped"),
            errno => io::Error::from_raw_os_error(errno),
        })
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        self.shared.look(|state| Status::of(&state.writer))
    }

    /// Ends in order: waits a little for what is under way between the copies, closes every connection, and syncs
    /// and closes the copy in this process. No queue may be served any more.
    pub fn close(mut self) {
        // A volume whose copies are known to be equal is attached sooner.
        let _ = self.shared.wait(SETTLE_TIME_MAX, |state| state.writer.is_settled());
        self.end();
    }

    fn end(&mut self) {
        self.shared.close();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a thread of the writer has panicked");
            }
        }
        if let Some(copy) = &self.copy {
            copy.close();
        }
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(thread::Builder::new().name(name.to_owned()).spawn(work)?);
        Ok(())
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        self.end();
    }
}

/// Says in the log what people want to know of.
fn log_events(writer: &Writer, action: &Action) {
    let node = |member: super::view::MemberIndex| &writer.view().members[usize::from(member.0)].node;
    match action {
        Action::Serve => {
            log::info!("volume {}: this node is its writer, in view {}", writer.view().volume, writer.view().number)
        }
        Action::Adopted(view) => {
            let state = |state| match state {
                MemberState::InSync(_) => "in sync",
                MemberState::Behind => "behind",
                MemberState::Added => "added",
                MemberState::Retired => "removed",
            };
            let members: Vec<String> =
                view.members.iter().map(|member| format!("{} {}", member.node, state(member.state))).collect();
            log::info!("view {}: {}", view.number, members.join(", "));
        }
        Action::Lost(member, loss) => log::warn!("node {} leaves the in-sync set: {loss}", node(*member)),
        Action::Unreadable { member, offset, len, errno } => log::warn!(
            "node {} cannot read some of {len} bytes at {offset} (error {errno}): another copy is read, and those are looked at",
            node(*member)
        ),
        Action::Found(finding) if finding.round.is_none() => {
            let names = |members: writer::MemberSet| {
                members.iter().map(|member| node(member).to_string()).collect::<Vec<_>>().join(", ")
            };
            let (offset, len) = (finding.offset, finding.len);
            match finding.outcome {
                writer::Outcome::Healed => log::info!(
                    "{len} bytes at {offset} that node {} could not read are written again",
                    names(finding.unreadable)
                ),
                _ if finding.unreadable.is_empty() => {
                    log::warn!("the copies differ in {len} bytes at {offset}: see `sealblk volume verify`")
                }
                _ => log::error!(
                    "{len} bytes at {offset} that node {} could not read are not written again: see `sealblk volume verify`",
                    names(finding.unreadable)
                ),
            }
        }
        Action::Stop(reason) => log::error!("the writer stops: {reason}"),
        _ => {}
    }
}

/// Operations of the disk at once, for the lane for control.
const DEPTH: usize = 64;
const FLUSH_TIME_MAX: Duration = Duration::from_secs(30);
const SETTLE_TIME_MAX: Duration = Duration::from_secs(3);
/// How long a thread waits at most that would also be woken.
const WATCH_TIME: Duration = Duration::from_secs(60);
const TICK_MIN: Duration = Duration::from_millis(5);
const TICK_MAX: Duration = Duration::from_millis(250);
