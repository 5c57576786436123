//! A value in memory that is never swapped, never dumped, and wiped when dropped.
//!
//! Every [`Locked`] has its own anonymous mapping: `mlock` keeps it out of swap, `MADV_DONTDUMP`
//! out of core dumps, and an inaccessible page on either side turns a stray read that runs off a
//! neighbouring buffer into a fault instead of a leak. Small secrets are few (a key, its expanded
//! schedules), so a page each is no burden.
//!
//! The invariant: from the moment a secret byte is written through [`DerefMut`] until the drop, it
//! exists only in those pages. Moving a secret *into* [`Locked::new`] would leave a copy behind on
//! the stack, so the way to use it is to lock a blank value and fill it in place.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};
use zeroize::Zeroize;

/// A `T` in pages of its own: locked in RAM, left out of core dumps, wiped on drop.
///
/// `T` itself must own no heap memory that holds secrets: only the value is in the locked pages.
///
/// ```
/// # use sealblk::crypto::Locked;
/// let mut key = Locked::new([0u8; 32])?; // blank first,
/// key[0] = 7; // then filled in place
/// assert_eq!(format!("{key:?}"), "[redacted]");
/// # Ok::<(), sealblk::crypto::LockedError>(())
/// ```
pub struct Locked<T: Zeroize> {
    value: NonNull<T>,
    pages: Pages,
}

/// Why memory for a secret could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockedError {
    /// The kernel gave no memory.
    #[error("no memory for {bytes} bytes of key material: {source}; free memory or raise the process's limits")]
    Map {
        /// Size of the secret in bytes.
        bytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The pages could not be locked in RAM, most often because of `RLIMIT_MEMLOCK`.
    #[error(
        "cannot lock {bytes} bytes of key material in memory: {source}; raise RLIMIT_MEMLOCK (`ulimit -l`, systemd LimitMEMLOCK=) or grant CAP_IPC_LOCK"
    )]
    Lock {
        /// Size of the secret in bytes.
        bytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The pages could not be left out of core dumps.
    #[error(
        "cannot keep {bytes} bytes of key material out of core dumps: {source}; run on a kernel with MADV_DONTDUMP"
    )]
    Advise {
        /// Size of the secret in bytes.
        bytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
}

impl<T: Zeroize> Locked<T> {
    /// Locks pages for `blank` and moves it there. `blank` should hold no secret yet (see the
    /// type's example): the move may leave a copy of it on the stack.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the memory, or to lock it: see [`LockedError`].
    pub fn new(blank: T) -> Result<Locked<T>, LockedError> {
        assert!(align_of::<T>() <= page_bytes());
        let pages = Pages::map(size_of::<T>())?;
        let value = pages.usable.cast::<T>();
        // SAFETY: the usable part is writable, ours alone, at least `size_of::<T>()` bytes long,
        // and page-aligned, which the assertion above makes enough for T.
        unsafe { value.write(blank) };
        Ok(Locked { value, pages })
    }
}

impl<T: Zeroize> Drop for Locked<T> {
    fn drop(&mut self) {
        (**self).zeroize();
        // SAFETY: the value was written by `new` and is dropped only here.
        unsafe { ptr::drop_in_place(self.value.as_ptr()) };
        // Padding and whatever T's own `zeroize` left behind.
        self.pages.wipe();
    }
}

impl<T: Zeroize> Deref for Locked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `value` points at a T that lives as long as `self`.
        unsafe { self.value.as_ref() }
    }
}

impl<T: Zeroize> DerefMut for Locked<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { self.value.as_mut() }
    }
}

impl<T: Zeroize> fmt::Debug for Locked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

// SAFETY: a Locked owns its T and the pages it lives in, as a Box would.
unsafe impl<T: Zeroize + Send> Send for Locked<T> {}
// SAFETY: a shared Locked gives out only `&T`.
unsafe impl<T: Zeroize + Sync> Sync for Locked<T> {}

/// One mapping: an inaccessible page, the locked pages, an inaccessible page.
struct Pages {
    mapping: NonNull<u8>,
    mapping_bytes: usize,
    usable: NonNull<u8>,
    usable_bytes: usize,
}

