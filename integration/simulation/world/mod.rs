//! Nodes, disks, connections and a clock, all from one seed.
//!
//! The writer and the replicas are the real ones; everything around them is here: messages that are late,
//! held up by a cut or lost with their connection, disks that are slow, fail or lose their cache, processes
//! that are killed, stopped or started twice, and a store of views that cannot always be reached.

mod administration;
mod connections;
mod copies;
mod processes;
mod rounds;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use sealblk::replication::region::{RegionIndex, Regions, Row};
use sealblk::replication::replica::{ConnectionId, FlightId};
use sealblk::replication::view::{
    FailureMode, Incarnation, Member, MemberIndex, MemberState, NodeName, View, ViewNumber,
};
use sealblk::replication::writer::{Lane, Settings, Swapped};
use uuid::Uuid;

use crate::disk::{Disk, Value, is_rot};
use crate::faults::Sequel;
use crate::history::History;
use crate::random::Random;
use crate::store::Store;
use connections::{Connection, Message};
use copies::Holder;
use processes::Process;

pub const SECTOR_BYTES: u64 = 512;

/// What a seed decides once.
#[derive(Debug)]
pub struct Scenario {
    pub members: usize,
    /// Nodes that keep no copy, but may run the guest.
    pub others: usize,
    /// Whether the guest mostly runs on those.
    pub away: bool,
    /// Whether what goes wrong is mostly that all copies restart, and the writer lives.
    pub restless: bool,
    /// Whether members come and go.
    pub changing: bool,
    pub sectors: usize,
    pub region_sectors: u64,
    pub lanes: u16,
    pub failure_mode: FailureMode,
    pub link_us: u64,
    /// Whether some connections are much slower than others, of one session too.
    pub uneven: bool,
    pub disk_us: u64,
    /// How much of what a copy was given and its disk has not done may be answered, in bytes.
    pub write_behind: u64,
    /// Whether disks make sectors up, and lose some.
    pub rotten: bool,
    /// In how many of a hundred changes of the view something else goes wrong at the same time.
    pub troubled: u64,
    pub lease_ms: u32,
    /// Of what reads of the view follow that find an earlier one, if any do.
    pub stale: Option<Random>,
    pub settings: Settings,
}

pub struct World {
    pub scenario: Scenario,
    pub random: Random,
    /// Of how the threads of a process go.
    lanes: Random,
    pub now: u64,
    events: BinaryHeap<Reverse<(u64, u64, usize)>>,
    bodies: BTreeMap<usize, Event>,
    next_event: usize,
    pub nodes: Vec<Node>,
    /// From one node to another nothing arrives.
    pub cuts: BTreeSet<(usize, usize)>,
    pub processes: BTreeMap<u64, Process>,
    next_process: u64,
    connections: BTreeMap<ConnectionId, Connection>,
    next_connection: u64,
    pub store: Store,
    pub history: History,
    pub next_value: Value,
    /// When a copy last may have lost what it had not flushed.
    pub lost_cache: Option<u64>,
    /// When the guest began that is served now, or was last.
    guest_began: u64,
    /// When its writer attached.
    guest_attached: u64,
    /// The view in which it began.
    guest_view: ViewNumber,
    /// The process that serves it.
    guest_process: u64,
    /// Since then a view was stored that knows no copy in the life that the one before did.
    renewed: bool,
    /// When the last flush began that ended well.
    pub flush_began: u64,
    pub trace: Option<Vec<String>>,
    pub error: Option<String>,
    /// No more faults.
    pub peace: bool,
    /// Made-up values that were copied on before anybody could know, or by one who was trusted.
    spread: BTreeSet<Value>,
    /// What most copies have of a sector since disks last decayed at rest, where most have the same.
    agreed: BTreeMap<usize, Value>,
    pub counts: Counts,
    /// How many members there were when they were last changed.
    members: usize,
}

