//! What came of it: a table for people, JSON for programs.

use serde_json::json;

use super::backend::Backend;
use super::harness::load::Sample;
use super::harness::scratch::Scratch;
use super::harness::statistics::Spread;
use super::harness::workload::Workload;
use super::harness::{Outcome, machine, setting};

/// What was measured, and how.
pub struct Report<'a> {
    /// Where.
    pub scratch: &'a Scratch,
    /// How often.
    pub rounds: usize,
    /// How long each time.
    pub seconds: f64,
    /// Size of each disk in bytes.
    pub size: u64,
    /// What was asked.
    pub workloads: &'a [Workload],
    /// Whom.
    pub backends: &'a [Backend],
    /// By workload, back end and round.
    pub samples: &'a [Vec<Vec<Sample>>],
}

/// The table.
pub fn print(report: &Report<'_>) {
    let Report { scratch, rounds, seconds, size, workloads, backends, samples } = *report;
    println!(
        "\nReplication on {} ({}): {rounds} rounds of {seconds} s, disks of {} MiB; {}, Linux {}",
        if scratch.tmpfs { "tmpfs" } else { "disk" },
        scratch.place().display(),
        size >> 20,
        machine::processor(),
        machine::kernel(),
    );
    for (workload, samples) in workloads.iter().zip(samples) {
        println!("\n{} ({})", workload.name, workload.id);
        for (backend, own) in backends.iter().zip(samples) {
            let throughput = Spread::of(own.iter().map(|sample| in_unit(workload, sample.operations)));
            let latency = Spread::of(own.iter().map(|sample| sample.p50_us));
            let cpu = Spread::of(own.iter().map(|sample| sample.cpu_per_gib));
            let more = ratio(samples, own, |sample| sample.operations);
            let slower = ratio(samples, own, |sample| sample.p50_us);
            println!(
                "  {:27} {:7.1} {} ({:.1}..{:.1})  p50 {:7.1} us ({:.1}..{:.1})  {:5.2} CPU s/GiB  \
                 first/this: speed {:.2} ({:.2}..{:.2}), p50 {:.2} ({:.2}..{:.2})",
                backend.kind.name,
                throughput.median,
                if workload.in_bytes() { "MiB/s" } else { "kop/s" },
                throughput.min,
                throughput.max,
                latency.median,
                latency.min,
                latency.max,
                cpu.median,
                more.median,
                more.min,
                more.max,
                slower.median,
                slower.min,
                slower.max,
            );
        }
    }
}

/// Writes the JSON and says where.
pub fn write(report: &Report<'_>) -> Outcome<()> {
    let Report { scratch, rounds, seconds, size, workloads, backends, samples } = *report;
    let workloads = workloads.iter().zip(samples).map(|(workload, samples)| {
        let backends = backends.iter().zip(samples).map(|(backend, own)| {
            json!({
                "id": backend.kind.id,
                "operations_per_second": Spread::of(own.iter().map(|sample| sample.operations)).json(),
                "p50_us": Spread::of(own.iter().map(|sample| sample.p50_us)).json(),
                "cpu_seconds_per_gib": Spread::of(own.iter().map(|sample| sample.cpu_per_gib)).json(),
                "first_over_this": ratio(samples, own, |sample| sample.operations).json(),
                "first_p50_over_this": ratio(samples, own, |sample| sample.p50_us).json(),
            })
        });
        json!({ "id": workload.id, "name": workload.name, "backends": backends.collect::<Vec<_>>() })
    });
    let json = json!({
        "processor": machine::processor(),
        "kernel": machine::kernel(),
        "medium": if scratch.tmpfs { "tmpfs" } else { "disk" },
        "rounds": rounds,
        "seconds": seconds,
        "size_bytes": size,
        "workloads": workloads.collect::<Vec<_>>(),
    });
    println!();
    setting::write_result("replication.json", &(serde_json::to_string_pretty(&json)? + "\n"))
}

/// What the first back end has to another, within a round.
fn ratio(samples: &[Vec<Sample>], other: &[Sample], value: fn(&Sample) -> f64) -> Spread {
    Spread::of(samples[0].iter().zip(other).map(|(first, other)| value(first) / value(other)))
}

fn in_unit(workload: &Workload, operations: f64) -> f64 {
    if workload.in_bytes() { operations * workload.bytes as f64 / f64::from(1 << 20) } else { operations / 1000.0 }
}
