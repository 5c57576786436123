//! A driver that never sleeps: it keeps the ring full and watches the used index.
//!
//! Connecting, negotiating and sharing memory is done by the front end of the integration tests.
//! What follows is a split virtqueue (virtio 1.2, 2.7) as Linux uses it: header, data and status in
//! a descriptor each, all written anew for every request, the available index once a batch, and a
//! kick only where EVENT_IDX says that the device sleeps.

use std::num::Wrapping;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::time::{Duration, Instant};

use super::Workload;
use super::harness::Outcome;
use super::harness::random::Random;
use super::support::guest::{Guest, Options};
use super::support::request::{HEADER, IN, OK, OUT, UNTOUCHED};
use super::support::ring::{Descriptor, NEXT};

/// A connected driver with a ring of its own.
pub struct Driver {
    guest: Guest,
    slots: Vec<Slot>,
    kind: u32,
    bytes: u32,
    random: Random,
    places: u64,
    ring: Pointers,
    next_available: Wrapping<u16>,
    next_used: Wrapping<u16>,
    in_flight: usize,
}

/// A request's memory: in the guest's addresses, and in this process's.
struct Slot {
    header: (u64, *mut u8),
    data: (u64, *mut u8),
    status: (u64, *mut u8),
}

/// Where the ring lies in this process.
struct Pointers {
    descriptors: *mut [u8; 16],
    available_flags: *mut u16,
    used_flags: *mut u16,
}

impl Driver {
    /// Connects, and fills the buffers with random bytes: a data unit of zeros is a hole, and holes
    /// are not decrypted.
    pub fn connect(socket: &Path, workload: &Workload, size: u64) -> Self {
        let mut guest = Guest::connect_as(socket, Options::CLOUD_HYPERVISOR.queue_size(QUEUE_SIZE));
        let mut random = Random::new(1);
        let slots = (0..workload.depth).map(|_| {
            let mut allocate = |bytes, align| {
                let address = guest.memory.allocate(bytes, align);
                (address, guest.memory.user_address(address) as *mut u8)
            };
            let slot =
                Slot { header: allocate(HEADER, 16), data: allocate(workload.bytes, 4096), status: allocate(1, 1) };
            let content: Vec<u8> = (0..workload.bytes / 8).flat_map(|_| random.next().to_ne_bytes()).collect();
            guest.memory.write(slot.data.0, &content);
            slot
        });
        let slots = slots.collect();
        let ring = &guest.rings[0];
        let pointer = |address| guest.memory.user_address(address);
        Self {
            ring: Pointers {
                descriptors: pointer(ring.descriptors) as *mut [u8; 16],
                available_flags: pointer(ring.available) as *mut u16,
                used_flags: pointer(ring.used) as *mut u16,
            },
            slots,
            kind: if workload.write { OUT } else { IN },
            bytes: workload.bytes as u32,
            random,
            places: size / workload.bytes as u64,
            next_available: Wrapping(0),
            next_used: Wrapping(0),
            in_flight: 0,
            guest,
        }
    }

    /// What a buffer holds.
    pub fn content(&self, slot: usize) -> Vec<u8> {
        self.guest.memory.read(self.slots[slot].data.0, self.bytes as usize)
    }

    /// Does one request and waits for it.
    pub fn one(&mut self, slot: usize, offset: u64) -> Outcome<()> {
        self.issue(slot, offset);
        self.publish();
        self.finish()
    }

    /// Keeps all buffers in flight for `time`, then waits for the last; how many were completed.
    pub fn run(&mut self, time: Duration) -> Outcome<u64> {
        let end = Instant::now() + time;
        let mut done = 0;
        for slot in 0..self.slots.len() {
            let offset = self.place();
            self.issue(slot, offset);
        }
        self.publish();
        while Instant::now() < end {
            // Looking at the clock costs as much as a look at the ring.
            for _ in 0..LOOKS {
                let before = done;
                while let Some(slot) = self.take()? {
                    done += 1;
                    let offset = self.place();
                    self.issue(slot, offset);
                }
                if done == before {
                    std::hint::spin_loop();
                } else {
                    self.publish();
                }
            }
        }
        done += self.in_flight as u64;
        self.finish()?;
        Ok(done)
    }

