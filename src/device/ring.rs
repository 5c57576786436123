//! A split virtqueue (virtio 1.2 §2.7) as its worker sees it: chains come out, used elements go in.
//! A batch of them costs one update of the used ring's index and one notification, if the driver
//! wants it.
//!
//! Every error here means that the driver broke the ring itself; the ring then says so and gives no
//! more chains, and nothing outside the ring is touched.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address as _, Bytes, GuestAddress, GuestMemory as _, GuestRegionMmap, Permissions};

use super::GuestMemory;
use super::inflight::{Inflight, UnknownVersion};
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
    /// What was in flight when it was served last cannot be taken up.
    #[error(transparent)]
    Inflight(#[from] UnknownVersion),
    /// There is no place to read from what was in flight.
    #[error("what was in flight cannot be read again: {0}")]
    Again(String),
}

/// A virtqueue in the memory of one guest.
pub struct Ring {
    queue: Queue,
    memory: Arc<GuestMemory>,
    /// Where its three parts lie in this process.
    parts: Vec<Segment>,
    /// Elements pushed that the driver cannot see yet.
    unpublished: u16,
    inflight: Option<Inflight>,
    /// Chains to be taken before others.
    again: Option<Again>,
}

/// Chains that were taken by another process, which ended before it gave them back.
///
/// The driver may have put others into their places of the available ring. So they are read from a ring of our own,
/// beside the driver's memory, by the same rules.
struct Again {
    queue: Queue,
    memory: GuestMemory,
}

impl Ring {
    /// A ring over a queue that is ready and valid in `memory`. What `inflight` says was in flight comes first.
    ///
    /// # Errors
    ///
    /// When that cannot be understood.
    pub fn new(mut queue: Queue, memory: Arc<GuestMemory>, mut inflight: Option<Inflight>) -> Result<Self, RingError> {
        let heads = inflight.as_mut().map(|inflight| inflight.recover(queue.next_used())).transpose()?;
        let heads: Vec<u16> = heads.into_iter().flatten().filter(|&head| head < queue.size()).collect();
        let again = (!heads.is_empty()).then(|| Again::new(&queue, &memory, &heads)).transpose()?;
        if again.is_some() {
            // So many were taken after what was used last.
            queue.set_next_avail(queue.next_used().wrapping_add(heads.len() as u16));
        }
        let entries = usize::from(queue.size());
        let parts = [
            (queue.desc_table(), 16 * entries),
            (queue.avail_ring(), 6 + 2 * entries),
            (queue.used_ring(), 6 + 8 * entries),
        ];
        let parts = parts.into_iter().flat_map(|(address, len)| segments(&memory, address, len)).collect();
        Ok(Self { queue, memory, parts, unpublished: 0, inflight, again })
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
        let memory = &*self.memory;
        if let Some(again) = &mut self.again {
            if let Some(chain) = again.queue.iter(&again.memory)?.next() {
                // Its addresses are of the driver's memory, which is all that it is given.
                return Ok(Some(take(memory, chain)));
            }
            self.again = None;
        }
        if !self.has_available()? {
            return Ok(None);
        }
        // The iterator hides a failed read: it gives nothing although there is something.
        let chain = self.queue.iter(memory)?.next().ok_or(RingError::Unreadable)?;
        if let Some(inflight) = &mut self.inflight {
            inflight.taken(chain.head_index());
        }
        Ok(Some(take(memory, chain)))
    }

    /// Whether chains that another process had taken have not been popped.
    pub fn has_left_over(&self) -> bool {
        self.again.as_ref().is_some_and(|again| {
            let end = again.queue.avail_idx(&again.memory, Ordering::Relaxed);
            end.is_ok_and(|end| end.0 != again.queue.next_avail())
        })
    }

    /// Whether the driver has made something available that was not popped.
    pub fn has_available(&self) -> Result<bool, RingError> {
        Ok(self.queue.avail_idx(&*self.memory, Ordering::Acquire)?.0 != self.queue.next_avail())
    }

