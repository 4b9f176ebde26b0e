//! What the people of a sprite set for it over the host's figures (`sprite limits`).
//!
//! Only what is named changes; `null` goes back to the host's figure.

use super::api::{Admin, Problem, failed};
use super::sprites;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::time::Duration;
use wakeup::spec::SpriteSpec;

/// Longest port wait: the longest any request is held (`wake.md` §6).
const PORT_WAIT_MAX: Duration = Duration::from_secs(60);
/// What a cap on awake time is for.
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Shortest idle timeout (as for a new sprite).
const IDLE_TIMEOUT_MIN: Duration = Duration::from_millis(100);

impl Admin {
    pub(super) async fn set_limits(&self, name: &str, body: &[u8]) -> Result<Value, Problem> {
        let asked: Map<String, Value> = serde_json::from_slice(body)
            .map_err(|error| (StatusCode::BAD_REQUEST, format!("these are no limits: {error}")))?;
        let (name, _) = self.known(name).await?;
        let spec = sprites::change(&self.stores.local, &name, |spec| apply(spec, &asked)).map_err(failed)??;
        self.owner()?.upsert(spec).await;
        self.show(name.as_str()).await
    }
}

/// The limits of a sprite as `sprite show` has them.
pub(super) fn shown(spec: &SpriteSpec) -> Value {
    let text = |duration: Option<Duration>| duration.map(|duration| humantime::format_duration(duration).to_string());
    let limits = &spec.limits;
    json!({
        "idle_timeout": text(spec.idle_timeout),
        "wakes_per_hour": limits.wakes_per_hour,
        "awake_per_day": text(limits.awake_per_day),
        "silent_sockets": text(limits.silent_sockets),
        "port_wait": text(limits.port_wait),
        "refuse_lossy": limits.refuse_lossy,
    })
}

fn apply(spec: &mut SpriteSpec, asked: &Map<String, Value>) -> Result<(), Problem> {
    for (field, value) in asked {
        match field.as_str() {
            "idle_timeout" => spec.idle_timeout = duration(field, value, IDLE_TIMEOUT_MIN, Duration::MAX)?,
            "wakes_per_hour" => spec.limits.wakes_per_hour = parsed(field, value)?,
            "awake_per_day" => spec.limits.awake_per_day = duration(field, value, Duration::ZERO, DAY)?,
            "silent_sockets" => spec.limits.silent_sockets = duration(field, value, IDLE_TIMEOUT_MIN, DAY)?,
            "port_wait" => spec.limits.port_wait = duration(field, value, IDLE_TIMEOUT_MIN, PORT_WAIT_MAX)?,
            "refuse_lossy" => spec.limits.refuse_lossy = parsed::<bool>(field, value)?.unwrap_or(false),
            other => return Err((StatusCode::BAD_REQUEST, format!("{other}: there is no such limit"))),
        }
    }
    Ok(())
}

fn parsed<T: for<'de> Deserialize<'de>>(field: &str, value: &Value) -> Result<Option<T>, Problem> {
    serde_json::from_value(value.clone()).map_err(|error| (StatusCode::BAD_REQUEST, format!("{field}: {error}")))
}

fn duration(field: &str, value: &Value, least: Duration, most: Duration) -> Result<Option<Duration>, Problem> {
    let wrong = |rule: String| (StatusCode::BAD_REQUEST, format!("{field}: {rule}"));
    let Some(text) = parsed::<String>(field, value)? else { return Ok(None) };
    let duration = humantime::parse_duration(&text).map_err(|error| wrong(error.to_string()))?;
    if duration < least || duration > most {
        let most = if most == Duration::MAX { String::new() } else { format!(" and at most {most:?}") };
        return Err(wrong(format!("at least {least:?}{most}")));
    }
    Ok(Some(duration))
}

#[cfg(test)]
mod tests {
    use super::*;
    use router::names::SpriteName;
    use wakeup::spec::DriverSpec;

    #[test]
    fn only_what_is_named_changes_and_null_goes_back() {
        let driver = DriverSpec::Process { command: "true".into(), memory_mib: None };
        let mut spec = SpriteSpec::new(SpriteName::parse("a").unwrap(), 1, driver);
        let mut set = |value: Value| apply(&mut spec, value.as_object().unwrap());
        set(json!({ "awake_per_day": "8h", "wakes_per_hour": 5, "refuse_lossy": true })).unwrap();
        set(json!({ "wakes_per_hour": null, "port_wait": "20s" })).unwrap();
        for wrong in [
            json!({ "port_wait": "61s" }),
            json!({ "awake_per_day": "25h" }),
            json!({ "wakes_per_hour": -1 }),
            json!({ "silent_sockets": 5 }),
            json!({ "patience": "1s" }),
        ] {
            assert_eq!(set(wrong.clone()).unwrap_err().0, StatusCode::BAD_REQUEST, "{wrong}");
        }
        let shown = shown(&spec);
        assert_eq!(shown["awake_per_day"], "8h");
        assert_eq!(shown["wakes_per_hour"], Value::Null);
        assert_eq!(shown["port_wait"], "20s");
        assert_eq!(shown["refuse_lossy"], true);
    }
}
