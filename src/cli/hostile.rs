//! Anything on the command line, and in answers that are shown.

use std::time::{Duration, Instant};

use clap::Parser;

use super::output::printable;
use super::view_args::{ViewPlace, volume_name};
use super::volume::status::{self, Pace};
use super::volume::{create, verify};
use super::{Cli, duration, size, tls, usage_sentence};
use crate::coordination::etcd::Endpoints;
use crate::device::Serial;
use crate::keys::Source;
use crate::replication::view::{FailureMode, NewMember, NodeName};

/// Reads `bytes` as each word that the command line has, and their lines as a whole command: the entry of the fuzz
/// target `arguments`. Whether one of them is taken.
///
/// # Panics
///
/// When what was taken is something else once it was written, or an error is more than a line.
pub fn parse_hostile(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    if text.contains('\n') {
        return is_command(text);
    }
    let written = [
        again(text, size::parse, u64::to_string),
        again(text, duration::parse, |time| format!("{}ms", time.as_millis())),
        again(text, duration::parse_interval, |time| format!("{}ms", time.as_millis())),
        again(text, duration::parse_life, |time| format!("{}ms", time.as_millis())),
        again(text, verify::rate, u64::to_string),
        again(text, str::parse::<NodeName>, NodeName::to_string),
        again(text, str::parse::<FailureMode>, FailureMode::to_string),
        again(text, create::member, written_member),
        again(text, volume_name, |name| format!("kubernetes:{name}")),
    ];
    let read = text.parse::<ViewPlace>().is_ok()
        | text.parse::<Endpoints>().is_ok()
        | text.parse::<Source>().is_ok()
        | text.parse::<Serial>().is_ok()
        | tls::node(text).is_ok();
    read | written.contains(&true)
}

fn again<T: PartialEq, E>(text: &str, parse: impl Fn(&str) -> Result<T, E>, write: impl FnOnce(&T) -> String) -> bool {
    let Ok(value) = parse(text) else { return false };
    let written = write(&value);
    assert!(parse(&written).is_ok_and(|again| again == value), "{text:?} is something else as {written:?}");
    true
}

fn written_member(member: &NewMember) -> String {
    let NewMember { node, address, zone } = member;
    let zone = zone.as_ref().map(|zone| format!(",zone={zone}")).unwrap_or_default();
    format!("{node}={address}{zone}")
}

fn is_command(text: &str) -> bool {
    match Cli::try_parse_from(std::iter::once("sealblk").chain(text.lines())) {
        Ok(_) => true,
        Err(error) => {
            let sentence = usage_sentence(&error.render().to_string());
            assert!(!sentence.contains(char::is_control), "{sentence:?} is no line");
            false
        }
    }
}

/// Shows each line of `bytes` as what a process says that serves a volume, a second after the one before: a part of
/// the fuzz target `owner`. Whether one of them can be shown.
///
/// # Panics
///
/// When what is shown could do more to a terminal than to put text on it.
pub fn show_hostile(bytes: &[u8]) -> bool {
    let mut pace = Pace::default();
    let begin = Instant::now();
    let mut shown = false;
    for (second, line) in (0u32..).zip(bytes.split(|&byte| byte == b'\n')).take(LINES_MAX) {
        let now = begin + Duration::from_secs(second.into());
        let text = status::shown(line, &mut pace, now).or_else(|| verify::shown(line)).map(|text| printable(&text));
        assert!(text.as_ref().is_none_or(|text| text.chars().all(|c| c == '\n' || !c.is_control())), "{text:?}");
        shown |= text.is_some();
    }
    shown
}

const LINES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::volume::status::tests::status;
    use crate::corpus;

    #[test]
    fn the_corpus_of_words_passes() {
        for (name, text) in [
            ("size", "10G"),
            ("duration", "30s"),
            ("rate", "64K"),
            ("node", "node-1.rack2.example"),
            ("node-with-addresses", "node-a,10.0.0.1,::1"),
            ("member", "node-a=10.0.0.1:7420"),
            ("failure-mode", "alwayson"),
            ("folder", "file:/var/lib/views"),
            ("volume", "kubernetes:vms/disk"),
            ("claim", "pvc:vms/disk"),
            ("etcd", "etcd:https://etcd-0:2379,https://[::1]:2379"),
            ("command", "volume\ncreate\n--size\n1G\n--no-encryption\nvolume"),
            ("status", "volume\nstatus\n--watch\n--json\ncopy"),
        ] {
            corpus::assert_seed("arguments", name, text.as_bytes());
        }
        assert!(corpus::taken("arguments", parse_hostile) >= 13);
    }

    #[test]
    fn the_corpus_of_answers_is_shown() {
        let lines = [100 << 20, 60 << 20, 0].map(|behind| serde_json::to_string(&status(behind)).unwrap() + "\n");
        corpus::assert_seed("owner", "resync", lines.concat().as_bytes());
        // A status, and what is told of a comparison.
        assert!(corpus::taken("owner", show_hostile) >= 2);
    }
}
