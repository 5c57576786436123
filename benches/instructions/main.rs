//! How many instructions the hot functions take: a figure that does not drift with the machine.
//!
//! Each of the [`functions`] runs N and 2 N times under valgrind; the difference, divided by N, is
//! one call, and what it takes to start falls out. The counts are compared with those in
//! `benches/instructions.txt`, and one that has grown by more than 3 % fails the benchmark. After a
//! change that is meant to cost what it costs, `UPDATE=1 cargo bench --bench instructions` writes
//! the file anew.
//!
//! valgrind knows no AVX-512, so the cipher that is counted is the portable one. Counts depend on
//! the compiler: a file that another compiler's counts are in is only compared, and fails nothing.

mod functions;
#[path = "../harness/mod.rs"]
mod harness;

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use functions::{FUNCTIONS, Function};
use harness::scratch::{self, Program, Scratch};
use harness::{Outcome, setting};

fn main() {
    let arguments: Vec<String> = env::args().collect();
    let result = match &arguments[1..] {
        // How this program calls itself under valgrind.
        [mode, name, calls, folder] if mode == CALL => call(name, calls, Path::new(folder)),
        _ => run(),
    };
    if let Err(error) = result {
        eprintln!("instructions: {error}");
        std::process::exit(1);
    }
}

fn call(name: &str, calls: &str, folder: &Path) -> Outcome<()> {
    let function = FUNCTIONS.iter().find(|function| function.name == name).ok_or("no such function")?;
    (function.run)(calls.parse()?, folder)
}

fn run() -> Outcome<()> {
    let update = setting::text("UPDATE")?.is_some();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.txt");
    scratch::remove_on_signals()?;
    let scratch = Scratch::create(Path::new(env!("CARGO_TARGET_TMPDIR")), 1 << 20)?;
    let mut counts = Vec::new();
    for function in &FUNCTIONS {
        counts.push((function.name, count(function, &scratch)?));
    }
    let counts = Counts { with: [tool("valgrind")?, tool("rustc")?], counts };
    if update {
        let text = counts.text();
        fs::write(&file, &text)?;
        println!("{text}wrote {}", file.display());
        return Ok(());
    }
    counts.compare(&fs::read_to_string(&file).map_err(|error| format!("{}: {error}: {HINT}", file.display()))?)
}

/// The instructions of one call.
fn count(function: &Function, scratch: &Scratch) -> Outcome<f64> {
    let once = count_all(function, CALLS, scratch)?;
    let twice = count_all(function, 2 * CALLS, scratch)?;
    Ok((twice as f64 - once as f64) / CALLS as f64)
}

/// The instructions of the whole program with so many calls.
fn count_all(function: &Function, calls: u64, scratch: &Scratch) -> Outcome<u64> {
    let folder = tempfile::tempdir_in(scratch.path())?;
    let report = folder.path().join("report");
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(format!("--log-file={}", report.display()))
        .arg(env::current_exe()?)
        .args([CALL, function.name, &calls.to_string()])
        .arg(folder.path())
        // What is in the environment lies on the stack and would move it.
        .env_clear();
    Program::start("valgrind", command, folder.path(), "valgrind")?.finish()?;
    let report = fs::read_to_string(&report)?;
    let total = report.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    Ok(total.ok_or_else(|| format!("valgrind tells no count:\n{report}"))?)
}

/// What a tool says of its version.
fn tool(program: &str) -> Outcome<String> {
    let path = if program == "rustc" { env::var_os("RUSTC").map(PathBuf::from) } else { None };
    let output = Command::new(path.unwrap_or(program.into())).arg("--version").output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// What was counted, and with what.
struct Counts {
    with: [String; 2],
    counts: Vec<(&'static str, f64)>,
}

impl Counts {
    fn text(&self) -> String {
        let mut text = format!("{HEADER}# {}\n", self.with.join("; "));
        for (name, count) in &self.counts {
            let _ = writeln!(text, "{name:44} {count:8.0}");
        }
        text
    }

    /// Compares with the text of an earlier count.
    fn compare(&self, earlier: &str) -> Outcome<()> {
        println!("\n{HEADER}# {}", self.with.join("; "));
        let mut failures = Vec::new();
        for (name, count) in &self.counts {
            let before = earlier.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
            let Some(before) = before else {
                failures.push(format!("{name}: it is not in benches/instructions.txt"));
                continue;
            };
            let growth = count / before - 1.0;
            println!("{name:44} {count:8.0}  {:+5.1} % from {before:.0}", growth * 100.0);
            if growth > GROWTH_MAX {
                failures.push(format!("{name}: {before:.0} instructions have become {count:.0}"));
            }
        }
        if failures.is_empty() {
            return Ok(());
        }
        let failures = failures.join("\n  ");
        if self.with.iter().all(|tool| earlier.contains(tool)) {
            return Err(format!("\n  {failures}\n  {HINT}").into());
        }
        println!("NOT COMPARABLE: benches/instructions.txt was counted with other tools\n  {failures}\n  {HINT}");
        Ok(())
    }
}

const CALL: &str = "call";
/// So many that what differs from start to start falls below one instruction a call.
const CALLS: u64 = 2000;
/// By how much a function may grow unnoticed.
const GROWTH_MAX: f64 = 0.03;
const HINT: &str = "if it is meant to be so: UPDATE=1 cargo bench --bench instructions";
const HEADER: &str = "\
# Instructions of one call, without AVX-512, which valgrind lacks: the cipher is the portable one.
# Written by `UPDATE=1 cargo bench --bench instructions`; `make bench` fails when one grows by 3 %.
";
