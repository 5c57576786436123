//! A guest at work that believes nothing: it writes, zeroes, flushes and reads at random on several queues, and
//! holds all that it reads against a [`Model`] of what it was told.
//!
//! It works in a thread of its own until the test ends it. What is wrong ends the thread, and with it the test,
//! at the latest when that asks for the model back.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::guest::{Guest, Options, bit};
use super::model::{BLOCK, CONTESTED, Model, content};
use super::pattern::next;
use super::request::{FLUSH, HEADER, IN, OK, OUT, Request, UNTOUCHED, WRITE_ZEROES, segments};
use super::ring::Descriptor;

/// How a guest works.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    pub seed: u64,
    /// Requests at once on each of its queues.
    pub depth: usize,
    /// How many of a hundred requests are reads.
    pub reads: u64,
}

/// A guest at work.
pub struct Load {
    thread: Option<JoinHandle<Model>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    finish: AtomicBool,
    abandon: AtomicBool,
    rest: AtomicBool,
    ended: AtomicU64,
    longest_us: AtomicU64,
}

impl Manner {
    /// Mostly writes, all over the disk.
    pub fn usual(seed: u64) -> Manner {
        Manner { seed, depth: 4, reads: 30 }
    }
}

impl Load {
    /// Connects, and begins with a look at everything that the model knows of.
    pub fn start(socket: &Path, model: Model, manner: Manner) -> Load {
        let mut guest = Guest::connect_as(socket, OPTIONS);
        guest.stay();
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let thread = thread::spawn(move || Work::new(guest, model, manner, theirs).run());
        Load { thread: Some(thread), shared }
    }

    /// How many requests have ended, the first look apart.
    pub fn ended(&self) -> u64 {
        self.shared.ended.load(Ordering::Acquire)
    }

    /// Waits until so many more requests have ended.
    pub fn await_progress(&self, count: u64) {
        let goal = self.ended() + count;
        self.await_that("the guest has gone on", || self.ended() >= goal);
    }

    /// Waits until something is so.
    pub fn await_that(&self, what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(!self.thread.as_ref().is_some_and(JoinHandle::is_finished), "the guest has ended: {what}");
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
            thread::sleep(LOOK);
        }
    }

    /// Waits until nothing has ended for a while, as where a write waits that everything else waits for.
    // Of the programs that share this, those need it that take the view away.
    #[allow(dead_code)]
    pub fn await_standstill(&self, what: &str) {
        let (mut ended, mut since, deadline) = (self.ended(), Instant::now(), Instant::now() + PATIENCE);
        while since.elapsed() < STANDSTILL {
            assert!(Instant::now() < deadline, "requests go on to end: {what}");
            thread::sleep(LOOK);
            if self.ended() != ended {
                (ended, since) = (self.ended(), Instant::now());
            }
        }
    }

    /// Has the guest ask for nothing more, and gives it time to see what it has asked for end, until the next call.
    #[allow(dead_code)]
    pub fn rest(&self, rests: bool) {
        self.shared.rest.store(rests, Ordering::Release);
        if rests {
            thread::sleep(REST);
        }
    }

    /// The longest that a request has taken, or has been waiting, since this was asked last.
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.shared.longest_us.swap(0, Ordering::AcqRel))
    }

    /// Waits for what is under way, flushes, and reads everything.
    pub fn finish(mut self) -> Model {
        self.shared.finish.store(true, Ordering::Release);
        self.end().unwrap_or_else(|error| std::panic::resume_unwind(error))
    }

    /// The guest is gone from one moment to the next; what was under way stays uncertain.
    pub fn abandon(mut self) -> Model {
        self.shared.abandon.store(true, Ordering::Release);
        self.end().unwrap_or_else(|error| std::panic::resume_unwind(error))
    }

    fn end(&mut self) -> thread::Result<Model> {
        self.thread.take().expect("it ends once").join()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.abandon.store(true, Ordering::Release);
        if self.thread.is_some() {
            // The test has failed already.
            let _ = self.end();
        }
    }
}

