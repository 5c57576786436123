//! What a server never gives away: no byte of its key in anything it says, at any level of detail,
//! nor in what its memory leaves behind.

use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use tempfile::TempDir;

use crate::support::configuration::Configuration;
use crate::support::guest::Guest;
use crate::support::pattern::pattern;
use crate::support::request::Request;
use crate::support::served::{Served, command};
use crate::support::volume::{SEALBLK, Volume};

const SIZE: u64 = 1 << 20;

under_every_engine!(logs_hold_no_byte_of_the_key, key_is_in_locked_memory);

/// Every form in which eight bytes of `key` in a row could show up in a text.
fn traces(key: &[u8]) -> Vec<String> {
    let mut traces = Vec::new();
    for window in key.windows(8) {
        let hex: String = window.iter().map(|byte| format!("{byte:02x}")).collect();
        traces.push(hex.to_uppercase());
        traces.push(hex);
        let decimals: Vec<_> = window.iter().map(u8::to_string).collect();
        traces.push(decimals.join(", "));
    }
    for window in key.windows(9) {
        traces.push(STANDARD_NO_PAD.encode(window));
    }
    traces
}

fn assert_no_trace(key: &[u8], text: &[u8]) {
    let readable = String::from_utf8_lossy(text);
    for trace in traces(key) {
        assert!(!readable.contains(&trace), "the key is in: {readable}");
    }
    assert!(!text.windows(8).any(|bytes| key.windows(8).any(|key| key == bytes)));
}

fn logs_hold_no_byte_of_the_key(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let folder = TempDir::new().expect("a folder for the socket");
    let socket = folder.path().join("blk.sock");
    let mut child = command(&volume, &socket)
        .env("RUST_LOG", "trace")
        .env("RUST_BACKTRACE", "full")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a server");
    let pid = i32::try_from(child.id()).expect("a process id");
    let talk = std::thread::spawn(move || {
        let mut guest = Guest::connect(&socket);
        guest.write(0, &pattern(1, 65536));
        let reply = guest.call(0, &Request::read(SIZE, 4096));
        assert_ne!(reply.status, 0);
        guest.rings[0].publish(&guest.memory, 999);
        guest.rings[0].kick_always();
        guest.rings[0].outcome(&guest.memory);
        drop(guest);
        // SAFETY: no memory is involved; the child is waited for only after this thread.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    });
    let mut pipes = (child.stdout.take(), child.stderr.take());
    let read = |pipe: Option<&mut dyn std::io::Read>| {
        let mut bytes = Vec::new();
        pipe.expect("a pipe").read_to_end(&mut bytes).expect("output");
        bytes
    };
    let stderr = read(pipes.1.as_mut().map(|pipe| pipe as _));
    let stdout = read(pipes.0.as_mut().map(|pipe| pipe as _));
    talk.join().expect("the conversation");
    assert!(child.wait().expect("the server's end").success());
    assert!(!stderr.is_empty(), "a server that says nothing proves nothing");
    assert_no_trace(volume.key(), &stderr);
    assert_no_trace(volume.key(), &stdout);

    // A wrong key is not quoted either.
    let wrong = volume.folder().join("wrong");
    let other = pattern(9, 64);
    std::fs::write(&wrong, &other).expect("a key file");
    for length in [64, 63] {
        std::fs::write(&wrong, &other[..length]).expect("a key file");
        let output = Command::new(SEALBLK)
            .arg("serve")
            .arg(volume.directory())
            .arg("--socket")
            .arg(volume.folder().join("blk.sock"))
            .arg("--key")
            .arg(format!("file:{}", wrong.display()))
            .env("RUST_LOG", "trace")
            .output()
            .expect("running sealblk");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("key"), "{said}");
        assert_no_trace(&other, &output.stderr);
        assert_no_trace(volume.key(), &output.stderr);
    }
}

fn key_is_in_locked_memory(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    guest.write(0, &pattern(2, 4096));
    if configuration.encrypted {
        assert!(served.memory_kib("VmLck") > 0, "no memory is locked");
    }
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps", served.pid()));
    let maps = maps.expect("the server's mappings");
    for flags in maps.lines().filter_map(|line| line.strip_prefix("VmFlags:")) {
        let has = |wanted: &str| flags.split_whitespace().any(|flag| flag == wanted);
        assert!(!has("lo") || has("dd"), "locked memory in core dumps");
    }
}
