//! Bytes that look random and are the same in every run.

/// `length` bytes that depend on `seed` alone. No 16 of them in a row are zero in practice, so a
/// hole is never mistaken for them.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&next(&mut state).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// The next number of a splitmix64 sequence: short, and good enough to choose offsets with.
pub fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
