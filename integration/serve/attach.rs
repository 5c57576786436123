//! Attaches that must be refused: with one line that names the object, and with no byte of the
//! volume changed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::configuration::Configuration;
use crate::support::pattern::pattern;
use crate::support::served::{Served, command};
use crate::support::volume::{SEALBLK, Volume};

const SIZE: u64 = 1 << 20;

under_every_engine!(
    key_that_is_not_the_volumes,
    volume_that_is_not_whole,
    volume_that_is_served_already,
    file_that_is_no_socket_is_left_alone,
    socket_of_another_process_is_left_alone,
);

/// Everything about a volume's files that an attach could change.
fn state(volume: &Volume) -> Vec<(PathBuf, Vec<u8>, i64, i64)> {
    let mut files: Vec<_> = fs::read_dir(volume.directory())
        .expect("the volume's folder")
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let metadata = fs::metadata(&path).expect("a file's metadata");
            let content = fs::read(&path).expect("a file of the volume");
            (path, content, metadata.mtime(), metadata.mtime_nsec())
        })
        .collect();
    files.sort();
    files
}

/// Runs a server that must end by itself with exit status 1 and a line about `object`.
fn assert_refused(serve: &mut Command, object: &str) -> String {
    let output = serve.stderr(Stdio::piped()).output().expect("running sealblk serve");
    assert_refusal(&output, 1, object)
}

fn assert_refusal(output: &Output, status: i32, object: &str) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    let last = stderr.lines().last().unwrap_or_default();
    assert!(last.contains(object), "no word of {object} in: {stderr}");
    stderr
}

/// A socket path that nobody uses.
fn fresh_socket() -> (TempDir, PathBuf) {
    let folder = TempDir::new().expect("a folder for the socket");
    let path = folder.path().join("blk.sock");
    (folder, path)
}

/// The command that serves `volume` with another key, or with none.
fn with_key(volume: &Volume, socket: &Path, key: Option<&Path>) -> Command {
    let mut command = Command::new(SEALBLK);
    command
        .arg("serve")
        .arg(volume.directory())
        .arg("--socket")
        .arg(socket)
        .args(["--engine", volume.configuration.engine])
        .stdin(Stdio::null());
    match key {
        Some(key) => command.arg("--key").arg(format!("file:{}", key.display())),
        None => command.arg("--no-encryption"),
    };
    command
}

fn key_that_is_not_the_volumes(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let (_folder, socket) = fresh_socket();
    let before = state(&volume);
    let file = |name: &str, content: &[u8]| {
        let path = volume.folder().join(name);
        fs::write(&path, content).expect("a key file");
        path
    };
    if configuration.encrypted {
        let mut close = volume.key().to_vec();
        close[63] ^= 1;
        let mut halves = pattern(1, 32);
        halves.extend_from_within(..);
        let secret = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: empty\ndata: {}\n";
        let directory = volume.directory().display().to_string();
        let wrong: [(&str, Vec<u8>, &str); 6] = [
            ("other", pattern(2, 64), &directory),
            ("one-bit", close, &directory),
            ("short", volume.key()[..63].to_vec(), "short"),
            ("long", [volume.key(), &[0]].concat(), "long"),
            ("halves", halves, "halves"),
            ("no-key.yaml", secret.into(), "key"),
        ];
        for (name, content, object) in wrong {
            let path = file(name, &content);
            let mut serve = with_key(&volume, &socket, Some(&path));
            assert_refused(&mut serve, object);
        }
        let absent = volume.folder().join("absent");
        let mut serve = with_key(&volume, &socket, Some(&absent));
        assert_refused(&mut serve, "absent");
        // A volume with a key is not served as if it had none.
        assert_refused(&mut with_key(&volume, &socket, None), &directory);
    } else {
        // A volume without a key is not served as if it had one.
        let path = volume.key_path();
        let mut serve = with_key(&volume, &socket, Some(&path));
        assert_refused(&mut serve, &volume.directory().display().to_string());
    }
    assert!(!socket.exists(), "a refused attach left a socket");
    assert_eq!(state(&volume), before);
    drop(Served::start(&volume).guest());
}

