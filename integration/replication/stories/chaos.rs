//! Everything that can happen to nodes, their networks and their writer, at random while a guest works; then peace,
//! and nothing is wrong.
//!
//! `CHAOS_SECONDS` says for how long and `SEED` what happens; `make chaos` sets them. The same seed has the same
//! things happen, but not at the same instant of everybody's work.

use std::env;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;

use crate::cluster::{Cluster, LONG, Plan, Writer, name};
use crate::disorder::Disorder;
use crate::machine::{Machine, Start};
use crate::model::{BLOCK, Model};
use crate::workload::{Load, Manner};

#[test]
fn no_disorder_costs_a_guest_anything_but_time() {
    let (until, seed) = (until(Duration::MAX), seed());
    let mut chaos = Chaos::begin(seed);
    while Instant::now() < until {
        chaos.something_happens();
        pause(&mut chaos.disorder);
    }
    chaos.end();
}

#[test]
fn no_disorder_costs_linux_anything_but_time() {
    let (until, seed) = (until(GUEST_TIME_MAX), seed());
    let mut cluster = Cluster::start(&Plan::USUAL);
    let writer = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let mut disorder = Disorder::new(cluster, Plan::USUAL.nodes, seed);
    let machine = Machine { disk: &writer.socket, queues: 2, start: Start::Kernel, job: include_str!("rounds.sh") };
    let mut guest = machine.boot();
    guest.booted();
    thread::scope(|scope| {
        // It ends a round, and is asked for another while there is disorder.
        let rounds = scope.spawn(move || {
            let mut rounds = 0;
            loop {
                guest.asked("more");
                if rounds > 0 && Instant::now() > until {
                    break;
                }
                guest.answer("yes");
                guest.ok("round");
                rounds += 1;
            }
            guest.answer("no");
            guest.done();
        });
        while Instant::now() < until && !rounds.is_finished() {
            disorder.something_happens();
            pause(&mut disorder);
        }
        disorder.say("peace");
        disorder.make_peace();
    });
    let Disorder { cluster, .. } = disorder;
    cluster.await_in_sync(0);
    writer.process.terminate();
    cluster.assert_equal();
}

/// A guest at work, while things happen to the cluster and to the writer.
struct Chaos {
    disorder: Disorder,
    /// Where the writer runs.
    home: usize,
    writer: Writer,
    load: Option<Load>,
}

impl Chaos {
    fn begin(seed: u64) -> Chaos {
        let nodes = if seed.is_multiple_of(2) { 5 } else { 3 };
        let failure_mode = ["soft", "2", "alwayson"][(seed % 3) as usize];
        println!("{nodes} nodes, failure mode {failure_mode}");
        let plan = Plan { nodes, failure_mode, ..Plan::USUAL };
        let mut cluster = Cluster::start(&plan);
        let writer = cluster.serve(0, &[]);
        let model = Model::new(plan.size_bytes as usize / BLOCK);
        let load = Some(Load::start(&writer.socket, model, Manner::usual(seed)));
        Chaos { disorder: Disorder::new(cluster, nodes, seed), home: 0, writer, load }
    }

    fn something_happens(&mut self) {
        let [home, _] = self.disorder.two_nodes();
        match self.disorder.below(16) {
            0 => self.writer_pauses(),
            1 => self.writer_dies(home),
            2 => self.writer_is_replaced(home),
            _ => self.disorder.something_happens(),
        }
    }

    fn writer_pauses(&mut self) {
        let time = Duration::from_millis(200 + self.disorder.below(5000));
        self.disorder.say(&format!("the writer is stopped for {time:?}"));
        self.writer.process.signal(Signal::STOP);
        thread::sleep(time);
        self.writer.process.signal(Signal::CONT);
    }

    fn writer_dies(&mut self, home: usize) {
        let what = format!("the writer on {} is killed, the next is on {}", name(self.home), name(home));
        self.disorder.say(&what);
        self.writer.process.signal(Signal::KILL);
        self.writer.process.await_end(LONG);
        self.disorder.make_peace();
        self.writer = self.disorder.cluster.begin_to_serve(home, &[]);
        self.move_to(home);
    }

    fn writer_is_replaced(&mut self, home: usize) {
        if home == self.home {
            return;
        }
        let what = format!("the writer on {} is replaced by one on {}", name(self.home), name(home));
        self.disorder.say(&what);
        self.disorder.make_peace();
        if self.disorder.below(2) == 0 {
            self.disorder.cluster.network.isolate(self.home);
        }
        let next = self.disorder.cluster.begin_to_serve(home, &[]);
        let mut old = std::mem::replace(&mut self.writer, next);
        thread::sleep(Duration::from_millis(self.disorder.below(5000)));
        self.disorder.cluster.network.heal();
        self.move_to(home);
        // By itself, or by the replica of its node.
        let status = old.process.await_end(LONG);
        assert!(!status.success(), "{}", old.process.said());
    }

    /// The guest starts anew at the new writer.
    fn move_to(&mut self, home: usize) {
        self.home = home;
        self.writer.await_socket();
        let model = self.load.take().expect("there is always one").abandon();
        let manner = Manner::usual(self.disorder.below(u64::MAX));
        self.load = Some(Load::start(&self.writer.socket, model, manner));
    }

    fn end(mut self) {
        self.disorder.say("peace");
        self.disorder.make_peace();
        let cluster = self.disorder.cluster;
        cluster.await_in_sync(self.home);
        let load = self.load.take().expect("there is always one");
        load.await_progress(100);
        load.finish();
        cluster.await_in_sync(self.home);
        self.writer.process.terminate();
        cluster.assert_equal();
    }
}

/// Time for what has happened to have consequences.
fn pause(disorder: &mut Disorder) {
    let time = 100 + disorder.below(900);
    thread::sleep(Duration::from_millis(time));
}

fn until(max: Duration) -> Instant {
    Instant::now() + Duration::from_secs(number("CHAOS_SECONDS").unwrap_or(SECONDS_DEFAULT)).min(max)
}

fn seed() -> u64 {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is later than 1970");
    let seed = number("SEED").unwrap_or(time.as_secs());
    println!("chaos from SEED={seed}");
    seed
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, which is no number")))
}

const SECONDS_DEFAULT: u64 = 25;
/// A machine's time is limited.
const GUEST_TIME_MAX: Duration = Duration::from_secs(300);
