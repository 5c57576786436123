//! Copies are compared while a guest works: what has changed on one is found where it is, and healed from the others.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, symlink};
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use sealblk::replication::primary::request::{FoundRange, VerifyLine, VerifyOutcome};
use sealblk::replication::primary::status::CopyState;
use sealblk::replication::writer::Outcome;

use crate::cluster::{Cluster, LONG, Plan, Writer, name};
use crate::model::{BLOCK, Model};
use crate::support::guest::Guest;
use crate::support::loopback::LoopDevice;
use crate::support::pattern::pattern;
use crate::workload::{Load, Manner};

/// What `volume verify` has said.
struct Said {
    status: Option<i32>,
    found: Vec<FoundRange>,
    outcome: Option<VerifyOutcome>,
    error: String,
}

fn verify(cluster: &Cluster, arguments: &[&str]) -> Said {
    hear(cluster.verify(0, arguments).output().expect("running sealblk"))
}

fn hear(output: Output) -> Said {
    let lines = String::from_utf8(output.stdout).expect("text");
    let mut said = Said {
        status: output.status.code(),
        found: Vec::new(),
        outcome: None,
        error: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    for line in lines.lines() {
        match serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")) {
            VerifyLine::Found(found) => said.found.push(found),
            VerifyLine::Outcome(outcome) => said.outcome = Some(outcome),
            VerifyLine::Progress { position, size } => assert!(position <= size),
            VerifyLine::Refused(_) => {}
        }
    }
    said
}

/// That every byte of every copy was compared and nothing found.
fn assert_equal(cluster: &Cluster, nodes: usize) {
    let said = verify(cluster, &[]);
    assert_eq!((said.status, &said.found[..]), (Some(0), &[][..]), "{}", said.error);
    let outcome = said.outcome.expect("an outcome");
    let compared: Vec<u64> = outcome.members.iter().map(|member| member.bytes).collect();
    assert_eq!(compared, vec![Plan::USUAL.size_bytes; nodes]);
}

/// Turns bits of a copy over, on the disk.
fn flip(cluster: &Cluster, node: usize, offset: u64, len: usize) {
    let file = OpenOptions::new().read(true).write(true).open(cluster.copy(node).join("data")).expect("a copy's data");
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset).expect("reading a copy");
    bytes.iter_mut().for_each(|byte| *byte ^= 0x10);
    file.write_all_at(&bytes, offset).expect("changing a copy");
    file.sync_all().expect("syncing a copy");
}

fn stored(cluster: &Cluster, node: usize, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let file = File::open(cluster.copy(node).join("data")).expect("a copy's data");
    file.read_exact_at(&mut bytes, offset).expect("reading a copy");
    bytes
}

/// With a writer on node-a, all in sync, and something on the part of the disk that no load touches.
fn serve(plan: &Plan, arguments: &[&str]) -> (Cluster, Writer) {
    let mut cluster = Cluster::start(plan);
    let writer = cluster.serve(0, arguments);
    cluster.await_in_sync(0);
    let mut guest = Guest::connect(&writer.socket);
    guest.write(FILLED, &pattern(1, 8 << 20));
    guest.flush();
    drop(guest);
    cluster.await_settled(0);
    (cluster, writer)
}

#[test]
fn flipped_bits_are_found_where_they_are_and_healed_under_a_load() {
    let (cluster, writer) = serve(&Plan::USUAL, &[]);
    let load = Load::start(&writer.socket, Model::new(FILLED as usize / BLOCK), Manner::usual(91));
    load.await_progress(500);
    assert_equal(&cluster, 3);

    let offset = FILLED + 3 * MIB + 5 * 4096;
    flip(&cluster, 1, offset + 100, 1);
    let damaged = stored(&cluster, 1, offset, 4096);
    let said = verify(&cluster, &[]);
    let names = |nodes: &[usize]| nodes.iter().map(|&node| name(node)).collect::<Vec<String>>();
    let mut found = FoundRange {
        offset,
        len: 4096,
        right: names(&[0, 2]),
        differing: names(&[1]),
        unreadable: Vec::new(),
        outcome: Outcome::Reported,
    };
    assert_eq!((said.status, &said.found[..]), (Some(1), &[found.clone()][..]), "{}", said.error);
    assert!(said.error.contains("4096 bytes differ"), "{}", said.error);
    assert!(stored(&cluster, 1, offset, 4096) == damaged, "nobody has asked for a repair");

    // One that has rotted more, and the writer's own.
    let other = FILLED + 5 * MIB;
    flip(&cluster, 0, other, 20 * 4096);
    let said = verify(&cluster, &["--repair"]);
    found.outcome = Outcome::Healed;
    let own =
        FoundRange { offset: other, len: 20 * 4096, right: names(&[1, 2]), differing: names(&[0]), ..found.clone() };
    assert_eq!(said.status, Some(0), "{}", said.error);
    assert_eq!(covered(&said.found), covered(&[found, own]), "{:?}", said.found);
    assert_eq!(said.outcome.map(|outcome| outcome.healed_bytes), Some(21 * 4096));
    assert_equal(&cluster, 3);
    assert!(stored(&cluster, 1, offset, 4096) == stored(&cluster, 0, offset, 4096));

    load.await_progress(500);
    load.finish();
    writer.process.terminate();
    cluster.assert_equal();
}