impl Pages {
    fn map(bytes: usize) -> Result<Pages, LockedError> {
        let page = page_bytes();
        let usable_bytes = bytes.max(1).next_multiple_of(page);
        let mapping_bytes = usable_bytes + 2 * page;
        let map_error = |source: rustix::io::Errno| LockedError::Map { bytes, source: source.into() };
        // SAFETY: a new private mapping at an address of the kernel's choice touches no memory
        // that is in use.
        let mapping = unsafe {
            rustix::mm::mmap_anonymous(ptr::null_mut(), mapping_bytes, ProtFlags::empty(), MapFlags::PRIVATE)
        }
        .map_err(map_error)?;
        let mapping = NonNull::new(mapping.cast::<u8>()).expect("mmap never returns null");
        let pages = Pages {
            mapping,
            mapping_bytes,
            // SAFETY: one page into a mapping of at least three.
            usable: unsafe { mapping.add(page) },
            usable_bytes,
        };

        let usable = pages.usable.as_ptr().cast();
        // SAFETY: the range lies inside the mapping made above, to which no reference exists yet.
        unsafe { rustix::mm::mprotect(usable, usable_bytes, MprotectFlags::READ | MprotectFlags::WRITE) }
            .map_err(map_error)?;
        // SAFETY: as above; the advice changes no content.
        unsafe { rustix::mm::madvise(usable, usable_bytes, Advice::LinuxDontDump) }
            .map_err(|source| LockedError::Advise { bytes, source: source.into() })?;
        // SAFETY: as above; locking changes no content.
        unsafe { rustix::mm::mlock(usable, usable_bytes) }
            .map_err(|source| LockedError::Lock { bytes, source: source.into() })?;
        Ok(pages)
    }

    fn wipe(&mut self) {
        // SAFETY: the usable part is mapped, writable and borrowed exclusively; fresh anonymous
        // pages are zeroed, so every byte of it is initialised.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.usable.as_ptr(), self.usable_bytes) };
        bytes.zeroize();
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` and nothing points into it any more. Unmapping
        // also unlocks. It cannot fail for a whole mapping; if it did, a leak would be all.
        let _ = unsafe { rustix::mm::munmap(self.mapping.as_ptr().cast(), self.mapping_bytes) };
    }
}

fn page_bytes() -> usize {
    // SAFETY: sysconf only reads a constant of the system.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).expect("every system has a page size")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;

    /// The `VmFlags` line of the mapping that holds `address`.
    fn vm_flags(address: usize) -> String {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in smaps.lines() {
            let range = line.split(' ').next().unwrap().split_once('-');
            if let Some((start, end)) = range
                && let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
            {
                inside = (start..end).contains(&address);
            }
            if inside && let Some(flags) = line.strip_prefix("VmFlags:") {
                return format!("{flags} ");
            }
        }
        panic!("no mapping holds {address:#x}");
    }

    #[test]
    fn pages_are_locked_and_left_out_of_dumps() {
        let secret = Locked::new([0u8; 5000]).unwrap();
        for offset in [0, 4999] {
            let flags = vm_flags(secret.as_ptr() as usize + offset);
            assert!(flags.contains(" lo "), "not locked: {flags}");
            assert!(flags.contains(" dd "), "not left out of dumps: {flags}");
        }
    }

    #[test]
    fn the_pages_around_are_inaccessible() {
        let secret = Locked::new([0u8; 64]).unwrap();
        let page = page_bytes();
        let start = secret.as_ptr() as usize;
        for neighbour in [start - 1, start + page] {
            let flags = vm_flags(neighbour);
            assert!(!flags.contains(" rd "), "readable: {flags}");
            assert!(!flags.contains(" wr "), "writable: {flags}");
        }
    }

    #[test]
    fn holds_what_is_written_and_prints_none_of_it() {
        let mut secret = Locked::new([0u8; 64]).unwrap();
        secret.fill(0xa5);
        assert_eq!(*secret, [0xa5; 64]);
        assert_eq!(format!("{secret:?} {secret:#?}"), "[redacted] [redacted]");
    }

    struct Witness(Rc<Cell<u32>>);

    impl Zeroize for Witness {
        fn zeroize(&mut self) {
            assert_eq!(self.0.get(), 0, "wiped after it was dropped");
            self.0.set(1);
        }
    }

    impl Drop for Witness {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 10);
        }
    }

    #[test]
    fn drop_wipes_and_then_drops_once() {
        let seen = Rc::new(Cell::new(0));
        drop(Locked::new(Witness(seen.clone())).unwrap());
        assert_eq!(seen.get(), 11);
    }

    #[test]
    fn wipe_clears_every_byte() {
        let mut pages = Pages::map(100).unwrap();
        // SAFETY: the usable part is mapped and writable, and at least a page long.
        unsafe { pages.usable.as_ptr().write_bytes(0xff, pages.usable_bytes) };
        pages.wipe();
        // SAFETY: as above, and initialised by the line before.
        let bytes = unsafe { std::slice::from_raw_parts(pages.usable.as_ptr(), pages.usable_bytes) };
        assert!(bytes.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_refused_lock_names_the_remedy() {
        let error = LockedError::Lock { bytes: 64, source: io::Error::from_raw_os_error(libc::ENOMEM) };
        let text = error.to_string();
        assert!(text.contains("64 bytes"), "{text}");
        assert!(text.contains("RLIMIT_MEMLOCK"), "{text}");
    }
}
