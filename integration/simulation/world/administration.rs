//! Whoever runs the volume: adds members, removes them, and replaces those whose disks are lost for good.
//!
//! What is asked of a writer may be refused, or be under way when that writer ends; then it is seen to anew.
//! A disk is only lost when the copy on it can be spared, as is promised: some other copy that may be called in
//! sync must have its disk. So its node goes down first, and the disk is lost when nobody may call its copy in sync
//! any more.

use sealblk::replication::view::{MemberState, NewMember, View};
use sealblk::replication::writer::{EditRefusal, MemberEdit};

use super::{ADMINISTER_US, Event, World, name_of, node_of, number_of};
use crate::disk::Disk;

impl World {
    pub(super) fn administer(&mut self) {
        let pause = self.random.delay(ADMINISTER_US);
        self.at(self.now + ADMINISTER_US / 4 + pause, Event::Administer);
        let served: Vec<u64> =
            self.processes.iter().filter(|(_, process)| process.served).map(|(&number, _)| number).collect();
        if served.is_empty() {
            return;
        }
        // Perhaps one that was replaced and does not know.
        let number = *self.random.pick(&served);
        let view = self.processes[&number].writer.view().clone();
        let edit = if self.peace { self.repair(&view) } else { self.some_edit(&view) };
        let Some(edit) = edit else { return };
        self.note(|| format!("process {number} is asked: {edit:?}"));
        self.with_writer(number, |writer, now| writer.change_members(now, 0, edit));
    }

    /// What has to be done so that every member has a copy.
    fn repair(&mut self, view: &View) -> Option<MemberEdit> {
        let broken = view.present().find(|member| self.nodes[number_of(&member.node)].disk.is_none());
        broken.map(|member| MemberEdit::Remove { node: member.node.clone() })
    }

    fn some_edit(&mut self, view: &View) -> Option<MemberEdit> {
        if self.random.chance(30) {
            return self.repair(view);
        }
        let node = self.random.below(self.nodes.len() as u64) as usize;
        let name = name_of(node);
        match view.member_on(&name) {
            Some(_) if self.random.chance(40) => Some(MemberEdit::Remove { node: name }),
            Some(_) => None,
            None => Some(MemberEdit::Add(NewMember { node: name, address: "node:1".to_owned(), zone: None })),
        }
    }

    pub(super) fn edited(&mut self, number: u64, result: Result<(), EditRefusal>) {
        self.note(|| format!("process {number} has changed the members: {result:?}"));
        if result.is_ok() {
            let Some(process) = self.processes.get(&number) else { return };
            let view = process.writer.view().clone();
            let (before, count) = (self.members, view.present().count());
            self.counts.added += u64::from(count > before);
            self.counts.removed += u64::from(count < before);
            self.members = count;
            // Whoever has added a member has its copy made at once, or not at all.
            for member in view.members.iter().filter(|member| member.state == MemberState::Added) {
                let soon = self.now + self.random.delay(20_000);
                self.at(soon, Event::MakeCopy { node: number_of(&member.node) });
            }
        }
    }

    /// A writer asks for a view without a member, and does not hear that it is stored. Perhaps it hears of nobody
    /// any more but of that member, and another takes its place; perhaps the others are away for a while.
    pub(super) fn trouble_a_removal(&mut self, number: u64, next: &View) {
        let Some(process) = self.processes.get(&number) else { return };
        let view = process.writer.view();
        let leaving = view.in_sync().find(|&member| next.is_retired(member)).map(|member| node_of(view, member));
        let (here, count) = (process.node, self.nodes.len());
        let Some(leaving) = leaving else { return };
        let rest: Vec<usize> = (0..count).filter(|&node| node != here && node != leaving).collect();
        if self.peace || here == leaving || rest.is_empty() || !self.random.chance(40) {
            return;
        }
        let long = self.now + self.random.between(2_000_000, 5_000_000);
        self.store.deaf.insert(here);
        self.heal_at(long);
        if self.random.chance(50) {
            let kept: Vec<usize> = next.in_sync().map(|member| node_of(next, member)).collect();
            for node in kept.into_iter().filter(|&node| node != here) {
                self.stop_daemon(node);
                self.start_daemon_at(node, long);
            }
            return;
        }
        for &node in &rest {
            self.note(|| format!("nodes {here} and {node} hear nothing of each other"));
            self.cuts.extend([(here, node), (node, here)]);
        }
        let heir = *self.random.pick(&rest);
        let soon = self.now + self.random.between(20_000, 300_000);
        self.attach_on_at(heir, soon);
    }

    /// Of the copies that are in sync in the view that a writer has stored, one is always left to go on with.
    pub(super) fn check_lost(&mut self, number: u64) {
        let Some(process) = self.processes.get(&number) else { return };
        let stored = &self.store.view;
        if stored.writer.as_ref() == Some(&process.id)
            && stored.in_sync().all(|member| process.writer.is_given_up(member))
        {
            self.fail(format!("process {number} has given every copy up that is in sync in view {}", stored.number));
        }
    }

    pub(super) fn make_copy(&mut self, node: usize) {
        let entry = &self.nodes[node];
        if entry.powered && entry.daemon && entry.disk.is_none() {
            self.note(|| format!("node {node} makes a copy"));
            let regions = self.regions().count() as usize;
            self.nodes[node].disk = Some(Disk::new(self.scenario.sectors, regions));
        }
    }

    /// A node goes down, and its disk is to be lost.
    pub fn lose_disk(&mut self, node: usize) {
        if self.nodes[node].disk.is_some() {
            self.power_off(node);
            self.at(self.now + 200_000, Event::DiskDies { node, tries: 0 });
            self.attach_if_nobody();
        }
    }

    pub(super) fn disk_dies(&mut self, node: usize, tries: u32) {
        let is_up = self.nodes[node].powered || self.nodes[node].holder.is_some();
        if !is_up && self.can_be_spared(node) {
            self.note(|| format!("the disk of node {node} is lost for good"));
            self.counts.disks_lost += u64::from(self.nodes[node].disk.is_some());
            self.nodes[node].disk = None;
        } else if !is_up && tries < DISK_TRIES && !self.peace {
            return self.at(self.now + 500_000, Event::DiskDies { node, tries: tries + 1 });
        }
        let back = self.now + self.random.below(2_000_000);
        self.power_on_at(node, back);
    }

    /// Whether nobody may call a node's copy in sync, now or by a change of the view that may still land.
    fn can_be_spared(&self, node: usize) -> bool {
        let name = name_of(node);
        let knows = |view: &View| view.in_sync().any(|member| view.members[usize::from(member.0)].node == name);
        let asked = self.bodies.values().filter_map(|event| match event {
            Event::StoreAsked { next, .. } => Some(&**next),
            _ => None,
        });
        let mut views =
            asked.chain([&self.store.view]).chain(self.processes.values().map(|process| process.writer.view()));
        !views.any(knows)
    }
}

const DISK_TRIES: u32 = 12;
