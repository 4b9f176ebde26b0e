//! Where a sprite lives: what the table says, and what a host has said beside it.
//!
//! What was computed before a hold may be wrong after it (`wake.md` §6), and a host may know of
//! a move before this edge's table does: then its word is a hint (`router/src/hints.rs`) and the request goes
//! where it leads. A word without a place says no more than that the table is worth waiting for.

use crate::error::RequestError;
use crate::worker::Edge;
use router::access::Access;
use router::names::SpriteName;
use router::route::{Generation, HostId, Route};
use router::table::Lookup;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long the table may be behind what a host says (chosen: far above the propagation of
/// every engine and the second of an unheard pair, far below a visitor's patience).
const BEHIND: Duration = Duration::from_secs(2);
/// Pause between two looks at it (chosen: the table is in memory).
const LOOK: Duration = Duration::from_millis(5);
/// Requests of this process that may wait so (chosen: as many as may be held). One more is refused at once.
const LOOKING_MAX: usize = 8_192;

/// The route is to be asked for again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// The placement a host knows of; 0 when it is this edge's own table that changed, or nobody knows.
    pub known: u64,
}

impl Elsewhere {
    /// Wherever it is by now.
    pub const UNKNOWN: Self = Self { known: 0 };
}

/// Where a sprite lives, as far as this edge knows. No lock, no allocation.
#[must_use]
pub fn lookup(edge: &Edge, name: &SpriteName) -> Lookup {
    match edge.table.lookup(name) {
        Lookup::Found(route) if !edge.hints.is_empty() => Lookup::Found(edge.hints.apply(Instant::now(), name, route)),
        found => found,
    }
}

/// The route as it is now, if it is another one than `before` to whoever is on the way.
#[must_use]
pub fn changed(edge: &Edge, name: &SpriteName, before: &Route) -> bool {
    match lookup(edge, name) {
        Lookup::Found(now) => {
            let closed = before.access == Access::Public && now.access != Access::Public;
            now.generation != before.generation || now.host != before.host || now.deleted || closed
        }
        Lookup::Unknown => true,
        // It was ready before.
        Lookup::NotReady => false,
    }
}

/// Host `asked` says that a sprite has moved to the host of this name.
pub fn hear_moved(edge: &Edge, name: &SpriteName, asked: HostId, to: &str, generation: u64) -> Elsewhere {
    let elsewhere = Elsewhere { known: generation };
    if !corrects() {
        return elsewhere;
    }
    let to = edge.hosts.as_ref().and_then(|hosts| hosts.all().into_iter().find(|row| row.name == to));
    if let (Some(to), Lookup::Found(route)) = (to, lookup(edge, name)) {
        let place = (to.number, Generation(generation));
        if edge.hints.moved(Instant::now(), name, &route, asked, place) {
            tracing::debug!(sprite = %name, host = to.name, generation, "it has moved, says the host it was on");
        }
    }
    elsewhere
}

/// Host `asked` has never heard of a sprite, or not of this placement: it is not asked again for a
/// second. The route stays, unless it was a hint that led there.
pub fn hear_nothing(edge: &Edge, name: &SpriteName, asked: HostId) -> Elsewhere {
    edge.hints.never_heard(Instant::now(), name, asked);
    Elsewhere::UNKNOWN
}

/// Host `asked` says that a sprite of this placement was destroyed. Believed of the host the table itself
/// names; else it is one that has never heard of it.
///
/// # Errors
/// [`RequestError::Gone`]: believed.
pub fn hear_gone(edge: &Edge, name: &SpriteName, asked: HostId, generation: u64) -> Result<Elsewhere, RequestError> {
    match edge.table.lookup(name) {
        Lookup::Found(route) if route.host == asked && route.generation.0 <= generation => Err(RequestError::Gone),
        Lookup::Found(_) | Lookup::NotReady => {
            edge.hints.forget(name, asked);
            Ok(hear_nothing(edge, name, asked))
        }
        Lookup::Unknown => Err(RequestError::Gone),
    }
}

