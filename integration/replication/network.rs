//! A network for one test: each node in a network namespace of its own, and one more as the switch between them.
//!
//! Only networks are apart: files and unix sockets are those of the machine. A process is started inside a
//! namespace by [`Network::enter`]. Nothing has a name on the machine: a namespace lives as long as this process
//! holds it open or a process is in it, so even a test that is killed leaves nothing behind.
//!
//! Needs root, and the `ip` and `iptables` of the packages in `.ci/packages.txt`; without them a test fails.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread::{self, JoinHandle};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// The nodes' namespaces, from node 0 on, and the switch.
pub struct Network {
    nodes: Vec<Namespace>,
    switch: Namespace,
}

/// A network namespace, held open.
struct Namespace(OwnedFd);

impl Network {
    /// With so many nodes, all of which hear each other.
    pub fn new(count: usize) -> Network {
        assert!(rustix::process::geteuid().is_root(), "networks of their own for nodes can only be made by root");
        let network = Network { nodes: (0..count).map(|_| Namespace::new()).collect(), switch: Namespace::new() };
        network.switch.ip("link add switch type bridge");
        network.switch.ip("link set switch up");
        for (index, node) in network.nodes.iter().enumerate() {
            let place = format!("/proc/{}/fd/{}", std::process::id(), node.0.as_raw_fd());
            network.switch.ip(&format!("link add port{index} type veth peer name {INTERFACE} netns {place}"));
            network.switch.ip(&format!("link set port{index} master switch up"));
            node.ip(&format!("address add {}/24 dev {INTERFACE}", network.address(index)));
            node.ip(&format!("link set {INTERFACE} up"));
            node.ip("link set lo up");
        }
        network
    }

    /// The address of a node.
    pub fn address(&self, node: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, node as u8 + 1)
    }

    /// Lets a command start on a node.
    pub fn enter(&self, node: usize, command: &mut Command) {
        self.nodes[node].enter(command);
    }

    /// Does something in a thread whose sockets are the node's.
    pub fn run_inside(&self, node: usize, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
        let fd = self.nodes[node].0.try_clone().expect("another handle of the namespace");
        thread::spawn(move || {
            move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network)).expect("the node's namespace");
            work();
        })
    }

    /// From now on `node` hears nothing of `from`.
    pub fn deafen(&self, node: usize, from: usize) {
        let rule = format!("--wait --append INPUT --source {} --jump DROP", self.address(from));
        self.nodes[node].run("iptables", &rule);
    }

    /// From now on two nodes hear nothing of each other.
    pub fn cut(&self, one: usize, other: usize) {
        self.deafen(one, other);
        self.deafen(other, one);
    }

    /// From now on a node and all others hear nothing of each other.
    pub fn isolate(&self, node: usize) {
        for other in (0..self.nodes.len()).filter(|&other| other != node) {
            self.cut(node, other);
        }
    }

    /// All hear each other again.
    pub fn heal(&self) {
        for node in &self.nodes {
            node.run("iptables", "--wait --flush INPUT");
        }
    }

    /// Bytes that have come to a node from the others.
    pub fn received_bytes(&self, node: usize) -> u64 {
        self.bytes(node, "rx")
    }

    /// Bytes that a node has sent to the others.
    pub fn sent_bytes(&self, node: usize) -> u64 {
        self.bytes(node, "tx")
    }

    fn bytes(&self, node: usize, direction: &str) -> u64 {
        let text = self.nodes[node].ip(&format!("-json -statistics link show {INTERFACE}"));
        let links: serde_json::Value = serde_json::from_str(&text).expect("ip prints JSON when asked to");
        links[0]["stats64"][direction]["bytes"].as_u64().expect("a count of bytes")
    }
}

impl Namespace {
    fn new() -> Namespace {
        let made = thread::spawn(|| {
            // SAFETY: only the network of this thread becomes another, and it ends at once; no memory and no
            // descriptor is unshared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
            let path = c"/proc/thread-self/ns/net";
            // SAFETY: the path is a C string; a new descriptor is returned or -1.
            let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the descriptor is new and nobody else's.
            Ok(Namespace(unsafe { OwnedFd::from_raw_fd(fd) }))
        });
        made.join().expect("the thread ends").expect("a network namespace")
    }

    fn enter(&self, command: &mut Command) {
        let fd = self.0.as_fd().try_clone_to_owned().expect("another handle of the namespace");
        let change = move || Ok(move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network))?);
        // SAFETY: the child does no more than one system call.
        unsafe { command.pre_exec(change) };
    }

    fn ip(&self, arguments: &str) -> String {
        self.run("ip", arguments)
    }

    /// Runs a program inside, which must succeed; what it prints.
    fn run(&self, program: &str, arguments: &str) -> String {
        let mut command = Command::new(program);
        command.args(arguments.split_whitespace());
        self.enter(&mut command);
        let output = command.output().unwrap_or_else(|error| panic!("{program} does not run: {error}"));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments}: {error}");
        String::from_utf8(output.stdout).expect("text")
    }
}

/// What connects a node with the switch.
const INTERFACE: &str = "net";
