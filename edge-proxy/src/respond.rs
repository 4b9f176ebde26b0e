//! Every failure ends here: an answer that says what happened, to a person or a program.
//!
//! RFC 9457 problem JSON for programs, a plain page for navigations, `Proxy-Status`
//! (RFC 9209) and `Server-Timing` for the engineer on call. Nothing here names a
//! host, an address or a generation.

use crate::body::EdgeBody;
use crate::error::{RequestError, Verdict};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use std::time::Duration;
use wakeup::hold::Woken;

/// Our name in `Via`, `Proxy-Status` and `CDN-Loop`.
pub const PRODUCT: &str = "edge-proxy";

/// `Sprite-Wake`: how the sprite came to run for this request.
pub const SPRITE_WAKE: HeaderName = HeaderName::from_static("sprite-wake");
/// Its value for a wake that was to be warm and lost what the sprite had in memory.
pub const LOST_MEMORY: &str = "cold; lost-memory";
/// `Proxy-Status` (RFC 9209).
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
/// `Server-Timing` (W3C).
pub const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// The request's id, out to the sprite and back to the client.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// When a stream of events comes back whose refusal says no time: its sprite is stopped until
/// somebody starts it (chosen).
const COME_BACK_UNTOLD: Duration = Duration::from_secs(60);

/// Who reads the answer: a person navigating, or a program (`wake.md` §7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Gets a page.
    Person,
    /// Gets problem JSON.
    Program,
    /// A gRPC client: gets a status it understands.
    Grpc,
}

impl Reader {
    /// Fetch metadata decides where it exists, `Accept` elsewhere; never the user agent.
    #[must_use]
    pub fn of(method: &Method, headers: &HeaderMap) -> Self {
        if headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
            return Self::Grpc;
        }
        let readable = *method == Method::GET || *method == Method::HEAD;
        if let Some(mode) = headers.get("sec-fetch-mode") {
            return if readable && mode == "navigate" { Self::Person } else { Self::Program };
        }
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
        if prefers_html(accept) { Self::Person } else { Self::Program }
    }
}

/// Whether `text/html` is named with a weight not below JSON's.
fn prefers_html(accept: &str) -> bool {
    let weight = |wanted: &str| {
        accept.split(',').find_map(|part| {
            let mut pieces = part.split(';').map(str::trim);
            (pieces.next()?.eq_ignore_ascii_case(wanted))
                .then(|| pieces.find_map(|p| p.strip_prefix("q=").and_then(|q| q.parse::<f32>().ok())).unwrap_or(1.0))
        })
    };
    match (weight("text/html"), weight("application/json")) {
        (Some(html), Some(json)) => html > 0.0 && html >= json,
        (Some(html), None) => html > 0.0,
        (None, _) => false,
    }
}

/// The answer to a failed request.
#[must_use]
pub fn failure(error: &RequestError, reader: Reader, request_id: &str, held: Option<Duration>) -> Response<EdgeBody> {
    let verdict = error.verdict().for_request(request_id);
    let (content_type, text) = match reader {
        Reader::Person => ("text/html; charset=utf-8", page(&verdict, request_id)),
        Reader::Program => ("application/problem+json", problem(&verdict, request_id)),
        Reader::Grpc => ("application/grpc", String::new()),
    };
    let mut response = Response::new(EdgeBody::full(text.into()));
    *response.status_mut() = StatusCode::from_u16(verdict.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    if reader == Reader::Grpc {
        tell_grpc(headers, &verdict);
        *response.status_mut() = StatusCode::OK;
    }
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("Accept, Sec-Fetch-Mode"));
    if reader == Reader::Person {
        headers.insert("x-robots-tag", HeaderValue::from_static("noindex"));
    }
    if verdict.status == 401 {
        // RFC 9110 §11.6.1 asks for a challenge.
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"sprite\""));
    }
    if verdict.retry_after > 0 {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(verdict.retry_after));
    }
    if let Some(held) = held {
        insert(headers, SERVER_TIMING, &format!("hold;dur={:.1}", millis(held)));
    }
    mark(headers, verdict.proxy_error, verdict.code, request_id);
    response
}

