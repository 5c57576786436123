//! A split virtqueue (virtio 1.2 §2.7) as its worker sees it: chains come out, used elements go in,
//! and the driver is notified once a batch, if it wants to be.
//!
//! Every error here means that the driver broke the ring itself; the ring then says so and gives no
//! more chains, and nothing outside the ring is touched.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions};

use super::GuestMemory;
use crate::io::segments::Segment;

/// A ring that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The ring's own memory cannot be used, or its indices make no sense.
    #[error("the ring is broken: {0}")]
    Queue(#[from] virtio_queue::Error),
    /// The available ring has entries that cannot be read.
    #[error("the ring is broken: the available ring cannot be read")]
    Unreadable,
}

/// A virtqueue in the memory of one guest.
pub struct Ring {
    queue: Queue,
    memory: Arc<GuestMemory>,
    /// Where its three parts lie in this process.
    parts: Vec<Segment>,
    used_since_notified: bool,
}

impl Ring {
    /// A ring over a queue that is ready and valid in `memory`.
    pub fn new(queue: Queue, memory: Arc<GuestMemory>) -> Self {
        let entries = usize::from(queue.size());
        let parts = [
            (queue.desc_table(), 16 * entries),
            (queue.avail_ring(), 6 + 2 * entries),
            (queue.used_ring(), 6 + 8 * entries),
        ];
        let parts = parts.into_iter().flat_map(|(address, len)| segments(&memory, address, len)).collect();
        Self { queue, memory, parts, used_since_notified: false }
    }

    /// Whether the memory of the ring itself has vanished.
    pub fn is_lost(&self) -> bool {
        self.parts.iter().any(Segment::is_lost)
    }

    /// How many descriptors it has.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The guest memory it lies in.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The next chain that the driver has made available.
    pub fn pop<R>(
        &mut self,
        take: impl FnOnce(&GuestMemory, DescriptorChain<&GuestMemory>) -> R,
    ) -> Result<Option<R>, RingError> {
        if !self.has_available()? {
            return Ok(None);
        }
        let memory = &*self.memory;
        // The iterator hides a failed read: it gives nothing although there is something.
        let chain = self.queue.iter(memory)?.next().ok_or(RingError::Unreadable)?;
        Ok(Some(take(memory, chain)))
    }

    /// Whether the driver has made something available that was not popped.
    pub fn has_available(&self) -> Result<bool, RingError> {
        Ok(self.queue.avail_idx(&*self.memory, Ordering::Acquire)?.0 != self.queue.next_avail())
    }

    /// Gives a chain back, with `len` bytes written to its device-writable part.
    pub fn push_used(&mut self, head: u16, len: u32) -> Result<(), RingError> {
        self.used_since_notified = true;
        Ok(self.queue.add_used(&*self.memory, head, len)?)
    }

    /// Whether the driver wants to hear of what was pushed since this was last asked.
    pub fn take_notification(&mut self) -> Result<bool, RingError> {
        if !std::mem::take(&mut self.used_since_notified) {
            return Ok(false);
        }
        if !self.queue.needs_notification(&*self.memory)? {
            return Ok(false);
        }
        // §2.7.7: without EVENT_IDX the flag of the available ring decides.
        Ok(self.queue.event_idx_enabled() || self.avail_flags()? & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
    }

    /// Asks the driver to kick for what it makes available next. True if there is something already.
    pub fn enable_kicks(&mut self) -> Result<bool, RingError> {
        Ok(self.queue.enable_notification(&*self.memory)?)
    }

    /// Tells the driver that kicks are not needed for now.
    pub fn disable_kicks(&mut self) -> Result<(), RingError> {
        Ok(self.queue.disable_notification(&*self.memory)?)
    }

    /// The queue, to be continued or reported.
    pub fn into_queue(self) -> Queue {
        self.queue
    }

    fn avail_flags(&self) -> Result<u16, RingError> {
        let flags: u16 = self
            .memory
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u16::from_le(flags))
    }
}

/// The host addresses of what is mapped of a range of guest memory.
fn segments(memory: &GuestMemory, address: u64, len: usize) -> Vec<Segment> {
    let slices = memory.get_slices(GuestAddress(address), len, Permissions::ReadWrite);
    let slices = slices.into_iter().flatten().map_while(Result::ok);
    slices.map(|slice| Segment::new(slice.ptr_guard_mut().as_ptr(), slice.len())).collect()
}
