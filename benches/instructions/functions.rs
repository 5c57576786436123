//! The functions on the path of every request, each in a loop of so many calls.
//!
//! Requests are those of a Linux guest: header, data and status in a descriptor each, 4 KiB. A lane
//! has an engine below that stores nothing and completes at once.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use sealblk::crypto::xts::{Direction, Xts, XtsKey};
use sealblk::device::GuestMemory;
use sealblk::device::request::{Command, Limits, Parser};
use sealblk::device::ring::Ring;
use sealblk::io::file::BlockFile;
use sealblk::io::segments::Segment;
use sealblk::io::{Engine, Engines};
use sealblk::store::{Access, SectorSize};
use sealblk::volume::attachment::Attachment;
use sealblk::volume::{Creation, Volume};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::harness::Outcome;
use super::harness::nowhere::Nowhere;
use super::harness::random::Random;

/// Something to count.
pub struct Function {
    /// What it is called in the report.
    pub name: &'static str,
    /// Calls it so often; a folder is there for a volume.
    pub run: fn(u64, &Path) -> Outcome<()>,
}

/// All of them.
pub const FUNCTIONS: [Function; 9] = [
    Function { name: "ring: pop, push_used", run: ring },
    Function { name: "request: parse a 4 KiB read", run: |calls, _| parse(calls, VIRTIO_BLK_T_IN) },
    Function { name: "request: parse a 4 KiB write", run: |calls, _| parse(calls, VIRTIO_BLK_T_OUT) },
    Function { name: "lane: read 4 KiB, not encrypted", run: |calls, folder| lane(calls, folder, false, false) },
    Function { name: "lane: write 4 KiB, not encrypted", run: |calls, folder| lane(calls, folder, false, true) },
    Function { name: "lane: read 4 KiB, encrypted", run: |calls, folder| lane(calls, folder, true, false) },
    Function { name: "lane: write 4 KiB, encrypted", run: |calls, folder| lane(calls, folder, true, true) },
    Function { name: "xts: encrypt 4 KiB in units of 512", run: |calls, _| xts(calls, Direction::Encrypt) },
    Function { name: "xts: decrypt 4 KiB in units of 512", run: |calls, _| xts(calls, Direction::Decrypt) },
];

fn ring(calls: u64, _: &Path) -> Outcome<()> {
    let memory = Arc::new(guest_memory()?);
    let mut queue = queue(&memory, VIRTIO_BLK_T_IN)?;
    queue.set_event_idx(true);
    let available = memory.get_host_address(GuestAddress(AVAILABLE + 2))?.cast::<u16>();
    let mut ring = Ring::new(queue, memory.clone(), None)?;
    for call in 1..=calls {
        // SAFETY: the available index, in guest memory that is mapped, aligned, and nobody else's.
        unsafe { available.write_volatile((call as u16).to_le()) };
        let head = ring.pop(|_, chain| chain.head_index())?.ok_or("nothing is available")?;
        ring.push_used(black_box(head), REQUEST_BYTES as u32 + 1)?;
    }
    Ok(())
}

fn parse(calls: u64, kind: u32) -> Outcome<()> {
    let memory = guest_memory()?;
    let mut queue = queue(&memory, kind)?;
    let chain = queue.iter(&memory)?.next().ok_or("nothing is available")?;
    let limits = Limits {
        size_bytes: SIZE,
        sector_size_bytes: UNIT as u32,
        read_only: false,
        descriptors_max: QUEUE_SIZE.into(),
    };
    let mut parser = Parser::default();
    for _ in 0..calls {
        let request = parser.parse(&memory, black_box(chain.clone()), black_box(&limits))?;
        match (black_box(request).command, kind) {
            (Ok(Command::Read { offset: OFFSET }), VIRTIO_BLK_T_IN) => {}
            (Ok(Command::Write { offset: OFFSET }), VIRTIO_BLK_T_OUT) => {}
            (other, _) => return Err(format!("it is parsed as {other:?}").into()),
        }
    }
    Ok(())
}