/// The guest, by its thread.
struct Work {
    guest: Guest,
    model: Model,
    manner: Manner,
    shared: Arc<Shared>,
    random: u64,
    slots: Vec<Slot>,
    /// Which slot a queue's chain is of.
    heads: HashMap<(usize, u16), usize>,
    /// Blocks that a request is about.
    busy: Vec<bool>,
}

/// Room for one request.
struct Slot {
    queue: usize,
    header: u64,
    data: u64,
    status: u64,
    task: Option<Task>,
}

/// A request that is under way.
#[derive(Clone, Copy, Debug)]
struct Task {
    kind: u32,
    first: usize,
    count: usize,
    begun: Instant,
}

impl Work {
    fn new(mut guest: Guest, model: Model, manner: Manner, shared: Arc<Shared>) -> Work {
        let mut slots = Vec::new();
        for queue in (0..QUEUES).cycle().take(QUEUES * manner.depth) {
            let mut room = |bytes| guest.memory.allocate(bytes, 512);
            slots.push(Slot { queue, header: room(HEADER), data: room(BYTES_MAX), status: room(1), task: None });
        }
        let busy = vec![false; model.len()];
        Work { guest, model, manner, shared, random: manner.seed, slots, heads: HashMap::new(), busy }
    }

    fn run(mut self) -> Model {
        self.read_everything();
        while !self.is_to_end() {
            self.fill_up();
            self.wait();
        }
        self.drain();
        if !self.is_abandoned() {
            self.begin(0, FLUSH, 0, 0);
            self.drain();
            self.read_everything();
        }
        self.model
    }

    fn is_abandoned(&self) -> bool {
        self.shared.abandon.load(Ordering::Acquire)
    }

    fn is_to_end(&self) -> bool {
        self.shared.finish.load(Ordering::Acquire) || self.is_abandoned()
    }

    /// Reads all blocks, after which those that were uncertain are known.
    fn read_everything(&mut self) {
        let all = self.model.len();
        let mut first = 0;
        while first < all && !self.is_abandoned() {
            match self.slots.iter().position(|slot| slot.task.is_none()) {
                Some(slot) => {
                    let count = BLOCKS_MAX.min(all - first);
                    self.begin(slot, IN, first, count);
                    first += count;
                }
                None => self.wait(),
            }
        }
        self.drain();
    }

    fn drain(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.heads.is_empty() && !self.is_abandoned() {
            assert!(
                Instant::now() < deadline,
                "requests do not end: {:?}",
                self.slots.iter().find_map(|slot| slot.task)
            );
            self.wait();
        }
    }

    fn fill_up(&mut self) {
        if self.shared.rest.load(Ordering::Acquire) {
            return;
        }
        for slot in 0..self.slots.len() {
            if self.slots[slot].task.is_none() {
                self.begin_something(slot);
            }
        }
    }

    fn begin_something(&mut self, slot: usize) {
        let chance = self.below(100);
        let kind = match chance.checked_sub(self.manner.reads) {
            None => IN,
            Some(0) => FLUSH,
            Some(1..=3) => WRITE_ZEROES,
            Some(_) => OUT,
        };
        if kind == FLUSH {
            return self.begin(slot, FLUSH, 0, 0);
        }
        let count = if self.below(4) > 0 { 1 } else { 1 + self.below(BLOCKS_MAX as u64) as usize };
        let contested = self.model.first_contested();
        if self.below(8) == 0 {
            let first = contested + self.below((CONTESTED - count) as u64) as usize;
            return self.begin(slot, kind, first, count);
        }
        let first = self.below((contested - count) as u64) as usize;
        let is_free = |block: usize| !self.busy[block] && (kind == IN || !self.model.is_uncertain(block));
        if (first..first + count).all(is_free) {
            self.begin(slot, kind, first, count);
        }
    }

