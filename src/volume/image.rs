//! Raw images in and out of a volume.
//!
//! Importing makes the volume the image followed by zeros, whatever it held before; exporting makes
//! a file of the volume's size. Both keep holes: units that are all zero take no space on the other
//! side, and ranges that the file system knows to be empty are not even read.
//!
//! Whatever can be checked is checked before the first byte is written. An import that fails later
//! leaves the volume with a part of the image; the error says so.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use super::Volume;
use crate::io::file::BlockFile;
use crate::io::holes;

/// An image to read or write, open, and the name that errors call it by.
#[derive(Debug)]
pub struct Image {
    file: File,
    name: PathBuf,
}

impl Image {
    /// An open file, pipe or block device; an import reads it from its current position.
    pub fn new(file: File, name: &Path) -> Image {
        Image { file, name: name.to_owned() }
    }

    fn read_error(&self, source: io::Error) -> ImageError {
        ImageError::Read { path: self.name.clone(), source }
    }

    fn write_error(&self, source: io::Error) -> ImageError {
        ImageError::Write { path: self.name.clone(), source }
    }
}

/// Replaces the content of `volume` by `image`; what is past its end becomes zeros. Durable when it
/// returns. `progress` is told how many bytes of the volume are done.
///
/// The volume must have been opened with [`Access::Exclusive`](crate::store::Access::Exclusive).
///
/// # Errors
///
/// [`ImageError`]. An image whose length can be known and that is too long is refused before
/// anything is written; a pipe that turns out to be is refused after the volume has been filled.
pub fn import(volume: &Volume, image: Image, progress: &mut dyn FnMut(u64)) -> Result<(), ImageError> {
    let data_error = |source| ImageError::Data { path: volume.data_path().to_owned(), source };
    let data = BlockFile::open_buffered(volume.data_path(), false).map_err(data_error)?.into_file();
    refuse_itself(&image, &data)?;
    let size_bytes = volume.size_bytes();
    let source = ImageSource::new(&image)?;
    if let Some(length_bytes) = source.length_bytes
        && length_bytes > size_bytes
    {
        return Err(ImageError::TooLong { path: image.name, length_bytes, size_bytes });
    }

    let unit_bytes = volume.sector_size_bytes() as usize;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut at = 0;
    loop {
        progress(at);
        let next = source.skip_hole(at, unit_bytes as u64).map_err(|error| image.read_error(error))?;
        zero(&data, at..next.min(size_bytes)).map_err(data_error)?;
        at = next;
        let length = read_full(&image.file, &mut buffer).map_err(|error| image.read_error(error))?;
        if length as u64 > size_bytes.saturating_sub(at) {
            return Err(ImageError::Overflow { path: image.name, size_bytes });
        }
        let padded = length.next_multiple_of(unit_bytes);
        buffer[length..padded].fill(0);
        write_plain(volume, &data, at, &mut buffer[..padded]).map_err(data_error)?;
        at += padded as u64;
        if length < buffer.len() {
            break;
        }
    }
    zero(&data, at.min(size_bytes)..size_bytes).map_err(data_error)?;
    data.sync_all().map_err(data_error)?;
    progress(size_bytes);
    Ok(())
}

