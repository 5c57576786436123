//! Connections that were let in, and whether they may stay.
//!
//! A connection lasts for days, and what was shown when it was made does not: a certificate is revoked, its
//! authority dropped, its time over. So all of them are looked at again every second, and those that would not be let
//! in any more are told to end. They finish what is in flight and are given no more; the copies and the connections
//! of other nodes notice nothing.
//!
//! Invariant: none stays that was let in by files which have been replaced since, and would not be let in by
//! the new ones; also when the files change while it is at the door.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::served::{Mail, Mailbox};
use crate::replication::replica::ConnectionId;
use crate::tls::{Configs, Credential, PeerNames, Reason, Standing};

/// Those that are in.
#[derive(Default)]
pub struct Visitors(Mutex<BTreeMap<ConnectionId, Visitor>>);

/// One of them.
pub struct Visitor {
    /// What it has shown.
    pub standing: Standing,
    /// Who it is by that.
    pub names: PeerNames,
    /// Where it comes from.
    pub address: SocketAddr,
    /// Where it is told to end.
    pub mailbox: Arc<Mailbox>,
}

/// Connections with one certificate, which are ended.
struct Ended {
    reason: Reason,
    names: PeerNames,
    address: SocketAddr,
    count: usize,
}

impl Visitors {
    /// One is let in.
    pub fn enter(&self, id: ConnectionId, visitor: Visitor) {
        self.lock().insert(id, visitor);
    }

    /// It has left.
    pub fn leave(&self, id: ConnectionId) {
        self.lock().remove(&id);
    }

    /// Ends those that would not be let in now.
    pub fn review(&self, current: &Arc<Configs>, now: SystemTime) {
        // A node has many connections and one certificate, so signatures are checked once for each.
        let mut verdicts: HashMap<Arc<Credential>, Option<Ended>> = HashMap::new();
        self.lock().retain(|_, visitor| {
            let Visitor { standing, names, address, mailbox } = visitor;
            if !standing.is_due(current, now) {
                return true;
            }
            let verdict = verdicts.entry(standing.credential().clone()).or_insert_with_key(|credential| {
                let reason = credential.check(current, now).err()?;
                Some(Ended { reason, names: names.clone(), address: *address, count: 0 })
            });
            match verdict {
                None => standing.passed(current),
                Some(ended) => {
                    ended.count += 1;
                    mailbox.put(Mail::Close);
                }
            }
            verdict.is_none()
        });
        for Ended { reason, names, address, count } in verdicts.into_values().flatten() {
            let names = names.iter().take(NAMES_SHOWN).collect::<Vec<_>>().join(", ");
            log::warn!("ended {count} connections with {} ({names}): {reason}", address.ip());
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ConnectionId, Visitor>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const NAMES_SHOWN: usize = 4;
