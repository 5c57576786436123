//! One operation as plain system calls: `preadv2`, `pwritev2`, `fdatasync`, `fallocate`. The calling
//! thread waits for it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::file::BlockFile;
use super::segments::{Segment, total};
use super::{Errno, Operation, WAKERS_MAX};

/// Carries out one operation, whole.
///
/// # Safety
///
/// The segments must be valid, for writing if the operation is a read.
pub unsafe fn perform(file: &BlockFile, operation: Operation, segments: &[Segment]) -> Result<(), Errno> {
    let fd = file.as_raw_fd();
    match operation {
        Operation::Read { offset } => transfer(segments, offset, |vector, offset| {
            // SAFETY: the segments have the layout of iovec and are writable, says the caller.
            unsafe { libc::preadv2(fd, vector.as_ptr().cast(), vector.len() as i32, offset, 0) }
        }),
        Operation::Write { offset, durable } => {
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            transfer(segments, offset, |vector, offset| {
                // SAFETY: the segments have the layout of iovec and are readable, says the caller.
                unsafe { libc::pwritev2(fd, vector.as_ptr().cast(), vector.len() as i32, offset, flags) }
            })
        }
        // SAFETY: no memory is involved.
        Operation::Sync => retry(|| unsafe { libc::fdatasync(fd) } as isize).map(|_| ()),
        Operation::Zero { offset, len, method } => {
            // SAFETY: no memory is involved.
            retry(|| unsafe { libc::fallocate(fd, method.fallocate_mode(), offset as i64, len as i64) } as isize)
                .map(|_| ())
        }
    }
}

/// Sleeps until the engine's own `event` or one of its wakers is readable.
pub fn wait_for(event: Option<BorrowedFd<'_>>, wakers: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut watched = [libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 }; WAKERS_MAX + 1];
    for (entry, descriptor) in watched.iter_mut().zip(event.iter().chain(wakers)) {
        entry.fd = descriptor.as_raw_fd();
    }
    // SAFETY: the array is live and its length is given; entries of -1 are passed over.
    match unsafe { libc::poll(watched.as_mut_ptr(), watched.len() as libc::nfds_t, -1) } {
        0.. => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            error => Err(error),
        },
    }
}

/// Repeats a vectored call until all segments are done.
fn transfer(segments: &[Segment], offset: u64, mut call: impl FnMut(&[Segment], i64) -> isize) -> Result<(), Errno> {
    let bytes = total(segments);
    let moved = if bytes == 0 { 0 } else { retry(|| call(segments, offset as i64))? };
    if moved == bytes {
        return Ok(());
    }
    let mut rest = segments.to_vec();
    let mut first = 0;
    let mut offset = offset as i64;
    let mut moved = moved;
    loop {
        if moved == 0 {
            // The end of the file, inside the volume: the file was cut while it was in use.
            return Err(Errno(libc::EIO));
        }
        offset += moved as i64;
        skip(&mut rest, &mut first, moved);
        while rest.get(first).is_some_and(|segment| segment.len == 0) {
            first += 1;
        }
        if first == rest.len() {
            return Ok(());
        }
        moved = retry(|| call(&rest[first..], offset))?;
    }
}

/// Takes `moved` bytes off the front of `rest[first..]`.
pub fn skip(rest: &mut [Segment], first: &mut usize, mut moved: usize) {
    while moved > 0 {
        let segment = &mut rest[*first];
        let step = segment.len.min(moved);
        segment.base = segment.base.wrapping_add(step);
        segment.len -= step;
        moved -= step;
        if segment.len == 0 {
            *first += 1;
        }
    }
}

fn retry(mut call: impl FnMut() -> isize) -> Result<usize, Errno> {
    loop {
        let result = call();
        if result >= 0 {
            return Ok(result as usize);
        }
        match Errno::last() {
            Errno(libc::EINTR) => {}
            error => return Err(error),
        }
    }
}
