//! Guest memory: regions of shared memory files, mapped here and given to the back end.
//!
//! Guest-physical addresses are chosen far from the addresses at which the regions are mapped, so
//! that a back end which takes one for the other reads nonsense.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;
use std::sync::atomic::AtomicU16;

use vhost::VhostUserMemoryRegionInfo;

/// Where the first region lies in the guest's physical address space.
pub const BASE: u64 = 0x1_0000_0000;

/// How many huge pages the kernel makes when they are asked for.
const HUGE_PAGES: &str = "/proc/sys/vm/nr_overcommit_hugepages";
/// Enough for all tests that run at once.
const HUGE_PAGES_MIN: u64 = 64;

/// One region of guest memory.
pub struct Region {
    /// The guest-physical address of the first byte.
    pub address: u64,
    /// Size in bytes.
    pub size: usize,
    file: File,
    mapping: *mut u8,
}

// SAFETY: the mapping belongs to the region alone and lives as long as it does.
unsafe impl Send for Region {}

impl Region {
    /// A region of `size` bytes of zeros at the guest-physical `address`.
    pub fn new(address: u64, size: usize) -> Self {
        Self::with(address, size, libc::MFD_CLOEXEC)
    }

    /// The same in huge pages, which the kernel is told to have. Needs root.
    // Of the programs that share this, those need it that take memory away.
    #[allow(dead_code)]
    pub fn of_huge_pages(address: u64, size: usize) -> Self {
        let allowed = std::fs::read_to_string(HUGE_PAGES).expect("how many huge pages there may be");
        // Raised, and never lowered, as others may need as many; it stays so.
        if allowed.trim().parse::<u64>().expect("a number") < HUGE_PAGES_MIN {
            std::fs::write(HUGE_PAGES, HUGE_PAGES_MIN.to_string()).expect("leave to make huge pages");
        }
        Self::with(address, size, libc::MFD_CLOEXEC | libc::MFD_HUGETLB)
    }

    fn with(address: u64, size: usize, flags: u32) -> Self {
        // SAFETY: the name is a C string; a new descriptor is returned or -1.
        let descriptor = unsafe { libc::memfd_create(c"guest".as_ptr(), flags) };
        assert!(descriptor >= 0, "memfd_create failed");
        // SAFETY: the descriptor is new and nobody else's.
        let file = unsafe { File::from_raw_fd(descriptor) };
        file.set_len(size as u64).expect("sizing guest memory");
        // SAFETY: a fresh shared mapping of a file of this length, unmapped on drop.
        let mapping = unsafe {
            libc::mmap(ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        assert_ne!(mapping, libc::MAP_FAILED, "mapping guest memory failed");
        Self { address, size, file, mapping: mapping.cast() }
    }

    /// What the back end is told of this region.
    pub fn info(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: self.address,
            memory_size: self.size as u64,
            userspace_addr: self.mapping as u64,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// Cuts the file behind the region: what lies past `length` can no longer be touched by
    /// anyone, this process included.
    pub fn truncate(&self, length: u64) {
        self.file.set_len(length).expect("truncating guest memory");
    }

    fn contains(&self, address: u64, length: usize) -> bool {
        address >= self.address
            && address.checked_add(length as u64).is_some_and(|end| end <= self.address + self.size as u64)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this size, and not used after this.
        unsafe { libc::munmap(self.mapping.cast(), self.size) };
    }
}

/// All regions of a guest, and an allocator that only moves forward in the first of them.
pub struct Memory {
    /// The regions, the first of which holds the rings.
    pub regions: Vec<Region>,
    next: u64,
}

impl Memory {
    /// One region of `size` bytes at [`BASE`].
    pub fn new(size: usize) -> Self {
        Self { regions: vec![Region::new(BASE, size)], next: BASE }
    }

    /// Takes `length` bytes of the first region, aligned to `alignment`.
    pub fn allocate(&mut self, length: usize, alignment: u64) -> u64 {
        let address = self.next.next_multiple_of(alignment);
        assert!(self.regions[0].contains(address, length), "the test ran out of guest memory");
        self.next = address + length as u64;
        address
    }

    /// Where the next allocation will lie at the earliest; give it to [`Memory::release`] later.
    pub fn mark(&self) -> u64 {
        self.next
    }

    /// Takes back everything allocated since `mark`.
    pub fn release(&mut self, mark: u64) {
        self.next = mark;
    }

    /// The address in this process of a guest-physical one: how rings are named to the back end.
    pub fn user_address(&self, address: u64) -> u64 {
        self.pointer(address, 1) as u64
    }

    /// Copies `bytes` to a guest-physical address.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        let target = self.pointer(address, bytes.len());
        // SAFETY: `pointer` checked that so many bytes are mapped there.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
    }

    /// Copies `length` bytes from a guest-physical address.
    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let source = self.pointer(address, length);
        let mut bytes = vec![0; length];
        // SAFETY: `pointer` checked that so many bytes are mapped there.
        unsafe { ptr::copy_nonoverlapping(source, bytes.as_mut_ptr(), length) };
        bytes
    }

    /// A 16-bit word that the other side reads or writes at the same time.
    pub fn word(&self, address: u64) -> &AtomicU16 {
        assert_eq!(address % 2, 0, "ring words are aligned");
        let word = self.pointer(address, 2);
        // SAFETY: mapped, aligned, and alive as long as the region that `self` borrows.
        unsafe { AtomicU16::from_ptr(word.cast()) }
    }

    fn pointer(&self, address: u64, length: usize) -> *mut u8 {
        let region = self
            .regions
            .iter()
            .find(|region| region.contains(address, length))
            .unwrap_or_else(|| panic!("{address:#x} is not guest memory"));
        // SAFETY: the offset is within the mapping, as `contains` checked.
        unsafe { region.mapping.add((address - region.address) as usize) }
    }
}
