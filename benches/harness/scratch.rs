//! A folder to work in, and the programs that work there: nothing of either is left behind.
//!
//! A program is killed when its [`Program`] is dropped, and by the kernel when this process ends in
//! whatever way (`PR_SET_PDEATHSIG`). A folder goes when its [`Scratch`] is dropped, and on SIGINT
//! or SIGTERM, after the programs.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tempfile::TempDir;

use super::Outcome;
use super::machine;

/// A folder that goes with all that is in it.
pub struct Scratch {
    folder: TempDir,
    /// What kind of file system it lies on.
    pub tmpfs: bool,
}

impl Scratch {
    /// A new folder in `place`, in which there must be room for `needed` bytes.
    pub fn create(place: &Path, needed: u64) -> Outcome<Self> {
        let told = |error: io::Error| format!("{}: {error}", place.display());
        let free = machine::free_bytes(place).map_err(told)?;
        if free < needed {
            let [needed, free] = [needed, free].map(|bytes| bytes >> 20);
            return Err(format!("{}: {needed} MiB are needed and {free} MiB are free", place.display()).into());
        }
        let tmpfs = machine::is_tmpfs(place).map_err(told)?;
        let mut to_be_removed = to_be_removed();
        let folder = tempfile::Builder::new().prefix("sealblk-bench-").tempdir_in(place).map_err(told)?;
        to_be_removed.folders.push(folder.path().to_owned());
        Ok(Self { folder, tmpfs })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes everything out that lies in caches of the file system and of the disk.
    pub fn sync(&self) -> Outcome<()> {
        Ok(rustix::fs::syncfs(File::open(self.path())?)?)
    }

    /// Where the folder lies.
    pub fn place(&self) -> &Path {
        self.folder.path().parent().unwrap_or(Path::new("/"))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        to_be_removed().folders.retain(|folder| folder != self.folder.path());
    }
}

/// A running program, its output in a file.
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts it; what it prints goes to a file in `folder`. `package` is where to get it from.
    pub fn start(name: &str, mut command: Command, folder: &Path, package: &str) -> Outcome<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let parent = rustix::process::getpid();
        let die_with_parent = move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have ended before that.
            match rustix::process::getppid() {
                Some(now) if now == parent => Ok(()),
                _ => Err(io::ErrorKind::BrokenPipe.into()),
            }
        };
        // SAFETY: between fork and exec there are two system calls, and no allocation, lock or
        // access to memory that another thread may have been changing.
        unsafe { command.pre_exec(die_with_parent) };
        let mut registered = to_be_removed();
        let child = command.spawn().map_err(|error| {
            let program = command.get_program().display();
            format!("{name}: {program} does not start: {error} (Debian package {package})")
        })?;
        registered.programs.push(child.id());
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(self) -> Outcome<()> {
        let pid = Pid::from_raw(i32::try_from(self.id())?).ok_or("a process without an id")?;
        rustix::process::kill_process(pid, Signal::TERM)?;
        self.finish().map(drop)
    }

    /// Waits until it has ended; its success and the CPU seconds that it took.
    pub fn finish(mut self) -> Outcome<f64> {
        let pid = Pid::from_raw(i32::try_from(self.id())?).ok_or("a process without an id")?;
        // It is left to be waited for again, so that its times can still be read.
        while let Err(error) = rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        {
            if error != rustix::io::Errno::INTR {
                return Err(io::Error::from(error).into());
            }
        }
        let cpu = machine::cpu_seconds(self.id())?;
        match self.child.wait()? {
            status if status.success() => Ok(cpu),
            status => Err(self.told(format_args!("it failed: {status}"))),
        }
    }

    /// An error about this program, with how it has ended, if it has, and the last lines of what it
    /// has printed.
    pub fn told(&self, what: impl std::fmt::Display) -> Box<dyn std::error::Error + Send + Sync> {
        let printed = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = printed.lines().collect();
        let last = lines[lines.len().saturating_sub(20)..].join("\n    ");
        let printed = if last.is_empty() { "it printed nothing".into() } else { format!("it printed:\n    {last}") };
        format!("{}: {what}; {}{printed}", self.name, self.end()).into()
    }

    /// How it has ended, told without waiting for it.
    fn end(&self) -> String {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let pid = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        match pid.and_then(|pid| rustix::process::waitid(WaitId::Pid(pid), options).ok().flatten()) {
            Some(status) => match (status.terminating_signal(), status.exit_status()) {
                (Some(signal), _) => format!("the program was ended by signal {signal}; "),
                (None, status) => format!("the program ended with status {}; ", status.unwrap_or_default()),
            },
            None => String::new(),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let mut registered = to_be_removed();
        let _ = self.child.kill();
        let _ = self.child.wait();
        registered.programs.retain(|id| *id != self.child.id());
    }
}

/// Runs a command to its end.
pub fn finish(command: &mut Command, package: &str) -> Outcome<()> {
    let program = command.get_program().display().to_string();
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error} (Debian package {package})"))?;
    if output.status.success() {
        return Ok(());
    }
    let printed = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} failed: {}: {}", output.status, printed.trim()).into())
}

/// From here on SIGINT and SIGTERM end the process and leave nothing behind.
pub fn remove_on_signals() -> Outcome<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        // Held to the end: nothing new is started or made.
        let registered = to_be_removed();
        for pid in registered.programs.iter().filter_map(|id| Pid::from_raw(i32::try_from(*id).ok()?)) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        }
        for folder in &registered.folders {
            if let Err(error) = fs::remove_dir_all(folder) {
                eprintln!("{} is left behind: {error}", folder.display());
            }
        }
        std::process::exit(128 + signal);
    });
    Ok(())
}

struct ToBeRemoved {
    programs: Vec<u32>,
    folders: Vec<PathBuf>,
}

static TO_BE_REMOVED: Mutex<ToBeRemoved> = Mutex::new(ToBeRemoved { programs: Vec::new(), folders: Vec::new() });

fn to_be_removed() -> MutexGuard<'static, ToBeRemoved> {
    TO_BE_REMOVED.lock().unwrap_or_else(PoisonError::into_inner)
}
