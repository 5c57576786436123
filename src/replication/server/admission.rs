//! From an accepted socket to a connection that may ask for something: who it is, and what it may.
//!
//! Three things are checked, in this order, before anything of a copy is opened or changed for a writer: the peer's
//! certificate (by TLS) has the name that the writer gives itself; there is a copy; and the writer proves
//! that it has the volume's key, by a signature over what only this connection has. A volume without
//! encryption has no such key, and its writers are the members of the view that the copy accepted last, and the nodes
//! that this names beside them.
//! Whoever asks what a volume is has only shown the certificate of a node, and hears nothing that opens it.
//! Until then the peer takes up one of few places, and has until a deadline for all of it.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use uuid::Uuid;

use super::House;
use super::copies::{Claim, Lease};
use super::create;
use super::denied::{Denied, Refused, kind_of};
use super::gate::Permit;
use super::service::{End, Service, Tools, say_last, wait_for};
use super::visitors::Visitor;
use crate::crypto::derive::verify_writer;
use crate::replication::copy::recorded_view;
use crate::replication::message::Hello;
use crate::replication::proof;
use crate::replication::transport::{Connection, TransportError};
use crate::replication::view::ViewNumber;
use crate::replication::wire::{Answer, Opening, ProtocolVersion, Role};
use crate::store::{Access, Store, StoreError, Superblock};
use crate::tls::{self, Standing};

/// Attends to a connection from its first byte to its end.
pub fn attend(house: &Arc<House>, stream: TcpStream, address: SocketAddr, deadline: Instant, permit: Permit) {
    let configs = house.tls.current();
    if let Err(error) = tls::tune(&stream, SILENCE) {
        // It has gone already.
        log::debug!("{address}: {error}");
        return;
    }
    let established = match tls::accept(stream, configs.server.clone(), deadline) {
        Ok(established) => established,
        Err(error) => {
            let stranger = Refused { address, names: None, volume: None };
            house.refusals.note(&stranger, kind_of(&error.reason), &error.reason);
            return;
        }
    };
    let mut connection = match Connection::new(established) {
        Ok(connection) => connection,
        Err(error) => {
            log::error!("{address}: {error}");
            return;
        }
    };
    let names = connection.peer().clone();
    let refused = |volume| Refused { address, names: Some(&names), volume };
    let (opening, version) = match read_opening(&mut connection, deadline) {
        Ok(read) => read,
        Err(Unread::Denied(denied)) => {
            house.refusals.note(&refused(None), denied.kind(), &denied);
            refuse(connection, &denied);
            return;
        }
        Err(Unread::Ended(reason)) => {
            house.refusals.note(&refused(None), "opening", &reason);
            return;
        }
    };
    let volume = match &opening {
        Opening::Hello(hello) => hello.volume,
        Opening::Create { view, .. } => view.volume,
        Opening::Describe { volume } => *volume,
    };
    let denied = match opening {
        Opening::Hello(hello) => match enter(house, &connection, &hello, permit) {
            Ok((lease, tools)) => {
                let (id, mailbox) = (house.next_id(), tools.mailbox().clone());
                let standing = Standing::new(connection.credential().clone(), configs);
                house.visitors.enter(id, Visitor { standing, names: names.clone(), address, mailbox });
                let end = Service::new(connection, lease, tools, id, version, house.watch_time).run(&hello);
                house.visitors.leave(id);
                return note_end(house, &refused(Some(volume)), &hello, &end);
            }
            Err(denied) => denied,
        },
        Opening::Create { superblock, view, proof } => {
            match create::create(house, &connection, &superblock, &view, proof.as_ref(), permit) {
                Ok(welcome) => {
                    log::info!("made a copy of volume {volume} in view {}", view.number);
                    return answer(connection, &Answer::Welcome { version, welcome });
                }
                Err(denied) => denied,
            }
        }
        Opening::Describe { .. } => match describe(house, volume, permit) {
            Ok(superblock) => {
                log::debug!("{address}: told what volume {volume} is");
                return answer(connection, &Answer::Description { version, superblock });
            }
            Err(denied) => denied,
        },
    };
    house.refusals.note(&refused(Some(volume)), denied.kind(), &denied);
    refuse(connection, &denied);
}

/// What the first frame can be short of.
enum Unread {
    /// It came, and is none that is taken.
    Denied(Denied),
    /// It did not come.
    Ended(String),
}

fn read_opening(connection: &mut Connection, deadline: Instant) -> Result<(Opening, ProtocolVersion), Unread> {
    loop {
        match next_opening(connection) {
            Ok(Some(read)) => return Ok(read),
            Ok(None) => {}
            Err(unread) => return Err(unread),
        }
        match connection.receive() {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => return Err(ended(error)),
        }
        // TLS may have something to say by itself.
        connection.send().map_err(ended)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || !wait_for_more(connection, left) {
            return Err(Unread::Ended("no opening came in time".to_owned()));
        }
    }
}

fn wait_for_more(connection: &Connection, left: Duration) -> bool {
    use std::os::fd::AsFd;
    wait_for(connection.as_fd(), PollFlags::IN, left)
}

