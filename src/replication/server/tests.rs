//! A replica in this process, and writers that reach it over real sockets and real TLS.

mod description;
mod door;
mod fencing;
mod lines;
mod refusals;
mod sessions;
mod strangers;
mod trust;

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use uuid::Uuid;

use super::*;
use crate::crypto::derive::{WriterKey, key_check, writer_public_key};
use crate::crypto::xts::XtsKey;
use crate::replication::message::{Hello, Reply, Request, Welcome};
use crate::replication::region::{RegionIndex, Row};
use crate::replication::transport::{Connection, OpenError, TransportError, create, describe, open};
use crate::replication::view::{FailureMode, Member, MemberState, NodeName, View, ViewNumber, WriterId};
use crate::replication::wire::{Header, RefusalCode, ReplyFrame, encode_request};
use crate::store::{SectorSize, Superblock};
use crate::tls::Configs;
use crate::tls::fixture::{Fixture, configs};

/// A replica of node-b that runs until it is dropped.
struct Running {
    root: PathBuf,
    address: String,
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<Result<(), ServerError>>>,
}

impl Running {
    fn start(scene: &Scene, settings: Settings) -> Running {
        Running::start_with(scene, Reloading::open(scene.tls.node("node-b")).unwrap(), settings)
    }

    fn start_with(scene: &Scene, tls: Reloading, settings: Settings) -> Running {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = UnixStream::pair().unwrap();
        let root = scene.root.path().to_owned();
        let thread = {
            let root = root.clone();
            thread::spawn(move || Server::run(root, listener, tls, settings, stopped.as_fd()))
        };
        Running { root, address, stop: Some(stop), thread: Some(thread) }
    }

    /// Ends it in order.
    fn end(mut self) -> Result<(), ServerError> {
        self.stop = None;
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(thread::panicking() || matches!(ended, Ok(Ok(()))), "{ended:?}");
        }
    }
}

/// An authority, the folder of a replica, and a volume.
struct Scene {
    tls: Fixture,
    root: tempfile::TempDir,
    volume: Uuid,
    key: Option<XtsKey>,
    writer: WriterId,
}

impl Scene {
    fn new() -> Scene {
        Scene { key: Some(key(0)), ..Scene::plain() }
    }

    /// With a volume that is not encrypted.
    fn plain() -> Scene {
        let writer = WriterId { node: node("node-a"), attachment: Uuid::new_v4() };
        let root = tempfile::tempdir().unwrap();
        Scene { tls: Fixture::new(), root, volume: Uuid::new_v4(), key: None, writer }
    }

    fn run(&self) -> Running {
        Running::start(self, Settings::default())
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join(self.volume.to_string())
    }

    /// What the certificate of a node is good for.
    fn node(&self, name: &str) -> Configs {
        configs(&self.tls.node(name))
    }

    fn signer(&self) -> Option<WriterKey> {
        self.key.as_ref().map(|key| WriterKey::derive(key, self.volume).unwrap())
    }

    fn superblock(&self) -> Superblock {
        let (id, size, sector) = (self.volume, SIZE_BYTES, SectorSize::Bytes512);
        match &self.key {
            Some(key) => {
                Superblock::encrypted(id, size, sector, key_check(key, id), writer_public_key(key, id)).unwrap()
            }
            None => Superblock::plain(id, size, sector).unwrap(),
        }
    }

    fn view(&self, number: u64) -> View {
        let member = |name: &str| Member {
            node: node(name),
            address: format!("{name}:7420"),
            zone: None,
            state: MemberState::Behind,
        };
        View {
            volume: self.volume,
            number: ViewNumber(number),
            writer: Some(self.writer.clone()),
            members: vec![member("node-a"), member("node-b")],
            failure_mode: FailureMode::Soft,
            lease_ms: 1000,
            writers: Vec::new(),
        }
    }

    /// Has the copy made, in view 1.
    fn create(&self, replica: &Running) -> Result<Welcome, OpenError> {
        let (superblock, view) = (self.superblock().render(), self.view(1));
        let (node_b, a, signer) = (node("node-b"), self.node("node-a"), self.signer());
        create(&replica.address, &node_b, &a, superblock, &view, signer.as_ref(), deadline())
    }

    /// What a node hears when it asks what a volume is.
    fn describe_as(&self, name: &str, replica: &Running, volume: Uuid) -> Result<Superblock, OpenError> {
        let content = describe(&replica.address, &node("node-b"), &self.node(name), volume, deadline())?;
        Ok(Superblock::parse(&content).unwrap())
    }

    fn hello(&self, view: u64, session: u64) -> Hello {
        let (volume, writer) = (self.volume, self.writer.clone());
        Hello { volume, view: ViewNumber(view), writer, session, lane: 0, proof: None }
    }

