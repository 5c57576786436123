//! What somebody sees who watches a copy get what it lacks.

use std::time::Duration;

use crate::cluster::{Cluster, LONG, PEER_TIMEOUT_TIME, Plan};
use crate::proxy::Weather;
use crate::support::guest::Guest;
use crate::support::pattern::pattern;
use crate::support::terminal::Terminal;

#[test]
fn a_terminal_shows_a_bar_that_grows_until_the_copy_is_in_sync_and_ends_in_order() {
    let mut cluster = Cluster::start(&Plan { proxies: true, ..Plan::USUAL });
    let writer = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let mut guest = Guest::connect(&writer.socket);
    guest.stay();
    cluster.kill_replica(1);
    cluster.await_behind(0, 1, PEER_TIMEOUT_TIME * 3);
    (0..64).for_each(|mib| guest.write(mib << 20, &pattern(mib, 1 << 20)));
    guest.flush();

    let mut terminal = Terminal::start(cluster.ask_for_status(0).arg("--watch"));
    terminal.await_shown("one that is away", |shown| shown.contains("node-b behind"));
    // Far from the time after which it would be given up, and so slow that the bar is seen.
    cluster.proxy(1).set(Weather { delay: Duration::from_millis(300), ..Weather::default() });
    cluster.start_replica(1);
    terminal.await_shown("a bar that grows", |shown| percents(shown).any(|percent| (1..100).contains(&percent)));
    cluster.proxy(1).set(Weather::default());
    cluster.await_in_sync(0);
    terminal.await_shown("one in sync", |shown| shown.contains("node-b in sync"));
    assert!(terminal.shown().contains("node-a in sync"), "{:?}", terminal.shown());

    terminal.press_ctrl('c');
    let (status, shown) = terminal.end(LONG);
    assert_eq!(status.code(), Some(0), "{shown:?}");
    assert!(shown.ends_with("\r\n"), "the prompt would follow in the same line: {shown:?}");
    // It leaves nothing behind in the process that it has asked.
    guest.write(0, &[1; 4096]);
    drop(guest);
    writer.process.terminate();
    cluster.assert_equal();
}

/// How far the bar of the copy on node-b was, each time that it was shown while it got something.
fn percents(shown: &str) -> impl Iterator<Item = u32> {
    let bars = shown.split("node-b being sent what it lacks").skip(1);
    bars.filter_map(|bar| bar.split_once('%')?.0.rsplit(' ').next()?.parse().ok())
}
