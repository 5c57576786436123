//! The writer of a volume: one process serves the guest, and everything it writes goes to every copy.
//!
//! A state machine: events go in, [`Action`]s come out; sockets, clocks, disks and threads belong to whoever
//! drives it, and so do the bytes. What it promises:
//!
//! 1. A write is acknowledged when every copy that the view calls in sync has it; a flush when every one has
//!    flushed.
//! 2. A copy that lacks a write leaves the view, by compare-and-swap, before that write is acknowledged. A
//!    writer whose swap meets another writer's view stops.
//! 3. Overlapping writes are never in flight together, so that all copies apply them in one order. Copying
//!    from one copy to another counts as a write of that range.
//! 4. A read comes from a copy that is in sync, and only while every other one has shown within the lease
//!    time that it knows of no other writer.
//!
//! | file | what it does |
//! | --- | --- |
//! | `attach` | becoming the writer: claim the view, gather the copies, wait the old lease out |
//! | `guest` | reads, writes and flushes of the guest |
//! | `reading` | which copy a read goes to |
//! | `edit` | members that are added and removed |
//! | `links` | sessions with members: up, down, too slow |
//! | `change` | changes of the view, and their announcement |
//! | `copy` | making regions equal: what a crash left different, and what a member missed |
//! | `pace` | how fast members are sent what they lack |
//! | `retain` | keeping what would be lost if every copy lost power at once |
//! | `settle` | clearing intents of regions that have gone quiet |
//! | `verify` | comparing the copies, and healing those that are wrong |
//! | `round`, `verdict` | what is asked for and told of that; which copies are right |

mod attach;
mod change;
mod copy;
mod edit;
mod guest;
mod links;
mod member;
mod pace;
mod ranges;
mod reading;
mod retain;
mod round;
mod settle;
mod verdict;
mod verify;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use slab::Slab;

use super::message::{Reply, Request};
use super::region::{RegionIndex, Regions, Row};
use super::view::{MemberIndex, View, ViewNumber, WriterId};
use attach::Phase;
pub use attach::Swapped;
use change::Change;
use copy::{Chunk, Job};
use edit::Edit;
pub use edit::{EditRefusal, MemberEdit};
use guest::GuestRequest;
pub use guest::Operation;
use member::Member;
pub use member::{Link, Loss, MemberSet, Standing};
use pace::Pace;
pub use pace::ResyncRate;
use ranges::Ranges;
use retain::Retained;
pub use round::{Finding, NoRound, Outcome, Repair, Round, RoundPlan};
use settle::{Settling, Sweep};
pub use verify::CHECKS_MAX;
use verify::Verification;

/// Microseconds since some moment of whoever drives the writer. Never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub u64);

impl Time {
    /// This much later.
    pub fn after_us(self, us: u64) -> Time {
        Time(self.0 + us)
    }

    /// How long ago `earlier` was; 0 if it is to come.
    pub fn since_us(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// What can be set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a member may take to answer, or to come back, before it leaves the in-sync set.
    pub peer_timeout_us: u64,
    /// How often a member is asked for a sign of life when nothing else is sent.
    pub ping_interval_us: u64,
    /// What happens to writes when too few copies are in sync.
    pub below_min: BelowMin,
    /// How long to wait after the view's store could not be reached.
    pub store_retry_us: u64,
    /// How often intents of quiet regions are cleared.
    pub settle_interval_us: u64,
    /// How many regions may have intents before writes to others wait.
    pub open_regions_max: usize,
    /// How many bytes of acknowledged writes are kept when no copy is in this process, before new ones wait.
    pub retained_bytes_max: u64,
    /// How much is copied from one copy to another at a time.
    pub copy_chunk_bytes: u32,
    /// How many such pieces may be on their way.
    pub copies_in_flight_max: usize,
    /// The least that is said of copies that differ: a multiple of the sector size, and a power of two.
    pub verify_block_bytes: u32,
    /// How fast members are sent what they lack.
    pub resync_rate: ResyncRate,
}

/// What happens to writes and flushes when fewer copies are in sync than the failure mode asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BelowMin {
    /// They wait.
    Suspend,
    /// They fail.
    Error,
}

/// A connection of a session: 0 is for control, the others are the guest's queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(pub u16);

