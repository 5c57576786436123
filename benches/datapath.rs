//! The data path beside its peers: one queue, the front end of the `blkio` crate, four back ends.
//!
//! `sealblk serve` with and without encryption and `qemu-storage-daemon` with a raw and a LUKS image
//! (aes-256-xts, plain64) lie on one file system, full. In each round every back end does each
//! workload in turn; what counts is the ratio within a round. Printed are medians over the rounds,
//! with the smallest and largest.
//!
//! Environment: `ROUNDS` (5), `SECONDS` a workload (1), `SIZE_MIB` of each disk (256), `DIR` to
//! put them in (the build's own temporary folder; /dev/shm shows the cost of CPU alone).

use std::error::Error;
use std::fs;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use blkio::{Blkio, Blkioq, Completion, ReqFlags};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let setting = Setting::from_environment()?;
    let folder = tempfile::tempdir_in(&setting.dir)?;
    let backends = Backend::start_all(folder.path(), &setting)?;
    for backend in &backends {
        // Full disks: reads of holes would measure nothing.
        backend.run(&FILL, &setting)?;
    }
    println!(
        "{} rounds of {} s, {} MiB in {}",
        setting.rounds,
        setting.seconds,
        setting.size >> 20,
        setting.dir.display()
    );
    for workload in &WORKLOADS {
        let mut results = vec![Vec::new(); backends.len()];
        for _ in 0..setting.rounds {
            for (result, backend) in results.iter_mut().zip(&backends) {
                result.push(backend.run(workload, &setting)?);
            }
        }
        println!("\n{}", workload.name);
        for (backend, own) in backends.iter().zip(&results) {
            let operations = spread(own.iter().map(|sample| sample.operations));
            let latency = match workload.depth {
                1 => format!("p50 {:.1} us", spread(own.iter().map(|sample| sample.latency_us)).1),
                _ => String::new(),
            };
            let cpu = spread(own.iter().map(|sample| sample.cpu_per_gib));
            let ratio = spread(results[0].iter().zip(own).map(|(ours, theirs)| ours.operations / theirs.operations));
            println!(
                "  {:22} {:9.0} op/s ({:.0}..{:.0})  {latency:16}  {:5.2} CPU s/GiB  sealblk/this {:.2} ({:.2}..{:.2})",
                backend.name, operations.1, operations.0, operations.2, cpu.1, ratio.1, ratio.0, ratio.2,
            );
        }
    }
    Ok(())
}

struct Setting {
    rounds: usize,
    seconds: f64,
    size: u64,
    dir: PathBuf,
}

impl Setting {
    fn from_environment() -> Outcome<Self> {
        let number = |name: &str, default: f64| -> Outcome<f64> {
            std::env::var(name)
                .map_or(Ok(default), |text| Ok(text.parse().map_err(|error| format!("{name}: {error}"))?))
        };
        Ok(Self {
            rounds: (number("ROUNDS", 5.0)? as usize).max(1),
            seconds: number("SECONDS", 1.0)?,
            size: (number("SIZE_MIB", 256.0)? as u64).max(16) << 20,
            dir: std::env::var_os("DIR").map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from),
        })
    }
}

struct Workload {
    name: &'static str,
    write: bool,
    random: bool,
    bytes: usize,
    depth: usize,
}

const FILL: Workload = Workload { name: "fill", write: true, random: false, bytes: 1 << 20, depth: 8 };
const WORKLOADS: [Workload; 5] = [
    Workload { name: "random read, 4 KiB, depth 32", write: false, random: true, bytes: 4096, depth: 32 },
    Workload { name: "random write, 4 KiB, depth 32", write: true, random: true, bytes: 4096, depth: 32 },
    Workload { name: "random read, 4 KiB, depth 1", write: false, random: true, bytes: 4096, depth: 1 },
    Workload { name: "sequential read, 128 KiB, depth 16", write: false, random: false, bytes: 128 << 10, depth: 16 },
    Workload { name: "sequential write, 128 KiB, depth 16", write: true, random: false, bytes: 128 << 10, depth: 16 },
];

#[derive(Clone, Copy)]
struct Sample {
    operations: f64,
    latency_us: f64,
    cpu_per_gib: f64,
}

/// A back end that is ended when it is dropped.
struct Backend {
    name: &'static str,
    process: Child,
    socket: PathBuf,
}

