//! The order in which back ends are measured.

/// The order of a round: another begins each time, and nobody follows the same one twice in a row.
pub fn order(count: usize, round: usize) -> impl Iterator<Item = usize> {
    let steps: Vec<usize> = (1..=count).filter(|step| common_divisor(*step, count) == 1).collect();
    let step = steps[round % steps.len()];
    (0..count).map(move |turn| (turn * step + round) % count)
}

fn common_divisor(one: usize, other: usize) -> usize {
    if other == 0 { one } else { common_divisor(other, one % other) }
}
