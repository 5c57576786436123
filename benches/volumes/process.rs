//! What a process has used and holds, from `/proc` (proc(5)).

use std::fs;
use std::time::Duration;

use super::harness::Outcome;

/// What the threads of a process have used so far.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Time on a CPU, to the nanosecond.
    pub cpu: Duration,
    /// The same in the kernel's clock ticks; counts threads that have ended, too.
    pub ticks: u64,
    /// Times that a thread went to sleep.
    pub switches: u64,
    /// Threads that there are.
    pub threads: usize,
}

impl Usage {
    /// What `process` has used.
    pub fn of(process: u32) -> Outcome<Self> {
        let mut usage = Self { cpu: Duration::ZERO, ticks: ticks(process)?, switches: 0, threads: 0 };
        for task in fs::read_dir(format!("/proc/{process}/task"))? {
            let task = task?.path();
            // One that has ended meanwhile has nothing to say.
            let (Ok(schedstat), Ok(status)) =
                (fs::read_to_string(task.join("schedstat")), fs::read_to_string(task.join("status")))
            else {
                continue;
            };
            usage.cpu += Duration::from_nanos(first_number(&schedstat)?);
            usage.switches += field(&status, "voluntary_ctxt_switches")?;
            usage.threads += 1;
        }
        Ok(usage)
    }

    /// What was used since an earlier look.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            ticks: self.ticks - before.ticks,
            switches: self.switches.saturating_sub(before.switches),
            threads: self.threads,
        }
    }
}

/// Memory of a process in KiB, without the guest's, which it only maps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// In RAM, shared with others or not.
    pub resident: u64,
    /// In RAM, each page divided by how many share it.
    pub proportional: u64,
    /// In RAM and nobody else's.
    pub private: u64,
    /// Of that, what was written to.
    pub private_dirty: u64,
    /// Heap, stacks and the like.
    pub anonymous: u64,
    /// Kept in RAM by `mlock`.
    pub locked: u64,
}

impl Memory {
    /// What `process` holds.
    pub fn of(process: u32) -> Outcome<Self> {
        let smaps = fs::read_to_string(format!("/proc/{process}/smaps")).map_err(|error| {
            format!("/proc/{process}/smaps: {error}; the servers' memory can be read by root alone")
        })?;
        let mut memory = Self::default();
        let mut counts = true;
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
            let Some(name) = first.strip_suffix(':') else {
                // A mapping's first line: addresses, permissions, offset, device, inode, name. What
                // is shared is the guest's memory, but for the rings of io_uring.
                counts = !second.ends_with('s') || line.ends_with("[io_uring]");
                continue;
            };
            if !counts {
                continue;
            }
            let number = second.parse().unwrap_or(0);
            match name {
                "Rss" => memory.resident += number,
                "Pss" => memory.proportional += number,
                "Private_Clean" => memory.private += number,
                "Private_Dirty" => {
                    memory.private += number;
                    memory.private_dirty += number;
                }
                "Anonymous" => memory.anonymous += number,
                "Locked" => memory.locked += number,
                _ => {}
            }
        }
        if memory.resident == 0 {
            return Err(format!("/proc/{process}/smaps says nothing of resident memory").into());
        }
        Ok(memory)
    }
}

fn ticks(process: u32) -> Outcome<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // After the name in parentheses, which may hold anything.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let number =
        |index: usize| fields.get(index).ok_or("a short stat").and_then(|f| f.parse().map_err(|_| "no number"));
    let (user, system): (u64, u64) = (number(11)?, number(12)?);
    Ok(user + system)
}

fn field(status: &str, name: &str) -> Outcome<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    first_number(value.ok_or_else(|| format!("no {name} in a thread's status"))?)
}

fn first_number(text: &str) -> Outcome<u64> {
    Ok(text.split_whitespace().next().ok_or("no number where one belongs")?.parse()?)
}
