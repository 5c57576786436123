//! `sealblk volume status`: how the copies of a replicated volume stand.

use std::fmt::Write;
use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::cli::key_args::ClusterArgs;
use crate::cli::view_args::{in_cluster, volume_name};
use crate::cli::{CliError, one_line, output, signals, size};
use crate::coordination::kubernetes::VolumeName;
use crate::replication::copy::recorded_view;
use crate::replication::primary::ask;
use crate::replication::primary::status::{CopyState, MemberStatus, Status};
use crate::store::{Access, Store};

/// Which volume, and how to show it.
#[derive(Args)]
pub struct StatusArgs {
    /// Folder of the copy on this node; or of a volume that is served here without a copy, the socket that `serve`
    /// listens on for the virtual machine's monitor
    #[arg(value_name = "PLACE", required_unless_present = "volume")]
    place: Option<PathBuf>,
    /// A volume of a cluster, as its Volume there says that it stands: kubernetes:NAMESPACE/NAME
    #[arg(long, value_name = "VOLUME", value_parser = volume_name, conflicts_with_all = ["place", "watch"])]
    volume: Option<VolumeName>,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Print JSON, with --watch a line each time
    #[arg(long)]
    json: bool,
    /// Show it again every second, with the progress of copies that are being sent what they lack
    #[arg(long)]
    watch: bool,
}

pub fn run(args: &StatusArgs) -> Result<(), CliError> {
    let stop = args.watch.then(signals::stop).transpose().map_err(CliError::Signals)?;
    let mut pace = Pace::default();
    let bars = (args.watch && !args.json && std::io::stderr().is_terminal()).then(Bars::default);
    loop {
        let (status, source) = look(args)?;
        pace.note(&status, Instant::now());
        if args.json {
            let text = if args.watch { serde_json::to_string(&status) } else { serde_json::to_string_pretty(&status) };
            output::print(&(text.expect("a record of strings and numbers") + "\n"))?;
        } else if let Some(bars) = &bars {
            bars.show(&status, &pace);
        } else {
            output::show(&for_people(&status, source, &pace))?;
        }
        match &stop {
            Some(stop) if !signals::is_asked(stop, INTERVAL).map_err(CliError::Signals)? => {}
            _ => break,
        }
    }
    if let Some(bars) = bars {
        bars.leave();
    }
    Ok(())
}

/// Who says how it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Teller {
    /// The process that serves the volume on this node.
    Writer,
    /// What the copy on this node has on record.
    Copy,
    /// The view, where it is kept.
    View,
}

/// From the process that serves the volume on this node; without one, what the copy here has on record.
fn look(args: &StatusArgs) -> Result<(Status, Teller), CliError> {
    if let Some(name) = &args.volume {
        let (spec, view) = in_cluster(name, &args.cluster.cluster()).read()?;
        let view = view.ok_or_else(|| CliError::NotMade { volume: name.clone() })?;
        return Ok((Status::of_record(&view, spec.size.0), Teller::View));
    }
    let Some(place) = &args.place else { return Err(CliError::Usage("give the folder of the copy".to_owned())) };
    let ask = || ask(place).map_err(|source| CliError::Status { place: place.clone(), source });
    if !place.is_dir() {
        let status = ask()?.ok_or_else(|| CliError::NobodyServes { place: place.clone() })?;
        return Ok((status, Teller::Writer));
    }
    let store = Store::open(place, Access::Inspect)?;
    if let Some(status) = ask()? {
        return Ok((status, Teller::Writer));
    }
    let superblock = store.superblock();
    match recorded_view(place, superblock.id)? {
        Some(view) => Ok((Status::of_record(&view, superblock.size_bytes), Teller::Copy)),
        None => Err(CliError::NotReplicated { dir: place.clone() }),
    }
}

/// What people see of what the process says that serves a volume; none if that is no status.
pub fn shown(line: &[u8], pace: &mut Pace, now: Instant) -> Option<String> {
    let status: Status = serde_json::from_slice(line).ok()?;
    pace.note(&status, now);
    Some(for_people(&status, Teller::Writer, pace))
}

