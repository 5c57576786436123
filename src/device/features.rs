//! Feature bits (virtio 1.2 §5.2.3 and §6).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// The driver can flush; without it every write must be stable when it completes.
pub const FLUSH: u32 = VIRTIO_BLK_F_FLUSH;
/// Notifications are suppressed by index rather than by flag (§2.7.10).
pub const EVENT_IDX: u32 = VIRTIO_RING_F_EVENT_IDX;

/// The bits that a device offers. A read-only one has nothing to discard or to cache.
pub fn offered(read_only: bool) -> u64 {
    let writable = if read_only { &[VIRTIO_BLK_F_RO][..] } else { WRITABLE };
    ALWAYS.iter().chain(writable).fold(0, |bits, bit| bits | 1 << bit)
}

/// Whether `bits` has the bit with this number.
pub fn has(bits: u64, number: u32) -> bool {
    bits & (1 << number) != 0
}

const ALWAYS: &[u32] = &[
    VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_CONFIG_WCE,
    VIRTIO_BLK_F_MQ,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_F_VERSION_1,
];

const WRITABLE: &[u32] = &[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_only_device_offers_ro_and_no_way_to_change_it() {
        let (writable, read_only) = (offered(false), offered(true));
        assert!(has(read_only, VIRTIO_BLK_F_RO) && !has(writable, VIRTIO_BLK_F_RO));
        for bit in [VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES] {
            assert!(has(writable, bit) && !has(read_only, bit));
        }
        for bit in ALWAYS {
            assert!(has(writable, *bit) && has(read_only, *bit));
        }
    }
}
