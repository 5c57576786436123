//! Copies: who has each open, and what its disk does and when.

use std::collections::BTreeMap;

use sealblk::replication::message::{Reply, Request};
use sealblk::replication::replica::{self, Applied, ConnectionId, FlightId, Refusal, Replica};
use sealblk::replication::view::{Incarnation, ViewNumber};
use uuid::Uuid;

use super::connections::Message;
use super::{Event, SECTOR_BYTES, World};
use crate::disk::{Snapshot, Value, digest, is_zeros};

pub(super) struct Holder {
    pub(super) replica: Replica,
    /// The writer's process, or none: the replica's.
    pub(super) process: Option<u64>,
    pub(super) number: u64,
    /// Operations of the disk.
    pub(super) flights: BTreeMap<FlightId, Flight>,
    /// The values of writes that have yet to begin, and of reads that have ended.
    pub(super) payloads: BTreeMap<(ConnectionId, u64), Vec<Value>>,
}

pub(super) struct Flight {
    pub(super) connection: ConnectionId,
    pub(super) id: u64,
    /// The writer has been told that it is done.
    pub(super) answered: bool,
    pub(super) request: Request,
    pub(super) values: Vec<Value>,
    pub(super) write: Option<u64>,
    pub(super) snapshot: Option<Snapshot>,
}

impl World {
    pub(super) fn hello_came(&mut self, id: ConnectionId, node: usize) {
        let connection = &self.connections[&id];
        let (process, hello, local) = (connection.process, connection.hello.clone(), connection.local);
        let held_by = self.nodes[node].holder.as_ref().map(|holder| holder.process);
        let failed = self.nodes[node].holder.as_ref().is_some_and(|holder| holder.replica.has_failed());
        if self.nodes[node].disk.is_none() {
            // There is no such copy.
            return self.send(id, true, Message::Closed);
        }
        if local {
            if failed {
                self.release_copy(node, false);
                self.open_copy(node, Some(process));
            } else if held_by != Some(Some(process)) {
                return self.send(id, true, Message::Closed);
            }
        } else {
            if !self.nodes[node].daemon {
                return self.send(id, true, Message::Closed);
            }
            if let Some(Some(other)) = held_by {
                let accepted = self.nodes[node].disk.as_ref().and_then(|disk| disk.accepted.as_ref());
                let accepted = accepted.map_or(ViewNumber::NONE, |view| view.number);
                if hello.view < accepted {
                    return self.send(id, true, Message::Refused(Refusal::Superseded(accepted)));
                }
                if hello.view > accepted {
                    self.note(|| format!("node {node} fences its process {other}"));
                    self.kill_process(other);
                    self.attach_if_nobody();
                    self.open_copy(node, None);
                } else {
                    return self.send(id, true, Message::Closed);
                }
            } else if held_by.is_none() || failed {
                self.release_copy(node, false);
                self.open_copy(node, None);
            }
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.at_replica = true;
        }
        if let Some(holder) = &mut self.nodes[node].holder {
            holder.replica.hello(id, &hello);
        }
        self.drive_holder(node);
    }

    pub fn attach_if_nobody(&mut self) {
        if self.processes.is_empty() {
            let delay = self.random.below(2_000_000);
            self.attach_at(self.now + delay);
        }
    }

    pub(super) fn open_copy(&mut self, node: usize, process: Option<u64>) {
        let regions = self.regions();
        let incarnation = Incarnation(Uuid::from_u128(u128::from(self.random.next())));
        let entry = &mut self.nodes[node];
        let Some(disk) = &entry.disk else { return };
        entry.holders += 1;
        entry.opened = self.now;
        let mut replica = Replica::new(regions, incarnation, disk.accepted.as_ref(), disk.rows.clone());
        if process.is_none() {
            replica.write_behind(self.scenario.write_behind);
        }
        entry.holder = Some(Holder {
            replica,
            process,
            number: entry.holders,
            flights: BTreeMap::new(),
            payloads: BTreeMap::new(),
        });
    }

