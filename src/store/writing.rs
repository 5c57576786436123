//! Whether somebody still writes to a file of sectors.
//!
//! A process that is gone may have asked the disk for something: what io_uring was given lives on until the disk has
//! done it, and locks do not. So who takes a copy over waits until the kernel has let go of the file too. A block device
//! is opened to be written to by one alone (`io::file`), which comes to the same.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Waits until nobody has the file open for writing, the kernel on behalf of who has gone included; false if
/// that takes too long. The kernel gives a lease for reading under that very condition, but only of a
/// regular file.
pub fn await_writes(data: &Path, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    let Ok(file) = File::open(data) else { return true };
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return true;
    }
    loop {
        // Whoever opens the file meanwhile breaks the lease, which is told by a signal: one that does nothing.
        // SAFETY: no memory is involved. The lease ends with `file`.
        let leased = unsafe {
            libc::fcntl(file.as_raw_fd(), F_SETSIG, libc::SIGURG) == 0
                && libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) == 0
        };
        if leased {
            return true;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::WouldBlock {
            log::warn!("{}: whether somebody still writes to it cannot be told here: {error}", data.display());
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        // Nobody tells when the last writer has gone.
        thread::sleep(STEP);
    }
}

const STEP: Duration = Duration::from_millis(5);
/// From Linux's fcntl.h; the libc crate lacks it.
const F_SETSIG: i32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_open_for_writing_is_waited_for() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!await_writes(file.path(), Duration::ZERO));
        let path = file.into_temp_path();
        // Another test may have begun a process just now, which has our descriptors until it runs its program.
        assert!(await_writes(&path, Duration::from_secs(30)));
        // Whoever opens it while we look is let through, and we are not signalled to death.
        assert!(File::options().write(true).open(&path).is_ok());
    }
}
