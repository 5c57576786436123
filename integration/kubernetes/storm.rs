//! A boot storm: five hundred volumes are attached at once, each by a process of its own, through one
//! API server. None fails, none asks more often than it must, and an API server that turns requests
//! away is given the time that it asks for.

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::proxy::{Gate, Proxy};
use super::tenant::{Form, Tenant, altered, assert_success, stderr};
use crate::support::cluster::Cluster;
use crate::support::serving::Serving;

#[test]
fn five_hundred_attaches_at_once_take_one_request_each() {
    let tenant = Tenant::new(Cluster::shared(), "storm", Form::Clear);
    let outcome = storm(&tenant, 500, &[]);
    outcome.print("500 attaches, clear keys", tenant.requests().len());
    assert!(outcome.outputs.iter().all(|output| stderr(output).is_empty()), "a storm on a server in order is silent");
    assert_eq!(tenant.asked(), vec!["get secrets 200"; 500]);
}

/// The same with servers that go on. What the first three hundred send is held back until they are all
/// there, so that it reaches the API server in one moment.
#[test]
fn five_hundred_servers_come_up_together() {
    let tenant = Tenant::new(Cluster::shared(), "servers", Form::Clear);
    let source = tenant.source();
    assert_success(&tenant.create("d", &source, &[]).output().expect("running sealblk"));
    let before = tenant.asked().len();
    let gate = Arc::new(Gate::default());
    let held = gate.clone();
    let proxy = Proxy::start(tenant.cluster.port(), move || held.pass());
    let kubeconfig = altered(&tenant.kubeconfig, "held", &tenant.cluster.url(), &proxy.url()).display().to_string();
    let arguments = ["--key", &source, "--kubeconfig", &kubeconfig, "--read-only"];
    let begin = Instant::now();
    let directory = tenant.directory("d");
    let start = |_| {
        if proxy.connections() >= 300 {
            gate.open();
        }
        Serving::begin(&directory, &arguments)
    };
    let mut servers: Vec<_> = (0..500).map(start).collect();
    gate.open();
    let started = begin.elapsed();
    servers.iter_mut().for_each(|server| server.wait_for_socket_within(Duration::from_secs(120)));
    let ready = begin.elapsed();
    let asked = tenant.asked().split_off(before);
    let (started, ready) = (started.as_secs_f64(), ready.as_secs_f64());
    println!("500 servers: begun after {started:.1} s, all ready after {ready:.1} s; {} requests", asked.len());
    assert!(servers.iter().all(|server| !server.log().contains("WARN")), "one of them had to wait");
    assert_eq!(asked, vec!["get secrets 200"; 500]);
    servers.iter().for_each(Serving::ask_to_end);
    servers.iter_mut().for_each(Serving::assert_ends);
}

#[test]
fn wrapped_keys_take_two_requests_each() {
    let tenant = Tenant::new(Cluster::shared(), "wrapped-storm", Form::Wrapped);
    let outcome = storm(&tenant, 100, &[]);
    outcome.print("100 attaches, wrapped keys", tenant.requests().len());
    assert_eq!(tenant.asked(), vec!["get secrets 200"; 200]);
}

/// With room for a single request, and a store that stops for a while now and then.
#[test]
fn a_server_that_turns_requests_away_is_asked_again_later() {
    let flags = ["--max-requests-inflight=1", "--enable-priority-and-fairness=false"];
    let cluster = Cluster::start(&flags);
    let tenant = Tenant::new(&cluster, "overload", Form::Clear);
    let (outcome, asked) = thread::scope(|scope| {
        let storm = scope.spawn(|| {
            let outcome = storm(&tenant, 200, &["--key-timeout", "2m"]);
            (outcome, tenant.asked())
        });
        while !storm.is_finished() {
            cluster.pause_store(Duration::from_millis(200));
            thread::sleep(Duration::from_millis(600));
        }
        storm.join().expect("the storm")
    });
    outcome.print("200 attaches, a server that turns requests away", asked.len());
    let turned_away = asked.iter().filter(|asked| *asked == "get secrets 429").count();
    let served = asked.iter().filter(|asked| *asked == "get secrets 200").count();
    println!("turned away: {turned_away}");
    assert!(turned_away > 0, "the server was never overloaded");
    assert_eq!((served, asked.len()), (200, served + turned_away));
    // Two lines for one that had to wait, however often it asked, and none for the others.
    for output in &outcome.outputs {
        let said = stderr(output);
        assert!(matches!(said.lines().count(), 0 | 2), "{said}");
    }
}

struct Outcome {
    outputs: Vec<Output>,
    /// What each took, shortest first.
    times: Vec<Duration>,
    total: Duration,
}

/// Makes `count` volumes, [`AT_ONCE`] at a time, all with the tenant's key.
fn storm(tenant: &Tenant<'_>, count: usize, more: &[&str]) -> Outcome {
    let next = AtomicUsize::new(0);
    let begin = Instant::now();
    let source = tenant.source();
    let attach = || {
        let mut attached = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return attached;
            }
            let begin = Instant::now();
            let mut command = tenant.create(&format!("d{index}"), &source, more);
            let output = command.output().expect("running sealblk");
            assert_success(&output);
            attached.push((output, begin.elapsed()));
        }
    };
    let attached: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(attach)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker")).collect()
    });
    let total = begin.elapsed();
    let (outputs, mut times): (Vec<_>, Vec<_>) = attached.into_iter().unzip();
    assert_eq!(outputs.len(), count);
    times.sort();
    Outcome { outputs, times, total }
}

impl Outcome {
    fn print(&self, what: &str, requests: usize) {
        let at = |share: f64| self.times[((self.times.len() - 1) as f64 * share) as usize].as_secs_f64();
        println!(
            "{what}, {AT_ONCE} at a time: {:.1} s in all; each {:.2} s (median), {:.2} s (95 %), {:.2} s (longest); \
             {:.2} requests each",
            self.total.as_secs_f64(),
            at(0.5),
            at(0.95),
            at(1.0),
            requests as f64 / self.times.len() as f64,
        );
    }
}

/// More would only measure how this machine starts processes.
const AT_ONCE: usize = 50;
