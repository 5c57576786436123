//! Who holds a volume: a note in its folder, for whoever finds the lock taken.
//!
//! A lock says that somebody has it, and not who. Its holder writes `holder` after locking, with the
//! number of its process and the moment at which that process started, in clock ticks since the boot.
//! The two together name one process until the next boot, also when the number has been given to
//! another one since. The note is removed before the lock goes; after a crash it stays, and names a
//! process that is gone. It gives no right by itself: the lock does.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The process that holds a volume. The one that [`record`](Self::record) made removes the note when it is
/// dropped.
#[derive(Debug, PartialEq, Eq)]
pub struct Holder {
    pid: u32,
    started: u64,
    /// When it was noted.
    noted: Option<SystemTime>,
    /// The note, if it is ours.
    note: Option<PathBuf>,
}

impl Holder {
    /// Notes that this process holds the volume in `dir`. The caller has the lock. On a full disk it holds it
    /// without a note: to serve what is there is worth more than to be found.
    ///
    /// # Errors
    ///
    /// [`HolderError`] when the note cannot be written for another reason.
    pub fn record(dir: &Path) -> Result<Holder, HolderError> {
        let path = dir.join(HOLDER_FILE);
        let new_path = dir.join(NEW_HOLDER_FILE);
        let pid = std::process::id();
        let error = |source| HolderError { action: "write", path: path.clone(), source };
        let started = start_time(pid).map_err(error)?;
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new_path)?;
            writeln!(file, "{pid} {started}")?;
            // A note need not outlive the machine: the process does not either.
            std::fs::rename(&new_path, &path)
        };
        let note = match write() {
            Ok(()) => Some(path),
            Err(full) if matches!(full.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                log::warn!(
                    "{}: {full}: this process holds it and cannot note so; who replaces it could not end it",
                    dir.display()
                );
                // What is left there would name another.
                for name in [&new_path, &path] {
                    let _ = std::fs::remove_file(name);
                }
                None
            }
            Err(source) => return Err(error(source)),
        };
        Ok(Holder { pid, started, noted: Some(SystemTime::now()), note })
    }

    /// Who last noted to hold the volume in `dir`; nobody if there is no note, or none that can be read.
    ///
    /// # Errors
    ///
    /// [`HolderError`] when the operating system refuses.
    pub fn read(dir: &Path) -> Result<Option<Holder>, HolderError> {
        let path = dir.join(HOLDER_FILE);
        let mut text = String::new();
        let read = |file: File| {
            let noted = file.metadata()?.modified().ok();
            file.take(NOTE_BYTES_MAX).read_to_string(&mut text)?;
            Ok(noted)
        };
        match File::open(&path).and_then(read) {
            Ok(noted) => Ok(parse(&text, noted)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => Ok(None),
            Err(source) => Err(HolderError { action: "read", path, source }),
        }
    }

    /// The number of the process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// For how long it has held the volume, if the clock tells.
    pub fn held_for(&self) -> Option<Duration> {
        self.noted.and_then(|noted| noted.elapsed().ok())
    }

    /// Whether the process is there, and is the one that wrote the note. To act on it, open it by
    /// pidfd_open(2) first and ask this afterwards: the descriptor then is of the process that was meant.
    pub fn is_alive(&self) -> bool {
        start_time(self.pid).is_ok_and(|started| started == self.started)
    }

    /// Whether it is this process.
    pub fn is_self(&self) -> bool {
        self.pid == std::process::id() && self.is_alive()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if let Some(path) = &self.note {
            // What stays behind names a process that does not hold the volume: whoever reads it finds the
            // lock free.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The note of who holds a volume cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}: check the disk and the permissions of the folder", .path.display())]
pub struct HolderError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

pub(super) fn parse(text: &str, noted: Option<SystemTime>) -> Option<Holder> {
    let (pid, started) = text.strip_suffix('\n')?.split_once(' ')?;
    let pid = pid.parse().ok().filter(|pid| (1..=i32::MAX as u32).contains(pid))?;
    Some(Holder { pid, started: started.parse().ok()?, noted, note: None })
}

/// Field 22 of /proc/PID/stat, see proc(5). The name of the program in field 2 may hold anything, also
/// parentheses, so fields are counted from its end.
fn start_time(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat"))?;
    let stat = String::from_utf8_lossy(&stat);
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    let field = fields.split_ascii_whitespace().nth(22 - 3).and_then(|field| field.parse().ok());
    field.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat has no start time"))
}

const HOLDER_FILE: &str = "holder";
const NEW_HOLDER_FILE: &str = "holder.new";
const NOTE_BYTES_MAX: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_and_its_note_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Holder::read(dir.path()).unwrap(), None);
        let held = Holder::record(dir.path()).unwrap();
        let read = Holder::read(dir.path()).unwrap().unwrap();
        assert!(read.is_alive() && read.is_self());
        assert_eq!(read.pid(), std::process::id());
        assert!(read.held_for().unwrap() < Duration::from_secs(60));
        drop(read);
        assert!(Holder::read(dir.path()).unwrap().is_some(), "a reader took the note away");
        drop(held);
        assert_eq!(Holder::read(dir.path()).unwrap(), None);
    }

    #[test]
    fn on_a_full_disk_it_is_held_without_a_note() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(HOLDER_FILE), "1 1\n").unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join(NEW_HOLDER_FILE)).unwrap();
        let held = Holder::record(dir.path()).unwrap();
        assert_eq!(Holder::read(dir.path()).unwrap(), None, "another was named");
        drop(held);
        // The next has room again.
        let held = Holder::record(dir.path()).unwrap();
        assert!(Holder::read(dir.path()).unwrap().unwrap().is_self());
        drop(held);
    }

    #[test]
    fn a_number_that_was_given_to_another_process_is_not_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let pid = std::process::id();
        let started = start_time(pid).unwrap();
        std::fs::write(dir.path().join(HOLDER_FILE), format!("{pid} {}\n", started + 1)).unwrap();
        let read = Holder::read(dir.path()).unwrap().unwrap();
        assert!(!read.is_alive() && !read.is_self());
    }

    #[test]
    fn a_process_that_has_ended_does_not_hold() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let holder = Holder { pid: child.id(), started: start_time(child.id()).unwrap(), noted: None, note: None };
        assert!(holder.is_alive() && !holder.is_self());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!holder.is_alive());
    }

    #[test]
    fn other_notes_name_nobody() {
        let dir = tempfile::tempdir().unwrap();
        for text in
            ["", "\n", "12 34", "12\n", "0 34\n", "-1 34\n", "4294967295 1\n", "12 34 56\n", "a b\n", "12  34\n"]
        {
            std::fs::write(dir.path().join(HOLDER_FILE), text).unwrap();
            assert_eq!(Holder::read(dir.path()).unwrap(), None, "{text:?}");
        }
    }
}
