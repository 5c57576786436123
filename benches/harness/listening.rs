//! Programs that listen on a Unix socket.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::Outcome;
use super::scratch::Program;

/// Starts a program and waits until it listens on `socket`.
pub fn start(id: &str, command: Command, socket: &Path, folder: &Path, package: &str) -> Outcome<Program> {
    let mut program = Program::start(id, command, folder, package)?;
    let start = Instant::now();
    while !is_listened_on(socket)? {
        if program.has_ended() {
            return Err(program.told("it ended at once"));
        }
        if start.elapsed() > PATIENCE {
            return Err(program.told("it does not listen"));
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(program)
}

/// Whether somebody listens on `socket`, found out without connecting: a connection that goes again
/// is work for a back end. Sealblk's file is there when it listens, and the system knows that socket
/// under its first name; others' appear a moment earlier.
fn is_listened_on(socket: &Path) -> Outcome<bool> {
    if !socket.exists() {
        return Ok(false);
    }
    let sockets = fs::read_to_string("/proc/net/unix")?;
    let path = socket.to_str().ok_or("a path that is not UTF-8")?;
    // Num RefCount Protocol Flags Type St Inode Path, where a listening socket has this flag.
    Ok(sockets
        .lines()
        .filter(|line| line.ends_with(path))
        .all(|line| line.split_whitespace().nth(3) == Some("00010000")))
}

/// How long a program may take to start.
const PATIENCE: Duration = Duration::from_secs(20);
