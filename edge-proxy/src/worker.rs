//! What requests share: [`Edge`] by all cores of the process, [`Worker`] by one core.

use crate::from_cas::FromCas;
use crate::respond;
use crate::upstream::GuestPool;
use backhaul::Backhaul;
use config::Limits;
use http::HeaderValue;
use router::hints::Hints;
use router::hosts::HostTable;
use router::names::Suffix;
use router::regions::{DomainRegions, Routes};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use wakeup::hold::{Damping, SourceBudget, Waker};
use wakeup::metrics::EdgeMetrics;

/// The edge of one process. Read by every core, written by none of them on the warm path.
pub struct Edge {
    pub(crate) table: Arc<Routes>,
    /// What hosts say beside it; [`crate::resolve::lookup`] puts the two together.
    pub(crate) hints: Hints,
    pub(crate) hosts: Option<Arc<HostTable>>,
    /// Requests that wait for the table to learn where their sprite is.
    pub(crate) looking: AtomicUsize,
    pub(crate) waker: Waker,
    pub(crate) backhaul: Backhaul,
    pub(crate) domains: Arc<DomainRegions>,
    pub(crate) hold_timeout: Duration,
    pub(crate) unknown_as_private: bool,
    /// What answers under our own names say of HTTPS, if anything.
    pub(crate) hsts: Option<HeaderValue>,
    pub(crate) wake_at_client_hello: bool,
    pub(crate) budget: SourceBudget,
    pub(crate) damping: Damping,
    pub(crate) metrics: EdgeMetrics,
    from_cas: OnceLock<Arc<FromCas>>,
    suffixes: Vec<Suffix>,
    limits: Limits,
    handshake_timeout: Duration,
    connections: AtomicUsize,
    drain: watch::Sender<bool>,
    stop: watch::Sender<bool>,
}

/// What an [`Edge`] is made of.
pub struct EdgeParts {
    /// Where every sprite lives.
    pub table: Arc<Routes>,
    /// The hosts of the fleet; none for a machine that stands alone.
    pub hosts: Option<Arc<HostTable>>,
    /// The holds of this process.
    pub waker: Waker,
    /// The way to the worker hosts.
    pub backhaul: Backhaul,
    /// Names we serve are one label under one of these.
    pub suffixes: Vec<Suffix>,
    /// Whole host names that lead to one sprite.
    pub domains: Arc<DomainRegions>,
    /// Bounds of client connections.
    pub limits: Limits,
    /// From accept to the end of the TLS handshake.
    pub handshake_timeout: Duration,
    /// Longest hold of a request that sets no shorter deadline itself.
    pub hold_timeout: Duration,
    /// How long browsers are to ask for our own names by HTTPS alone; 0: they are not told.
    pub hsts: Duration,
    /// A name that does not exist is answered as a private one.
    pub unknown_as_private: bool,
    /// A ClientHello may begin the wake of a public sprite.
    pub wake_at_client_hello: bool,
    /// Wakes each client's network may waste.
    pub budget: SourceBudget,
}

impl Edge {
    /// Puts the parts together.
    #[must_use]
    pub fn new(parts: EdgeParts) -> Arc<Self> {
        Arc::new(Self {
            table: parts.table,
            hints: Hints::default(),
            hosts: parts.hosts,
            looking: AtomicUsize::new(0),
            waker: parts.waker,
            backhaul: parts.backhaul,
            domains: parts.domains,
            hold_timeout: parts.hold_timeout,
            unknown_as_private: parts.unknown_as_private,
            hsts: respond::hsts(parts.hsts),
            wake_at_client_hello: parts.wake_at_client_hello,
            budget: parts.budget,
            damping: Damping::default(),
            metrics: EdgeMetrics::default(),
            from_cas: OnceLock::new(),
            suffixes: parts.suffixes,
            limits: parts.limits,
            handshake_timeout: parts.handshake_timeout,
            connections: AtomicUsize::new(0),
            drain: watch::Sender::new(false),
            stop: watch::Sender::new(false),
        })
    }

    /// From now on challenges of these CAs are answered.
    pub(crate) fn answer_for(&self, from_cas: Arc<FromCas>) {
        // There is one in a process.
        let _ = self.from_cas.set(from_cas);
    }

    /// Whose challenges are answered, if anybody's.
    pub(crate) fn challenged(&self) -> Option<&FromCas> {
        self.from_cas.get().map(|from_cas| &**from_cas)
    }

    /// Stops accepting and lets connections finish what they have begun.
    pub fn drain(&self) {
        self.drain.send_replace(true);
        self.waker.drain();
    }

    /// Resolves once [`Edge::drain`] was called. Cancel safe.
    pub async fn draining(&self) {
        let mut drain = self.drain.subscribe();
        // The sender lives in self: an error cannot happen while we borrow it.
        let _ = drain.wait_for(|draining| *draining).await;
    }

    /// Ends the workers, with whatever they still have.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Resolves once [`Edge::stop`] was called. Cancel safe.
    pub async fn stopped(&self) {
        let mut stop = self.stop.subscribe();
        let _ = stop.wait_for(|stopped| *stopped).await;
    }

    /// A place among `limits.connections`, or `None` when all are taken.
    #[must_use]
    pub fn admit_connection(self: &Arc<Self>) -> Option<ConnectionPermit> {
        if self.connections.fetch_add(1, Ordering::Relaxed) >= self.limits.connections {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(ConnectionPermit(Arc::clone(self)))
    }

    /// Client connections at this moment.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub(crate) fn suffixes(&self) -> &[Suffix] {
        &self.suffixes
    }

    pub(crate) const fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) const fn handshake_timeout(&self) -> Duration {
        self.handshake_timeout
    }
}

/// One admitted client connection; dropping it frees the place.
pub struct ConnectionPermit(Arc<Edge>);

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One core's share: its pool of idle guest streams, reached without a lock.
pub struct Worker {
    pub(crate) edge: Arc<Edge>,
    pub(crate) pool: Rc<GuestPool>,
}

impl Worker {
    /// A core's share of `edge`, with an empty pool.
    #[must_use]
    pub fn new(edge: Arc<Edge>) -> Self {
        Self { edge, pool: Rc::new(GuestPool::new()) }
    }
}
