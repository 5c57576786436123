//! How fast this machine encrypts: what `sealblk benchmark` prints.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::xts::{Xts, XtsError, XtsKey, XtsKeyError};

pub use super::xts::Direction as Operation;

/// The throughput of one operation on one core.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measurement {
    /// Bytes in a data unit: 512 or 4096.
    pub unit: usize,
    /// Encrypt or decrypt.
    pub operation: Operation,
    /// Bytes a second, in 64 KiB batches.
    pub bytes_per_second: f64,
}

/// Nothing can be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchmarkError {
    /// No key to measure with.
    #[error(transparent)]
    Key(#[from] XtsKeyError),
    /// No cipher under it.
    #[error(transparent)]
    Cipher(#[from] XtsError),
}

/// Measures the fastest implementation for about a second each: 512 and 4096-byte units, encrypt
/// and decrypt, 64 KiB batches in place, on the calling thread.
///
/// # Errors
///
/// When the kernel gives no random key, or no locked memory for it.
pub fn run() -> Result<Vec<Measurement>, BenchmarkError> {
    measure(WARM_UP, MEASURED)
}

fn measure(warm_up: Duration, measured: Duration) -> Result<Vec<Measurement>, BenchmarkError> {
    let key = XtsKey::generate()?;
    let xts = Xts::new(&key)?;
    let mut batch = vec![0; BATCH_BYTES];
    let mut measurements = Vec::new();
    for unit in [512, 4096] {
        for operation in [Operation::Encrypt, Operation::Decrypt] {
            let mut throughput = |limit| {
                batches_per_second(limit, || {
                    xts.apply_in_place(operation, black_box(&mut batch), unit, 0);
                })
            };
            throughput(warm_up);
            measurements.push(Measurement {
                unit,
                operation,
                bytes_per_second: throughput(measured) * BATCH_BYTES as f64,
            });
        }
    }
    Ok(measurements)
}

fn batches_per_second(limit: Duration, mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut batches = 0u64;
    loop {
        // Reading the clock costs little beside this many batches.
        for _ in 0..BATCHES_BETWEEN_LOOKS {
            run();
        }
        batches += BATCHES_BETWEEN_LOOKS;
        let elapsed = start.elapsed();
        if elapsed >= limit {
            return batches as f64 / elapsed.as_secs_f64().max(f64::EPSILON);
        }
    }
}

const BATCH_BYTES: usize = 64 * 1024;
const BATCHES_BETWEEN_LOOKS: u64 = 16;
const WARM_UP: Duration = Duration::from_millis(200);
const MEASURED: Duration = Duration::from_millis(800);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_both_operations_at_both_unit_sizes() {
        let brief = Duration::from_millis(2);
        let measurements = measure(brief, brief).unwrap();
        let kinds: Vec<_> =
            measurements.iter().map(|measurement| (measurement.unit, measurement.operation.to_string())).collect();
        let named = |unit, operation: &str| (unit, operation.to_string());
        assert_eq!(
            kinds,
            [named(512, "encrypt"), named(512, "decrypt"), named(4096, "encrypt"), named(4096, "decrypt"),]
        );
        for measurement in measurements {
            let rate = measurement.bytes_per_second;
            assert!(rate.is_finite() && rate > 0.0, "{measurement:?}");
        }
    }
}
