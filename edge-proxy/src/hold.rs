//! Wake it: the request waits at the edge until its sprite runs, its time is up, or its
//! client leaves. Not a byte of its body is read meanwhile, and nothing is sent.

use crate::asleep::Way;
use crate::client::Client;
use crate::client_class;
use crate::error::RequestError;
use crate::forward::Guest;
use crate::request::{Destination, Exchange};
use crate::resolve::{self, Elsewhere};
use crate::waiting::{self, Waited};
use crate::worker::Worker;
use http::request::Parts;
use http::{HeaderValue, Uri, Version, header};
use std::rc::Rc;
use std::time::{Duration, Instant};
use wakeup::hold::{Fared, HoldError, HoldRequest};
use wakeup::metrics::{EdgeMetrics, HoldOutcome};

/// Memory of one header field besides its text, bytes (measured: two `Bytes` and the map's
/// entry of the `http` crate).
const FIELD_BYTES: usize = 104;
/// Longest hold of a request for an event stream, and the cap of every hold (`wake.md` §6).
const EVENT_STREAM_HOLD: Duration = Duration::from_secs(60);

/// Holds the request and returns the way to the guest that runs then, or the waiting page.
///
/// # Errors
/// What ended the hold, or [`RequestError::ClientGone`].
pub async fn wake(
    worker: &Rc<Worker>,
    client: &Client,
    exchange: &mut Exchange<'_>,
    to: Destination<'_>,
) -> Result<Way, RequestError> {
    let began = Instant::now();
    if exchange.parts.version < Version::HTTP_2 {
        let_go_of_buffer(&mut exchange.parts);
    }
    // A second hold of the same request (it lost a race with sleep) has what is left of the first.
    let may_show = waiting::may_show(&exchange.parts, to.route);
    // Who is given the page is interested for as long as it listens.
    let ours = if may_show { waiting::INTEREST } else { worker.edge.hold_timeout };
    let deadline = *exchange.deadline.get_or_insert_with(|| began + patience(&exchange.parts, ours));
    let request = HoldRequest {
        name: to.name.clone(),
        route: to.route.clone(),
        port: to.port,
        deadline,
        client: client.peer.ip(),
        client_class: client_class::of(&exchange.parts, exchange.authenticated),
        reason: format!("http {}", exchange.parts.method),
        bytes: connection_bytes(exchange.parts.version) + head_bytes(&exchange.parts),
    };
    let waker = worker.edge.waker.clone();
    let hold = async move { waker.hold(request).await };
    let waited = async {
        match may_show {
            true => waiting::hold_or_page(worker, to.name, to.route.generation.0, exchange.id.as_str(), hold).await,
            false => Waited::Ended(hold.await),
        }
    };
    let waited = tokio::select! {
        biased;
        waited = waited => waited,
        () = client.gone() => {
            worker.edge.metrics.held(HoldOutcome::ClientGone, began.elapsed(), false);
            return Err(RequestError::ClientGone);
        }
    };
    count(&worker.edge.metrics, began.elapsed(), &waited);
    exchange.held = Some(exchange.held.unwrap_or_default() + began.elapsed());
    let woken = match waited {
        Waited::Ended(woken) => woken,
        Waited::Page(page) => return Ok(Way::Answered(page)),
    };
    let (woken, turn) = match woken {
        Ok(woken) => woken,
        Err(HoldError::Moved { host, generation }) => {
            let elsewhere = resolve::hear_moved(&worker.edge, to.name, to.route.host, &host, generation);
            return Ok(Way::Elsewhere(elsewhere));
        }
        Err(HoldError::Unknown { my_generation }) if my_generation > to.route.generation.0 => {
            return Ok(Way::Elsewhere(Elsewhere { known: my_generation }));
        }
        Err(HoldError::Unknown { .. }) => {
            return Ok(Way::Elsewhere(resolve::hear_nothing(&worker.edge, to.name, to.route.host)));
        }
        // Destroyed; perhaps made again since.
        Err(HoldError::Gone { .. }) if resolve::changed(&worker.edge, to.name, to.route) => {
            return Ok(Way::Elsewhere(Elsewhere::UNKNOWN));
        }
        Err(HoldError::Gone { generation }) => {
            return resolve::hear_gone(&worker.edge, to.name, to.route.host, generation).map(Way::Elsewhere);
        }
        Err(error) => return Err(RequestError::Hold(error)),
    };
    if resolve::changed(&worker.edge, to.name, to.route) {
        // It moved while the request waited: what was computed before counts no more.
        turn.end(Fared::Asleep);
        return Ok(Way::Elsewhere(Elsewhere::UNKNOWN));
    }
    let guest = Guest::fresh(to, woken.run);
    exchange.woken = Some(woken);
    exchange.turn = Some(turn);
    Ok(Way::Guest(guest))
}