impl Lane {
    /// For everything that no queue asks for.
    pub const CONTROL: Lane = Lane(0);
}

/// What whoever drives the writer has to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Put `next` in the place of the view `current`, and call [`Writer::swapped`].
    Swap {
        /// The number of the view that is thought to be stored.
        current: ViewNumber,
        /// What to store.
        next: Box<View>,
    },
    /// Make a session with a member, and call [`Writer::connected`] or [`Writer::disconnected`].
    Connect {
        /// With whom.
        member: MemberIndex,
        /// Which session this is.
        session: u64,
        /// The view to say hello with.
        view: ViewNumber,
    },
    /// End the session with a member.
    Disconnect {
        /// With whom.
        member: MemberIndex,
    },
    /// Send a request, and call [`Writer::replied`] with the answer.
    Send {
        /// To whom.
        member: MemberIndex,
        /// Over which connection.
        lane: Lane,
        /// What the answer will be known by. It may be sent again in a later session.
        id: u64,
        /// The view in which it is asked.
        view: ViewNumber,
        /// What is asked.
        request: Request,
        /// Where the bytes of a write come from, or those of a read go, or whose zeros these are.
        payload: Payload,
    },
    /// Keep the bytes of a write that is about to end, as [`Payload::Retained`].
    Retain {
        /// The guest's queue.
        lane: Lane,
        /// What it was submitted with.
        token: u64,
        /// The number to keep it under.
        entry: u64,
    },
    /// A member will answer a read late or not at all, and another is asked: its bytes are not to go where those of
    /// the other will.
    Abandon {
        /// Who was asked.
        member: MemberIndex,
        /// Over which connection.
        lane: Lane,
        /// What its answer will be known by.
        id: u64,
    },
    /// What was kept under lower numbers is not needed any more.
    Release {
        /// The first number that is.
        before: u64,
    },
    /// A request of the guest has ended: done, or failed with an error number.
    Complete {
        /// The guest's queue.
        lane: Lane,
        /// What it was submitted with.
        token: u64,
        /// How it ended.
        result: Result<(), i32>,
    },
    /// Something that was asked on a lane is not answered in time, as far as is known here: take what has come on all
    /// connections of the lane, tell of it, and call [`Writer::looked`].
    Look {
        /// Which.
        lane: Lane,
    },
    /// The bytes of [`Payload::Copy`] are not needed any more.
    CopyEnded {
        /// The number of the copy.
        copy: u64,
    },
    /// The guest can be served.
    Serve,
    /// A new view is in force.
    Adopted(Box<View>),
    /// A member has been given up, and why.
    Lost(MemberIndex, Loss),
    /// What was asked for by [`Writer::change_members`] has come about, or will not.
    Edited {
        /// What it was asked with.
        token: u64,
        /// Why not.
        result: Result<(), EditRefusal>,
    },
    /// A copy in sync could not read these bytes. Whoever asked gets them from another one, and they will be looked at.
    Unreadable {
        /// Which.
        member: MemberIndex,
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
        /// The error number.
        errno: i32,
    },
    /// Something is, or was, wrong with a copy in sync.
    Found(Finding),
    /// A round of [`Writer::verify`] has ended.
    RoundEnded(Box<Round>),
    /// It is over: no request will be answered any more.
    Stop(StopReason),
}

/// Which bytes a command carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// None.
    None,
    /// Those of a request of the guest.
    Guest {
        /// The guest's queue.
        lane: Lane,
        /// What the request was submitted with.
        token: u64,
    },
    /// Those of a piece that is copied from one member to others.
    Copy(u64),
    /// Those of a write that has ended and was kept.
    Retained {
        /// The number it was kept under.
        entry: u64,
        /// How many of its bytes come before those that are meant.
        skip: u64,
    },
}

/// Why a writer stops.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// Somebody else has the view.
    #[error("another writer has taken the volume over{}", at(.0))]
    Replaced(Option<WriterId>),
    /// Every copy has failed or restarted since the last flush, and not all that was acknowledged meanwhile is
    /// known here: the guest must not go on as if it were on the disk.
    #[error("every copy in sync failed or restarted before a flush: what was written since may be lost; attach again")]
    Lost,
    /// The copy in this process became a member, or ceased to be one, while the volume was being attached.
    #[error(
        "the volume's members have changed while it was being attached, and this node's copy with them: attach again"
    )]
    MembersChanged,
    /// The stored view cannot be one that follows ours.
    #[error("the stored view is not one that can follow ours: {0}")]
    View(&'static str),
}