    /// Gives a chain back, with `len` bytes written to its device-writable part. The driver sees it
    /// from the next [`publish`](Self::publish) on.
    pub fn push_used(&mut self, head: u16, len: u32) -> Result<(), RingError> {
        let next = self.queue.next_used();
        let slot = u64::from(next % self.queue.size());
        let element = [u32::from(head).to_le(), len.to_le()];
        self.memory
            .write_obj(element, self.used_field(USED_RING_OFFSET + slot * USED_ELEMENT_BYTES)?)
            .map_err(guest)?;
        if let Some(inflight) = &mut self.inflight {
            inflight.given_back(head);
        }
        self.queue.set_next_used(next.wrapping_add(1));
        self.unpublished += 1;
        Ok(())
    }

    /// Shows the driver all that was pushed, with one update of the used ring's index. True if the
    /// driver wants to be notified of it.
    pub fn publish(&mut self) -> Result<bool, RingError> {
        let count = std::mem::take(&mut self.unpublished);
        if count == 0 {
            return Ok(false);
        }
        let next = self.queue.next_used();
        self.memory.store(next.to_le(), self.used_field(INDEX_OFFSET)?, Ordering::Release).map_err(guest)?;
        if let Some(inflight) = &mut self.inflight {
            inflight.published(next);
        }
        // §2.7.7.2: what the driver wants is read after it can see the index, as it looks
        // at the index after it has said what it wants.
        fence(Ordering::SeqCst);
        if self.queue.event_idx_enabled() {
            let offset = AVAILABLE_RING_OFFSET + AVAILABLE_ELEMENT_BYTES * u64::from(self.queue.size());
            let used_event = self.load_available(offset)?;
            // §2.7.7.2: whether the index has passed the event since the last update.
            return Ok(next.wrapping_sub(used_event).wrapping_sub(1) < count);
        }
        Ok(self.load_available(FLAGS_OFFSET)? & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
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

    fn used_field(&self, offset: u64) -> Result<GuestAddress, RingError> {
        field(self.queue.used_ring(), offset)
    }

    fn load_available(&self, offset: u64) -> Result<u16, RingError> {
        let address = field(self.queue.avail_ring(), offset)?;
        Ok(u16::from_le(self.memory.load(address, Ordering::Relaxed).map_err(guest)?))
    }
}

impl Again {
    fn new(queue: &Queue, memory: &GuestMemory, heads: &[u16]) -> Result<Again, RingError> {
        let region = GuestRegionMmap::from_range(GuestAddress(AGAIN_ADDRESS), AGAIN_BYTES, None).map_err(again)?;
        let memory = memory.insert_region(Arc::new(region)).map_err(again)?;
        for (place, head) in (0u64..).zip(heads) {
            let address = AGAIN_ADDRESS + AVAILABLE_RING_OFFSET + place * AVAILABLE_ELEMENT_BYTES;
            memory.write_obj(head.to_le(), GuestAddress(address)).map_err(guest)?;
        }
        memory.write_obj((heads.len() as u16).to_le(), GuestAddress(AGAIN_ADDRESS + INDEX_OFFSET)).map_err(guest)?;
        let mut other = Queue::new(queue.max_size())?;
        other.try_set_size(queue.size())?;
        other.try_set_desc_table_address(GuestAddress(queue.desc_table()))?;
        other.try_set_avail_ring_address(GuestAddress(AGAIN_ADDRESS))?;
        other.set_ready(true);
        Ok(Again { queue: other, memory })
    }
}

fn again(error: impl std::error::Error) -> RingError {
    RingError::Again(error.to_string())
}

/// The host addresses of what is mapped of a range of guest memory.
fn segments(memory: &GuestMemory, address: u64, len: usize) -> Vec<Segment> {
    let slices = memory.get_slices(GuestAddress(address), len, Permissions::ReadWrite);
    let slices = slices.into_iter().flatten().map_while(Result::ok);
    slices.map(|slice| Segment::new(slice.ptr_guard_mut().as_ptr(), slice.len())).collect()
}

/// The address of a field of a ring.
fn field(ring: u64, offset: u64) -> Result<GuestAddress, RingError> {
    GuestAddress(ring).checked_add(offset).ok_or(RingError::Queue(virtio_queue::Error::AddressOverflow))
}

fn guest(error: vm_memory::GuestMemoryError) -> RingError {
    RingError::Queue(virtio_queue::Error::GuestMemory(error))
}

// §2.7.6 and §2.7.8: both rings begin with flags and index, 16 bits each.
const FLAGS_OFFSET: u64 = 0;
const INDEX_OFFSET: u64 = 2;
const AVAILABLE_RING_OFFSET: u64 = 4;
const AVAILABLE_ELEMENT_BYTES: u64 = 2;
const USED_RING_OFFSET: u64 = 4;
const USED_ELEMENT_BYTES: u64 = 8;
/// Where no guest has memory.
const AGAIN_ADDRESS: u64 = 1 << 62;
/// An available ring of the largest queue.
const AGAIN_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    const DESCRIPTORS: u64 = 0;
    const AVAILABLE: u64 = 0x1000;
    const USED: u64 = 0x2000;
    const SIZE: u16 = 8;
    const NO_INTERRUPT: u16 = VRING_AVAIL_F_NO_INTERRUPT as u16;

    /// A ring whose next used element is number `next_used`.
    fn ring(event_idx: bool, next_used: u16) -> Ring {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        let mut queue = Queue::new(SIZE).unwrap();
        queue.try_set_desc_table_address(GuestAddress(DESCRIPTORS)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(AVAILABLE)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        queue.set_event_idx(event_idx);
        queue.set_next_used(next_used);
        queue.set_ready(true);
        Ring::new(queue, Arc::new(memory), None).unwrap()
    }

    fn used_index(ring: &Ring) -> u16 {
        ring.memory().read_obj(GuestAddress(USED + INDEX_OFFSET)).unwrap()
    }

    fn set_available(ring: &Ring, offset: u64, value: u16) {
        ring.memory().write_obj(value, GuestAddress(AVAILABLE + offset)).unwrap();
    }

    #[test]
    fn a_batch_is_seen_at_once_and_wraps_around() {
        let mut ring = ring(false, u16::MAX - 1);
        for head in 0..4 {
            ring.push_used(head, u32::from(head) * 100).unwrap();
        }
        assert_eq!(used_index(&ring), 0, "nothing is published");
        assert!(ring.publish().unwrap());
        assert_eq!(used_index(&ring), 2);
        for (head, slot) in [(0u32, 6), (1, 7), (2, 0), (3, 1)] {
            let address = GuestAddress(USED + USED_RING_OFFSET + slot * USED_ELEMENT_BYTES);
            assert_eq!(ring.memory().read_obj::<[u32; 2]>(address).unwrap(), [head, head * 100]);
        }
        assert!(!ring.publish().unwrap(), "there is nothing more");
    }

    #[test]
    fn a_driver_that_polls_is_not_notified() {
        let mut ring = ring(false, 0);
        set_available(&ring, FLAGS_OFFSET, NO_INTERRUPT);
        ring.push_used(0, 1).unwrap();
        assert!(!ring.publish().unwrap());
        assert_eq!(used_index(&ring), 1);
    }

    #[test]
    fn with_event_idx_only_passing_the_event_notifies() {
        for (next_used, event, batch, expected) in [
            (0, 0, 1, true),
            (0, 1, 1, false),
            (0, 1, 2, true),
            (5, 4, 3, false),
            (5, 7, 3, true),
            (5, 8, 3, false),
            (u16::MAX, 0, 1, false),
            (u16::MAX, 0, 2, true),
            (u16::MAX, u16::MAX, 2, true),
        ] {
            let mut ring = ring(true, next_used);
            set_available(&ring, AVAILABLE_RING_OFFSET + u64::from(SIZE) * AVAILABLE_ELEMENT_BYTES, event);
            // Without meaning where the event index is in use.
            set_available(&ring, FLAGS_OFFSET, NO_INTERRUPT);
            for head in 0..batch {
                ring.push_used(head, 0).unwrap();
            }
            assert_eq!(ring.publish().unwrap(), expected, "{next_used} {event} {batch}");
        }
    }
}
