//! Volumes, `sealblk serve` processes over them, and front ends of the `blkio` crate.

use std::fs;
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};
use tempfile::TempDir;

use super::harness::Outcome;

/// Where volumes and sockets lie; removed on drop.
pub struct Home {
    volumes: TempDir,
    // The usual folder for temporary files: a socket's path has to be short.
    sockets: TempDir,
    key: String,
}

/// A volume that can be served.
pub struct Volume {
    folder: PathBuf,
    socket: PathBuf,
    key: String,
}

impl Home {
    /// A new one in `dir`.
    pub fn new(dir: &Path) -> Outcome<Self> {
        let volumes = tempfile::tempdir_in(dir)?;
        let key = volumes.path().join("key");
        fs::write(&key, (0..64).collect::<Vec<u8>>())?;
        fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        Ok(Self { key: format!("file:{}", key.display()), volumes, sockets: tempfile::tempdir()? })
    }

    /// A new, encrypted volume.
    pub fn volume(&self, name: &str, bytes: u64) -> Outcome<Volume> {
        let folder = self.volumes.path().join(name);
        let mut command = Command::new(SEALBLK);
        command.args(["volume", "create", "--size", &bytes.to_string(), "--key", &self.key]).arg(&folder);
        let output = command.output()?;
        if !output.status.success() {
            return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(Volume { folder, socket: self.sockets.path().join(name), key: self.key.clone() })
    }
}

/// A `sealblk serve` process, ended on drop.
pub struct Server {
    process: Child,
    socket: PathBuf,
    /// From the start of the process until its socket accepted a connection.
    pub attach: Duration,
}

impl Server {
    /// Serves `volume` with further arguments.
    pub fn start(volume: &Volume, arguments: &[&str]) -> Outcome<Self> {
        let mut command = Command::new(SEALBLK);
        command.arg("serve").arg(&volume.folder).arg("--socket").arg(&volume.socket);
        command.args(["--key", &volume.key]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).env("RUST_LOG", "error");
        // SAFETY: prctl with this option touches no memory and may be called after a fork.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let start = Instant::now();
        let process = command.spawn()?;
        let mut server = Self { process, socket: volume.socket.clone(), attach: Duration::ZERO };
        while UnixStream::connect(&server.socket).is_err() {
            if server.process.try_wait()?.is_some() || start.elapsed() > PATIENCE {
                return Err(format!("{} is not served", volume.folder.display()).into());
            }
            thread::sleep(Duration::from_micros(50));
        }
        server.attach = start.elapsed();
        Ok(server)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A front end with one queue.
pub struct FrontEnd {
    // Dropped in this order: the queue before the driver, which frees the memory.
    queue: Blkioq,
    _driver: Blkio,
    region: MemoryRegion,
    volume_bytes: u64,
    random: u64,
}

impl FrontEnd {
    /// Connects to `server`, with so much memory for data.
    pub fn connect(server: &Server, memory_bytes: usize) -> Outcome<Self> {
        let mut driver = Blkio::new("virtio-blk-vhost-user")?;
        driver.set_str("path", server.socket.to_str().ok_or("a path that is not UTF-8")?)?;
        driver.connect()?;
        let volume_bytes = driver.get_u64("capacity")?;
        let queue = driver.start()?.queues.pop().ok_or("a driver without a queue")?;
        let region = driver.alloc_mem_region(memory_bytes)?;
        driver.map_mem_region(&region)?;
        // SAFETY: the region is mapped and nothing else uses it yet. Its pages are there from now on.
        unsafe { std::ptr::write_bytes(region.addr as *mut u8, 0x5a, memory_bytes) };
        Ok(Self { queue, _driver: driver, region, volume_bytes, random: 0x9e37_79b9_7f4a_7c15 })
    }

    /// Writes the first `total` bytes in requests of `bytes`, as many at once as the memory holds, 32 at most.
    pub fn write_all(&mut self, total: u64, bytes: usize) -> Outcome<()> {
        let depth = (self.region.len / bytes).min(32);
        let places = total / bytes as u64;
        let mut next = 0;
        while next < places {
            let count = (places - next).min(depth as u64) as usize;
            for slot in 0..count {
                let offset = (next + slot as u64) * bytes as u64;
                let buffer = self.buffer(slot * bytes);
                self.queue.write(offset, buffer, bytes, slot, ReqFlags::empty());
            }
            self.complete(count)?;
            next += count as u64;
        }
        Ok(())
    }

    /// Reads at random places, 32 at once.
    pub fn random_reads(&mut self, time: Duration) -> Outcome<()> {
        let start = Instant::now();
        while start.elapsed() < time {
            (0..32).for_each(|slot| self.random_read(slot));
            self.complete(32)?;
        }
        Ok(())
    }

    /// Reads at random places, one every `interval`. How many, and the median latency.
    pub fn paced_reads(&mut self, time: Duration, interval: Duration) -> Outcome<(usize, Duration)> {
        let start = Instant::now();
        let mut latencies = Vec::new();
        let mut due = start;
        while start.elapsed() < time {
            due += interval;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let asked = Instant::now();
            self.random_read(0);
            self.complete(1)?;
            latencies.push(asked.elapsed());
        }
        latencies.sort_unstable();
        Ok((latencies.len(), latencies[latencies.len() / 2]))
    }

    fn random_read(&mut self, slot: usize) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let offset = self.random % (self.volume_bytes / 4096) * 4096;
        let buffer = self.buffer(slot * 4096);
        self.queue.read(offset, buffer, 4096, slot, ReqFlags::empty());
    }

    fn buffer(&self, offset: usize) -> *mut u8 {
        (self.region.addr + offset) as *mut u8
    }

    fn complete(&mut self, count: usize) -> Outcome<()> {
        let mut completions: Vec<_> = (0..count).map(|_| MaybeUninit::<Completion>::uninit()).collect();
        let done = self.queue.do_io(&mut completions, count, Some(&mut PATIENCE.clone()), None)?;
        for completion in &completions[..done] {
            // SAFETY: `do_io` has filled in as many as it returned.
            let result = unsafe { completion.assume_init_ref() }.ret;
            if result != 0 {
                return Err(format!("a request failed: {result}").into());
            }
        }
        if done == count { Ok(()) } else { Err("requests were not answered".into()) }
    }
}

const SEALBLK: &str = env!("CARGO_BIN_EXE_sealblk");
const PATIENCE: Duration = Duration::from_secs(20);
