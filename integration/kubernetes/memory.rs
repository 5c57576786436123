//! A key that comes from the cluster is in the process in one protected place while the volume is
//! attached, and nowhere before and after: not in the buffers of TLS, HTTP and JSON that it came
//! through, not on the stack of a thread that has ended, and not in a core dump.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

use super::proxy::{Gate, Proxy};
use super::tenant::{Form, Tenant, altered, assert_success};
use crate::support::cluster::Cluster;
use crate::support::guest::Guest;
use crate::support::pattern::pattern;
use crate::support::search::Traces;
use crate::support::serving::Serving;
use crate::support::{PATIENCE, wait_until};

#[test]
fn a_clear_key_is_in_protected_memory_while_attached_and_nowhere_else() {
    key_is_in_one_place(Form::Clear);
}

#[test]
fn a_wrapped_key_and_its_namespace_key_leave_nothing_else_behind() {
    key_is_in_one_place(Form::Wrapped);
}

fn key_is_in_one_place(form: Form) {
    let tenant = Tenant::new(Cluster::shared(), "memory", form);
    let source = tenant.source();
    assert_success(&tenant.create("d", &source, &[]).output().expect("running sealblk"));
    let traces = Traces::of(&[&tenant.key]);
    let of_namespace = Traces::of(&[&tenant.namespace_key]);

    // Before: all is ready, and nothing has been sent.
    let gate = Arc::new(Gate::default());
    let held = gate.clone();
    let proxy = Proxy::start(tenant.cluster.port(), move || held.pass());
    let kubeconfig = altered(&tenant.kubeconfig, "held", &tenant.cluster.url(), &proxy.url());
    let arguments = ["--key", &source, "--kubeconfig", &kubeconfig.display().to_string()];
    let mut serving = Serving::begin(&tenant.directory("d"), &arguments);
    wait_until("a connection", || proxy.connections() > 0);
    assert!(traces.in_process(serving.pid()).is_empty());

    // During: with a guest that has used it.
    gate.open();
    serving.wait_for_socket();
    let mut guest = Guest::connect(serving.socket());
    guest.write(0, &pattern(1, 65536));
    assert!(guest.read(0, 65536) == pattern(1, 65536));
    let found = traces.in_process(serving.pid());
    assert!(!found.is_empty(), "a key that is nowhere cannot be used");
    assert!(found.iter().all(|found| found.mapping.is_protected()), "{found:?}");
    let found = of_namespace.in_process(serving.pid());
    assert!(found.is_empty(), "{found:?}");
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for core dumps");
    let core = dump(serving.pid(), folder.path());
    assert_eq!((traces.count_in_file(&core), of_namespace.count_in_file(&core)), (0, 0));
    drop(guest);

    // After: the front end is gone and the volume detached; the process has one instruction left.
    let mut debugger = Debugger::catch_exit(serving.pid(), folder.path());
    serving.ask_to_end();
    debugger.wait_until_caught();
    for traces in [&traces, &of_namespace] {
        let found = traces.in_process(serving.pid());
        assert!(found.is_empty(), "{found:?}");
        assert_eq!(traces.count_in_file(&debugger.core()), 0);
    }
    debugger.let_go();
    serving.assert_ends();
}

/// The search, the dump and the debugger find what is there.
#[test]
fn the_search_finds_a_key_that_is_not_protected() {
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for core dumps");
    // An environment holds no zeros.
    let key: Vec<u8> = pattern(21, 64).iter().map(|byte| byte | 1).collect();
    let traces = Traces::of(&[&key]);
    let none = Holder::start(&[0x77; 64]);
    assert!(traces.in_process(none.pid()).is_empty());
    let mut texts = vec![key.clone(), key[5..21].to_vec()];
    texts.extend((0..3).map(|shift| STANDARD.encode([&b"ab"[..shift.min(2)], &key].concat()).into_bytes()));
    for text in texts {
        let mut holder = Holder::start(&text);
        let found = traces.in_process(holder.pid());
        assert!(!found.is_empty() && found.iter().all(|found| !found.mapping.is_protected()), "{found:?}");
        assert!(traces.count_in_file(&dump(holder.pid(), folder.path())) > 0);

        let mut debugger = Debugger::catch_exit(holder.pid(), folder.path());
        holder.ask_to_end();
        debugger.wait_until_caught();
        assert!(!traces.in_process(holder.pid()).is_empty());
        assert!(traces.count_in_file(&debugger.core()) > 0);
        debugger.let_go();
    }
}

/// A process that holds some bytes to its end, in its environment.
struct Holder(Child);

impl Holder {
    fn start(bytes: &[u8]) -> Holder {
        let mut command = Command::new("cat");
        command.env("HELD", OsStr::from_bytes(bytes)).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("running cat");
        // When it answers it is past its start.
        child.stdin.as_mut().expect("a piped stdin").write_all(b"!").expect("writing to cat");
        child.stdout.as_mut().expect("a piped stdout").read_exact(&mut [0]).expect("reading from cat");
        Holder(child)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn ask_to_end(&mut self) {
        self.0.stdin.take();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A core dump of a running process, with all that the kernel would put into one. Made with a debugger,
/// since sealblk forbids the kernel to make any.
fn dump(pid: u32, folder: &Path) -> std::path::PathBuf {
    let prefix = folder.join("core");
    let output = Command::new("gcore").arg("-o").arg(&prefix).arg(pid.to_string()).output().expect("running gcore");
    let path = folder.join(format!("core.{pid}"));
    let length = fs::metadata(&path).map_or(0, |metadata| metadata.len());
    assert!(length > 100_000, "no core dump: {}", String::from_utf8_lossy(&output.stderr));
    path
}

/// A debugger that stops a process when it is about to end, with its memory as it then is.
struct Debugger {
    child: Child,
    folder: TempDir,
}

impl Debugger {
    fn catch_exit(pid: u32, parent: &Path) -> Debugger {
        let folder = TempDir::new_in(parent).expect("a folder for the debugger");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (ready, caught, core) = (path("ready"), path("caught"), path("core"));
        let commands = [
            "set pagination off".to_owned(),
            "handle SIGTERM nostop noprint pass".to_owned(),
            "catch syscall exit_group".to_owned(),
            format!("shell touch {ready}"),
            "continue".to_owned(),
            format!("generate-core-file {core}"),
            format!("shell touch {caught}; while [ -e {caught} ]; do sleep 0.02; done"),
        ];
        let log = File::create(folder.path().join("log")).expect("a log file");
        let mut command = Command::new("gdb");
        command.args(["-nx", "-batch", "-p", &pid.to_string()]);
        command.args(commands.iter().flat_map(|line| ["-ex", line]));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("the log")).stderr(log);
        let debugger = Debugger { child: command.spawn().expect("running gdb"), folder };
        debugger.wait_for("ready");
        debugger
    }

    fn wait_until_caught(&mut self) {
        self.wait_for("caught");
    }

    fn core(&self) -> std::path::PathBuf {
        self.folder.path().join("core")
    }

    fn let_go(&mut self) {
        fs::remove_file(self.folder.path().join("caught")).expect("the debugger waits");
        self.child.wait().expect("the end of gdb");
    }

    fn wait_for(&self, name: &str) {
        let deadline = Instant::now() + 3 * PATIENCE;
        while !self.folder.path().join(name).exists() {
            let log = || fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "gdb is not {name}: {}", log());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Debugger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
