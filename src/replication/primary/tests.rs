//! A primary and replicas in one process, over real sockets, real TLS and real files.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Instant;

use tempfile::TempDir;

use super::*;
use crate::coordination::FileViews;
use crate::crypto::derive::{key_check, writer_public_key};
use crate::crypto::xts::XtsKey;
use crate::io::buffer::{Buffer, BufferPool};
use crate::io::segments::Segment;
use crate::io::{Completion, Errno, Operation, ZeroMethod};
use crate::replication::server::{self, Server, ServerError};
use crate::replication::transport;
use crate::replication::view::{FailureMode, Member, View, ViewNumber};
use crate::replication::writer::{BelowMin, Repair, ResyncRate, RoundPlan};
use crate::store::{SectorSize, Store, Superblock, once_free};
use crate::tls::TlsPaths;
use crate::tls::authority::Life;
use crate::tls::fixture::{Fixture, configs, life};

const SIZE_BYTES: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

/// Nodes with a copy each of one volume. Node 0 is where the writer runs.
struct Cluster {
    tls: Fixture,
    root: TempDir,
    volume: Uuid,
    key: XtsKey,
    replicas: Vec<Option<Replica>>,
    addresses: Vec<String>,
}

struct Replica {
    stop: UnixStream,
    thread: JoinHandle<Result<(), ServerError>>,
}

fn name(node: usize) -> NodeName {
    format!("node-{node}").parse().unwrap()
}

impl Cluster {
    /// With so many nodes; a replica runs on each but the first.
    fn new(nodes: usize, mode: FailureMode) -> Cluster {
        let mut cluster = Cluster {
            tls: Fixture::new(),
            root: tempfile::tempdir().unwrap(),
            volume: Uuid::new_v4(),
            key: XtsKey::generate().unwrap(),
            replicas: (0..nodes).map(|_| None).collect(),
            addresses: vec!["127.0.0.1:1".to_owned(); nodes],
        };
        for node in 1..nodes {
            fs::create_dir(cluster.root_of(node)).unwrap();
            cluster.start(node);
        }
        cluster.create(mode);
        cluster
    }

    fn root_of(&self, node: usize) -> PathBuf {
        self.root.path().join(format!("node-{node}"))
    }

    fn dir(&self, node: usize) -> PathBuf {
        self.root_of(node).join(self.volume.to_string())
    }

    fn start(&mut self, node: usize) {
        let paths = self.tls.node(name(node).as_str());
        self.start_with(node, paths);
    }

