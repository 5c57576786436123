//! The file or block device that holds the bytes, opened for direct I/O where it can serve the
//! volume's sectors, for buffered I/O where it cannot.
//!
//! Direct I/O moves whole blocks of the file system or device. A volume whose sectors are smaller
//! than those blocks (512-byte sectors on a file system that wants 4096) could be served directly
//! only by reading, patching and writing back blocks under a lock; the page cache does exactly that
//! already and does it right, so such a volume is served through it as a whole. Mixing direct and
//! buffered writes in one block is never done: the write-back of a stale page could undo a newer
//! direct write.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, OFlags, StatxFlags};

use super::buffer::{BUFFER_ALIGN, BUFFER_BYTES_MAX, BufferPool};

/// An open file with what is known about its alignment.
#[derive(Debug)]
pub struct BlockFile {
    file: File,
    path: PathBuf,
    caching: Caching,
    memory_align: usize,
    offset_align: usize,
}

/// Whether bytes pass through the host's page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// `O_DIRECT`: they do not.
    Direct,
    /// They do.
    Buffered,
}

impl fmt::Display for Caching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Buffered => "buffered",
        })
    }
}

impl BlockFile {
    /// Opens `path` so that every multiple of `unit` bytes (a power of two) can be transferred.
    pub fn open(path: &Path, read_only: bool, unit: usize) -> io::Result<Self> {
        if is_in_memory(path) {
            return Self::open_buffered(path, read_only);
        }
        match Self::open_direct(path, read_only) {
            Ok(direct) if direct.offset_align <= unit => Ok(direct),
            Ok(Self { file, offset_align, .. }) => {
                log::info!(
                    "{}: direct I/O needs blocks of {offset_align} bytes and the volume has sectors of {unit}: \
                     using the page cache",
                    path.display(),
                );
                drop(file);
                Self::open_buffered(path, read_only)
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                log::info!("{}: no direct I/O here: using the page cache", path.display());
                Self::open_buffered(path, read_only)
            }
            Err(error) => Err(error),
        }
    }

    /// Opens `path` through the page cache, whatever it could do.
    pub fn open_buffered(path: &Path, read_only: bool) -> io::Result<Self> {
        Ok(Self {
            file: open(path, read_only, 0)?,
            path: path.to_owned(),
            caching: Caching::Buffered,
            memory_align: 1,
            offset_align: 1,
        })
    }

    /// The same file for one more queue. The kernel tells each open file description once that cached writes were lost:
    /// who shares one may hear of a flush that ended well, because another has just been told. Nothing is cached
    /// where I/O is direct, and one description is enough.
    pub fn for_a_queue(self: &Arc<Self>) -> io::Result<Arc<Self>> {
        if self.caching == Caching::Direct {
            return Ok(self.clone());
        }
        let itself = PathBuf::from(format!("/proc/self/fd/{}", self.as_raw_fd()));
        let is_read_only = !rustix::fs::fcntl_getfl(&self.file)?.intersects(OFlags::RDWR | OFlags::WRONLY);
        let open = OpenOptions::new().read(true).write(!is_read_only).open(&itself);
        let file = open.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", itself.display())))?;
        Ok(Arc::new(Self { file, path: self.path.clone(), ..**self }))
    }

    /// The file itself, for those who know what it takes.
    pub fn into_file(self) -> File {
        self.file
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Direct or buffered.
    pub fn caching(&self) -> Caching {
        self.caching
    }

    /// What addresses in memory must be a multiple of, in bytes.
    pub fn memory_align(&self) -> usize {
        self.memory_align
    }

    /// What offsets and lengths must be a multiple of, in bytes.
    pub fn offset_align(&self) -> usize {
        self.offset_align
    }

    fn open_direct(path: &Path, read_only: bool) -> io::Result<Self> {
        let file = open(path, read_only, libc::O_DIRECT)?;
        let (memory_align, offset_align) = match reported_alignment(&file)? {
            Some(alignment) => alignment,
            None => probed_alignment(&file)?,
        };
        Ok(Self { file, path: path.to_owned(), caching: Caching::Direct, memory_align, offset_align })
    }
}

/// Opens a file, and a block device to write to it as the only one who does: so does whoever mounts it. What a process
/// that is gone has asked of it the kernel counts as that process, and it is waited for.
fn open(path: &Path, read_only: bool, flags: i32) -> io::Result<File> {
    let is_device = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device());
    let exclusive = if is_device && !read_only { libc::O_EXCL } else { 0 };
    let deadline = Instant::now() + CLAIM_PATIENCE;
    loop {
        match OpenOptions::new().read(true).write(!read_only).custom_flags(flags | exclusive).open(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && exclusive != 0 => {
                if Instant::now() >= deadline {
                    let what =
                        format!("{error}: it is mounted, or another program or the kernel has it: see lsblk and lsof");
                    return Err(io::Error::new(error.kind(), what));
                }
                thread::sleep(CLAIM_STEP);
            }
            opened => return opened,
        }
    }
}