    /// Whoever has the copy open lets go of it: what is in flight ends, or is cut short.
    pub fn release_copy(&mut self, node: usize, killed: bool) {
        let Some(holder) = self.nodes[node].holder.take() else { return };
        if killed && holder.flights.values().any(|flight| flight.answered) {
            self.lost_cache = Some(self.now);
        }
        for flight in holder.flights.into_values() {
            let Some(disk) = &mut self.nodes[node].disk else { continue };
            if let Some(write) = flight.write {
                if killed {
                    disk.tear_write(write, &flight.values, &mut self.random);
                } else {
                    disk.end_write(write, Some(&flight.values));
                }
            }
        }
        if let Some(disk) = &mut self.nodes[node].disk
            && std::mem::replace(&mut disk.doomed, false)
        {
            disk.lose_cache(&mut self.random);
        }
        let served: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.node == node && connection.at_replica)
            .map(|(&id, _)| id)
            .collect();
        for id in served {
            self.close_at_replica(id);
        }
    }

    /// Whether a flush has failed there and nothing else is done since.
    pub fn has_failed(&self, node: usize) -> bool {
        self.nodes[node].holder.as_ref().is_some_and(|holder| holder.replica.has_failed())
    }

    pub(super) fn holder(&mut self, node: usize, number: u64) -> Option<&mut Holder> {
        self.nodes[node].holder.as_mut().filter(|holder| holder.number == number)
    }

    pub(super) fn drive_holder(&mut self, node: usize) {
        while let Some(holder) = &mut self.nodes[node].holder {
            let number = holder.number;
            let actions = holder.replica.take_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                self.do_for_holder(node, number, action);
            }
        }
    }

    pub(super) fn do_for_holder(&mut self, node: usize, number: u64, action: replica::Action) {
        match action {
            replica::Action::Welcome(connection, welcome) => self.send(connection, true, Message::Welcome(welcome)),
            replica::Action::Refuse(connection, refusal) => {
                self.note(|| format!("node {node} refuses {connection:?}: {refusal}"));
                self.send(connection, true, Message::Refused(refusal));
                self.close_at_replica(connection);
            }
            replica::Action::Reply { connection, id, reply } => {
                if let Some(holder) = self.holder(node, number) {
                    let flights = &mut holder.flights.values_mut();
                    let of_it = |flight: &&mut Flight| {
                        (flight.connection, flight.id, flight.answered) == (connection, id, false)
                    };
                    flights.find(of_it).into_iter().for_each(|flight| flight.answered = true);
                }
                let values = match (&reply, self.holder(node, number)) {
                    (Reply::Data | Reply::Zeros, Some(holder)) => {
                        holder.payloads.remove(&(connection, id)).unwrap_or_default()
                    }
                    _ => Vec::new(),
                };
                self.send(connection, true, Message::Reply { id, reply, values });
            }
            replica::Action::Forget { connection, id } => {
                if let Some(holder) = self.holder(node, number) {
                    holder.payloads.remove(&(connection, id));
                }
            }
            replica::Action::Persist { rows, view } => {
                let delay = self.disk_delay(node);
                self.note(|| format!("  node {node}: rows {rows:?}"));
                self.at(self.now + delay, Event::Persisted { node, holder: number, rows, view });
            }
            replica::Action::Apply { connection, id, flight, request } => {
                self.apply(node, number, (connection, id), flight, request);
            }
        }
    }

    fn apply(&mut self, node: usize, number: u64, key: (ConnectionId, u64), id: FlightId, request: Request) {
        let delay = self.disk_delay(node);
        let entry = &mut self.nodes[node];
        let (Some(holder), Some(disk)) = (&mut entry.holder, &mut entry.disk) else { return };
        let mut flight = Flight {
            connection: key.0,
            id: key.1,
            answered: false,
            request: request.clone(),
            values: Vec::new(),
            write: None,
            snapshot: None,
        };
        let sector = |bytes: u64| (bytes / SECTOR_BYTES) as usize;
        match request {
            Request::Write { offset, len, .. } => {
                flight.values = holder.payloads.remove(&key).unwrap_or_default();
                flight.write = Some(disk.begin_write(sector(offset), sector(len.into())));
            }
            Request::Zero { offset, len, .. } => {
                flight.values = holder.payloads.remove(&key).unwrap_or_default();
                flight.write = Some(disk.begin_write(sector(offset), sector(len)));
            }
            Request::Flush => flight.snapshot = Some(disk.snapshot()),
            _ => {}
        }
        holder.flights.insert(id, flight);
        self.at(self.now + delay, Event::DiskDone { node, holder: number, flight: id });
    }

    pub(super) fn disk_done(&mut self, node: usize, number: u64, id: FlightId) {
        let now = self.now;
        let Some(holder) = self.nodes[node].holder.as_mut().filter(|holder| holder.number == number) else { return };
        let Some(flight) = holder.flights.remove(&id) else { return };
        let Some(disk) = &mut self.nodes[node].disk else { return };
        let sector = |bytes: u64| (bytes / SECTOR_BYTES) as usize;
        let mut result = Ok(Applied::Done);
        match flight.request {
            Request::Write { durable, .. } | Request::Zero { durable, .. } => {
                let write = flight.write.expect("a write has begun");
                if std::mem::replace(&mut disk.fail_write, false) {
                    disk.tear_write(write, &flight.values, &mut self.random);
                    if flight.answered {
                        self.lost_cache = Some(now);
                    }
                    result = Err(5);
                } else {
                    let start = match flight.request {
                        Request::Write { offset, .. } | Request::Zero { offset, .. } => sector(offset),
                        _ => 0,
                    };
                    disk.end_write(write, Some(&flight.values));
                    disk.regain(start, flight.values.len(), now);
                    if durable {
                        disk.make_durable(start, flight.values.len());
                    }
                }
            }
            Request::Flush => {
                if std::mem::replace(&mut disk.fail_flush, false) {
                    disk.doom();
                    self.lost_cache = Some(now);
                    result = Err(5);
                } else if let Some(snapshot) = &flight.snapshot {
                    disk.flushed(snapshot);
                }
            }
            Request::Read { offset, len } => {
                let (start, count) = (sector(offset), sector(len.into()));
                let values = disk.read(start, count);
                if !disk.is_readable(start, count) {
                    result = Err(5);
                } else if values.iter().all(|&value| is_zeros(value)) {
                    result = Ok(Applied::Zeros);
                }
                if let Some(holder) = &mut self.nodes[node].holder {
                    holder.payloads.insert((flight.connection, flight.id), values);
                }
            }
            Request::Digest { offset, len } => {
                let (start, count) = (sector(offset), sector(len.into()));
                let is_readable = disk.is_readable(start, count);
                result = if is_readable { Ok(Applied::Digest(digest(&disk.read(start, count)))) } else { Err(5) };
            }
            _ => {}
        }
        if let Request::Write { offset, .. } | Request::Zero { offset, .. } = flight.request {
            let regions = self.regions();
            for region in regions.touched(offset, flight.values.len() as u64 * SECTOR_BYTES) {
                self.check_region(region);
            }
        }
        if let Some(holder) = &mut self.nodes[node].holder {
            holder.replica.applied(id, result);
        }
        self.drive_holder(node);
    }

    pub(super) fn disk_delay(&mut self, node: usize) -> u64 {
        let slow = self.nodes[node].disk.as_ref().is_some_and(|disk| disk.slow_until > self.now);
        let typical = if slow { self.scenario.disk_us * 300 } else { self.scenario.disk_us };
        self.random.delay(typical)
    }

    /// A node loses power, and its disk what was only in its cache.
    pub fn power_off(&mut self, node: usize) {
        self.note(|| format!("node {node} loses power"));
        self.counts.power_losses += 1;
        self.nodes[node].powered = false;
        self.nodes[node].daemon = false;
        // Before its guest dies: that decides what may be lost.
        if self.nodes[node].disk.is_some() {
            self.lost_cache = Some(self.now);
        }
        let mine: Vec<u64> =
            self.processes.iter().filter(|(_, process)| process.node == node).map(|(&number, _)| number).collect();
        for process in mine {
            self.kill_process(process);
        }
        self.release_copy(node, true);
        if let Some(disk) = &mut self.nodes[node].disk {
            disk.lose_cache(&mut self.random);
        }
        self.check_regions();
    }

    pub fn stop_daemon(&mut self, node: usize) {
        self.note(|| format!("the replica of node {node} is killed"));
        self.nodes[node].daemon = false;
        if self.nodes[node].holder.as_ref().is_some_and(|holder| holder.process.is_none()) {
            self.release_copy(node, true);
        }
    }
}
