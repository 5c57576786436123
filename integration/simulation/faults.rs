//! What goes wrong, and when.

use crate::world::World;

/// What can be meant to follow something else.
#[derive(Clone, Copy, Debug)]
pub enum Sequel {
    /// A process ends.
    WriterDies,
    /// A node loses power.
    PowerFails,
    /// All that keep copies lose power for a moment, but one.
    PowerBlinks,
    /// All nodes lose power.
    PowerFailsEverywhere,
    /// Copies restart, and the writer lives.
    CopiesRestart,
}

/// What was meant to follow.
pub fn follow(world: &mut World, sequel: Sequel) {
    let node = world.random.below(world.nodes.len() as u64) as usize;
    let long = world.random.between(50_000, 6_000_000);
    match sequel {
        Sequel::WriterDies => kill_a_writer(world),
        Sequel::PowerFails => {
            world.power_off(node);
            world.power_on_at(node, world.now + long);
        }
        Sequel::PowerBlinks => {
            let spared = node % world.scenario.members;
            for node in (0..world.scenario.members).filter(|&node| node != spared) {
                world.power_off(node);
                world.power_on_at(node, world.now + long / 10);
            }
        }
        Sequel::PowerFailsEverywhere => power_off_everywhere(world),
        Sequel::CopiesRestart => restart_copies(world),
    }
    world.attach_if_nobody();
}

/// One fault, and the time of the next.
pub fn strike(world: &mut World) {
    let mut next = world.now + world.random.delay(1_500_000);
    let node = world.random.below(world.nodes.len() as u64) as usize;
    let long = world.random.between(50_000, 6_000_000);
    if world.scenario.restless && world.random.chance(60) {
        restart_copies(world);
        // Time for what was not flushed to be more than a little.
        world.fault_at(next + 1_500_000);
        return;
    }
    if world.scenario.changing && world.random.chance(8) {
        world.lose_disk(node);
        world.fault_at(next);
        return;
    }
    if world.scenario.rotten && world.random.chance(20) {
        world.begin_any_round();
    }
    if world.scenario.rotten && world.random.chance(40) {
        world.decay(node);
        world.fault_at(next);
        return;
    }
    match world.random.below(24) {
        0 | 1 => {
            world.stop_daemon(node);
            world.start_daemon_at(node, world.now + long / 2);
        }
        2 => follow(world, Sequel::PowerFails),
        3 if world.random.chance(40) => follow(world, Sequel::PowerFailsEverywhere),
        4 => follow(world, Sequel::WriterDies),
        5 => world.attach_at(world.now),
        6 | 7 => {
            let other = world.random.below(world.nodes.len() as u64) as usize;
            if other != node {
                cut(world, node, other);
                if world.random.chance(50) {
                    cut(world, other, node);
                }
            }
            world.heal_at(world.now + long);
        }
        8 => {
            for other in (0..world.nodes.len()).filter(|&other| other != node) {
                cut(world, node, other);
                cut(world, other, node);
            }
            // Alone, it hears nothing of what the others do next.
            if world.random.chance(70) {
                world.store.cut_off.insert(node);
            }
            if world.random.chance(50) {
                world.attach_at(world.now + 100_000);
            }
            world.heal_at(world.now + long);
        }
        9 | 10 => world.reset_any(),
        11 => {
            let until = world.now + long;
            if let Some(disk) = &mut world.nodes[node].disk {
                disk.slow_until = until;
            }
        }
        12 => {
            world.nodes[node].stalled_until = world.now + long;
            world.heal_at(world.now + long + 1);
        }
        13 => {
            let flush = world.random.chance(50);
            if world.random.chance(50) {
                let soon = world.now + world.random.below(100_000);
                world.follow_at(soon, Sequel::CopiesRestart);
            }
            if let Some(disk) = &mut world.nodes[node].disk {
                disk.fail_flush |= flush;
                disk.fail_write |= !flush;
            }
        }
        14 | 15 => next = next.max(seclude_a_writer(world)),
        16 => world.store.unreachable_until = world.now + long,
        17 | 18 => restart_copies(world),
        19 => {
            // What the next one does first is put to the test.
            kill_a_writer(world);
            world.attach_at(world.now + 20_000);
            let soon = world.now + world.random.between(30_000, 1_500_000);
            world.follow_at(soon, Sequel::PowerFailsEverywhere);
        }
        20 => world.store.silent_until = world.now + long,
        _ => world.begin_any_round(),
    }
    world.fault_at(next);
}

