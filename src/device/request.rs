//! What a request asks for (virtio 1.2 §5.2.6), from whatever descriptors the driver chose
//! (§2.7.4: no assumption on framing).
//!
//! All device-readable bytes of a chain are one stream: 16 bytes of header, then data. All
//! device-writable bytes are another: data, then one byte of status, the very last. Nothing else
//! about the layout matters. Each byte that decides anything is read from guest memory once.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory as _, Permissions};

use super::GuestMemory;
use super::config::{RANGE_SECTORS_MAX, RANGES_MAX, SECTOR_BYTES};
use crate::io::segments::{Cursor, Segment, total};
use crate::volume::lane::Extent;

/// What a device can say of a request in its status byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = VIRTIO_BLK_S_OK as u8,
    /// The request is wrong, or doing it failed.
    IoError = VIRTIO_BLK_S_IOERR as u8,
    /// The device does not know this kind of request.
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// What requests are checked against.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Size of the volume.
    pub size_bytes: u64,
    /// Size of its data unit: offsets and lengths must be multiples.
    pub sector_size_bytes: u32,
    /// Whether requests that change anything are refused.
    pub read_only: bool,
    /// The most descriptors in one chain.
    pub descriptors_max: usize,
}

/// What a request asks for. Its data is in [`Parser::data`], its ranges in [`Parser::ranges`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Fill the data from this byte of the volume on.
    Read {
        /// First byte on the volume.
        offset: u64,
    },
    /// Store the data from this byte of the volume on.
    Write {
        /// First byte on the volume.
        offset: u64,
    },
    /// Make completed writes durable.
    Flush,
    /// Put the serial into the data.
    GetId,
    /// Forget the ranges.
    Discard,
    /// Zero the ranges.
    WriteZeroes,
}

/// A request that can be answered: it has a status byte.
#[derive(Debug)]
pub struct Request {
    /// The head of its descriptor chain.
    pub head: u16,
    /// Where the status byte goes.
    pub status: *mut u8,
    /// What it asks for, or the status that refuses it.
    pub command: Result<Command, Status>,
}

/// A chain that cannot be answered in the way the standard means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The descriptors do not make a chain; the whole queue is not to be trusted.
    #[error("descriptor chain {head} is broken: a loop, an index or a table out of range")]
    Broken {
        /// Its head.
        head: u16,
    },
    /// There is no device-writable byte, in mapped memory, for the status.
    #[error("descriptor chain {head} has no place for the status byte")]
    NoStatus {
        /// Its head.
        head: u16,
    },
}

/// Takes requests apart; keeps its memory from one to the next.
#[derive(Debug, Default)]
pub struct Parser {
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    data: Vec<Segment>,
    ranges: Vec<Extent>,
}

impl Parser {
    /// Takes apart one chain. What the result says stands until the next call.
    pub fn parse(
        &mut self,
        memory: &GuestMemory,
        chain: DescriptorChain<&GuestMemory>,
        limits: &Limits,
    ) -> Result<Request, ChainError> {
        let head = chain.head_index();
        let well_formed = self.collect(memory, chain, limits)?;
        let status = self.take_status().ok_or(ChainError::NoStatus { head })?;
        let mut command = if well_formed { self.command(limits) } else { Err(Status::IoError) };
        // After the header was read: it may be the zeros that took its place.
        if self.readable.iter().any(Segment::is_lost) {
            command = Err(Status::IoError);
        }
        Ok(Request { head, status, command })
    }

    /// The data of a read, a write or a GET_ID.
    pub fn data(&self) -> &[Segment] {
        &self.data
    }

    /// The ranges of a discard or write-zeroes, none empty.
    pub fn ranges(&self) -> &[Extent] {
        &self.ranges
    }

