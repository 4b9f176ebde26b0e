//! What the ledger of runs says: its records for readers with a cursor, and sums of one sprite.

use super::api::{Admin, Answer, Problem, failed_inside, problem};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use router::names::SpriteName;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use wakeup::ledger::{Ledger, LedgerError, Page};

/// Records of a page when no number is asked for (chosen).
const PAGE: usize = 100;
/// Most records of a page (chosen: half a megabyte).
const PAGE_MAX: usize = 1_000;
/// Longest wait for a record, below the limit of every request here.
const FOLLOW_MAX: Duration = Duration::from_secs(60);
/// Requests that may wait for a record at once, a quarter of all; a further one is answered at
/// once, with nothing.
pub(super) const FOLLOWERS_MAX: usize = 16;

impl Admin {
    /// Records behind `after`, one per line.
    pub(super) async fn ledger(&self, query: Option<&str>) -> Answer {
        match self.page(query).await {
            Ok(page) => ndjson(&page),
            Err((status, detail)) => problem(status, &detail),
        }
    }

    async fn page(&self, query: Option<&str>) -> Result<Page, Problem> {
        let query = fields(query, &["after", "limit", "follow"])?;
        let number = |name: &str| query.get(name).map(|text| text.parse::<u64>()).transpose();
        let after = number("after").map_err(|_| wrong("after: the number of a record, 0 for the beginning"))?;
        let limit = number("limit").map_err(|_| wrong("limit: 1 to 1000"))?.map_or(Some(PAGE), |n| n.try_into().ok());
        let limit = limit.filter(|limit| (1..=PAGE_MAX).contains(limit)).ok_or_else(|| wrong("limit: 1 to 1000"))?;
        let follow = query.get("follow").map_or(Ok(Duration::ZERO), |text| humantime::parse_duration(text));
        let follow = follow.ok().filter(|follow| *follow <= FOLLOW_MAX);
        let follow = follow.ok_or_else(|| wrong("follow: how long to wait for a record, at most 60s"))?;
        let (ledger, after) = (self.owner()?.ledger(), after.unwrap_or(0));
        if !follow.is_zero()
            && let Ok(_place) = self.followers.try_acquire()
        {
            let mut durable = ledger.durable();
            // None in time is an answer too.
            let _ = tokio::time::timeout(follow, durable.wait_for(|last| *last > after)).await;
        }
        read(ledger, move |ledger| ledger.page(after, limit)).await
    }

    /// What one sprite used between `since` and `until`.
    pub(super) async fn usage(&self, name: &str, query: Option<&str>) -> Result<Value, Problem> {
        let query = fields(query, &["since", "until"])?;
        let name = SpriteName::parse(name).map_err(|error| wrong(&format!("name: {error}")))?;
        let moment = |field: &str, or: u64| query.get(field).map_or(Ok(or), |text| moment(field, text));
        let (since, until) = (moment("since", 0)?, moment("until", u64::MAX)?);
        let of = name.clone();
        let usage = read(self.owner()?.ledger(), move |ledger| ledger.usage(&of, since, until)).await?;
        // Who was destroyed has used what it has used.
        if !usage.known && self.owner()?.status(&name).await.is_none() {
            return Err((StatusCode::NOT_FOUND, format!("there is no sprite {name}")));
        }
        let owner = self.owner()?;
        let open = usage.open_since_ms.and_then(|_| owner.bytes(&name)).unwrap_or((0, 0));
        Ok(json!({
            "name": name,
            "since": if usage.since_ms == 0 { Value::Null } else { text(usage.since_ms).into() },
            "until": text(usage.until_ms),
            "awake_seconds": Duration::from_millis(usage.awake_ms).as_secs_f64(),
            "awake_ms": usage.awake_ms,
            "runs": usage.runs,
            "wakes": usage.wakes,
            "bytes_to_guest": usage.bytes_to_guest,
            "bytes_from_guest": usage.bytes_from_guest,
            "awake_since": usage.open_since_ms.map(text),
            "open_run_bytes_to_guest": open.0,
            "open_run_bytes_from_guest": open.1,
        }))
    }

    /// For `status`.
    pub(super) fn ledger_status(&self) -> Value {
        let Some(owner) = &self.owner else { return Value::Null };
        let ledger = owner.ledger();
        json!({ "last_seq": *ledger.durable().borrow(), "waiting": ledger.waiting() })
    }

