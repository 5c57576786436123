//! One seed from beginning to end: a scenario, faults for a while, then peace, and a look at everything.

use sealblk::replication::view::{FailureMode, MemberIndex};
use sealblk::replication::writer::{BelowMin, Repair, ResyncRate, Round, RoundPlan, Settings, Time};

use crate::faults;
use crate::random::Random;
use crate::world::{Counts, SECTOR_BYTES, Scenario, World, number_of};

/// What came of a seed.
pub struct Outcome {
    pub error: Option<String>,
    pub trace: Vec<String>,
    pub simulated_us: u64,
    pub counts: Counts,
}

/// Runs a seed.
pub fn run(seed: u64, trace: bool) -> Outcome {
    let mut world = World::new(seed, scenario(seed));
    world.trace = trace.then(Vec::new);
    world.note(|| format!("seed {seed}"));
    let error = live(&mut world).err();
    Outcome { error, trace: world.trace.take().unwrap_or_default(), simulated_us: world.now, counts: world.counts }
}

fn scenario(seed: u64) -> Scenario {
    let mut random = Random::new(!seed);
    let members = random.between(1, 4) as usize;
    let others = random.below(2) as usize;
    // Of its own: seeds in which members stay go as they went before there were others.
    let mut of_members = Random::new(!seed ^ 0x6d656d62657273);
    let rotten = seed.is_multiple_of(4);
    let mut of_replicas = Random::new(!seed ^ 0x7265706c69636173);
    let changing = of_members.chance(50) && (!rotten || seed % 8 == 4);
    // Of its own too, and in the world: what is read of the view changes nothing else.
    let mut of_reads = Random::new(!seed ^ 0x7265616473);
    let stale = of_reads.chance(30).then_some(of_reads);
    let others = if changing { others.max(of_members.between(1, 3) as usize) } else { others };
    let restless = random.chance(20);
    let away = restless || random.chance(25);
    let link_us = *random.pick(&[50, 300, 5_000]);
    Scenario {
        members,
        others: others.max(away.into()),
        away,
        restless,
        changing,
        sectors: random.between(24, 64) as usize,
        region_sectors: *random.pick(&[4, 8, 16]),
        lanes: random.between(1, 3) as u16,
        failure_mode: *random.pick(&[
            FailureMode::Hard,
            FailureMode::Soft,
            FailureMode::AlwaysOn,
            FailureMode::AtLeast(2),
        ]),
        link_us,
        uneven: random.chance(30),
        rotten,
        troubled: *random.pick(&[0, 5, 30]),
        disk_us: *random.pick(&[50, 1_000, 5_000]),
        write_behind: *of_replicas.pick(&[0, 512, 4_096, 1 << 20]),
        lease_ms: 3_000,
        stale,
        settings: Settings {
            peer_timeout_us: 1_500_000,
            ping_interval_us: 400_000,
            below_min: *random.pick(&[BelowMin::Suspend, BelowMin::Suspend, BelowMin::Error]),
            store_retry_us: 100_000,
            settle_interval_us: *random.pick(&[100_000, 1_000_000]),
            open_regions_max: *random.pick(&[3, 8, 100]),
            retained_bytes_max: *random.pick(&[8_000, 100_000]),
            copy_chunk_bytes: *random.pick(&[512, 1024, 2048]),
            copies_in_flight_max: random.between(1, 4) as usize,
            verify_block_bytes: 512,
            resync_rate: if seed.is_multiple_of(3) {
                ResyncRate { min: 20_000, max: 200_000 }
            } else {
                ResyncRate::UNBOUNDED
            },
        },
    }
}

fn live(world: &mut World) -> Result<(), String> {
    let turmoil = world.random.between(5_000_000, 40_000_000);
    world.begin_faults();
    step(world, turmoil)?;
    world.peace = true;
    faults::end(world);
    let end = world.now + 10_000_000;
    step(world, end)?;
    settle(world)?;
    compare(world)?;
    settle(world)?;
    check_copies(world)?;
    read_everything(world)
}

fn step(world: &mut World, end: u64) -> Result<(), String> {
    if world.run_until(end) { Ok(()) } else { Err(world.error.clone().unwrap_or_default()) }
}

/// Guests fall silent, and everything that is under way must end.
fn settle(world: &mut World) -> Result<(), String> {
    let deadline = world.now + 120_000_000;
    loop {
        // Nobody could ever be sent it.
        world.regain_lost();
        for process in world.processes.values_mut() {
            process.guest.quiet = true;
        }
        let busy = world.processes.values().find_map(|process| {
            let writer = &process.writer;
            (process.guest.in_flight() > 0 || !writer.is_settled()).then(|| {
                format!(
                    "{} requests wait, view {:?}, {:?}",
                    process.guest.in_flight(),
                    writer.view(),
                    writer.describe()
                )
            })
        });
        match busy {
            None if !world.processes.is_empty() => return Ok(()),
            // The last one has found out only now that it was replaced, by one that has ended.
            None if world.now > deadline => return Err("nobody serves two minutes after the last fault".to_owned()),
            None => step(world, world.now + 500_000)?,
            Some(busy) if world.now > deadline => return Err(format!("two minutes after the last fault: {busy}")),
            Some(_) => step(world, world.now + 500_000)?,
        }
    }
}

