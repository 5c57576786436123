//! How fast sealblk could be if disk and front end cost nothing.
//!
//! The whole back end runs in this process, from the vhost-user socket to the cipher, over an
//! engine that stores nothing and completes at once. A [`driver`] of our own drives the ring
//! from another core: it never sleeps, and kicks only when the device asks. What is left is what
//! sealblk itself spends on a request: the ring, the parser, the lane and the cipher.
//!
//! Environment: `ROUNDS` (3), `SECONDS` each (1), `DIR` for the volume's folder (the build's own
//! temporary folder), in which nothing is stored; `OUT` for `ceiling.json` (`benchmarks` in the target
//! folder).

mod driver;
#[path = "../harness/mod.rs"]
mod harness;
// A part of it is used.
#[path = "../../integration/support/mod.rs"]
mod support;

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::thread::CpuSet;
use sealblk::crypto::xts::{Xts, XtsKey};
use sealblk::device::Disk;
use sealblk::io::Engines;
use sealblk::io::file::BlockFile;
use sealblk::io::patience::Patience;
use sealblk::store::{Access, SectorSize};
use sealblk::vhost::server;
use sealblk::vhost::socket::Socket;
use sealblk::volume::attachment::Attachment;
use sealblk::volume::{Creation, Volume};
use serde_json::json;

use driver::Driver;
use harness::Outcome;
use harness::machine;
use harness::nowhere::{Nowhere, Trace};
use harness::scratch::{self, Scratch};
use harness::setting;
use harness::statistics::Spread;

fn main() {
    if let Err(error) = run() {
        eprintln!("ceiling: {error}");
        std::process::exit(1);
    }
}

fn run() -> Outcome<()> {
    let rounds = setting::number("ROUNDS", 3.0, 1.0, 1000.0)? as usize;
    // The front end ends a connection after twenty seconds.
    let seconds = setting::number("SECONDS", 1.0, 0.05, 15.0)?;
    let place = setting::text("DIR")?.map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
    let [back, front] = two_cores()?;
    scratch::remove_on_signals()?;
    let scratch = Scratch::create(&place, 1 << 20)?;
    println!(
        "\nCeiling: nothing stored, polling front end, a core each: {rounds} rounds of {seconds} s; {}, Linux {}",
        machine::processor(),
        machine::kernel(),
    );
    let encrypted = Server::start(&scratch.path().join("encrypted"), true, back)?;
    let plain = Server::start(&scratch.path().join("plain"), false, back)?;
    rustix::thread::sched_setaffinity(None, &front)?;
    for server in [&encrypted, &plain] {
        server.prove()?;
    }
    let mut results = Vec::new();
    for workload in &WORKLOADS {
        for server in [&encrypted, &plain] {
            let mut samples = Vec::new();
            for _ in 0..rounds {
                samples.push(server.measure(workload, Duration::from_secs_f64(seconds))?);
            }
            let rate = Spread::of(samples.iter().map(|sample| sample.operations));
            let bytes = Spread::of(samples.iter().map(|sample| sample.operations * workload.bytes as f64));
            let cpu = Spread::of(samples.iter().map(|sample| sample.cpu_ns));
            results.push(json!({
                "workload": workload.name,
                "encrypted": server.cipher.is_some(),
                "operations_per_second": rate.json(),
                "bytes_per_second": bytes.json(),
                "back_end_cpu_ns": cpu.json(),
            }));
            let goal = match server.cipher {
                Some(_) => {
                    let reached = if rate.median >= workload.goal { "reached" } else { "NOT REACHED" };
                    format!("  {:5.2} GB/s  {:.0} kop/s wanted: {reached}", bytes.median / 1e9, workload.goal / 1e3)
                }
                // No byte is touched.
                None => String::new(),
            };
            println!(
                "  {:32} {:13} {:8.1} kop/s ({:.1}..{:.1})  CPU of the back end {:7.0} ns each{goal}",
                workload.name,
                server.name(),
                rate.median / 1e3,
                rate.min / 1e3,
                rate.max / 1e3,
                cpu.median,
            );
        }
    }
    encrypted.stop()?;
    plain.stop()?;
    let json = json!({ "processor": machine::processor(), "kernel": machine::kernel(), "results": results });
    println!();
    setting::write_result("ceiling.json", &(serde_json::to_string_pretty(&json)? + "\n"))
}

/// Requests of one kind.
pub struct Workload {
    name: &'static str,
    write: bool,
    bytes: usize,
    depth: usize,
    /// What it should reach with encryption, requests a second.
    goal: f64,
}

