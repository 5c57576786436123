//! What came of it: a table for people, JSON for programs, a picture for documents.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::backend::{Backend, Kind};
use super::harness::Outcome;
use super::harness::load::Sample;
use super::harness::machine;
use super::harness::scratch::Scratch;
use super::harness::setting;
use super::harness::statistics::Spread;
use super::harness::workload::Workload;
use super::picture;
use super::setting::Setting;

/// The results of one place.
pub struct Report {
    /// Where it was.
    pub place: PathBuf,
    /// Whether that is tmpfs.
    pub tmpfs: bool,
    /// What each back end did, in the order of `workloads`.
    pub backends: Vec<Column>,
    /// What was asked.
    pub workloads: Vec<Workload>,
    rounds: usize,
    seconds: f64,
    size: u64,
}

/// The results of one back end.
pub struct Column {
    /// Which.
    pub kind: Kind,
    how: String,
    /// Samples by workload and round.
    pub samples: Vec<Vec<Sample>>,
}

impl Report {
    /// `samples` are by workload, back end and round.
    pub fn new(setting: &Setting, scratch: &Scratch, backends: &[Backend], samples: Vec<Vec<Vec<Sample>>>) -> Self {
        let backends = backends.iter().enumerate().map(|(index, backend)| Column {
            kind: backend.kind.clone(),
            how: backend.how.clone(),
            samples: samples.iter().map(|by_backend| by_backend[index].clone()).collect(),
        });
        Self {
            place: scratch.place().to_owned(),
            tmpfs: scratch.tmpfs,
            backends: backends.collect(),
            workloads: setting.workloads.clone(),
            rounds: setting.rounds,
            seconds: setting.seconds,
            size: setting.size,
        }
    }

    /// What kind of place it was.
    pub fn medium(&self) -> &'static str {
        if self.tmpfs { "tmpfs" } else { "disk" }
    }

    /// How often what the first back end does is what `other` does, within a round.
    pub fn ratio(&self, workload: usize, other: &Column) -> Spread {
        let own = &self.backends[0].samples[workload];
        Spread::of(own.iter().zip(&other.samples[workload]).map(|(own, other)| own.operations / other.operations))
    }

    /// The table.
    pub fn print(&self) {
        let Self { rounds, seconds, size, .. } = self;
        println!(
            "\nData path on {} ({}): {rounds} rounds of {seconds} s, disks of {} MiB, 512-byte sectors; {}, Linux {}",
            self.medium(),
            self.place.display(),
            size >> 20,
            machine::processor(),
            machine::kernel(),
        );
        for Column { kind, how, .. } in self.backends.iter().filter(|column| !column.how.is_empty()) {
            println!("  {}: {how}", kind.name);
        }
        let first = self.backends[0].kind.name;
        for (index, workload) in self.workloads.iter().enumerate() {
            println!("\n{} ({})", workload.name, workload.id);
            for column in &self.backends {
                let samples = &column.samples[index];
                let throughput = Spread::of(samples.iter().map(|sample| in_unit(workload, sample.operations)));
                let ratio = self.ratio(index, column);
                let latency = Spread::of(samples.iter().map(|sample| sample.p50_us));
                let cpu = Spread::of(samples.iter().map(|sample| sample.cpu_per_gib));
                println!(
                    "  {:22} {:7.1} {} ({:.1}..{:.1})  p50 {:6.1} us  {:5.2} CPU s/GiB  {first}/this {:.2} ({:.2}..{:.2})",
                    column.kind.name,
                    throughput.median,
                    unit(workload),
                    throughput.min,
                    throughput.max,
                    latency.median,
                    cpu.median,
                    ratio.median,
                    ratio.min,
                    ratio.max,
                );
            }
        }
    }

    fn json(&self) -> Value {
        let workloads = self.workloads.iter().enumerate().map(|(index, workload)| {
            let backends = self.backends.iter().map(|column| {
                let samples = &column.samples[index];
                json!({
                    "id": column.kind.id,
                    "operations_per_second": spread(samples.iter().map(|sample| sample.operations)),
                    "p50_us": spread(samples.iter().map(|sample| sample.p50_us)),
                    "cpu_seconds_per_gib": spread(samples.iter().map(|sample| sample.cpu_per_gib)),
                    "first_over_this": self.ratio(index, column).json(),
                })
            });
            json!({ "id": workload.id, "name": workload.name, "backends": backends.collect::<Vec<_>>() })
        });
        let backends = self.backends.iter().map(|column| {
            json!({
                "id": column.kind.id,
                "name": column.kind.name,
                "encrypted": column.kind.is_encrypted(),
                "how": column.how,
            })
        });
        json!({
            "medium": self.medium(),
            "place": self.place.display().to_string(),
            "rounds": self.rounds,
            "seconds": self.seconds,
            "size_bytes": self.size,
            "backends": backends.collect::<Vec<_>>(),
            "workloads": workloads.collect::<Vec<_>>(),
        })
    }
}

/// Writes the files and says where.
pub fn write(reports: &[Report]) -> Outcome<()> {
    let json = json!({
        "processor": machine::processor(),
        "kernel": machine::kernel(),
        "places": reports.iter().map(Report::json).collect::<Vec<_>>(),
    });
    println!();
    setting::write_result("datapath.json", &(serde_json::to_string_pretty(&json)? + "\n"))?;
    setting::write_result("datapath.svg", &picture::draw(reports))
}

/// Operations a second in the unit that suits the workload.
pub fn in_unit(workload: &Workload, operations: f64) -> f64 {
    if workload.in_bytes() { operations * workload.bytes as f64 / f64::from(1 << 20) } else { operations / 1000.0 }
}

/// That unit.
pub fn unit(workload: &Workload) -> &'static str {
    if workload.in_bytes() { "MiB/s" } else { "kop/s" }
}

fn spread(values: impl Iterator<Item = f64>) -> Value {
    Spread::of(values).json()
}
