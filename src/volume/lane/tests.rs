use std::fs;
use std::path::Path;

use super::*;
use crate::crypto::xts::{Xts, XtsKey};
use crate::io::{self, ZeroMethod};
use crate::store::{Access, SectorSize, Store};
use crate::volume::{Creation, Volume};

const SIZE_BYTES: u64 = 64 << 20;

fn key() -> XtsKey {
    XtsKey::from_bytes(&(0..64).collect::<Vec<u8>>()).unwrap()
}

/// A fresh volume in service. The folder is on the disk that the sources are on, for direct I/O.
fn attach(sector_size: SectorSize, encrypted: bool, kind: io::Kind) -> (tempfile::TempDir, Arc<Attachment>) {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let key = encrypted.then(key);
    let creation = Creation { size_bytes: SIZE_BYTES, sector_size, device: None };
    Volume::create(folder.path(), creation, key.as_ref()).unwrap();
    let volume = Volume::open(folder.path(), key.as_ref(), Access::Exclusive).unwrap();
    let attachment = Attachment::new(volume, kind, false).unwrap();
    (folder, Arc::new(attachment))
}

/// Runs a test under every engine, encrypted or not, at both sector sizes.
fn for_each_setting(test: impl Fn(&Arc<Attachment>, &mut Lane, &Path)) {
    for kind in [io::Kind::Uring, io::Kind::Threads] {
        for encrypted in [true, false] {
            for sector_size in [SectorSize::Bytes512, SectorSize::Bytes4096] {
                let (folder, attachment) = attach(sector_size, encrypted, kind);
                let mut lane = attachment.lane(64).unwrap();
                test(&attachment, &mut lane, &folder.path().join("data"));
            }
        }
    }
}

fn wait(lane: &mut Lane) -> Vec<Completion> {
    let mut ended = Vec::new();
    loop {
        lane.drive(&mut ended).unwrap();
        if lane.in_flight() == 0 {
            ended.sort_by_key(|completion| completion.token);
            return ended;
        }
        lane.wait(&[]).unwrap();
    }
}

fn done(lane: &mut Lane) {
    for completion in wait(lane) {
        assert_eq!(completion.result, Ok(()), "request {}", completion.token);
    }
}

/// Segments of these lengths, one after the other, over `bytes`, and one over what is left.
fn split(bytes: &mut [u8], lengths: &[usize]) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut at = 0;
    for &len in lengths {
        segments.push(Segment::new(bytes.as_mut_ptr().wrapping_add(at), len));
        at += len;
    }
    segments.push(Segment::new(bytes.as_mut_ptr().wrapping_add(at), bytes.len() - at));
    segments
}

