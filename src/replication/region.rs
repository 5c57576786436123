//! Regions: the pieces of a volume by which copies are compared.
//!
//! For each region a copy keeps a durable [`Row`]: the last view in which the region was written, and
//! whether it may differ from the other copies (the **intent**). From the rows of two copies follows
//! what one has to be sent to become like the other.

use super::view::ViewNumber;

/// Which region: its number from the start of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionIndex(pub u32);

/// What a copy durably knows about one of its regions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// The last view in which the region was or may have been written; none if it never was.
    pub written: ViewNumber,
    /// The region may have writes that other copies lack, or that a power loss would take back.
    pub intent: bool,
}

impl Row {
    /// As 64 bits: the view number shifted left by one, and the intent in the lowest bit.
    pub fn to_bits(self) -> u64 {
        self.written.0 << 1 | u64::from(self.intent)
    }

    /// The inverse of [`to_bits`](Self::to_bits).
    pub fn from_bits(bits: u64) -> Row {
        Row { written: ViewNumber(bits >> 1), intent: bits & 1 == 1 }
    }
}

/// How a volume is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regions {
    size_bytes: u64,
    region_bytes: u64,
}

impl Regions {
    /// The division of a volume of `size_bytes`: regions of 4 MiB, or of the next power of two that makes
    /// no more than 2^20 of them.
    pub fn of(size_bytes: u64) -> Regions {
        let least = size_bytes.div_ceil(REGIONS_MAX).next_power_of_two();
        Regions { size_bytes, region_bytes: least.max(REGION_BYTES_MIN) }
    }

    /// A division by choice, for small models of volumes.
    pub fn with_region_bytes(size_bytes: u64, region_bytes: u64) -> Regions {
        assert!(region_bytes.is_power_of_two(), "regions are powers of two");
        Regions { size_bytes, region_bytes }
    }

    /// Bytes of a region; the last one may be shorter.
    pub fn region_bytes(&self) -> u64 {
        self.region_bytes
    }

    /// Bytes of the volume.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// How many regions there are.
    pub fn count(&self) -> u32 {
        self.size_bytes.div_ceil(self.region_bytes) as u32
    }

    /// The bytes of a region: first, and one past the last.
    pub fn range(&self, region: RegionIndex) -> (u64, u64) {
        let start = u64::from(region.0) * self.region_bytes;
        (start, (start + self.region_bytes).min(self.size_bytes))
    }

    /// The regions that a range of bytes touches.
    pub fn touched(&self, offset: u64, len: u64) -> impl Iterator<Item = RegionIndex> + use<> {
        let first = offset / self.region_bytes;
        let end = if len == 0 { first } else { (offset + len - 1) / self.region_bytes + 1 };
        (first as u32..end as u32).map(RegionIndex)
    }
}

const REGION_BYTES_MIN: u64 = 4 << 20;
const REGIONS_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_cover_a_volume() {
        for size_bytes in
            [512, 4 << 20, (4 << 20) + 512, 1 << 40, (1 << 42) + 512, 1 << 50, i64::MAX as u64 / 512 * 512]
        {
            let regions = Regions::of(size_bytes);
            assert!(u64::from(regions.count()) <= REGIONS_MAX, "{size_bytes}");
            let last = RegionIndex(regions.count() - 1);
            assert_eq!(regions.range(last).1, size_bytes);
            assert_eq!(regions.touched(0, size_bytes).count() as u32, regions.count());
            assert_eq!(regions.touched(size_bytes - 1, 1).collect::<Vec<_>>(), [last]);
        }
        let regions = Regions::with_region_bytes(10, 4);
        assert_eq!(regions.touched(3, 2).collect::<Vec<_>>(), [RegionIndex(0), RegionIndex(1)]);
        assert_eq!(regions.touched(4, 4).collect::<Vec<_>>(), [RegionIndex(1)]);
        assert_eq!(regions.touched(4, 0).count(), 0);
        assert_eq!(regions.range(RegionIndex(2)), (8, 10));
    }

    #[test]
    fn rows_survive_their_bits() {
        for row in [Row::default(), Row { written: ViewNumber(7), intent: true }] {
            assert_eq!(Row::from_bits(row.to_bits()), row);
        }
        assert_eq!(Row { written: ViewNumber(3), intent: true }.to_bits(), 7);
    }
}
