//! What a volume of a cluster is: the `status` of a `Volume`, which has its view and, made from that, what
//! people look for.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::replication::View;
use crate::replication::view::{
    FailureMode, Incarnation, Member, MemberState, NodeName, Spread, ViewNumber, WriterId, Zone,
};

/// The status.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The generation of the spec that was current when this was written.
    pub observed_generation: Option<i64>,
    /// How many copies are in sync, of how many: `2/3`.
    pub in_sync: Option<String>,
    /// The view; none before the volume's copies are made.
    pub view: Option<StoredView>,
    /// What holds of it.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// A view, with nothing left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StoredView {
    volume: Uuid,
    number: ViewNumber,
    #[serde(default)]
    writer: Option<WriterId>,
    members: Vec<StoredMember>,
    failure_mode: FailureMode,
    lease_milliseconds: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    writers: Vec<NodeName>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredMember {
    node: NodeName,
    address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zone: Option<Zone>,
    state: StoredState,
    /// The life in which it is in sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    incarnation: Option<Incarnation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum StoredState {
    InSync,
    Behind,
    Added,
    Retired,
}

impl Status {
    /// The status that says that `view` is current, after this one.
    pub fn next(&self, view: &View, generation: Option<i64>, now: Timestamp) -> Status {
        let count = view.in_sync().count();
        let of = view.present().count();
        let enough = count >= view.in_sync_min();
        let behind = view.present().filter(|member| !matches!(member.state, MemberState::InSync(_)));
        let behind: Vec<&str> = behind.map(|member| member.node.as_str()).collect();
        let ready = (
            "Ready",
            truth(enough),
            if enough { "EnoughCopies" } else { "TooFewCopies" },
            format!("{count} of {of} copies are in sync, and a write needs {}", view.in_sync_min()),
        );
        let degraded = if behind.is_empty() {
            ("Degraded", "False", "AllCopiesInSync", "every copy is in sync".to_owned())
        } else {
            ("Degraded", "True", "CopiesBehind", format!("not in sync: {}", behind.join(", ")))
        };
        let spread = view.spread();
        let (holds, reason) = match spread {
            Spread::Zones(_) => ("True", "SeveralZones"),
            Spread::OneZone(_) => ("False", "OneZone"),
            Spread::Unknown(_) => ("Unknown", "ZoneNotKnown"),
            Spread::NotGiven => ("Unknown", "NoZones"),
        };
        let spread = ("Spread", holds, reason, spread.to_string());
        let condition = |(type_, status, reason, message): (&str, &str, &str, String)| {
            let before = self.conditions.iter().find(|before| before.type_ == type_ && before.status == status);
            Condition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: reason.to_owned(),
                message,
                last_transition_time: before.map_or(Time(now), |before| before.last_transition_time.clone()),
                observed_generation: generation,
            }
        };
        Status {
            observed_generation: generation,
            in_sync: Some(format!("{count}/{of}")),
            view: Some(StoredView::of(view)),
            conditions: vec![condition(ready), condition(degraded), condition(spread)],
        }
    }
}

fn truth(holds: bool) -> &'static str {
    if holds { "True" } else { "False" }
}

impl StoredView {
    fn of(view: &View) -> StoredView {
        let members = view.members.iter().map(|Member { node, address, zone, state }| {
            let (state, incarnation) = match *state {
                MemberState::InSync(incarnation) => (StoredState::InSync, Some(incarnation)),
                MemberState::Behind => (StoredState::Behind, None),
                MemberState::Added => (StoredState::Added, None),
                MemberState::Retired => (StoredState::Retired, None),
            };
            StoredMember { node: node.clone(), address: address.clone(), zone: zone.clone(), state, incarnation }
        });
        StoredView {
            volume: view.volume,
            number: view.number,
            writer: view.writer.clone(),
            members: members.collect(),
            failure_mode: view.failure_mode,
            lease_milliseconds: view.lease_ms,
            writers: view.writers.clone(),
        }
    }

