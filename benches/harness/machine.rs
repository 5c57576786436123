//! What the host says of itself: file systems, processes, the machine.

use std::fs;
use std::io;
use std::path::Path;

use super::Outcome;

/// Whether a path lies on tmpfs.
pub fn is_tmpfs(path: &Path) -> io::Result<bool> {
    Ok(rustix::fs::statfs(path)?.f_type == TMPFS_MAGIC)
}

/// How much can still be stored there.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let system = rustix::fs::statvfs(path)?;
    Ok(system.f_bavail * system.f_frsize)
}

/// User and system time of a process so far, all threads together (proc(5)).
pub fn cpu_seconds(process: u32) -> Outcome<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name in parentheses may hold anything; what follows are numbers.
    let numbers: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let [user, system] = [UTIME, STIME].map(|field| numbers.get(field).and_then(|ticks| ticks.parse::<f64>().ok()));
    let ticks = user.zip(system).map(|(user, system)| user + system);
    Ok(ticks.ok_or("/proc/PID/stat is not what proc(5) says")? / rustix::param::clock_ticks_per_second() as f64)
}

/// The processor's name and how many there are.
pub fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let names = info.lines().filter_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let name = names.clone().next().unwrap_or("unknown");
    format!("{} x {name}", names.count())
}

/// The kernel's release.
pub fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// `TMPFS_MAGIC` of statfs(2).
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;
/// Fields 14 and 15 of /proc/PID/stat, counted from the one after the name.
const UTIME: usize = 11;
const STIME: usize = 12;
