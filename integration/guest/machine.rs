//! A virtual machine whose disk is a vhost-user socket, and the conversation with its guest.
//!
//! The guest speaks in lines on its second serial port (the words are those of
//! `vm-images/job.sh`), and a test reads them strictly in order: what it expects next, or it fails.
//! A test that fails for whatever reason shows the end of the guest's console. No machine outlives
//! its test or its time.

use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::images::Images;

/// How long one machine may run. Emulated guests on a busy machine are slow; one that works needs
/// less than a tenth of this.
const TIME_LIMIT: Duration = Duration::from_secs(420);
const MEMORY_MIB: u32 = 768;
const CONSOLE_TAIL_LINES: usize = 60;

/// Where the machine's first instructions come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// QEMU loads kernel and initramfs.
    Kernel,
    /// The BIOS boots from the disk.
    Firmware,
}

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// The back end's socket.
    pub disk: &'a Path,
    /// Queues that the disk gets, and as many processors.
    pub queues: u16,
    /// Kernel or firmware.
    pub start: Start,
    /// The shell script that the guest runs.
    pub job: &'a str,
}

impl Machine<'_> {
    /// Starts the machine and waits until QEMU has opened the guest's line.
    pub fn boot(self) -> RunningMachine {
        let images = Images::get();
        // Not in the target folder, whose path may be longer than a socket address holds.
        let folder = tempfile::tempdir().expect("a temporary folder");
        let line = folder.path().join("line");
        let listener = UnixListener::bind(&line).expect("a socket for the guest's line");
        let job = folder.path().join("job");
        fs::write(&job, self.job).expect("the job is written");
        let console = folder.path().join("console");
        let log = fs::File::create(folder.path().join("qemu.log")).expect("a log for QEMU");

        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-accel", &images.accelerator, "-cpu", "max"])
            .args(["-smp", &self.queues.to_string()])
            // The back end maps the guest's memory, so it has to be shared.
            .args(["-machine", "q35,memory-backend=memory"])
            .arg("-object")
            .arg(format!("memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on"))
            .arg("-m")
            .arg(format!("{MEMORY_MIB}M"))
            .arg("-chardev")
            .arg(format!("file,id=console,path={}", console.display()))
            .args(["-serial", "chardev:console"])
            .arg("-chardev")
            .arg(format!("socket,id=line,path={}", line.display()))
            .args(["-serial", "chardev:line"])
            .arg("-fw_cfg")
            .arg(format!("name=opt/sealblk/job,file={}", job.display()))
            .arg("-chardev")
            // A back end that ends without a word is called again every second.
            .arg(format!("socket,id=disk,path={},reconnect=1", self.disk.display()));
        let device = format!("vhost-user-blk-pci,chardev=disk,num-queues={}", self.queues);
        match self.start {
            Start::Kernel => {
                qemu.args(["-device", &device])
                    .arg("-kernel")
                    .arg(images.kernel())
                    .arg("-initrd")
                    .arg(images.initramfs())
                    .args(["-append", "console=ttyS0 loglevel=4"]);
            }
            Start::Firmware => {
                qemu.args(["-device", &format!("{device},bootindex=0")]);
            }
        }
        let child = qemu
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle of the log"))
            .stderr(log)
            .spawn()
            .expect("qemu-system-x86_64 starts (Debian package qemu-system-x86)");
        RunningMachine::new(child, &listener, console, folder)
    }
}

/// One line of the guest.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Booted,
    Result { name: String, ok: bool, detail: String },
    Ask(String),
    Done(i32),
}

/// A machine that runs until its job is done or this is dropped.
pub struct RunningMachine {
    child: Child,
    line: BufReader<UnixStream>,
    console: PathBuf,
    folder: TempDir,
    deadline: Instant,
}

impl RunningMachine {
    /// The guest has come up, for the first time or after a reboot.
    pub fn booted(&mut self) {
        let said = self.next();
        assert!(said == Said::Booted, "expected BOOTED, the guest said {said:?}");
    }

    /// The next step is `name`, and it went well; its detail.
    pub fn ok(&mut self, name: &str) -> String {
        match self.next() {
            Said::Result { name: step, ok: true, detail } if step == name => detail,
            said => panic!("expected step {name} to be ok, the guest said {said:?}"),
        }
    }