    fn place(&mut self) -> u64 {
        self.random.next() % self.places * u64::from(self.bytes)
    }

    /// Lays a request out and puts it into the available ring, without telling.
    fn issue(&mut self, slot: usize, offset: u64) {
        let Slot { header, data, status } = &self.slots[slot];
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&self.kind.to_le_bytes());
        bytes[8..].copy_from_slice(&(offset / 512).to_le_bytes());
        let head = slot * CHAIN;
        let mut buffer = Descriptor::writable(data.0, self.bytes);
        if self.kind == OUT {
            buffer = Descriptor::readable(data.0, self.bytes);
        }
        let chain = [
            Descriptor::readable(header.0, HEADER as u32).with(NEXT, head as u16 + 1),
            buffer.with(NEXT, head as u16 + 2),
            Descriptor::writable(status.0, 1),
        ];
        // SAFETY: all pointers are to guest memory that `self.guest` keeps mapped, inside what was
        // allocated for them; a slot that is not in flight is the driver's alone.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), header.1, HEADER);
            status.1.write_volatile(UNTOUCHED);
            for (index, descriptor) in chain.iter().enumerate() {
                self.ring.descriptors.add(head + index).write(descriptor.bytes());
            }
        }
        let entry = 2 + usize::from(self.next_available.0 % QUEUE_SIZE);
        self.word(self.ring.available_flags, entry).store(head as u16, Ordering::Relaxed);
        self.next_available += 1;
        self.in_flight += 1;
    }

    /// Makes what was issued available, and kicks if the device asks for it.
    fn publish(&mut self) {
        let index = self.word(self.ring.available_flags, 1);
        let before = index.load(Ordering::Relaxed);
        index.store(self.next_available.0, Ordering::Release);
        // The device looks at the index after it has stored its wish; this is the other half.
        fence(Ordering::SeqCst);
        let event = self.word(self.ring.used_flags, 2 + 4 * usize::from(QUEUE_SIZE)).load(Ordering::Relaxed);
        if self.next_available - Wrapping(event) - Wrapping(1) < self.next_available - Wrapping(before) {
            self.guest.rings[0].kick_always();
        }
    }

    /// The slot of the next completed request, if one is there.
    fn take(&mut self) -> Outcome<Option<usize>> {
        if self.word(self.ring.used_flags, 1).load(Ordering::Acquire) == self.next_used.0 {
            return Ok(None);
        }
        let entry = 2 + 4 * usize::from(self.next_used.0 % QUEUE_SIZE);
        let head = usize::from(self.word(self.ring.used_flags, entry).load(Ordering::Relaxed));
        self.next_used += 1;
        self.in_flight -= 1;
        // No call is wanted before 2^16 - 1 more: this driver looks by itself.
        let wish = self.word(self.ring.available_flags, 2 + usize::from(QUEUE_SIZE));
        wish.store(self.next_used.0.wrapping_sub(1), Ordering::Relaxed);
        let slot = self.slots.get(head / CHAIN).ok_or("the device completed what it was not given")?;
        // SAFETY: guest memory that `self.guest` keeps mapped.
        match unsafe { slot.status.1.read_volatile() } {
            OK => Ok(Some(head / CHAIN)),
            status => Err(format!("a request ended with status {status}").into()),
        }
    }

    /// Waits for all that is in flight.
    fn finish(&mut self) -> Outcome<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.in_flight > 0 {
            if self.take()?.is_none() && Instant::now() > deadline {
                return Err("the device does not answer".into());
            }
        }
        Ok(())
    }

    /// A word of the ring that starts at `ring`; the other side reads or writes it at the same time.
    fn word(&self, ring: *mut u16, index: usize) -> &AtomicU16 {
        // SAFETY: callers stay within the ring, which is aligned and lies in guest memory that
        // `self.guest` keeps mapped.
        unsafe { AtomicU16::from_ptr(ring.add(index)) }
    }
}

/// Descriptors of a request.
const CHAIN: usize = 3;
const QUEUE_SIZE: u16 = 128;
const LOOKS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(10);
