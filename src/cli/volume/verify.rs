//! `sealblk volume verify`: whether the copies of a volume are equal, while its guest runs.

use std::io;
use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::{CliError, output, size};
use crate::replication::copy::recorded_view;
use crate::replication::primary::request::{VerifyLine, VerifyOutcome, VerifyRequest};
use crate::replication::primary::{sentence, verify};
use crate::replication::view::NodeName;
use crate::store::{Access, Store};

/// Which volume, and what to do about copies that differ.
#[derive(Args)]
pub struct VerifyArgs {
    /// Folder of the copy on this node, where the volume must be served; if it has none here, the socket that `serve`
    /// listens on for the virtual machine's monitor
    #[arg(value_name = "PLACE")]
    place: PathBuf,
    /// Heal copies that differ from what more than half of the copies in sync have, or that cannot be read
    #[arg(long)]
    repair: bool,
    /// Heal from the copy on this node instead, wherever it can be read
    #[arg(long, value_name = "NODE", requires = "repair")]
    trust: Option<NodeName>,
    /// The most bytes of each copy that are read a second; fewer while the guest's writes suffer from it [default: 1G]
    #[arg(long, value_name = "BYTES", value_parser = rate)]
    rate: Option<u64>,
    /// Print JSON, a line for each thing that becomes known
    #[arg(long)]
    json: bool,
}

pub fn run(args: &VerifyArgs) -> Result<(), CliError> {
    let place = &args.place;
    let copy = if place.is_dir() { Some(Store::open(place, Access::Inspect)?.superblock().id) } else { None };
    let request =
        VerifyRequest { repair: args.repair, trust: args.trust.as_ref().map(NodeName::to_string), rate: args.rate };
    // Shows itself only on a terminal.
    let bar = ProgressBar::new(0);
    let style =
        ProgressStyle::with_template("{wide_bar} {percent}% {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}");
    bar.set_style(style.expect("the template is constant"));
    let mut last = None;
    let mut failed = Ok(());
    let asked = verify(place, request, |line| {
        match &line {
            VerifyLine::Progress { position, size } => {
                bar.set_length(*size);
                bar.set_position(*position);
            }
            VerifyLine::Found(found) if !args.json => {
                bar.suspend(|| failed = output::show(&(sentence(found) + "\n")));
            }
            _ => {}
        }
        if args.json {
            let text = serde_json::to_string(&line).expect("a record of strings and numbers");
            bar.suspend(|| failed = output::print(&(text + "\n")));
        }
        last = Some(line);
        // Whoever serves the volume stops when nobody listens.
        if failed.is_err() { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    });
    bar.finish_and_clear();
    failed?;
    if asked.map_err(|source| CliError::Verify { place: place.clone(), source })?.is_none() {
        let dir = place.clone();
        return Err(match copy {
            None => CliError::NobodyServes { place: dir },
            Some(volume) if recorded_view(place, volume)?.is_some() => CliError::NotServed { dir },
            Some(_) => CliError::NotReplicated { dir },
        });
    }
    match last {
        Some(VerifyLine::Outcome(outcome)) => conclude(args, &outcome),
        Some(VerifyLine::Refused(why)) => Err(CliError::Verify { place: place.clone(), source: io::Error::other(why) }),
        _ => Err(CliError::Verify { place: place.clone(), source: io::ErrorKind::UnexpectedEof.into() }),
    }
}

fn conclude(args: &VerifyArgs, outcome: &VerifyOutcome) -> Result<(), CliError> {
    if !args.json {
        output::show(&for_people(outcome))?;
    }
    match outcome.is_equal() {
        true => Ok(()),
        false => Err(CliError::NotEqual { place: args.place.clone(), what: what_is_left(outcome) }),
    }
}

/// What people see of a line of what the process says that compares a volume; none if it is not one of those.
pub fn shown(line: &[u8]) -> Option<String> {
    match serde_json::from_slice(line).ok()? {
        VerifyLine::Outcome(outcome) => Some(for_people(&outcome) + &what_is_left(&outcome)),
        VerifyLine::Found(found) => Some(sentence(&found)),
        VerifyLine::Progress { .. } | VerifyLine::Refused(_) => None,
    }
}

fn for_people(outcome: &VerifyOutcome) -> String {
    let mut text = String::new();
    for member in &outcome.members {
        text += &format!("{:<20} {} compared\n", member.node, size::rounded(member.bytes));
    }
    if outcome.untold > 0 {
        text += &format!("{} more findings were not listed\n", outcome.untold);
    }
    if outcome.healed_bytes > 0 {
        text += &format!("{} bytes healed\n", outcome.healed_bytes);
    }
    if outcome.is_equal() {
        text += "the copies are equal\n";
    }
    text
}

fn what_is_left(outcome: &VerifyOutcome) -> String {
    let mut what = Vec::new();
    if outcome.left_bytes > 0 {
        what.push(format!("{} bytes differ or cannot be read", outcome.left_bytes));
    }
    let missing = outcome.members.iter().filter(|member| member.bytes < outcome.size);
    for member in missing {
        what.push(format!("{} bytes of node {} were not compared", outcome.size - member.bytes, member.node));
    }
    what.join("; ")
}

/// A rate in bytes a second: not so low that a piece would take minutes.
pub fn rate(text: &str) -> Result<u64, String> {
    let rate = size::parse(text).map_err(|error| error.to_string())?;
    if rate < RATE_MIN { Err("too slow: give at least 64K".to_owned()) } else { Ok(rate) }
}

const RATE_MIN: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::primary::request::Compared;

    fn outcome(left_bytes: u64, bytes: u64) -> VerifyOutcome {
        let member = |node: &str, bytes| Compared { node: node.to_owned(), bytes };
        let members = vec![member("node-a", 8192), member("node-b", bytes)];
        VerifyOutcome { size: 8192, healed_bytes: 512, left_bytes, untold: 0, members }
    }

    #[test]
    fn people_read_what_was_done_and_what_is_left() {
        let text = for_people(&outcome(0, 8192));
        assert!(text.contains("512 bytes healed\n") && text.ends_with("the copies are equal\n"), "{text}");
        let text = for_people(&outcome(0, 4096));
        assert!(!text.contains("are equal"), "{text}");
        assert_eq!(what_is_left(&outcome(0, 4096)), "4096 bytes of node node-b were not compared");
        assert_eq!(what_is_left(&outcome(512, 8192)), "512 bytes differ or cannot be read");
    }

    #[test]
    fn a_rate_is_not_nothing() {
        assert_eq!(rate("64K"), Ok(64 << 10));
        assert!(rate("0").is_err() && rate("63K").is_err() && rate("fast").is_err());
    }
}
