//! The rings of a session: what the front end has said about each, and the workers of those that
//! run.
//!
//! A ring runs while it has memory, addresses, a kick and is enabled (vhost-user, "Ring states").
//! Anything that takes one of these away, or changes one, stops its worker first, which finishes
//! what is in flight; nothing is in flight while nothing runs. A ring that the front end never
//! starts has no thread and no engine.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::SessionError;
use super::inflight::InflightMemory;
use super::memory::MemoryTable;
use crate::device::Disk;
use crate::device::features::{self, EVENT_IDX};
use crate::device::ring as split;
use crate::device::worker::{Notifier, Start, Worker};
use crate::io::patience::Patience;

/// The largest queue.
pub const QUEUE_SIZE_MAX: u16 = 1024;

/// All rings of a session.
pub struct Rings {
    disk: Arc<Disk>,
    table: MemoryTable,
    rings: Vec<Ring>,
    inflight: Option<InflightMemory>,
    patience: Patience,
}

/// Where a ring lies, in the front end's own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
}

struct Ring {
    size: u16,
    addresses: Option<RingAddresses>,
    next_available: u16,
    kick: Option<EventFd>,
    call: Arc<Notifier>,
    error: Arc<Notifier>,
    enabled: bool,
    worker: Option<Worker>,
}

impl Rings {
    /// As many stopped rings as the disk may have.
    pub fn new(disk: Arc<Disk>, patience: Patience) -> Self {
        let rings = (0..disk.queues_max()).map(|_| Ring::new()).collect();
        Self { disk, table: MemoryTable::default(), rings, inflight: None, patience }
    }

    /// Sets how many descriptors a ring has.
    pub fn set_size(&mut self, index: u32, size: u32) -> Result<(), SessionError> {
        let (index, ring) = self.stopped(index)?;
        match u16::try_from(size) {
            Ok(size) if size.is_power_of_two() && size <= QUEUE_SIZE_MAX => ring.size = size,
            _ => return Err(SessionError::QueueSize { index, size, max: QUEUE_SIZE_MAX }),
        }
        Ok(())
    }

    /// Sets where a ring lies.
    pub fn set_addresses(&mut self, index: u32, addresses: RingAddresses) -> Result<(), SessionError> {
        let table = self.table.clone();
        let (index, ring) = self.stopped(index)?;
        // A front end may name the ring before its memory; then it is checked at the start.
        if table.memory().is_some() {
            ring.queue(index, addresses, &table)?;
        }
        ring.addresses = Some(addresses);
        self.start_if_ready(index)
    }

    /// Sets which available element comes next.
    pub fn set_base(&mut self, index: u32, next_available: u32) -> Result<(), SessionError> {
        let (_, ring) = self.stopped(index)?;
        ring.next_available = next_available as u16;
        Ok(())
    }

    /// Stops a ring and says which available element would have come next.
    pub fn stop(&mut self, index: u32) -> Result<u16, SessionError> {
        let (_, ring) = self.ring(index)?;
        ring.halt();
        // A later start brings a kick of its own; until then nothing else may start the ring.
        ring.kick = None;
        Ok(ring.next_available)
    }

    /// Sets the eventfd by which the driver kicks, and starts the ring if it is enabled. None asks
    /// for the ring to be polled, which would keep a core busy on an idle disk: it is refused.
    pub fn set_kick(&mut self, index: u32, kick: Option<File>) -> Result<(), SessionError> {
        let (index, ring) = self.ring(index)?;
        let kick = event(index, kick.ok_or(SessionError::NoKick { index })?)?;
        ring.halt();
        ring.kick = Some(kick);
        self.start_if_ready(index)
    }

    /// Sets the eventfd by which the driver is notified, running or not. None: the driver polls.
    pub fn set_call(&mut self, index: u32, call: Option<File>) -> Result<(), SessionError> {
        let (index, ring) = self.ring(index)?;
        ring.call.set(call.map(|file| event(index, file)).transpose()?);
        if ring.worker.is_some() {
            // What was used while the eventfds changed may have gone to the old one.
            ring.call.notify();
        }
        Ok(())
    }

    /// Sets the eventfd by which the front end hears that a ring was given up.
    pub fn set_error(&mut self, index: u32, error: Option<File>) -> Result<(), SessionError> {
        let (index, ring) = self.ring(index)?;
        ring.error.set(error.map(|file| event(index, file)).transpose()?);
        Ok(())
    }

    /// Starts or pauses a ring. When this returns, a paused ring has nothing in flight.
    pub fn enable(&mut self, index: u32, enabled: bool) -> Result<(), SessionError> {
        let (index, ring) = self.ring(index)?;
        ring.enabled = enabled;
        if !enabled {
            ring.halt();
            return Ok(());
        }
        self.start_if_ready(index)
    }

    /// Enables every ring: for front ends that do not do it themselves.
    pub fn enable_all(&mut self) -> Result<(), SessionError> {
        (0..self.disk.queues_max()).try_for_each(|index| self.enable(index.into(), true))
    }

    /// The memory table in use.
    pub fn memory_table(&self) -> &MemoryTable {
        &self.table
    }

    /// Puts a memory table in the place of the old one. Rings that run pause meanwhile; one that is
    /// not in the new table stays stopped.
    pub fn set_memory_table(&mut self, table: MemoryTable) -> Result<(), SessionError> {
        self.halt_all();
        self.table = table;
        let mut result = Ok(());
        for index in 0..self.disk.queues_max() {
            result = result.and(self.start_if_ready(index));
        }
        result
    }

