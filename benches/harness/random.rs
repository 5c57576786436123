//! Numbers that no cache, disk or compressor can guess, the same in each run.

/// Marsaglia's xorshift: fast, and random enough for places and fillings.
pub struct Random(u64);

impl Random {
    /// Another sequence for each `seed`.
    pub fn new(seed: u64) -> Self {
        Self(0x9e37_79b9_7f4a_7c15 ^ (seed + 1).wrapping_mul(0xd134_2543_de82_ef95))
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
