//! Survives guest memory that vanishes.
//!
//! The front end owns the file behind guest memory and can cut it short at any time; touching a
//! page past its end raises SIGBUS, which would end the process. The handler here puts a page of
//! zeros in the place of the missing one and counts the fault: the access goes on, and whoever
//! cares compares [`fault_count`] before and after and fails the request. A SIGBUS outside the
//! registered ranges ends the process as it would without the handler.
//!
//! The kernel delivers the signal to the thread whose access it was, and each thread counts its own
//! faults: what one queue's worker touches does not stop another queue whose memory is whole. A
//! page that one thread has replaced no longer faults for the others; [`is_lost`] tells them.
//!
//! What the kernel itself copies to and from guest memory, in a system call or for io_uring, raises
//! no signal: such an operation fails with EFAULT.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::mem;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

/// A range of addresses whose pages may vanish; ends to be one when dropped.
#[derive(Debug)]
pub struct Guard {
    slot: &'static Slot,
}

impl Guard {
    /// Registers `[start, start + len)`, a live shared mapping of `file` in whole pages, which are huge ones if the file
    /// has such.
    ///
    /// Drop the guard before the mapping: from then on a fault there is fatal again.
    pub fn new(start: usize, len: usize, file: &File) -> io::Result<Self> {
        install()?;
        let page_bytes = page_bytes(file)?;
        for slot in &SLOTS {
            if slot.end.compare_exchange(0, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                slot.page_bytes.store(page_bytes, Ordering::Release);
                slot.lost_from.store(usize::MAX, Ordering::Release);
                slot.start.store(start, Ordering::Release);
                slot.end.store(start.saturating_add(len), Ordering::Release);
                return Ok(Self { slot });
            }
        }
        Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many regions of guest memory"))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.slot.start.store(usize::MAX, Ordering::Release);
        if self.slot.lost_from.swap(usize::MAX, Ordering::AcqRel) != usize::MAX {
            LOST_RANGES.fetch_sub(1, Ordering::Release);
        }
        self.slot.end.store(0, Ordering::Release);
    }
}

/// How many pages this thread has found missing since it started.
pub fn fault_count() -> u64 {
    FAULTS.get()
}

/// Whether any of the `len` bytes from `start` on may be zeros that took the place of what a
/// registered range held. A file is cut short from its end: what lies in the same range behind a
/// page that was missing counts as lost with it.
pub fn is_lost(start: usize, len: usize) -> bool {
    // Zeros that were read before this must not be taken for data, so no load may move up.
    fence(Ordering::Acquire);
    LOST_RANGES.load(Ordering::Relaxed) > 0
        && SLOTS.iter().any(|slot| {
            let end = slot.end.load(Ordering::Acquire);
            slot.lost_from.load(Ordering::Acquire) < start.saturating_add(len) && start < end
        })
}

/// A registered range, from `start` to `end`.
#[derive(Debug)]
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    page_bytes: AtomicUsize,
    /// The first page that was found missing; `usize::MAX` if none was.
    lost_from: AtomicUsize,
}

fn install() -> io::Result<()> {
    static INSTALL: Once = Once::new();
    static ERROR: AtomicUsize = AtomicUsize::new(0);
    INSTALL.call_once(|| {
        // SAFETY: an all-zero sigaction is a valid one to fill in.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for and does only what is
        // allowed in a signal handler: atomics, a plain thread-local, mmap, sigaction.
        if unsafe { libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) } != 0 {
            let error = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
            ERROR.store(error as usize, Ordering::Relaxed);
        }
    });
    match ERROR.load(Ordering::Relaxed) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error as i32)),
    }
}

/// What a mapping of `file` consists of.
fn page_bytes(file: &File) -> io::Result<usize> {
    let status = rustix::fs::fstatfs(file)?;
    match status.f_type as u32 {
        HUGETLBFS_MAGIC => usize::try_from(status.f_bsize).map_err(io::Error::other),
        _ => Ok(rustix::param::page_size()),
    }
}

extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() }.addr();
    let known = SLOTS.iter().find(|slot| {
        let end = slot.end.load(Ordering::Acquire);
        end != CLAIMED && slot.start.load(Ordering::Acquire) <= address && address < end
    });
    if let Some(slot) = known {
        // A part of a huge page cannot be replaced.
        let page_bytes = slot.page_bytes.load(Ordering::Acquire);
        let page = address & !(page_bytes - 1);
        // Before the zeros are there, so that nobody finds them and does not find this.
        if slot.lost_from.fetch_min(page, Ordering::AcqRel) == usize::MAX {
            LOST_RANGES.fetch_add(1, Ordering::AcqRel);
        }
        // SAFETY: the page belongs to a registered mapping of guest memory that lost its backing;
        // replacing it changes nothing that could still be read.
        let mapped = unsafe {
            libc::mmap(
                ptr::without_provenance_mut(page),
                page_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        if mapped != libc::MAP_FAILED {
            FAULTS.set(FAULTS.get() + 1);
            return;
        }
    }
    // Not ours: restore the default action and return, so that the access faults again and ends
    // the process the usual way.
    // SAFETY: an all-zero sigaction is SIG_DFL without flags.
    unsafe {
        let default: libc::sigaction = mem::zeroed();
        libc::sigaction(libc::SIGBUS, &default, ptr::null_mut());
    }
}

static SLOTS: [Slot; SLOTS_MAX] = [const {
    Slot {
        start: AtomicUsize::new(usize::MAX),
        end: AtomicUsize::new(0),
        page_bytes: AtomicUsize::new(0),
        lost_from: AtomicUsize::new(usize::MAX),
    }
}; SLOTS_MAX];
/// How many slots have lost a page, so that nobody has to look at all of them as a rule.
static LOST_RANGES: AtomicUsize = AtomicUsize::new(0);
thread_local! {
    // Nothing to initialise and nothing to drop: a plain access to the thread's static block, which
    // a signal handler may make at any time.
    static FAULTS: Cell<u64> = const { Cell::new(0) };
}

/// `f_type` of statfs(2) where pages are huge, and blocks with them.
const HUGETLBFS_MAGIC: u32 = 0x9584_58f6;
/// A slot that is being filled in.
const CLAIMED: usize = 1;
/// Regions of one front end at most, with room for the old table while a new one takes its place.
const SLOTS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::thread;

    const PAGE: usize = 4096;

    /// A shared mapping of a file of so many pages. It stays until the process ends.
    fn mapped(pages: usize) -> (File, *mut u8) {
        let file = tempfile::tempfile().unwrap();
        file.set_len((pages * PAGE) as u64).unwrap();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh shared mapping of a file of this length.
        let base = unsafe { libc::mmap(ptr::null_mut(), pages * PAGE, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(base, libc::MAP_FAILED);
        (file, base.cast())
    }

    #[test]
    fn a_page_that_vanished_reads_as_zeros_and_is_counted() {
        let (file, base) = mapped(2);
        let _guard = Guard::new(base.addr(), 2 * PAGE, &file).unwrap();
        // SAFETY: both pages are mapped; after the cut the handler replaces the second.
        unsafe {
            base.write_volatile(1);
            base.add(PAGE).write_volatile(2);
            let before = fault_count();
            file.set_len(PAGE as u64).unwrap();
            assert_eq!(base.add(PAGE + 4).read_volatile(), 0);
            assert_eq!(fault_count(), before + 1);
            assert_eq!(base.read_volatile(), 1);
            assert_eq!(fault_count(), before + 1);
        }
    }

    #[test]
    fn faults_count_where_they_happen_and_losses_show_everywhere() {
        let (file, base) = mapped(4);
        let (start, address) = (base.addr(), base.expose_provenance());
        let guard = Guard::new(start, 4 * PAGE, &file).unwrap();
        let before = fault_count();
        assert!(!is_lost(start, 4 * PAGE));
        file.set_len(PAGE as u64).unwrap();
        let faults_elsewhere = thread::spawn(move || {
            // SAFETY: the pages are mapped; the handler replaces this one.
            unsafe { ptr::with_exposed_provenance::<u8>(address + 2 * PAGE).read_volatile() };
            fault_count()
        });
        assert_eq!(faults_elsewhere.join().unwrap(), 1);
        assert_eq!(fault_count(), before);
        assert!(!is_lost(start, 2 * PAGE));
        assert!(is_lost(start + 2 * PAGE - 1, 2));
        assert!(is_lost(start + 3 * PAGE, 1));
        assert!(!is_lost(start + 4 * PAGE, PAGE));
        // A new registration of the same place starts whole.
        drop(guard);
        let _guard = Guard::new(start, 4 * PAGE, &file).unwrap();
        assert!(!is_lost(start, 4 * PAGE));
    }
}
