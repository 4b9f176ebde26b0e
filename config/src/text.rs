//! Durations as people write them: `"30s"`, `"1500ms"`, `"10m"`.

use serde::{Deserialize, Deserializer, Serializer};
use std::time::Duration;

/// Longest duration of any setting (chosen: far beyond use, and far from where adding it
/// to a clock could overflow).
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

pub(crate) fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&humantime::format_duration(*duration))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    let duration = humantime::parse_duration(&text).map_err(|error| {
        serde::de::Error::custom(format!("{text:?} is no duration such as \"30s\" or \"10m\": {error}"))
    })?;
    if duration > LONGEST {
        return Err(serde::de::Error::custom(format!("{text:?} is too long: a duration is at most \"365days\"")));
    }
    Ok(duration)
}

/// Refuses the first duration that is zero: it would end what it limits before it began.
pub(crate) fn all_positive(durations: &[(&'static str, Duration)]) -> Result<(), (&'static str, String)> {
    match durations.iter().find(|(_, duration)| duration.is_zero()) {
        Some((key, _)) => Err((key, "more than 0".into())),
        None => Ok(()),
    }
}

/// Refuses the first number that is zero.
pub(crate) fn all_at_least_one(numbers: &[(&'static str, usize)]) -> Result<(), (&'static str, String)> {
    match numbers.iter().find(|(_, number)| *number == 0) {
        Some((key, _)) => Err((key, "at least 1".into())),
        None => Ok(()),
    }
}
