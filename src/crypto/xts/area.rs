//! The memory that one call of the cipher works on.

/// Whole data units in memory, before and after the cipher.
///
/// `src` is readable and `dst` writable for `units * unit_size` bytes; they are the same or do not
/// overlap; nobody holds a Rust reference into what `dst` points at. Whoever hands an area to an
/// implementation promises it. `unit_size` is a multiple of 16 bytes and no unit is empty.
pub(super) struct Area {
    pub(super) src: *const u8,
    pub(super) dst: *mut u8,
    /// Bytes in a unit.
    pub(super) unit_size: usize,
    pub(super) units: usize,
    /// The number of the first unit. One that is past 2^64 is not an error: the tweak of a unit is
    /// made of a 128-bit number.
    pub(super) first_unit: u128,
}

impl Area {
    /// The next part: up to `units_max` units from the front, which the area then lacks. None
    /// when nothing is left.
    #[inline]
    pub(super) fn split_off(&mut self, units_max: usize) -> Option<Area> {
        let units = self.units.min(units_max);
        if units == 0 {
            return None;
        }
        let part = Area { units, ..*self };
        // At most one past the end of the memory. Wrapping, because nobody has promised us here
        // what the pointers are.
        self.src = self.src.wrapping_add(units * self.unit_size);
        self.dst = self.dst.wrapping_add(units * self.unit_size);
        self.units -= units;
        self.first_unit += units as u128;
        Some(part)
    }
}
