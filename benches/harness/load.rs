//! The load generator: a front end of other people's making (`blkio`), one thread a queue.
//!
//! Threads keep `depth` requests in flight and count what has completed. The thread that started
//! them looks at the counts and at the back end's CPU time when they have warmed up and again when
//! the time is over, so that nothing of starting or ending is measured.

use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use blkio::{Blkio, Blkioq, Completion, ReqFlags};

use super::Outcome;
use super::random::Random;
use super::workload::Workload;

/// What one measurement gave.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Requests a second.
    pub operations: f64,
    /// Half of the requests took no longer, from issue to completion.
    pub p50_us: f64,
    /// User and system time of the back end for each GiB moved.
    pub cpu_per_gib: f64,
}

/// Asks `workload` of the disk behind `socket` for some seconds. `cpu` says how much CPU time the
/// back end has taken so far.
pub fn run(
    socket: &Path,
    size: u64,
    workload: &Workload,
    seconds: f64,
    cpu: impl Fn() -> Outcome<f64>,
) -> Outcome<Sample> {
    let mut front_end = FrontEnd::connect(socket, workload)?;
    let shared = Shared::default();
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (index, (queue, buffers)) in front_end.queues.iter_mut().zip(&front_end.buffers).enumerate() {
            let shared = &shared;
            threads.push(scope.spawn(move || {
                let mut places = Places::new(size, workload, index);
                let mut latencies = Vec::with_capacity(1 << 20);
                let next = |_: &mut Buffer| (!shared.stop.load(Ordering::Relaxed)).then(|| places.next());
                let ended = |latency: Duration| {
                    shared.done.fetch_add(1, Ordering::Relaxed);
                    if shared.measuring.load(Ordering::Relaxed) {
                        latencies.push(latency.as_nanos() as u32);
                    }
                };
                let result = drive(queue, buffers, workload, next, ended);
                // The others would wait for it.
                shared.failed.fetch_or(result.is_err(), Ordering::Relaxed);
                result.map(|()| latencies)
            }));
        }
        let measured = shared.measure(seconds, cpu);
        shared.stop.store(true, Ordering::Relaxed);
        let mut latencies = Vec::new();
        for thread in threads {
            latencies.extend(thread.join().map_err(|_| "a thread of the load generator has panicked")??);
        }
        let (operations, elapsed, cpu) = measured?;
        if operations == 0 || latencies.is_empty() {
            return Err(format!("{}: not one request was completed in {seconds} s", workload.id).into());
        }
        let middle = latencies.len() / 2;
        let (_, p50, _) = latencies.select_nth_unstable(middle);
        Ok(Sample {
            operations: operations as f64 / elapsed,
            p50_us: f64::from(*p50) / 1000.0,
            cpu_per_gib: cpu / (operations as f64 * workload.bytes as f64 / GIB),
        })
    })
}

/// Writes the whole disk behind `socket`, with bytes that nothing can compress.
pub fn fill(socket: &Path, size: u64) -> Outcome<()> {
    let mut front_end = FrontEnd::connect(socket, &FILL)?;
    let mut random = Random::new(0);
    let mut offsets = (0..size).step_by(FILL.bytes);
    let next = |buffer: &mut Buffer| {
        buffer.fill(&mut random);
        offsets.next()
    };
    drive(&mut front_end.queues[0], &front_end.buffers[0], &FILL, next, |_| {})
}

const FILL: Workload =
    Workload { id: "fill", name: "fill", write: true, random: false, bytes: 1 << 20, depth: 8, queues: 1 };

#[derive(Default)]
struct Shared {
    done: AtomicU64,
    measuring: AtomicBool,
    stop: AtomicBool,
    failed: AtomicBool,
}

impl Shared {
    /// Requests completed, seconds and CPU seconds between the end of warming up and the end.
    fn measure(&self, seconds: f64, cpu: impl Fn() -> Outcome<f64>) -> Outcome<(u64, f64, f64)> {
        self.sleep(seconds / 10.0);
        self.measuring.store(true, Ordering::Relaxed);
        let (start, done_before, cpu_before) = (Instant::now(), self.done.load(Ordering::Relaxed), cpu()?);
        self.sleep(seconds);
        let (elapsed, done, cpu) = (start.elapsed(), self.done.load(Ordering::Relaxed), cpu()?);
        self.measuring.store(false, Ordering::Relaxed);
        Ok((done - done_before, elapsed.as_secs_f64(), cpu - cpu_before))
    }

    fn sleep(&self, seconds: f64) {
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        while !self.failed.load(Ordering::Relaxed) {
            match end.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => thread::sleep(left.min(Duration::from_millis(100))),
                _ => return,
            }
        }
    }
}