fn pattern(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32).map(|index| (index.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
}

fn write(lane: &mut Lane, offset: u64, data: &mut [u8], lengths: &[usize]) {
    // SAFETY: `data` outlives the request, which `done` waits for.
    unsafe { lane.write(1, offset, &split(data, lengths), false) };
    done(lane);
}

fn read(lane: &mut Lane, offset: u64, len: usize, lengths: &[usize]) -> Vec<u8> {
    let mut data = vec![0xa5; len];
    // SAFETY: `data` outlives the request, which `done` waits for.
    unsafe { lane.read(1, offset, &split(&mut data, lengths)) };
    done(lane);
    data
}

#[test]
fn what_is_written_is_read_back_and_lies_sealed_on_disk() {
    for_each_setting(|attachment, lane, path| {
        let unit = attachment.volume().sector_size_bytes() as usize;
        for (round, lengths) in [&[][..], &[4096], &[1, 4095], &[513, 7, 100_000]].into_iter().enumerate() {
            let offset = (round as u64 + 1) << 20;
            let plain = pattern(512 * 1024, round as u32);
            write(lane, offset, &mut plain.clone(), lengths);
            assert!(read(lane, offset, plain.len(), &[]) == plain, "round {round}");
            assert!(read(lane, offset, plain.len(), &[3, 8192]) == plain, "round {round}, unaligned");
            let mut expected = plain;
            if attachment.cipher().is_some() {
                Xts::new(&key()).unwrap().encrypt(&mut expected, unit, offset / unit as u64);
            }
            let disk = fs::read(path).unwrap();
            assert!(disk[offset as usize..][..expected.len()] == expected, "round {round}, on disk");
        }
    });
}

#[test]
fn what_was_never_written_or_was_zeroed_reads_as_zeros() {
    for_each_setting(|attachment, lane, _| {
        assert!(read(lane, 0, 65536, &[]).iter().all(|&byte| byte == 0));
        for (token, discard) in [(2, false), (3, true)] {
            write(lane, 0, &mut pattern(1 << 20, 1), &[]);
            let before = allocated_bytes(attachment.volume());
            assert!(before >= 1 << 20);
            let extents = [Extent { offset: 4096, len: 8192 }, Extent { offset: 65536, len: (1 << 20) - 65536 }];
            if discard {
                lane.discard(token, extents, true);
            } else {
                lane.zero(token, extents, true);
            }
            done(lane);
            let data = read(lane, 0, 1 << 20, &[]);
            let expected = pattern(1 << 20, 1);
            assert!(data[..4096] == expected[..4096] && data[12288..65536] == expected[12288..65536]);
            assert!(data[4096..12288].iter().chain(&data[65536..]).all(|&byte| byte == 0));
            assert!(allocated_bytes(attachment.volume()) <= before - (900 << 10));
        }
    });
}

#[test]
fn more_than_the_buffers_hold_waits_and_ends() {
    for_each_setting(|_, lane, _| {
        // Odd segments force buffers even where the volume is not encrypted.
        let mut sources: Vec<_> = (0..40).map(|seed| pattern(1 << 20, seed)).collect();
        for (index, source) in sources.iter_mut().enumerate() {
            // SAFETY: `sources` outlives the requests, which `wait` waits for.
            unsafe { lane.write(index as u64, (index as u64) << 20, &split(source, &[1]), false) };
        }
        lane.flush(1000);
        let ended = wait(lane);
        assert_eq!(ended.len(), 41);
        assert!(ended.iter().all(|completion| completion.result.is_ok()));
        for (index, source) in sources.iter().enumerate() {
            assert!(read(lane, (index as u64) << 20, 1 << 20, &[5]) == *source, "request {index}");
        }
    });
}

#[test]
fn an_empty_transfer_ends_well() {
    for_each_setting(|_, lane, _| {
        // SAFETY: no memory is involved.
        unsafe {
            lane.read(1, 0, &[]);
            lane.write(2, 0, &[], true);
        }
        lane.zero(3, [], false);
        assert_eq!(wait(lane).len(), 3);
    });
}

#[test]
fn a_read_only_volume_refuses_changes_and_serves_reads() {
    let (folder, attachment) = attach(SectorSize::Bytes512, true, io::Kind::Threads);
    write(&mut attachment.lane(8).unwrap(), 0, &mut pattern(4096, 3), &[]);
    drop(attachment);
    let volume = Volume::open(folder.path(), Some(&key()), Access::Shared).unwrap();
    let attachment = Arc::new(Attachment::new(volume, io::Kind::Threads, true).unwrap());
    let mut lane = attachment.lane(8).unwrap();
    assert_eq!(read(&mut lane, 0, 4096, &[]), pattern(4096, 3));
    let mut data = pattern(4096, 4);
    // SAFETY: `data` outlives the request, which `wait` waits for.
    unsafe { lane.write(1, 0, &split(&mut data, &[]), false) };
    lane.zero(2, [Extent { offset: 0, len: 4096 }], false);
    lane.flush(3);
    let results: Vec<_> = wait(&mut lane).iter().map(|completion| completion.result).collect();
    assert_eq!(results, [Err(Errno(libc::EIO)), Err(Errno(libc::EIO)), Ok(())]);
    assert_eq!(read(&mut lane, 0, 4096, &[]), pattern(4096, 3));
}

/// An engine that does nothing and says what it is told to say.
struct Scripted {
    results: VecDeque<Result<(), Errno>>,
    pending: Vec<u64>,
    submitted: Arc<std::sync::Mutex<Vec<Operation>>>,
}

impl Engine for Scripted {
    unsafe fn submit(&mut self, operation: Operation, _segments: &[Segment], token: u64) {
        self.submitted.lock().unwrap().push(operation);
        self.pending.push(token);
    }

    fn drive(&mut self, completions: &mut Vec<Completion>) -> std::io::Result<()> {
        for token in self.pending.drain(..) {
            let result = self.results.pop_front().unwrap_or(Ok(()));
            completions.push(Completion { token, result });
        }
        Ok(())
    }

    fn wait(&mut self, _wakers: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.pending.len()
    }
}

/// A lane over an engine that gives these results, in order, and then goes on well.
fn scripted(results: &[Result<(), Errno>]) -> (tempfile::TempDir, Lane, Arc<std::sync::Mutex<Vec<Operation>>>) {
    let (folder, attachment) = attach(SectorSize::Bytes512, true, io::Kind::Threads);
    let submitted = Arc::default();
    let engine =
        Scripted { results: results.iter().copied().collect(), pending: Vec::new(), submitted: Arc::clone(&submitted) };
    (folder, Lane::new(attachment, Box::new(engine)), submitted)
}

fn results(lane: &mut Lane) -> Vec<Result<(), Errno>> {
    wait(lane).iter().map(|completion| completion.result).collect()
}

#[test]
fn a_failed_flush_is_final() {
    let (_folder, mut lane, submitted) = scripted(&[Err(Errno(libc::EIO))]);
    lane.flush(1);
    assert_eq!(results(&mut lane), [Err(Errno(libc::EIO))]);
    // The next would succeed if it were tried: it must not be.
    let mut data = pattern(512, 0);
    lane.flush(2);
    // SAFETY: `data` outlives the request, which `results` waits for.
    unsafe { lane.write(3, 0, &split(&mut data, &[]), false) };
    lane.discard(4, [Extent { offset: 0, len: 4096 }], false);
    assert_eq!(results(&mut lane), [Err(Errno(libc::EIO)); 3]);
    assert_eq!(*submitted.lock().unwrap(), [Operation::Sync]);
    assert!(lane.attachment.flush().is_err());
    // Reads go on.
    // SAFETY: as above.
    unsafe { lane.read(5, 0, &split(&mut data, &[])) };
    assert_eq!(results(&mut lane), [Ok(())]);
}

#[test]
fn a_full_disk_fails_the_write_and_nothing_else() {
    let (_folder, mut lane, _) = scripted(&[Err(Errno(libc::ENOSPC))]);
    let mut data = pattern(512, 0);
    for (token, expected) in [(1, Err(Errno(libc::ENOSPC))), (2, Ok(()))] {
        // SAFETY: `data` outlives the request, which `results` waits for.
        unsafe { lane.write(token, 0, &split(&mut data, &[]), true) };
        assert_eq!(results(&mut lane), [expected]);
    }
    lane.flush(3);
    assert_eq!(results(&mut lane), [Ok(())]);
}

#[test]
fn a_file_system_without_holes_gets_zeros_written() {
    let unsupported = Err(Errno(libc::EOPNOTSUPP));
    let (_folder, mut lane, submitted) = scripted(&[unsupported, unsupported]);
    lane.zero(1, [Extent { offset: 0, len: BUFFER_BYTES_MAX as u64 + 512 }], false);
    assert_eq!(results(&mut lane), [Ok(())]);
    let operations = std::mem::take(&mut *submitted.lock().unwrap());
    assert!(matches!(operations[..2], [Operation::Zero { .. }, Operation::Zero { .. }]));
    let written = |offset| Operation::Write { offset, durable: false };
    assert_eq!(operations[2..], [written(0), written(BUFFER_BYTES_MAX as u64)]);
    // A discard there does nothing, which is all that a discard promises.
    lane.discard(2, [Extent { offset: 0, len: 4096 }], false);
    assert_eq!(results(&mut lane), [Ok(())]);
    assert!(submitted.lock().unwrap().is_empty());
}

#[test]
fn a_discard_that_could_give_no_space_back_writes_nothing() {
    let (_folder, mut lane, submitted) = scripted(&[Err(Errno(libc::EOPNOTSUPP))]);
    for token in [1, 2] {
        lane.discard(token, [Extent { offset: 0, len: 1 << 20 }, Extent { offset: 4 << 20, len: 4096 }], false);
        assert_eq!(results(&mut lane), [Ok(())]);
    }
    // As for a device that has to be told every zero.
    let operations = submitted.lock().unwrap();
    let is_hole = |operation: &Operation| matches!(operation, Operation::Zero { method: ZeroMethod::PunchHole, .. });
    assert!(operations.len() <= 2 && operations.iter().all(is_hole), "{operations:?}");
}

#[test]
fn a_failed_read_leaves_no_ciphertext_behind() {
    let (_folder, mut lane, _) = scripted(&[Err(Errno(libc::EIO))]);
    let mut pool = BufferPool::new(BUFFER_BYTES_MAX);
    let buffer = pool.take(4096).unwrap();
    let target = [Segment::new(buffer.as_ptr(), 4096)];
    // SAFETY: the buffer outlives the request, which `results` waits for.
    unsafe {
        std::ptr::write_bytes(buffer.as_ptr(), 0xcc, 4096);
        lane.read(1, 0, &target);
    }
    assert_eq!(results(&mut lane), [Err(Errno(libc::EIO))]);
    // SAFETY: nothing is in flight.
    let left = unsafe { std::slice::from_raw_parts(buffer.as_ptr(), 4096) };
    assert!(left.iter().all(|&byte| byte == 0));
}

#[test]
fn durable_requests_say_so_to_the_engine() {
    let (_folder, mut lane, submitted) = scripted(&[]);
    let mut data = pattern(512, 0);
    // SAFETY: `data` outlives the request, which `results` waits for.
    unsafe { lane.write(1, 0, &split(&mut data, &[]), true) };
    lane.zero(2, [Extent { offset: 0, len: 512 }], true);
    assert_eq!(results(&mut lane), [Ok(()); 2]);
    let operations = submitted.lock().unwrap();
    assert_eq!(operations[0], Operation::Write { offset: 0, durable: true });
    assert!(matches!(operations[1], Operation::Zero { .. }));
    assert_eq!(operations[2], Operation::Sync);
}

fn allocated_bytes(volume: &Volume) -> u64 {
    Store::open(volume.dir(), Access::Inspect).unwrap().allocated_bytes().unwrap()
}
