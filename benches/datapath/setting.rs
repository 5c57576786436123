//! What to measure, from the environment:
//!
//! | variable | default | meaning |
//! | --- | --- | --- |
//! | `ROUNDS` | 5 | rounds |
//! | `SECONDS` | 0.5 | length of each measurement |
//! | `SIZE_MIB` | 1024 | size of each disk |
//! | `DIR` | the build's own temporary folder, then `/dev/shm` | where to put the disks, one place |
//! | `WORKLOADS` | all | some of them: parts of their ids, with commas between |
//! | `BACKENDS` | all | some of them: parts of their ids, with commas between |
//! | `SEALBLK_ARGS` | none | further arguments for `sealblk serve` |
//! | `BASELINE` | none | other `sealblk` binaries, with commas between, to be measured beside this one |
//! | `OUT` | `benchmarks` in the target folder | where to put `datapath.json` and `datapath.svg` |

use std::path::{Path, PathBuf};

use super::backend::{self, Kind};
use super::harness::Outcome;
use super::harness::setting::{chosen, number, text};
use super::harness::workload::Workload;
use super::workload::WORKLOADS;

/// What to measure.
pub struct Setting {
    /// How often.
    pub rounds: usize,
    /// How long each time.
    pub seconds: f64,
    /// Size of each disk in bytes.
    pub size: u64,
    /// Folders to do it in.
    pub places: Vec<PathBuf>,
    /// What to ask.
    pub workloads: Vec<Workload>,
    /// Whom to ask.
    pub backends: Vec<Kind>,
    /// Further arguments for `sealblk serve`.
    pub sealblk_args: Vec<String>,
}

impl Setting {
    /// Reads and checks the environment.
    pub fn from_environment() -> Outcome<Self> {
        let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let mut kinds = backend::KINDS.to_vec();
        if let Some(binaries) = text("BASELINE")? {
            for (index, binary) in binaries.split(',').enumerate() {
                if !Path::new(binary).is_file() {
                    return Err(format!("BASELINE={binary}: there is no such program").into());
                }
                kinds.insert(1 + index, Kind::baseline(index, Path::new(binary)));
            }
        }
        Ok(Self {
            rounds: number("ROUNDS", 5.0, 1.0, 1000.0)? as usize,
            seconds: number("SECONDS", 0.5, 0.05, 3600.0)?,
            size: (number("SIZE_MIB", 1024.0, 16.0, 1024.0 * 1024.0)? as u64) << 20,
            places: match text("DIR")? {
                Some(dir) => vec![dir.into()],
                None => vec![tmp.to_owned(), "/dev/shm".into()],
            },
            workloads: chosen("WORKLOADS", WORKLOADS.to_vec(), |workload| workload.id)?,
            backends: chosen("BACKENDS", kinds, |kind| kind.id)?,
            sealblk_args: text("SEALBLK_ARGS")?.unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
        })
    }

    /// What all disks take, with what stands beside the data.
    pub fn bytes_needed(&self) -> u64 {
        let is_shared = self.backends.iter().any(Kind::shares_the_disk);
        let others = self.backends.iter().filter(|kind| !kind.shares_the_disk()).count() as u64;
        (u64::from(is_shared) + others) * self.size + self.backends.len() as u64 * (16 << 20)
    }
}
