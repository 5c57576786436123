//! The driver's side of one split virtqueue (virtio 1.2, 2.7), written so that a test can also
//! break every rule of it.
//!
//! The well-behaved path is [`Ring::add`], [`Ring::kick_if_wanted`] and [`Ring::wait`]; the
//! hostile one writes descriptors, heads and indices as it likes. Completions are only looked at
//! after the device has notified, so a notification that never comes fails a test.

use std::collections::HashMap;
use std::num::Wrapping;
use std::os::fd::AsRawFd;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::PATIENCE;
use super::memory::Memory;

/// The descriptor continues at `next`.
pub const NEXT: u16 = 1;
/// The device writes to the buffer.
pub const WRITE: u16 = 2;
/// The buffer holds a table of descriptors.
pub const INDIRECT: u16 = 4;

/// One descriptor (2.7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical address of the buffer.
    pub address: u64,
    /// Length of the buffer in bytes.
    pub length: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next descriptor, where `flags` has [`NEXT`].
    pub next: u16,
}

impl Descriptor {
    /// A buffer that the device reads.
    pub fn readable(address: u64, length: u32) -> Self {
        Self { address, length, flags: 0, next: 0 }
    }

    /// A buffer that the device writes.
    pub fn writable(address: u64, length: u32) -> Self {
        Self { flags: WRITE, ..Self::readable(address, length) }
    }

    /// The same buffer with a flag more, going on at `next`.
    pub fn with(self, flag: u16, next: u16) -> Self {
        Self { flags: self.flags | flag, next, ..self }
    }

    /// The descriptor as it lies in memory.
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// One entry of the used ring (2.7.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The head of the chain that the device is done with.
    pub head: u16,
    /// How many bytes the device says it has written.
    pub length: u32,
}

/// What became of a request on a ring that may have been stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The device completed a chain.
    Used(Used),
    /// The device raised the ring's error event: it has stopped the ring.
    Stopped,
}

/// One split virtqueue.
pub struct Ring {
    /// Number of descriptors.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring.
    pub available: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
    /// Written here when there is something available.
    pub kick: EventFd,
    /// Written by the device when there is something used.
    pub call: EventFd,
    /// Written by the device when it stops the ring.
    pub error: EventFd,
    event_idx: bool,
    stopped: bool,
    next_available: Wrapping<u16>,
    last_kicked: Wrapping<u16>,
    next_used: Wrapping<u16>,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
}

impl Ring {
    /// A ring of `size` descriptors in `memory`.
    pub fn new(memory: &mut Memory, size: u16, event_idx: bool) -> Self {
        let entries = usize::from(size);
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("an eventfd");
        let ring = Self {
            size,
            descriptors: memory.allocate(16 * entries, 16),
            available: memory.allocate(6 + 2 * entries, 2),
            used: memory.allocate(6 + 8 * entries, 4),
            kick: event(),
            call: event(),
            error: event(),
            event_idx,
            stopped: false,
            next_available: Wrapping(0),
            last_kicked: Wrapping(0),
            next_used: Wrapping(0),
            free: (0..size).rev().collect(),
            chains: HashMap::new(),
        };
        memory.write(ring.descriptors, &vec![0; 16 * entries]);
        memory.write(ring.available, &vec![0; 6 + 2 * entries]);
        memory.write(ring.used, &vec![0; 6 + 8 * entries]);
        ring
    }

    /// Links `chain` through free descriptors and makes it available. `None`: no room.
    pub fn add(&mut self, memory: &Memory, chain: &[Descriptor]) -> Option<u16> {
        if chain.is_empty() || self.free.len() < chain.len() {
            return None;
        }
        let indices = self.free.split_off(self.free.len() - chain.len());
        for (position, descriptor) in chain.iter().enumerate() {
            let linked = match indices.get(position + 1) {
                Some(&next) => descriptor.with(NEXT, next),
                None => *descriptor,
            };
            self.set_descriptor(memory, indices[position], linked);
        }
        let head = indices[0];
        self.chains.insert(head, indices);
        self.publish(memory, head);
        Some(head)
    }

    /// Writes one descriptor of the table, whatever it says.
    pub fn set_descriptor(&self, memory: &Memory, index: u16, descriptor: Descriptor) {
        memory.write(self.descriptors + 16 * u64::from(index), &descriptor.bytes());
    }

    /// Makes `head` available, whatever it is.
    pub fn publish(&mut self, memory: &Memory, head: u16) {
        let slot = self.next_available.0 % self.size;
        memory.word(self.available + 4 + 2 * u64::from(slot)).store(head.to_le(), Ordering::Relaxed);
        self.next_available += 1;
        self.set_available_index(memory, self.next_available.0);
    }