/// Writes the whole content of `volume` to `image`. A regular file at whose start it is becomes exactly the
/// volume's size, with holes where the volume has zeros; a block device must be large enough; to anything
/// else the bytes are written one after the other, and so to a file that is to be appended to or has
/// been written to already. Durable when it returns, where that means
/// something. `progress` is told how many bytes are done.
///
/// # Errors
///
/// [`ImageError`].
pub fn export(volume: &Volume, image: Image, progress: &mut dyn FnMut(u64)) -> Result<(), ImageError> {
    let data_error = |source| ImageError::Data { path: volume.data_path().to_owned(), source };
    let data = File::open(volume.data_path()).map_err(data_error)?;
    refuse_itself(&image, &data)?;
    let size_bytes = volume.size_bytes();
    let target = ImageTarget::new(&image, size_bytes)?;

    let unit_bytes = volume.sector_size_bytes() as usize;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut at = 0;
    while at < size_bytes {
        progress(at);
        let next = next_data(&data, at, size_bytes, unit_bytes as u64).map_err(data_error)?;
        target.write_zeros(at..next, &mut buffer).map_err(|error| image.write_error(error))?;
        at = next;
        let length = buffer.len().min((size_bytes - at) as usize);
        let piece = &mut buffer[..length];
        data.read_exact_at(piece, at).map_err(data_error)?;
        decrypt(volume, at, piece);
        target.write(at, piece).map_err(|error| image.write_error(error))?;
        at += length as u64;
    }
    target.sync().map_err(|error| image.write_error(error))?;
    progress(size_bytes);
    Ok(())
}

/// An image could not be imported or exported.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The image does not fit. Nothing was written.
    #[error(
        "image {} has {length_bytes} bytes and the volume has {size_bytes}: make a larger volume; nothing was written",
        .path.display()
    )]
    TooLong {
        /// The image.
        path: PathBuf,
        /// Its length.
        length_bytes: u64,
        /// The volume's size.
        size_bytes: u64,
    },
    /// The image is a stream that went on past the end of the volume.
    #[error(
        "image {} is longer than the {size_bytes} bytes of the volume, which now holds a part of it: make a larger volume",
        .path.display()
    )]
    Overflow {
        /// The image.
        path: PathBuf,
        /// The volume's size.
        size_bytes: u64,
    },
    /// The image is the volume's own data file.
    #[error("image {} is the volume's own data: name another file", .path.display())]
    Itself {
        /// The image.
        path: PathBuf,
    },
    /// The block device to export to is too small.
    #[error(
        "device {} has {length_bytes} bytes and the volume has {size_bytes}: name a larger one",
        .path.display()
    )]
    DeviceTooSmall {
        /// The device.
        path: PathBuf,
        /// Its length.
        length_bytes: u64,
        /// The volume's size.
        size_bytes: u64,
    },
    /// The image cannot be read.
    #[error("cannot read image {}: {source}: the volume may hold a part of it, import it again", .path.display())]
    Read {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The image cannot be written.
    #[error("cannot write image {}: {source}: it is not complete, export it again", .path.display())]
    Write {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The volume's data cannot be read or written.
    #[error(
        "cannot use {}: {source}: check the disk and try again; a volume that was being imported to may hold a part of \
         the image",
        .path.display()
    )]
    Data {
        /// The data file or device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Where an imported image is read from.
struct ImageSource<'a> {
    file: &'a File,
    /// Position of the image's first byte, in a file that has positions.
    start: Option<u64>,
    /// Bytes from there to the end, if that can be known.
    length_bytes: Option<u64>,
}

impl<'a> ImageSource<'a> {
    fn new(image: &'a Image) -> Result<ImageSource<'a>, ImageError> {
        let file = &image.file;
        let measure = || {
            let kind = file.metadata()?.file_type();
            if !kind.is_file() && !kind.is_block_device() {
                return Ok(ImageSource { file, start: None, length_bytes: None });
            }
            let start = rustix::fs::tell(file)?;
            let end = rustix::fs::seek(file, SeekFrom::End(0))?;
            rustix::fs::seek(file, SeekFrom::Start(start))?;
            Ok(ImageSource { file, start: Some(start), length_bytes: Some(end.saturating_sub(start)) })
        };
        measure().map_err(|error| image.read_error(error))
    }

    /// Moves past a hole in the image at `at`, to the start of the unit in which data begins.
    fn skip_hole(&self, at: u64, unit_bytes: u64) -> io::Result<u64> {
        let (Some(start), Some(length_bytes)) = (self.start, self.length_bytes) else {
            return Ok(at);
        };
        let next = match rustix::fs::seek(self.file, SeekFrom::Data(start + at)) {
            Ok(position) => (position - start) / unit_bytes * unit_bytes,
            Err(Errno::NXIO) => length_bytes / unit_bytes * unit_bytes,
            Err(Errno::INVAL) => at,
            Err(errno) => return Err(errno.into()),
        };
        let next = next.max(at);
        rustix::fs::seek(self.file, SeekFrom::Start(start + next))?;
        Ok(next)
    }
}

/// Where an exported image goes.
struct ImageTarget<'a> {
    file: &'a File,
    kind: TargetKind,
}