fn at(writer: &Option<WriterId>) -> String {
    writer.as_ref().map_or(String::new(), |writer| format!(": it runs on node {}", writer.node))
}

/// The writer of a volume.
pub struct Writer {
    me: WriterId,
    /// The member whose copy this process holds; none from when that was removed.
    local: Option<MemberIndex>,
    regions: Regions,
    settings: Settings,
    now: Time,
    phase: Phase,
    /// The view in force: every copy that is in sync in it has accepted it, from when the guest is served.
    view: View,
    change: Option<Change>,
    edit: Option<Edit>,
    store_retry_at: Time,
    members: Vec<Member>,
    requests: Slab<GuestRequest>,
    waiting: VecDeque<usize>,
    ranges: Ranges,
    commands: Slab<Command>,
    /// Lanes that have been asked to look what has come.
    looking: BTreeSet<Lane>,
    /// What the copies in sync have in their region tables, at least.
    rows: Vec<Row>,
    /// Regions with an intent.
    open: BTreeMap<RegionIndex, Open>,
    writes: u64,
    /// Reads of the guest that were sent.
    reads: u64,
    sweep: Option<Sweep>,
    next_sweep: u64,
    sweep_at: Time,
    settling: Settling,
    retained: Retained,
    unreconciled: BTreeSet<RegionIndex>,
    /// Where regions that may differ are copied from.
    source: Option<MemberIndex>,
    urgent: VecDeque<RegionIndex>,
    jobs: Slab<Job>,
    chunks: BTreeMap<u64, Chunk>,
    next_copy: u64,
    pace: Pace,
    verification: Verification,
    actions: Vec<Action>,
}

/// A region that is being written, or was and has not been settled.
#[derive(Clone, Copy, Debug, Default)]
struct Open {
    in_flight: usize,
    /// The count of writes at the last one.
    written: u64,
}

/// A request to a member that has not been answered.
#[derive(Debug)]
struct Command {
    member: MemberIndex,
    lane: Lane,
    purpose: Purpose,
    request: Request,
    payload: Payload,
    /// When it was first sent, or would have been.
    issued: Time,
    /// When it was last sent.
    sent: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Guest(usize),
    /// A read for which another member was asked instead: nobody waits for the answer.
    Late,
    CopyRead(u64),
    CopyWrite(u64),
    Accept(ViewNumber),
    Rows,
    Sweep(u64),
    Settle,
    Finish,
    Replay,
    ChangeFlush,
    /// These are of checks.
    Digest(u64),
    HealRead(u64),
    HealWrite(u64),
    Ping,
}

impl Writer {
    /// Becomes the writer of a volume whose stored view is `stored`. `local` is the member whose copy this
    /// process holds, if any.
    ///
    /// # Errors
    ///
    /// [`StopReason::View`] if the view has no members or its numbers have run out.
    pub fn attach(
        me: WriterId,
        local: Option<MemberIndex>,
        regions: Regions,
        settings: Settings,
        stored: View,
        now: Time,
    ) -> Result<Self, StopReason> {
        if stored.in_sync().next().is_none() || stored.number.0 >= u64::MAX >> 2 {
            return Err(StopReason::View("no copy is in sync in it, or its number is too high"));
        }
        let members = stored.members.iter().map(|_| Member::new(now)).collect();
        let mut writer = Self {
            me,
            local,
            regions,
            now,
            phase: Phase::claim(),
            view: stored,
            change: None,
            edit: None,
            store_retry_at: now,
            members,
            requests: Slab::new(),
            waiting: VecDeque::new(),
            ranges: Ranges::default(),
            commands: Slab::new(),
            looking: BTreeSet::new(),
            rows: vec![Row::default(); regions.count() as usize],
            open: BTreeMap::new(),
            writes: 0,
            reads: 0,
            sweep: None,
            next_sweep: 0,
            sweep_at: now.after_us(settings.settle_interval_us),
            pace: Pace::new(settings.resync_rate, now),
            settings,
            settling: Settling::default(),
            retained: Retained::default(),
            unreconciled: BTreeSet::new(),
            source: None,
            urgent: VecDeque::new(),
            jobs: Slab::new(),
            chunks: BTreeMap::new(),
            next_copy: 0,
            verification: Verification::default(),
            actions: Vec::new(),
        };
        writer.claim();
        Ok(writer)
    }

