//! Ending the process of this node that holds a copy, when a writer has come that replaces it.
//!
//! A `serve` holds its copy by a lock that goes with its process. When a writer comes for the copy in a view
//! above the one that was accepted, that `serve` has been replaced, and must neither write nor read any
//! more: it may hang, or be stopped in the middle of anything. So it is asked to end (SIGTERM), and killed
//! if it does not. One that has only just taken the copy is left the time to claim the volume first (see
//! `copies`): it may be the one who replaces the writer that comes.
//!
//! Invariant: nobody is signalled but who holds the lock. The note in the folder says who that is; the
//! process must have started when the note says, and the kernel must count the lock among its own. All
//! of that is asked after a descriptor of the process has been opened, through which the signals go: so
//! a number that has been given to another process since does no harm.
//!
//! What a process had asked of the disk may outlive it for a moment. The copy is not given to its new holder
//! before the kernel has let go of what was written to.
//!
//! How it can fail: there is no note, or a wrong one; the process may not be signalled; or it does not
//! even end when it is killed, as a process does not whose disk does not answer. Then it keeps the copy.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::store::{Holder, HolderError, await_writes};

/// Ends the process that holds the copy in `dir`, whose sectors are at `data`. Waits some seconds at most;
/// then the lock is free, unless somebody else has been quicker.
///
/// # Errors
///
/// [`FenceError`]: the copy stays with whoever has it.
pub fn end_holder(dir: &Path, data: &Path) -> Result<(), FenceError> {
    let folder = File::open(dir).map_err(FenceError::Folder)?;
    let holder = Holder::read(dir)?.ok_or(FenceError::NoNote)?;
    let pid = holder.pid();
    let process = open(pid).map_err(|source| FenceError::Signal { pid, source })?;
    let Some(process) = process.filter(|_| holder.is_alive() && !holder.is_self()) else {
        return Err(FenceError::StaleNote { pid });
    };
    if !has_lock(pid, &folder).map_err(FenceError::Folder)? {
        return Err(FenceError::NotTheHolder { pid });
    }
    let end = |signal, patience| {
        log::warn!("{}: sending {signal:?} to process {pid}, which a writer in a later view replaces", dir.display());
        end(&process, signal, patience).map_err(|source| FenceError::Signal { pid, source })
    };
    if !end(Signal::TERM, TERM_PATIENCE)? {
        // It may have given the copy up and have other things to do.
        let is_still_held = has_lock(pid, &folder).map_err(FenceError::Folder)?;
        if is_still_held && !end(Signal::KILL, KILL_PATIENCE)? {
            return Err(FenceError::Immortal { pid });
        }
    }
    if await_writes(data, WRITES_PATIENCE) { Ok(()) } else { Err(FenceError::Writing { pid }) }
}

/// The holder of a copy could not be made to give it up.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// Nobody says who it is.
    #[error(
        "another process on this node holds the copy and has not noted its number: find it with lslocks and end it"
    )]
    NoNote,
    /// The note cannot be read.
    #[error(transparent)]
    Note(#[from] HolderError),
    /// Who noted it has gone, and somebody else has the lock.
    #[error(
        "another process on this node holds the copy, and not process {pid} that the note in its folder is of: find it with lslocks and end it"
    )]
    StaleNote {
        /// The process that is no more.
        pid: u32,
    },
    /// The process is there, but the kernel does not know that it has the lock.
    #[error(
        "process {pid} on this node claims the copy but does not hold its lock here: find who does with lslocks, also in other containers, and end it"
    )]
    NotTheHolder {
        /// The process.
        pid: u32,
    },
    /// The locks of the folder cannot be told.
    #[error("cannot tell who holds the copy: {0}: check the folder, and that /proc is there")]
    Folder(#[source] io::Error),
    /// It may not be signalled.
    #[error(
        "process {pid} on this node holds the copy and cannot be signalled: {source}: run the replica as the same user"
    )]
    Signal {
        /// The process.
        pid: u32,
        /// Why not.
        source: io::Error,
    },
    /// It has ended or given the copy up, and yet the data is open for writing.
    #[error(
        "process {pid} on this node has given the copy up, but its data is still written to: check the disk, and find who writes with lsof"
    )]
    Writing {
        /// The process.
        pid: u32,
    },
    /// It was killed.
    #[error("process {pid} on this node holds the copy, was killed and does not let go: check the disk")]
    Immortal {
        /// The process.
        pid: u32,
    },
}

