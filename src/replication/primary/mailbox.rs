//! The mailbox of a lane: what the writer wants of it, in the order in which it was decided.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::replication::message::Request;
use crate::replication::replica::ConnectionId;
use crate::replication::transport::Connection;
use crate::replication::view::{MemberIndex, ViewNumber};
use crate::replication::writer::Payload;

/// What the writer wants of a lane.
pub(super) enum Mail {
    /// Send a request on the session that is up.
    Send { member: MemberIndex, id: u64, view: ViewNumber, request: Request, payload: Payload },
    /// The bytes that may still come for a read are not wanted.
    Abandon { member: MemberIndex, id: u64 },
    /// A request of the guest has ended.
    Complete { token: u64, result: Result<(), i32> },
    /// The lane's connection of a session. It may come after the first requests of the session.
    Connected { member: MemberIndex, session: u64, connection: Box<Connection> },
    /// As `Connected`, for the copy in this process.
    Joined { session: u64, connection: ConnectionId },
    /// The session is over.
    Disconnect { member: MemberIndex },
    /// Make a session with the copy in this process.
    JoinLocal { session: u64, view: ViewNumber },
    /// The copy in this process is a member no more.
    CopyRetired,
    /// Take what has come on every connection, and tell the writer that it has been looked for.
    Look,
    /// The bytes of a piece that was copied are not needed any more.
    CopyEnded { copy: u64 },
}

impl Mail {
    /// Which session it belongs to, if it does.
    fn member(&self, local: Option<MemberIndex>) -> Option<MemberIndex> {
        match self {
            Self::Send { member, .. } | Self::Abandon { member, .. } => Some(*member),
            Self::Connected { member, .. } | Self::Disconnect { member } => Some(*member),
            Self::Joined { .. } | Self::JoinLocal { .. } => local,
            Self::Complete { .. } | Self::CopyRetired | Self::Look | Self::CopyEnded { .. } => None,
        }
    }
}

/// The mail of a lane.
pub(super) struct Mailbox {
    mail: Mutex<Vec<Mail>>,
    has_mail: AtomicBool,
    event: EventFd,
}

impl Mailbox {
    /// An empty one.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left.
    pub(super) fn new() -> io::Result<Mailbox> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Mailbox { mail: Mutex::default(), has_mail: AtomicBool::new(false), event })
    }

    /// Moves what has come since the last call to `mail`.
    pub(super) fn take(&self, mail: &mut Vec<Mail>) {
        if self.has_mail.load(Ordering::Acquire) {
            let mut all = self.lock();
            self.has_mail.store(false, Ordering::Release);
            mail.append(&mut all);
        }
    }

    /// Whether something has come since the last [`take`](Self::take).
    pub(super) fn has_mail(&self) -> bool {
        self.has_mail.load(Ordering::Acquire)
    }

    /// Forgets that there was mail: to be called before [`take`](Self::take) when the lane was woken.
    pub(super) fn acknowledge(&self) {
        let _ = self.event.read();
    }

    /// Adds to it, and wakes the lane unless it is about to look anyway.
    pub(super) fn put(&self, mail: Mail, wake: bool) {
        let mut all = self.lock();
        all.push(mail);
        self.has_mail.store(true, Ordering::Release);
        // Whoever has mail already was woken for it, or is about to look.
        if wake && all.len() == 1 {
            self.wake();
        }
    }

    /// Takes back what belongs to a session that is over.
    pub(super) fn forget(&self, member: MemberIndex, local: Option<MemberIndex>) {
        self.lock().retain(|mail| mail.member(local) != Some(member));
    }

    /// Wakes the lane.
    pub(super) fn wake(&self) {
        // It cannot fail in a way that matters: a full counter is readable all the same.
        let _ = self.event.write(1);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Mail>> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Mailbox {
    /// Readable when there is mail.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }
}