    fn begin(&mut self, slot: usize, kind: u32, first: usize, count: usize) {
        let memory = &self.guest.memory;
        let Slot { queue, header, data, status, .. } = self.slots[slot];
        let bytes = count * BLOCK;
        let sector = (first * BLOCK / 512) as u64;
        let mut chain = vec![Descriptor::readable(header, HEADER as u32)];
        match kind {
            OUT => {
                let version = self.model.begin(first, count, false);
                memory.write(data, &content(first, count, version));
                chain.push(Descriptor::readable(data, bytes as u32));
            }
            WRITE_ZEROES => {
                self.model.begin(first, count, true);
                let list = segments(&[(sector, (bytes / 512) as u32, self.random as u32 & 1)]);
                memory.write(data, &list);
                chain.push(Descriptor::readable(data, list.len() as u32));
            }
            IN => chain.push(Descriptor::writable(data, bytes as u32)),
            _ => {}
        }
        chain.push(Descriptor::writable(status, 1));
        let place = if matches!(kind, IN | OUT) { sector } else { 0 };
        memory.write(header, &Request::bare(kind, place).header());
        memory.write(status, &[UNTOUCHED]);
        let head = self.guest.rings[queue].add(memory, &chain).expect("there is room for all slots");
        self.guest.kick(queue);
        self.heads.insert((queue, head), slot);
        self.busy[first..first + count].fill(true);
        self.slots[slot].task = Some(Task { kind, first, count, begun: Instant::now() });
    }

    /// Waits a little, and takes what has ended.
    fn wait(&mut self) {
        let mut events: Vec<libc::pollfd> = self.guest.rings.iter().map(|ring| poll_in(&ring.call)).collect();
        // SAFETY: an array of pollfd structures that outlives the call.
        unsafe { libc::poll(events.as_mut_ptr(), events.len() as libc::nfds_t, LOOK.as_millis() as i32) };
        for (queue, event) in events.iter().enumerate() {
            if event.revents != 0 {
                let _ = self.guest.rings[queue].call.read();
            }
            while let Some(used) = self.guest.rings[queue].take(&self.guest.memory) {
                let slot = self.heads.remove(&(queue, used.head)).expect("what ends was under way");
                self.end(slot);
            }
        }
        let waiting = self.slots.iter().filter_map(|slot| slot.task).map(|task| task.begun.elapsed()).max();
        self.note(waiting.unwrap_or_default());
    }

    fn end(&mut self, slot: usize) {
        let task = self.slots[slot].task.take().expect("it was under way");
        let Task { kind, first, count, begun } = task;
        self.busy[first..first + count].fill(false);
        match self.guest.memory.read(self.slots[slot].status, 1)[0] {
            OK if kind == IN => self.check(slot, first, count),
            OK if kind != FLUSH => self.model.acknowledge(first, count),
            OK => {}
            status => panic!("{task:?} ended with status {status} after {:?}", begun.elapsed()),
        }
        self.note(begun.elapsed());
        self.shared.ended.fetch_add(1, Ordering::AcqRel);
    }

    fn check(&mut self, slot: usize, first: usize, count: usize) {
        let data = self.guest.memory.read(self.slots[slot].data, count * BLOCK);
        if let Err(wrong) = self.model.check(first, &data) {
            panic!("the guest reads what cannot be there: {wrong}");
        }
        for (block, data) in (first..).zip(data.chunks(BLOCK)) {
            if self.model.is_uncertain(block) {
                self.model.settle(block, data);
            }
        }
    }

    fn note(&self, time: Duration) {
        self.shared.longest_us.fetch_max(time.as_micros() as u64, Ordering::AcqRel);
    }

    fn below(&mut self, limit: u64) -> u64 {
        next(&mut self.random) % limit.max(1)
    }
}

fn poll_in(event: &impl AsRawFd) -> libc::pollfd {
    libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 }
}

const QUEUES: usize = 4;
/// Without events by index: every completion is notified, and nothing has to be armed.
const OPTIONS: Options = Options::CLOUD_HYPERVISOR.queues(QUEUES).without(bit(VIRTIO_RING_F_EVENT_IDX));
const BLOCKS_MAX: usize = 16;
const BYTES_MAX: usize = BLOCKS_MAX * BLOCK;
const LOOK: Duration = Duration::from_millis(20);
/// Longer than anything that a guest may have to wait for here.
const PATIENCE: Duration = Duration::from_secs(60);
/// What was asked for has long ended then, and nothing is done yet about regions that nobody writes.
const REST: Duration = Duration::from_millis(100);
/// How long nothing has to end before that counts as standing still.
const STANDSTILL: Duration = Duration::from_secs(2);
