//! `fio` on a file: what the kernel gives to a program that wants nothing but I/O.
//!
//! The file is that of the back ends, whose servers then have nothing to do. With io_uring and O_DIRECT on a disk; on
//! tmpfs it goes through the page cache, which tmpfs is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::harness::Outcome;
use super::harness::load::Sample;
use super::harness::scratch::Program;
use super::harness::workload::Workload;

/// Writes a new file, with bytes that nothing can compress and in the way in which they will be overwritten: direct
/// writes over pages that a cache holds are slower.
pub fn fill(file: &Path, size: u64, direct: bool, folder: &Path) -> Outcome<()> {
    let fio = Fio { file: file.to_owned(), size, direct, folder: folder.to_owned(), overhead: 0.0 };
    fio.job(&["--rw=write", "--bs=1M", "--iodepth=8", "--refill_buffers", "--fallocate=none", "--end_fsync=1"])?;
    Ok(())
}

/// `fio` with a full file.
pub struct Fio {
    file: PathBuf,
    size: u64,
    direct: bool,
    folder: PathBuf,
    /// CPU seconds that it takes to start and to report.
    overhead: f64,
}

impl Fio {
    /// On a full file, whose content is lost.
    pub fn new(file: &Path, size: u64, direct: bool, folder: &Path) -> Outcome<Self> {
        let fio = Self { file: file.to_owned(), size, direct, folder: folder.to_owned(), overhead: 0.0 };
        let overhead = (0..3).map(|_| Ok(fio.job(&["--rw=read", "--bs=4k", "--number_ios=1"])?.0));
        let least = overhead.collect::<Outcome<Vec<f64>>>()?.into_iter().fold(f64::INFINITY, f64::min);
        Ok(Self { overhead: least, ..fio })
    }

    /// How it does its I/O, for the report.
    pub fn how(&self) -> String {
        format!("ioengine=io_uring direct={}", u8::from(self.direct))
    }

    /// Does `workload` for some seconds.
    pub fn run(&self, workload: &Workload, seconds: f64) -> Outcome<Sample> {
        let pattern = match (workload.random, workload.write) {
            (true, false) => "randread",
            (true, true) => "randwrite",
            (false, false) => "read",
            (false, true) => "write",
        };
        let (cpu, result) = self.job(&[
            &format!("--rw={pattern}"),
            &format!("--bs={}", workload.bytes),
            &format!("--iodepth={}", workload.depth),
            &format!("--numjobs={}", workload.queues),
            &format!("--runtime={}ms", (seconds * 1000.0) as u64),
            "--time_based",
            "--group_reporting",
        ])?;
        let part = &result[if workload.write { "write" } else { "read" }];
        let number = |value: &Value| value.as_f64().ok_or("fio's JSON is not as fio 3 writes it");
        Ok(Sample {
            operations: number(&part["iops"])?,
            p50_us: number(&part["lat_ns"]["percentile"]["50.000000"])? / 1000.0,
            cpu_per_gib: (cpu - self.overhead).max(0.0) / (number(&part["io_bytes"])? / f64::from(1 << 30)),
        })
    }

    /// The CPU seconds of the whole process, kernel threads that io_uring starts for it included,
    /// which fio's own figure leaves out; and what fio reports.
    fn job(&self, options: &[&str]) -> Outcome<(f64, Value)> {
        let output = self.folder.join("fio.json");
        let mut command = Command::new("fio");
        command
            .args(["--name=job", "--thread", "--ioengine=io_uring", "--norandommap"])
            .args(["--lat_percentiles=1", "--clat_percentiles=0", "--output-format=json"])
            .arg(format!("--output={}", output.display()))
            .arg(format!("--filename={}", self.file.display()))
            .arg(format!("--size={}", self.size))
            .arg(format!("--direct={}", u8::from(self.direct)))
            .args(options);
        let program = Program::start("fio-process", command, &self.folder, "fio")?;
        let cpu = program.finish()?;
        let report: Value = serde_json::from_str(&fs::read_to_string(&output)?)?;
        Ok((cpu, report["jobs"][0].clone()))
    }
}
