//! The lane for control: everything that no request of the guest asks for, and the passing of time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use super::hands::{ForControl, Hands};
use super::local::{LocalCopy, Told};
use super::shared::Shared;
use super::trust::Trust;
use crate::replication::message::Hello;
use crate::replication::replica::ConnectionId;
use crate::replication::view::{MemberIndex, ViewNumber, WriterId};
use crate::replication::writer::Lane;
use crate::tls::Reloading;

/// The lane for control, by its thread.
pub(super) struct Control {
    shared: Arc<Shared>,
    hands: Hands,
    /// The copy in this process, and the member that it is.
    copy: Option<Arc<LocalCopy>>,
    local: Option<MemberIndex>,
    /// It is a member no more, and is closed when nothing of it is in use.
    to_close: Option<Arc<LocalCopy>>,
    writer: WriterId,
    timer: OwnedFd,
    /// A session with the copy in this process that is to be made.
    joining: Option<(u64, ViewNumber)>,
    /// The session with it, and its connections from lane 0 on.
    joined: Option<(u64, Vec<ConnectionId>)>,
    /// Those of the session before, whose lanes may still have mail.
    old: Vec<ConnectionId>,
    trust: Trust,
}

impl Control {
    /// With a look at the clock every `tick`.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left.
    pub(super) fn new(
        shared: Arc<Shared>,
        hands: Hands,
        copy: Option<Arc<LocalCopy>>,
        writer: WriterId,
        tls: Arc<Reloading>,
        tick: Duration,
    ) -> io::Result<Control> {
        let timer =
            rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let tick = Timespec { tv_sec: tick.as_secs() as i64, tv_nsec: tick.subsec_nanos().into() };
        let setting = Itimerspec { it_interval: tick, it_value: tick };
        rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &setting)?;
        let trust = Trust::new(shared.clone(), tls);
        let local = shared.look(|state| state.local());
        let (joining, joined, old, to_close) = (None, None, Vec::new(), None);
        Ok(Control { shared, hands, copy, local, to_close, writer, timer, joining, joined, old, trust })
    }

    /// Works until the primary is closed.
    pub(super) fn run(mut self) {
        while !self.shared.is_closing() {
            if let Err(error) = self.turn() {
                // The guest's requests go on in their own lanes; what fails here is tried again.
                log::error!("the lane for control: {error}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        self.leave_local();
    }

    fn turn(&mut self) -> io::Result<()> {
        let mut ticks = [0; 8];
        if rustix::io::read(&self.timer, &mut ticks).is_ok() {
            self.shared.with_writer(Some(Lane::CONTROL), |state, now| state.writer.tick(now));
            if self.joining.is_some() {
                self.join_local();
            }
            self.to_close.take_if(|copy| copy.close_if_unused());
            self.trust.tick();
        }
        self.hands.drive()?;
        let work = self.hands.take_for_control();
        if work.is_empty() {
            let timer: BorrowedFd<'_> = self.timer.as_fd();
            return self.hands.wait(&[timer]);
        }
        for work in work {
            match work {
                ForControl::JoinLocal { session, view } => {
                    self.joining = Some((session, view));
                    self.join_local();
                }
                ForControl::LeaveLocal => self.leave_local(),
                ForControl::CloseCopy => {
                    self.leave_local();
                    self.to_close = self.copy.take();
                }
                ForControl::Told(Told::Welcome(welcome)) => {
                    if let (Some(member), Some((session, connections))) = (self.local, &self.joined) {
                        self.shared.joined(member, *session, connections.clone(), welcome);
                    }
                }
                ForControl::Told(Told::Refused(superseded)) => {
                    if let Some((session, _)) = self.joined {
                        self.local_failed(session, superseded);
                    }
                }
            }
        }
        Ok(())
    }

    fn join_local(&mut self) {
        let Some((session, view)) = self.joining else { return };
        let Some(copy) = self.copy.clone() else { return };
        match copy.reopened() {
            Ok(Some(served)) => {
                self.joining = None;
                for connection in std::mem::take(&mut self.old) {
                    served.leave(connection);
                }
                let volume = served.copy().superblock().id;
                let hello = Hello { volume, view, writer: self.writer.clone(), session, lane: 0, proof: None };
                let connections = copy.join(&served, &hello);
                let joined = self.hands.join(served, session, connections[0]);
                self.joined = Some((session, connections));
                if let Err(error) = joined {
                    log::error!("the copy in this process cannot be used: {error}");
                    self.local_failed(session, None);
                }
            }
            // Some lane still finishes what the failed copy was asked for.
            Ok(None) => {}
            Err(error) => {
                log::error!("{error}");
                self.joining = None;
                self.local_failed(session, None);
            }
        }
    }

    fn leave_local(&mut self) {
        self.joining = None;
        let Some((_, connections)) = self.joined.take() else { return };
        if let Some(served) = self.copy.as_ref().and_then(|copy| copy.served()) {
            LocalCopy::close_connections(&served, &connections);
        }
        self.old = connections;
    }

    fn local_failed(&self, session: u64, superseded: Option<ViewNumber>) {
        if let Some(member) = self.local {
            self.shared.disconnected(Some(Lane::CONTROL), member, session, superseded);
        }
    }
}
