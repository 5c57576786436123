//! A search for keys in the memory of another process, and in core dumps.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

/// What to look for: every sixteen bytes in a row of some keys, as they are and in base64.
pub struct Traces {
    traces: HashSet<[u8; LENGTH]>,
    /// Which first two bytes are worth a closer look.
    beginnings: Vec<bool>,
}

impl Traces {
    /// All traces of these keys.
    pub fn of(keys: &[&[u8]]) -> Traces {
        let mut traces = Traces { traces: HashSet::new(), beginnings: vec![false; 1 << 16] };
        for key in keys {
            traces.add(key);
            // Three bytes make four characters, so there are three ways to cut a text.
            for skip in 0..3 {
                let whole = (key.len() - skip) / 3 * 3;
                traces.add(STANDARD_NO_PAD.encode(&key[skip..][..whole]).as_bytes());
            }
        }
        traces
    }

    fn add(&mut self, bytes: &[u8]) {
        for window in bytes.windows(LENGTH) {
            let window: [u8; LENGTH] = window.try_into().expect("of this length");
            self.beginnings[beginning(&window)] = true;
            self.traces.insert(window);
        }
    }

    /// How many traces there are in `bytes`.
    pub fn count(&self, bytes: &[u8]) -> usize {
        let windows = bytes.windows(LENGTH);
        windows.filter(|window| self.beginnings[beginning(window)] && self.traces.contains(*window)).count()
    }

    /// How many there are in a file.
    pub fn count_in_file(&self, path: &Path) -> usize {
        let file = File::open(path).expect("the file to search");
        let length = file.metadata().expect("its length").len();
        self.count_in(&file, 0, length)
    }

    /// Where there are traces in the memory of a process.
    pub fn in_process(&self, pid: u32) -> Vec<Found> {
        let memory = File::open(format!("/proc/{pid}/mem")).expect("the memory of the process");
        let mappings = mappings(pid);
        assert!(mappings.len() > 5, "there is almost nothing to search");
        let found = mappings.into_iter().map(|mapping| {
            let count = self.count_in(&memory, mapping.start, mapping.end);
            Found { count, mapping }
        });
        found.filter(|found| found.count > 0).collect()
    }

    fn count_in(&self, file: &File, start: u64, end: u64) -> usize {
        let mut piece = vec![0; PIECE_BYTES + LENGTH - 1];
        let mut count = 0;
        let mut at = start;
        while at < end {
            let wanted = piece.len().min((end - at) as usize);
            // Pages of the kernel's, such as its clock, cannot be read this way.
            let Ok(length) = file.read_at(&mut piece[..wanted], at) else { break };
            if length == 0 {
                break;
            }
            count += self.count(&piece[..length]);
            // A trace on the border lies in the next piece as a whole, and in this one not.
            at += if length == piece.len() { PIECE_BYTES } else { length } as u64;
        }
        count
    }
}

/// A mapping with traces in it.
#[derive(Debug)]
pub struct Found {
    /// How many.
    pub count: usize,
    /// Where.
    pub mapping: Mapping,
}

/// A mapping of a process.
#[derive(Debug)]
pub struct Mapping {
    start: u64,
    end: u64,
    /// What it maps.
    pub name: String,
    flags: Vec<String>,
}

impl Mapping {
    /// Whether it is locked in memory and left out of core dumps.
    pub fn is_protected(&self) -> bool {
        ["lo", "dd"].iter().all(|wanted| self.flags.iter().any(|flag| flag == wanted))
    }
}

fn mappings(pid: u32) -> Vec<Mapping> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("the mappings of the process");
    let mut mappings = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if first == "VmFlags:" {
            let mapping: &mut Mapping = mappings.last_mut().expect("flags follow a mapping");
            mapping.flags = words.map(str::to_owned).collect();
        } else if let Some((start, end)) = first.split_once('-') {
            let address = |text| u64::from_str_radix(text, 16).expect("an address");
            let name = words.nth(4).unwrap_or("(anonymous)").to_owned();
            mappings.push(Mapping { start: address(start), end: address(end), name, flags: Vec::new() });
        }
    }
    mappings.retain(|mapping| mapping.flags.iter().any(|flag| flag == "rd"));
    mappings
}

fn beginning(window: &[u8]) -> usize {
    usize::from(window[0]) << 8 | usize::from(window[1])
}

const LENGTH: usize = 16;
const PIECE_BYTES: usize = 1 << 20;
