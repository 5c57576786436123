//! Engines that move bytes between memory and one file.
//!
//! An [`Engine`] belongs to one thread. It takes [`Operation`]s, each with a token of the caller's,
//! and hands back one [`Completion`] for each, in any order. An operation is done whole or has
//! failed: short transfers are continued inside the engine, so nobody above sees one.
//!
//! Three engines do the same work: [`uring`] where the kernel allows `io_uring`; [`threads`], a pool
//! of plain `preadv`/`pwritev`, where it does not (Kubernetes' default seccomp profile forbids it);
//! and [`inline`] for files in memory, where nothing waits. [`mod@file`] decides between direct and
//! buffered I/O; [`buffer`] keeps the aligned buffers; [`holes`] finds what need not be stored.

mod blocking;
pub mod buffer;
pub mod file;
pub mod holes;
pub mod inline;
pub mod patience;
pub mod segments;
pub mod sigbus;
pub mod threads;
pub mod uring;
pub mod zeroing;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use file::BlockFile;
use segments::Segment;
use threads::ThreadPool;

/// What an engine can be asked to do. Offsets and lengths are in bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Fill the segments from `offset` on.
    Read {
        /// First byte of the file to read.
        offset: u64,
    },
    /// Store the segments from `offset` on.
    Write {
        /// First byte of the file to write.
        offset: u64,
        /// Complete only when the bytes would survive a power loss (`RWF_DSYNC`).
        durable: bool,
    },
    /// Make every write that has completed durable (`fdatasync`).
    Sync,
    /// Make a range read as zeros and give its space back, or only make it read as zeros.
    Zero {
        /// First byte of the range.
        offset: u64,
        /// Length of the range.
        len: u64,
        /// How the file system is asked to do it.
        method: ZeroMethod,
    },
}

/// The `fallocate` mode by which a range is made to read as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroMethod {
    /// `FALLOC_FL_PUNCH_HOLE`: the space is given back.
    PunchHole,
    /// `FALLOC_FL_ZERO_RANGE`: for devices that can zero but not discard.
    ZeroRange,
}

impl ZeroMethod {
    /// The mode bits of fallocate(2).
    pub fn fallocate_mode(self) -> i32 {
        match self {
            Self::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            Self::ZeroRange => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        }
    }
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The token that the operation was submitted with.
    pub token: u64,
    /// Done whole, or the error that stopped it.
    pub result: Result<(), Errno>,
}

/// An error number of errno(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// The number of the calling thread's last failed system call.
    pub fn last() -> Self {
        Self(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    }

    /// Whether the file system says that it cannot do this kind of operation at all.
    pub fn is_unsupported(self) -> bool {
        matches!(self.0, libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

/// Moves bytes between memory and one file, for one thread.
pub trait Engine {
    /// Takes one operation; its completion will carry `token`. `segments` is empty for operations
    /// that move no bytes, and holds at most [`SEGMENTS_MAX`] of them otherwise.
    ///
    /// At most `depth` operations (see [`Engines::engine`]) may be in flight.
    ///
    /// # Safety
    ///
    /// Every segment must stay valid, for writing if the operation is a read, until the completion
    /// has been reaped.
    unsafe fn submit(&mut self, operation: Operation, segments: &[Segment], token: u64);

    /// Passes what was submitted to the kernel or the pool, and appends what has completed since.
    /// Never waits for an operation.
    fn drive(&mut self, completions: &mut Vec<Completion>) -> std::io::Result<()>;

    /// How many operations to submit before [`drive`](Self::drive) is called. Nothing fails when there
    /// are more; it only takes longer.
    fn burst_max(&self) -> usize {
        usize::MAX
    }

    /// Operations that were submitted and not yet reaped.
    fn in_flight(&self) -> usize;

    /// Passes on what was submitted, then sleeps until a completion can be reaped or one of
    /// `wakers`, at most [`WAKERS_MAX`] and the same at every call, is readable. May return early.
    fn wait(&mut self, wakers: &[BorrowedFd<'_>]) -> std::io::Result<()>;
}

/// The most segments that one operation may have (`IOV_MAX` of Linux).
pub const SEGMENTS_MAX: usize = 1024;

/// The most descriptors that [`Engine::wait`] watches.
pub const WAKERS_MAX: usize = 3;

/// Which engine to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `io_uring`.
    Uring,
    /// A pool of threads.
    Threads,
    /// The queue's own thread.
    Inline,
}

impl Kind {
    /// The engine that suits the file at `path`: the queue's own thread for a file in memory;
    /// otherwise `io_uring` if a ring can be made, the thread pool if not, with the reason why not.
    pub fn detect(path: &Path) -> (Self, Option<std::io::Error>) {
        if file::is_in_memory(path) {
            return (Self::Inline, None);
        }
        match uring::probe() {
            Ok(()) => (Self::Uring, None),
            Err(error) => (Self::Threads, Some(error)),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uring => "io-uring",
            Self::Threads => "threads",
            Self::Inline => "inline",
        })
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "io-uring" => Ok(Self::Uring),
            "threads" => Ok(Self::Threads),
            "inline" => Ok(Self::Inline),
            _ => Err(format!("unknown engine {text:?}: io-uring, threads or inline")),
        }
    }
}

/// Makes the engines of one file: one for each thread that asks.
pub struct Engines {
    file: Arc<BlockFile>,
    source: Source,
}

enum Source {
    Uring,
    Threads(ThreadPool),
    Inline,
    Other(Box<MakeEngine>),
}

/// Makes an engine for the calling thread, for at most as many operations at once as it is told.
pub type MakeEngine = dyn Fn(usize) -> std::io::Result<Box<dyn Engine>> + Send + Sync;

impl Engines {
    /// Engines of `kind` over `file`.
    pub fn new(kind: Kind, file: Arc<BlockFile>) -> std::io::Result<Self> {
        let source = match kind {
            Kind::Uring => {
                uring::probe()?;
                Source::Uring
            }
            Kind::Threads => Source::Threads(ThreadPool::new()?),
            Kind::Inline => Source::Inline,
        };
        Ok(Self { file, source })
    }

    /// Engines that `make` makes, which may do with the operations on `file` what they like.
    pub fn made_by(make: Box<MakeEngine>, file: Arc<BlockFile>) -> Self {
        Self { file, source: Source::Other(make) }
    }

    /// The engine of the calling thread, for at most `depth` operations at once.
    pub fn engine(&self, depth: usize) -> std::io::Result<Box<dyn Engine>> {
        Ok(match &self.source {
            Source::Uring => Box::new(uring::UringEngine::new(self.file.for_a_queue()?, depth)?),
            Source::Threads(pool) => Box::new(pool.engine(self.file.for_a_queue()?)?),
            Source::Inline => Box::new(inline::InlineEngine::new(self.file.for_a_queue()?)),
            Source::Other(make) => make(depth)?,
        })
    }

    /// What they are; none for what others make.
    pub fn kind(&self) -> Option<Kind> {
        match self.source {
            Source::Uring => Some(Kind::Uring),
            Source::Threads(_) => Some(Kind::Threads),
            Source::Inline => Some(Kind::Inline),
            Source::Other(_) => None,
        }
    }

    /// The file that the engines work on.
    pub fn file(&self) -> &Arc<BlockFile> {
        &self.file
    }
}

#[cfg(test)]
mod tests;
