//! A writer of one volume on node-a, which speaks to a replica through the library.

use std::net::SocketAddr;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use sealblk::crypto::derive::{WriterKey, key_check, writer_public_key};
use sealblk::crypto::xts::XtsKey;
use sealblk::replication::message::{Hello, Reply, Request, Welcome};
use sealblk::replication::transport::{Connection, OpenError, create, open};
use sealblk::replication::view::{FailureMode, Member, MemberState, NodeName, View, ViewNumber, WriterId};
use sealblk::replication::wire::{Header, ReplyFrame, encode_request};
use sealblk::store::{SectorSize, Superblock};
use uuid::Uuid;

use super::node::{Cluster, PATIENCE};

/// One that has the volume's key.
pub struct Writer {
    volume: Uuid,
    key: XtsKey,
    attachment: Uuid,
}

/// Its connection.
#[derive(Debug)]
pub struct Session {
    connection: Connection,
    pub welcome: Welcome,
    view: ViewNumber,
    last_id: u64,
}

impl Writer {
    pub fn new() -> Writer {
        let key = XtsKey::from_bytes(&std::array::from_fn::<u8, 64, _>(|index| index as u8)).unwrap();
        Writer { volume: Uuid::new_v4(), key, attachment: Uuid::new_v4() }
    }

    pub fn volume(&self) -> Uuid {
        self.volume
    }

    pub fn superblock(&self) -> Superblock {
        let (check, public) = (key_check(&self.key, self.volume), writer_public_key(&self.key, self.volume));
        Superblock::encrypted(self.volume, SIZE_BYTES, SectorSize::Bytes4096, check, public).unwrap()
    }

    pub fn view(&self, number: u64) -> View {
        let member = |name: &str| Member {
            node: node(name),
            address: format!("{name}:7420"),
            zone: None,
            state: MemberState::Behind,
        };
        View {
            volume: self.volume,
            number: ViewNumber(number),
            writer: Some(self.id()),
            members: vec![member("node-a"), member("node-b")],
            failure_mode: FailureMode::Soft,
            lease_ms: 1000,
            writers: Vec::new(),
        }
    }

    /// Has node-b make a copy, in view 1.
    pub fn create(&self, cluster: &Cluster, address: SocketAddr) -> Result<Welcome, OpenError> {
        let (superblock, view, signer) = (self.superblock().render(), self.view(1), self.signer());
        let configs = cluster.configs("node-a");
        create(&address.to_string(), &node("node-b"), &configs, superblock, &view, Some(&signer), deadline())
    }

    /// Opens a session in a view, with or without showing that it has the key.
    pub fn open(
        &self,
        cluster: &Cluster,
        address: SocketAddr,
        view: u64,
        session: u64,
        shows_key: bool,
    ) -> Result<Session, OpenError> {
        let view = ViewNumber(view);
        let hello = Hello { volume: self.volume, view, writer: self.id(), session, lane: 0, proof: None };
        let (configs, signer) = (cluster.configs("node-a"), shows_key.then(|| self.signer()));
        let opened = open(&address.to_string(), &node("node-b"), &configs, &hello, signer.as_ref(), deadline());
        opened.map(|(connection, welcome, _)| Session { connection, welcome, view, last_id: 0 })
    }

    fn id(&self) -> WriterId {
        WriterId { node: node("node-a"), attachment: self.attachment }
    }

    fn signer(&self) -> WriterKey {
        WriterKey::derive(&self.key, self.volume).unwrap()
    }
}

impl Session {
    /// Asks for something; the answer, and the bytes of a read.
    pub fn ask(&mut self, request: &Request, payload: &[u8]) -> (Reply, Vec<u8>) {
        self.last_id += 1;
        let mut frame = Vec::new();
        encode_request(self.view, self.last_id, request, &mut frame).unwrap();
        self.connection.queue(&frame, payload);
        while !self.connection.send().unwrap() {
            await_socket(&self.connection, PollFlags::OUT);
        }
        let (header, body) = next(&mut self.connection);
        let reply = ReplyFrame::decode(&header, if header.is_payload() { &[] } else { &body }).unwrap();
        assert_eq!(reply.id, self.last_id);
        (reply.reply, body)
    }

    /// Has a view accepted, and asks in it from then on.
    pub fn accept(&mut self, view: View) -> Reply {
        self.view = view.number;
        self.ask(&Request::Accept(Box::new(view)), &[]).0
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Reply {
        self.ask(&Request::Write { offset, len: data.len() as u32, durable: false, sparse: false }, data).0
    }

    pub fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        match self.ask(&Request::Read { offset, len }, &[]) {
            (Reply::Data, data) => data,
            (Reply::Zeros, _) => vec![0; len as usize],
            (reply, _) => panic!("{reply:?}"),
        }
    }
}

fn next(connection: &mut Connection) -> (Header, Vec<u8>) {
    let mut payload = None;
    loop {
        if let Some(header) = connection.header().unwrap() {
            if header.is_payload() {
                let target = payload.get_or_insert_with(|| vec![0; header.body_bytes() as usize]);
                if connection.payload(target) {
                    return (header, payload.unwrap_or_default());
                }
            } else if let Some(body) = connection.body() {
                return (header, body);
            }
        }
        await_socket(connection, PollFlags::IN);
        connection.receive().unwrap();
    }
}

fn await_socket(connection: &Connection, wanted: PollFlags) {
    let timeout = Timespec::try_from(PATIENCE).unwrap();
    let ready = rustix::event::poll(&mut [PollFd::new(connection, wanted)], Some(&timeout)).unwrap();
    assert_eq!(ready, 1, "nothing came within {PATIENCE:?}");
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

const SIZE_BYTES: u64 = 64 << 20;
