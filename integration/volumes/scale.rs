//! Many volumes on many nodes, as the API server sees them: what their attaching costs it, what the loss of a node
//! costs it, and that at rest they cost it nothing.
//!
//! The volumes are objects in a real API server and the views are changed by the code and with the permissions that
//! nodes have; copies and disks are not there. `SCALE_VOLUMES=1000` is how the figures in docs/scale.md were made.

use std::thread;
use std::time::{Duration, Instant};

use sealblk::coordination::kubernetes::{ClusterVolume, Spec};
use sealblk::coordination::{KubernetesViews, Swap, ViewStore};
use sealblk::kubernetes::Access;
use sealblk::replication::View;
use sealblk::replication::view::{
    FailureMode, Incarnation, Member, MemberIndex, MemberState, NodeName, ViewNumber, WriterId,
};
use serde_json::json;
use uuid::Uuid;

use crate::scene::{DEPLOY, Scene};
use crate::support::cluster::{Cluster, Request};

/// A real one: the object, its key, and the view as often as it changes.
#[test]
fn an_attach_asks_for_little() {
    let mut scene = Scene::with_volume();
    let before = scene.asked();
    let writer = scene.serve(0);
    scene.await_column("IN-SYNC", "3/3");
    let asked = scene.requests().split_off(before);
    println!("an attach: {} requests: {asked:#?}", asked.len());
    let gets_secret = |request: &&String| request.contains("/secrets/");
    assert_eq!(asked.iter().filter(gets_secret).count(), 1, "{asked:#?}");
    assert!(asked.len() <= ATTACH_REQUESTS + 1, "{asked:#?}");
    writer.process.terminate();
}

#[test]
fn many_volumes_ask_for_little_together() {
    let count = std::env::var("SCALE_VOLUMES").map_or(VOLUMES, |text| text.parse().expect("how many volumes"));
    let cluster = Cluster::start(&[]);
    cluster.kubectl(&["apply", "-k", DEPLOY]);
    cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd/volumes.sealblk.io"]);
    let namespace = cluster.namespace("vms");
    let admin = Access { kubeconfig: Some(cluster.admin_kubeconfig()), context: None };
    let nodes = Access { kubeconfig: Some(cluster.kubeconfig("sealblk-system", "sealblk-node")), context: None };
    let volumes: Vec<Volume> = (0..count).map(|index| Volume::new(&namespace, index)).collect();
    on_their_nodes(&volumes, |volume| volume.make(&admin));

    let (before, began) = (asked(&cluster), Instant::now());
    let times = on_their_nodes(&volumes, |volume| volume.attach(&nodes));
    tell("attach, all volumes at once", &times, began.elapsed(), asked(&cluster) - before);
    assert_eq!(asked(&cluster) - before, count * ATTACH_REQUESTS);

    let (before, began) = (asked(&cluster), Instant::now());
    let lost = 7;
    let hit: Vec<Volume> = volumes.iter().filter(|volume| volume.has_copy_on(lost)).cloned().collect();
    assert!(!hit.is_empty());
    let times = on_their_nodes(&hit, |volume| volume.lose(&nodes, lost));
    tell("the loss of a node, all its volumes at once", &times, began.elapsed(), asked(&cluster) - before);
    assert_eq!(asked(&cluster) - before, hit.len() * LOSS_REQUESTS);

    let text = cluster.kubectl(&["-n", &namespace, "get", "volumes.sealblk.io", "disk-0", "-o", "json"]);
    let object: serde_json::Value = serde_json::from_str(&text).expect("a Volume");
    println!("a Volume with three members takes {} bytes", object.to_string().len());

    let before = asked(&cluster);
    thread::sleep(REST);
    assert_eq!(asked(&cluster), before, "at rest nobody asks for anything");
}

/// A volume with copies on three nodes, served on the first of them.
#[derive(Clone)]
struct Volume {
    at: ClusterVolume,
    id: Uuid,
    nodes: [usize; 3],
}

impl Volume {
    fn new(namespace: &str, index: usize) -> Volume {
        let name = format!("{namespace}/disk-{index}").parse().expect("a name");
        let access = Access { kubeconfig: None, context: None };
        // Each node's volumes have their other copies on different nodes.
        let (first, turn) = (index % NODES, index / NODES + 1);
        let nodes = [first, (first + turn) % NODES, (first + 2 * turn) % NODES];
        Volume { at: ClusterVolume { name, access, patience: PATIENCE }, id: Uuid::from_u128(index as u128 + 1), nodes }
    }

    fn has_copy_on(&self, node: usize) -> bool {
        // One that is served there is attached elsewhere, which is another matter.
        self.nodes[1..].contains(&node)
    }

    fn with(&self, access: &Access) -> ClusterVolume {
        ClusterVolume { access: access.clone(), ..self.at.clone() }
    }