/// A connection with its queues, and a buffer for each request that may be in flight.
struct FrontEnd {
    queues: Vec<Blkioq>,
    buffers: Vec<Vec<Buffer>>,
    // The last: it holds the memory of the buffers.
    _driver: Blkio,
}

impl FrontEnd {
    fn connect(socket: &Path, workload: &Workload) -> Outcome<Self> {
        let told = |error: blkio::Error| format!("{}: {}", socket.display(), error.message());
        let mut driver = Blkio::new("virtio-blk-vhost-user").map_err(told)?;
        driver.set_str("path", socket.to_str().ok_or("a path that is not UTF-8")?).map_err(told)?;
        driver.connect().map_err(told)?;
        driver.set_i32("num-queues", i32::try_from(workload.queues)?).map_err(told)?;
        let queues = driver.start().map_err(told)?.queues;
        let bytes = workload.bytes * workload.depth * workload.queues;
        let region = driver.alloc_mem_region(bytes.next_multiple_of(1 << 20)).map_err(told)?;
        driver.map_mem_region(&region).map_err(told)?;
        let mut random = Random::new(1);
        let mut buffers: Vec<Buffer> = (0..workload.depth * workload.queues)
            .map(|slot| Buffer { start: region.addr + slot * workload.bytes, bytes: workload.bytes })
            .collect();
        buffers.iter_mut().for_each(|buffer| buffer.fill(&mut random));
        let buffers = buffers.chunks(workload.depth).map(<[Buffer]>::to_vec).collect();
        Ok(Self { queues, buffers, _driver: driver })
    }
}

/// Keeps a request in flight for each buffer, at the places that `next` gives, until it gives none.
/// `ended` hears how long each took.
fn drive(
    queue: &mut Blkioq,
    buffers: &[Buffer],
    workload: &Workload,
    mut next: impl FnMut(&mut Buffer) -> Option<u64>,
    mut ended: impl FnMut(Duration),
) -> Outcome<()> {
    let mut buffers = buffers.to_vec();
    let mut issued = vec![Instant::now(); buffers.len()];
    let mut completions: Vec<_> = buffers.iter().map(|_| MaybeUninit::<Completion>::uninit()).collect();
    let mut in_flight = 0;
    let mut idle: Vec<usize> = (0..buffers.len()).collect();
    loop {
        for slot in idle.drain(..) {
            let Some(offset) = next(&mut buffers[slot]) else { continue };
            let buffer = buffers[slot].start as *mut u8;
            issued[slot] = Instant::now();
            if workload.write {
                queue.write(offset, buffer, workload.bytes, slot, ReqFlags::empty());
            } else {
                queue.read(offset, buffer, workload.bytes, slot, ReqFlags::empty());
            }
            in_flight += 1;
        }
        if in_flight == 0 {
            return Ok(());
        }
        let count = queue
            .do_io(&mut completions, 1, Some(&mut PATIENCE.clone()), None)
            .map_err(|error| format!("{}: no answer: {}", workload.id, error.message()))?;
        let now = Instant::now();
        for completion in &completions[..count] {
            // SAFETY: `do_io` has filled in as many as it returned.
            let completion = unsafe { completion.assume_init_ref() };
            if completion.ret != 0 {
                let error = std::io::Error::from_raw_os_error(-completion.ret);
                return Err(format!("{}: a request failed: {error}", workload.id).into());
            }
            in_flight -= 1;
            ended(now - issued[completion.user_data]);
            idle.push(completion.user_data);
        }
    }
}

/// Memory that the back end can reach.
#[derive(Clone)]
struct Buffer {
    start: usize,
    bytes: usize,
}

impl Buffer {
    fn fill(&mut self, random: &mut Random) {
        let words = self.start as *mut u64;
        for index in 0..self.bytes / size_of::<u64>() {
            // SAFETY: within the mapped region, which outlives all buffers, and aligned; no request
            // that uses this buffer is in flight.
            unsafe { words.add(index).write(random.next()) };
        }
    }
}

/// Where the requests of a queue go.
struct Places {
    random: Option<Random>,
    count: u64,
    bytes: u64,
    at: u64,
}

impl Places {
    fn new(size: u64, workload: &Workload, queue: usize) -> Self {
        let bytes = workload.bytes as u64;
        let count = size / bytes;
        let random = workload.random.then(|| Random::new(queue as u64 + 2));
        Self { random, count, bytes, at: count / workload.queues as u64 * queue as u64 }
    }

    fn next(&mut self) -> u64 {
        let place = match &mut self.random {
            Some(random) => random.next() % self.count,
            None => self.at % self.count,
        };
        self.at += 1;
        place * self.bytes
    }
}

const GIB: f64 = (1u64 << 30) as f64;
/// How long a request may take before the back end is given up.
const PATIENCE: Duration = Duration::from_secs(10);