    /// Sorts the chain's memory into readable and writable segments. False if the chain must be
    /// refused, for its order, its length or its addresses.
    fn collect(
        &mut self,
        memory: &GuestMemory,
        chain: DescriptorChain<&GuestMemory>,
        limits: &Limits,
    ) -> Result<bool, ChainError> {
        let head = chain.head_index();
        self.readable.clear();
        self.writable.clear();
        let mut well_formed = true;
        let mut ended = false;
        let mut count = 0;
        for descriptor in chain {
            ended = !descriptor.has_next();
            count += 1;
            let writable = descriptor.is_write_only();
            // §2.7.4.2: the driver puts device-writable descriptors after device-readable ones.
            well_formed &= writable || self.writable.is_empty();
            well_formed &= count <= limits.descriptors_max;
            let (list, access) = if writable {
                (&mut self.writable, Permissions::Write)
            } else {
                (&mut self.readable, Permissions::Read)
            };
            let before = list.len();
            let mapped = push_mapped(list, memory, descriptor.addr(), descriptor.len() as usize, access);
            if !mapped {
                well_formed = false;
                // What lies behind unmapped memory may still be the status byte, but a piece of
                // this descriptor is not.
                list.truncate(before);
                if writable && ended {
                    return Err(ChainError::NoStatus { head });
                }
            }
        }
        // The iterator ends silently at a loop, a bad index or an unreadable table: the last
        // descriptor that it gave then has a next.
        if ended { Ok(well_formed) } else { Err(ChainError::Broken { head }) }
    }

    /// Splits the status byte off the end of the writable stream.
    fn take_status(&mut self) -> Option<*mut u8> {
        let last = self.writable.last_mut()?;
        last.len -= 1;
        let status = last.base.wrapping_add(last.len);
        if last.len == 0 {
            self.writable.pop();
        }
        Some(status)
    }

    fn command(&mut self, limits: &Limits) -> Result<Command, Status> {
        self.data.clear();
        self.ranges.clear();
        if total(&self.readable) < HEADER_BYTES {
            return Err(Status::IoError);
        }
        let mut cursor = Cursor::default();
        let mut header = [0u8; HEADER_BYTES];
        // SAFETY: the readable segments are mapped guest memory and hold a header; `header` has
        // room for it.
        unsafe { cursor.gather(&self.readable, header.as_mut_ptr(), HEADER_BYTES) };
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = u64::from_le_bytes(std::array::from_fn(|index| header[8 + index]));
        match kind {
            VIRTIO_BLK_T_IN => {
                self.data.extend_from_slice(&self.writable);
                Ok(Command::Read { offset: self.check_data(sector, limits)? })
            }
            VIRTIO_BLK_T_OUT => {
                refuse_if(limits.read_only)?;
                while let Some(piece) = cursor.take(&self.readable, usize::MAX) {
                    self.data.push(piece);
                }
                Ok(Command::Write { offset: self.check_data(sector, limits)? })
            }
            VIRTIO_BLK_T_FLUSH => Ok(Command::Flush),
            VIRTIO_BLK_T_GET_ID => {
                self.data.extend_from_slice(&self.writable);
                Ok(Command::GetId)
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                refuse_if(limits.read_only)?;
                // §5.2.6.2: unknown flags, and `unmap` on a discard, are not supported.
                let known_flags = if kind == VIRTIO_BLK_T_DISCARD { 0 } else { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP };
                self.read_ranges(cursor, known_flags, limits)?;
                Ok(if kind == VIRTIO_BLK_T_DISCARD { Command::Discard } else { Command::WriteZeroes })
            }
            _ => Err(Status::Unsupported),
        }
    }

    /// The byte offset of a read or write, if all of it lies on whole sectors of the volume.
    fn check_data(&self, sector: u64, limits: &Limits) -> Result<u64, Status> {
        limits.check(sector, total(&self.data) as u64).ok_or(Status::IoError)
    }

    /// Reads the array of `struct virtio_blk_discard_write_zeroes` that follows the header.
    fn read_ranges(&mut self, mut cursor: Cursor, known_flags: u32, limits: &Limits) -> Result<(), Status> {
        let len = total(&self.readable) - HEADER_BYTES;
        refuse_if(len == 0 || !len.is_multiple_of(RANGE_BYTES) || len / RANGE_BYTES > RANGES_MAX as usize)?;
        for _ in 0..len / RANGE_BYTES {
            let mut range = [0u8; RANGE_BYTES];
            // SAFETY: the readable segments are mapped guest memory and hold another range; `range`
            // has room for it.
            unsafe { cursor.gather(&self.readable, range.as_mut_ptr(), RANGE_BYTES) };
            let sector = u64::from_le_bytes(std::array::from_fn(|index| range[index]));
            let sectors = u32::from_le_bytes(std::array::from_fn(|index| range[8 + index]));
            let flags = u32::from_le_bytes(std::array::from_fn(|index| range[12 + index]));
            if flags & !known_flags != 0 {
                return Err(Status::Unsupported);
            }
            refuse_if(sectors > RANGE_SECTORS_MAX)?;
            let len = u64::from(sectors) * SECTOR_BYTES;
            let offset = limits.check(sector, len).ok_or(Status::IoError)?;
            if len > 0 {
                self.ranges.push(Extent { offset, len });
            }
        }
        Ok(())
    }
}