/// The answer to a stream of events that cannot be served now: an empty one that says when to come
/// back, because `EventSource` never does after a failure (HTML, "server-sent events": any status
/// but 200 ends it). `None` for a failure that another try does not change.
#[must_use]
pub fn come_back(error: &RequestError, request_id: &str, held: Option<Duration>) -> Option<Response<EdgeBody>> {
    let verdict = error.verdict().for_request(request_id);
    if !matches!(verdict.status, 503 | 504) {
        return None;
    }
    let pause = if verdict.retry_after == 0 { COME_BACK_UNTOLD } else { Duration::from_secs(verdict.retry_after) };
    let text = format!("retry: {}\n\n", pause.as_millis());
    let mut response = Response::new(EdgeBody::full(text.into()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    if let Some(held) = held {
        insert(headers, SERVER_TIMING, &format!("hold;dur={:.1}", millis(held)));
    }
    mark(headers, verdict.proxy_error, verdict.code, request_id);
    Some(response)
}

/// `Strict-Transport-Security` for so long (RFC 6797 §6.1), none for no time. Without `includeSubDomains`: there is nothing
/// below a sprite's name.
#[must_use]
pub fn hsts(age: Duration) -> Option<HeaderValue> {
    let value = HeaderValue::from_str(&format!("max-age={}", age.as_secs())).ok();
    value.filter(|_| age.as_secs() > 0)
}

/// What every answer of our own carries: what went wrong, the request's id, and that nobody
/// may keep it.
pub fn mark(headers: &mut HeaderMap, proxy_error: &str, code: &str, request_id: &str) {
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    insert(headers, PROXY_STATUS, &format!("{PRODUCT}; error={proxy_error}; details=\"{code}\""));
    insert(headers, REQUEST_ID, request_id);
}

/// Trailers without content in front, which is how gRPC says that a call failed before it
/// began ("Trailers-Only"); the HTTP status is 200 then.
fn tell_grpc(headers: &mut HeaderMap, verdict: &Verdict) {
    // The sentences are plain ASCII without '%', so nothing of them needs encoding.
    headers.insert("grpc-message", HeaderValue::from_static(verdict.sentence));
    headers.insert("grpc-status", HeaderValue::from(grpc_status(verdict.status)));
    if verdict.retry_after > 0 {
        headers.insert("grpc-retry-pushback-ms", HeaderValue::from(verdict.retry_after * 1000));
    }
}

/// gRPC's own mapping of HTTP statuses, but for a deadline, which it has a word for.
const fn grpc_status(status: u16) -> u16 {
    match status {
        400 => 13,       // INTERNAL
        401 => 16,       // UNAUTHENTICATED
        403 => 7,        // PERMISSION_DENIED
        404 | 410 => 12, // UNIMPLEMENTED
        504 => 4,        // DEADLINE_EXCEEDED
        _ => 14,         // UNAVAILABLE
    }
}

/// Adds what a held answer tells about its wake: `Sprite-Wake`, `Server-Timing`, `Proxy-Status`.
pub fn tell_wake(headers: &mut HeaderMap, woken: &Woken, held: Duration, connect: Duration) {
    insert(headers, SPRITE_WAKE, if woken.lost_memory { LOST_MEMORY } else { woken.kind.as_str() });
    let desc = if woken.joined { "joined" } else { woken.kind.as_str() };
    let timing = format!(
        "hold;dur={:.1}, wake;dur={};desc=\"{desc}\", connect;dur={:.1}",
        millis(held),
        woken.wake_ms,
        millis(connect)
    );
    // The app's own Server-Timing lines stay; ours is one more.
    if let Ok(value) = HeaderValue::from_str(&timing) {
        headers.append(SERVER_TIMING, value);
    }
    insert(headers, PROXY_STATUS, &format!("{PRODUCT}; details=\"woken {}\"", woken.kind.as_str()));
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// RFC 9457 members; below 1 KiB by construction.
fn problem(verdict: &Verdict, request_id: &str) -> String {
    let mut object = serde_json::json!({
        "type": "about:blank",
        "title": reason(verdict.status),
        "status": verdict.status,
        "code": verdict.code,
        "detail": verdict.sentence,
        "request_id": request_id,
    });
    if verdict.retry_after > 0 {
        object["retry_after"] = verdict.retry_after.into();
    }
    format!("{object}\n")
}

/// A plain page without script, style sheet or outside reference.
fn page(verdict: &Verdict, request_id: &str) -> String {
    let again = if verdict.retry_after > 0 {
        format!("<p>Trying again in {} s makes sense.</p>", verdict.retry_after)
    } else {
        String::new()
    };
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{status} {reason}</title></head><body><h1>{status} {reason}</h1><p>{sentence}</p>{again}\
         <p><small>{code} &middot; request {request_id}</small></p></body></html>\n",
        status = verdict.status,
        reason = reason(verdict.status),
        sentence = verdict.sentence,
        code = verdict.code,
    )
}

fn reason(status: u16) -> &'static str {
    StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Error")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(method: Method, headers: &[(&'static str, &'static str)]) -> Reader {
        let headers = headers.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect();
        Reader::of(&method, &headers)
    }

    #[test]
    fn a_navigation_gets_a_page_and_everything_else_problem_json() {
        let html = "text/html,application/xhtml+xml,*/*;q=0.8";
        assert_eq!(reader(Method::GET, &[("sec-fetch-mode", "navigate")]), Reader::Person);
        assert_eq!(reader(Method::POST, &[("sec-fetch-mode", "navigate")]), Reader::Program);
        assert_eq!(reader(Method::GET, &[("sec-fetch-mode", "cors"), ("accept", html)]), Reader::Program);
        assert_eq!(reader(Method::GET, &[("accept", html)]), Reader::Person);
        assert_eq!(reader(Method::GET, &[("accept", "application/json, text/html;q=0.5")]), Reader::Program);
        assert_eq!(reader(Method::GET, &[("accept", "*/*")]), Reader::Program);
        assert_eq!(reader(Method::GET, &[]), Reader::Program);
    }

    #[test]
    fn a_failure_says_what_and_when_to_try_again_and_stays_below_a_kibibyte() {
        for reader in [Reader::Person, Reader::Program] {
            let error = RequestError::Refused {
                cause: backhaul::wire::Cause::WakeFailed,
                retry_after: Duration::from_millis(1200),
                detail: "exit status 1".into(),
            };
            let response = failure(&error, reader, "abc", Some(Duration::from_millis(5)));
            assert_eq!(response.status(), 503);
            assert_eq!(response.headers()[header::RETRY_AFTER], "2");
            assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
            assert!(response.headers()[PROXY_STATUS].to_str().unwrap().contains("wake_failed"));
            assert!(problem(&error.verdict(), "abc").len() < 1024 && page(&error.verdict(), "abc").len() < 1024);
            assert!(!problem(&error.verdict(), "abc").contains("exit status"), "details are the operator's");
        }
    }
}