/// What has happened, to see that anything has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub operations: u64,
    pub views: u64,
    pub attaches: u64,
    pub replaced: u64,
    pub power_losses: u64,
    pub copied: u64,
    pub asked_others: u64,
    pub added: u64,
    pub removed: u64,
    pub disks_lost: u64,
    pub rounds: u64,
    pub healed: u64,
    pub rot_read: u64,
    pub stale_reads: u64,
    /// Answers that were told after their sessions had ended.
    pub late_answers: u64,
    /// Lanes that stood still when something on them was late.
    pub still_lanes: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        self.operations += other.operations;
        self.views += other.views;
        self.attaches += other.attaches;
        self.replaced += other.replaced;
        self.power_losses += other.power_losses;
        self.copied += other.copied;
        self.asked_others += other.asked_others;
        self.added += other.added;
        self.removed += other.removed;
        self.disks_lost += other.disks_lost;
        self.rounds += other.rounds;
        self.healed += other.healed;
        self.rot_read += other.rot_read;
        self.stale_reads += other.stale_reads;
        self.late_answers += other.late_answers;
        self.still_lanes += other.still_lanes;
    }

    /// Whether each kind of thing has happened.
    pub fn is_eventful(&self) -> bool {
        let kinds = [self.operations, self.views, self.attaches, self.replaced, self.power_losses];
        let more = [self.copied, self.asked_others, self.added, self.removed, self.disks_lost];
        let threads = [self.stale_reads, self.late_answers, self.still_lanes];
        let compared = [self.rounds, self.healed, self.rot_read];
        kinds.iter().chain(&more).chain(&compared).chain(&threads).all(|&count| count > 0)
    }
}

pub struct Node {
    pub disk: Option<Disk>,
    pub powered: bool,
    /// The replica's process runs.
    pub daemon: bool,
    pub stalled_until: u64,
    /// When its copy was last opened, in a new life.
    opened: u64,
    /// Who has the copy open.
    holder: Option<Holder>,
    holders: u64,
}

enum Event {
    Arrive {
        connection: ConnectionId,
        to_writer: bool,
        message: Message,
    },
    DiskDone {
        node: usize,
        holder: u64,
        flight: FlightId,
    },
    Persisted {
        node: usize,
        holder: u64,
        rows: Vec<(RegionIndex, Row)>,
        view: Option<Box<View>>,
    },
    StoreAsked {
        process: u64,
        current: ViewNumber,
        next: Box<View>,
        answer: bool,
    },
    StoreAnswered {
        process: u64,
        result: Swapped,
    },
    /// A lane has taken all that has come.
    Looked {
        process: u64,
        lane: Lane,
    },
    Tick {
        process: u64,
    },
    GuestActs {
        process: u64,
    },
    StartDaemon {
        node: usize,
    },
    PowerOn {
        node: usize,
    },
    Attach {
        on: Option<usize>,
    },
    EndRound {
        process: u64,
        round: u64,
    },
    Rot {
        node: usize,
        sector: usize,
    },
    Heal,
    Fault,
    Follow(Sequel),
    /// Whoever runs the volume changes its members, or looks whether there is a reason to.
    Administer,
    /// A node that was added makes its copy, if it has none.
    MakeCopy {
        node: usize,
    },
    /// A node's disk is lost for good, if its copy can be spared.
    DiskDies {
        node: usize,
        tries: u32,
    },
}