fn for_people(status: &Status, teller: Teller, pace: &Pace) -> String {
    let mut text = String::new();
    let writer = status.writer.as_deref().unwrap_or("none");
    let _ = writeln!(text, "volume        {}", status.volume);
    let _ = writeln!(text, "view          {}, writer {writer}", status.view);
    let writable = if status.writable { "" } else { "; too few for writes" };
    let count = status.present().count();
    let _ = writeln!(text, "in sync       {} of {count}, mode {}{writable}", status.in_sync, status.failure_mode);
    if status.members.iter().any(|member| member.zone.is_some()) {
        let spread = match status.spread {
            Some(true) => "the copies in sync are in more than one",
            Some(false) => "every copy in sync is in the same",
            None => "of some copies it is not known",
        };
        let _ = writeln!(text, "zones         {spread}");
    }
    if status.unreconciled_regions > 0 {
        let bytes = (status.unreconciled_regions as u64).saturating_mul(status.region_bytes);
        let _ = writeln!(text, "to compare    {} at most, after the last writer's end", size::rounded(bytes));
    }
    if teller == Teller::Copy {
        let _ = writeln!(text, "not served on this node: this is what the copy here knew last");
    }
    for member in status.present() {
        let _ = writeln!(text, "{}", member_line(member, teller == Teller::Writer, pace));
    }
    let removed = status.members.iter().filter(|member| member.state == CopyState::Retired);
    let removed: Vec<&str> = removed.map(|member| member.node.as_str()).collect();
    if !removed.is_empty() {
        let _ = writeln!(text, "removed       {}", removed.join(", "));
    }
    text
}

fn member_line(member: &MemberStatus, is_served: bool, pace: &Pace) -> String {
    let mut line = format!("  {:<20} {:<22} {}", member.node, member.address, state_name(member.state));
    if let Some(zone) = &member.zone {
        let _ = write!(line, ", zone {zone}");
    }
    if is_served && !member.connected {
        line += ", not connected";
    }
    if member.behind_bytes > 0 {
        let _ = write!(line, ", lacks {} at most", size::rounded(member.behind_bytes));
        if let Some((rate, left)) = pace.of(&member.node) {
            let _ = write!(line, ", {}/s, {} s left", size::rounded(rate), left.as_secs());
        }
    }
    if member.requests_in_flight > 0 {
        let bytes = size::rounded(member.bytes_in_flight);
        let _ = write!(line, ", {} requests of {bytes} in flight", member.requests_in_flight);
    }
    line
}

fn state_name(state: CopyState) -> &'static str {
    match state {
        CopyState::InSync => "in sync",
        CopyState::Resyncing => "being sent what it lacks",
        CopyState::Behind => "behind",
        CopyState::Added => "added, not in sync yet",
        CopyState::Retired => "removed",
    }
}

/// How fast members get what they lack, from one look to the next.
#[derive(Default)]
pub struct Pace {
    members: Vec<Progress>,
}

struct Progress {
    node: String,
    began: Instant,
    first_bytes: u64,
    bytes: u64,
    now: Instant,
}

impl Pace {
    pub(super) fn note(&mut self, status: &Status, now: Instant) {
        for MemberStatus { node, behind_bytes, .. } in &status.members {
            let bytes = *behind_bytes;
            match self.members.iter_mut().find(|progress| progress.node == *node) {
                // It lacks more than before: a new beginning.
                Some(progress) if bytes <= progress.bytes && bytes > 0 => {
                    (progress.bytes, progress.now) = (bytes, now);
                }
                Some(progress) => {
                    *progress = Progress { node: node.clone(), began: now, first_bytes: bytes, bytes, now };
                }
                None => {
                    self.members.push(Progress { node: node.clone(), began: now, first_bytes: bytes, bytes, now });
                }
            }
        }
    }

    /// Bytes a second, and the time left at that rate; none while nothing is known.
    fn of(&self, node: &str) -> Option<(u64, Duration)> {
        let progress = self.members.iter().find(|progress| progress.node == node)?;
        let seconds = progress.now.saturating_duration_since(progress.began).as_secs_f64();
        let done = progress.first_bytes - progress.bytes;
        if seconds < 0.5 || done == 0 {
            return None;
        }
        let rate = done as f64 / seconds;
        let left = Duration::try_from_secs_f64(progress.bytes as f64 / rate).unwrap_or(Duration::MAX);
        Some((rate as u64, left))
    }

    fn first_bytes(&self, node: &str) -> u64 {
        self.members.iter().find(|progress| progress.node == node).map_or(0, |progress| progress.first_bytes)
    }
}

/// A bar for each member that is being sent what it lacks.
#[derive(Default)]
pub(super) struct Bars {
    all: MultiProgress,
    of: std::cell::RefCell<Vec<ProgressBar>>,
}

