//! `sealblk benchmark`: how fast this machine encrypts.

use std::fmt::Write;

use clap::Args;
use serde::Serialize;

use super::{CliError, output};
use crate::crypto::benchmark::{self, Measurement, Operation};

#[derive(Args)]
pub struct BenchmarkArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &BenchmarkArgs) -> Result<(), CliError> {
    let measurements = benchmark::run()?;
    let text = if args.json { as_json(&measurements) } else { for_people(&measurements) };
    output::print(&text)
}

#[derive(Serialize)]
struct Report {
    results: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    unit: usize,
    operation: &'static str,
    bytes_per_second: u64,
}

fn as_json(measurements: &[Measurement]) -> String {
    let line = |measurement: &Measurement| Line {
        unit: measurement.unit,
        operation: name(measurement.operation),
        bytes_per_second: measurement.bytes_per_second as u64,
    };
    let report = Report { results: measurements.iter().map(line).collect() };
    serde_json::to_string(&report).expect("a record of strings and numbers") + "\n"
}

fn for_people(measurements: &[Measurement]) -> String {
    let mut text = String::from("# AES-256-XTS in memory, batches of 64 KiB, one core\n");
    for measurement in measurements {
        let _ = writeln!(
            text,
            "{:4}-byte units  {}  {:8.1} MiB/s",
            measurement.unit,
            name(measurement.operation),
            measurement.bytes_per_second / f64::from(1 << 20),
        );
    }
    text
}

fn name(operation: Operation) -> &'static str {
    match operation {
        Operation::Encrypt => "encrypt",
        Operation::Decrypt => "decrypt",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEASUREMENTS: [Measurement; 2] = [
        Measurement { unit: 512, operation: Operation::Encrypt, bytes_per_second: 1048576.9 },
        Measurement { unit: 4096, operation: Operation::Decrypt, bytes_per_second: 2097152.0 },
    ];

    #[test]
    fn the_json_is_pinned() {
        let expected = concat!(
            r#"{"results":[{"unit":512,"operation":"encrypt","bytes_per_second":1048576},"#,
            r#"{"unit":4096,"operation":"decrypt","bytes_per_second":2097152}]}"#,
            "\n"
        );
        assert_eq!(as_json(&MEASUREMENTS), expected);
    }

    #[test]
    fn the_table_has_a_line_a_measurement() {
        let text = for_people(&MEASUREMENTS);
        assert!(text.contains(" 512-byte units  encrypt       1.0 MiB/s\n"), "{text}");
        assert!(text.contains("4096-byte units  decrypt       2.0 MiB/s\n"), "{text}");
    }
}