    /// What there is to do now.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// The view in force.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// How far each member is.
    pub fn standing(&self, member: MemberIndex) -> Standing {
        self.members[usize::from(member.0)].standing
    }

    /// How many regions a member still has to be sent.
    pub fn stale_regions(&self, member: MemberIndex) -> usize {
        self.members[usize::from(member.0)].stale.len()
    }

    /// How the volume is divided.
    pub fn regions(&self) -> &Regions {
        &self.regions
    }

    /// What a member has not answered: how many requests, pings apart, and how many bytes they move.
    pub fn in_flight(&self, member: MemberIndex) -> (usize, u64) {
        let mine = self.commands.iter().filter(|(_, command)| command.member == member);
        let bytes = mine.map(|(_, command)| match command.request {
            Request::Write { len, .. } | Request::Read { len, .. } | Request::Digest { len, .. } => u64::from(len),
            _ => 0,
        });
        (self.member(member).outstanding, bytes.sum())
    }

    /// How many regions may still differ after the last writer's end.
    pub fn unreconciled_regions(&self) -> usize {
        self.unreconciled.len()
    }

    /// Whether a member that the view may call in sync has to leave.
    pub fn is_given_up(&self, member: MemberIndex) -> bool {
        self.members.get(usize::from(member.0)).is_some_and(|member| member.lost.is_some())
    }

    /// Whether it is over.
    pub fn is_stopped(&self) -> bool {
        self.phase == Phase::Stopped
    }

    /// Whether nothing is under way but the guest's requests.
    pub fn is_settled(&self) -> bool {
        self.phase == Phase::Serving
            && self.change.is_none()
            && self.open.is_empty()
            && self.commands.iter().all(|(_, command)| matches!(command.purpose, Purpose::Ping | Purpose::Digest(_)))
            && self.unreconciled.is_empty()
            && self.edit.is_none()
            && self
                .present()
                .all(|member| self.member(member).standing == Standing::InSync && self.member(member).lost.is_none())
    }

