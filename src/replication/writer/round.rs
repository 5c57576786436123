//! Rounds in which copies are compared: what is asked for, and what is told of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::MemberSet;
use crate::replication::view::MemberIndex;

/// What a round is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundPlan {
    /// The first byte to look at; a multiple of a piece.
    pub from: u64,
    /// What to do about copies that differ.
    pub repair: Repair,
    /// How many bytes of each copy a second, at most; fewer while the guest's writes suffer from it.
    pub rate: u64,
}

/// What to do about copies that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Report it.
    None,
    /// Heal them from what more than half of the copies in sync have that can be read.
    Majority,
    /// Heal them from this one, and where it cannot be read as for `Majority`.
    Trust(MemberIndex),
}

/// Why a round cannot begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRound {
    /// The guest is not served (any more).
    #[error("the volume is not being served: try again when it is")]
    NotServed,
    /// One is under way.
    #[error("its copies are being compared already: wait for that to end")]
    Busy,
    /// The copy to trust is not in sync.
    #[error("the copy to trust is not in sync: see `sealblk volume status`")]
    NotInSync,
}

/// A round, as far as it is, or as it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// Which one.
    pub number: u64,
    /// Everything before this byte has been looked at.
    pub position: u64,
    /// How many bytes of each copy were compared with another one.
    pub compared: BTreeMap<MemberIndex, u64>,
    /// Bytes where a copy was wrong and is healed.
    pub healed_bytes: u64,
    /// Bytes where a copy differs or cannot be read still.
    pub left_bytes: u64,
}

/// Bytes where something is wrong with a copy in sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The round that found it; none if a read did.
    pub round: Option<u64>,
    /// First byte.
    pub offset: u64,
    /// How many.
    pub len: u64,
    /// Copies that are right, as far as can be known.
    pub right: MemberSet,
    /// Copies that differ from those; where none is right, from each other.
    pub differing: MemberSet,
    /// Copies that cannot be read there.
    pub unreadable: MemberSet,
    /// What was done about it.
    pub outcome: Outcome,
}

/// What was done about a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Nothing: it was not asked for.
    Reported,
    /// What was wrong has been written again, durably, and is equal now.
    Healed,
    /// Nothing: no more than half of the copies agree, or none can be read.
    Undecided,
    /// It was tried, and something is wrong still.
    Failed,
}

impl Finding {
    /// Copies with which something is wrong.
    pub fn wrong(&self) -> MemberSet {
        self.differing.or(self.unreadable)
    }
}