/// Copies what the head has of hyper's read buffer. Hyper reads on meanwhile, to see the client
/// leave; while pieces of the buffer are in use it makes another one for that, 8 KiB.
fn let_go_of_buffer(parts: &mut Parts) {
    for value in parts.headers.values_mut() {
        let Ok(mut copy) = HeaderValue::from_bytes(value.as_bytes()) else { continue };
        copy.set_sensitive(value.is_sensitive());
        *value = copy;
    }
    if let Ok(copy) = Uri::try_from(parts.uri.to_string()) {
        parts.uri = copy;
    }
}

/// What a held request's share of its connection takes, bytes: the bounds its memory is held
/// to (`wake.md`, test 15).
const fn connection_bytes(version: Version) -> usize {
    match version {
        Version::HTTP_2 => 16 * 1024,
        _ => 32 * 1024,
    }
}

fn count(metrics: &EdgeMetrics, held: Duration, waited: &Waited) {
    let (outcome, joined) = match waited {
        Waited::Ended(Ok((woken, _))) => (HoldOutcome::Released, woken.joined),
        Waited::Ended(Err(HoldError::Deadline { .. })) => (HoldOutcome::Deadline, false),
        Waited::Ended(Err(_)) => (HoldOutcome::Refused, false),
        Waited::Page(_) => (HoldOutcome::Page, false),
    };
    metrics.held(outcome, held, joined);
    if let Waited::Ended(Ok((woken, _))) = waited {
        metrics.let_go(woken.window);
    }
}

/// What the head of a request takes, bytes: names and values, and what holds them.
fn head_bytes(parts: &Parts) -> usize {
    let lines: usize = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_BYTES).sum();
    parts.uri.path_and_query().map_or(0, |target| target.as_str().len()) + lines
}

/// The client's own patience (`Prefer: wait=`, RFC 7240 §4.3; `grpc-timeout`) if it is
/// shorter than ours. An event stream gets the cap of every hold: its client cannot retry
/// a refusal by itself (`wake.md` §7).
fn patience(parts: &Parts, ours: Duration) -> Duration {
    let streams = parts.headers.get(header::ACCEPT).is_some_and(|accept| accept == "text/event-stream");
    let ours = if streams { EVENT_STREAM_HOLD.max(ours) } else { ours };
    let waits = parts
        .headers
        .get_all("prefer")
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split([',', ';']))
        .find_map(|token| token.trim().strip_prefix("wait=")?.parse().ok())
        .map(Duration::from_secs);
    let grpc = parts.headers.get("grpc-timeout").and_then(|value| grpc_timeout(value.to_str().ok()?));
    [waits, grpc].into_iter().flatten().fold(ours, Duration::min)
}

/// At most 8 digits and a unit (gRPC over HTTP/2, "Timeout").
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_shorten_the_hold_and_never_lengthen_it() {
        let with = |name: &str, value: &str| {
            let request = http::Request::builder().header(name, value).body(()).unwrap();
            patience(&request.into_parts().0, Duration::from_secs(30))
        };
        let patience_of = |prefer: &str| with("prefer", prefer);
        assert_eq!(patience_of("respond-async, wait=5"), Duration::from_secs(5));
        assert_eq!(patience_of("wait=500"), Duration::from_secs(30));
        assert_eq!(patience_of("wait=x"), Duration::from_secs(30));
        for (timeout, expected) in [("5S", 5_000), ("1500m", 1_500), ("2M", 30_000), ("250000u", 250), ("1H", 30_000)] {
            assert_eq!(with("grpc-timeout", timeout), Duration::from_millis(expected), "{timeout}");
        }
        for nonsense in ["", "5", "S", "5s", "123456789S", "-5S", "5 S", "é"] {
            assert_eq!(with("grpc-timeout", nonsense), Duration::from_secs(30), "{nonsense}");
        }
        assert_eq!(with("accept", "text/event-stream"), Duration::from_secs(60));
    }

    #[test]
    fn a_held_head_keeps_nothing_of_the_buffer_it_was_read_into() {
        let buffer = bytes::Bytes::from(b"/path?query secret".to_vec());
        let mut value = HeaderValue::from_maybe_shared(buffer.slice(12..)).unwrap();
        value.set_sensitive(true);
        let request = http::Request::builder().header("cookie", value);
        let request = request.uri(Uri::from_maybe_shared(buffer.slice(..11)).unwrap()).body(()).unwrap();
        let mut parts = request.into_parts().0;
        assert!(!buffer.is_unique());
        let_go_of_buffer(&mut parts);
        assert!(buffer.is_unique());
        assert_eq!(
            (parts.uri.to_string().as_str(), &parts.headers["cookie"]),
            ("/path?query", &"secret".parse().unwrap())
        );
        assert!(parts.headers["cookie"].is_sensitive());
    }
}