    /// What it is doing, for whoever looks for a fault.
    pub fn describe(&self) -> impl std::fmt::Debug + '_ {
        let commands: Vec<_> = self.commands.iter().collect();
        (
            &self.phase,
            &self.retained,
            &self.change,
            &self.members,
            commands,
            &self.open,
            &self.unreconciled,
            &self.jobs,
            &self.verification,
        )
    }

    /// Time has passed. To be called several times within each of the times in [`Settings`].
    pub fn tick(&mut self, now: Time) {
        if !self.enter(now) {
            return;
        }
        self.check_attach();
        self.check_reads();
        self.ask_others();
        self.check_links();
        self.check_change();
        self.check_sweep();
        self.settle_down();
    }

    /// A member has answered a request.
    pub fn replied(&mut self, now: Time, member: MemberIndex, session: u64, id: u64, reply: Reply) {
        if !self.enter(now) || self.member(member).session != session {
            return;
        }
        if !matches!(self.member(member).link, Link::Up | Link::Reviving) {
            // It was taken before the end of its session was known. What it answers is asked again, and its number may
            // be another request's by now.
            return;
        }
        let key = id as usize;
        if self.commands.get(key).is_none_or(|command| command.member != member) {
            return;
        }
        if let Reply::Superseded(_) = reply {
            self.stop(StopReason::Replaced(None));
            return;
        }
        let command = self.commands.remove(key);
        self.note_read_time(&command, &reply);
        let entry = self.member_mut(member);
        entry.heard = entry.heard.max(command.sent);
        if command.purpose != Purpose::Ping {
            entry.outstanding -= 1;
        }
        match command.purpose {
            Purpose::Guest(key) => self.guest_replied(key, member, reply),
            Purpose::CopyRead(copy) => self.copy_read(copy, member, reply),
            Purpose::CopyWrite(copy) => self.copy_written(copy, member, reply),
            Purpose::Accept(number) => self.accepted(member, number, reply),
            Purpose::Rows => self.rows_came(member, reply),
            Purpose::Sweep(number) => self.swept(number, member, reply),
            Purpose::Settle => self.settle_answered(member, reply),
            Purpose::Finish => self.finished(member, reply),
            Purpose::Replay => self.replayed(member, reply),
            Purpose::ChangeFlush => self.change_flushed(member, reply),
            Purpose::Digest(check) => self.digested(check, member, reply),
            Purpose::HealRead(check) => self.heal_read(check, member, reply),
            Purpose::HealWrite(check) => self.heal_written(check, member, reply),
            // A copy that has failed answers everything so.
            Purpose::Ping if matches!(reply, Reply::Failed(_)) => self.expect_done(member, reply),
            Purpose::Late | Purpose::Ping => {}
        }
        self.settle_down();
    }

    /// Whether events still count; notes the time.
    fn enter(&mut self, now: Time) -> bool {
        self.now = self.now.max(now);
        self.phase != Phase::Stopped
    }

    /// What may have become possible by whatever has just happened.
    fn settle_down(&mut self) {
        self.announce_if_quiet();
        self.advance_members();
        self.pump_copies();
        self.pump_checks();
        self.dispatch();
    }

    fn stop(&mut self, reason: StopReason) {
        if self.phase != Phase::Stopped {
            self.phase = Phase::Stopped;
            self.actions.push(Action::Stop(reason));
        }
    }

    /// Asks a member for something, now or when its link is up again.
    fn issue(&mut self, member: MemberIndex, lane: Lane, purpose: Purpose, request: Request, payload: Payload) {
        debug_assert!(self.member(member).lost.is_none(), "nothing is asked of a member that is lost");
        let now = self.now;
        let id =
            self.commands.insert(Command { member, lane, purpose, request, payload, issued: now, sent: now }) as u64;
        let entry = self.member_mut(member);
        if purpose != Purpose::Ping {
            entry.outstanding += 1;
        }
        let replays = purpose == Purpose::Replay;
        if entry.link == Link::Up || entry.link == Link::Reviving && replays {
            self.send(id);
        }
    }

    fn send(&mut self, id: u64) {
        let (now, newest) = (self.now, self.newest_view());
        let command = &mut self.commands[id as usize];
        command.sent = now;
        let view = match command.purpose {
            Purpose::Accept(number) => number,
            // A copy that has accepted a view that others have yet to accept answers nothing in the one before.
            Purpose::Ping => newest,
            _ => self.view.number,
        };
        self.actions.push(Action::Send {
            member: command.member,
            lane: command.lane,
            id,
            view,
            request: command.request.clone(),
            payload: command.payload,
        });
    }

    /// For answers that can only be good.
    fn expect_done(&mut self, member: MemberIndex, reply: Reply) {
        match reply {
            Reply::Done => {}
            Reply::Failed(errno) => self.lose(member, Loss::Failed(errno)),
            _ => self.lose(member, Loss::Failed(EPROTO)),
        }
    }

    fn member(&self, member: MemberIndex) -> &Member {
        &self.members[usize::from(member.0)]
    }

    fn member_mut(&mut self, member: MemberIndex) -> &mut Member {
        &mut self.members[usize::from(member.0)]
    }

    fn everyone(&self) -> impl Iterator<Item = MemberIndex> + use<> {
        (0..self.members.len() as u8).map(MemberIndex)
    }

    /// Every member of the view in force that was not removed.
    fn present(&self) -> impl Iterator<Item = MemberIndex> {
        self.everyone().filter(|&member| !self.view.is_retired(member))
    }

    /// The copies that can be gone on with: those in sync that do not leave.
    fn remaining(&self) -> MemberSet {
        self.in_sync().without(self.lost()).without(self.retiring())
    }

    fn in_sync(&self) -> MemberSet {
        self.view.in_sync().collect()
    }

    fn lost(&self) -> MemberSet {
        self.everyone().filter(|&member| self.member(member).lost.is_some()).collect()
    }

    /// Members that the stored view may call in sync, now or when the change under way succeeds: what
    /// they have not answered is not done.
    fn owed(&self) -> MemberSet {
        let next = self.change.as_ref().map(|change| change.next.in_sync().collect()).unwrap_or_default();
        self.in_sync().or(next)
    }
}

const EPROTO: i32 = 71;

#[cfg(test)]
mod tests;
