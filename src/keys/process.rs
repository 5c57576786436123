//! What the process does for its keys as a whole, before it handles the first one.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, setrlimit};

/// Makes the process one that other processes of the same user cannot read and that writes no core
/// dump: `PR_SET_DUMPABLE` 0 and `RLIMIT_CORE` 0.
///
/// # Errors
///
/// The operating system's, when it refuses either.
pub fn protect() -> io::Result<()> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a child, because what is given up here cannot be taken back.
    #[test]
    fn a_protected_process_is_not_dumpable() {
        // SAFETY: the child makes system calls only, and ends without running anything of the parent's.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            let protected = protect().is_ok()
                && matches!(rustix::process::dumpable_behavior(), Ok(DumpableBehavior::NotDumpable))
                && rustix::process::getrlimit(Resource::Core).current == Some(0);
            // SAFETY: ends the child.
            unsafe { libc::_exit(if protected { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: `child` is this test's own, and `status` is live.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0, "the child found itself unprotected");
    }
}