#[derive(PartialEq, Eq)]
enum TargetKind {
    /// A regular file, already of the right length and all hole.
    Sparse,
    /// A block device, written from its start.
    Device,
    /// Written to one byte after the other.
    Stream,
}

impl<'a> ImageTarget<'a> {
    fn new(image: &'a Image, size_bytes: u64) -> Result<ImageTarget<'a>, ImageError> {
        let file = &image.file;
        let prepare = || -> io::Result<_> {
            let kind = file.metadata()?.file_type();
            if kind.is_block_device() {
                let length_bytes = rustix::fs::seek(file, SeekFrom::End(0))?;
                return Ok((TargetKind::Device, length_bytes));
            }
            // Where to write is not for whoever appends to say, and what stands before is not to be lost.
            let is_start = || -> io::Result<bool> {
                Ok(!rustix::fs::fcntl_getfl(file)?.contains(OFlags::APPEND) && rustix::fs::tell(file)? == 0)
            };
            if !kind.is_file() || !is_start()? {
                return Ok((TargetKind::Stream, size_bytes));
            }
            // Emptied first, so that nothing of what was there shines through the holes.
            file.set_len(0)?;
            file.set_len(size_bytes)?;
            Ok((TargetKind::Sparse, size_bytes))
        };
        let (kind, length_bytes) = prepare().map_err(|error| image.write_error(error))?;
        if length_bytes < size_bytes {
            return Err(ImageError::DeviceTooSmall { path: image.name.clone(), length_bytes, size_bytes });
        }
        Ok(ImageTarget { file, kind })
    }

    fn write(&self, at: u64, piece: &[u8]) -> io::Result<()> {
        match self.kind {
            TargetKind::Sparse => holes::runs(piece, SPARSE_BLOCK_BYTES)
                .filter(|run| !run.hole)
                .try_for_each(|run| self.file.write_all_at(&piece[run.range.clone()], at + run.range.start as u64)),
            TargetKind::Device => self.file.write_all_at(piece, at),
            TargetKind::Stream => (&mut &*self.file).write_all(piece),
        }
    }

    fn write_zeros(&self, range: Range<u64>, buffer: &mut [u8]) -> io::Result<()> {
        if self.kind == TargetKind::Sparse || range.is_empty() {
            return Ok(());
        }
        buffer.fill(0);
        pieces(range, buffer.len()).try_for_each(|(at, length)| self.write(at, &buffer[..length]))
    }

    fn sync(&self) -> io::Result<()> {
        match self.kind {
            TargetKind::Sparse | TargetKind::Device => self.file.sync_all(),
            // A pipe keeps nothing that could be made durable.
            TargetKind::Stream => match rustix::fs::fsync(self.file) {
                Err(Errno::INVAL | Errno::ROFS) => Ok(()),
                synced => Ok(synced?),
            },
        }
    }
}

fn refuse_itself(image: &Image, data: &File) -> Result<(), ImageError> {
    let same = || {
        let (image, data) = (image.file.metadata()?, data.metadata()?);
        let same_file = (image.dev(), image.ino()) == (data.dev(), data.ino());
        let both_devices = image.file_type().is_block_device() && data.file_type().is_block_device();
        Ok(same_file || (both_devices && image.rdev() == data.rdev()))
    };
    match same().map_err(|error| image.read_error(error))? {
        true => Err(ImageError::Itself { path: image.name.clone() }),
        false => Ok(()),
    }
}

/// Seals whole units in place and writes them; those that are all zero become holes.
fn write_plain(volume: &Volume, data: &File, at: u64, plain: &mut [u8]) -> io::Result<()> {
    let unit_bytes = volume.sector_size_bytes() as usize;
    let runs: Vec<holes::Run> = holes::runs(plain, unit_bytes).collect();
    for holes::Run { range, hole } in runs {
        let offset = at + range.start as u64;
        let piece = &mut plain[range];
        if hole {
            zero(data, offset..offset + piece.len() as u64)?;
        } else {
            if let Some(cipher) = volume.cipher() {
                cipher.encrypt(piece, unit_bytes, offset / unit_bytes as u64);
            }
            data.write_all_at(piece, offset)?;
        }
    }
    Ok(())
}

/// Opens whole units in place; holes stay zeros.
fn decrypt(volume: &Volume, at: u64, sealed: &mut [u8]) {
    let Some(cipher) = volume.cipher() else {
        return;
    };
    let unit_bytes = volume.sector_size_bytes() as usize;
    let runs: Vec<holes::Run> = holes::runs(sealed, unit_bytes).collect();
    for run in runs.into_iter().filter(|run| !run.hole) {
        let first_unit = (at + run.range.start as u64) / unit_bytes as u64;
        cipher.decrypt(&mut sealed[run.range], unit_bytes, first_unit);
    }
}

/// Makes a range of the data read as zeros, without taking space where the disk can do that.
fn zero(data: &File, range: Range<u64>) -> io::Result<()> {
    if range.is_empty() || punch(data, &range)? {
        return Ok(());
    }
    // A device whose own sectors are larger than ours takes only whole ones of them.
    let middle =
        range.start.next_multiple_of(DEVICE_SECTOR_BYTES)..range.end / DEVICE_SECTOR_BYTES * DEVICE_SECTOR_BYTES;
    if middle != range && !middle.is_empty() && punch(data, &middle)? {
        write_zeros(data, range.start..middle.start)?;
        write_zeros(data, middle.end..range.end)
    } else {
        write_zeros(data, range)
    }
}

/// Punches a hole, if there can be one.
fn punch(data: &File, range: &Range<u64>) -> io::Result<bool> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(data, flags, range.start, range.end - range.start) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn write_zeros(data: &File, range: Range<u64>) -> io::Result<()> {
    let zeros = vec![0; BUFFER_BYTES];
    pieces(range, zeros.len()).try_for_each(|(at, length)| data.write_all_at(&zeros[..length], at))
}

/// The start of the unit in which data next begins, from `at` on; `end` if there is none before it.
fn next_data(data: &File, at: u64, end: u64, unit_bytes: u64) -> io::Result<u64> {
    match rustix::fs::seek(data, SeekFrom::Data(at)) {
        Ok(position) => Ok((position / unit_bytes * unit_bytes).clamp(at, end)),
        Err(Errno::NXIO) => Ok(end),
        // Block devices do not know holes.
        Err(Errno::INVAL) => Ok(at),
        Err(errno) => Err(errno.into()),
    }
}

/// A range in pieces of at most `length_max`, each as its start and length.
fn pieces(range: Range<u64>, length_max: usize) -> impl Iterator<Item = (u64, usize)> {
    let starts = range.clone().step_by(length_max);
    starts.map(move |start| (start, (range.end - start).min(length_max as u64) as usize))
}

/// Reads until the buffer is full or the file ends.
fn read_full(mut file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// A multiple of every sector size.
const BUFFER_BYTES: usize = 1 << 20;

/// The largest sectors that disks have.
const DEVICE_SECTOR_BYTES: u64 = 4096;

/// Zeros are left out of an exported file in pieces of this size, a file system's usual block.
const SPARSE_BLOCK_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::crypto::xts::XtsKey;
    use crate::store::{Access, SectorSize, Store};
    use crate::volume::Creation;

    fn allocated_bytes(volume: &Volume) -> u64 {
        Store::open(volume.dir(), Access::Inspect).unwrap().allocated_bytes().unwrap()
    }

    struct Disk {
        parent: tempfile::TempDir,
        key: Option<XtsKey>,
    }

    impl Disk {
        fn new(size_bytes: u64, sector_size: SectorSize, encrypted: bool) -> Disk {
            let parent = tempfile::tempdir().unwrap();
            let key = encrypted.then(|| XtsKey::generate().unwrap());
            let creation = Creation { size_bytes, sector_size, device: None };
            Volume::create(&parent.path().join("disk"), creation, key.as_ref()).unwrap();
            Disk { parent, key }
        }

        fn open(&self) -> Volume {
            Volume::open(&self.parent.path().join("disk"), self.key.as_ref(), Access::Exclusive).unwrap()
        }

        fn import(&self, content: &[u8]) -> Result<(), ImageError> {
            let path = self.parent.path().join("in");
            fs::write(&path, content).unwrap();
            import(&self.open(), Image::new(File::open(&path).unwrap(), &path), &mut |_| {})
        }

        fn export(&self) -> Vec<u8> {
            let path = self.parent.path().join("out");
            export(&self.open(), Image::new(File::create(&path).unwrap(), &path), &mut |_| {}).unwrap();
            fs::read(&path).unwrap()
        }
    }

    fn kinds() -> impl Iterator<Item = (SectorSize, bool)> {
        [SectorSize::Bytes512, SectorSize::Bytes4096].into_iter().flat_map(|size| [(size, true), (size, false)])
    }

    fn random(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        getrandom::fill(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_is_imported_is_exported_with_zeros_behind_it() {
        for (sector_size, encrypted) in kinds() {
            let disk = Disk::new(3 << 20, sector_size, encrypted);
            let mut expected = random(3 << 20);
            disk.import(&expected).unwrap();
            assert_eq!(disk.export(), expected);
            assert_eq!(fs::read(disk.open().data_path()).unwrap() == expected, !encrypted);

            // A shorter image, with an odd end and with zeros inside, over the old content.
            expected[4096..3 * 4096].fill(0);
            expected[(1 << 20) + 700..].fill(0);
            disk.import(&expected[..(1 << 20) + 700]).unwrap();
            assert_eq!(disk.export(), expected);
            assert!(allocated_bytes(&disk.open()) <= (1 << 20) + (64 << 10));
        }
    }

    #[test]
    fn zeros_take_no_space_and_holes_are_kept_on_both_sides() {
        for (sector_size, encrypted) in kinds() {
            let disk = Disk::new(64 << 20, sector_size, encrypted);
            let path = disk.parent.path().join("sparse");
            let sparse = File::create(&path).unwrap();
            sparse.set_len(64 << 20).unwrap();
            sparse.write_all_at(&random(512), (40 << 20) + 1024).unwrap();
            import(&disk.open(), Image::new(File::open(&path).unwrap(), &path), &mut |_| {}).unwrap();
            assert!(allocated_bytes(&disk.open()) <= 64 << 10);
            assert_eq!(disk.export(), fs::read(&path).unwrap());
            let out = fs::metadata(disk.parent.path().join("out")).unwrap();
            assert!(out.blocks() * 512 <= 64 << 10);

            disk.import(&vec![0; 64 << 20]).unwrap();
            assert_eq!(allocated_bytes(&disk.open()), 0);
        }
    }

    #[test]
    fn an_image_that_is_too_long_is_refused_before_anything_is_written() {
        let disk = Disk::new(1 << 20, SectorSize::Bytes512, true);
        let error = disk.import(&random((1 << 20) + 1)).unwrap_err();
        assert!(matches!(error, ImageError::TooLong { length_bytes: 1_048_577, size_bytes: 1_048_576, .. }), "{error}");
        assert_eq!(allocated_bytes(&disk.open()), 0);
    }

    #[test]
    fn the_data_file_itself_is_refused_both_ways() {
        let disk = Disk::new(1 << 20, SectorSize::Bytes512, true);
        let content = random(1 << 20);
        disk.import(&content).unwrap();
        let volume = disk.open();
        let data = volume.data_path().to_owned();
        let itself = || Image::new(File::options().read(true).write(true).open(&data).unwrap(), &data);
        assert!(matches!(import(&volume, itself(), &mut |_| {}), Err(ImageError::Itself { .. })));
        assert!(matches!(export(&volume, itself(), &mut |_| {}), Err(ImageError::Itself { .. })));
        drop(volume);
        assert_eq!(disk.export(), content);
    }

    #[test]
    fn streams_go_in_and_out() {
        let disk = Disk::new(3 << 20, SectorSize::Bytes4096, true);
        let mut content = random(3 << 20);
        content[1 << 20..2 << 20].fill(0);
        let name = Path::new("-");
        let stream = |ours: bool| {
            let (reader, writer) = io::pipe().unwrap();
            let (reader, writer) = (std::os::fd::OwnedFd::from(reader), std::os::fd::OwnedFd::from(writer));
            if ours { (File::from(reader), File::from(writer)) } else { (File::from(writer), File::from(reader)) }
        };
        std::thread::scope(|scope| {
            let (theirs, mut ours) = stream(true);
            let content = &content;
            scope.spawn(move || ours.write_all(content).unwrap());
            import(&disk.open(), Image::new(theirs, name), &mut |_| {}).unwrap();
        });
        std::thread::scope(|scope| {
            let (theirs, mut ours) = stream(false);
            let reader = scope.spawn(move || {
                let mut read = Vec::new();
                ours.read_to_end(&mut read).unwrap();
                read
            });
            export(&disk.open(), Image::new(theirs, name), &mut |_| {}).unwrap();
            assert!(reader.join().unwrap() == content);
        });
        std::thread::scope(|scope| {
            let (theirs, mut ours) = stream(true);
            // Fails when the reader goes away.
            scope.spawn(move || ours.write_all(&vec![1; 8 << 20]).unwrap_err());
            let error = import(&disk.open(), Image::new(theirs, name), &mut |_| {}).unwrap_err();
            assert!(matches!(error, ImageError::Overflow { size_bytes: 3_145_728, .. }), "{error}");
        });
    }

    #[test]
    fn what_a_file_holds_stays_where_it_is_appended_to() {
        let disk = Disk::new(1 << 20, SectorSize::Bytes512, true);
        let mut content = random(1 << 20);
        content[4096..65536].fill(0);
        disk.import(&content).unwrap();
        let path = disk.parent.path().join("kept");
        let appending = File::options().append(true).create(true).open(&path).unwrap();
        let written = || File::options().write(true).truncate(true).create(true).open(&path).unwrap();
        for (name, mut file) in [("appended to", appending), ("written to before", written())] {
            file.write_all(b"header").unwrap();
            export(&disk.open(), Image::new(file, &path), &mut |_| {}).unwrap();
            assert!(fs::read(&path).unwrap() == [b"header", &content[..]].concat(), "{name}");
        }
    }

    #[test]
    fn progress_grows_to_the_size() {
        let disk = Disk::new(3 << 20, SectorSize::Bytes512, false);
        let path = disk.parent.path().join("in");
        fs::write(&path, random(2 << 20)).unwrap();
        let mut seen = Vec::new();
        import(&disk.open(), Image::new(File::open(&path).unwrap(), &path), &mut |done| seen.push(done)).unwrap();
        assert!(seen.is_sorted());
        assert_eq!(seen.last(), Some(&(3 << 20)));
    }
}
