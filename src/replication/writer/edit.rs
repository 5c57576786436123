//! Members that are added and removed while the guest is served.
//!
//! Both are changes of the view like any other. One that is **added** takes a place and begins as any that lacks
//! everything that its own rows do not show: a copy that was just made is sent all that was ever written. It counts
//! for the failure mode only when it has been in sync, so that no write waits because of it. One that is **removed**
//! keeps its place in the view, so that those of the others stay what they are, and is nobody's business any more; its
//! place may be given to another later.
//!
//! A removal goes as a loss does: nothing that the member lacks is acknowledged before the view without it is in force.
//! Nothing is waited for that it was asked for, so one that is gone for good can be removed while writes are suspended
//! because of it. Reads from it end when the removal is first put to the store: from then on another writer may take
//! the volume over without asking that copy, and what it has may be old.
//!
//! The copy in this process can leave like any other. It is what keeps acknowledged writes that no flush has covered; so
//! from when it is to leave they are kept in memory, and it leaves when all of them are. From then on the writer is one
//! without a copy.

use super::{Action, Link, MemberSet, Time, Writer};
use crate::replication::view::{MEMBERS_MAX, Member, MemberIndex, MemberState, NewMember, NodeName, View, is_address};

/// A change of who keeps copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberEdit {
    /// A node is to keep a copy. One that keeps one already, and is reached as before, is only said to be in another zone.
    Add(NewMember),
    /// A node is to keep none any more.
    Remove {
        /// Which one.
        node: NodeName,
    },
}

/// Why members are not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditRefusal {
    /// One thing at a time.
    #[error("another change of the members is under way: wait for its end")]
    Busy,
    /// It is there.
    #[error("node {0} is a member already: to have its copy made anew, remove it first")]
    IsMember(NodeName),
    /// It is not there.
    #[error("node {0} is not a member")]
    NotAMember(NodeName),
    /// Nothing can be reached there.
    #[error("{0:?} is no address: write HOST:PORT")]
    Address(String),
    /// There is no place left.
    #[error("the volume has {MEMBERS_MAX} members, and there cannot be more: remove one first")]
    TooMany,
    /// Nobody has the volume without it.
    #[error("no other copy that is in sync can be reached than that on node {0}: it cannot be removed")]
    LastInSync(NodeName),
    /// Writes would have to wait.
    #[error(
        "without node {node} the copies in sync would be {in_sync}, and a write would need {min}: wait until others are in sync, or remove those that will not be"
    )]
    TooFewInSync {
        /// Which is to go.
        node: NodeName,
        /// Who would be left.
        in_sync: usize,
        /// How many would have to be.
        min: usize,
    },
}

/// A change that was asked for and is not in force.
#[derive(Debug)]
pub struct Edit {
    token: u64,
    edit: MemberEdit,
    /// It can be made now, and is part of the view that is wanted.
    is_due: bool,
}

/// Whether a member is as it is to be but for its zone.
fn is_moved(member: &Member, new: &NewMember) -> bool {
    member.address == new.address && member.zone != new.zone
}

impl Writer {
    /// Changes who keeps copies; [`Action::Edited`] will name `token`. A node that is added has to make its copy if it
    /// has none; until it has, it cannot be reached.
    pub fn change_members(&mut self, now: Time, token: u64, edit: MemberEdit) {
        if !self.enter(now) {
            return;
        }
        if self.edit.is_some() {
            self.actions.push(Action::Edited { token, result: Err(EditRefusal::Busy) });
            return;
        }
        self.edit = Some(Edit { token, edit, is_due: false });
        self.consider_change();
        self.settle_down();
    }

    /// Whether the change that was asked for can be made now. Whatever stands in its way for good ends it.
    pub(super) fn consider_edit(&mut self) {
        if self.phase != super::Phase::Serving {
            return;
        }
        let Some(Edit { token, edit, .. }) = &self.edit else { return };
        let (token, checked) = (*token, self.check_edit(edit));
        match checked {
            Ok(is_due) => {
                if let Some(edit) = &mut self.edit {
                    edit.is_due = is_due;
                }
            }
            Err(refusal) => {
                self.edit = None;
                self.actions.push(Action::Edited { token, result: Err(refusal) });
            }
        }
    }