    fn views(&self, access: &Access) -> KubernetesViews {
        KubernetesViews::new(self.with(access), self.id)
    }

    fn make(&self, admin: &Access) {
        let member = |node: &usize| json!({"node": name(*node), "address": format!("{}:7420", name(*node))});
        let members: Vec<_> = self.nodes.iter().map(member).collect();
        let spec: Spec = serde_json::from_value(json!({"size": "10Gi", "members": members})).expect("a spec");
        self.with(admin).create(&spec).expect("an object");
        let member = |node: &usize| Member {
            node: name(*node),
            address: format!("{}:7420", name(*node)),
            zone: None,
            state: MemberState::InSync(Incarnation(Uuid::from_u128(1))),
        };
        let view = View {
            volume: self.id,
            number: ViewNumber(1),
            writer: None,
            members: self.nodes.iter().map(member).collect(),
            failure_mode: FailureMode::Soft,
            lease_ms: 4000,
            writers: Vec::new(),
        };
        self.views(admin).create(&view).expect("the first view");
    }

    /// As `sealblk serve` does: what it is, then its view, the claim, and the lives that the copies are in.
    fn attach(&self, access: &Access) {
        self.with(access).read().expect("the volume");
        let mut views = self.views(access);
        let mut view = views.load().expect("its view");
        view.writer = Some(WriterId { node: name(self.nodes[0]), attachment: self.id });
        change(&mut views, &mut view);
        view.members[0].state = MemberState::InSync(Incarnation(Uuid::from_u128(2)));
        change(&mut views, &mut view);
    }

    /// A copy leaves: the writer knows its view, and makes the next one.
    fn lose(&self, access: &Access, node: usize) {
        let mut views = self.views(access);
        let mut view = View { number: ViewNumber(3), ..self.view_as_attached() };
        let member = view.member_on(&name(node)).expect("a member");
        let MemberIndex(place) = member;
        view.members[usize::from(place)].state = MemberState::Behind;
        change(&mut views, &mut view);
    }

    fn view_as_attached(&self) -> View {
        let member = |(place, node): (usize, &usize)| Member {
            node: name(*node),
            address: format!("{}:7420", name(*node)),
            zone: None,
            state: MemberState::InSync(Incarnation(Uuid::from_u128(if place == 0 { 2 } else { 1 }))),
        };
        View {
            volume: self.id,
            number: ViewNumber(3),
            writer: Some(WriterId { node: name(self.nodes[0]), attachment: self.id }),
            members: self.nodes.iter().enumerate().map(member).collect(),
            failure_mode: FailureMode::Soft,
            lease_ms: 4000,
            writers: Vec::new(),
        }
    }
}

/// Puts a view, with the next number, in the place of the one that has its number.
fn change(views: &mut KubernetesViews, view: &mut View) {
    let current = view.number;
    view.number = current.next();
    assert_eq!(views.swap(current, view).expect("a swap"), Swap::Stored);
}

/// Does something with each volume, those of one node after each other and the nodes at once; how long each took.
fn on_their_nodes(volumes: &[Volume], work: impl Fn(&Volume) + Sync) -> Vec<Duration> {
    let work = &work;
    thread::scope(|scope| {
        let nodes: Vec<_> = (0..NODES)
            .map(|node| {
                scope.spawn(move || {
                    let own = volumes.iter().filter(|volume| volume.nodes[0] == node);
                    let timed = own.map(|volume| {
                        let began = Instant::now();
                        work(volume);
                        began.elapsed()
                    });
                    timed.collect::<Vec<_>>()
                })
            })
            .collect();
        nodes.into_iter().flat_map(|node| node.join().expect("a node")).collect()
    })
}

fn tell(what: &str, times: &[Duration], all: Duration, asked: usize) {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)].as_millis();
    println!(
        "{what}: {} volumes in {:.1} s, each in {} ms (median), {} ms (99 of 100), {} ms (longest); {asked} requests",
        times.len(),
        all.as_secs_f64(),
        at(50),
        at(99),
        at(100),
    );
}

fn asked(cluster: &Cluster) -> usize {
    let user = "system:serviceaccount:sealblk-system:sealblk-node";
    // Events are told whenever there is time.
    let is_meant = |request: &&Request| request.user == user && !request.uri.contains("/events");
    cluster.requests().iter().filter(is_meant).count()
}

fn name(node: usize) -> NodeName {
    format!("node-{node}").parse().expect("a node's name")
}

const NODES: usize = 50;
/// What `make test` takes.
const VOLUMES: usize = 150;
/// Two reads, and two changes of the view with a read and a write each.
const ATTACH_REQUESTS: usize = 6;
const LOSS_REQUESTS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(60);
const REST: Duration = Duration::from_secs(5);