    /// Opens a connection as the writer on node a.
    fn open(&self, replica: &Running, hello: &Hello) -> Result<Client, OpenError> {
        self.open_as("node-a", replica, hello)
    }

    fn open_as(&self, name: &str, replica: &Running, hello: &Hello) -> Result<Client, OpenError> {
        let (node_b, configs, signer) = (node("node-b"), self.node(name), self.signer());
        let opened = open(&replica.address, &node_b, &configs, hello, signer.as_ref(), deadline());
        opened.map(|(connection, welcome, _)| Client { connection, welcome, view: hello.view, next_id: 0 })
    }
}

/// A writer's end of a connection that was welcomed.
#[derive(Debug)]
struct Client {
    connection: Connection,
    welcome: Welcome,
    /// In which it asks.
    view: ViewNumber,
    next_id: u64,
}

impl Client {
    /// Sends a request; its id.
    fn send(&mut self, request: &Request, payload: &[u8]) -> Result<u64, TransportError> {
        self.next_id += 1;
        let mut frame = Vec::new();
        encode_request(self.view, self.next_id, request, &mut frame).unwrap();
        self.connection.queue(&frame, payload);
        while !self.connection.send()? {
            await_socket(&self.connection, PollFlags::OUT);
        }
        Ok(self.next_id)
    }

    /// The next reply, with the bytes of a read.
    fn receive(&mut self) -> Result<(ReplyFrame, Vec<u8>), TransportError> {
        let (header, body) = next(&mut self.connection)?;
        let reply = ReplyFrame::decode(&header, if header.is_payload() { &[] } else { &body }).unwrap();
        Ok((reply, body))
    }

    fn ask(&mut self, request: &Request, payload: &[u8]) -> (Reply, Vec<u8>) {
        let id = self.send(request, payload).unwrap();
        let (frame, body) = self.receive().unwrap();
        assert_eq!(frame.id, id);
        (frame.reply, body)
    }

    /// What is answered to a request without payload.
    fn reply(&mut self, request: &Request) -> Reply {
        self.ask(request, &[]).0
    }

    fn accept(&mut self, view: View) -> Reply {
        self.view = view.number;
        self.reply(&Request::Accept(Box::new(view)))
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Reply {
        self.ask(&write(offset, data.len()), data).0
    }

    /// What is stored.
    fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        match self.ask(&Request::Read { offset, len }, &[]) {
            (Reply::Data, data) => data,
            (Reply::Zeros, _) => vec![0; len as usize],
            (reply, _) => panic!("{reply:?}"),
        }
    }

    fn rows(&mut self) -> Vec<Row> {
        match self.reply(&Request::Rows { first: RegionIndex(0), count: REGIONS }) {
            Reply::Rows(rows) => rows,
            reply => panic!("{reply:?}"),
        }
    }

    /// Waits until the replica has ended the connection.
    fn await_end(&mut self) {
        while self.receive().is_ok() {}
    }
}

fn write(offset: u64, len: usize) -> Request {
    Request::Write { offset, len: len as u32, durable: false, sparse: false }
}

/// The next frame: its header, and its payload or body.
fn next(connection: &mut Connection) -> Result<(Header, Vec<u8>), TransportError> {
    let mut payload = None;
    loop {
        if let Some(header) = connection.header()? {
            if header.is_payload() {
                let target = payload.get_or_insert_with(|| vec![0; header.body_bytes() as usize]);
                if connection.payload(target) {
                    return Ok((header, payload.unwrap_or_default()));
                }
            } else if let Some(body) = connection.body() {
                return Ok((header, body));
            }
        }
        await_socket(connection, PollFlags::IN);
        connection.receive()?;
    }
}

fn await_socket(socket: &impl AsFd, wanted: PollFlags) {
    let timeout = Timespec::try_from(PATIENCE).unwrap();
    let ready = rustix::event::poll(&mut [PollFd::new(socket, wanted)], Some(&timeout)).unwrap();
    assert_eq!(ready, 1, "nothing came within {PATIENCE:?}");
}

fn code(error: &OpenError) -> Option<RefusalCode> {
    match error {
        OpenError::Refused { refusal, .. } => Some(refusal.code()),
        _ => None,
    }
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn key(seed: u8) -> XtsKey {
    XtsKey::from_bytes(&std::array::from_fn::<u8, 64, _>(|index| index as u8 ^ seed)).unwrap()
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// Bytes of which no sector is like another, and none is zero.
fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|index| (index ^ index >> 8 ^ index >> 16) as u8 ^ seed | 1).collect()
}

const PATIENCE: Duration = Duration::from_secs(30);
const SIZE_BYTES: u64 = 64 << 20;
const REGIONS: u32 = 16;