    /// The steps `names` follow one another, and all went well.
    pub fn all_ok(&mut self, names: &[&str]) {
        for name in names {
            self.ok(name);
        }
    }

    /// The guest asks `question` and waits for the answer.
    pub fn asked(&mut self, question: &str) {
        let said = self.next();
        assert!(said == Said::Ask(question.to_owned()), "expected the question {question}, the guest said {said:?}");
    }

    /// Answers the question that was asked last.
    pub fn answer(&mut self, text: &str) {
        let sent = writeln!(self.line.get_mut(), "{text}");
        assert!(sent.is_ok(), "the guest's line broke: {sent:?}");
    }

    /// The guest asks `question` and gets `text`.
    pub fn answer_to(&mut self, question: &str, text: &str) {
        self.asked(question);
        self.answer(text);
    }

    /// The job ended well and the machine powers off.
    pub fn done(mut self) {
        let said = self.next();
        assert!(said == Said::Done(0), "expected the job to end, the guest said {said:?}");
        let status = loop {
            self.check_time("power off");
            match self.child.try_wait().expect("QEMU can be waited for") {
                Some(status) => break status,
                None => thread::sleep(Duration::from_millis(20)),
            }
        };
        assert!(status.success(), "QEMU ended with {status}");
    }

    /// Ends the machine as a power cut would.
    pub fn kill(mut self) {
        self.child.kill().expect("QEMU can be killed");
        self.child.wait().expect("QEMU can be waited for");
    }

    fn new(mut child: Child, listener: &UnixListener, console: PathBuf, folder: TempDir) -> RunningMachine {
        let deadline = Instant::now() + TIME_LIMIT;
        listener.set_nonblocking(true).expect("a listener that does not wait");
        let line = loop {
            match listener.accept() {
                Ok((line, _)) => break line,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let ended = child.try_wait().expect("QEMU can be waited for");
                    if ended.is_some() || Instant::now() > deadline {
                        let _ = child.kill();
                        panic!("QEMU did not start ({ended:?}):\n{}", qemu_log(&folder));
                    }
                    thread::sleep(Duration::from_millis(20));
                }
                Err(error) => panic!("cannot accept the guest's line: {error}"),
            }
        };
        line.set_nonblocking(false).expect("a line that waits");
        line.set_read_timeout(Some(Duration::from_millis(500))).expect("a line that waits for a limited time");
        RunningMachine { child, line: BufReader::new(line), console, folder, deadline }
    }

    fn next(&mut self) -> Said {
        let mut bytes = Vec::new();
        loop {
            match self.line.read_until(b'\n', &mut bytes) {
                Ok(_) if bytes.ends_with(b"\n") => break,
                Ok(_) => panic!("QEMU ended before the job did"),
                // What has come of the line so far stays in `bytes`.
                Err(error) if is_timeout(&error) => self.check_time("say more"),
                Err(error) => panic!("the guest's line broke: {error}"),
            }
        }
        let text = String::from_utf8_lossy(&bytes).trim().to_owned();
        let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
        match word {
            "BOOTED" => Said::Booted,
            "ASK" => Said::Ask(rest.to_owned()),
            "DONE" => Said::Done(rest.parse().unwrap_or(-1)),
            "RESULT" => {
                let mut parts = rest.splitn(3, ' ');
                let mut part = || parts.next().unwrap_or("").to_owned();
                Said::Result { name: part(), ok: part() == "ok", detail: part() }
            }
            _ => panic!("the guest said {text:?}, which is no word of a job"),
        }
    }

    fn check_time(&self, what: &str) {
        assert!(Instant::now() < self.deadline, "the machine did not {what} within {TIME_LIMIT:?}");
        // A kernel that has panicked says nothing more.
        assert!(!self.console_text().contains("Kernel panic"), "the guest's kernel panicked");
    }

    fn console_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }
}

impl Drop for RunningMachine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let console = self.console_text();
            let lines: Vec<&str> = console.lines().collect();
            let tail = &lines[lines.len().saturating_sub(CONSOLE_TAIL_LINES)..];
            eprintln!(
                "--- the end of the guest's console ---\n{}\n--- QEMU ---\n{}",
                tail.join("\n"),
                qemu_log(&self.folder),
            );
        }
    }
}

fn qemu_log(folder: &TempDir) -> String {
    fs::read_to_string(folder.path().join("qemu.log")).unwrap_or_default()
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
