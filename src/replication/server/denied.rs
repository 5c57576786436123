//! Why an opening is not accepted: what the log says of it, and what the peer is told.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::fence::FenceError;
use crate::replication::copy::CopyError;
use crate::replication::replica;
use crate::replication::view::NodeName;
use crate::replication::wire::{Refusal, RefusalCode, WireError};
use crate::store::{StoreError, SuperblockError};
use crate::tls::{PeerNames, Reason};

/// An opening is refused.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    /// It is no opening, or of another version.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The writer calls itself another node than its certificate says.
    #[error("the writer calls itself {node}, which is not in its certificate: check which certificate that node uses")]
    Name {
        /// What it calls itself.
        node: NodeName,
    },
    /// There is no copy of the volume.
    #[error("there is no copy of volume {volume} on this node: make one, or take the node out of the view")]
    NoSuchVolume {
        /// The volume.
        volume: Uuid,
    },
    /// An encrypted volume was asked for without proof.
    #[error("the writer does not prove that it has the volume's key")]
    NoProof,
    /// The proof is not by the volume's key, or not for this connection, volume, view and lane.
    #[error("the writer's proof does not hold: it lacks the volume's key, or repeats what it heard")]
    WrongProof,
    /// A volume without encryption has no key.
    #[error("the writer proves that it has a key, and the volume is not encrypted: check that it means this volume")]
    NeedlessProof,
    /// The node is none of those that may write the volume.
    #[error(
        "node {node} is not a member of the volume's last view nor named in it as a writer, and nobody else may write it"
    )]
    NotAWriter {
        /// The writer's node.
        node: NodeName,
    },
    /// Something in a request to make a copy does not fit the rest.
    #[error("a copy cannot be made so: {0}")]
    Mismatch(&'static str),
    /// The superblock that came is none.
    #[error("the volume.json that came cannot be used: {0}")]
    Superblock(#[from] SuperblockError),
    /// There is a copy already.
    #[error("there is a copy of volume {volume} already: remove it first if it is of no use")]
    Exists {
        /// The volume.
        volume: Uuid,
    },
    /// Another process of this node holds the copy, or is about to.
    #[error("{} on this node holds the copy: end it, or wait until it ends", holder(*.pid))]
    InUse {
        /// Its number, if it has noted it.
        pid: Option<u32>,
    },
    /// The process that holds the copy was to be ended, and that cannot be done.
    #[error(transparent)]
    Fence(#[from] FenceError),
    /// The copy cannot be opened or made.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The replica is what refuses.
    #[error(transparent)]
    Replica(#[from] replica::Refusal),
    /// There is too much to do.
    #[error("there are too many connections, or the copy is being opened or closed: try again later")]
    Busy,
    /// No descriptors or threads.
    #[error("the connection cannot be served: {0}: check the limits of the replica's process")]
    Resources(#[from] std::io::Error),
}

impl From<StoreError> for Denied {
    fn from(error: StoreError) -> Denied {
        Denied::Copy(error.into())
    }
}

impl Denied {
    /// The reason, for programs.
    pub fn code(&self) -> RefusalCode {
        match self {
            Self::Wire(error) => error.refusal_code(),
            Self::Name { .. } | Self::NoProof | Self::WrongProof | Self::NeedlessProof => RefusalCode::NotPermitted,
            Self::NotAWriter { .. } => RefusalCode::NotPermitted,
            Self::NoSuchVolume { .. } => RefusalCode::NoSuchVolume,
            Self::Mismatch(_) | Self::Superblock(_) => RefusalCode::Malformed,
            Self::Exists { .. } => RefusalCode::Exists,
            Self::InUse { .. } | Self::Fence(_) => RefusalCode::InUse,
            Self::Copy(CopyError::Store(StoreError::InUse { .. })) => RefusalCode::InUse,
            Self::Copy(CopyError::Store(StoreError::Io { .. })) => RefusalCode::Internal,
            Self::Copy(CopyError::Store(_) | CopyError::ViewRecord { .. } | CopyError::ViewLost { .. }) => {
                RefusalCode::Damaged
            }
            Self::Copy(CopyError::Table(_)) => RefusalCode::Damaged,
            Self::Copy(CopyError::Holder(_) | CopyError::Rows { .. } | CopyError::Data { .. }) => RefusalCode::Internal,
            Self::Replica(replica::Refusal::Superseded(_)) => RefusalCode::Superseded,
            Self::Replica(replica::Refusal::NotTheWriter) => RefusalCode::NotPermitted,
            // The same writer, by a newer session of its own, goes on.
            Self::Replica(replica::Refusal::CopyFailed | replica::Refusal::OldSession) => RefusalCode::Busy,
            Self::Replica(replica::Refusal::Protocol(_)) => RefusalCode::Malformed,
            Self::Busy => RefusalCode::Busy,
            Self::Resources(_) => RefusalCode::Internal,
        }
    }

    /// What the peer is told. Those who may not write the volume learn no more than that.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Replica(replica::Refusal::Superseded(view)) => Refusal::superseded(*view, &self.to_string()),
            Self::Copy(_) | Self::Resources(_) | Self::Fence(FenceError::Note(_) | FenceError::Folder(_)) => {
                Refusal::new(self.code(), "see the replica's log")
            }
            _ => Refusal::new(self.code(), &self.to_string()),
        }
    }
}

/// Logs refusals: one line for each reason and address in a while, with how many it stands for.
#[derive(Default)]
pub struct RefusalLog(Mutex<BTreeMap<(IpAddr, &'static str), Told>>);

struct Told {
    at: Instant,
    since: u64,
}

/// What is known of a peer that is refused.
pub struct Refused<'a> {
    /// Where it is.
    pub address: SocketAddr,
    /// Who it is, if it has shown a certificate.
    pub names: Option<&'a PeerNames>,
    /// What it wants, if it has said so.
    pub volume: Option<Uuid>,
}

impl RefusalLog {
    /// Logs one, of kind `kind`.
    pub fn note(&self, refused: &Refused<'_>, kind: &'static str, reason: &dyn std::fmt::Display) {
        let Some(since) = self.count(refused.address.ip(), kind, Instant::now()) else { return };
        let names = refused.names.map(|names| names.iter().take(NAMES_SHOWN).collect::<Vec<_>>().join(", "));
        let volume = refused.volume.map(|volume| volume.to_string());
        log::warn!(
            "refused {} ({}), volume {}: {reason}{}",
            refused.address,
            names.as_deref().unwrap_or("no certificate"),
            volume.as_deref().unwrap_or("unknown"),
            if since == 0 { String::new() } else { format!(" (and {since} more like this)") },
        );
    }

    /// How many have not been logged before this one; none if it is not to be logged either.
    fn count(&self, address: IpAddr, kind: &'static str, now: Instant) -> Option<u64> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = told.get_mut(&(address, kind)) {
            if now.saturating_duration_since(entry.at) < INTERVAL {
                entry.since += 1;
                return None;
            }
            entry.at = now;
            return Some(std::mem::take(&mut entry.since));
        }
        if told.len() >= ENTRIES_MAX {
            told.retain(|_, entry| now.saturating_duration_since(entry.at) < INTERVAL);
        }
        if told.len() >= ENTRIES_MAX {
            return None;
        }
        told.insert((address, kind), Told { at: now, since: 0 });
        Some(0)
    }
}

impl Denied {
    /// The kind of reason, by which refusals are told apart in the log.
    pub fn kind(&self) -> &'static str {
        match self.code() {
            RefusalCode::NotPermitted => match self {
                Self::Name { .. } => "name",
                Self::NotAWriter { .. } => "member",
                Self::Replica(_) => "writer",
                _ => "proof",
            },
            RefusalCode::Version => "version",
            RefusalCode::NoSuchVolume => "no volume",
            RefusalCode::Superseded => "superseded",
            RefusalCode::InUse => "in use",
            RefusalCode::Damaged => "damaged",
            RefusalCode::Exists => "exists",
            RefusalCode::Busy => "busy",
            RefusalCode::Malformed => "malformed",
            RefusalCode::Internal => "internal",
        }
    }
}

/// The kind of reason why TLS lets nobody in: those that someone has to mend are told apart.
pub fn kind_of(reason: &Reason) -> &'static str {
    match reason {
        Reason::NoCertificate => "no certificate",
        Reason::UnknownAuthority => "authority",
        Reason::Expired => "expired",
        Reason::NotYetValid => "not yet valid",
        Reason::Revoked | Reason::RevocationUnknown => "revoked",
        Reason::Version => "version of TLS",
        Reason::Refused(_) => "refuses us",
        _ => "tls",
    }
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

const INTERVAL: Duration = Duration::from_secs(10);
const ENTRIES_MAX: usize = 1024;
const NAMES_SHOWN: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordination::RecordDamage;
    use crate::replication::view::ViewNumber;

    #[test]
    fn a_flood_of_refusals_is_one_line_in_a_while() {
        let log = RefusalLog::default();
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let now = Instant::now();
        assert_eq!(log.count(one, "proof", now), Some(0));
        for _ in 0..100 {
            assert_eq!(log.count(one, "proof", now), None);
        }
        assert_eq!(log.count(one, "name", now), Some(0));
        assert_eq!(log.count(other, "proof", now), Some(0));
        assert_eq!(log.count(one, "proof", now + INTERVAL), Some(100));
        for address in 0..2 * ENTRIES_MAX as u32 {
            log.count(IpAddr::from(address.to_be_bytes()), "proof", now + INTERVAL);
        }
        assert!(log.0.lock().unwrap().len() <= ENTRIES_MAX);
    }

    #[test]
    fn those_without_a_proof_learn_nothing_of_the_disk() {
        let denied = Denied::Copy(CopyError::ViewRecord { dir: "/secret".into(), damage: RecordDamage::NotAView });
        assert!(!denied.refusal().text().contains("secret"));
        assert_eq!(denied.refusal().code(), RefusalCode::Damaged);
        let superseded = Denied::Replica(replica::Refusal::Superseded(ViewNumber(9)));
        assert_eq!(superseded.refusal().accepted(), Some(ViewNumber(9)));
    }
}