    /// Whether a change can be made now, or only later.
    fn check_edit(&self, edit: &MemberEdit) -> Result<bool, EditRefusal> {
        match edit {
            MemberEdit::Add(new) => match self.view.member_on(&new.node) {
                Some(member) if !is_moved(&self.view.members[usize::from(member.0)], new) => {
                    Err(EditRefusal::IsMember(new.node.clone()))
                }
                Some(_) => Ok(true),
                None if !is_address(&new.address) => Err(EditRefusal::Address(new.address.clone())),
                None if self.place_for(&new.node).is_none() => Err(EditRefusal::TooMany),
                None => Ok(true),
            },
            MemberEdit::Remove { node } => match self.view.member_on(node) {
                None => Err(EditRefusal::NotAMember(node.clone())),
                Some(member) => self.check_removal(node, member),
            },
        }
    }

    fn check_removal(&self, node: &NodeName, member: MemberIndex) -> Result<bool, EditRefusal> {
        if !self.remaining().contains(member) {
            // It has left, or is about to: as many are in sync without it.
            return Ok(true);
        }
        // Who is away and has not left yet may turn out to be lost: then this one was the last.
        let is_here = |&other: &MemberIndex| self.member(other).link == Link::Up && other != member;
        let others: MemberSet = self.remaining().iter().filter(is_here).collect();
        if others.is_empty() {
            return Err(EditRefusal::LastInSync(node.clone()));
        }
        let mut next = self.view.clone();
        next.members[usize::from(member.0)].state = MemberState::Retired;
        let (in_sync, min) = (others.len(), next.in_sync_min());
        if in_sync < min {
            return Err(EditRefusal::TooFewInSync { node: node.clone(), in_sync, min });
        }
        // Should every other copy restart in between, it would be the only one that has what no flush has covered. That
        // holds for the copy in this process as well: what is written while it is to leave is kept.
        Ok(!self.retains() || self.retained.is_complete())
    }

    /// Whether a member is to be removed as soon as that can be.
    pub(super) fn is_to_leave(&self, member: MemberIndex) -> bool {
        let edit = self.edit.as_ref().map(|edit| &edit.edit);
        matches!(edit, Some(MemberEdit::Remove { node }) if self.view.member_on(node) == Some(member))
    }

    /// Makes the change part of a view.
    pub(super) fn apply_edit(&self, next: &mut View) {
        let Some(Edit { edit, is_due: true, .. }) = &self.edit else { return };
        match edit {
            MemberEdit::Add(NewMember { node, address, zone }) => {
                if let Some(member) = self.view.member_on(node) {
                    next.members[usize::from(member.0)].zone = zone.clone();
                    return;
                }
                let (node, address, zone) = (node.clone(), address.clone(), zone.clone());
                let added = Member { node, address, zone, state: MemberState::Added };
                match self.place_for(&added.node) {
                    Some(place) if usize::from(place.0) < next.members.len() => {
                        next.members[usize::from(place.0)] = added;
                    }
                    Some(_) => next.members.push(added),
                    None => {}
                }
            }
            MemberEdit::Remove { node } => {
                if let Some(member) = self.view.member_on(node) {
                    next.members[usize::from(member.0)].state = MemberState::Retired;
                }
            }
        }
    }

    /// Where a node that is added goes: where it was before, else where another was, else behind the last.
    fn place_for(&self, node: &NodeName) -> Option<MemberIndex> {
        let count = self.view.members.len();
        let free = || self.everyone().find(|&member| self.view.is_retired(member));
        let last = || (count < MEMBERS_MAX).then_some(MemberIndex(count as u8));
        self.view.place_of(node).or_else(free).or_else(last)
    }

    /// A view is in force in which places may be others' than in the one before.
    pub(super) fn take_places(&mut self, old: &View) {
        let now = self.now;
        for index in 0..self.view.members.len() {
            let member = MemberIndex(index as u8);
            if index >= self.members.len() {
                self.members.push(super::Member::new(now));
            } else if old.is_retired(member) && !self.view.is_retired(member) {
                self.members[index].replace(now);
                self.forget_compared(member);
            }
        }
    }

    /// A view is in force: says so to whoever has asked for it.
    pub(super) fn edit_adopted(&mut self) {
        let Some(Edit { token, edit, .. }) = &self.edit else { return };
        let is_so = match edit {
            MemberEdit::Add(new) => {
                let is_as_asked = |member: MemberIndex| self.view.members[usize::from(member.0)].zone == new.zone;
                self.view.member_on(&new.node).is_some_and(is_as_asked)
            }
            MemberEdit::Remove { node } => self.view.member_on(node).is_none(),
        };
        if is_so {
            self.actions.push(Action::Edited { token: *token, result: Ok(()) });
            self.edit = None;
        }
    }
}