impl Bars {
    pub(super) fn show(&self, status: &Status, pace: &Pace) {
        let mut bars = self.of.borrow_mut();
        while bars.len() < status.present().count() {
            let style = ProgressStyle::with_template("{msg:60!} {wide_bar} {percent}%");
            bars.push(self.all.add(ProgressBar::new(1).with_style(style.expect("the template is constant"))));
        }
        for (bar, member) in bars.iter().zip(status.present()) {
            let all = pace.first_bytes(&member.node).max(1);
            bar.set_length(all);
            bar.set_position(if member.behind_bytes == 0 { all } else { all - member.behind_bytes.min(all) });
            let rate = pace.of(&member.node).map_or(String::new(), |(rate, left)| {
                format!(", {}/s, {} s left", size::rounded(rate), left.as_secs())
            });
            bar.set_message(one_line(&format!("{} {}{rate}", member.node, state_name(member.state))));
        }
    }

    /// Lets them stand as they are, with what comes next below them.
    fn leave(self) {
        self.of.borrow().iter().for_each(ProgressBar::abandon);
        let _ = writeln!(std::io::stderr());
    }
}

const INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::replication::view::FailureMode;

    /// One copy in sync, and one that is sent what it lacks.
    pub fn status(behind_bytes: u64) -> Status {
        let member = |node: &str, state, behind_bytes| MemberStatus {
            node: node.to_owned(),
            address: "10.0.0.1:7420".to_owned(),
            zone: None,
            state,
            connected: true,
            behind_bytes,
            requests_in_flight: 0,
            bytes_in_flight: 0,
        };
        Status {
            volume: "v".to_owned(),
            view: 7,
            writer: Some("node-a".to_owned()),
            failure_mode: FailureMode::Soft,
            in_sync: 1,
            writable: true,
            unreconciled_regions: 0,
            region_bytes: 4 << 20,
            spread: None,
            members: vec![member("node-a", CopyState::InSync, 0), member("node-b", CopyState::Resyncing, behind_bytes)],
        }
    }

    #[test]
    fn the_time_left_follows_from_what_was_done() {
        let (mut pace, began) = (Pace::default(), Instant::now());
        pace.note(&status(100 << 20), began);
        assert_eq!(pace.of("node-b"), None);
        pace.note(&status(60 << 20), began + Duration::from_secs(4));
        assert_eq!(pace.of("node-b"), Some((10 << 20, Duration::from_secs(6))));
        assert_eq!(pace.of("node-a"), None);
        // It has fallen back: what was is no measure.
        pace.note(&status(80 << 20), began + Duration::from_secs(5));
        assert_eq!(pace.of("node-b"), None);
    }

    #[test]
    fn people_see_who_lacks_how_much() {
        let mut pace = Pace::default();
        pace.note(&status(8 << 20), Instant::now());
        let text = for_people(&status(8 << 20), Teller::Writer, &pace);
        assert!(text.contains("in sync       1 of 2, mode soft\n"), "{text}");
        assert!(text.contains("being sent what it lacks, lacks 8.0 MiB at most"), "{text}");
        assert!(!text.contains("not served"), "{text}");
    }

    #[test]
    fn zones_are_shown_where_there_are_any() {
        let mut status = status(0);
        assert!(!for_people(&status, Teller::Writer, &Pace::default()).contains("zone"));
        status.spread = Some(false);
        status.members[0].zone = Some("eu-1a".parse().unwrap());
        let text = for_people(&status, Teller::Writer, &Pace::default());
        assert!(text.contains("in sync, zone eu-1a\n"), "{text}");
        assert!(text.contains("zones         every copy in sync is in the same\n"), "{text}");
    }

    #[test]
    fn figures_that_cannot_be_are_shown_all_the_same() {
        let (mut pace, began) = (Pace::default(), Instant::now());
        for (behind, second) in [(u64::MAX, 0), (u64::MAX - 1, 4000)] {
            pace.note(&status(behind), began + Duration::from_secs(second));
        }
        assert_eq!(pace.of("node-b").unwrap().1, Duration::MAX);
        let impossible = Status { unreconciled_regions: usize::MAX, region_bytes: u64::MAX, ..status(u64::MAX) };
        assert!(for_people(&impossible, Teller::Writer, &pace).contains("to compare    16777216.0 TiB at most"));
    }

    #[test]
    fn a_member_that_was_removed_is_none() {
        let mut status = status(0);
        status.members[1].state = CopyState::Retired;
        let text = for_people(&status, Teller::Writer, &Pace::default());
        assert!(text.contains("in sync       1 of 1, mode soft\n"), "{text}");
        assert!(text.ends_with("\nremoved       node-b\n"), "{text}");
    }
}