/// Whether the host a route leads to is worth asking now.
#[must_use]
pub fn is_unheard(edge: &Edge, name: &SpriteName, host: HostId) -> bool {
    edge.hints.is_unheard(Instant::now(), name, host)
}

/// Waits until the placement a host spoke of is known here, and gives the request its new
/// route, by the rules that hold now.
///
/// # Errors
/// [`RequestError::HopBudget`] when it is not learnt in time, or too many wait;
/// [`RequestError::Gone`], [`RequestError::Unauthorized`] when that is what the new one says.
///
/// # Cancel safety
/// Holds no state but its place among those who wait, which is freed.
pub async fn again(
    edge: &Edge,
    name: &SpriteName,
    Elsewhere { known }: Elsewhere,
    authenticated: bool,
    deadline: Option<Instant>,
) -> Result<Route, RequestError> {
    if !corrects() {
        return Err(RequestError::HopBudget);
    }
    let _place = Looking::begin(&edge.looking).ok_or(RequestError::HopBudget)?;
    let until = Instant::now() + BEHIND;
    let until = deadline.map_or(until, |deadline| until.min(deadline));
    loop {
        match lookup(edge, name) {
            Lookup::Found(route) if route.generation.0 >= known && !is_unheard(edge, name, route.host) => {
                return admitted(route, authenticated);
            }
            Lookup::Unknown => return Err(RequestError::Gone),
            Lookup::Found(_) | Lookup::NotReady if Instant::now() >= until => return Err(RequestError::HopBudget),
            Lookup::Found(_) | Lookup::NotReady => tokio::time::sleep(LOOK).await,
        }
    }
}

/// A place among those who wait; dropping it frees it.
struct Looking<'a>(&'a AtomicUsize);

impl<'a> Looking<'a> {
    fn begin(count: &'a AtomicUsize) -> Option<Self> {
        let place = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < LOOKING_MAX).then_some(place)
    }
}

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether requests follow a sprite that has moved. A debug build can be told not to, so that a test can show
/// what this is for (`tests/e2e/moves.rs`).
fn corrects() -> bool {
    !cfg!(debug_assertions) || std::env::var_os("EDGE_PROXY_TEST_UNCORRECTED").is_none()
}

/// Its credentials were checked when it came; what was public then may be private now.
fn admitted(route: Route, authenticated: bool) -> Result<Route, RequestError> {
    match route.access {
        Access::Private(_) if !authenticated => Err(RequestError::Unauthorized),
        _ if route.deleted => Err(RequestError::Gone),
        _ => Ok(route),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use router::access::Private;
    use router::route::{Generation, HostId, Tenant};
    use std::sync::Arc;

    fn route(generation: u64, access: Access) -> Route {
        Route {
            generation: Generation(generation),
            host: HostId(0),
            tenant: Tenant::default(),
            access,
            wake: None,
            ports: [].into(),
            client_certificate: None,
            deleted: false,
        }
    }

    #[test]
    fn no_more_wait_than_may() {
        let count = AtomicUsize::new(LOOKING_MAX - 1);
        let last = Looking::begin(&count);
        assert!(last.is_some() && Looking::begin(&count).is_none());
        drop(last);
        assert!(Looking::begin(&count).is_some());
        assert_eq!(count.into_inner(), LOOKING_MAX - 1);
    }

    #[test]
    fn what_was_public_is_refused_once_it_is_private_to_who_brought_nothing() {
        let private = || Access::Private(Arc::new(Private::default()));
        assert!(matches!(admitted(route(1, private()), false), Err(RequestError::Unauthorized)));
        assert!(admitted(route(1, private()), true).is_ok());
        assert!(admitted(route(1, Access::Public), false).is_ok());
        let gone = Route { deleted: true, ..route(1, Access::Public) };
        assert!(matches!(admitted(gone, false), Err(RequestError::Gone)));
    }
}