fn volume_that_is_not_whole(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let (_folder, socket) = fresh_socket();
    let superblock = volume.directory().join("volume.json");
    let whole = fs::read(&superblock).expect("the superblock");

    for position in (0..whole.len()).step_by(5) {
        let mut damaged = whole.clone();
        damaged[position] ^= 0x10;
        fs::write(&superblock, &damaged).expect("damaging the superblock");
        let before = state(&volume);
        assert_refused(&mut command(&volume, &socket), "volume.json");
        assert_eq!(state(&volume), before);
    }
    for damaged in [&whole[..whole.len() / 2], &[]] {
        fs::write(&superblock, damaged).expect("damaging the superblock");
        assert_refused(&mut command(&volume, &socket), "volume.json");
    }
    fs::remove_file(&superblock).expect("removing the superblock");
    let name = volume.directory().display().to_string();
    assert_refused(&mut command(&volume, &socket), &name);
    fs::write(&superblock, &whole).expect("restoring the superblock");

    let data = fs::File::options().write(true).open(volume.data_path()).expect("the data file");
    data.set_len(SIZE - 512).expect("shortening the data file");
    let before = state(&volume);
    assert_refused(&mut command(&volume, &socket), "data");
    assert_eq!(state(&volume), before);
    data.set_len(SIZE).expect("restoring the data file");
    drop(data);

    let aside = volume.folder().join("aside");
    fs::rename(volume.data_path(), &aside).expect("moving the data file");
    assert_refused(&mut command(&volume, &socket), "data");
    fs::rename(&aside, volume.data_path()).expect("restoring the data file");

    let elsewhere = volume.folder().join("elsewhere");
    fs::rename(volume.directory(), &elsewhere).expect("moving the volume");
    assert_refused(&mut command(&volume, &socket), &name);
    fs::rename(&elsewhere, volume.directory()).expect("restoring the volume");

    assert!(!socket.exists(), "a refused attach left a socket");
    drop(Served::start(&volume).guest());
}

fn volume_that_is_served_already(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let mut served = Served::start(&volume);
    let mut guest = served.guest();
    let data = pattern(3, 65536);
    guest.write(0, &data);
    let (_folder, socket) = fresh_socket();
    let name = volume.directory().display().to_string();
    assert_refused(&mut command(&volume, &socket), &name);
    // On the socket of the one that serves it, too, which is what is found first.
    let socket = served.socket().to_owned();
    assert_refused(&mut command(&volume, &socket), &socket.display().to_string());
    served.assert_alive();
    assert!(guest.read(0, data.len()) == data);
    drop(guest);
    assert!(served.guest().read(0, data.len()) == data);
}

fn file_that_is_no_socket_is_left_alone(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let (folder, socket) = fresh_socket();
    let before = state(&volume);
    fs::write(&socket, b"somebody's file").expect("a file");
    let name = socket.display().to_string();
    assert_refused(&mut command(&volume, &socket), &name);
    assert_eq!(fs::read(&socket).expect("the file"), b"somebody's file");

    let subfolder = folder.path().join("folder");
    fs::create_dir(&subfolder).expect("a folder");
    assert_refused(&mut command(&volume, &subfolder), "folder");
    assert!(subfolder.is_dir());

    let nowhere = folder.path().join("nowhere/blk.sock");
    assert_refused(&mut command(&volume, &nowhere), "nowhere");
    assert_eq!(state(&volume), before);
}

