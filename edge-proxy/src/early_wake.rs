//! A wake that begins with the ClientHello: the name in it says who is about to be asked for, one
//! or two round trips before the request is here.
//!
//! Off unless `hold.wake_at_client_hello` says otherwise, because a handshake is no request: who only
//! looks at certificates would wake. It is for public sprites that any request wakes, and
//! paid for as a wake of its client's network: without a request it was wasted.

use crate::resolve;
use crate::target;
use crate::wake_attempt::WakeAttempt;
use crate::worker::Worker;
use backhaul::wire::ClientClass;
use router::access::Access;
use router::route::Route;
use router::table::Lookup;
use router::wake::WakePolicy;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;
use tokio::task::AbortHandle;
use wakeup::hold::HoldRequest;

/// Memory that is counted for one while it waits, bytes (chosen: a connection in its handshake).
const BYTES: usize = 16 * 1024;

/// A wake whose request has not come yet. Dropped, nobody came: the wake is withdrawn if
/// it still can be.
pub struct EarlyWake {
    worker: Rc<Worker>,
    attempt: Option<WakeAttempt>,
    hold: AbortHandle,
}

impl EarlyWake {
    /// Begins one for the name of a ClientHello, if it may be begun.
    #[must_use]
    pub fn begin(worker: &Rc<Worker>, client: IpAddr, server_name: &str) -> Option<Box<Self>> {
        let edge = &worker.edge;
        let (target, _) = target::resolve(server_name, edge).ok()?;
        let Lookup::Found(route) = resolve::lookup(edge, &target.name) else { return None };
        let port = target.port.unwrap_or(0);
        let declared = port == 0 || route.ports.contains(&port);
        if !declared || !any_request_wakes(&route) {
            return None;
        }
        let runs = edge.waker.view(&target.name, route.generation.0).is_some();
        // Who comes back by itself is told so by its request, and whoever wakes it already wakes it.
        if runs || edge.waker.is_waking(&target.name) || edge.damping.expects(Instant::now(), client, &target.name) {
            return None;
        }
        let attempt = WakeAttempt::early(worker, client).ok()?;
        let request = HoldRequest {
            name: target.name,
            route,
            port,
            deadline: Instant::now() + edge.handshake_timeout() + edge.limits().header_read_timeout,
            client,
            client_class: ClientClass::Anonymous,
            reason: "hello".into(),
            bytes: BYTES,
        };
        let waker = edge.waker.clone();
        // How it ended is told to the request, which joins it or finds the sprite running.
        let hold = tokio::task::spawn_local(async move { drop(waker.hold(request).await) }).abort_handle();
        edge.metrics.early("begun");
        Some(Box::new(Self { worker: Rc::clone(worker), attempt: Some(attempt), hold }))
    }

    /// Its request has come, and pays for it if it proves wasted.
    #[must_use]
    pub fn claim(mut self) -> Option<WakeAttempt> {
        self.attempt.take()
    }
}

impl Drop for EarlyWake {
    fn drop(&mut self) {
        match &self.attempt {
            // The hold goes on: it ends with the wake, and the request waits for the same one.
            None => self.worker.edge.metrics.early("used"),
            Some(_) => {
                self.hold.abort();
                self.worker.edge.metrics.early("wasted");
            }
        }
    }
}

/// Whether nothing of a request could make a difference.
fn any_request_wakes(route: &Route) -> bool {
    let any = route.wake.as_deref().is_none_or(|rules| rules.policy == WakePolicy::Any);
    any && route.access == Access::Public && !route.deleted
}
