//! Connections between writers and replicas: messages in order, late, held up by a cut, or lost with them.

use std::collections::VecDeque;

use sealblk::replication::message::{Hello, Reply, Request, Welcome};
use sealblk::replication::replica::{ConnectionId, Refusal};
use sealblk::replication::view::{MemberIndex, ViewNumber};
use sealblk::replication::writer::{Lane, Payload};
use uuid::Uuid;

use super::{Event, SECTOR_BYTES, World, node_of};
use crate::disk::Value;

pub(super) struct Session {
    pub(super) number: u64,
    pub(super) connections: Vec<ConnectionId>,
    pub(super) welcomes: usize,
    pub(super) welcome: Option<Welcome>,
}

pub(super) struct Connection {
    pub(super) process: u64,
    pub(super) writer_node: usize,
    pub(super) member: MemberIndex,
    /// Where that member is.
    pub(super) node: usize,
    pub(super) session: u64,
    pub(super) hello: Hello,
    pub(super) local: bool,
    /// How long a message typically takes.
    link_us: u64,
    /// Whether each side has it: the writer's, the replica's.
    pub(super) at_writer: bool,
    pub(super) at_replica: bool,
    /// When the last message arrives, in each direction.
    pub(super) last: [u64; 2],
    pub(super) held: [VecDeque<Message>; 2],
}

#[derive(Clone, Debug)]
pub(super) enum Message {
    Hello,
    Request { view: ViewNumber, id: u64, request: Request, values: Vec<Value> },
    Welcome(Welcome),
    Refused(Refusal),
    Reply { id: u64, reply: Reply, values: Vec<Value> },
    Closed,
}

impl World {
    pub(super) fn connect(&mut self, number: u64, member: MemberIndex, session: u64, view: ViewNumber) {
        let Some(process) = self.processes.get_mut(&number) else { return };
        let node = node_of(process.writer.view(), member);
        let local = process.local == Some(member);
        let mut connections = Vec::new();
        let links = if self.scenario.uneven { &[1, 1, 4, 20][..] } else { &[1] };
        for lane in 0..=self.scenario.lanes {
            let id = ConnectionId(self.next_connection);
            self.next_connection += 1;
            let hello =
                Hello { volume: Uuid::from_u128(1), view, writer: process.id.clone(), session, lane, proof: None };
            let link_us = if local { 5 } else { self.scenario.link_us * self.random.pick(links) };
            connections.push(id);
            self.connections.insert(
                id,
                Connection {
                    process: number,
                    writer_node: process.node,
                    member,
                    node,
                    session,
                    hello,
                    local,
                    link_us,
                    at_writer: true,
                    at_replica: false,
                    last: [0; 2],
                    held: Default::default(),
                },
            );
        }
        let entry = Session { number: session, connections: connections.clone(), welcomes: 0, welcome: None };
        process.sessions.insert(member, entry);
        for id in connections {
            self.send(id, false, Message::Hello);
        }
    }

    pub(super) fn disconnect(&mut self, number: u64, member: MemberIndex) {
        let Some(process) = self.processes.get_mut(&number) else { return };
        let Some(session) = process.sessions.remove(&member) else { return };
        process.reads.retain(|(from, _), _| *from != member);
        for id in session.connections {
            self.close_at_writer(id);
        }
    }

