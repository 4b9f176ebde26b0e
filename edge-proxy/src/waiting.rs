//! The page a person sees while a sprite takes long to wake, and the events that tell the
//! page when to reload (`wake.md` §7).
//!
//! Most wakes are over before anybody would read a page, so a navigation is held like any
//! other request first. Only when that takes long is it answered with the page; its place in
//! the flight stays taken. The page listens to [`PATH`] and reloads once. Listening wakes
//! nothing, is no activity, and needs the same credentials as the sprite itself.

use crate::body::EdgeBody;
use crate::error::RequestError;
use crate::respond;
use crate::worker::Worker;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, header};
use router::names::SpriteName;
use router::route::Route;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};
use wakeup::hold::{HoldError, Turn, Woken};

/// Where the page listens. Answered by the edge whatever state the sprite is in.
pub const PATH: &str = "/.well-known/edge-proxy/waiting";
/// How long a navigation is held before it is answered with the page (`wake.md` §7).
const PATIENCE: Duration = Duration::from_secs(3);
/// A wake that the owner thinks will take longer gets the page at once (`wake.md` §7).
const LONG_WAKE: Duration = Duration::from_secs(5);
/// When the owner's estimate is looked at (chosen: longer than any round trip to it).
const ESTIMATE_AFTER: Duration = Duration::from_millis(300);
/// Longest the page's interest and its listening last (`wake.md` §7).
pub const INTEREST: Duration = Duration::from_secs(60);
/// A comment goes to the page this often, or something between would think it dead (chosen).
const COMMENT_EVERY: Duration = Duration::from_secs(15);

/// The page's whole programme. Its hash is in the policy below; nothing else may run.
const SCRIPT: &str = include_str!("waiting.js");

/// Whether a request may be answered with the page: only navigations, which can be repeated.
pub fn may_show(parts: &Parts, route: &Route) -> bool {
    let wanted = route.wake.as_deref().is_none_or(|rules| rules.waiting_page);
    wanted && parts.method == Method::GET && parts.headers.get("sec-fetch-mode").is_some_and(|mode| mode == "navigate")
}

/// How a hold ended, or did not for so long that the page is due.
pub enum Waited {
    /// It ended.
    Ended(Result<(Woken, Turn), HoldError>),
    /// Its place stays taken; this is the answer.
    Page(Box<Response<EdgeBody>>),
}

/// Waits for `hold`, and gives up waiting for the page. The hold goes on without its request
/// then, so that the wake is not withdrawn.
pub async fn hold_or_page(
    worker: &Worker,
    name: &SpriteName,
    generation: u64,
    request_id: &str,
    hold: impl Future<Output = Result<(Woken, Turn), HoldError>> + 'static,
) -> Waited {
    let began = Instant::now();
    let mut hold = Box::pin(hold);
    for patience in [ESTIMATE_AFTER, PATIENCE] {
        match tokio::time::timeout_at(began + patience, &mut hold).await {
            Ok(ended) => return Waited::Ended(ended),
            Err(_) if worker.edge.waker.eta(name, generation) > LONG_WAKE => break,
            Err(_) => {}
        }
    }
    // Whoever waited for this page reloads, and that is a request of its own.
    tokio::task::spawn_local(async move { drop(hold.await) });
    Waited::Page(Box::new(page(worker.edge.waker.eta(name, generation), request_id)))
}

fn page(eta: Duration, request_id: &str) -> Response<EdgeBody> {
    let text = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Waking up</title></head><body><h1>Waking up</h1><p id=\"state\">This sprite slept. It is being woken, and \
         this page will show it.</p><noscript><p>Please reload in a moment.</p></noscript>\
         <p><small>request {request_id}</small></p><script>{SCRIPT}</script></body></html>\n"
    );
    let mut response = Response::new(EdgeBody::full(text.into()));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::RETRY_AFTER, HeaderValue::from(eta.as_secs().clamp(1, INTEREST.as_secs())));
    headers.insert(header::VARY, HeaderValue::from_static("Accept, Sec-Fetch-Mode"));
    headers.insert("x-robots-tag", HeaderValue::from_static("noindex"));
    if let Ok(policy) = HeaderValue::try_from(policy()) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    respond::mark(headers, "destination_unavailable", "waking", request_id);
    response
}

/// Nothing but the script above runs, and it speaks to its own origin only.
fn policy() -> String {
    use base64::Engine;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, SCRIPT.as_bytes());
    let hash = base64::engine::general_purpose::STANDARD.encode(digest);
    format!("default-src 'none'; script-src 'sha256-{hash}'; connect-src 'self'; frame-ancestors *")
}

/// The answer at [`PATH`]: `ready` once the sprite runs, `over` when nobody wakes it any more.
///
/// # Errors
/// [`RequestError::BadRequest`] for anything but a GET.
pub fn events(
    worker: &Worker,
    parts: &Parts,
    name: &SpriteName,
    generation: u64,
) -> Result<Response<EdgeBody>, RequestError> {
    if parts.method != Method::GET {
        return Err(RequestError::BadRequest("this path is for the waiting page"));
    }
    let waker = worker.edge.waker.clone();
    let name = name.clone();
    let watch = async move { waker.runs(&name, generation).await };
    let events = WaitingEvents {
        runs: Box::pin(watch),
        comment: Box::pin(sleep(Duration::ZERO)),
        end: Instant::now() + INTEREST,
        ended: false,
    };
    let mut response = Response::new(EdgeBody::Waiting(Box::new(events)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// The stream of events of one page.
pub struct WaitingEvents {
    runs: Pin<Box<dyn Future<Output = bool>>>,
    comment: Pin<Box<Sleep>>,
    end: Instant,
    ended: bool,
}

impl WaitingEvents {
    /// The next event, or a comment that keeps the connection; none at the end.
    pub fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(runs) = self.runs.as_mut().poll(cx) {
            self.ended = true;
            let event: &[u8] = if runs { b"event: ready\ndata:\n\n" } else { b"event: over\ndata:\n\n" };
            return Poll::Ready(Some(Bytes::from_static(event)));
        }
        if self.comment.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        if Instant::now() >= self.end {
            self.ended = true;
            return Poll::Ready(Some(Bytes::from_static(b"event: over\ndata:\n\n")));
        }
        let next = (Instant::now() + COMMENT_EVERY).min(self.end);
        self.comment.as_mut().reset(next);
        // Polled once more, so that the timer knows whom to wake.
        let _ = self.comment.as_mut().poll(cx);
        Poll::Ready(Some(Bytes::from_static(b": waiting\n\n")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_names_the_script_that_is_there() {
        assert!(policy().contains("sha256-") && policy().contains("default-src 'none'"));
        assert!(SCRIPT.contains(PATH), "the script listens where the edge answers");
        assert!(!SCRIPT.contains("</script"));
    }
}
