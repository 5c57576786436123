//! How a replicated volume stands, for people and programs.

use serde::{Deserialize, Serialize};

use crate::replication::region::Regions;
use crate::replication::view::{FailureMode, MemberIndex, MemberState, Placement, Spread, View, Zone};
use crate::replication::writer::{Standing, Writer};

/// How a replicated volume stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The volume's id.
    pub volume: String,
    /// The number of the view in force.
    pub view: u64,
    /// The node of the writer.
    pub writer: Option<String>,
    /// How many copies have to be in sync.
    pub failure_mode: FailureMode,
    /// How many are.
    pub in_sync: usize,
    /// Whether writes are accepted.
    pub writable: bool,
    /// Regions that may differ after the last writer's end, and are being made equal.
    pub unreconciled_regions: usize,
    /// Bytes in a region.
    pub region_bytes: u64,
    /// Whether the copies in sync are in more zones than one; none if that is not known.
    pub spread: Option<bool>,
    /// Every copy, and the places of those that were removed.
    pub members: Vec<MemberStatus>,
}

/// How one copy stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its node.
    pub node: String,
    /// Where its replica listens.
    pub address: String,
    /// The zone that its node is in, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Zone>,
    /// What the view says of it.
    pub state: CopyState,
    /// Whether there is a session with it.
    pub connected: bool,
    /// Bytes that it has to be sent before it can be in sync, at most.
    pub behind_bytes: u64,
    /// Requests that it has not answered.
    pub requests_in_flight: usize,
    /// Their bytes.
    pub bytes_in_flight: u64,
}

impl MemberStatus {
    /// Where it is.
    pub fn placement(&self) -> Placement<'_> {
        Placement { node: &self.node, zone: self.zone.as_ref() }
    }
}

/// What is said of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyState {
    /// It has every acknowledged write.
    InSync,
    /// It is being sent what it lacks.
    Resyncing,
    /// It lacks writes.
    Behind,
    /// It was made a member, and nothing was sent to it yet. It counts when it has been in sync.
    Added,
    /// It was removed: it is not a copy of the volume any more.
    Retired,
}

impl Status {
    /// The copies that there are.
    pub fn present(&self) -> impl Iterator<Item = &MemberStatus> {
        self.members.iter().filter(|member| member.state != CopyState::Retired)
    }

    /// That of a writer.
    pub(super) fn of(writer: &Writer) -> Status {
        let mut status = Status::of_view(writer.view(), writer.regions().region_bytes());
        status.unreconciled_regions = writer.unreconciled_regions();
        for (index, member) in (0u8..).zip(&mut status.members) {
            let index = MemberIndex(index);
            if matches!(member.state, CopyState::Behind | CopyState::Added)
                && writer.standing(index) > Standing::Fetching
            {
                member.state = CopyState::Resyncing;
            }
            member.connected = writer.is_linked(index);
            member.behind_bytes = writer.stale_regions(index) as u64 * status.region_bytes;
            (member.requests_in_flight, member.bytes_in_flight) = writer.in_flight(index);
        }
        status
    }

    /// What a copy of a volume of `size_bytes` has on record.
    pub fn of_record(view: &View, size_bytes: u64) -> Status {
        Status::of_view(view, Regions::of(size_bytes).region_bytes())
    }

    fn of_view(view: &View, region_bytes: u64) -> Status {
        let members = view.members.iter().map(|member| MemberStatus {
            node: member.node.to_string(),
            address: member.address.clone(),
            zone: member.zone.clone(),
            state: match member.state {
                MemberState::InSync(_) => CopyState::InSync,
                MemberState::Behind => CopyState::Behind,
                MemberState::Added => CopyState::Added,
                MemberState::Retired => CopyState::Retired,
            },
            connected: false,
            behind_bytes: 0,
            requests_in_flight: 0,
            bytes_in_flight: 0,
        });
        let in_sync = view.in_sync().count();
        Status {
            volume: view.volume.to_string(),
            view: view.number.0,
            writer: view.writer.as_ref().map(|writer| writer.node.to_string()),
            failure_mode: view.failure_mode,
            in_sync,
            writable: in_sync >= view.in_sync_min(),
            unreconciled_regions: 0,
            region_bytes,
            spread: match view.spread() {
                Spread::Zones(_) => Some(true),
                Spread::OneZone(_) => Some(false),
                Spread::Unknown(_) | Spread::NotGiven => None,
            },
            members: members.collect(),
        }
    }
}