    pub(super) fn close_at_writer(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id)
            && std::mem::replace(&mut connection.at_writer, false)
        {
            self.send(id, false, Message::Closed);
        }
    }

    pub(super) fn close_at_replica(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id)
            && std::mem::replace(&mut connection.at_replica, false)
        {
            self.send(id, true, Message::Closed);
        }
    }

    /// A connection breaks for both sides, each of which hears of it sometime.
    pub fn reset_any(&mut self) {
        let is_up = |connection: &Connection| !connection.local && connection.at_writer;
        let remote: Vec<ConnectionId> =
            self.connections.iter().filter(|(_, connection)| is_up(connection)).map(|(&id, _)| id).collect();
        if remote.is_empty() {
            return;
        }
        let id = *self.random.pick(&remote);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        // What was held up is lost.
        connection.held = Default::default();
        self.note(|| format!("connection {id:?} is reset"));
        self.send(id, true, Message::Closed);
        self.send(id, false, Message::Closed);
    }

    #[expect(clippy::too_many_arguments, reason = "they are the fields of one action")]
    pub(super) fn send_request(
        &mut self,
        number: u64,
        member: MemberIndex,
        lane: Lane,
        id: u64,
        view: ViewNumber,
        request: Request,
        payload: Payload,
    ) {
        let Some(process) = self.processes.get_mut(&number) else { return };
        let Some(session) = process.sessions.get(&member) else {
            return self.fail("a request is sent without a session".to_owned());
        };
        let connection = session.connections[usize::from(lane.0)];
        let mut values = Vec::new();
        match (&request, payload) {
            (Request::Write { .. } | Request::Zero { .. }, Payload::Guest { lane, token }) => {
                match process.guest.bytes(lane, token) {
                    Some(bytes) => values = bytes,
                    None => return self.fail(format!("bytes of request {token} are sent after its end")),
                }
            }
            (Request::Write { .. } | Request::Zero { .. }, Payload::Copy(copy)) => match process.copies.get(&copy) {
                Some(bytes) => values = bytes.clone(),
                None => return self.fail(format!("bytes of copy {copy} are sent after its end")),
            },
            (Request::Write { .. } | Request::Zero { .. }, Payload::Retained { entry, skip }) => {
                match process.retained.get(&entry) {
                    Some(bytes) => {
                        let count = match request {
                            Request::Write { len, .. } => u64::from(len),
                            Request::Zero { len, .. } => len,
                            _ => 0,
                        };
                        let first = (skip / SECTOR_BYTES) as usize;
                        values = bytes[first..first + (count / SECTOR_BYTES) as usize].to_vec();
                    }
                    None => return self.fail(format!("what was kept as {entry} is sent after its end")),
                }
            }
            (Request::Read { .. }, payload) => {
                process.reads.insert((member, id), payload);
            }
            _ => {}
        }
        self.send(connection, false, Message::Request { view, id, request, values });
    }

    pub(super) fn send(&mut self, id: ConnectionId, to_writer: bool, message: Message) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let delay = self.random.delay(connection.link_us);
        let last = &mut connection.last[usize::from(to_writer)];
        let time = (self.now + delay).max(*last + 1);
        *last = time;
        self.at(time, Event::Arrive { connection: id, to_writer, message });
    }

    pub(super) fn arrive(&mut self, id: ConnectionId, to_writer: bool, message: Message) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let node = connection.node;
        let path = if to_writer { (node, connection.writer_node) } else { (connection.writer_node, node) };
        let held = &mut connection.held[usize::from(to_writer)];
        let stalled = !to_writer && !connection.local && self.nodes[node].stalled_until > self.now;
        if self.cuts.contains(&path) || stalled || !held.is_empty() {
            held.push_back(message);
            return;
        }
        self.deliver(id, to_writer, message);
    }

    pub(super) fn deliver(&mut self, id: ConnectionId, to_writer: bool, message: Message) {
        let Some(connection) = self.connections.get(&id) else { return };
        if to_writer {
            if connection.at_writer {
                self.deliver_to_writer(id, message);
            } else if let Message::Reply { id, reply, .. } = message
                && self.lanes.chance(50)
            {
                // A lane had taken it when another met the end of the session.
                self.counts.late_answers += 1;
                let (number, member, session) = (connection.process, connection.member, connection.session);
                self.with_writer(number, |writer, now| writer.replied(now, member, session, id, reply));
            }
            return;
        }
        let node = connection.node;
        match message {
            Message::Closed => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.at_replica = false;
                }
                if let Some(holder) = &mut self.nodes[node].holder {
                    holder.replica.closed(id);
                }
                self.drive_holder(node);
            }
            _ if !self.nodes[node].powered => {}
            Message::Hello => self.hello_came(id, node),
            Message::Request { view, id: request_id, request, values } => {
                if !connection.at_replica {
                    // The process that it was made with is gone.
                    self.send(id, true, Message::Closed);
                    return;
                }
                let Some(holder) = &mut self.nodes[node].holder else { return };
                if matches!(request, Request::Write { .. } | Request::Zero { .. }) {
                    holder.payloads.insert((id, request_id), values);
                }
                holder.replica.request(id, view, request_id, request);
                self.drive_holder(node);
            }
            _ => {}
        }
    }

    pub(super) fn deliver_to_writer(&mut self, id: ConnectionId, message: Message) {
        let connection = &self.connections[&id];
        let (number, member, session) = (connection.process, connection.member, connection.session);
        let Some(process) = self.processes.get_mut(&number) else { return };
        let Some(entry) = process.sessions.get_mut(&member).filter(|entry| entry.number == session) else { return };
        match message {
            Message::Welcome(welcome) => {
                entry.welcomes += 1;
                let first = *entry.welcome.get_or_insert(welcome);
                if entry.welcomes == entry.connections.len() {
                    self.with_writer(number, |writer, now| writer.connected(now, member, session, first));
                }
            }
            Message::Reply { id, reply, values } => {
                if let Some(payload) = process.reads.remove(&(member, id)) {
                    let count = values.len();
                    if let Payload::Guest { lane, token } = payload
                        && !process.guest.has(lane, token)
                    {
                        // Its memory may be in use for something else.
                        return self.fail(format!("bytes come for request {token} after its end"));
                    }
                    match payload {
                        Payload::Guest { lane, token } if count > 0 => process.guest.receive(lane, token, values),
                        Payload::Copy(copy) if count > 0 => _ = process.copies.insert(copy, values),
                        _ => {}
                    }
                }
                self.with_writer(number, |writer, now| writer.replied(now, member, session, id, reply));
            }
            Message::Refused(refusal) => {
                let superseded = match refusal {
                    Refusal::Superseded(number) => Some(number),
                    _ => None,
                };
                self.end_session(number, member, session, superseded);
            }
            Message::Closed => self.end_session(number, member, session, None),
            Message::Hello | Message::Request { .. } => {}
        }
    }

    pub(super) fn end_session(
        &mut self,
        number: u64,
        member: MemberIndex,
        session: u64,
        superseded: Option<ViewNumber>,
    ) {
        self.disconnect(number, member);
        self.with_writer(number, |writer, now| writer.disconnected(now, member, session, superseded));
    }

    /// Cuts are over, and what they held up arrives.
    pub(super) fn heal(&mut self) {
        self.cuts.clear();
        self.store.cut_off.clear();
        self.store.deaf.clear();
        let ids: Vec<ConnectionId> = self.connections.keys().copied().collect();
        for id in ids {
            for to_writer in [false, true] {
                let Some(connection) = self.connections.get_mut(&id) else { continue };
                let stalled = !to_writer && self.nodes[connection.node].stalled_until > self.now;
                if stalled {
                    continue;
                }
                for message in std::mem::take(&mut connection.held[usize::from(to_writer)]) {
                    self.deliver(id, to_writer, message);
                }
            }
        }
        self.connections.retain(|_, connection| {
            connection.at_writer || connection.at_replica || !connection.held.iter().all(VecDeque::is_empty)
        });
    }
}