/// A change of the view is asked for, and does not go smoothly: the store keeps what it has done for itself or
/// cannot be reached, a copy is cut off, and the writer may end before it knows, at about the time when a copy
/// loses power.
pub fn trouble_a_change(world: &mut World) {
    if world.peace {
        return;
    }
    let end = world.now + world.random.between(20_000, 1_000_000);
    if world.random.chance(60) {
        world.store.silent_until = end;
    } else {
        world.store.unreachable_until = end;
    }
    if world.random.chance(60) {
        world.reset_any();
    }
    let soon = world.now + world.random.below(700_000);
    match world.random.below(3) {
        0 => world.follow_at(soon, Sequel::WriterDies),
        1 => end_with_power(world, soon),
        _ => {}
    }
}

fn kill_a_writer(world: &mut World) {
    let running: Vec<u64> = world.processes.keys().copied().collect();
    if !running.is_empty() {
        let process = *world.random.pick(&running);
        world.kill_process(process);
    }
}

fn power_off_everywhere(world: &mut World) {
    for node in 0..world.nodes.len() {
        world.power_off(node);
        let back = world.now + world.random.between(100_000, 3_000_000);
        world.power_on_at(node, back);
    }
}

/// Every copy comes to a new life, but those that a process holds; and what was to be done about it is cut short.
fn restart_copies(world: &mut World) {
    let busy: Vec<usize> = world.processes.values().map(|process| process.node).collect();
    let by_power = world.random.chance(50);
    for node in (0..world.nodes.len()).filter(|node| !busy.contains(node)) {
        let back = world.now + world.random.between(20_000, 1_200_000);
        if by_power {
            world.power_off(node);
            world.power_on_at(node, back);
        } else {
            world.stop_daemon(node);
            world.start_daemon_at(node, back);
        }
    }
    if world.random.chance(50) {
        world.store.unreachable_until = world.now + world.random.between(500_000, 3_000_000);
    }
    let soon = world.now + world.random.between(50_000, 2_500_000);
    match world.random.below(4) {
        0 => world.follow_at(soon, Sequel::PowerFails),
        1 => world.follow_at(soon, Sequel::WriterDies),
        2 => end_with_power(world, soon),
        _ => {}
    }
}

/// A writer dies, and copies lose power at about the same time: what one has that was spared, the next writer can
/// find only if the view knows of it.
fn end_with_power(world: &mut World, time: u64) {
    world.follow_at(time, Sequel::WriterDies);
    let failure = time + world.random.below(50_000);
    world.follow_at(failure, Sequel::PowerBlinks);
}

/// A writer is alone with whatever it has, and another takes its place. Gives back until when nothing else should
/// go wrong.
fn seclude_a_writer(world: &mut World) -> u64 {
    let served: Vec<usize> =
        world.processes.values().filter(|process| process.served).map(|process| process.node).collect();
    if served.is_empty() || world.nodes.len() == 1 {
        return world.now;
    }
    let node = *world.random.pick(&served);
    for other in (0..world.nodes.len()).filter(|&other| other != node) {
        cut(world, node, other);
        cut(world, other, node);
    }
    world.store.cut_off.insert(node);
    let others: Vec<usize> = (0..world.nodes.len()).filter(|&other| other != node).collect();
    let heir = *world.random.pick(&others);
    let soon = world.now + world.random.below(300_000);
    world.attach_on_at(heir, soon);
    // Mostly long enough for the heir to serve.
    let healed = world.now + world.random.between(2_000_000, 9_000_000);
    world.heal_at(healed);
    if world.random.chance(70) { healed } else { world.now }
}

fn cut(world: &mut World, from: usize, to: usize) {
    world.note(|| format!("nothing arrives from node {from} at node {to}"));
    world.cuts.insert((from, to));
}

/// Everything works again.
pub fn end(world: &mut World) {
    let now = world.now;
    world.store.unreachable_until = 0;
    world.store.cut_off.clear();
    world.store.deaf.clear();
    world.store.silent_until = 0;
    for node in &mut world.nodes {
        node.stalled_until = 0;
        if let Some(disk) = &mut node.disk {
            disk.slow_until = 0;
            disk.fail_flush = false;
            disk.fail_write = false;
        }
    }
    world.regain_lost();
    world.heal_at(now + 1);
    for node in 0..world.nodes.len() {
        world.power_on_at(node, now + 1);
    }
    // The last copy in sync cannot leave when its flush fails: somebody has to attach the volume again.
    if (0..world.nodes.len()).any(|node| world.has_failed(node)) {
        let running: Vec<u64> = world.processes.keys().copied().collect();
        running.into_iter().for_each(|process| world.kill_process(process));
        world.attach_at(now + 100_000);
    }
}
