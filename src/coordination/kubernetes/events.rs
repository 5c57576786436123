//! Events of a volume, as `kubectl describe` and `kubectl get events` show them: who serves it, whose copy was lost and
//! came back, who became a member.
//!
//! They are made from two views that follow each other, and told when the second is stored. Nothing waits for that: a
//! thread of its own tells them, which lives as long as somebody changes the view. Whoever does so no more waits a
//! little for what has yet to be told, so that a process that ends tells its last too. One that cannot be told is lost.
//! What holds is in the status, and an event only says when it came about.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::object::{self, AccessError};
use super::{ClusterVolume, VolumeName};
use crate::kubernetes::{self, RequestError, request};
use crate::replication::View;
use crate::replication::view::{Member, MemberState};

/// Whoever tells the events of one volume.
#[derive(Debug, Default)]
pub struct Events {
    /// Once there is something to tell.
    teller: Option<Teller>,
}

/// The thread that tells them.
#[derive(Debug)]
struct Teller {
    /// What it is to tell; none when nothing more will come.
    told: Option<SyncSender<Change>>,
    /// Cut off when it has ended.
    ended: Receiver<()>,
}

/// A view was put in the place of another.
#[derive(Debug)]
struct Change {
    at: ClusterVolume,
    /// Of the object.
    uid: String,
    before: Option<View>,
    after: View,
    time: Timestamp,
}

/// One event.
#[derive(Debug, PartialEq, Eq)]
struct Event {
    reason: &'static str,
    is_warning: bool,
    message: String,
}

impl Events {
    /// Tells what came about when `after` was stored in the place of `before`, soon.
    pub fn tell(&mut self, at: &ClusterVolume, uid: &str, before: Option<View>, after: &View) {
        let change =
            Change { at: at.clone(), uid: uid.to_owned(), before, after: after.clone(), time: Timestamp::now() };
        let Some(told) = &self.teller.get_or_insert_with(Teller::begin).told else { return };
        match told.try_send(change) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => log::debug!("{}: more events than can be told", at.name),
            // For the next one another thread is tried.
            Err(TrySendError::Disconnected(_)) => self.teller = None,
        }
    }
}

impl Teller {
    fn begin() -> Teller {
        let (told, to_tell) = sync_channel(CHANGES_MAX);
        let (running, ended) = sync_channel(0);
        let thread = thread::Builder::new().name("events".to_owned()).spawn(move || {
            let _running = running;
            tell_all(&to_tell);
        });
        if let Err(error) = thread {
            log::warn!("there is no thread to tell events: {error}");
        }
        Teller { told: Some(told), ended }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.told = None;
        if self.ended.recv_timeout(END_TIME_MAX) == Err(RecvTimeoutError::Timeout) {
            log::debug!("there are events that were not told in time");
        }
    }
}

fn tell_all(changes: &Receiver<Change>) {
    let mut is_forbidden = false;
    for change in changes {
        match object::run(tell(&change)) {
            Ok(Ok(())) => {}
            Ok(Err(AccessError::Request { source: source @ RequestError::Forbidden { .. }, .. })) if !is_forbidden => {
                is_forbidden = true;
                log::warn!("no events are told of volume {}: {source}", change.at.name);
            }
            Ok(Err(error)) => log::debug!("an event of volume {} is lost: {error}", change.at.name),
            Err(error) => log::debug!("an event of volume {} is lost: {error}", change.at.name),
        }
    }
}

async fn tell(change: &Change) -> Result<(), AccessError> {
    let events = between(change.before.as_ref(), &change.after);
    if events.is_empty() {
        return Ok(());
    }
    let configuration = kubernetes::configuration(&change.at.access).await?;
    let server = configuration.cluster_url.to_string().trim_end_matches('/').to_owned();
    let client = kubernetes::client(configuration)?;
    let path = format!("/api/v1/namespaces/{}/events", change.at.name.namespace());
    for event in events {
        let body = body(&event, change).into();
        let answer = request::create(&client, &path, body, ANSWER_TIME_MAX).await;
        answer.map_err(|source| AccessError::Request { server: server.clone(), source })?;
    }
    Ok(())
}

/// The object, of the API group without a name.
fn body(event: &Event, change: &Change) -> String {
    let name: &VolumeName = &change.at.name;
    let node = change.after.writer.as_ref().map_or(String::new(), |writer| writer.node.to_string());
    let object = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": name.namespace(), "generateName": format!("{}.", name.name())},
        "involvedObject": {
            "apiVersion": "sealblk.io/v1alpha1", "kind": "Volume",
            "namespace": name.namespace(), "name": name.name(), "uid": change.uid,
        },
        "type": if event.is_warning { "Warning" } else { "Normal" },
        "reason": event.reason,
        "message": event.message,
        "source": {"component": "sealblk", "host": node},
        "reportingComponent": "sealblk.io/serve",
        "reportingInstance": node,
        "firstTimestamp": change.time,
        "lastTimestamp": change.time,
        "count": 1,
    });
    object.to_string()
}

