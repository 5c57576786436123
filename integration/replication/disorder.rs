//! What can happen to nodes and to the network between them, at random.

use std::time::Instant;

use rustix::process::Signal;

use super::cluster::{Cluster, name};
use super::support::pattern::next;

/// A cluster to which things happen.
pub struct Disorder {
    pub cluster: Cluster,
    replicas: Vec<Replica>,
    random: u64,
    began: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Replica {
    Running,
    Stopped,
    Dead,
}

impl Disorder {
    /// Of a cluster with so many nodes, all of which are well. What happens follows from the seed.
    pub fn new(cluster: Cluster, nodes: usize, seed: u64) -> Disorder {
        Disorder { cluster, replicas: vec![Replica::Running; nodes], random: seed, began: Instant::now() }
    }

    /// Something happens to a replica or to the network.
    pub fn something_happens(&mut self) {
        let [node, other] = self.two_nodes();
        match self.below(13) {
            0..=2 => self.kill(node),
            3..=5 => self.stop(node),
            6..=7 => self.mend(node),
            8 => {
                self.say(&format!("{} and {} are cut off from each other", name(node), name(other)));
                self.cluster.network.cut(node, other);
            }
            9 => {
                self.say(&format!("{} does not hear {}", name(node), name(other)));
                self.cluster.network.deafen(node, other);
            }
            10 => {
                self.say(&format!("{} is cut off", name(node)));
                self.cluster.network.isolate(node);
            }
            _ => {
                self.say("the network is healed");
                self.cluster.network.heal();
            }
        }
    }

    /// Everything is well again.
    pub fn make_peace(&mut self) {
        self.cluster.network.heal();
        (0..self.replicas.len()).for_each(|node| self.mend(node));
    }

    /// Two nodes by chance.
    pub fn two_nodes(&mut self) -> [usize; 2] {
        let nodes = self.replicas.len();
        let node = self.below(nodes as u64) as usize;
        [node, (node + 1 + self.below(nodes as u64 - 1) as usize) % nodes]
    }

    /// A number by chance, below a limit.
    pub fn below(&mut self, limit: u64) -> u64 {
        next(&mut self.random) % limit
    }

    /// Says what happens, and when.
    pub fn say(&self, what: &str) {
        println!("{:6.2} {what}", self.began.elapsed().as_secs_f64());
    }

    fn kill(&mut self, node: usize) {
        if self.replicas[node] != Replica::Dead {
            self.say(&format!("{}'s replica is killed", name(node)));
            self.cluster.kill_replica(node);
            self.replicas[node] = Replica::Dead;
        }
    }

    fn stop(&mut self, node: usize) {
        if self.replicas[node] == Replica::Running {
            self.say(&format!("{}'s replica is stopped", name(node)));
            self.cluster.signal_replica(node, Signal::STOP);
            self.replicas[node] = Replica::Stopped;
        }
    }

    fn mend(&mut self, node: usize) {
        match self.replicas[node] {
            Replica::Running => return,
            Replica::Stopped => self.cluster.signal_replica(node, Signal::CONT),
            Replica::Dead => self.cluster.start_replica(node),
        }
        self.say(&format!("{}'s replica is well", name(node)));
        self.replicas[node] = Replica::Running;
    }
}
