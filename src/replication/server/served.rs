//! A copy that connections share, and how the thread of one hands work to that of another.
//!
//! The replica answers a call on behalf of one connection with actions for many. Those for others go to
//! their [`Mailbox`] while the replica is still locked, so that each connection sees its actions in the
//! order in which the replica decided them; what is its own, the caller carries out after the lock is gone.
//!
//! Invariant: after [`Replica::closed`] for a connection, nothing is put into its mailbox that would have to
//! be applied; so a thread that has called it and has emptied its mailbox may go.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::persist::{Persister, Wanted, persist};
use crate::replication::copy::OpenCopy;
use crate::replication::region::{RegionIndex, Row};
use crate::replication::replica::{Action, ConnectionId, Replica};
use crate::replication::view::View;

/// A copy in the service of connections.
pub struct Served {
    copy: Arc<OpenCopy>,
    mailboxes: Mutex<Mailboxes>,
    /// From when the first row or view was to be made durable.
    persister: Mutex<Option<Persister>>,
}

#[derive(Default)]
struct Mailboxes {
    of: BTreeMap<ConnectionId, Arc<Mailbox>>,
    /// Every connection has been told to end, and those that come are told at once.
    closed: bool,
}

/// What other threads want of the thread of a connection.
pub struct Mailbox {
    mail: Mutex<Vec<Mail>>,
    event: EventFd,
}

/// One such thing.
#[derive(Debug)]
pub enum Mail {
    /// An action of the replica.
    Action(Action),
    /// End the connection in order: finish what is in flight, take nothing more.
    Close,
    /// Others need the memory that is not used.
    GiveBack,
}

impl Served {
    /// Serves a copy.
    pub fn new(copy: Arc<OpenCopy>) -> Served {
        Served { copy, mailboxes: Mutex::default(), persister: Mutex::default() }
    }

    /// The copy.
    pub fn copy(&self) -> &Arc<OpenCopy> {
        &self.copy
    }

    /// Delivers to the mailbox of a connection from now on.
    pub fn join(&self, connection: ConnectionId, mailbox: Arc<Mailbox>) {
        let mut mailboxes = lock(&self.mailboxes);
        if mailboxes.closed {
            mailbox.put(Mail::Close);
        }
        mailboxes.of.insert(connection, mailbox);
    }

    /// Takes the mailbox of a connection away, which the replica has been told is closed.
    pub fn leave(&self, connection: ConnectionId) {
        lock(&self.mailboxes).of.remove(&connection);
    }

    /// Calls the replica, hands out what it wants of other connections, and returns the rest: the actions of
    /// `own`, and any [`Action::Persist`].
    pub fn with_replica(&self, own: ConnectionId, call: impl FnOnce(&mut Replica)) -> Vec<Action> {
        let mut replica = self.copy.replica();
        let had_failed = replica.has_failed();
        call(&mut replica);
        let (mine, others): (Vec<_>, Vec<_>) =
            replica.take_actions().into_iter().partition(|action| addressee(action).is_none_or(|id| id == own));
        if !others.is_empty() {
            let mailboxes = lock(&self.mailboxes);
            for action in others {
                let mailbox = addressee(&action).and_then(|connection| mailboxes.of.get(&connection));
                match mailbox {
                    Some(mailbox) => mailbox.put(Mail::Action(action)),
                    // It has ended, and nobody waits for the answer.
                    None => log::debug!("nobody is there for {action:?}"),
                }
            }
        }
        if replica.has_failed() && !had_failed {
            // Its connections are left to the writer: one that is closed here may end the session before another
            // has brought the reason.
            log::error!("{}: the copy has failed, and is opened again for its writer", self.copy.dir().display());
        }
        mine
    }

    /// Carries an [`Action::Persist`] out, without waiting for the disk: the replica and its connections are told.
    pub fn persist(self: &Arc<Self>, rows: Vec<(RegionIndex, Row)>, view: Option<Box<View>>) {
        let wanted = Wanted { served: self.clone(), rows, view };
        let mut persister = lock(&self.persister);
        if persister.is_none() {
            match Persister::start() {
                Ok(started) => *persister = Some(started),
                Err(error) => log::warn!("{}: no thread for its rows: {error}", self.copy.dir().display()),
            }
        }
        let left = match &*persister {
            Some(persister) => persister.send(wanted).err(),
            None => Some(wanted),
        };
        drop(persister);
        if let Some(wanted) = left {
            persist(wanted);
        }
    }

    /// Waits until nothing is being made durable any more: before the copy is closed, when it has no connections.
    pub fn finish_persisting(&self) {
        let persister = lock(&self.persister).take();
        if let Some(persister) = persister {
            persister.end();
        }
    }

    /// Asks every connection for memory that it does not use.
    pub fn ask_for_memory(&self) {
        lock(&self.mailboxes).of.values().for_each(|mailbox| mailbox.put(Mail::GiveBack));
    }

    /// Tells every connection to end.
    pub fn close(&self) {
        let mut mailboxes = lock(&self.mailboxes);
        mailboxes.closed = true;
        mailboxes.of.values().for_each(|mailbox| mailbox.put(Mail::Close));
    }
}

impl Mailbox {
    /// An empty one.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left.
    pub fn new() -> io::Result<Mailbox> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Mailbox { mail: Mutex::default(), event })
    }

    /// What has come since the last call.
    pub fn take(&self) -> Vec<Mail> {
        let mut mail = lock(&self.mail);
        if !mail.is_empty() {
            // It is readable just when there is mail: both change under the lock. So the usual case, no mail,
            // needs no system call.
            let _ = self.event.read();
        }
        std::mem::take(&mut *mail)
    }

    /// Puts something in.
    pub fn put(&self, mail: Mail) {
        let mut all = lock(&self.mail);
        all.push(mail);
        if all.len() == 1 {
            // It cannot fail in a way that matters: a full counter is readable all the same.
            let _ = self.event.write(1);
        }
    }
}

impl AsFd for Mailbox {
    /// Readable when there is mail.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }
}

fn addressee(action: &Action) -> Option<ConnectionId> {
    match *action {
        Action::Welcome(connection, _) | Action::Refuse(connection, _) => Some(connection),
        Action::Reply { connection, .. } | Action::Apply { connection, .. } | Action::Forget { connection, .. } => {
            Some(connection)
        }
        Action::Persist { .. } => None,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who calls a replica on behalf of no connection: they count from zero.
pub const NOBODY: ConnectionId = ConnectionId(u64::MAX);
