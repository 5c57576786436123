//! Rounds in which copies are compared and healed, and disks that give reason to.
//!
//! A disk may make a sector up, or lose one. Who reads what was made up cannot know, and it may be copied on to a
//! member that was away, or by a writer that finds a region in the midst of a change. But where nothing was made up
//! nobody may say that copies differ; what was made up is not written to a copy because it could be wrong,
//! unless most say the same; and a read does not fail where one copy can be read.

use sealblk::replication::message::Request;
use sealblk::replication::view::MemberIndex;
use sealblk::replication::writer::{Finding, Outcome, Payload, Repair, Round, RoundPlan, Time};

use super::{Event, SECTOR_BYTES, World, node_of, number_of};
use crate::disk::{Disk, Value, is_rot, rot};
use crate::guest;

impl World {
    /// Some process that serves begins a round, which may be given up.
    pub fn begin_any_round(&mut self) {
        let served: Vec<u64> =
            self.processes.iter().filter(|(_, process)| process.served).map(|(&number, _)| number).collect();
        if served.is_empty() {
            return;
        }
        let number = *self.random.pick(&served);
        let members = self.processes[&number].writer.view().members.len() as u64;
        let repair = match self.random.below(10) {
            0..3 => Repair::None,
            3 if self.scenario.rotten => Repair::Trust(MemberIndex(self.random.below(members) as u8)),
            _ => Repair::Majority,
        };
        let chunk = u64::from(self.scenario.settings.copy_chunk_bytes);
        let pieces = (self.scenario.sectors as u64 * SECTOR_BYTES).div_ceil(chunk);
        let from = if self.random.chance(70) { 0 } else { self.random.below(pieces) * chunk };
        let rate = *self.random.pick(&[20_000, 200_000, u64::MAX]);
        if let Some(round) = self.begin_round(number, RoundPlan { from, repair, rate })
            && self.random.chance(40)
        {
            let most = *self.random.pick(&[5_000, 50_000, 1_000_000]);
            let end = self.now + self.random.below(most);
            self.at(end, Event::EndRound { process: number, round });
        }
    }

    pub fn begin_round(&mut self, number: u64, plan: RoundPlan) -> Option<u64> {
        let now = Time(self.now);
        let process = self.processes.get_mut(&number)?;
        let round = process.writer.verify(now, plan).ok();
        if let Some(round) = round {
            process.round = Some((round, matches!(plan.repair, Repair::Trust(_))));
            self.counts.rounds += 1;
            self.note(|| format!("process {number} begins round {round}: {plan:?}"));
        }
        self.drive_writer(number);
        round
    }

    pub(super) fn round_ended(&mut self, number: u64, round: Round) {
        if let Some(process) = self.processes.get_mut(&number) {
            process.ended = Some(round);
        }
    }

    pub(super) fn found(&mut self, number: u64, finding: &Finding) {
        if finding.outcome == Outcome::Healed {
            self.counts.healed += 1;
        }
        if finding.outcome == Outcome::Healed || self.is_replaced(number) {
            return;
        }
        let (start, count) = ((finding.offset / SECTOR_BYTES) as usize, (finding.len / SECTOR_BYTES) as usize);
        let Some(process) = self.processes.get(&number) else { return };
        let node = |member: MemberIndex| node_of(process.writer.view(), member);
        let about = finding.right.or(finding.wrong());
        let is_wrong =
            |disk: &Disk| !disk.is_readable(start, count) || disk.read(start, count).iter().any(|&value| is_rot(value));
        let disks = about.iter().filter_map(|member| self.nodes[node(member)].disk.as_ref());
        // One that has failed a flush says nothing else until it is opened anew.
        let has_failed = finding.unreadable.iter().any(|member| self.has_failed(node(member)));
        if !has_failed && !disks.into_iter().any(is_wrong) {
            self.fail(format!("process {number} says that equal copies differ: {finding:?}"));
        }
    }

    /// Whether another has the volume: copies change for that one, and what this one wants of them is not done.
    fn is_replaced(&self, number: u64) -> bool {
        self.processes.get(&number).map(|process| &process.id) != self.store.view.writer.as_ref()
    }

    /// A writer copies from one member to others.
    pub(super) fn check_copying(&mut self, number: u64, request: &Request, payload: Payload) {
        let (Payload::Copy(copy), &(Request::Write { offset, .. } | Request::Zero { offset, .. })) = (payload, request)
        else {
            return;
        };
        let Some(process) = self.processes.get(&number) else { return };
        let first = (offset / SECTOR_BYTES) as usize;
        let values = process.copies.get(&copy).cloned().unwrap_or_default();
        let made_up: Vec<(usize, Value)> =
            (first..).zip(values).filter(|&(_, value)| is_rot(value) && !self.spread.contains(&value)).collect();
        let is_trusted = process.round.is_some_and(|(_, trusts)| trusts) || self.is_replaced(number);
        if !process.writer.is_healing(copy) || is_trusted {
            self.spread.extend(made_up.into_iter().map(|(_, value)| value));
            return;
        }
        for (sector, value) in made_up {
            let view = process.writer.view();
            let in_sync = view.in_sync().filter_map(|member| self.nodes[node_of(view, member)].disk.as_ref());
            let readable: Vec<&Disk> = in_sync.filter(|disk| disk.is_readable(sector, 1)).collect();
            let same = readable.iter().filter(|disk| disk.read(sector, 1) == [value]).count();
            if same * 2 <= readable.len() {
                return self.fail(format!("what {same} of {} copies made up heals sector {sector}", readable.len()));
            }
        }
    }