fn next_opening(connection: &mut Connection) -> Result<Option<(Opening, ProtocolVersion)>, Unread> {
    let Some(header) = connection.header().map_err(ended)? else { return Ok(None) };
    header.expect(Role::Opening).map_err(|error| Unread::Denied(error.into()))?;
    let Some(body) = connection.body() else { return Ok(None) };
    Opening::decode(&header, &body).map(Some).map_err(|error| Unread::Denied(error.into()))
}

fn ended(error: TransportError) -> Unread {
    match error {
        TransportError::Frame { source, .. } => Unread::Denied(source.into()),
        error => Unread::Ended(error.to_string()),
    }
}

/// Lets a writer in that may have the copy. From then on it is somebody, and counts as a connection of the
/// volume.
fn enter(house: &House, connection: &Connection, hello: &Hello, permit: Permit) -> Result<(Lease, Tools), Denied> {
    let has_key = admit(house, connection, hello)?;
    drop(permit);
    let claim = Claim { volume: hello.volume, view: hello.view, has_key };
    let lease = house.copies.enter(claim, Instant::now() + ENTER_PATIENCE)?;
    let tools = Tools::new(&lease, house.budget.grant())?;
    Ok((lease, tools))
}

/// What a volume is, as its copy here has it on record. Any node of the cluster may know: geometry, and what shows
/// whether a key is the right one, but nothing of the key and nothing of what is stored. The copy is not opened for
/// that, and whoever holds it is left alone.
fn describe(house: &House, volume: Uuid, permit: Permit) -> Result<Vec<u8>, Denied> {
    let described = superblock_of(&house.copies.dir(volume), volume);
    drop(permit);
    Ok(described?.render())
}

/// What a copy has on record, whoever holds it.
fn superblock_of(dir: &Path, volume: Uuid) -> Result<Superblock, Denied> {
    let superblock = match Store::open(dir, Access::Inspect) {
        Ok(store) => store.superblock().clone(),
        Err(StoreError::NotAVolume { .. }) => return Err(Denied::NoSuchVolume { volume }),
        Err(error) => return Err(error.into()),
    };
    if superblock.id == volume { Ok(superblock) } else { Err(Denied::NoSuchVolume { volume }) }
}

/// Whether a writer may have the copy at all. True if it has shown that it has the volume's key.
fn admit(house: &House, connection: &Connection, hello: &Hello) -> Result<bool, Denied> {
    let node = &hello.writer.node;
    if !connection.peer().has(node.as_str()) {
        return Err(Denied::Name { node: node.clone() });
    }
    let dir = house.copies.dir(hello.volume);
    let superblock = superblock_of(&dir, hello.volume)?;
    let place = Place { view: hello.view, lane: hello.lane, session: hello.session };
    let has_key = check_proof(connection, &superblock, place, hello.proof.as_ref())?;
    let is_named = || -> Result<bool, Denied> {
        let view = recorded_view(&dir, hello.volume)?;
        Ok(view.is_some_and(|view| view.may_write(node)))
    };
    if has_key || is_named()? { Ok(has_key) } else { Err(Denied::NotAWriter { node: node.clone() }) }
}

/// What a proof is for, beside the volume and the connection.
#[derive(Clone, Copy)]
pub struct Place {
    pub view: ViewNumber,
    pub lane: u16,
    pub session: u64,
}

/// That the proof is what it has to be for this volume. True if the volume has a key that was proven.
pub fn check_proof(
    connection: &Connection,
    superblock: &Superblock,
    place: Place,
    proof: Option<&[u8; 64]>,
) -> Result<bool, Denied> {
    match (&superblock.writer_public_key, proof) {
        (Some(key), Some(proof)) => {
            let Place { view, lane, session } = place;
            let message = proof::message(connection.exporter(), superblock.id, view, lane, session);
            if verify_writer(key, &message, proof) { Ok(true) } else { Err(Denied::WrongProof) }
        }
        (Some(_), None) => Err(Denied::NoProof),
        (None, Some(_)) => Err(Denied::NeedlessProof),
        (None, None) => Ok(false),
    }
}

fn note_end(house: &House, refused: &Refused<'_>, hello: &Hello, end: &End) {
    match end {
        End::Refused(denied) => house.refusals.note(refused, denied.kind(), denied),
        End::Closed | End::Transport(TransportError::Closed { .. }) => log::debug!(
            "volume {}: lane {} of session {} of {} has ended: {end}",
            hello.volume,
            hello.lane,
            hello.session,
            hello.writer.node
        ),
        _ => log::warn!("volume {}: the connection with {} is ended: {end}", hello.volume, refused.address),
    }
}

fn refuse(connection: Connection, denied: &Denied) {
    answer(connection, &Answer::Refused(denied.refusal()));
}

/// Says the last that there is to say.
fn answer(mut connection: Connection, answer: &Answer) {
    let mut frame = Vec::new();
    if answer.encode(&mut frame).is_ok() {
        connection.queue(&frame, &[]);
        say_last(&mut connection);
    }
    connection.close();
}

/// The volume that a folder's name means, if it is the name of a copy.
pub fn volume_of(name: &str) -> Option<Uuid> {
    let volume = Uuid::try_parse(name).ok()?;
    (volume.hyphenated().to_string() == name).then_some(volume)
}

/// How long a peer may be silent on the level of TCP before it counts as gone.
const SILENCE: Duration = Duration::from_secs(20);
/// How long a copy may take to be opened, and its earlier holder to be ended.
const ENTER_PATIENCE: Duration = Duration::from_secs(15);
