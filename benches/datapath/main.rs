//! The data path beside its peers, as a front end in another process sees it.
//!
//! The back ends are `sealblk serve` with and without encryption, `qemu-storage-daemon` with a LUKS (aes-256, xts,
//! plain64) and a raw image, and `fio`, which has no virtual disk between itself and the kernel. All but LUKS, which
//! has a file as large beside it, work on the same file. In
//! each round every back end does each workload, in an order that changes from round to round. The
//! machine drifts, so what counts is the ratio within a round; medians over the rounds are printed
//! with the smallest and the largest.
//!
//! Unless told otherwise it runs on a disk and then on tmpfs, which shows the cost of CPU alone.
//! [`setting`] lists the environment variables.

mod backend;
mod fio;
#[path = "../harness/mod.rs"]
mod harness;
mod picture;
mod report;
mod setting;
mod workload;

use backend::Backend;
use harness::Outcome;
use harness::load::Sample;
use harness::rounds::order;
use harness::scratch::{self, Scratch};
use report::Report;
use setting::Setting;

fn main() {
    if let Err(error) = run() {
        eprintln!("datapath: {error}");
        std::process::exit(1);
    }
}

fn run() -> Outcome<()> {
    let setting = Setting::from_environment()?;
    scratch::remove_on_signals()?;
    let mut reports = Vec::new();
    for place in &setting.places {
        let scratch = Scratch::create(place, setting.bytes_needed())?;
        let backends = Backend::start_all(&scratch, &setting)?;
        let report = Report::new(&setting, &scratch, &backends, measure(&setting, &scratch, &backends)?);
        report.print();
        reports.push(report);
    }
    report::write(&reports)
}

/// Samples by workload, back end and round.
fn measure(setting: &Setting, scratch: &Scratch, backends: &[Backend]) -> Outcome<Vec<Vec<Vec<Sample>>>> {
    let mut samples = vec![vec![Vec::with_capacity(setting.rounds); backends.len()]; setting.workloads.len()];
    for round in 0..setting.rounds {
        eprintln!("  round {} of {}", round + 1, setting.rounds);
        for (workload, samples) in setting.workloads.iter().zip(&mut samples) {
            for index in order(backends.len(), round) {
                samples[index].push(backends[index].run(workload, setting.seconds)?);
                if workload.write {
                    // What it left in the caches below would be written while the next is measured.
                    scratch.sync()?;
                }
            }
        }
    }
    Ok(samples)
}
