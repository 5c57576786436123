//! A volume with three copies beside what else could be had, all on this machine: the writer and three replicas,
//! or what takes their place, talk over the loopback interface, and all copies lie on one file system.
//!
//! In each round every back end does each workload, in an order that changes from round to round. Medians over
//! the rounds are printed with the smallest and the largest, and so are ratios within a round.
//!
//! | variable | default | meaning |
//! | --- | --- | --- |
//! | `ROUNDS` | 5 | rounds |
//! | `SECONDS` | 1 | length of each measurement |
//! | `SIZE_MIB` | 512 | size of each disk |
//! | `DIR` | the build's own temporary folder | where to put the disks |
//! | `WORKLOADS` | all | some of them: parts of their ids, with commas between |
//! | `BACKENDS` | the usual four | some of all: parts of their ids, with commas between; `write-through` and `sleeping` are more |
//! | `OUT` | `benchmarks` in the target folder | where to put `replication.json` |

mod backend;
#[path = "../harness/mod.rs"]
mod harness;
mod quorum;
mod report;

use std::path::{Path, PathBuf};

use backend::{Backend, KINDS};
use harness::Outcome;
use harness::load::Sample;
use harness::rounds::order;
use harness::scratch::{self, Scratch};
use harness::setting::{chosen, number, text};
use harness::workload::Workload;
use report::Report;

fn main() {
    if let Err(error) = run() {
        eprintln!("replication: {error}");
        std::process::exit(1);
    }
}

fn run() -> Outcome<()> {
    let rounds = number("ROUNDS", 5.0, 1.0, 1000.0)? as usize;
    let seconds = number("SECONDS", 1.0, 0.05, 3600.0)?;
    let size = (number("SIZE_MIB", 512.0, 16.0, 1024.0 * 1024.0)? as u64) << 20;
    let place = text("DIR")?.map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned(), PathBuf::from);
    let workloads = chosen("WORKLOADS", WORKLOADS.to_vec(), |workload| workload.id)?;
    let kinds = match text("BACKENDS")? {
        Some(_) => chosen("BACKENDS", KINDS.to_vec(), |kind| kind.id)?,
        None => KINDS.into_iter().filter(|kind| kind.usual).collect(),
    };
    scratch::remove_on_signals()?;
    let scratch = Scratch::create(&place, kinds.len() as u64 * 3 * size)?;
    let backends = kinds.into_iter().map(|kind| Backend::start(kind, &scratch, size)).collect::<Outcome<Vec<_>>>()?;
    let mut samples: Vec<Vec<Vec<Sample>>> = vec![vec![Vec::new(); backends.len()]; workloads.len()];
    for round in 0..rounds {
        eprintln!("  round {} of {rounds}", round + 1);
        for (workload, samples) in workloads.iter().zip(&mut samples) {
            for index in order(backends.len(), round) {
                samples[index].push(backends[index].run(workload, seconds)?);
                scratch.sync()?;
            }
        }
    }
    let (workloads, backends, samples) = (&workloads, &backends, &samples);
    let report = Report { scratch: &scratch, rounds, seconds, size, workloads, backends, samples };
    report::print(&report);
    report::write(&report)
}

const WORKLOADS: [Workload; 3] = [
    small("randwrite-1", "random write, 4 KiB, depth 1", 1),
    small("randwrite-32", "random write, 4 KiB, depth 32", 32),
    Workload {
        id: "seqwrite-16",
        name: "sequential write, 128 KiB, depth 16",
        write: true,
        random: false,
        bytes: 128 << 10,
        depth: 16,
        queues: 1,
    },
];

const fn small(id: &'static str, name: &'static str, depth: usize) -> Workload {
    Workload { id, name, write: true, random: true, bytes: 4096, depth, queues: 1 }
}
