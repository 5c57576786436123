//! How a node's replica stands, for people and for probes.
//!
//! A replica keeps no views. Of each copy that is open it knows the view that a writer announced last, and which life
//! of the copy it is in; the two together say whether the copy has every acknowledged write. Of a copy that nobody has
//! used for a while nothing is said: what happened elsewhere since its last writer left is not known here.
//!
//! Invariant: nothing of a copy is held on to, so that one which is being closed is closed.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::House;
use super::copies::OpenNow;
use crate::replication::copy::recorded_view;
use crate::replication::view::{Incarnation, MemberState, NodeName, View};

/// How a replica stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// The names in its certificate.
    pub nodes: Vec<String>,
    /// For how many seconds more the certificate is good; 0 if it is not any more.
    pub certificate_seconds: u64,
    /// The copies that are open: those that a writer uses, or has used less than a minute ago.
    pub copies: Vec<CopyStatus>,
}

/// How one copy stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// The volume's id.
    pub volume: Uuid,
    /// The number of the last view that it accepted.
    pub view: u64,
    /// What it is in that view.
    pub state: CopyState,
    /// Connections of its writer.
    pub connections: usize,
}

/// What a copy is, as far as is known on its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyState {
    /// It has every acknowledged write.
    InSync,
    /// It may lack some.
    Behind,
    /// It was removed: nobody counts on it.
    Removed,
    /// Its last view does not name this node.
    Unknown,
    /// It has failed, and is opened anew when its writer comes again.
    Failed,
}

impl ReplicaStatus {
    pub(super) fn of(house: &House, now: SystemTime) -> ReplicaStatus {
        let configs = house.tls.current();
        let nodes: Vec<String> = configs.names.iter().map(str::to_owned).collect();
        let names: Vec<NodeName> = nodes.iter().filter_map(|name| name.parse().ok()).collect();
        let copies = house.copies.open_now().into_iter().map(|open| {
            let view = recorded_view(&house.copies.dir(open.volume), open.volume).ok().flatten();
            let OpenNow { volume, accepted, connections, .. } = open;
            CopyStatus { volume, view: accepted.0, state: state(&open, view.as_ref(), &names), connections }
        });
        let certificate_seconds = configs.not_after.duration_since(now).unwrap_or_default().as_secs();
        ReplicaStatus { certificate_seconds, copies: copies.collect(), nodes }
    }

    /// Why other replicas had better not be stopped now, or this one is of no use; none if it is ready.
    pub fn obstacle(&self) -> Option<String> {
        if self.certificate_seconds == 0 {
            return Some("its certificate has expired: renew it".to_owned());
        }
        let lacks = |copy: &&CopyStatus| match copy.state {
            CopyState::Failed => true,
            // Without a writer nothing is sent to it, and what it lacks may be nothing.
            CopyState::Behind => copy.connections > 0,
            CopyState::InSync | CopyState::Removed | CopyState::Unknown => false,
        };
        let first = self.copies.iter().find(lacks)?;
        let count = self.copies.iter().filter(lacks).count();
        let what = if first.state == CopyState::Failed { "has failed" } else { "is not in sync" };
        let more = if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() };
        Some(format!("the copy of volume {} {what}{more}: wait until it has been sent what it lacks", first.volume))
    }
}

fn state(open: &OpenNow, view: Option<&View>, names: &[NodeName]) -> CopyState {
    if open.has_failed {
        return CopyState::Failed;
    }
    let member = view.and_then(|view| view.members.iter().find(|member| names.contains(&member.node)));
    member.map_or(CopyState::Unknown, |member| of_member(member.state, open.incarnation))
}

/// What a view called in sync in another life of it may have lost what was not flushed.
fn of_member(state: MemberState, incarnation: Incarnation) -> CopyState {
    match state {
        MemberState::InSync(in_sync) if in_sync == incarnation => CopyState::InSync,
        MemberState::InSync(_) | MemberState::Behind | MemberState::Added => CopyState::Behind,
        MemberState::Retired => CopyState::Removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(states: &[CopyState]) -> ReplicaStatus {
        let copy = |&state: &CopyState| CopyStatus { volume: Uuid::nil(), view: 3, state, connections: 1 };
        let copies = states.iter().map(copy).collect();
        ReplicaStatus { nodes: vec!["node-a".to_owned()], certificate_seconds: 60, copies }
    }

    #[test]
    fn a_copy_is_in_sync_in_the_life_that_the_view_means_and_in_no_other() {
        let [one, other] = [1, 2].map(|number| Incarnation(Uuid::from_u128(number)));
        assert_eq!(of_member(MemberState::InSync(one), one), CopyState::InSync);
        assert_eq!(of_member(MemberState::InSync(one), other), CopyState::Behind);
        assert_eq!(of_member(MemberState::Added, one), CopyState::Behind);
        assert_eq!(of_member(MemberState::Retired, one), CopyState::Removed);
    }

    #[test]
    fn what_nobody_counts_on_is_no_obstacle() {
        assert_eq!(status(&[]).obstacle(), None);
        assert_eq!(status(&[CopyState::InSync, CopyState::Removed, CopyState::Unknown]).obstacle(), None);
        let obstacle = status(&[CopyState::InSync, CopyState::Behind, CopyState::Failed]).obstacle().unwrap();
        assert!(obstacle.contains("is not in sync (and 1 more)"), "{obstacle}");
        let mut unused = status(&[CopyState::Behind]);
        unused.copies[0].connections = 0;
        assert_eq!(unused.obstacle(), None);
        assert!(status(&[CopyState::Failed]).obstacle().unwrap().contains("has failed"));
        let late = ReplicaStatus { certificate_seconds: 0, ..status(&[CopyState::InSync]) };
        assert!(late.obstacle().unwrap().contains("expired"));
    }
}