impl World {
    pub fn new(seed: u64, scenario: Scenario) -> Self {
        let mut random = Random::new(seed);
        let view = View {
            volume: Uuid::from_u128(1),
            number: ViewNumber(1),
            writer: None,
            members: (0..scenario.members)
                .map(|index| Member {
                    node: name_of(index),
                    address: String::new(),
                    zone: None,
                    state: MemberState::InSync(Incarnation(Uuid::nil())),
                })
                .collect(),
            failure_mode: scenario.failure_mode,
            lease_ms: scenario.lease_ms,
            writers: Vec::new(),
        };
        let regions = scenario.sectors.div_ceil(scenario.region_sectors as usize);
        let nodes = (0..scenario.members + scenario.others).map(|index| Node {
            disk: (index < scenario.members).then(|| Disk::new(scenario.sectors, regions)),
            powered: true,
            daemon: true,
            stalled_until: 0,
            opened: 0,
            holder: None,
            holders: 0,
        });
        let nodes = nodes.collect();
        let history = History::new(scenario.sectors);
        let members = scenario.members;
        let stale = scenario.stale.clone();
        let _ = random.next();
        let mut world = Self {
            scenario,
            random,
            lanes: Random::new(seed ^ LANES),
            now: 0,
            events: BinaryHeap::new(),
            bodies: BTreeMap::new(),
            next_event: 0,
            nodes,
            cuts: BTreeSet::new(),
            processes: BTreeMap::new(),
            next_process: 1,
            connections: BTreeMap::new(),
            next_connection: 1,
            store: Store::new(view, stale),
            history,
            next_value: 1,
            lost_cache: None,
            guest_began: 0,
            guest_attached: 0,
            guest_view: ViewNumber::NONE,
            guest_process: 0,
            renewed: false,
            flush_began: 0,
            trace: None,
            error: None,
            peace: false,
            spread: BTreeSet::new(),
            agreed: BTreeMap::new(),
            counts: Counts::default(),
            members,
        };
        world.attach_at(1000);
        if world.scenario.changing {
            world.at(ADMINISTER_US, Event::Administer);
        }
        world
    }

    /// Runs until a time; false if something was wrong.
    pub fn run_until(&mut self, end: u64) -> bool {
        while let Some(&Reverse((time, _, key))) = self.events.peek() {
            if time > end {
                break;
            }
            self.events.pop();
            self.now = time;
            let event = self.bodies.remove(&key).expect("every event has a body");
            self.handle(event);
            if self.error.is_some() {
                return false;
            }
        }
        self.now = end;
        true
    }

    pub fn begin_faults(&mut self) {
        self.at(self.now + 500_000, Event::Fault);
    }

    pub fn start_daemon_at(&mut self, node: usize, time: u64) {
        self.at(time, Event::StartDaemon { node });
    }

    pub fn power_on_at(&mut self, node: usize, time: u64) {
        self.at(time, Event::PowerOn { node });
    }

    pub fn attach_at(&mut self, time: u64) {
        self.at(time, Event::Attach { on: None });
    }

    /// A process on this node attaches.
    pub fn attach_on_at(&mut self, node: usize, time: u64) {
        self.at(time, Event::Attach { on: Some(node) });
    }

    pub fn heal_at(&mut self, time: u64) {
        self.at(time, Event::Heal);
    }

    pub fn follow_at(&mut self, time: u64, sequel: Sequel) {
        self.at(time, Event::Follow(sequel));
    }

    pub fn fault_at(&mut self, time: u64) {
        self.at(time, Event::Fault);
    }

    fn at(&mut self, time: u64, event: Event) {
        self.next_event += 1;
        let key = self.next_event;
        self.bodies.insert(key, event);
        self.events.push(Reverse((time.max(self.now), key as u64, key)));
    }