    fn start_with(&mut self, node: usize, paths: TlsPaths) {
        let port = self.addresses[node].rsplit_once(':').map_or(0, |(_, port)| port.parse().unwrap());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, if port == 1 { 0 } else { port })).unwrap();
        self.addresses[node] = listener.local_addr().unwrap().to_string();
        let tls = Reloading::open(paths).unwrap();
        let (stop, stopped) = UnixStream::pair().unwrap();
        let root = self.root_of(node);
        let thread =
            thread::spawn(move || Server::run(root, listener, tls, server::Settings::default(), stopped.as_fd()));
        self.replicas[node] = Some(Replica { stop, thread });
    }

    fn stop(&mut self, node: usize) {
        let Replica { stop, thread } = self.replicas[node].take().unwrap();
        drop(stop);
        thread.join().unwrap().unwrap();
    }

    fn superblock(&self) -> Superblock {
        let (id, key) = (self.volume, &self.key);
        let (check, public) = (key_check(key, id), writer_public_key(key, id));
        Superblock::encrypted(id, SIZE_BYTES, SectorSize::Bytes512, check, public).unwrap()
    }

    fn signer(&self) -> WriterKey {
        WriterKey::derive(&self.key, self.volume).unwrap()
    }

    fn create(&self, failure_mode: FailureMode) {
        let member =
            |node: usize, state| Member { node: name(node), address: self.addresses[node].clone(), zone: None, state };
        let mut view = View {
            volume: self.volume,
            number: ViewNumber(1),
            writer: None,
            members: (0..self.replicas.len()).map(|node| member(node, MemberState::Behind)).collect(),
            failure_mode,
            lease_ms: 1000,
            writers: Vec::new(),
        };
        fs::create_dir_all(self.root_of(0)).unwrap();
        Store::create(&self.dir(0), &self.superblock(), None).unwrap();
        let first = once_free(|| OpenCopy::open(&self.dir(0), None)).incarnation();
        view.members[0].state = MemberState::InSync(first);
        let ours = configs(&self.tls.node("node-0"));
        for node in 1..self.replicas.len() {
            let (address, superblock) = (&self.addresses[node], self.superblock().render());
            let deadline = Instant::now() + PATIENCE;
            let welcome =
                transport::create(address, &name(node), &ours, superblock, &view, Some(&self.signer()), deadline);
            view.members[node].state = MemberState::InSync(welcome.unwrap().incarnation);
        }
        self.views().create(&view).unwrap();
    }

    fn views(&self) -> FileViews {
        FileViews::new(self.root.path(), self.volume, PATIENCE)
    }

    fn settings(&self) -> writer::Settings {
        writer::Settings {
            peer_timeout_us: 2_000_000,
            ping_interval_us: 200_000,
            below_min: BelowMin::Suspend,
            store_retry_us: 100_000,
            settle_interval_us: 200_000,
            open_regions_max: 64,
            retained_bytes_max: 1 << 20,
            copy_chunk_bytes: 256 << 10,
            copies_in_flight_max: 4,
            verify_block_bytes: 4096,
            resync_rate: ResyncRate::UNBOUNDED,
        }
    }

    fn attach(&self) -> Primary {
        self.attach_with(self.tls.node("node-0"))
    }

    fn attach_with(&self, paths: TlsPaths) -> Primary {
        let primary = Primary::attach(Setup {
            socket: None,
            node: name(0),
            copy: Some(once_free(|| OpenCopy::open(&self.dir(0), None))),
            engine: None,
            superblock: self.superblock(),
            views: Box::new(self.views()),
            tls: Arc::new(Reloading::open(paths).unwrap()),
            signer: Some(self.signer()),
            queues: 2,
            opening_time: Duration::from_secs(2),
            scrub: None,
            settings: self.settings(),
        });
        let primary = primary.unwrap();
        assert!(primary.wait_until_served(PATIENCE).unwrap(), "{:?}", primary.status());
        primary
    }

    /// What the copies have, once nobody holds them.
    fn data(&self, node: usize) -> Vec<u8> {
        fs::read(self.dir(node).join("data")).unwrap()
    }

    fn assert_equal_copies(mut self) {
        for node in 1..self.replicas.len() {
            if self.replicas[node].is_some() {
                self.stop(node);
            }
        }
        let first = self.data(0);
        assert!(first.iter().any(|&byte| byte != 0));
        for node in 1..self.replicas.len() {
            assert!(self.data(node) == first, "copies 0 and {node} differ");
        }
    }
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A queue's thread, one request at a time.
struct Queue {
    engine: Box<dyn Engine>,
    buffer: Buffer,
    next: u64,
}

impl Queue {
    fn new(primary: &Primary) -> Queue {
        let buffer = BufferPool::new(256 << 10).take(256 << 10).unwrap();
        Queue { engine: primary.engine(128).unwrap(), buffer, next: 0 }
    }

    fn run(&mut self, operation: Operation, len: usize) -> Result<(), Errno> {
        let segments = [Segment::new(self.buffer.as_mut_ptr(), len)];
        self.next += 1;
        let token = self.next;
        // SAFETY: the buffer lives as long as the engine, and this waits for the end.
        unsafe { self.engine.submit(operation, if len > 0 { &segments } else { &[] }, token) };
        let deadline = Instant::now() + PATIENCE;
        let mut completions = Vec::new();
        loop {
            self.engine.drive(&mut completions).unwrap();
            if let [Completion { token: ended, result }] = completions[..] {
                assert_eq!(ended, token);
                return result;
            }
            assert!(Instant::now() < deadline, "{operation:?} does not end");
            self.engine.wait(&[]).unwrap();
        }
    }

