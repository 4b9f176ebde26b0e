//! Where a sprite lives, asked again: after a hold, and when a host says that it is elsewhere.
//!
//! What was computed before a hold may be wrong after it (`wake.md` §6), and a host may know of
//! a move before this edge's table does. Only the table retargets: a host's word says no more
//! than that it is worth waiting for.

use crate::error::RequestError;
use crate::worker::Edge;
use router::access::Access;
use router::names::SpriteName;
use router::route::Route;
use router::table::Lookup;
use std::time::{Duration, Instant};

/// How long the table may be behind what a host says (chosen: far above the propagation of
/// every engine, far below a visitor's patience).
const BEHIND: Duration = Duration::from_secs(2);
/// Pause between two looks at it (chosen: the table is in memory).
const LOOK: Duration = Duration::from_millis(5);

/// The route is to be asked for again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// The placement a host knows of; 0 when it is this edge's own table that changed.
    pub known: u64,
}

/// The route as it is now, if it is another one than `before` to whoever is on the way.
#[must_use]
pub fn changed(edge: &Edge, name: &SpriteName, before: &Route) -> bool {
    match edge.table.lookup(name) {
        Lookup::Found(now) => {
            let closed = before.access == Access::Public && now.access != Access::Public;
            now.generation != before.generation || now.host != before.host || now.deleted || closed
        }
        Lookup::Unknown => true,
        // It was ready before.
        Lookup::NotReady => false,
    }
}

/// Waits until the table knows the placement a host spoke of, and gives the request its new
/// route, by the rules that hold now.
///
/// # Errors
/// [`RequestError::HopBudget`] when the table does not learn of one in time;
/// [`RequestError::Gone`], [`RequestError::Unauthorized`] when that is what the new one says.
///
/// # Cancel safety
/// Holds no state.
pub async fn again(
    edge: &Edge,
    name: &SpriteName,
    Elsewhere { known }: Elsewhere,
    authenticated: bool,
    deadline: Option<Instant>,
) -> Result<Route, RequestError> {
    let until = Instant::now() + BEHIND;
    let until = deadline.map_or(until, |deadline| until.min(deadline));
    loop {
        match edge.table.lookup(name) {
            Lookup::Found(route) if route.generation.0 >= known => return admitted(route, authenticated),
            Lookup::Unknown => return Err(RequestError::Gone),
            Lookup::Found(_) | Lookup::NotReady if Instant::now() >= until => return Err(RequestError::HopBudget),
            Lookup::Found(_) | Lookup::NotReady => tokio::time::sleep(LOOK).await,
        }
    }
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
            deleted: false,
        }
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
