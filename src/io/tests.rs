//! Every engine against the same file, the same operations and the same expectations.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use super::buffer::{Buffer, BufferPool};
use super::*;

const FILE_BYTES: u64 = 1 << 20;

fn for_each_engine(test: impl Fn(&mut dyn Engine, &Path)) {
    for kind in [Kind::Uring, Kind::Threads, Kind::Inline] {
        for buffered in [false, true] {
            let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
            let path = folder.path().join("data");
            std::fs::File::create(&path).unwrap().set_len(FILE_BYTES).unwrap();
            let file =
                if buffered { BlockFile::open_buffered(&path, false) } else { BlockFile::open(&path, false, 512) };
            let engines = Engines::new(kind, Arc::new(file.unwrap())).expect("the engine starts on this machine");
            let mut engine = engines.engine(64).unwrap();
            test(&mut *engine, &path);
            assert_eq!(engine.in_flight(), 0);
        }
    }
}

fn wait(engine: &mut dyn Engine) -> HashMap<u64, Result<(), Errno>> {
    let mut completions = Vec::new();
    while engine.in_flight() > 0 {
        engine.drive(&mut completions).unwrap();
        if engine.in_flight() > 0 {
            engine.wait(&[]).unwrap();
        }
    }
    completions.into_iter().map(|completion| (completion.token, completion.result)).collect()
}

fn filled(pool: &mut BufferPool, len: usize, byte: u8) -> Buffer {
    let mut buffer = pool.take(len).unwrap();
    // SAFETY: the buffer has at least `len` bytes.
    unsafe { std::ptr::write_bytes(buffer.as_mut_ptr(), byte, len) };
    buffer
}

#[test]
fn many_scattered_writes_then_reads() {
    for_each_engine(|engine, path| {
        let mut pool = BufferPool::new(1 << 24);
        let mut buffers: Vec<_> = (0..32).map(|index| filled(&mut pool, 4096, index as u8 + 1)).collect();
        for (index, buffer) in buffers.iter_mut().enumerate() {
            let base = buffer.as_mut_ptr();
            let segments = [
                Segment::new(base, 512),
                Segment::new(base.wrapping_add(512), 0),
                Segment::new(base.wrapping_add(512), 3584),
            ];
            let operation = Operation::Write { offset: index as u64 * 4096, durable: index % 2 == 0 };
            // SAFETY: the buffers live until `wait` has returned.
            unsafe { engine.submit(operation, &segments, index as u64) };
        }
        let results = wait(engine);
        assert_eq!(results.len(), 32);
        assert!(results.values().all(Result::is_ok), "{results:?}");
        let bytes = std::fs::read(path).unwrap();
        for index in 0..32 {
            assert!(bytes[index * 4096..][..4096].iter().all(|&byte| byte == index as u8 + 1));
        }
        assert!(bytes[32 * 4096..].iter().all(|&byte| byte == 0));

        let mut target = filled(&mut pool, 8192, 0xff);
        // SAFETY: the buffer lives until `wait` has returned.
        unsafe {
            engine.submit(Operation::Read { offset: 4096 }, &[Segment::new(target.as_mut_ptr(), 8192)], 7);
        }
        assert_eq!(wait(engine)[&7], Ok(()));
        // SAFETY: no operation is in flight.
        let read = unsafe { std::slice::from_raw_parts(target.as_mut_ptr(), 8192) };
        assert_eq!((read[0], read[4095], read[4096], read[8191]), (2, 2, 3, 3));
    });
}

#[test]
fn more_operations_than_the_ring_has_entries() {
    for_each_engine(|engine, _| {
        let mut pool = BufferPool::new(1 << 24);
        let mut buffers: Vec<_> = (0..200).map(|_| filled(&mut pool, 4096, 9)).collect();
        for (index, buffer) in buffers.iter_mut().enumerate() {
            let segments = [Segment::new(buffer.as_mut_ptr(), 4096)];
            // SAFETY: the buffers live until `wait` has returned.
            unsafe {
                engine.submit(Operation::Write { offset: index as u64 * 4096, durable: false }, &segments, index as u64)
            };
        }
        let results = wait(engine);
        assert_eq!(results.len(), 200);
        assert!(results.values().all(Result::is_ok));
    });
}

#[test]
fn zeroed_ranges_read_as_zeros_and_take_no_space() {
    for_each_engine(|engine, path| {
        let mut pool = BufferPool::new(1 << 24);
        let mut buffer = filled(&mut pool, 65536, 5);
        // SAFETY: the buffer lives until `wait` has returned.
        unsafe {
            engine.submit(
                Operation::Write { offset: 0, durable: false },
                &[Segment::new(buffer.as_mut_ptr(), 65536)],
                1,
            )
        };
        assert_eq!(wait(engine)[&1], Ok(()));
        let zero = Operation::Zero { offset: 512, len: 32768, method: ZeroMethod::PunchHole };
        // SAFETY: neither operation has memory.
        unsafe {
            engine.submit(zero, &[], 2);
            engine.submit(Operation::Sync, &[], 3);
        }
        let results = wait(engine);
        assert_eq!((results[&2], results[&3]), (Ok(()), Ok(())));
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(bytes.len() as u64, FILE_BYTES);
        assert!(bytes[..512].iter().all(|&byte| byte == 5));
        assert!(bytes[512..512 + 32768].iter().all(|&byte| byte == 0));
        assert!(bytes[512 + 32768..65536].iter().all(|&byte| byte == 5));
    });
}

#[test]
fn reading_past_the_end_and_unmapped_memory_are_errors() {
    for_each_engine(|engine, _| {
        let mut pool = BufferPool::new(1 << 24);
        let mut buffer = filled(&mut pool, 8192, 0);
        // SAFETY: the buffer lives until `wait` has returned; the other address is never mapped, so
        // that the kernel refuses it.
        unsafe {
            let segments = [Segment::new(buffer.as_mut_ptr(), 8192)];
            engine.submit(Operation::Read { offset: FILE_BYTES - 4096 }, &segments, 1);
            let unmapped = [Segment::new(std::ptr::without_provenance_mut(4096), 4096)];
            engine.submit(Operation::Read { offset: 0 }, &unmapped, 2);
        }
        let results = wait(engine);
        assert_eq!(results[&1], Err(Errno(libc::EIO)));
        assert_eq!(results[&2], Err(Errno(libc::EFAULT)));
    });
}

#[test]
fn a_waker_ends_the_sleep_every_time() {
    for_each_engine(|engine, _| {
        let event = vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK).unwrap();
        // SAFETY: `event` outlives the borrow.
        let waker = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
        for round in 0..3 {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                    event.write(1).unwrap();
                });
                while event.read().is_err() {
                    engine.wait(&[waker]).unwrap();
                }
            });
            let mut completions = Vec::new();
            engine.drive(&mut completions).unwrap();
            assert!(completions.is_empty(), "round {round}");
        }
    });
}
