//! What volumes cost that do nothing, or little: CPU, memory and time to attach, of one and of many.
//!
//! Four stories, each a table in Markdown:
//!
//! 1. a volume with a front end that did I/O and then nothing uses no CPU,
//! 2. and little memory beyond what holds data;
//! 3. at 1,000 requests a second, watching the queue (`--poll-us`) costs little more than sleeping;
//! 4. the 200th volume costs what the first one costs.
//!
//! A target that is missed fails the run, with a line that names it. Reading another process's
//! memory takes root. SIGINT ends everything in order; the servers end with this process in any case.
//!
//! Environment: `IDLE_SECONDS` (60), `PACED_SECONDS` a round (5), `VOLUMES` (200), `DIR` for the
//! volumes (the build's own temporary folder).

#[path = "../harness/mod.rs"]
mod harness;
mod process;
mod served;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::statistics::Spread;
use harness::{Outcome, machine, setting};
use process::{Memory, Usage};
use served::{FrontEnd, Home, Server};

fn main() -> ExitCode {
    let run = Bench::new().and_then(|mut bench| match bench.run() {
        Ok(()) => Ok(bench.misses),
        // Whatever the signal interrupted failed because of it.
        Err(_) if bench.interrupted.load(Ordering::Relaxed) => Err("interrupted".into()),
        Err(error) => Err(error),
    });
    match run {
        Ok(misses) if misses.is_empty() => return ExitCode::SUCCESS,
        Ok(misses) => misses.iter().for_each(|miss| eprintln!("volumes: target missed: {miss}")),
        Err(error) => eprintln!("volumes: {error}"),
    }
    ExitCode::FAILURE
}

struct Bench {
    home: Home,
    idle: Duration,
    paced: Duration,
    volumes: usize,
    interrupted: Arc<AtomicBool>,
    misses: Vec<String>,
}