    fn bytes(&mut self, len: usize) -> &mut [u8] {
        // SAFETY: the buffer has as many, and no request is in flight.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.as_mut_ptr(), len) }
    }

    fn write(&mut self, offset: u64, len: usize, value: u8) {
        self.bytes(len).fill(value);
        self.run(Operation::Write { offset, durable: false }, len).unwrap();
    }

    fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        self.bytes(len).fill(0xee);
        self.run(Operation::Read { offset }, len).unwrap();
        self.bytes(len).to_vec()
    }

    fn flush(&mut self) {
        self.run(Operation::Sync, 0).unwrap();
    }
}

#[test]
fn what_is_written_is_on_every_copy() {
    let cluster = Cluster::new(3, FailureMode::Hard);
    let primary = cluster.attach();
    let mut queue = Queue::new(&primary);
    for block in 0..200u64 {
        queue.write(block * 12345 * 512 % (SIZE_BYTES - 8192), 4096, 1 + (block % 250) as u8);
    }
    queue.write(1 << 20, 256 << 10, 0x77);
    queue.run(Operation::Zero { offset: 1 << 20, len: 4096, method: ZeroMethod::PunchHole }, 0).unwrap();
    queue.flush();
    assert_eq!(queue.read((1 << 20) + 4096, 4096), [0x77; 4096]);
    assert_eq!(queue.read(1 << 20, 4096), [0; 4096]);
    primary.flush().unwrap();
    drop(queue);
    primary.close();
    cluster.assert_equal_copies();
}

#[test]
fn a_node_may_go_and_comes_back_with_everything() {
    let mut cluster = Cluster::new(3, FailureMode::Soft);
    let primary = cluster.attach();
    let mut queue = Queue::new(&primary);
    queue.write(0, 4096, 1);
    cluster.stop(2);
    // With all of a write's copies or with the view that lets it go.
    for block in 0..64u64 {
        queue.write(block << 20, 64 << 10, 2 + block as u8);
    }
    until("node 2 leaves", || primary.status().in_sync == 2);
    queue.flush();
    cluster.start(2);
    until("node 2 is back", || primary.status().in_sync == 3);
    queue.write(4096, 4096, 3);
    drop(queue);
    primary.close();
    cluster.assert_equal_copies();
}

#[test]
fn a_lane_may_change_hands_while_it_is_being_connected() {
    let cluster = Cluster::new(2, FailureMode::Hard);
    let primary = cluster.attach();
    for round in 0..20 {
        // Some are gone before their connections come, which then find somebody else.
        drop(primary.engine(8).unwrap());
        let mut queue = Queue::new(&primary);
        for block in 0..=round % 4 {
            queue.write(block << 12, 4096, 1 + round as u8);
        }
    }
    primary.close();
    cluster.assert_equal_copies();
}

#[test]
fn sessions_are_renewed_with_a_new_certificate_and_nobody_leaves() {
    let cluster = Cluster::new(3, FailureMode::Hard);
    let primary = cluster.attach();
    let mut queue = Queue::new(&primary);
    queue.write(0, 4096, 1);
    let view = primary.status().view;
    let sessions = || primary.shared.look(|state| state.session_numbers());
    let before = sessions();
    cluster.tls.node("node-0");
    let deadline = Instant::now() + PATIENCE;
    let is_new = |(now, before): (&Option<u64>, &Option<u64>)| now > before;
    let mut block = 2;
    while !sessions().iter().zip(&before).skip(1).all(is_new) {
        assert!(Instant::now() < deadline, "the sessions stay: {:?}", sessions());
        queue.write(block * 4096, 4096, block as u8);
        block += 1;
    }
    queue.write(4096, 4096, 2);
    assert_eq!(primary.status().view, view, "nobody has left");
    assert!(block > 1, "the certificate was not new");
    drop(queue);
    primary.close();
    cluster.assert_equal_copies();
}