const SMALL_GOAL: f64 = 700e3;
const LARGE_GOAL: f64 = 6e9 / (128 << 10) as f64;
const WORKLOADS: [Workload; 4] = [
    Workload { name: "random read, 4 KiB, depth 32", write: false, bytes: 4096, depth: 32, goal: SMALL_GOAL },
    Workload { name: "random write, 4 KiB, depth 32", write: true, bytes: 4096, depth: 32, goal: SMALL_GOAL },
    Workload { name: "random read, 128 KiB, depth 16", write: false, bytes: 128 << 10, depth: 16, goal: LARGE_GOAL },
    Workload { name: "random write, 128 KiB, depth 16", write: true, bytes: 128 << 10, depth: 16, goal: LARGE_GOAL },
];

struct Sample {
    operations: f64,
    cpu_ns: f64,
}

/// A back end that stores nothing, its worker on a core of its own.
struct Server {
    cipher: Option<Xts>,
    socket: PathBuf,
    trace: Arc<Trace>,
    stop: UnixStream,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Server {
    fn start(folder: &Path, encrypted: bool, core: CpuSet) -> Outcome<Self> {
        let key = encrypted.then(XtsKey::generate).transpose()?;
        let creation = Creation { size_bytes: SIZE, sector_size: SectorSize::Bytes512, device: None };
        Volume::create(folder, creation, key.as_ref())?;
        let volume = Volume::open(folder, key.as_ref(), Access::Exclusive)?;
        let cipher = key.as_ref().map(Xts::new).transpose()?;
        let file = Arc::new(BlockFile::open(volume.data_path(), false, UNIT)?);
        let trace = Arc::new(Trace::default());
        let make = {
            let trace = trace.clone();
            // An engine is made by the thread that uses it: the worker.
            Box::new(move |_depth| {
                rustix::thread::sched_setaffinity(None, &core)?;
                Ok(Box::new(Nowhere::new(trace.clone())) as Box<dyn sealblk::io::Engine>)
            })
        };
        let attachment = Attachment::with_engines(volume, Engines::made_by(make, file), false);
        let disk = Arc::new(Disk::new(Arc::new(attachment), "ceiling".parse()?, 1));
        let path = folder.with_extension("sock");
        let socket = Socket::bind(&path)?;
        let (stop, stopped) = UnixStream::pair()?;
        let thread = thread::Builder::new()
            .name("server".into())
            .spawn(move || server::run(&socket, &disk, &Patience::new(POLL_TIME), stopped.as_fd()))?;
        Ok(Self { cipher, socket: path, trace, stop, thread })
    }

    fn name(&self) -> &'static str {
        if self.cipher.is_some() { "encrypted" } else { "not encrypted" }
    }

    /// Shows that the cipher is at work here: one read and one write, beside the cipher alone.
    fn prove(&self) -> Outcome<()> {
        for workload in WORKLOADS.iter().filter(|workload| workload.bytes == 4096) {
            let mut driver = Driver::connect(&self.socket, workload, SIZE);
            let (unit, before) = (7, driver.content(0));
            driver.one(0, unit * UNIT as u64)?;
            let mut expected = before;
            match (&self.cipher, workload.write) {
                (Some(xts), true) => xts.encrypt(&mut expected, UNIT, unit),
                (Some(xts), false) => xts.decrypt(&mut expected, UNIT, unit),
                (None, _) => {}
            }
            let got = if workload.write { self.trace.first_written().to_vec() } else { driver.content(0) };
            if got != expected[..got.len()] {
                return Err(format!("{}: {}: the cipher has not done its work", workload.name, self.name()).into());
            }
        }
        Ok(())
    }

    fn measure(&self, workload: &Workload, time: Duration) -> Outcome<Sample> {
        let mut driver = Driver::connect(&self.socket, workload, SIZE);
        driver.run(time / 10)?;
        let (start, cpu) = (Instant::now(), self.trace.cpu_ns()?);
        let operations = driver.run(time)? as f64;
        let (elapsed, cpu) = (start.elapsed(), self.trace.cpu_ns()? - cpu);
        Ok(Sample { operations: operations / elapsed.as_secs_f64(), cpu_ns: cpu as f64 / operations })
    }

    fn stop(self) -> Outcome<()> {
        drop(self.stop);
        Ok(self.thread.join().map_err(|_| "the server has panicked")??)
    }
}

/// A core for the back end and one for the front end.
fn two_cores() -> Outcome<[CpuSet; 2]> {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).map(|core| {
        let mut set = CpuSet::new();
        set.set(core);
        set
    });
    cores
        .next_back()
        .zip(cores.next_back())
        .map(|(back, front)| [back, front])
        .ok_or_else(|| "two cores are needed".into())
}

const SIZE: u64 = 1 << 30;
const UNIT: usize = 512;
/// Long enough for the worker never to sleep while the driver is at work.
const POLL_TIME: Duration = Duration::from_millis(1);