impl Bench {
    fn new() -> Outcome<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, interrupted.clone())?;
        }
        let seconds = |name: &str, default: f64| setting::number(name, default, 1.0, 3600.0);
        let dir = setting::text("DIR")?.map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
        Ok(Self {
            home: Home::new(&dir)?,
            idle: Duration::from_secs_f64(seconds("IDLE_SECONDS", 60.0)?),
            paced: Duration::from_secs_f64(seconds("PACED_SECONDS", 5.0)?),
            volumes: setting::number("VOLUMES", 200.0, 1.0, 1000.0)? as usize,
            interrupted,
            misses: Vec::new(),
        })
    }

    fn run(&mut self) -> Outcome<()> {
        let cores = thread::available_parallelism()?;
        println!("{cores} cores ({}), Linux {}", machine::processor(), machine::kernel());
        self.idle_volumes()?;
        self.paced_requests()?;
        self.many_volumes()
    }

    /// Stories 1 and 2. All settings at once: they are not supposed to disturb each other.
    fn idle_volumes(&mut self) -> Outcome<()> {
        let mut running = Vec::new();
        for (index, (engine, poll_us)) in IDLE_SETTINGS.into_iter().enumerate() {
            let volume = self.home.volume(&format!("idle-{index}"), VOLUME_BYTES)?;
            let server = Server::start(&volume, &["--engine", engine, "--poll-us", &poll_us.to_string()])?;
            let mut front_end = FrontEnd::connect(&server, 16 << 20)?;
            let fresh = Memory::of(server.pid())?;
            // Small requests, as a guest's file system makes them; many at once.
            front_end.write_all(VOLUME_BYTES, 4096)?;
            front_end.random_reads(Duration::from_secs(1))?;
            let small = Memory::of(server.pid())?;
            // And large ones, which fill the buffers.
            front_end.write_all(VOLUME_BYTES, 1 << 20)?;
            running.push((server, front_end, fresh, small));
            self.pause(Duration::ZERO)?;
        }
        self.pause(Duration::from_secs(1))?;
        let before = running.iter().map(|(server, ..)| Usage::of(server.pid())).collect::<Outcome<Vec<_>>>()?;
        self.pause(self.idle)?;

        println!("\nIdle for {} s, after I/O:\n", self.idle.as_secs());
        println!("| engine | `--poll-us` | CPU | ticks | context switches | threads |");
        println!("| --- | --- | --- | --- | --- | --- |");
        for (((engine, poll_us), (server, ..)), before) in IDLE_SETTINGS.iter().zip(&running).zip(before) {
            let used = Usage::of(server.pid())?.since(&before);
            println!(
                "| {engine} | {poll_us} | {:.3} ms | {} | {} | {} |",
                used.cpu.as_secs_f64() * 1e3,
                used.ticks,
                used.switches,
                used.threads,
            );
            if used.cpu > self.idle.mul_f64(IDLE_CPU_MAX) {
                self.misses.push(format!("{engine}, --poll-us {poll_us}: an idle volume used {:?} of CPU", used.cpu));
            }
        }

        println!("\nMemory in KiB, the guest's own left out:\n");
        println!("| engine | when | resident | proportional | anonymous | private, dirty | locked |");
        println!("| --- | --- | --- | --- | --- | --- | --- |");
        for ((engine, poll_us), (server, _, fresh, small)) in IDLE_SETTINGS.iter().zip(&running) {
            if *poll_us > 0 {
                continue;
            }
            let large = Memory::of(server.pid())?;
            for (when, memory) in [("connected", fresh), ("after small requests", small), ("after large ones", &large)]
            {
                println!(
                    "| {engine} | {when} | {} | {} | {} | {} | {} |",
                    memory.resident, memory.proportional, memory.anonymous, memory.private_dirty, memory.locked
                );
            }
            if small.resident > RESIDENT_KIB_MAX {
                self.misses.push(format!("{engine}: an idle volume keeps {} KiB resident", small.resident));
            }
        }
        Ok(())
    }

    /// Story 3.
    fn paced_requests(&mut self) -> Outcome<()> {
        let mut running = Vec::new();
        for poll_us in PACED_SETTINGS {
            let volume = self.home.volume(&format!("paced-{poll_us}"), VOLUME_BYTES)?;
            let server = Server::start(&volume, &["--poll-us", &poll_us.to_string()])?;
            let mut front_end = FrontEnd::connect(&server, 16 << 20)?;
            front_end.write_all(VOLUME_BYTES, 1 << 20)?;
            running.push((server, front_end));
        }
        let mut rounds = vec![Vec::new(); running.len()];
        for _ in 0..ROUNDS {
            for ((server, front_end), round) in running.iter_mut().zip(&mut rounds) {
                self.pause(Duration::from_millis(500))?;
                let (before, start) = (Usage::of(server.pid())?, Instant::now());
                let (count, latency) = front_end.paced_reads(self.paced, Duration::from_millis(1))?;
                let used = Usage::of(server.pid())?.since(&before);
                round.push(Paced {
                    cores: used.cpu.as_secs_f64() / start.elapsed().as_secs_f64(),
                    rate: count as f64 / start.elapsed().as_secs_f64(),
                    latency_us: latency.as_secs_f64() * 1e6,
                });
            }
        }

        println!("\nRandom reads of 4 KiB, one every millisecond, medians of {ROUNDS} rounds:\n");
        println!("| `--poll-us` | requests/s | of a core | p50 |");
        println!("| --- | --- | --- | --- |");
        let mut cores = Vec::new();
        for (poll_us, round) in PACED_SETTINGS.iter().zip(&rounds) {
            let middle = |value: fn(&Paced) -> f64| Spread::of(round.iter().map(value)).median;
            cores.push(middle(|round| round.cores));
            println!(
                "| {poll_us} | {:.0} | {:.2} % | {:.0} µs |",
                middle(|round| round.rate),
                middle(|round| round.cores) * 100.0,
                middle(|round| round.latency_us)
            );
        }
        let more = cores[1] - cores[0];
        println!("\nWatching costs {:.2} % of a core more.", more * 100.0);
        if more > POLLING_CORES_MAX {
            self.misses
                .push(format!("at 1,000 requests a second, watching costs {:.1} % of a core more", more * 100.0));
        }
        Ok(())
    }

    /// Story 4.
    fn many_volumes(&mut self) -> Outcome<()> {
        println!("\nVolumes side by side, each with a front end (1 queue); memory of each in KiB, medians:\n");
        println!(
            "| volumes | attach of the last | attach of all: min, median, max | resident | proportional | private | \
             locked | CPU of all, idle | switches/s |"
        );
        println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
        let mut running: Vec<(Server, FrontEnd)> = Vec::new();
        let stages = STAGES.into_iter().filter(|&stage| stage < self.volumes).chain([self.volumes]);
        for stage in stages.collect::<Vec<_>>() {
            while running.len() < stage {
                let volume = self.home.volume(&format!("many-{}", running.len()), 16 << 20)?;
                let server = Server::start(&volume, &[])?;
                let mut front_end = FrontEnd::connect(&server, 1 << 20)?;
                front_end.write_all(1 << 20, 4096)?;
                running.push((server, front_end));
                self.pause(Duration::ZERO)?;
            }
            self.pause(Duration::from_secs(2))?;
            let all = |usage: &mut dyn FnMut(u32) -> Outcome<Usage>| {
                running.iter().map(|(server, _)| usage(server.pid())).collect::<Outcome<Vec<_>>>()
            };
            let (before, start) = (all(&mut Usage::of)?, Instant::now());
            self.pause(Duration::from_secs(5))?;
            let after = all(&mut Usage::of)?;
            let elapsed = start.elapsed().as_secs_f64();
            let used: Vec<Usage> = after.iter().zip(&before).map(|(after, before)| after.since(before)).collect();
            let cores = used.iter().map(|used| used.cpu.as_secs_f64()).sum::<f64>() / elapsed;
            let switches = used.iter().map(|used| used.switches).sum::<u64>() as f64 / elapsed;

            let memory = running.iter().map(|(server, _)| Memory::of(server.pid())).collect::<Outcome<Vec<_>>>()?;
            let middle =
                |value: fn(&Memory) -> u64| Spread::of(memory.iter().map(|memory| value(memory) as f64)).median;
            let attach: Vec<f64> = running.iter().map(|(server, _)| server.attach.as_secs_f64() * 1e3).collect();
            let Spread { min, median, max } = Spread::of(attach.iter().copied());
            println!(
                "| {stage} | {:.1} ms | {min:.1}, {median:.1}, {max:.1} ms | {:.0} | {:.0} | {:.0} | {:.0} | {:.3} % of a \
                 core | {switches:.1} |",
                attach[stage - 1],
                middle(|memory| memory.resident),
                middle(|memory| memory.proportional),
                middle(|memory| memory.private),
                middle(|memory| memory.locked),
                cores * 100.0,
            );
            if cores > IDLE_CPU_MAX * stage as f64 {
                self.misses.push(format!("{stage} idle volumes use {:.2} % of a core", cores * 100.0));
            }
            if let Some(memory) = memory.iter().find(|memory| memory.resident > RESIDENT_KIB_MAX) {
                self.misses.push(format!("one of {stage} idle volumes keeps {} KiB resident", memory.resident));
            }
        }
        Ok(())
    }

    /// Sleeps, unless the user has had enough.
    fn pause(&self, time: Duration) -> Outcome<()> {
        let end = Instant::now() + time;
        loop {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err("interrupted".into());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(Duration::from_millis(100)));
        }
    }
}

/// What one round of paced requests took.
#[derive(Clone, Copy)]
struct Paced {
    cores: f64,
    rate: f64,
    latency_us: f64,
}

const VOLUME_BYTES: u64 = 64 << 20;
const IDLE_SETTINGS: [(&str, u64); 4] = [("io-uring", 0), ("io-uring", 50), ("threads", 0), ("threads", 50)];
const PACED_SETTINGS: [u64; 2] = [0, 50];
const ROUNDS: usize = 3;
const STAGES: [usize; 4] = [1, 10, 50, 100];

/// Of a core, for one idle volume. The kernel's own worker thread of an io_uring looks around every
/// five seconds; anything that wakes up a few times a second is above this.
const IDLE_CPU_MAX: f64 = 5e-5;
const RESIDENT_KIB_MAX: u64 = 16 << 10;
/// Of a core, that watching may cost more than sleeping.
const POLLING_CORES_MAX: f64 = 0.05;
