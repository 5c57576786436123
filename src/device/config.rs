//! The configuration space (virtio 1.2 §5.2.4).

/// How much of `struct virtio_blk_config` this device has, in bytes: through
/// `write_zeroes_may_unmap` and its padding. Front ends that read more get zeros.
pub const CONFIG_BYTES: usize = 60;
/// Where the `writeback` byte stands, the only one that a driver may write.
pub const WRITEBACK_OFFSET: usize = 32;
/// The most data segments in a request: with header and status, what fits a queue of 128.
pub const SEGMENTS_MAX: u32 = 126;
/// The largest data segment, in bytes.
pub const SEGMENT_BYTES_MAX: u32 = 1 << 20;
/// The most ranges in one DISCARD or WRITE_ZEROES.
pub const RANGES_MAX: u32 = 64;
/// The longest range of DISCARD or WRITE_ZEROES, in 512-byte sectors: 4 GiB.
pub const RANGE_SECTORS_MAX: u32 = 1 << 23;
/// The unit of `capacity`, of request sectors and of ranges, whatever the block size (§5.2.4).
pub const SECTOR_BYTES: u64 = 512;

/// What the configuration space tells about a volume.
pub struct Config {
    /// Size of the volume.
    pub size_bytes: u64,
    /// Size of its data unit.
    pub sector_size_bytes: u32,
    /// The most queues.
    pub queues: u16,
    /// Whether writes are cached until a flush.
    pub writeback: bool,
}

impl Config {
    /// `struct virtio_blk_config`, all fields little-endian.
    pub fn to_bytes(&self) -> [u8; CONFIG_BYTES] {
        let mut bytes = [0; CONFIG_BYTES];
        let mut put = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
        put(0, &(self.size_bytes / SECTOR_BYTES).to_le_bytes()); // capacity
        put(8, &SEGMENT_BYTES_MAX.to_le_bytes()); // size_max
        put(12, &SEGMENTS_MAX.to_le_bytes()); // seg_max
        put(20, &self.sector_size_bytes.to_le_bytes()); // blk_size
        // Topology: the host moves blocks of 4096 bytes best, whatever the data unit.
        let exponent = (HOST_BLOCK_BYTES / self.sector_size_bytes).max(1).trailing_zeros();
        put(24, &[exponent as u8]); // physical_block_exp
        put(26, &((HOST_BLOCK_BYTES / self.sector_size_bytes).max(1) as u16).to_le_bytes()); // min_io_size
        put(WRITEBACK_OFFSET, &[u8::from(self.writeback)]);
        put(34, &self.queues.to_le_bytes()); // num_queues
        put(36, &RANGE_SECTORS_MAX.to_le_bytes()); // max_discard_sectors
        put(40, &RANGES_MAX.to_le_bytes()); // max_discard_seg
        put(44, &(HOST_BLOCK_BYTES / SECTOR_BYTES as u32).to_le_bytes()); // discard_sector_alignment
        put(48, &RANGE_SECTORS_MAX.to_le_bytes()); // max_write_zeroes_sectors
        put(52, &RANGES_MAX.to_le_bytes()); // max_write_zeroes_seg
        put(56, &[1]); // write_zeroes_may_unmap
        bytes
    }
}

const HOST_BLOCK_BYTES: u32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_standard_puts_them() {
        let config = Config { size_bytes: 1 << 30, sector_size_bytes: 512, queues: 16, writeback: true }.to_bytes();
        let u32_at = |offset: usize| u32::from_le_bytes(config[offset..offset + 4].try_into().unwrap());
        let u16_at = |offset: usize| u16::from_le_bytes(config[offset..offset + 2].try_into().unwrap());
        assert_eq!(config[..8], (1u64 << 21).to_le_bytes());
        assert_eq!((u32_at(8), u32_at(12), u32_at(20)), (1 << 20, 126, 512));
        assert_eq!((config[24], config[25], u16_at(26), u32_at(28)), (3, 0, 8, 0));
        assert_eq!((config[32], u16_at(34)), (1, 16));
        assert_eq!((u32_at(36), u32_at(40), u32_at(44)), (1 << 23, 64, 8));
        assert_eq!((u32_at(48), u32_at(52), config[56]), (1 << 23, 64, 1));

        let config = Config { size_bytes: 8192, sector_size_bytes: 4096, queues: 1, writeback: false }.to_bytes();
        assert_eq!(config[..8], 16u64.to_le_bytes());
        assert_eq!((config[24], config[26], config[32]), (0, 1, 0));
    }
}