    /// A read has failed.
    pub(super) fn check_failed_read(&mut self, number: u64, request: &guest::Request) {
        let (Some((start, count)), Some(process)) = (request.read, self.processes.get(&number)) else { return };
        let writer = &process.writer;
        let able = writer.view().in_sync().find(|&member| {
            let number = node_of(writer.view(), member);
            let node = &self.nodes[number];
            // One that has failed a flush says nothing else until it is opened anew, and of one that was closed since it
            // is not known whether it had.
            let is_well = node.holder.is_some() && node.opened < request.began && !self.has_failed(number);
            // Nobody reads from one whose removal may be stored: another writer may have taken over without a word to it.
            let is_asked = writer.is_linked(member) && !writer.is_retiring(member);
            let disk = node.disk.as_ref().filter(|_| is_well && is_asked);
            disk.is_some_and(|disk| disk.was_readable(start, count, request.began))
        });
        if let Some(member) = able {
            self.fail(format!("a read of {count} sectors from {start} on failed that {member:?} could do"));
        }
    }

    /// A disk makes a sector up or loses one, in a while.
    pub fn decay(&mut self, node: usize) {
        let sector = self.random.below(self.scenario.sectors as u64) as usize;
        let now = self.now;
        if self.random.chance(50) {
            self.at(now, Event::Rot { node, sector });
        } else if let Some(disk) = &mut self.nodes[node].disk {
            disk.lose_sector(sector, now);
            self.note(|| format!("node {node} loses sector {sector}"));
        }
    }

    /// Disks decay while nobody writes. Notes what most copies have of each sector, be it that they have made it up,
    /// where most have the same.
    pub fn decay_at_rest(&mut self) {
        let members = self.present_nodes();
        for _ in 0..self.random.below(12) {
            let node = members[self.random.below(members.len() as u64) as usize];
            let sector = self.random.below(self.scenario.sectors as u64) as usize;
            if self.random.chance(70) {
                self.make_up(node, sector);
            } else if let Some(disk) = &mut self.nodes[node].disk {
                disk.lose_sector(sector, self.now);
            }
        }
        self.regain_lost();
        let sectors = 0..self.scenario.sectors;
        self.agreed = sectors.filter_map(|sector| self.most(sector).map(|value| (sector, value))).collect();
    }

    /// The nodes of the members, in order: what one has that was removed says nothing.
    fn present_nodes(&self) -> Vec<usize> {
        self.store.view.present().map(|member| number_of(&member.node)).collect()
    }

    /// What more than half of the copies say of a sector that can read it.
    fn most(&self, sector: usize) -> Option<Value> {
        let nodes = self.present_nodes();
        let disks = nodes.into_iter().filter_map(|node| self.nodes[node].disk.as_ref());
        let readable: Vec<Value> =
            disks.filter(|disk| disk.is_readable(sector, 1)).map(|disk| disk.read(sector, 1)[0]).collect();
        let most = |value: &Value| readable.iter().filter(|other| *other == value).count() * 2 > readable.len();
        readable.iter().copied().find(most)
    }

    /// What most copies had they all have.
    pub fn check_agreed(&self) -> Result<(), String> {
        for (&sector, &value) in &self.agreed {
            for index in self.present_nodes() {
                let Some(disk) = &self.nodes[index].disk else { continue };
                let found = disk.read(sector, 1)[0];
                // A copy that was sent what it lacks may have been sent what another had made up.
                if found != value && !self.spread.contains(&found) {
                    return Err(format!("most copies had {value} in sector {sector}, and node {index} has {found}"));
                }
            }
        }
        Ok(())
    }

    /// Not while anybody may just have looked at it: nobody can look at everything at once.
    pub(super) fn rot(&mut self, node: usize, sector: usize) {
        if self.peace {
            return;
        }
        if self.processes.values().any(|process| process.writer.is_checking()) {
            return self.at(self.now + 2_000, Event::Rot { node, sector });
        }
        self.make_up(node, sector);
    }

    fn make_up(&mut self, node: usize, sector: usize) {
        let value = rot(self.next_value);
        self.next_value += 1;
        if let Some(disk) = &mut self.nodes[node].disk {
            disk.rot(sector, value);
            self.note(|| format!("node {node} makes sector {sector} up: {value}"));
        }
    }

    /// What no copy in sync can be read any more is made readable: nobody could ever be sent it.
    pub fn regain_lost(&mut self) {
        let view = &self.store.view;
        let in_sync: Vec<usize> = view.in_sync().map(|member| node_of(view, member)).collect();
        for sector in 0..self.scenario.sectors {
            let readable =
                |node: &usize| self.nodes[*node].disk.as_ref().is_some_and(|disk| disk.is_readable(sector, 1));
            if in_sync.iter().any(readable) {
                continue;
            }
            for node in &mut self.nodes {
                if let Some(disk) = &mut node.disk {
                    disk.regain(sector, 1, self.now);
                }
            }
            // Whoever could read it may be away just now, and counts for less when it is back: those that can read it
            // again say something too.
            if self.agreed.get(&sector).is_some_and(|&value| self.most(sector) != Some(value)) {
                self.agreed.remove(&sector);
            }
        }
    }
}
