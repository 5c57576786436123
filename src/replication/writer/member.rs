//! What the writer knows of each member.

use std::collections::{BTreeSet, VecDeque};

use super::Time;
use super::reading::ReadTime;
use super::retain::Replay;
use crate::replication::region::{RegionIndex, Row};
use crate::replication::view::{Incarnation, MEMBERS_MAX, MemberIndex, ViewNumber};

/// A set of members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemberSet(u8);

const _: () = assert!(MEMBERS_MAX <= u8::BITS as usize);

impl MemberSet {
    /// The set of none.
    pub const EMPTY: MemberSet = MemberSet(0);

    /// The set of one.
    pub fn only(member: MemberIndex) -> Self {
        Self(1 << member.0)
    }

    /// Adds a member.
    pub fn insert(&mut self, member: MemberIndex) {
        self.0 |= 1 << member.0;
    }

    /// Takes a member out; whether it was in.
    pub fn remove(&mut self, member: MemberIndex) -> bool {
        let had = self.contains(member);
        self.0 &= !(1 << member.0);
        had
    }

    /// Whether a member is in.
    pub fn contains(self, member: MemberIndex) -> bool {
        self.0 & 1 << member.0 != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many there are.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Those in both.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those in either.
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those that are not in the other.
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Its members, in order.
    pub fn iter(self) -> impl Iterator<Item = MemberIndex> {
        (0..MEMBERS_MAX as u8).map(MemberIndex).filter(move |&member| self.contains(member))
    }
}

impl FromIterator<MemberIndex> for MemberSet {
    fn from_iter<I: IntoIterator<Item = MemberIndex>>(members: I) -> Self {
        let mut set = Self::default();
        members.into_iter().for_each(|member| set.insert(member));
        set
    }
}

/// One member, from the writer's side.
#[derive(Debug)]
pub struct Member {
    pub link: Link,
    pub standing: Standing,
    /// It is in sync in the view and must leave: nothing is sent to it any more.
    pub lost: Option<Loss>,
    /// The life in which it has everything that it has answered for.
    pub incarnation: Option<Incarnation>,
    /// What it has to be sent again before anything else, while it is being revived.
    pub replays: VecDeque<Replay>,
    /// What is kept from this number on it will have to be sent too.
    pub replays_before: u64,
    /// The life in which it is being revived, or will be when the change of the view is over.
    pub reviving: Option<Incarnation>,
    /// The number of its newest session.
    pub session: u64,
    /// When the link went down, if it did.
    pub down_since: Option<Time>,
    /// The time of the newest message that it has answered.
    pub heard: Time,
    /// Commands that it has not answered, pings apart.
    pub outstanding: usize,
    /// How long its reads take.
    pub reading: ReadTime,
    /// How long to wait before connecting again, in microseconds.
    pub backoff_us: u64,
    /// How often it has failed since it was last in sync.
    pub failures: u32,
    /// What its region table said, while that is being fetched.
    pub rows: Vec<Row>,
    /// What it has to be sent.
    pub stale: BTreeSet<RegionIndex>,
    /// Regions whose rows on it have an intent that only this writer can clear.
    pub unsettled: BTreeSet<RegionIndex>,
    /// The view in which its resync began: what is written from then on cannot be mistaken for less.
    pub resync_view: ViewNumber,
}

/// The session with a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// None; another try at the given time.
    Down {
        /// When.
        retry_at: Time,
    },
    /// Being made.
    Connecting {
        /// When it was begun.
        since: Time,
    },
    /// Up, and it is being sent again what it may have lost: nothing else until then.
    Reviving,
    /// Up.
    Up,
}

/// How far a member is on its way into the in-sync set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Not here.
    Absent,
    /// Connected.
    Greeted,
    /// Asked to accept the view.
    Accepting,
    /// Asked for its rows.
    Fetching,
    /// What it lacks is known, and new writes go to it too; a new view must come first, so that its progress
    /// can be told from what is written later.
    Prepared,
    /// Being sent what it lacks.
    Resyncing,
    /// Has everything; flushing.
    Finishing,
    /// About to be in sync, if the view can be changed.
    Joining,
    /// In sync.
    InSync,
}

/// Why a member is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// It could not be reached for too long.
    #[error("it cannot be reached")]
    Unreachable,
    /// It did not answer for too long.
    #[error("it is too slow")]
    Slow,
    /// It has restarted, and may have lost what it had not flushed.
    #[error("it has restarted")]
    Restarted,
    /// Its disk reported an error.
    #[error("it failed: {}", std::io::Error::from_raw_os_error(*.0))]
    Failed(i32),
    /// It has left while it was about to join.
    #[error("it left while it was about to join")]
    Left,
    /// Whoever runs the volume wants it so.
    #[error("it was removed")]
    Removed,
}

impl Member {
    pub fn new(now: Time) -> Self {
        Self {
            link: Link::Down { retry_at: now },
            standing: Standing::Absent,
            lost: None,
            incarnation: None,
            replays: VecDeque::new(),
            replays_before: 0,
            reviving: None,
            session: 0,
            down_since: None,
            heard: now,
            outstanding: 0,
            reading: ReadTime::default(),
            backoff_us: BACKOFF_US_MIN,
            failures: 0,
            rows: Vec::new(),
            stale: BTreeSet::new(),
            unsettled: BTreeSet::new(),
            resync_view: ViewNumber::NONE,
        }
    }

    /// Whether new writes are sent to it.
    pub fn receives(&self) -> bool {
        self.lost.is_none() && self.standing >= Standing::Prepared
    }

    /// Forgets how far it was.
    pub fn reset(&mut self) {
        self.standing = Standing::Absent;
        self.rows = Vec::new();
        self.stale.clear();
        self.unsettled.clear();
        self.down_since = None;
    }

    /// Its place is another's from now on. Sessions go on being counted, so that nothing of the last one is taken for
    /// something of the next.
    pub fn replace(&mut self, now: Time) {
        let session = self.session;
        *self = Self { session, ..Self::new(now) };
    }

    /// The time of the next try to connect; each try waits longer than the one before.
    pub fn next_retry(&mut self, now: Time) -> Time {
        let retry_at = now.after_us(self.backoff_us);
        self.backoff_us = (self.backoff_us * 2).min(BACKOFF_US_MAX);
        retry_at
    }

    /// Leaves a copy alone that has failed, longer each time until it is in sync again: a disk that is full or broken
    /// is so for a while, and each try costs a change of the view.
    pub fn rest(&mut self, now: Time) {
        let pause_us = (FAILED_PAUSE_US_MIN << self.failures.min(FAILED_DOUBLINGS_MAX)).min(FAILED_PAUSE_US_MAX);
        self.failures += 1;
        self.link = Link::Down { retry_at: now.after_us(pause_us) };
    }
}

pub const BACKOFF_US_MIN: u64 = 50_000;
const BACKOFF_US_MAX: u64 = 5_000_000;
const FAILED_PAUSE_US_MIN: u64 = 1_000_000;
const FAILED_PAUSE_US_MAX: u64 = 60_000_000;
const FAILED_DOUBLINGS_MAX: u32 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_a_place_goes_on_counting_its_sessions() {
        let mut member = Member::new(Time::default());
        member.session = 7;
        member.replace(Time::default());
        assert_eq!(member.session, 7, "what is said of the last session would be taken for something of the next");
    }
}