    /// For `status`; null when nobody is told.
    pub(super) fn webhook_status(&self) -> Value {
        let (Some(owner), Some(webhook)) = (&self.owner, &self.webhook) else { return Value::Null };
        webhook.shown(*owner.ledger().durable().borrow())
    }
}

/// Reads files on a thread that may wait for a disk.
async fn read<T: Send + 'static>(
    ledger: &Arc<Ledger>,
    read: impl FnOnce(&Ledger) -> Result<T, LedgerError> + Send + 'static,
) -> Result<T, Problem> {
    let ledger = Arc::clone(ledger);
    let read = tokio::task::spawn_blocking(move || read(&ledger)).await;
    let read = read.map_err(|error| failed_inside(&format!("the ledger was not read: {error}")))?;
    read.map_err(|error| match error {
        LedgerError::NoLongerKept { .. } => (StatusCode::GONE, error.to_string()),
        LedgerError::Beyond { .. } => (StatusCode::BAD_REQUEST, error.to_string()),
        LedgerError::Io { .. } | LedgerError::InUse { .. } | LedgerError::Damaged { .. } => {
            failed_inside(&error.to_string())
        }
    })
}

fn ndjson(page: &Page) -> Answer {
    let mut lines = String::new();
    for record in &page.records {
        lines.push_str(&serde_json::to_string(record).unwrap_or_default());
        lines.push('\n');
    }
    let mut response = Response::new(Full::new(Bytes::from(lines)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers.insert("ledger-first-seq", page.first.into());
    headers.insert("ledger-last-seq", page.last.into());
    response
}

fn wrong(detail: &str) -> Problem {
    (StatusCode::BAD_REQUEST, detail.to_owned())
}

/// The fields of a query; one that is not `known` is refused.
pub(crate) fn fields(query: Option<&str>, known: &[&str]) -> Result<BTreeMap<String, String>, Problem> {
    let mut fields = BTreeMap::new();
    for field in query.unwrap_or("").split('&').filter(|field| !field.is_empty()) {
        let (name, value) = field.split_once('=').unwrap_or((field, ""));
        if !known.contains(&name) {
            return Err(wrong(&format!("{name}: only {} may be asked for", known.join(", "))));
        }
        fields.insert(name.to_owned(), decoded(value).ok_or_else(|| wrong(&format!("{name}: is no text")))?);
    }
    Ok(fields)
}

/// Percent-decoding (RFC 3986 §2.1).
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let mut digit = || char::from(rest.next()?).to_digit(16);
        bytes.push(match byte {
            b'%' => u8::try_from(digit()? * 16 + digit()?).ok()?,
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// A moment as it is asked for: RFC 3339, or how long ago.
fn moment(field: &str, text: &str) -> Result<u64, Problem> {
    let ago = humantime::parse_duration(text).ok().and_then(|ago| SystemTime::now().checked_sub(ago));
    let at = ago.or_else(|| humantime::parse_rfc3339(text).ok());
    let at = at.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).and_then(|at| u64::try_from(at.as_millis()).ok());
    at.ok_or_else(|| wrong(&format!("{field}: a time like 2026-01-31T12:00:00Z, or how long ago, like 24h")))
}

fn text(unix_ms: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(unix_ms)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_field_by_field_and_nothing_unknown_passes() {
        let read = fields(Some("since=2026-01-31T12%3A00%3a00Z&until=24h&"), &["since", "until"]).unwrap();
        assert_eq!(read["since"], "2026-01-31T12:00:00Z");
        assert_eq!(read["until"], "24h");
        assert!(fields(Some("sinse=1h"), &["since"]).unwrap_err().1.contains("sinse"));
        for broken in ["since=%", "since=%4", "since=%zz", "since=%ff"] {
            assert!(fields(Some(broken), &["since"]).is_err(), "{broken}");
        }
        assert!(fields(None, &[]).unwrap().is_empty());
    }

    #[test]
    fn a_moment_is_a_time_or_how_long_ago() {
        assert_eq!(moment("since", "1970-01-01T00:00:01.500Z").unwrap(), 1_500);
        let (hour, day) = (moment("since", "1h").unwrap(), moment("since", "24h").unwrap());
        assert!((hour - day).abs_diff(23 * 3_600_000) < 60_000);
        for wrong in ["", "soon", "1960-01-01T00:00:00Z", "99999999999999y"] {
            assert!(moment("since", wrong).unwrap_err().1.starts_with("since: "), "{wrong:?}");
        }
    }
}