/// Blocks, each with who is wrong there and what was done: neighbours may be told together or one by one.
fn covered(found: &[FoundRange]) -> Vec<(u64, Vec<String>, Vec<String>, Outcome)> {
    let blocks = found.iter().flat_map(|found| {
        let blocks = (0..found.len / 4096).map(|block| found.offset + block * 4096);
        blocks.map(|offset| (offset, found.right.clone(), found.differing.clone(), found.outcome))
    });
    let mut blocks: Vec<_> = blocks.collect();
    blocks.sort_by_key(|(offset, ..)| *offset);
    blocks
}

#[test]
fn of_two_copies_nobody_knows_which_is_right_but_the_operator() {
    let (cluster, writer) = serve(&Plan { nodes: 2, ..Plan::USUAL }, &[]);
    let offset = FILLED + MIB;
    flip(&cluster, 1, offset, 4096);
    let both = || (stored(&cluster, 0, offset, 4096), stored(&cluster, 1, offset, 4096));
    let before = both();
    assert!(before.0 != before.1);
    let said = verify(&cluster, &["--repair"]);
    assert_eq!((said.status, said.found.len()), (Some(1), 1), "{}", said.error);
    assert_eq!((said.found[0].offset, said.found[0].outcome), (offset, Outcome::Undecided));
    assert!(said.found[0].right.is_empty() && said.found[0].differing.len() == 2);
    assert!(both() == before, "a copy was changed although nobody knows which is right");

    let said = verify(&cluster, &["--repair", "--trust", "node-z"]);
    assert_eq!(said.status, Some(1));
    assert!(said.error.contains("node-z has no copy"), "{}", said.error);
    let said = verify(&cluster, &["--repair", "--trust", "node-a"]);
    assert_eq!((said.status, said.found.len()), (Some(0), 1), "{}", said.error);
    assert_eq!(said.found[0].outcome, Outcome::Healed);
    assert!(both() == (before.0.clone(), before.0.clone()));
    assert_equal(&cluster, 2);

    // A copy that is not there is not equal to anything.
    drop(before);
    let mut cluster = cluster;
    cluster.kill_replica(1);
    cluster.await_behind(0, 1, LONG);
    let said = verify(&cluster, &[]);
    assert_eq!(said.status, Some(1));
    assert!(said.error.contains("node node-b were not compared"), "{}", said.error);
    cluster.start_replica(1);
    cluster.await_in_sync(0);
    writer.process.terminate();
    let said = verify(&cluster, &[]);
    assert_eq!(said.status, Some(1));
    assert!(said.error.contains("is not served on this node"), "{}", said.error);
    cluster.assert_equal();
}

#[test]
fn a_scrub_finds_and_heals_without_being_asked() {
    let (mut cluster, mut writer) =
        serve(&Plan::USUAL, &["--scrub-every", "1s", "--scrub-rate", "1G", "--scrub-repair"]);
    writer.process.await_line("the copies are equal, 0 bytes were healed");
    let offset = FILLED + 2 * MIB;
    flip(&cluster, 2, offset, 4096);
    let line = format!("4096 bytes at {offset}: node-c differs from node-a, node-b: healed");
    writer.process.await_line(&line);
    writer.process.await_line("the copies are equal, 4096 bytes were healed");
    writer.process.terminate();
    cluster.assert_equal();

    // One that only says so.
    let mut writer = cluster.serve(0, &["--scrub-every", "1s", "--scrub-rate", "1G"]);
    cluster.await_in_sync(0);
    flip(&cluster, 1, offset, 4096);
    writer.process.await_line(&format!("4096 bytes at {offset}: node-b differs from node-a, node-c: left as it is"));
    writer.process.await_line("the copies differ in 4096 bytes");
    // Who asks goes before a scrub.
    let said = verify(&cluster, &["--repair"]);
    assert_eq!(said.status, Some(0), "{}", said.error);
    writer.process.terminate();
    cluster.assert_equal();
}

