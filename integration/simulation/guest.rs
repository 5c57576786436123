//! A guest: reads, writes, discards and flushes, several at once and overlapping.

use std::collections::BTreeMap;

use sealblk::replication::writer::{Lane, Operation};

use crate::disk::{Value, zeros};
use crate::random::Random;
use crate::world::SECTOR_BYTES;

pub struct Guest {
    random: Random,
    pub quiet: bool,
    requests: BTreeMap<(Lane, u64), Request>,
    next_token: u64,
    pause_us: u64,
    depth: usize,
    /// Whether it only reads for now, and until when it stays as it is.
    only_reads: bool,
    mood_until: u64,
}

/// A request in flight, or one that has ended.
#[derive(Debug)]
pub struct Request {
    pub began: u64,
    pub flush: bool,
    /// Sectors with their new values.
    pub written: Vec<(usize, Value)>,
    /// First sector and how many.
    pub read: Option<(usize, usize)>,
    /// What was read.
    pub values: Vec<Value>,
}

impl Guest {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let pause_us = *random.pick(&[200, 2_000, 20_000]);
        let depth = random.between(1, 12) as usize;
        Self {
            random,
            quiet: false,
            requests: BTreeMap::new(),
            next_token: 0,
            pause_us,
            depth,
            only_reads: false,
            mood_until: 0,
        }
    }

    pub fn pause(&mut self) -> u64 {
        let pause_us = self.random.delay(self.pause_us);
        // One that was busy for long is less so: a seed has its time for what goes wrong, not for more of the same.
        if self.next_token > BUSY_REQUESTS { pause_us * 20 } else { pause_us }
    }

    pub fn in_flight(&self) -> usize {
        self.requests.len()
    }

    /// The next request, if there is room for one.
    pub fn act(&mut self, sectors: usize, lanes: u16, next: &mut Value, now: u64) -> Option<(Lane, u64, Operation)> {
        if self.quiet || self.requests.len() >= self.depth {
            return None;
        }
        if now >= self.mood_until {
            // One that writes is soon stopped by copies that do not answer; what it could read then, the other finds.
            self.only_reads = self.random.chance(30);
            self.mood_until = now + self.random.between(100_000, 6_000_000);
        }
        let count = self.random.between(1, 6) as usize;
        let start = self.random.below((sectors - count + 1) as u64) as usize;
        let kind = if self.only_reads { READ } else { self.random.below(100) };
        Some(match kind {
            0..45 => self.write(start, count, lanes, next, now),
            45..80 => self.read(start, count, lanes, now),
            80..88 => self.zero(start, count, lanes, next, now),
            _ => self.flush(lanes, now),
        })
    }

    pub fn read(&mut self, start: usize, count: usize, lanes: u16, now: u64) -> (Lane, u64, Operation) {
        let operation =
            Operation::Read { offset: start as u64 * SECTOR_BYTES, len: (count as u64 * SECTOR_BYTES) as u32 };
        self.begin(lanes, operation, Request { read: Some((start, count)), ..Request::at(now) })
    }

    fn write(&mut self, start: usize, count: usize, lanes: u16, next: &mut Value, now: u64) -> (Lane, u64, Operation) {
        let request = Request { written: fresh(start, count, next).collect(), ..Request::at(now) };
        let offset = start as u64 * SECTOR_BYTES;
        let durable = self.random.chance(10);
        let operation = Operation::Write { offset, len: (count as u64 * SECTOR_BYTES) as u32, durable };
        self.begin(lanes, operation, request)
    }

    fn zero(&mut self, start: usize, count: usize, lanes: u16, next: &mut Value, now: u64) -> (Lane, u64, Operation) {
        let written = fresh(start, count, next).map(|(sector, value)| (sector, zeros(value)));
        let request = Request { written: written.collect(), ..Request::at(now) };
        let operation =
            Operation::Zero { offset: start as u64 * SECTOR_BYTES, len: count as u64 * SECTOR_BYTES, durable: false };
        self.begin(lanes, operation, request)
    }

    fn flush(&mut self, lanes: u16, now: u64) -> (Lane, u64, Operation) {
        self.begin(lanes, Operation::Flush, Request { flush: true, ..Request::at(now) })
    }

    fn begin(&mut self, lanes: u16, operation: Operation, request: Request) -> (Lane, u64, Operation) {
        let lane = Lane(self.random.between(1, lanes.into()) as u16);
        let token = self.next_token;
        self.next_token += 1;
        self.requests.insert((lane, token), request);
        (lane, token, operation)
    }

    pub fn written(&self, lane: Lane, token: u64) -> Vec<(usize, Value)> {
        self.requests.get(&(lane, token)).map(|request| request.written.clone()).unwrap_or_default()
    }

    /// The values of a write or a zeroing that has not ended.
    pub fn bytes(&self, lane: Lane, token: u64) -> Option<Vec<Value>> {
        let request = self.requests.get(&(lane, token))?;
        Some(request.written.iter().map(|(_, value)| *value).collect())
    }

    pub fn receive(&mut self, lane: Lane, token: u64, values: Vec<Value>) {
        if let Some(request) = self.requests.get_mut(&(lane, token)) {
            request.values = values;
        }
    }

    /// Whether a request has not ended.
    pub fn has(&self, lane: Lane, token: u64) -> bool {
        self.requests.contains_key(&(lane, token))
    }

    pub fn complete(&mut self, lane: Lane, token: u64) -> Option<Request> {
        self.requests.remove(&(lane, token))
    }
}

impl Request {
    fn at(began: u64) -> Self {
        Self { began, flush: false, written: Vec::new(), read: None, values: Vec::new() }
    }
}

fn fresh(start: usize, count: usize, next: &mut Value) -> impl Iterator<Item = (usize, Value)> {
    (start..start + count).map(|sector| {
        let value = *next;
        *next += 1;
        (sector, value)
    })
}

const BUSY_REQUESTS: u64 = 1_000;

/// A number that chooses a read.
const READ: u64 = 45;
