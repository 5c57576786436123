//! A served volume with nothing to do sleeps: all of its threads, with a front end or without.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::PATIENCE;
use crate::support::configuration::Configuration;
use crate::support::guest::Options;
use crate::support::pattern::pattern;
use crate::support::served::Served;
use crate::support::volume::Volume;

const SIZE: u64 = 16 << 20;

under_every_engine!(every_thread_sleeps_while_nothing_happens);

fn every_thread_sleeps_while_nothing_happens(configuration: Configuration) {
    let volumes = [Volume::create(configuration, SIZE), Volume::create(configuration, SIZE)];
    let served =
        [Served::start_with(&volumes[0], &["--poll-us", "0"]), Served::start_with(&volumes[1], &["--poll-us", "50"])];
    assert_asleep(&served, "before a front end came");
    let mut guests = served.each_ref().map(|served| served.guest_as(Options::CLOUD_HYPERVISOR.queues(4)));
    assert_asleep(&served, "with a front end that has asked for nothing");
    let data = pattern(1, 1 << 20);
    for guest in &mut guests {
        guest.write(0, &data);
        guest.flush();
        assert!(guest.read(0, data.len()) == data);
    }
    assert_asleep(&served, "after requests");
    drop(guests);
    assert_asleep(&served, "after the front end left");
}

/// What shows whether a thread has run: how often it has gone to sleep, and its time on a CPU.
type Run = (u64, u64);

/// Checks that no thread runs for two seconds. What was begun before, such as a kernel thread's end,
/// may still happen first, but not again and again.
fn assert_asleep(servers: &[Served], when: &str) {
    let deadline = Instant::now() + PATIENCE;
    let look = || servers.iter().map(|served| runs(served.pid())).collect::<Vec<_>>();
    loop {
        let before = look();
        thread::sleep(Duration::from_secs(2));
        let after = look();
        if before == after {
            return;
        }
        assert!(Instant::now() < deadline, "{when}, a server does not come to rest: {before:?}, then {after:?}");
    }
}

/// The server's threads by number and name.
fn runs(pid: u32) -> BTreeMap<(u64, String), Run> {
    let mut runs = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("the server's threads") {
        let task = task.expect("a thread").path();
        let number = task.file_name().and_then(|name| name.to_str()?.parse().ok()).expect("a thread's number");
        let read = |file: &str| fs::read_to_string(task.join(file));
        // One that has just ended is not among those that could run.
        let (Ok(name), Ok(status), Ok(schedstat)) = (read("comm"), read("status"), read("schedstat")) else { continue };
        let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let number_in = |text: &str| text.split_whitespace().next().and_then(|word| word.parse().ok());
        let run = (switches.and_then(number_in).expect("switches"), number_in(&schedstat).expect("time on a CPU"));
        runs.insert((number, name.trim().to_owned()), run);
    }
    assert!(!runs.is_empty(), "the server has no threads");
    runs
}