/// What came about between two views.
fn between(before: Option<&View>, after: &View) -> Vec<Event> {
    let normal = |reason, message| Event { reason, is_warning: false, message };
    let Some(before) = before else {
        return vec![normal("Created", format!("copies were made on {}", nodes(after.present())))];
    };
    let mut events = Vec::new();
    match (&before.writer, &after.writer) {
        (Some(old), Some(new)) if old.node != new.node => {
            events.push(normal(
                "TakenOver",
                format!("node {} serves the volume, in place of node {}", new.node, old.node),
            ));
        }
        (old, Some(new)) if old.as_ref() != Some(new) => {
            events.push(normal("Attached", format!("node {} serves the volume", new.node)));
        }
        _ => {}
    }
    for (place, Member { node, state, .. }) in after.members.iter().enumerate() {
        // Another's place is nobody's before.
        let was = before.members.get(place).filter(|member| member.node == *node).map(|member| member.state);
        match (was, state) {
            (Some(MemberState::InSync(_)), MemberState::Behind) => events.push(Event {
                reason: "CopyLost",
                is_warning: true,
                message: format!("the copy on node {node} is not in sync any more"),
            }),
            (Some(MemberState::Behind | MemberState::Added), MemberState::InSync(_)) => {
                events.push(normal("CopyInSync", format!("the copy on node {node} is in sync")));
            }
            (None | Some(MemberState::Retired), MemberState::Added) => {
                events.push(normal("MemberAdded", format!("node {node} is to keep a copy")));
            }
            (Some(was), MemberState::Retired) if was != MemberState::Retired => {
                events.push(normal("MemberRemoved", format!("node {node} keeps no copy any more")));
            }
            _ => {}
        }
    }
    // A view of which nothing but the number is new is where a resync begins.
    if events.is_empty() && before.members == after.members {
        let behind = |member: &&Member| matches!(member.state, MemberState::Behind | MemberState::Added);
        let behind = nodes(after.members.iter().filter(behind));
        events.push(normal("ResyncStarted", format!("what it lacks is being sent to {behind}")));
    }
    events
}

fn nodes<'a>(members: impl Iterator<Item = &'a Member>) -> String {
    let names: Vec<&str> = members.map(|member| member.node.as_str()).collect();
    format!("node{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", "))
}

/// How many changes may wait to be told: a view does not change often.
const CHANGES_MAX: usize = 16;
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// How long the end of a process waits for the last to be told.
const END_TIME_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::super::tests::first_view;
    use super::*;
    use crate::replication::view::{Incarnation, WriterId};

    fn reasons(before: &View, after: &View) -> Vec<(&'static str, String)> {
        between(Some(before), after).into_iter().map(|event| (event.reason, event.message)).collect()
    }

    #[test]
    fn each_change_of_a_view_is_told_in_these_words() {
        let first = first_view(Uuid::nil());
        let made = between(None, &first);
        assert_eq!(made[0].message, "copies were made on nodes node-1, node-2");

        let served_by = |view: &View, node: &str| View {
            writer: Some(WriterId { node: node.parse().unwrap(), attachment: Uuid::new_v4() }),
            ..view.clone()
        };
        let attached = served_by(&first, "node-1");
        assert_eq!(reasons(&first, &attached), [("Attached", "node node-1 serves the volume".to_owned())]);
        let again = served_by(&first, "node-1");
        assert_eq!(reasons(&attached, &again)[0].0, "Attached");
        let taken = reasons(&attached, &served_by(&first, "node-2"));
        assert_eq!(taken, [("TakenOver", "node node-2 serves the volume, in place of node node-1".to_owned())]);

        assert_eq!(
            reasons(&attached, &attached),
            [("ResyncStarted", "what it lacks is being sent to node node-2".to_owned())]
        );
        let with = |place: usize, state| {
            let mut view = attached.clone();
            view.members[place].state = state;
            view
        };
        let whole = with(1, MemberState::InSync(Incarnation(Uuid::nil())));
        assert_eq!(reasons(&attached, &whole), [("CopyInSync", "the copy on node node-2 is in sync".to_owned())]);
        let lost = between(Some(&whole), &attached);
        assert!(lost.len() == 1 && lost[0].is_warning && lost[0].reason == "CopyLost", "{lost:?}");
        let removed = with(1, MemberState::Retired);
        assert_eq!(reasons(&attached, &removed)[0].0, "MemberRemoved");
        let mut replaced = with(1, MemberState::Added);
        replaced.members[1].node = "node-3".parse().unwrap();
        assert_eq!(reasons(&removed, &replaced), [("MemberAdded", "node node-3 is to keep a copy".to_owned())]);
        // In a new life it is as much in sync as before.
        let reborn = with(0, MemberState::InSync(Incarnation(Uuid::from_u128(7))));
        assert_eq!(reasons(&attached, &reborn), []);
    }
}
