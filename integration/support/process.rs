//! A `sealblk` process of a cluster: what it has said, and signals to it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::PATIENCE;

/// A running one; killed on drop, and quoted when the test has failed.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Where in its log it began: other processes of its name came before.
    began: u64,
}

impl Process {
    /// Starts a command whose standard error goes to the log of this name in `folder`.
    pub fn start(name: &str, folder: &Path, command: &mut Command) -> Process {
        let log = folder.join(format!("{name}.log"));
        let file = OpenOptions::new().create(true).append(true).open(&log).expect("a log file");
        let began = file.metadata().expect("its length").len();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).spawn();
        let child = child.unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Process { name: name.to_owned(), child, log, began }
    }

    /// What it has said so far.
    pub fn said(&self) -> String {
        let mut file = File::open(&self.log).expect("its log");
        file.seek(SeekFrom::Start(self.began)).expect("its part of the log");
        let mut text = Vec::new();
        file.read_to_end(&mut text).expect("its part of the log");
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until it has said something with `part` in it.
    pub fn await_line(&mut self, part: &str) {
        self.await_that(&format!("has said {part:?}"), PATIENCE, |process| process.said().contains(part));
    }

    /// Waits until something is so while it runs.
    pub fn await_that(&mut self, what: &str, patience: Duration, is_so: impl Fn(&Process) -> bool) {
        let deadline = Instant::now() + patience;
        while !is_so(self) {
            if let Some(status) = self.child.try_wait().expect("its state") {
                panic!("{} ended with {status} before it {what}:\n{}", self.name, self.said());
            }
            assert!(Instant::now() < deadline, "not within {patience:?}: {} {what}:\n{}", self.name, self.said());
            thread::sleep(LOOK);
        }
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("its state").is_none()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap_or_else(|error| panic!("{} gets no signal: {error}", self.name));
    }

    /// Kills it as `kill -9` does.
    pub fn kill(mut self) {
        self.child.kill().expect("a signal to it");
        self.child.wait().expect("its end");
    }

    /// Waits until it ends; how it did.
    pub fn await_end(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().expect("its state") {
                return status;
            }
            assert!(Instant::now() < deadline, "{} does not end within {patience:?}:\n{}", self.name, self.said());
            thread::sleep(LOOK);
        }
    }

    /// Asks it to end, which it must do by itself and with exit status 0.
    pub fn terminate(mut self) {
        self.signal(Signal::TERM);
        let status = self.await_end(PATIENCE);
        assert!(status.success(), "{} ended with {status}:\n{}", self.name, self.said());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let text = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(LINES_MAX)..];
            eprintln!("--- {} has said:\n{}", self.name, last.join("\n"));
        }
    }
}

/// How often something is looked at that is waited for.
const LOOK: Duration = Duration::from_millis(10);
/// How many lines of a log are quoted when a test has failed.
const LINES_MAX: usize = 100;