    /// The view; none if there can be no such view.
    pub fn view(&self) -> Option<View> {
        let member = |member: &StoredMember| {
            let state = match (member.state, member.incarnation) {
                (StoredState::InSync, Some(incarnation)) => MemberState::InSync(incarnation),
                (StoredState::Behind, None) => MemberState::Behind,
                (StoredState::Added, None) => MemberState::Added,
                (StoredState::Retired, None) => MemberState::Retired,
                _ => return None,
            };
            let (node, address, zone) = (member.node.clone(), member.address.clone(), member.zone.clone());
            Some(Member { node, address, zone, state })
        };
        let view = View {
            volume: self.volume,
            number: self.number,
            writer: self.writer.clone(),
            members: self.members.iter().map(member).collect::<Option<_>>()?,
            failure_mode: self.failure_mode,
            lease_ms: self.lease_milliseconds,
            writers: self.writers.clone(),
        };
        view.check().is_ok().then_some(view)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::tests::first_view;
    use super::*;

    const VOLUME: Uuid = Uuid::from_bytes([7; 16]);

    #[test]
    fn the_view_is_stored_without_loss_and_in_these_words() {
        let view = first_view(VOLUME);
        let stored = serde_json::to_value(StoredView::of(&view)).unwrap();
        let expected = json!({
            "volume": "07070707-0707-0707-0707-070707070707",
            "number": 1,
            "writer": null,
            "members": [
                {"node": "node-1", "address": "node-1.example:7000", "state": "InSync",
                 "incarnation": "01010101-0101-0101-0101-010101010101"},
                {"node": "node-2", "address": "node-2.example:7000", "state": "Behind"},
            ],
            "failureMode": "soft",
            "leaseMilliseconds": 5000,
        });
        assert_eq!(stored, expected);
        assert_eq!(serde_json::from_value::<StoredView>(stored).unwrap().view(), Some(view.clone()));
        let writer = Some(WriterId { node: "node-1".parse().unwrap(), attachment: VOLUME });
        let mut view = view;
        view.members[0].zone = Some("eu-1a".parse().unwrap());
        view.writers = vec!["node-9".parse().unwrap()];
        let stored = serde_json::to_value(StoredView::of(&view)).unwrap();
        assert_eq!(stored["members"][0]["zone"], "eu-1a");
        let mut view = View { number: ViewNumber::MAX, writer, ..view };
        for state in [MemberState::Added, MemberState::Retired] {
            view.members[1].state = state;
            let stored = serde_json::to_value(StoredView::of(&view)).unwrap();
            assert_eq!(serde_json::from_value::<StoredView>(stored).unwrap().view().as_ref(), Some(&view));
        }
        let stored = serde_json::to_value(StoredView::of(&view)).unwrap();
        assert_eq!(serde_json::from_value::<StoredView>(stored).unwrap().view(), Some(view));
    }

    #[test]
    fn a_view_that_cannot_be_is_none() {
        let stored = StoredView::of(&first_view(VOLUME));
        let mut alive_and_behind = stored.clone();
        alive_and_behind.members[1].incarnation = Some(Incarnation(VOLUME));
        let mut lifeless = stored.clone();
        lifeless.members[0].incarnation = None;
        let twice = StoredView { members: vec![stored.members[0].clone(); 2], ..stored.clone() };
        let unnumbered = StoredView { number: ViewNumber::NONE, ..stored };
        for impossible in [alive_and_behind, lifeless, twice, unnumbered] {
            assert_eq!(impossible.view(), None, "{impossible:?}");
        }
    }

    #[test]
    fn a_condition_says_whether_copies_in_sync_are_in_more_zones_than_one() {
        let mut view = first_view(VOLUME);
        let spread = |view: &View| {
            let status = Status::default().next(view, None, Timestamp::UNIX_EPOCH);
            let found = status.conditions.into_iter().find(|condition| condition.type_ == "Spread").unwrap();
            (found.status, found.reason, found.message)
        };
        let said = |status: &str, reason: &str, message: &str| (status.into(), reason.into(), message.into());
        assert_eq!(spread(&view), said("Unknown", "NoZones", "no copy in sync has a zone"));
        view.members[0].zone = Some("a".parse().unwrap());
        view.members[1].zone = Some("b".parse().unwrap());
        assert_eq!(spread(&view), said("False", "OneZone", "every copy in sync is in zone a"), "the other is behind");
        view.members[1].state = MemberState::InSync(Incarnation(VOLUME));
        let zones = "the copies in sync are in zones a (node-1), b (node-2)";
        assert_eq!(spread(&view), said("True", "SeveralZones", zones));
        view.members[1].zone = None;
        let unknown = "it is not known in which zone node-2 is";
        assert_eq!(spread(&view), said("Unknown", "ZoneNotKnown", unknown));
    }

    #[test]
    fn conditions_say_what_holds_and_since_when() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let states = |status: &Status| -> Vec<(String, String, i64)> {
            let conditions = status.conditions.iter().filter(|condition| condition.type_ != "Spread");
            let parts = conditions.map(|c| (c.reason.clone(), c.status.clone(), c.last_transition_time.0.as_second()));
            parts.collect()
        };
        let texts = |parts: [(&str, &str, i64); 2]| parts.map(|(r, s, t)| (r.to_owned(), s.to_owned(), t)).to_vec();

        let degraded = first_view(VOLUME);
        let status = Status::default().next(&degraded, Some(3), at(10));
        assert_eq!(status.in_sync.as_deref(), Some("1/2"));
        assert_eq!(states(&status), texts([("EnoughCopies", "True", 10), ("CopiesBehind", "True", 10)]));
        assert!(status.conditions[1].message.contains("node-2"), "{status:?}");

        let mut whole = degraded.clone();
        whole.members[1].state = MemberState::InSync(Incarnation(VOLUME));
        let status = status.next(&whole, Some(3), at(20));
        assert_eq!(states(&status), texts([("EnoughCopies", "True", 10), ("AllCopiesInSync", "False", 20)]));

        let hard = View { failure_mode: FailureMode::Hard, ..degraded };
        let status = status.next(&hard, Some(4), at(30));
        assert_eq!(states(&status), texts([("TooFewCopies", "False", 30), ("CopiesBehind", "True", 30)]));
        assert_eq!(status.conditions[0].observed_generation, Some(4));

        // One that was removed is no copy; one that was added is, and no write needs it yet.
        let mut removed = hard.clone();
        removed.members[1].state = MemberState::Retired;
        let status = status.next(&removed, Some(4), at(40));
        assert_eq!(status.in_sync.as_deref(), Some("1/1"));
        assert_eq!(states(&status), texts([("EnoughCopies", "True", 40), ("AllCopiesInSync", "False", 40)]));
        let mut added = removed;
        added.members[1].state = MemberState::Added;
        let status = status.next(&added, Some(4), at(50));
        assert_eq!(status.in_sync.as_deref(), Some("1/2"));
        assert_eq!(states(&status), texts([("EnoughCopies", "True", 40), ("CopiesBehind", "True", 50)]));
    }
}