#[test]
fn members_change_while_copies_are_compared() {
    let plan = Plan { spares: 1, ..Plan::USUAL };
    let mut cluster = Cluster::start(&plan);
    let mut writer = cluster.serve(0, &["--scrub-every", "1s", "--scrub-rate", "64M"]);
    cluster.await_in_sync(0);
    let model = Model::new(plan.size_bytes as usize / BLOCK);
    let load = Load::start(&writer.socket, model, Manner::usual(91));
    load.await_progress(300);
    let mut slow = cluster.verify(0, &["--rate", "4M"]);
    let mut slow = slow.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("running sealblk");
    let (node_b, node_d) = (cluster.member(1), cluster.member(3));
    for (subcommand, arguments) in [
        ("add-member", &[node_d.as_str(), "--wait"][..]),
        ("remove-member", &["node-b"]),
        ("move", &["node-d", &node_b]),
        ("add-member", &[&node_d, "--wait"]),
    ] {
        let has_ended = slow.try_wait().expect("its state").is_some();
        assert!(!has_ended, "it was too quick to meet {subcommand} {arguments:?}");
        cluster.volume(0, subcommand, arguments).unwrap();
        load.await_progress(100);
    }
    let said = hear(slow.wait_with_output().expect("what it said"));
    // Nothing is called different that is not, and what was not compared is not called equal.
    assert_eq!(said.found, [], "{}", said.error);
    let outcome = said.outcome.expect("an outcome");
    assert_eq!((said.status, outcome.left_bytes, outcome.healed_bytes), (Some(1), 0, 0), "{outcome:?}");
    let compared = |node: &str| outcome.members.iter().find(|member| member.node == node).map(|member| member.bytes);
    assert_eq!((compared("node-a"), compared("node-c")), (Some(plan.size_bytes), Some(plan.size_bytes)), "{outcome:?}");
    assert!(compared("node-b") < Some(plan.size_bytes) && compared("node-d") < Some(plan.size_bytes), "{outcome:?}");

    assert_equal(&cluster, 4);
    writer.process.await_line("the copies are equal");
    load.finish();
    writer.process.terminate();
    cluster.assert_equal();
}

#[test]
fn who_goes_away_ends_the_comparison() {
    let (cluster, writer) = serve(&Plan::USUAL, &[]);
    let mut slow = cluster.verify(0, &["--rate", "64K"]);
    let mut slow = slow.stdout(Stdio::piped()).spawn().expect("running sealblk");
    let mut line = String::new();
    io::BufRead::read_line(&mut io::BufReader::new(slow.stdout.take().expect("its output")), &mut line)
        .expect("a line");
    assert!(line.contains("progress"), "{line}");
    let said = verify(&cluster, &[]);
    assert_eq!(said.status, Some(1));
    assert!(said.error.contains("are being compared already"), "{}", said.error);
    rustix::process::kill_process(rustix::process::Pid::from_child(&slow), Signal::KILL).expect("a signal to it");
    slow.wait().expect("its end");
    let deadline = std::time::Instant::now() + LONG;
    while verify(&cluster, &[]).status != Some(0) {
        assert!(std::time::Instant::now() < deadline, "nobody listens, and the comparison goes on");
        std::thread::sleep(Duration::from_millis(100));
    }
    writer.process.terminate();
}

#[test]
fn what_the_writers_own_disk_cannot_read_comes_from_another_and_is_written_again() {
    let plan = Plan::USUAL;
    let mut cluster = Cluster::start(&plan);
    // The copy on node-a on a disk of its own, whose end can be lost.
    let folder = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let device = LoopDevice::attach(folder.path(), plan.size_bytes, 4096);
    cluster.kill_replica(0);
    let data = cluster.copy(0).join("data");
    std::fs::remove_file(&data).expect("removing the data file");
    symlink(&device.path, &data).expect("a link to the disk");
    cluster.start_replica(0);
    let mut writer = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let mut guest = Guest::connect(&writer.socket);
    guest.stay();
    let (start, len) = (plan.size_bytes - 64 * 1024, 64 * 1024);
    let content = pattern(7, len);
    guest.write(start, &content);
    guest.flush();
    cluster.await_settled(0);
    let view = cluster.status(0).view;

    device.lose_end(4096);
    assert!(guest.read(start, len) == content, "the guest reads something else");
    writer.process.await_line("node node-a cannot read some of 65536 bytes");
    let last = plan.size_bytes - 4096;
    writer.process.await_line(&format!("4096 bytes at {last} that node node-a could not read are written again"));
    assert_eq!(device.backing_bytes(), plan.size_bytes);
    assert!(guest.read(start, len) == content);
    assert!(stored(&cluster, 0, last, 4096) == stored(&cluster, 1, last, 4096));
    assert_eq!(writer.process.said().matches("cannot read some").count(), 1, "the block was lost again");
    assert_equal(&cluster, 3);

    // Where nobody reads, a comparison finds it.
    device.lose_end(4096);
    let said = verify(&cluster, &["--repair"]);
    assert_eq!((said.status, said.found.len()), (Some(0), 1), "{}", said.error);
    assert_eq!((said.found[0].offset, said.found[0].len, &said.found[0].unreadable[..]), (last, 4096, &[name(0)][..]));
    assert!(stored(&cluster, 0, last, 4096) == stored(&cluster, 2, last, 4096));
    let status = cluster.status(0);
    assert_eq!(status.view, view, "a copy has left for a block that could not be read");
    assert!(status.members.iter().all(|member| member.state == CopyState::InSync));
    drop(guest);
    writer.process.terminate();
}

const MIB: u64 = 1 << 20;
/// From here on there is something that only [`serve`] has written.
const FILLED: u64 = 32 << 20;
