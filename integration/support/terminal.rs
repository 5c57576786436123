//! A terminal of its own for a process, as somebody sits before it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::wait_until;

/// A process on a terminal; killed on drop.
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    /// Starts a command on a terminal of 120 columns.
    pub fn start(command: &mut Command) -> Terminal {
        let size = libc::winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
        let (mut master, mut slave) = (0, 0);
        // SAFETY: both numbers and the size are live, and no name or settings are asked for.
        let opened = unsafe { libc::openpty(&mut master, &mut slave, std::ptr::null_mut(), std::ptr::null(), &size) };
        assert_eq!(opened, 0, "no terminal: {}", std::io::Error::last_os_error());
        // SAFETY: they have just been opened and are nobody else's.
        let (keyboard, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        let end = || slave.try_clone().expect("another handle of the terminal");
        command.stdin(end()).stdout(end()).stderr(end()).env("TERM", "xterm");
        // SAFETY: the child makes two system calls and nothing else.
        unsafe {
            command.pre_exec(|| match libc::setsid() != -1 && libc::ioctl(0, libc::TIOCSCTTY, 0) != -1 {
                true => Ok(()),
                false => Err(std::io::Error::last_os_error()),
            });
        }
        let child = command.spawn().expect("starting it");
        // The command holds ends of the terminal, which would keep it open.
        command
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let screen = Arc::new(Mutex::new(String::new()));
        let reader = {
            let (mut from, screen) = (keyboard.try_clone().expect("another handle of the terminal"), screen.clone());
            thread::spawn(move || {
                let mut bytes = [0; 4096];
                // It ends with an error when nobody holds the other end any more.
                while let Ok(count @ 1..) = from.read(&mut bytes) {
                    screen.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
                }
            })
        };
        Terminal { child, keyboard, screen, reader: Some(reader) }
    }

    /// Everything that was ever shown, with what moves the cursor in between.
    pub fn shown(&self) -> String {
        self.screen.lock().unwrap().clone()
    }

    /// Waits until something has been shown.
    pub fn await_shown(&self, what: &str, is_it: impl Fn(&str) -> bool) {
        wait_until(&format!("on the terminal: {what}: {:?}", self.shown()), || is_it(&self.shown()));
    }

    /// Presses a key together with Ctrl.
    pub fn press_ctrl(&mut self, key: char) {
        self.keyboard.write_all(&[key as u8 & 0x1f]).expect("a key");
    }

    /// Waits until it has ended; how, and all that was shown.
    pub fn end(mut self, patience: Duration) -> (ExitStatus, String) {
        let deadline = Instant::now() + patience;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("its state") {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end: {:?}", self.shown());
            thread::sleep(Duration::from_millis(10));
        };
        self.reader.take().expect("a reader").join().expect("the reader");
        (status, self.shown())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