fn lane(calls: u64, folder: &Path, encrypted: bool, write: bool) -> Outcome<()> {
    let folder = folder.join("volume");
    let key = encrypted.then(key).transpose()?;
    let creation = Creation { size_bytes: SIZE, sector_size: SectorSize::Bytes512, device: None };
    Volume::create(&folder, creation, key.as_ref())?;
    let volume = Volume::open(&folder, key.as_ref(), Access::Exclusive)?;
    let file = Arc::new(BlockFile::open(volume.data_path(), false, UNIT)?);
    let make = Box::new(|_depth| Ok(Box::new(Nowhere::new(Arc::default())) as Box<dyn Engine>));
    let attachment = Arc::new(Attachment::with_engines(volume, Engines::made_by(make, file), false));
    let mut lane = attachment.lane(QUEUE_SIZE.into())?;
    let memory = guest_memory()?;
    let segments = [Segment::new(memory.get_host_address(GuestAddress(DATA))?, REQUEST_BYTES)];
    let mut ended = Vec::new();
    for call in 0..calls {
        // SAFETY: guest memory that stays mapped until all is done; the range is on the volume.
        unsafe {
            match write {
                true => lane.write(call, OFFSET, black_box(&segments), false),
                false => lane.read(call, OFFSET, black_box(&segments)),
            }
        }
        lane.drive(&mut ended)?;
        match ended.pop() {
            Some(completion) if completion.token == call && completion.result.is_ok() && ended.is_empty() => {}
            other => return Err(format!("it ended as {other:?}").into()),
        }
    }
    Ok(())
}

fn xts(calls: u64, direction: Direction) -> Outcome<()> {
    let xts = Xts::new(&key()?)?;
    let mut batch = content();
    for _ in 0..calls {
        match direction {
            Direction::Encrypt => xts.encrypt(black_box(&mut batch), UNIT, OFFSET / UNIT as u64),
            Direction::Decrypt => xts.decrypt(black_box(&mut batch), UNIT, OFFSET / UNIT as u64),
        }
    }
    Ok(())
}

fn key() -> Outcome<XtsKey> {
    Ok(XtsKey::from_bytes(&(0..64).collect::<Vec<u8>>())?)
}

/// Memory with data in it that is no hole.
fn guest_memory() -> Outcome<GuestMemory> {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
    memory.write_slice(&content(), GuestAddress(DATA))?;
    Ok(memory)
}

fn content() -> Vec<u8> {
    let mut random = Random::new(0);
    (0..REQUEST_BYTES / 8).flat_map(|_| random.next().to_ne_bytes()).collect()
}

/// A queue in which one request is available.
fn queue(memory: &GuestMemory, kind: u32) -> Outcome<Queue> {
    memory.write_obj(kind.to_le(), GuestAddress(HEADER))?;
    memory.write_obj((OFFSET / 512).to_le(), GuestAddress(HEADER + 8))?;
    let data = if kind == VIRTIO_BLK_T_IN { VRING_DESC_F_WRITE } else { 0 };
    let chain = [
        Descriptor::new(HEADER, 16, VRING_DESC_F_NEXT as u16, 1),
        Descriptor::new(DATA, REQUEST_BYTES as u32, (data | VRING_DESC_F_NEXT) as u16, 2),
        Descriptor::new(STATUS, 1, VRING_DESC_F_WRITE as u16, 0),
    ];
    for (index, descriptor) in chain.into_iter().enumerate() {
        memory.write_obj(descriptor, GuestAddress(DESCRIPTORS + 16 * index as u64))?;
    }
    // Every entry of the available ring is 0, the head of that chain.
    memory.write_obj(1u16.to_le(), GuestAddress(AVAILABLE + 2))?;
    let mut queue = Queue::new(QUEUE_SIZE)?;
    queue.try_set_desc_table_address(GuestAddress(DESCRIPTORS))?;
    queue.try_set_avail_ring_address(GuestAddress(AVAILABLE))?;
    queue.try_set_used_ring_address(GuestAddress(USED))?;
    queue.set_ready(true);
    if queue.is_valid(memory) { Ok(queue) } else { Err("the queue is not valid".into()) }
}

const SIZE: u64 = 1 << 30;
const UNIT: usize = 512;
const REQUEST_BYTES: usize = 4096;
const OFFSET: u64 = 0x0123_4000;
const QUEUE_SIZE: u16 = 128;
/// Where things lie in the guest.
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x9000;
const DATA: u64 = 0x10000;
