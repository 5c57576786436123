//! The front end's memory table: which files back which guest addresses.
//!
//! The front end names rings by its own virtual addresses and buffers by guest physical ones; the
//! table translates both. A table never changes: a new one is made and takes its place, while no
//! worker runs on the old one.

use std::fs::File;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use super::SessionError;
use crate::device::GuestMemory;
use crate::io::sigbus::Guard;

/// What one region of a memory table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// Guest physical address.
    pub guest_address: u64,
    /// Size in bytes.
    pub size: u64,
    /// Address in the front end's own memory.
    pub user_address: u64,
    /// Where it begins in its file.
    pub file_offset: u64,
}

impl From<&VhostUserMemoryRegion> for RegionInfo {
    fn from(region: &VhostUserMemoryRegion) -> Self {
        Self {
            guest_address: region.guest_phys_addr,
            size: region.memory_size,
            user_address: region.user_addr,
            file_offset: region.mmap_offset,
        }
    }
}

/// A mapped region.
struct Region {
    info: RegionInfo,
    mapping: Arc<GuestRegionMmap<()>>,
    // Dropped before the last user of `mapping`: workers are stopped before a table goes.
    _guard: Guard,
}

/// The memory that a front end shares.
#[derive(Clone, Default)]
pub struct MemoryTable {
    regions: Vec<Arc<Region>>,
    memory: Option<Arc<GuestMemory>>,
}

impl MemoryTable {
    /// The table of SET_MEM_TABLE.
    pub fn new(regions: impl IntoIterator<Item = (RegionInfo, File)>) -> Result<Self, SessionError> {
        let mut table = Self::default();
        for (info, file) in regions {
            table = table.with(info, file)?;
        }
        Ok(table)
    }

    /// The table with one region more.
    pub fn with(&self, info: RegionInfo, file: File) -> Result<Self, SessionError> {
        let mut regions = self.regions.clone();
        regions.push(Arc::new(Region::map(info, file)?));
        Self::of(regions, info)
    }

    /// The table without the region that `info` names by address and size.
    pub fn without(&self, info: RegionInfo) -> Result<Self, SessionError> {
        let named = |region: &Arc<Region>| {
            region.info.guest_address == info.guest_address
                && region.info.user_address == info.user_address
                && region.info.size == info.size
        };
        let Some(position) = self.regions.iter().position(named) else {
            return Err(refuse(info, "there is no such region to remove"));
        };
        let mut regions = self.regions.clone();
        regions.remove(position);
        Self::of(regions, info)
    }

    /// The guest memory, if there is any.
    pub fn memory(&self) -> Option<&Arc<GuestMemory>> {
        self.memory.as_ref()
    }

    /// The guest physical address of an address in the front end's memory.
    pub fn guest_address(&self, user_address: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = user_address.checked_sub(region.info.user_address)?;
            (offset < region.info.size).then(|| region.info.guest_address + offset)
        })
    }

    fn of(mut regions: Vec<Arc<Region>>, changed: RegionInfo) -> Result<Self, SessionError> {
        if regions.len() > MEMORY_SLOTS_MAX {
            return Err(refuse(changed, format!("there are {MEMORY_SLOTS_MAX} regions already")));
        }
        regions.sort_by_key(|region| region.info.guest_address);
        if regions.is_empty() {
            return Ok(Self::default());
        }
        let mappings = regions.iter().map(|region| region.mapping.clone()).collect();
        let memory = GuestMemoryMmap::from_arc_regions(mappings).map_err(|error| refuse(changed, error))?;
        Ok(Self { regions, memory: Some(Arc::new(memory)) })
    }
}

impl Region {
    fn map(info: RegionInfo, file: File) -> Result<Self, SessionError> {
        if info.user_address.checked_add(info.size).is_none() {
            return Err(refuse(info, "its address in the front end overflows"));
        }
        let size = usize::try_from(info.size).map_err(|error| refuse(info, error))?;
        let metadata = file.metadata().map_err(|error| refuse(info, error))?;
        let end = info.file_offset.checked_add(info.size);
        // A device, such as /dev/dax, has no length to go by.
        if end.is_none_or(|end| metadata.is_file() && end > metadata.len()) {
            return Err(refuse(info, format!("its file ends at {:#x}", metadata.len())));
        }
        let file = FileOffset::new(file, info.file_offset);
        let mapping = MmapRegion::<()>::from_file(file.clone(), size).map_err(|error| refuse(info, error))?;
        let guard = Guard::new(mapping.as_ptr().addr(), size, file.file()).map_err(|error| refuse(info, error))?;
        let mapping = GuestRegionMmap::new(mapping, GuestAddress(info.guest_address))
            .ok_or_else(|| refuse(info, "its guest address overflows"))?;
        Ok(Self { info, mapping: Arc::new(mapping), _guard: guard })
    }
}

fn refuse(info: RegionInfo, reason: impl ToString) -> SessionError {
    SessionError::Memory { address: info.guest_address, size: info.size, reason: reason.to_string() }
}

/// The most regions: what the kernel's vhost has, and front ends expect.
pub const MEMORY_SLOTS_MAX: usize = 509;

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    fn file(len: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    }

    fn info(guest_address: u64, user_address: u64, size: u64) -> RegionInfo {
        RegionInfo { guest_address, size, user_address, file_offset: 0 }
    }

    #[test]
    fn both_kinds_of_addresses_are_translated() {
        let regions =
            [(info(0x10000, 0x7000_0000, 0x4000), file(0x4000)), (info(0, 0x5000_0000, 0x2000), file(0x2000))];
        let table = MemoryTable::new(regions).unwrap();
        assert_eq!(table.guest_address(0x7000_0010), Some(0x10010));
        assert_eq!(table.guest_address(0x5000_1fff), Some(0x1fff));
        assert_eq!(table.guest_address(0x5000_2000), None);
        let memory = table.memory().unwrap();
        memory.write_obj(7u32, GuestAddress(0x13ffc)).unwrap();
        assert!(memory.write_obj(7u32, GuestAddress(0x13ffd)).is_err());
    }

    #[test]
    fn regions_come_and_go() {
        let table = MemoryTable::default();
        assert!(table.memory().is_none());
        let first = info(0, 0x1000_0000, 0x1000);
        let second = info(0x1000, 0x2000_0000, 0x1000);
        let table = table.with(first, file(0x1000)).unwrap().with(second, file(0x1000)).unwrap();
        assert!(table.without(info(0, 0x1000_0000, 0x2000)).is_err());
        let table = table.without(first).unwrap();
        assert_eq!(table.guest_address(0x1000_0000), None);
        assert_eq!(table.guest_address(0x2000_0000), Some(0x1000));
        assert!(table.without(second).unwrap().memory().is_none());
    }

    #[test]
    fn overlaps_overflows_and_short_files_are_refused() {
        let table = MemoryTable::new([(info(0, 0, 0x2000), file(0x2000))]).unwrap();
        assert!(table.with(info(0x1000, 0x9000, 0x1000), file(0x1000)).is_err());
        assert!(table.with(info(0x4000, 0x9000, 0x2000), file(0x1000)).is_err());
        assert!(table.with(info(u64::MAX - 0xfff, 0x9000, 0x2000), file(0x2000)).is_err());
        assert!(table.with(info(0x4000, u64::MAX - 0xfff, 0x2000), file(0x2000)).is_err());
        let beyond = RegionInfo { file_offset: !0xfff, ..info(0x4000, 0x9000, 0x1000) };
        assert!(table.with(beyond, file(0x1000)).is_err());
        assert!(table.with(info(0x4000, 0x9000, 0), file(0)).is_err());
    }
}