    pub fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>10} {}", self.now, text()));
        }
    }

    pub fn fail(&mut self, error: String) {
        self.note(|| error.clone());
        self.error.get_or_insert(format!("at {} µs: {error}", self.now));
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive { connection, to_writer, message } => self.arrive(connection, to_writer, message),
            Event::DiskDone { node, holder, flight } => self.disk_done(node, holder, flight),
            Event::Persisted { node, holder, rows, view } => {
                if self.holder(node, holder).is_some() {
                    if let Some(disk) = &mut self.nodes[node].disk {
                        disk.persist(&rows, view.as_deref());
                    }
                    for (region, _) in rows.iter().filter(|(_, row)| !row.intent) {
                        self.check_region(*region);
                    }
                    if let Some(holder) = self.holder(node, holder) {
                        holder.replica.persisted(true);
                    }
                    self.drive_holder(node);
                }
            }
            Event::StoreAsked { process, current, next, answer } => self.store_asked(process, current, &next, answer),
            Event::StoreAnswered { process, result } => {
                self.with_writer(process, |writer, now| writer.swapped(now, result));
            }
            Event::Looked { process, lane } => self.with_writer(process, |writer, now| writer.looked(now, lane)),
            Event::Tick { process } => {
                if self.processes.contains_key(&process) {
                    self.with_writer(process, |writer, now| writer.tick(now));
                    self.at(self.now + TICK_US, Event::Tick { process });
                }
            }
            Event::GuestActs { process } => self.guest_acts(process),
            Event::EndRound { process, round } => {
                self.with_writer(process, |writer, now| writer.end_verify(now, round));
            }
            Event::Rot { node, sector } => self.rot(node, sector),
            Event::StartDaemon { node } => self.nodes[node].daemon = self.nodes[node].powered,
            Event::PowerOn { node } => {
                self.nodes[node].powered = true;
                self.nodes[node].daemon = true;
            }
            Event::Attach { on } => self.attach(on),
            Event::Heal => self.heal(),
            Event::Fault | Event::Follow(_) if self.peace => {}
            Event::Follow(sequel) => crate::faults::follow(self, sequel),
            Event::Fault => crate::faults::strike(self),
            Event::Administer => self.administer(),
            Event::MakeCopy { node } => self.make_copy(node),
            Event::DiskDies { node, tries } => self.disk_dies(node, tries),
        }
    }

    /// Where copies in sync differ, or have something that a power loss might take, one of them has an intent: by
    /// that the next writer knows.
    fn check_region(&mut self, region: RegionIndex) {
        let (first, end) = self.regions().range(region);
        let (first, count) = ((first / SECTOR_BYTES) as usize, ((end - first) / SECTOR_BYTES) as usize);
        let in_sync = self.store.view.in_sync().filter_map(|member| self.disk_of(&self.store.view, member));
        let copies: Vec<&Disk> = in_sync.collect();
        if copies.iter().any(|disk| disk.rows[region.0 as usize].intent) {
            return;
        }
        let differ = (first..first + count).any(|sector| {
            let values: Vec<Value> = copies.iter().map(|disk| disk.read(sector, 1)[0]).collect();
            values.iter().any(|&value| value != values[0]) && !values.iter().any(|&value| is_rot(value))
        });
        let volatile = copies.iter().any(|disk| !disk.is_durable(first, count));
        if differ || volatile {
            let what = if differ { "differs among the copies in sync" } else { "is not durable" };
            self.fail(format!("region {} {what}, and no row says so", region.0));
        }
    }

    /// The copy of a member, if it is there.
    pub fn disk_of(&self, view: &View, member: MemberIndex) -> Option<&Disk> {
        self.nodes[node_of(view, member)].disk.as_ref()
    }

    fn check_regions(&mut self) {
        for region in 0..self.regions().count() {
            self.check_region(RegionIndex(region));
        }
    }

    fn regions(&self) -> Regions {
        Regions::with_region_bytes(
            self.scenario.sectors as u64 * SECTOR_BYTES,
            self.scenario.region_sectors * SECTOR_BYTES,
        )
    }
}

/// The node of a member.
pub fn node_of(view: &View, member: MemberIndex) -> usize {
    number_of(&view.members[usize::from(member.0)].node)
}

/// The number of a node.
pub fn number_of(name: &NodeName) -> usize {
    let number = name.as_str().strip_prefix("node-").and_then(|number| number.parse().ok());
    number.expect("nodes are named for their numbers")
}

/// The name of a node.
pub fn name_of(node: usize) -> NodeName {
    format!("node-{node}").parse().expect("a name")
}

/// How often whoever runs the volume looks at it.
const ADMINISTER_US: u64 = 400_000;
const TICK_US: u64 = 50_000;
/// Apart from what else a seed decides.
const LANES: u64 = 0x6c61_6e65_7300;
