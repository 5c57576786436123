//! A program that runs beside the tests and ends with them.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// A running program; killed on drop, and by the kernel if this process ends without.
pub struct Program {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts a program whose output goes to `NAME.log` in `folder`.
    pub fn start(name: &'static str, mut command: Command, folder: &Path) -> Program {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).expect("a log file");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("the log file")).stderr(file).current_dir(folder);
        let child = spawn(command).unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Program { name, child, log }
    }

    /// Fails the test if the program has ended.
    pub fn assert_alive(&mut self) {
        let ended = self.child.try_wait().expect("the program's state");
        assert!(ended.is_none(), "{} died ({ended:?}):\n{}", self.name, self.log());
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the program's log")
    }

    /// Tells it to end, and returns how it has ended and what it has written.
    pub fn terminate(self, patience: Duration) -> (ExitStatus, String) {
        let pid = i32::try_from(self.pid()).expect("a process id");
        // SAFETY: no memory is involved; the program has not been waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0, "the signal was not sent");
        self.await_end(patience)
    }

    /// Waits until it ends; how it did, and what it has written.
    pub fn await_end(mut self, patience: Duration) -> (ExitStatus, String) {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().expect("the program's state") {
                return (status, self.log());
            }
            assert!(Instant::now() < deadline, "{} does not end:\n{}", self.name, self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Spawns from a thread that lives as long as the process does: the kernel kills the child when the
/// thread that made it ends, and the threads of tests come and go.
fn spawn(mut command: Command) -> std::io::Result<Child> {
    type Order = (Command, Sender<std::io::Result<Child>>);
    static ORDERS: LazyLock<Sender<Order>> = LazyLock::new(|| {
        let (sender, orders) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in orders {
                answer.send(command.spawn()).expect("somebody who waits for the program");
            }
        });
        sender
    });

    // SAFETY: prctl is a system call and safe between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        })
    };
    let (answer, child) = mpsc::channel();
    ORDERS.send((command, answer)).expect("the thread that spawns");
    child.recv().expect("the thread that spawns")
}