/// Compares the copies, heals what most agree on, and then what each says in turn; at last nothing must be wrong.
fn compare(world: &mut World) -> Result<(), String> {
    settle(world)?;
    if world.scenario.rotten {
        world.decay_at_rest();
    }
    let mut members: Vec<MemberIndex> = world.store.view.in_sync().collect();
    let first = world.random.below(members.len() as u64) as usize;
    members.rotate_left(first);
    // One cannot tell what it cannot read.
    let trusted = members.into_iter().map(Repair::Trust);
    for repair in std::iter::once(Repair::Majority).chain(trusted).chain([Repair::None]) {
        let round = compare_everything(world, repair)?;
        world.check_agreed()?;
        if repair == Repair::None && (round.left_bytes > 0 || round.healed_bytes > 0) {
            return Err(format!("something is wrong in the end: {round:?}"));
        }
    }
    Ok(())
}

/// A round in which every copy was there all the time: one that is slow on a bad day leaves, and comes back.
fn compare_everything(world: &mut World, repair: Repair) -> Result<Round, String> {
    let size = world.scenario.sectors as u64 * SECTOR_BYTES;
    let mut last = None;
    for _ in 0..ROUNDS_MAX {
        settle(world)?;
        let Some((&number, process)) = world.processes.iter_mut().next() else { continue };
        process.ended = None;
        // One that began among the faults has not ended.
        if let Some(round) = process.writer.round() {
            world.with_writer(number, |writer, now| writer.end_verify(now, round.number));
        }
        if world.begin_round(number, RoundPlan { from: 0, repair, rate: u64::MAX }).is_none() {
            continue;
        }
        let (view, deadline) = (world.store.view.number, world.now + 20_000_000);
        let round = loop {
            step(world, world.now + 100_000)?;
            match world.processes.get_mut(&number).map(|process| process.ended.take()) {
                Some(Some(round)) => break round,
                _ if world.now > deadline => {
                    let writer = world.processes.get(&number).map(|process| &process.writer);
                    return Err(format!("a round does not end: {:?}", writer.map(|writer| writer.describe())));
                }
                _ => {}
            }
        };
        // Where something is left that cannot be read it was compared with nothing.
        let present = world.store.view.present().count();
        let members = if present > 1 { present } else { 0 };
        let everywhere = round.compared.len() == members && round.compared.values().all(|&bytes| bytes == size);
        let is_undisturbed = world.store.view.number == view;
        if everywhere || repair != Repair::None && round.left_bytes > 0 && is_undisturbed {
            return Ok(round);
        }
        last = Some(round);
    }
    Err(format!("not everything can be compared in the end: {last:?}"))
}

fn check_copies(world: &World) -> Result<(), String> {
    // Those that were removed may have anything.
    let view = &world.store.view;
    let mut disks = Vec::new();
    for member in view.present() {
        let index = number_of(&member.node);
        match &world.nodes[index].disk {
            Some(disk) => disks.push((index, disk)),
            None => return Err(format!("node {index} is a member and has no copy")),
        }
    }
    for &(index, disk) in &disks {
        let (first, other) = disks[0];
        if disk.contents() != other.contents() {
            return Err(format!(
                "the copy of node {index} differs from that of node {first}:\n{:?}\n{:?}",
                disk.contents(),
                other.contents()
            ));
        }
        if !disk.is_durable(0, world.scenario.sectors) {
            return Err(format!("the copy of node {index} is settled and not durable"));
        }
        if disk.rows.iter().any(|row| row.intent) {
            return Err(format!("the copy of node {index} is settled and has intents: {:?}", disk.rows));
        }
    }
    Ok(())
}

fn read_everything(world: &mut World) -> Result<(), String> {
    let Some(number) = world.processes.keys().next().copied() else { return Ok(()) };
    let (sectors, lanes, now) = (world.scenario.sectors, world.scenario.lanes, world.now);
    for sector in 0..sectors {
        if let Some(process) = world.processes.get_mut(&number) {
            let (lane, token, operation) = process.guest.read(sector, 1, lanes, now);
            process.writer.submit(Time(now), lane, token, operation);
        }
    }
    world.drive_writer(number);
    // On a bad day connections have to be made anew, more than once.
    for _ in 0..LAST_TRIES_MAX {
        step(world, world.now + 5_000_000)?;
        if world.processes.get(&number).is_some_and(|process| process.guest.in_flight() == 0) {
            return Ok(());
        }
    }
    Err("the last reads do not end".to_owned())
}

/// How often it is looked whether the last reads have ended.
const LAST_TRIES_MAX: usize = 6;
/// Rounds until one is undisturbed.
const ROUNDS_MAX: usize = 20;