impl Limits {
    /// The byte offset of 512-byte sector `sector`, if `len` bytes from there on are whole data
    /// units of the volume.
    fn check(&self, sector: u64, len: u64) -> Option<u64> {
        let unit = u64::from(self.sector_size_bytes);
        let offset = sector.checked_mul(SECTOR_BYTES)?;
        let end = offset.checked_add(len)?;
        (offset.is_multiple_of(unit) && len.is_multiple_of(unit) && end <= self.size_bytes).then_some(offset)
    }
}

/// Appends the host addresses of a range of guest memory. False if not all of it is mapped.
fn push_mapped(
    list: &mut Vec<Segment>,
    memory: &GuestMemory,
    address: vm_memory::GuestAddress,
    len: usize,
    access: Permissions,
) -> bool {
    if len == 0 {
        return true;
    }
    let Ok(slices) = memory.get_slices(address, len, access) else { return false };
    for slice in slices {
        let Ok(slice) = slice else { return false };
        list.push(Segment::new(slice.ptr_guard_mut().as_ptr(), slice.len()));
    }
    true
}

fn refuse_if(condition: bool) -> Result<(), Status> {
    if condition { Err(Status::IoError) } else { Ok(()) }
}

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;

/// Parses everything in a guest memory that holds `bytes`: the entry of the fuzz target `request`. Whether
/// there is a request that is to be carried out.
///
/// A ring of 16 descriptors lies at the beginning (descriptors, available ring, used ring, each
/// where virtio 1.2 §2.7 would put it with an alignment of 4), the rest is data.
///
/// # Panics
///
/// When a request that was accepted reaches beyond the volume.
pub fn parse_hostile(bytes: &[u8]) -> bool {
    use virtio_queue::{Queue, QueueOwnedT, QueueT};
    use vm_memory::{Bytes, GuestAddress};

    const MEMORY_BYTES: usize = 1 << 16;
    const QUEUE_SIZE: u16 = 16;
    let Ok(memory) = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]) else { return false };
    let len = bytes.len().min(MEMORY_BYTES);
    if memory.write_slice(&bytes[..len], GuestAddress(0)).is_err() {
        return false;
    }
    let Ok(mut queue) = Queue::new(QUEUE_SIZE) else { return false };
    let _ = queue.try_set_avail_ring_address(GuestAddress(256));
    let _ = queue.try_set_used_ring_address(GuestAddress(296));
    queue.set_ready(true);
    let mut parser = Parser::default();
    let mut taken = false;
    for (sector_size_bytes, read_only) in [(512, false), (4096, false), (512, true)] {
        let limits = Limits { size_bytes: 1 << 20, sector_size_bytes, read_only, descriptors_max: 128 };
        queue.set_next_avail(0);
        let Ok(chains) = queue.iter(&memory) else { continue };
        for chain in chains {
            let Ok(request) = parser.parse(&memory, chain, &limits) else { continue };
            // SAFETY: the parser says that the byte lies in `memory`.
            unsafe { request.status.write_volatile(Status::Ok as u8) };
            taken |= request.command.is_ok();
            match request.command {
                Ok(Command::Read { offset } | Command::Write { offset }) => {
                    assert!(offset + total(parser.data()) as u64 <= limits.size_bytes);
                }
                Ok(Command::Discard | Command::WriteZeroes) => {
                    let within = |range: &Extent| range.offset + range.len <= limits.size_bytes;
                    assert!(parser.ranges().iter().all(within));
                }
                Ok(Command::Flush | Command::GetId) | Err(_) => {}
            }
        }
    }
    taken
}

#[cfg(test)]
mod tests;