    /// Notes in this memory from now on what is in flight, and takes up what a ring that starts had in flight by it.
    /// The write cache is set as it was set for whoever had this memory before.
    pub fn set_inflight(&mut self, memory: InflightMemory) -> Result<(), SessionError> {
        for index in 0..self.disk.queues_max() {
            self.stopped(index.into())?;
        }
        let writeback = memory.writeback().unwrap_or_else(|| self.disk.writeback());
        self.inflight = Some(memory);
        self.set_writeback(writeback);
        Ok(())
    }

    /// Sets whether writes are cached, also for whoever goes on with these rings.
    pub fn set_writeback(&mut self, writeback: bool) {
        self.disk.set_writeback(writeback);
        if let Some(memory) = &self.inflight {
            memory.note_writeback(writeback);
        }
    }

    /// Stops all rings. When this returns, nothing is in flight.
    pub fn halt_all(&mut self) {
        for ring in &mut self.rings {
            ring.halt();
        }
    }

    fn ring(&mut self, index: u32) -> Result<(u16, &mut Ring), SessionError> {
        let max = self.disk.queues_max();
        let ring = self.rings.get_mut(index as usize).ok_or(SessionError::NoSuchQueue { index, max })?;
        Ok((index as u16, ring))
    }

    fn stopped(&mut self, index: u32) -> Result<(u16, &mut Ring), SessionError> {
        let (index, ring) = self.ring(index)?;
        if ring.worker.is_some() { Err(SessionError::Running { index }) } else { Ok((index, ring)) }
    }

    fn start_if_ready(&mut self, index: u16) -> Result<(), SessionError> {
        let event_idx = features::has(self.disk.accepted_features(), EVENT_IDX);
        let ring = &mut self.rings[usize::from(index)];
        if ring.worker.is_some() || !ring.enabled {
            return Ok(());
        }
        let (Some(addresses), Some(kick), Some(memory)) = (ring.addresses, &ring.kick, self.table.memory()) else {
            return Ok(());
        };
        let host = |source| SessionError::Host { index, source };
        let mut queue = ring.queue(index, addresses, &self.table)?;
        queue.set_event_idx(event_idx);
        let inflight = match &self.inflight {
            Some(inflight) => Some(inflight.of_queue(index).ok_or_else(|| no_room(index))?),
            None => None,
        };
        if inflight.as_ref().is_some_and(|inflight| inflight.entries() < ring.size) {
            return Err(no_room(index));
        }
        let served = split::Ring::new(queue, memory.clone(), inflight);
        let start = Start {
            index,
            ring: served.map_err(|error| SessionError::Inflight(format!("queue {index}: {error}")))?,
            kick: kick.try_clone().map_err(host)?,
            call: ring.call.clone(),
            error: ring.error.clone(),
            patience: self.patience.clone(),
        };
        ring.worker = Some(Worker::start(self.disk.clone(), start).map_err(host)?);
        if self.inflight.is_some() {
            // Whoever served it before may have ended after it had used something and before it said so.
            ring.call.notify();
        }
        log::debug!("queue {index}: running, size {}", ring.size);
        Ok(())
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        self.halt_all();
    }
}

impl Ring {
    fn new() -> Self {
        Self {
            size: QUEUE_SIZE_MAX,
            addresses: None,
            next_available: 0,
            kick: None,
            call: Arc::default(),
            error: Arc::default(),
            enabled: false,
            worker: None,
        }
    }

    fn halt(&mut self) {
        let Some(worker) = self.worker.take() else { return };
        match worker.stop() {
            Ok(queue) => self.next_available = queue.next_avail(),
            Err(error) => log::error!("stopping a queue: {error}"),
        }
    }

    /// The queue as it would start now.
    fn queue(&self, index: u16, addresses: RingAddresses, table: &MemoryTable) -> Result<Queue, SessionError> {
        let invalid = SessionError::RingAddress { index };
        let guest = |address| table.guest_address(address).map(GuestAddress);
        let set = || -> Option<Queue> {
            let mut queue = Queue::new(QUEUE_SIZE_MAX).ok()?;
            queue.try_set_size(self.size).ok()?;
            queue.try_set_desc_table_address(guest(addresses.descriptors)?).ok()?;
            queue.try_set_avail_ring_address(guest(addresses.available)?).ok()?;
            queue.try_set_used_ring_address(guest(addresses.used)?).ok()?;
            queue.set_next_avail(self.next_available);
            queue.set_ready(true);
            let memory = table.memory()?;
            queue.is_valid(&**memory).then_some(())?;
            // Nothing is in flight here, so what was used last is what the ring says.
            let used = queue.used_idx(&**memory, Ordering::Acquire).ok()?;
            queue.set_next_used(used.0);
            Some(queue)
        };
        set().ok_or(invalid)
    }
}

fn no_room(index: u16) -> SessionError {
    SessionError::Inflight(format!("there is no room for queue {index} in it"))
}

/// An eventfd of the front end's, made non-blocking: the front end must not be able to make a
/// worker wait on it.
fn event(index: u16, file: File) -> Result<EventFd, SessionError> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let target = std::fs::read_link(link).map_err(|source| SessionError::Host { index, source })?;
    if target.as_os_str() != "anon_inode:[eventfd]" {
        return Err(SessionError::NotAnEventFd { index });
    }
    rustix::io::ioctl_fionbio(&file, true).map_err(|error| SessionError::Host { index, source: error.into() })?;
    // SAFETY: the descriptor is an eventfd, and its ownership moves into the EventFd.
    Ok(unsafe { EventFd::from_raw_fd(file.into_raw_fd()) })
}