#[test]
fn a_member_whose_certificate_is_revoked_is_cut_off_until_it_has_another() {
    let mut cluster = Cluster::new(3, FailureMode::Soft);
    cluster.stop(1);
    let revoked = cluster.tls.issue("node-1");
    cluster.start_with(1, cluster.tls.write_issued("node-1", &revoked));
    let crl = Some(cluster.tls.write("crl", cluster.tls.revoke(&[])));
    let primary = cluster.attach_with(TlsPaths { crl, ..cluster.tls.node("node-0") });
    let mut queue = Queue::new(&primary);
    queue.write(0, 4096, 1);
    let session = |member: usize| primary.shared.look(|state| state.session_numbers()[member]);
    until("there is a session with everybody", || session(1).is_some() && session(2).is_some());
    cluster.tls.write("crl", cluster.tls.revoke(&[&revoked]));
    until("the session is over", || session(1).is_none());
    queue.write(4096, 4096, 2);
    assert!(session(2).is_some() && session(1).is_none());
    cluster.tls.node("node-1");
    until("there is one again", || session(1).is_some());
    queue.write(8192, 4096, 3);
    until("its copy is in sync", || primary.status().members[1].state == status::CopyState::InSync);
    drop(queue);
    primary.close();
    cluster.assert_equal_copies();
}

#[test]
fn a_session_is_renewed_before_the_certificate_of_its_member_ends() {
    let mut cluster = Cluster::new(2, FailureMode::Hard);
    cluster.stop(1);
    let end = std::time::SystemTime::now() + Duration::from_secs(20);
    let short = cluster.tls.authority.issue(&["node-1".to_owned()], Life { end, ..life() }).unwrap();
    cluster.start_with(1, cluster.tls.write_issued("node-1", &short));
    let primary = cluster.attach();
    let session = || primary.shared.look(|state| state.session_numbers()[1]);
    let ends = || {
        let mut ends = Vec::new();
        primary.shared.with_trusted(|_, trusted| ends.push(trusted.end()));
        ends
    };
    let mut queue = Queue::new(&primary);
    queue.write(0, 4096, 1);
    let first = session();
    assert!(matches!(ends()[..], [Some(at)] if at <= end));
    let view = primary.status().view;
    cluster.tls.node("node-1");
    let is_next = |ends: Vec<Option<std::time::SystemTime>>| matches!(ends[..], [Some(at)] if at > end);
    until("its next certificate counts", || is_next(ends()));
    assert!(session() > first);
    assert_eq!(primary.status().view, view, "nobody has left");
    queue.write(4096, 4096, 2);
    drop(queue);
    primary.close();
    cluster.assert_equal_copies();
}

#[test]
fn what_has_changed_on_a_disk_is_found_and_healed() {
    let cluster = Cluster::new(3, FailureMode::Hard);
    let primary = cluster.attach();
    let mut queue = Queue::new(&primary);
    queue.write(1 << 20, 64 << 10, 7);
    queue.flush();
    let round = |repair| {
        let mut found = Vec::new();
        let plan = RoundPlan { from: 0, repair, rate: u64::MAX };
        let end = rounds::run(&primary.shared, rounds::Owner::Client, plan, |event| {
            if let rounds::Event::Found(range) = event {
                found.push(range);
            }
            true
        });
        let Ok(rounds::End::Done(outcome)) = end else { panic!("{end:?}") };
        (outcome, found)
    };
    assert!(round(Repair::None).0.is_equal());
    for (node, offset) in [(2, (1 << 20) + 5000), (0, 40 << 20)] {
        let file = fs::OpenOptions::new().write(true).open(cluster.dir(node).join("data")).unwrap();
        file.write_all_at(b"rot", offset).unwrap();
        file.sync_all().unwrap();
    }
    let (outcome, found) = round(Repair::Majority);
    assert!(outcome.is_equal(), "{outcome:?}");
    assert_eq!(outcome.healed_bytes, 8192);
    let told: Vec<_> = found.iter().map(|range| (range.offset, range.len, range.differing[0].as_str())).collect();
    assert_eq!(told, [((1 << 20) + 4096, 4096, "node-2"), (40 << 20, 4096, "node-0")]);
    assert_eq!(round(Repair::None).1, []);
    assert_eq!(queue.read(1 << 20, 64 << 10), [7; 64 << 10]);
    drop(queue);
    primary.close();
    cluster.assert_equal_copies();
}
