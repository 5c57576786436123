//! Durations on the command line.

use std::time::Duration;

/// Reads a whole number with the unit `ms`, `s`, `m`, `h` or `d`, at most a day.
pub fn parse(text: &str) -> Result<Duration, String> {
    let duration = read(text)?;
    if duration <= DAY { Ok(duration) } else { Err("more than 24h: give less".to_owned()) }
}

/// Reads how long others may take to answer, at least 100 ms, so that none is given up before it could have.
pub fn parse_patience(text: &str) -> Result<Duration, String> {
    let duration = parse(text)?;
    if duration >= PATIENCE_MIN { Ok(duration) } else { Err("too short: give at least 100ms".to_owned()) }
}

/// Reads the time from one thing to the next that is done seldom, a second to a year.
pub fn parse_interval(text: &str) -> Result<Duration, String> {
    let duration = read(text)?;
    let fits = (INTERVAL_MIN..=INTERVAL_MAX).contains(&duration);
    if fits { Ok(duration) } else { Err("less than 1s or more than 366d".to_owned()) }
}

/// Reads the life of a certificate, which may also be in days, unit `d`.
pub fn parse_life(text: &str) -> Result<Duration, String> {
    let duration = read(text)?;
    let fits = (LIFE_MIN..=LIFE_MAX).contains(&duration);
    if fits { Ok(duration) } else { Err("less than 10s or more than 397d".to_owned()) }
}

fn read(text: &str) -> Result<Duration, String> {
    let refused = || "not a duration: write a whole number and ms, s, m, h or d, such as 30s".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(refused)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| refused())?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(refused()),
    };
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(refused)
}

const DAY: Duration = Duration::from_secs(24 * 3600);
const PATIENCE_MIN: Duration = Duration::from_millis(100);
const INTERVAL_MIN: Duration = Duration::from_secs(1);
const INTERVAL_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
const LIFE_MIN: Duration = Duration::from_secs(10);
const LIFE_MAX: Duration = Duration::from_secs(397 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_a_unit_make_a_duration() {
        assert_eq!(parse("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse("0s"), Ok(Duration::ZERO));
        assert_eq!(parse("24h"), Ok(DAY));
        assert_eq!(parse("1d"), Ok(DAY));
        assert_eq!(parse_patience("100ms"), Ok(Duration::from_millis(100)));
        assert!(["0s", "99ms", "2d"].iter().all(|text| parse_patience(text).is_err()));
        for text in ["", "30", "s", "-1s", "1.5s", "1 s", "2d", "25h", "1w", "99999999999999999999s", "1S"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
    #[test]
    fn what_is_done_seldom_is_done_once_a_second_to_once_a_year() {
        assert_eq!(parse_interval("7d"), Ok(7 * DAY));
        assert_eq!(parse_interval("1s"), Ok(Duration::from_secs(1)));
        assert!(parse_interval("0s").is_err() && parse_interval("999ms").is_err() && parse_interval("367d").is_err());
    }

    #[test]
    fn a_certificate_lives_for_some_seconds_to_some_months() {
        assert_eq!(parse_life("90d"), Ok(90 * DAY));
        assert_eq!(parse_life("10s"), Ok(LIFE_MIN));
        assert!(parse_life("9s").is_err() && parse_life("398d").is_err() && parse_life("").is_err());
    }
}