/// A descriptor of a process, if there is one of that number.
fn open(pid: u32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => Ok(None),
        opened => Ok(Some(opened?)),
    }
}

/// Whether the kernel counts an exclusive lock on the folder as that process's.
fn has_lock(pid: u32, folder: &File) -> io::Result<bool> {
    let object = locked_object(folder)?;
    let mut locks = String::new();
    File::open("/proc/locks")?.take(LOCKS_BYTES_MAX).read_to_string(&mut locks)?;
    Ok(lists(&locks, pid, &object))
}

/// Whether /proc/locks has an exclusive lock of that process on that object.
fn lists(locks: &str, pid: u32, object: &str) -> bool {
    let pid = pid.to_string();
    locks.lines().any(|line| {
        // Those who only wait for a lock have an arrow in front of its kind.
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        matches!(&fields[..], [_, "FLOCK", _, "WRITE", owner, of, ..] if *owner == pid && *of == object)
    })
}

/// How /proc/locks names the folder. What stat(2) says is not always the same, as on btrfs; so a lock of
/// another kind is taken for a moment, which meets nobody, and looked at.
fn locked_object(folder: &File) -> io::Result<String> {
    fcntl_lock(folder, FlockOperation::NonBlockingLockShared)?;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", folder.as_raw_fd()));
    fcntl_lock(folder, FlockOperation::NonBlockingUnlock)?;
    let info = info?;
    let lock = info.lines().find_map(|line| line.strip_prefix("lock:"));
    // Number, kind, strictness, access, process, object.
    let object = lock.and_then(|lock| lock.split_ascii_whitespace().nth(5));
    object.map(str::to_owned).ok_or_else(|| io::Error::other("the kernel does not tell the locks of a file"))
}

/// Signals a process and waits for its end; false if `patience` was not enough.
fn end(process: &OwnedFd, signal: Signal, patience: Duration) -> io::Result<bool> {
    match pidfd_send_signal(process, signal) {
        Err(Errno::SRCH) => return Ok(true),
        sent => sent?,
    }
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let time = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let process = process.as_fd();
        match rustix::event::poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&time)) {
            Err(Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

/// What a `serve` has to finish what is in flight and flush.
const TERM_PATIENCE: Duration = Duration::from_secs(3);
const KILL_PATIENCE: Duration = Duration::from_secs(5);
const WRITES_PATIENCE: Duration = Duration::from_secs(5);
/// Some 50,000 locks.
const LOCKS_BYTES_MAX: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_has_an_exclusive_lock_of_the_folder_counts() {
        let locks = "1: FLOCK  ADVISORY  WRITE 41 fe:00:7 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 42 fe:00:7 0 EOF\n\
                     2: FLOCK  ADVISORY  READ 43 fe:00:7 0 EOF\n\
                     3: POSIX  ADVISORY  WRITE 44 fe:00:7 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 45 fe:00:77 0 EOF\n\
                     5: FLOCK\n";
        let owners: Vec<u32> = (40..50).filter(|pid| lists(locks, *pid, "fe:00:7")).collect();
        assert_eq!(owners, [41]);
    }

    #[test]
    fn our_own_lock_is_found_where_it_is() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let [locked, looked, elsewhere] = [&dir, &dir, &other].map(|dir| File::open(dir.path()).unwrap());
        rustix::fs::flock(&locked, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(has_lock(std::process::id(), &looked).unwrap());
        assert!(!has_lock(std::process::id(), &elsewhere).unwrap());
        assert!(!has_lock(1, &looked).unwrap());
        drop(locked);
        assert!(!has_lock(std::process::id(), &looked).unwrap());
    }
}
