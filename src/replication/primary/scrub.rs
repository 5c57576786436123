//! The copies are compared from time to time without anybody asking.
//!
//! How far that is, and when it was done last, is kept in the folder of the copy in this process: a process that
//! serves the volume there again goes on where the one before was. On another node it begins anew, and where there
//! is no copy it is forgotten.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::request::VerifyOutcome;
use super::rounds::{self, End, Event, Owner};
use super::shared::Shared;
use crate::replication::writer::{NoRound, Repair, RoundPlan};
use crate::store::replace::replace;

/// How the copies are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubPlan {
    /// From the end of one to the beginning of the next.
    pub every: Duration,
    /// Bytes of each copy a second, at most.
    pub rate: u64,
    /// Whether copies that differ from most are healed.
    pub repair: bool,
}

/// What is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// When the last one ended, or when it was first thought of: seconds since 1970.
    ended: u64,
    /// Everything before this byte has been looked at by the one under way.
    position: u64,
}

/// Compares the copies whenever it is time, until the primary is closed.
pub(super) fn run(shared: &Arc<Shared>, dir: Option<PathBuf>, plan: &ScrubPlan) {
    let mut record = dir.as_deref().and_then(read).unwrap_or_else(|| Record { ended: now(), position: 0 });
    keep(dir.as_deref(), &record);
    // A folder that is no copy's any more may be gone, or another process's.
    let dir = || dir.as_deref().filter(|_| shared.look(|state| state.local().is_some()));
    while !shared.is_closing() {
        if record.position == 0 && now().saturating_sub(record.ended) < plan.every.as_secs() {
            pause(shared);
            continue;
        }
        scrub_once(shared, &dir, plan, &mut record);
    }
}

fn scrub_once<'a>(shared: &Arc<Shared>, dir: &impl Fn() -> Option<&'a Path>, plan: &ScrubPlan, record: &mut Record) {
    let repair = if plan.repair { Repair::Majority } else { Repair::None };
    let (piece, size) = shared.look(|state| (state.writer.piece_bytes(), state.writer.regions().size_bytes()));
    let from = beginning(record.position, piece, size);
    let mut kept = Instant::now();
    if from == 0 {
        log::info!("the copies are being compared, as every {} s", plan.every.as_secs());
    }
    let ended = rounds::run(shared, Owner::Scrub, RoundPlan { from, repair, rate: plan.rate }, |event| {
        if let Event::Position(position) = event
            && kept.elapsed() > KEEP_EVERY
        {
            (record.position, kept) = (position, Instant::now());
            keep(dir(), record);
        }
        true
    });
    match ended {
        Ok(End::Done(outcome)) => {
            *record = Record { ended: now(), position: 0 };
            tell(&outcome, from);
        }
        Ok(End::GivenUp(position)) => record.position = position,
        Err(NoRound::Busy | NoRound::NotServed | NoRound::NotInSync) => return pause(shared),
    }
    keep(dir(), record);
}

/// Where to go on that was at `position`: at a whole piece, and at the beginning where the volume has ended by then.
fn beginning(position: u64, piece: u64, size: u64) -> u64 {
    let from = position / piece * piece;
    if from < size { from } else { 0 }
}

fn tell(outcome: &VerifyOutcome, from: u64) {
    let VerifyOutcome { size, healed_bytes, left_bytes, .. } = outcome;
    let wanted = size - from;
    let missing = outcome.members.iter().filter(|member| member.bytes < wanted);
    let missing: Vec<String> =
        missing.map(|member| format!("{} bytes of {}", wanted - member.bytes, member.node)).collect();
    let unseen = if missing.is_empty() { String::new() } else { format!("; not compared: {}", missing.join(", ")) };
    if *left_bytes > 0 {
        log::error!(
            "the copies differ in {left_bytes} bytes, {healed_bytes} were healed{unseen}: see `sealblk volume verify`"
        );
    } else {
        log::info!("the copies are equal, {healed_bytes} bytes were healed{unseen}");
    }
}

fn pause(shared: &Arc<Shared>) {
    let _ = shared.wait(PAUSE, |_| shared.is_closing());
}

fn read(dir: &Path) -> Option<Record> {
    let text = std::fs::read(dir.join(RECORD_FILE)).ok()?;
    // One that makes no sense is as good as none.
    let record: Record = serde_json::from_slice(&text).ok()?;
    Some(Record { ended: record.ended.min(now()), ..record })
}

fn keep(dir: Option<&Path>, record: &Record) {
    let Some(dir) = dir else { return };
    let text = serde_json::to_vec(record).expect("a record of numbers");
    if let Err(error) = replace(dir, RECORD_FILE, &text) {
        log::warn!("how far the comparison of the copies is cannot be kept: {error}");
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

const RECORD_FILE: &str = "scrub.json";
const KEEP_EVERY: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_goes_on_at_a_whole_piece_of_the_volume() {
        let from = |position| beginning(position, 4096, 10_000);
        assert_eq!([0, 4095, 4096, 9999].map(from), [0, 0, 4096, 8192]);
        assert_eq!([10_000, 12_288, u64::MAX].map(from), [8192, 0, 0]);
    }

    #[test]
    fn what_is_kept_is_found_again_and_nonsense_is_not() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()), None);
        let record = Record { ended: 1_700_000_000, position: 3 << 20 };
        keep(Some(folder.path()), &record);
        assert_eq!(read(folder.path()), Some(record));
        // A clock that was wrong must not put the next one off for years.
        keep(Some(folder.path()), &Record { ended: u64::MAX, position: 1 });
        assert!(read(folder.path()).unwrap().ended <= now());
        std::fs::write(folder.path().join(RECORD_FILE), "{").unwrap();
        assert_eq!(read(folder.path()), None);
    }
}