impl AsRawFd for BlockFile {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl AsFd for BlockFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Whether the file lies in memory, so that it needs no direct I/O and nothing waits for a device.
pub fn is_in_memory(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|status| matches!(status.f_type as u32, TMPFS_MAGIC | RAMFS_MAGIC))
}

/// The alignment that statx(2) reports, memory first; `None` where the kernel or the file system
/// does not say, an `EINVAL` error where it says that there is no direct I/O.
fn reported_alignment(file: &File) -> io::Result<Option<(usize, usize)>> {
    let status = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
    if status.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return Ok(None);
    }
    match (status.stx_dio_mem_align as usize, status.stx_dio_offset_align as usize) {
        (0, _) | (_, 0) => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        (memory, offset) if memory.is_power_of_two() && offset.is_power_of_two() && memory <= BUFFER_ALIGN => {
            Ok(Some((memory, offset)))
        }
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// The smallest block that a direct read accepts. Memory is then aligned as much as the block.
fn probed_alignment(file: &File) -> io::Result<(usize, usize)> {
    let mut pool = BufferPool::new(BUFFER_BYTES_MAX);
    let mut buffer = pool.take(2 * BUFFER_ALIGN).expect("the pool has room for one buffer");
    for align in [512, BUFFER_ALIGN] {
        // An address and an offset that are multiples of `align` and of nothing more.
        let base = buffer.as_mut_ptr().wrapping_add(align);
        // SAFETY: the buffer has room for `align` bytes from `base` on.
        let read = unsafe { libc::pread(file.as_raw_fd(), base.cast(), align, align as i64) };
        if read >= 0 {
            return Ok((align, align));
        }
    }
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

/// How long a block device may be somebody else's.
const CLAIM_PATIENCE: Duration = Duration::from_secs(5);
const CLAIM_STEP: Duration = Duration::from_millis(5);
/// `f_type` of statfs(2).
const TMPFS_MAGIC: u32 = 0x0102_1994;
const RAMFS_MAGIC: u32 = 0x8584_58f6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_below_the_direct_block_means_buffered() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("data");
        std::fs::write(&path, vec![7u8; 8192]).unwrap();
        let file = BlockFile::open(&path, false, 4096).unwrap();
        if file.caching() == Caching::Direct {
            assert!(file.offset_align() <= 4096);
            assert_eq!(BlockFile::open(&path, false, 1).unwrap().caching(), Caching::Buffered);
        }
        let buffered = BlockFile::open_buffered(&path, true).unwrap();
        assert_eq!((buffered.memory_align(), buffered.offset_align()), (1, 1));
    }

    #[test]
    fn probing_finds_an_alignment_that_reads() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("data");
        std::fs::write(&path, vec![7u8; 16384]).unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(probed_alignment(&file).unwrap(), (512, 512));
    }

    #[test]
    fn a_file_in_memory_is_buffered_and_gets_the_inline_engine() {
        let file = rustix::fs::memfd_create("data", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, 8192).unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        assert_eq!(BlockFile::open(&path, false, 512).unwrap().caching(), Caching::Buffered);
        assert_eq!(crate::io::Kind::detect(&path).0, crate::io::Kind::Inline);
        assert!(!is_in_memory(Path::new("/proc/self/status")));
    }

    #[test]
    fn a_missing_file_is_an_error() {
        let error = BlockFile::open(Path::new("/nonexistent/data"), false, 512).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