fn socket_of_another_process_is_left_alone(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let (_folder, socket) = fresh_socket();
    let listener = UnixListener::bind(&socket).expect("a listener");
    let inode = fs::metadata(&socket).expect("the socket").ino();
    let name = socket.display().to_string();
    assert_refused(&mut command(&volume, &socket), &name);
    assert_eq!(fs::metadata(&socket).expect("the socket").ino(), inode);
    drop(listener);
    // A process that another test is just starting holds the listener until it runs its program.
    while UnixStream::connect(&socket).is_ok() {
        thread::sleep(Duration::from_millis(1));
    }
    // Now that nobody listens any more, the file is stale.
    let mut child = command(&volume, &socket).spawn().expect("a server");
    drop(crate::support::guest::Guest::connect(&socket));
    child.kill().expect("ending the server");
    child.wait().expect("the server's end");
}

#[test]
fn arguments_that_make_no_sense_are_usage_errors() {
    let volume = Volume::create(Configuration::USUAL, SIZE);
    let (_folder, socket) = fresh_socket();
    let before = state(&volume);
    let wrong: [&[&str]; 7] = [
        &["--queues", "0"],
        &["--queues", "65"],
        &["--queues=-1"],
        &["--queues", "many"],
        &["--serial", "longer than twenty bytes"],
        &["--no-encryption"],
        &["--what-is-this"],
    ];
    for arguments in wrong {
        let mut serve = command(&volume, &socket);
        let output = serve.args(arguments).output().expect("running sealblk");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(&arguments[0][..8]), "{arguments:?}: {stderr}");
    }
    for copies_only in [["--peer-timeout", "5s"], ["--below-min", "error"], ["--node", "node-a"]] {
        let output = command(&volume, &socket).args(copies_only).output().expect("running sealblk");
        assert_eq!(output.status.code(), Some(2), "{copies_only:?}: {output:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("--view"), "{copies_only:?}: {stderr}");
    }
    let mut serve = with_key(&volume, &socket, Some(&volume.key_path()));
    let output = serve.args(["--engine", "steam"]).output().expect("sealblk");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(state(&volume), before);
    assert!(!socket.exists());
}

/// io_uring's rings count against a limit that an ordinary user meets with many volumes.
#[test]
fn memory_limit_that_holds_no_ring_is_named() {
    let volume = Volume::create(Configuration::new("io-uring", false, 512), SIZE);
    let (_folder, socket) = fresh_socket();
    let mut serve = without_locked_memory(command(&volume, &socket));
    let stderr = assert_refused(&mut serve, "RLIMIT_MEMLOCK");
    assert!(stderr.contains("--engine threads"), "{stderr}");

    // Left to choose, it takes the other engine.
    let volume = Volume::create(Configuration::new("auto", false, 512), SIZE);
    let mut child = without_locked_memory(command(&volume, &socket)).stderr(Stdio::piped()).spawn().expect("a server");
    drop(crate::support::guest::Guest::connect(&socket));
    child.kill().expect("ending the server");
    let output = child.wait_with_output().expect("the server's end");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("threads engine"), "{stderr}");
}

/// The same command, for a process that may lock no memory, not even as root.
fn without_locked_memory(mut command: Command) -> Command {
    const CAP_IPC_LOCK: libc::c_ulong = 14;
    let nothing = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls are allowed after a fork and read nothing but `nothing`. The first fails
    // for those who do not have the capability in the first place.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_CAPBSET_DROP, CAP_IPC_LOCK);
            match libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const nothing) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    command
}

#[test]
fn socket_path_may_be_as_long_as_the_system_allows() {
    let volume = Volume::create(Configuration::USUAL, SIZE);
    let folder = TempDir::new().expect("a folder");
    let room = 107 - folder.path().as_os_str().len() - 1;
    let longest = folder.path().join("x".repeat(room));
    assert_eq!(longest.as_os_str().len(), 107);
    let mut child = command(&volume, &longest).spawn().expect("a server");
    drop(crate::support::guest::Guest::connect(&longest));
    child.kill().expect("ending the server");
    child.wait().expect("the server's end");

    let before = state(&volume);
    for length in [room + 1, room + 2, room + 100] {
        let too_long = folder.path().join("y".repeat(length));
        let name = too_long.display().to_string();
        assert_refused(&mut command(&volume, &too_long), &name);
    }
    assert_eq!(state(&volume), before);
}