impl Backend {
    fn start_all(folder: &Path, setting: &Setting) -> Outcome<Vec<Self>> {
        let size = setting.size.to_string();
        let sealblk = env!("CARGO_BIN_EXE_sealblk");
        let key = folder.join("key");
        fs::write(&key, (0..64).collect::<Vec<u8>>())?;
        let key = format!("file:{}", key.display());
        let mut backends = Vec::new();
        for (name, key) in [("sealblk", vec!["--key", &key]), ("sealblk, not encrypted", vec!["--no-encryption"])] {
            let volume = folder.join(name);
            finish(Command::new(sealblk).args(["volume", "create"]).arg(&volume).args(["--size", &size]).args(&key))?;
            let socket = folder.join(format!("{}.sock", backends.len()));
            let mut command = Command::new(sealblk);
            command.arg("serve").arg(&volume).arg("--socket").arg(&socket).args(&key);
            backends.push(Self::start(name, command, socket)?);
        }
        // The better engine of each kind of file system, found by trying.
        let on_tmpfs = setting.dir.starts_with("/dev/shm");
        let engine = if on_tmpfs { "aio=threads" } else { "aio=native,cache.direct=on" };
        for (name, luks) in [("QSD", false), ("QSD, LUKS", true)] {
            let image = folder.join(if luks { "luks" } else { "raw" });
            let secret = "secret,id=s,data=benchmark";
            if luks {
                let options = "key-secret=s,cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64,iter-time=500";
                // It sometimes fails to time its key derivation; the next try succeeds.
                let create = || {
                    let mut command = Command::new("qemu-img");
                    command.args(["create", "-q", "--object", secret, "-f", "luks", "-o", options]);
                    finish(command.arg(&image).arg(&size))
                };
                (0..5).find_map(|_| create().ok()).ok_or("qemu-img cannot make a LUKS image")?;
            } else {
                fs::File::create(&image)?.set_len(setting.size)?;
            }
            let socket = folder.join(format!("{}.sock", backends.len()));
            let file = format!("driver=file,node-name=file,filename={},{engine}", image.display());
            let format = if luks {
                "driver=luks,file=file,node-name=disk,key-secret=s"
            } else {
                "driver=raw,file=file,node-name=disk"
            };
            let export =
                format!("vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path={},writable=on", socket.display());
            let mut command = Command::new("qemu-storage-daemon");
            command.args(["--object", secret, "--blockdev", &file, "--blockdev", format, "--export", &export]);
            backends.push(Self::start(name, command, socket)?);
        }
        Ok(backends)
    }

    fn start(name: &'static str, mut command: Command, socket: PathBuf) -> Outcome<Self> {
        let process = command.stdout(Stdio::null()).env("RUST_LOG", "error").spawn();
        let process = process.map_err(|error| format!("{name} does not start: {error} (package qemu-utils)"))?;
        let mut backend = Self { name, process, socket };
        let start = Instant::now();
        while !backend.socket.exists() {
            if backend.process.try_wait()?.is_some() || start.elapsed() > Duration::from_secs(20) {
                return Err(format!("{name} does not listen").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(backend)
    }

    fn run(&self, workload: &Workload, setting: &Setting) -> Outcome<Sample> {
        let mut driver = Blkio::new("virtio-blk-vhost-user")?;
        driver.set_str("path", self.socket.to_str().ok_or("a path that is not UTF-8")?)?;
        driver.connect()?;
        let mut queues = driver.start()?.queues;
        let Workload { bytes, depth, .. } = *workload;
        let region = driver.alloc_mem_region((bytes * depth).next_multiple_of(1 << 20))?;
        // SAFETY: the region is mapped and nothing else uses it yet.
        unsafe { std::ptr::write_bytes(region.addr as *mut u8, 0x5a, bytes * depth) };
        driver.map_mem_region(&region)?;
        let queue = &mut queues[0];
        let places = setting.size / bytes as u64;
        let filling = workload.name == FILL.name;
        let (mut random, mut issued, mut done) = (0x9e37_79b9_7f4a_7c15_u64, 0u64, 0u64);
        let mut issue = |queue: &mut Blkioq, slot: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let place = if workload.random { random % places } else { issued % places };
            issued += 1;
            let buffer = (region.addr + slot * bytes) as *mut u8;
            let offset = place * bytes as u64;
            if workload.write {
                queue.write(offset, buffer, bytes, slot, ReqFlags::empty());
            } else {
                queue.read(offset, buffer, bytes, slot, ReqFlags::empty());
            }
        };
        let mut completions: Vec<_> = (0..depth).map(|_| MaybeUninit::<Completion>::uninit()).collect();
        let mut latencies = Vec::new();
        let (cpu, start) = (cpu_seconds(self.process.id())?, Instant::now());
        (0..depth).for_each(|slot| issue(queue, slot));
        let mut in_flight = depth;
        while in_flight > 0 {
            let asked = Instant::now();
            let count = queue.do_io(&mut completions, 1, Some(&mut Duration::from_secs(20)), None)?;
            latencies.push(asked.elapsed());
            for completion in &completions[..count] {
                // SAFETY: `do_io` has filled in as many as it returned.
                let completion = unsafe { completion.assume_init_ref() };
                if completion.ret != 0 {
                    return Err(format!("{}: {}: request failed: {}", self.name, workload.name, completion.ret).into());
                }
                done += 1;
                in_flight -= 1;
                let more = if filling {
                    done + (in_flight as u64) < places
                } else {
                    start.elapsed().as_secs_f64() < setting.seconds
                };
                if more {
                    issue(queue, completion.user_data);
                    in_flight += 1;
                }
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        let gib = (done * bytes as u64) as f64 / f64::from(1 << 30);
        latencies.sort_unstable();
        Ok(Sample {
            operations: done as f64 / seconds,
            latency_us: latencies[latencies.len() / 2].as_secs_f64() * 1e6,
            cpu_per_gib: (cpu_seconds(self.process.id())? - cpu) / gib,
        })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn finish(command: &mut Command) -> Outcome<()> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// User and system time of a process so far (proc(5)).
fn cpu_seconds(process: u32) -> Outcome<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}

/// Smallest, median and largest.
fn spread(values: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    (values[0], values[values.len() / 2], values[values.len() - 1])
}
