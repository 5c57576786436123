//! Calling the replicas of other nodes: making the connections of a session.
//!
//! Opening a connection takes as long as the network and the other node do, so each call has a thread of its own,
//! which lives no longer than the time for it. A call that fails is said in the log when the reason is another than
//! the last time, and the writer hears of it in any case.

use std::collections::HashMap;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::shared::Shared;
use crate::crypto::derive::WriterKey;
use crate::replication::message::{Hello, Welcome};
use crate::replication::transport::{Connection, OpenError, open};
use crate::replication::view::{Member, MemberIndex, NodeName, ViewNumber, WriterId};
use crate::replication::writer::Lane;
use crate::tls::{Reloading, Standing};

/// Connections to be made.
pub(super) struct Call {
    pub(super) member: MemberIndex,
    pub(super) peer: Member,
    pub(super) session: u64,
    /// To say hello with.
    pub(super) view: ViewNumber,
    pub(super) called: Called,
}

/// Which ones.
pub(super) enum Called {
    /// A new session: the lane for control, and these.
    Session(Vec<Lane>),
    /// More lanes of one that is up.
    Lanes(Vec<Lane>),
}

/// What a caller shows of itself, and how long it waits.
pub(super) struct Caller {
    pub(super) volume: Uuid,
    pub(super) writer: WriterId,
    pub(super) tls: Arc<Reloading>,
    /// None for a volume without encryption.
    pub(super) signer: Option<WriterKey>,
    pub(super) opening_time: Duration,
    complaints: Mutex<HashMap<NodeName, String>>,
}

impl Caller {
    /// One that has called nobody yet.
    pub(super) fn new(
        volume: Uuid,
        writer: WriterId,
        tls: Arc<Reloading>,
        signer: Option<WriterKey>,
        opening_time: Duration,
    ) -> Caller {
        Caller { volume, writer, tls, signer, opening_time, complaints: Mutex::default() }
    }

    /// Makes calls until there are no more to come.
    pub(super) fn run(self: &Arc<Self>, shared: &Arc<Shared>, calls: &Receiver<Call>) {
        for call in calls {
            if shared.is_closing() {
                return;
            }
            let (member, session) = (call.member, call.session);
            let (caller, theirs) = (self.clone(), shared.clone());
            let name = format!("call-{}", member.0);
            if let Err(error) = thread::Builder::new().name(name).spawn(move || caller.make(&theirs, call)) {
                log::error!("no thread to call a replica with: {error}");
                shared.disconnected(None, member, session, None);
            }
        }
    }

    fn make(&self, shared: &Arc<Shared>, call: Call) {
        let (member, session) = (call.member, call.session);
        let made = match &call.called {
            Called::Session(lanes) => self.make_session(shared, &call, lanes),
            Called::Lanes(lanes) => self.add_lanes(shared, &call, lanes),
        };
        match made {
            Ok(()) => self.praise(&call.peer.node, session),
            Err(error) => {
                self.complain(&call.peer.node, &error);
                shared.disconnected(None, member, session, error.superseded());
            }
        }
    }

    fn make_session(&self, shared: &Arc<Shared>, call: &Call, lanes: &[Lane]) -> Result<(), OpenError> {
        // The first replaces the session before, so it has to be there before the others.
        let (first, standing, welcome) = self.open(shared, call, Lane::CONTROL)?;
        let mut connections = vec![(Lane::CONTROL, first, standing)];
        for &lane in lanes {
            let (connection, standing, _) = self.open(shared, call, lane)?;
            connections.push((lane, connection, standing));
        }
        shared.connected(call.member, call.session, connections, welcome);
        Ok(())
    }

    fn add_lanes(&self, shared: &Arc<Shared>, call: &Call, lanes: &[Lane]) -> Result<(), OpenError> {
        for &lane in lanes {
            let (connection, standing, _) = self.open(shared, call, lane)?;
            shared.lane_connected(call.member, call.session, lane, connection, standing);
        }
        Ok(())
    }

    fn open(&self, shared: &Shared, call: &Call, lane: Lane) -> Result<(Connection, Standing, Welcome), OpenError> {
        let deadline = Instant::now() + self.opening_time;
        let mut view = call.view;
        loop {
            let hello = Hello {
                volume: self.volume,
                view,
                writer: self.writer.clone(),
                session: call.session,
                lane: lane.0,
                proof: None,
            };
            let configs = self.tls.current();
            let Member { node, address, .. } = &call.peer;
            match open(address, node, &configs, &hello, self.signer.as_ref(), deadline) {
                Ok((connection, welcome, _)) => {
                    let standing = Standing::new(connection.credential().clone(), configs);
                    return Ok((connection, standing, welcome));
                }
                // The view may have changed under the call.
                Err(error) if error.superseded().is_some_and(|known| view < known && known <= shared.announced()) => {
                    view = shared.announced();
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn praise(&self, node: &NodeName, session: u64) {
        let had = self.lock().remove(node).is_some();
        let again = if had || session > 1 { " again" } else { "" };
        log::info!("connected with node {node}{again}");
    }

    fn complain(&self, node: &NodeName, error: &OpenError) {
        let text = error.to_string();
        let last = self.lock().insert(node.clone(), text.clone());
        if last.as_ref() == Some(&text) {
            log::debug!("{text}");
        } else {
            log::warn!("{text}");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<NodeName, String>> {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
