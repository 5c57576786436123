//! Connections over real sockets and real TLS, both ends in one thread unless the test says otherwise.

mod flow;
mod frames;
mod opening;

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::*;
use crate::replication::message::{Reply, Request};
use crate::replication::view::ViewNumber;
use crate::replication::wire::{HEADER_BYTES, Header, encode_reply, encode_request};
use crate::tls::fixture::{Fixture, configs};
use crate::tls::{self, Established};

/// Both ends of a connection from node a to node b.
fn established() -> (Established, Established) {
    let fixture = Fixture::new();
    let (a, b) = (configs(&fixture.node("node-a")), configs(&fixture.node("node-b")));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap().0;
    thread::scope(|scope| {
        let server = scope.spawn(|| tls::accept(server, b.server.clone(), deadline()).unwrap());
        let client = tls::connect(client, a.client.clone(), "node-b", deadline()).unwrap();
        (client, server.join().unwrap())
    })
}

/// Both ends, as connections.
fn pair() -> (Connection, Connection) {
    let (client, server) = established();
    (Connection::new(client).unwrap(), Connection::new(server).unwrap())
}

/// One end as a connection, and the other as it is, to misbehave.
fn with_raw_peer() -> (Connection, Established) {
    let (client, server) = established();
    (Connection::new(client).unwrap(), server)
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

fn is_ready(socket: &impl AsFd, wanted: PollFlags, patience: Duration) -> bool {
    let timeout = Timespec::try_from(patience).unwrap();
    rustix::event::poll(&mut [PollFd::new(socket, wanted)], Some(&timeout)).unwrap() == 1
}

/// Waits until there is something to receive: bytes, an end or an error.
fn await_bytes(connection: &Connection) {
    assert!(is_ready(connection, PollFlags::IN, PATIENCE), "nothing came");
}

fn send_all(connection: &mut Connection) {
    while !connection.send().unwrap() {
        assert!(is_ready(connection, PollFlags::OUT, PATIENCE), "the peer takes nothing");
    }
}

fn next_header(connection: &mut Connection) -> Result<Header, TransportError> {
    loop {
        if let Some(header) = connection.header()? {
            return Ok(header);
        }
        await_bytes(connection);
        connection.receive()?;
    }
}

/// The next frame: its header, and its payload or body.
fn next(connection: &mut Connection) -> Result<(Header, Vec<u8>), TransportError> {
    let header = next_header(connection)?;
    let mut payload = vec![0; header.body_bytes() as usize];
    loop {
        if header.is_payload() {
            if connection.payload(&mut payload) {
                return Ok((header, payload));
            }
        } else if let Some(body) = connection.body() {
            return Ok((header, body));
        }
        await_bytes(connection);
        connection.receive()?;
    }
}

fn request(id: u64, request: &Request) -> Vec<u8> {
    let mut frame = Vec::new();
    encode_request(ViewNumber(1), id, request, &mut frame).unwrap();
    frame
}

fn write(id: u64, len: u32) -> Vec<u8> {
    request(id, &Request::Write { offset: 0, len, durable: false, sparse: false })
}

fn reply(id: u64, reply: &Reply) -> Vec<u8> {
    let mut frame = Vec::new();
    encode_reply(id, reply, 0, &mut frame).unwrap();
    frame
}

/// Bytes of which no two long runs are the same.
fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|index| (index ^ (index >> 8) ^ (index >> 16)) as u8 ^ seed).collect()
}

fn header_of(frame: &[u8]) -> Header {
    Header::parse(frame.first_chunk().unwrap()).unwrap()
}

const PATIENCE: Duration = Duration::from_secs(20);
