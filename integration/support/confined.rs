//! A program with no more privileges than its pod asks for: root in name, without capabilities, and without io_uring,
//! which the default profile of container runtimes forbids.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A command that runs `program` so. Needs root.
pub fn confined(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "0", "--regid", "0", "--clear-groups"]);
    command.args(["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--", program]);
    // SAFETY: the child makes one system call and touches no memory but its stack.
    unsafe { command.pre_exec(forbid_io_uring) };
    command
}

/// From now on no ring can be made in this process and those that it starts.
fn forbid_io_uring() -> io::Result<()> {
    let instruction = |code: u32, if_not: u8, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: if_not, k };
    let mut filter = [
        // The number of the system call is the first word of what a filter sees.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, libc::SYS_io_uring_setup as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its instructions are valid for the length of the call.
    match unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