    /// Stores the available index, whatever it is.
    pub fn set_available_index(&self, memory: &Memory, index: u16) {
        memory.word(self.available + 2).store(index.to_le(), Ordering::Release);
    }

    /// Makes an idle ring one that has already served `index` requests.
    pub fn jump_to(&mut self, memory: &Memory, index: u16) {
        assert!(self.chains.is_empty(), "only an idle ring can jump");
        self.next_available = Wrapping(index);
        self.last_kicked = Wrapping(index);
        self.next_used = Wrapping(index);
        self.set_available_index(memory, index);
        memory.word(self.used + 2).store(index.to_le(), Ordering::Release);
    }

    /// The index that the next available entry will have.
    pub fn available_index(&self) -> u16 {
        self.next_available.0
    }

    /// How many more descriptors can be added.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Notifies the device unless it has said that it need not be (2.7.10, 2.7.13).
    pub fn kick_if_wanted(&mut self, memory: &Memory) {
        // The device looks at the index after it has stored its wish; this is the other half.
        fence(Ordering::SeqCst);
        let added = self.next_available - self.last_kicked;
        let wanted = if self.event_idx {
            let event = memory.word(self.used + 4 + 8 * u64::from(self.size));
            let event = Wrapping(u16::from_le(event.load(Ordering::Relaxed)));
            self.next_available - event - Wrapping(1) < added
        } else {
            memory.word(self.used).load(Ordering::Relaxed) & 1 == 0
        };
        self.last_kicked = self.next_available;
        if wanted {
            self.kick_always();
        }
    }

    /// Notifies the device.
    pub fn kick_always(&self) {
        self.kick.write(1).expect("writing to the kick event");
    }

    /// The device's used index, as it stands.
    pub fn used_index(&self, memory: &Memory) -> u16 {
        u16::from_le(memory.word(self.used + 2).load(Ordering::Acquire))
    }

    /// How many completions the driver has taken, modulo 2^16.
    pub fn taken(&self) -> u16 {
        self.next_used.0
    }

    /// The next completion if it is there already.
    pub fn take(&mut self, memory: &Memory) -> Option<Used> {
        if self.used_index(memory) == self.next_used.0 {
            return None;
        }
        let slot = u64::from(self.next_used.0 % self.size);
        let entry = memory.read(self.used + 4 + 8 * slot, 8);
        let head = u32::from_le_bytes(entry[..4].try_into().expect("four bytes"));
        let length = u32::from_le_bytes(entry[4..].try_into().expect("four bytes"));
        self.next_used += 1;
        let head = u16::try_from(head).expect("the device completed a head that cannot exist");
        if let Some(indices) = self.chains.remove(&head) {
            self.free.extend(indices);
        }
        Some(Used { head, length })
    }

    /// Waits until the device stops the ring, without a look at its memory.
    pub fn wait_for_stop(&self) {
        let mut event = libc::pollfd { fd: self.error.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let timeout = i32::try_from(PATIENCE.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one pollfd structure that outlives the call.
        unsafe { libc::poll(&raw mut event, 1, timeout) };
        assert!(self.error.read().is_ok(), "no error event came");
    }

    /// The next completion; the test fails if the device does not notify within [`PATIENCE`], or
    /// stops the ring.
    pub fn wait(&mut self, memory: &Memory) -> Used {
        match self.outcome(memory) {
            Outcome::Used(used) => used,
            Outcome::Stopped => panic!("the device stopped the ring"),
        }
    }

    /// The next completion, or the news that there will be none.
    pub fn outcome(&mut self, memory: &Memory) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Ask for a notification of the next completion, then look once: what the device adds
            // after that look is notified.
            memory
                .word(self.available + 4 + 2 * u64::from(self.size))
                .store(self.next_used.0.to_le(), Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if let Some(used) = self.take(memory) {
                return Outcome::Used(used);
            }
            if self.stopped {
                return Outcome::Stopped;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no completion and no error event came");
            let mut events = [&self.call, &self.error].map(|event| libc::pollfd {
                fd: event.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            });
            let timeout = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1);
            // SAFETY: an array of two pollfd structures that outlives the call.
            unsafe { libc::poll(events.as_mut_ptr(), 2, timeout) };
            if events[0].revents != 0 {
                let _ = self.call.read();
            } else if events[1].revents != 0 {
                // What was completed before the stop still counts: look for it once more.
                self.stopped = self.error.read().is_ok();
            }
        }
    }
}
