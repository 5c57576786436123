//! Survives guest memory that vanishes.
//!
//! The front end owns the file behind guest memory and can cut it short at any time; touching a
//! page past its end raises SIGBUS, which would end the process. The handler here puts a page of
//! zeros in the place of the missing one and counts the fault: the access goes on, and whoever
//! cares compares [`fault_count`] before and after and fails the request. A SIGBUS outside the
//! registered ranges ends the process as it would without the handler.

use std::io;
use std::mem;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// A range of addresses whose pages may vanish; ends to be one when dropped.
#[derive(Debug)]
pub struct Guard {
    slot: &'static Slot,
}

impl Guard {
    /// Registers `[start, start + len)`, a live shared mapping of whole pages.
    ///
    /// Drop the guard before the mapping: from then on a fault there is fatal again.
    pub fn new(start: usize, len: usize) -> io::Result<Self> {
        install()?;
        for slot in &SLOTS {
            if slot.end.compare_exchange(0, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
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
        self.slot.end.store(0, Ordering::Release);
    }
}

/// How many pages have been found missing since the process started.
pub fn fault_count() -> u64 {
    FAULTS.load(Ordering::Acquire)
}

#[derive(Debug)]
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
}

fn install() -> io::Result<()> {
    static INSTALL: Once = Once::new();
    static ERROR: AtomicUsize = AtomicUsize::new(0);
    INSTALL.call_once(|| {
        PAGE_BYTES.store(rustix::param::page_size(), Ordering::Relaxed);
        // SAFETY: an all-zero sigaction is a valid one to fill in.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for and does only what is
        // allowed in a signal handler: atomic loads and stores, mmap, sigaction.
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

extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() }.addr();
    let page_bytes = PAGE_BYTES.load(Ordering::Relaxed);
    let page = address & !(page_bytes - 1);
    let known = SLOTS.iter().any(|slot| {
        let end = slot.end.load(Ordering::Acquire);
        end != CLAIMED && slot.start.load(Ordering::Acquire) <= address && address < end
    });
    if known {
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
            FAULTS.fetch_add(1, Ordering::AcqRel);
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

static SLOTS: [Slot; SLOTS_MAX] =
    [const { Slot { start: AtomicUsize::new(usize::MAX), end: AtomicUsize::new(0) } }; SLOTS_MAX];
static FAULTS: AtomicU64 = AtomicU64::new(0);
static PAGE_BYTES: AtomicUsize = AtomicUsize::new(4096);

/// A slot that is being filled in.
const CLAIMED: usize = 1;
/// Regions of one front end at most, with room for the old table while a new one takes its place.
const SLOTS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_page_that_vanished_reads_as_zeros_and_is_counted() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        // SAFETY: a fresh shared mapping of a file of this length.
        let base = unsafe {
            libc::mmap(ptr::null_mut(), 8192, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd(), 0)
        }
        .cast::<u8>();
        let guard = Guard::new(base.addr(), 8192).unwrap();
        // SAFETY: both pages are mapped; after the cut the handler replaces the second.
        unsafe {
            base.write_volatile(1);
            base.add(4096).write_volatile(2);
            let before = fault_count();
            file.set_len(4096).unwrap();
            assert_eq!(base.add(4100).read_volatile(), 0);
            assert!(fault_count() > before);
            assert_eq!(base.read_volatile(), 1);
            drop(guard);
            libc::munmap(base.cast(), 8192);
        }
    }
}
