//! Wake it: the request waits at the edge until its sprite runs, its time is up, or its
//! client leaves. Not a byte of its body is read meanwhile, and nothing is sent.

use crate::client::Client;
use crate::error::RequestError;
use crate::forward::Guest;
use crate::request::Exchange;
use crate::worker::Worker;
use backhaul::wire::ClientClass;
use http::request::Parts;
use router::names::SpriteName;
use router::route::Route;
use std::rc::Rc;
use std::time::{Duration, Instant};
use wakeup::hold::{HoldError, HoldRequest};

/// Holds the request and returns the way to the guest that runs then.
///
/// # Errors
/// What ended the hold, or [`RequestError::ClientGone`].
pub async fn wake(
    worker: &Rc<Worker>,
    client: &Client,
    exchange: &mut Exchange<'_>,
    name: &SpriteName,
    route: &Route,
    port: u16,
) -> Result<Guest, RequestError> {
    let began = Instant::now();
    // A second hold of the same request (it lost a race with sleep) has what is left of the first.
    let deadline =
        *exchange.deadline.get_or_insert_with(|| began + patience(&exchange.parts, worker.edge.hold_timeout));
    let hold = worker.edge.waker.hold(HoldRequest {
        name: name.clone(),
        route: route.clone(),
        port,
        deadline,
        client: client.peer.ip(),
        client_class: class(&exchange.parts),
        reason: format!("http {}", exchange.parts.method),
    });
    let woken = tokio::select! {
        biased;
        woken = hold => woken,
        () = client.gone() => return Err(RequestError::ClientGone),
    };
    exchange.held = Some(exchange.held.unwrap_or_default() + began.elapsed());
    let woken = woken.map_err(|error| match error {
        HoldError::Gone { .. } => RequestError::Gone,
        error => RequestError::Hold(error),
    })?;
    let guest = Guest::fresh(name.clone(), route, port, woken.run);
    exchange.woken = Some(woken);
    Ok(guest)
}

/// The client's own patience (`Prefer: wait=`, RFC 7240 §4.3) if it is shorter than ours.
fn patience(parts: &Parts, ours: Duration) -> Duration {
    let asked = parts
        .headers
        .get_all("prefer")
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split([',', ';']))
        .find_map(|token| token.trim().strip_prefix("wait=")?.parse().ok())
        .map(Duration::from_secs);
    asked.map_or(ours, |asked| asked.min(ours))
}

fn class(parts: &Parts) -> ClientClass {
    match parts.headers.get("sec-fetch-mode") {
        Some(mode) if mode == "navigate" => ClientClass::Navigation,
        _ => ClientClass::Anonymous,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_shorten_the_hold_and_never_lengthen_it() {
        let patience_of = |prefer: &'static str| {
            let request = http::Request::builder().header("prefer", prefer).body(()).unwrap();
            patience(&request.into_parts().0, Duration::from_secs(30))
        };
        assert_eq!(patience_of("respond-async, wait=5"), Duration::from_secs(5));
        assert_eq!(patience_of("wait=500"), Duration::from_secs(30));
        assert_eq!(patience_of("wait=x"), Duration::from_secs(30));
    }
}
