//! What a request awaits: one lock for a moment at each end of a hold, a channel between
//! (`desk.rs`), with the backhaul and the timer of this process.

use super::core::{Arrival, Fared, FlightKey, Holds, OwnBounds};
use super::desk::{Desk, Post};
use super::{HoldError, HoldLimits};
use backhaul::wire::{ClientClass, OwnerMessage, ToEdge, ToOwner, WakeKind};
use backhaul::{Backhaul, EdgeEvents, Unreachable};
use router::names::SpriteName;
use router::route::{Generation, HostId, Route};
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Longest hold once draining has begun (`wake.md` §6).
const DRAIN_HOLD: Duration = Duration::from_secs(20);

/// One request that wants to wait.
#[derive(Clone, Debug)]
pub struct HoldRequest {
    /// For which sprite.
    pub name: SpriteName,
    /// Where the table says it lives.
    pub route: Route,
    /// 0 for its HTTP port.
    pub port: u16,
    /// When the request gives up.
    pub deadline: Instant,
    /// Whose request.
    pub client: IpAddr,
    /// See [`ClientClass`].
    pub client_class: ClientClass,
    /// For the receipt: "http GET".
    pub reason: String,
    /// Memory the request keeps while it waits.
    pub bytes: usize,
}

/// How a hold ended well.
#[derive(Clone, Copy, Debug)]
pub struct Woken {
    /// The life that runs now.
    pub run: u64,
    /// Its placement.
    pub generation: u64,
    /// How it came to run.
    pub kind: WakeKind,
    /// Another request or edge had begun the wake.
    pub joined: bool,
    /// How long this request waited.
    pub held: Duration,
    /// How long the owner needed, milliseconds.
    pub wake_ms: u32,
    /// It had slept warm, and what it had in memory is lost.
    pub lost_memory: bool,
    /// How many of those who were held might be on their way at once when it was let go.
    pub window: usize,
}

/// The holds of this process. Cheap to clone, usable from every core.
#[derive(Clone)]
pub struct Waker(Arc<Desk<Backhaul>>);

impl Post for Backhaul {
    fn send(&self, host: HostId, message: ToOwner) -> Result<(), Unreachable> {
        Self::send(self, host, message)
    }

    fn round_trip(&self, host: HostId) -> Duration {
        Self::round_trip(self, host)
    }
}

impl Waker {
    /// The holds over `backhaul`. Its timer runs on the current runtime until the last
    /// clone is dropped.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(limits: HoldLimits, backhaul: Backhaul) -> Self {
        let seed = u128::from(rand::random::<u64>()) << 64 | u128::from(rand::random::<u64>());
        let timer = Arc::new(Notify::new());
        let desk = Arc::new(Desk::new(Holds::new(limits, seed), backhaul.clone(), Arc::clone(&timer)));
        backhaul.set_events(Arc::new(Events(Arc::downgrade(&desk))));
        tokio::spawn(run_timer(Arc::downgrade(&desk), timer));
        Self(desk)
    }

    /// Waits until the sprite runs.
    ///
    /// All holds of one sprite share a single wake.
    ///
    /// # Errors
    /// [`HoldError`], at the request's deadline at the latest.
    ///
    /// # Cancel safety
    /// Dropping the future frees the place; the wake goes on for the others, and is
    /// withdrawn when there are none.
    pub async fn hold(&self, request: HoldRequest) -> Result<(Woken, Turn), HoldError> {
        self.hold_since(Instant::now(), request).await
    }

    /// [`Waker::hold`] for a request that came at `arrived` and is held a second time,
    /// because its sprite fell asleep on the way: what was learnt since then does not
    /// answer it without the owner being asked.
    ///
    /// # Errors
    /// [`HoldError`], at the request's deadline at the latest.
    ///
    /// # Cancel safety
    /// As [`Waker::hold`].
    pub async fn hold_since(&self, arrived: Instant, request: HoldRequest) -> Result<(Woken, Turn), HoldError> {
        let began = Instant::now();
        let HoldRequest { name, route, port, deadline, client, client_class: class, reason, bytes } = request;
        let key = FlightKey { name, generation: route.generation, port };
        let own = own_bounds(&route);
        let known_as = key.clone();
        let arrival = |id| Arrival {
            id,
            key: known_as,
            host: route.host,
            client,
            class,
            arrived,
            deadline,
            reason,
            tenant: route.tenant,
            bytes,
            own,
        };
        let (id, outcome) = self.0.wait(began, arrival).await;
        let (opened, window) = outcome?;
        let turn = Turn { waker: self.clone(), key, id, fared: Fared::Well };
        let woken = Woken {
            run: opened.run,
            generation: opened.generation,
            kind: opened.kind(),
            joined: opened.joined,
            held: began.elapsed(),
            wake_ms: opened.wake_ms,
            lost_memory: opened.lost_memory,
            window,
        };
        Ok((woken, turn))
    }

    /// The run this process believes to be running, if it learnt of it a short while ago.
    /// Takes no lock that a hold takes.
    #[must_use]
    pub fn view(&self, name: &SpriteName, generation: u64) -> Option<u64> {
        self.0.views.run(Instant::now(), name.as_str(), generation)
    }

    /// Remembers that a run runs.
    pub fn note_running(&self, name: &SpriteName, generation: u64, run: u64) {
        self.0.views.note(Instant::now(), name, generation, run);
    }

    /// Forgets a view that proved wrong.
    pub fn forget(&self, name: &SpriteName, run: u64) {
        self.0.views.forget(name.as_str(), run);
    }

    /// Whether requests are held for this sprite already.
    #[must_use]
    pub fn is_waking(&self, name: &SpriteName) -> bool {
        self.0.look(|holds| holds.is_waking(name))
    }

    /// How long the owner thinks that its wake will still take; zero when it does not say.
    #[must_use]
    pub fn eta(&self, name: &SpriteName, generation: u64) -> Duration {
        let eta = self.0.look(|holds| holds.eta(name, Generation(generation)));
        eta.map(|eta| eta.saturating_duration_since(Instant::now())).unwrap_or_default()
    }

    /// Waits until the sprite runs (`true`), or until nobody here waits for its wake any more.
    /// Wakes nothing and holds no place.
    ///
    /// # Cancel safety
    /// Holds no state but a place among the watchers, which is swept.
    pub async fn runs(&self, name: &SpriteName, generation: u64) -> bool {
        self.0.runs(name, generation).await
    }

    /// Requests held at this moment.
    #[must_use]
    pub fn held(&self) -> usize {
        self.0.look(Holds::held)
    }

    /// Refuses new holds; those there go on for a while.
    pub fn drain(&self) {
        self.0.drive(|holds| holds.handle_drain(Instant::now() + DRAIN_HOLD));
    }
}

/// A released request's turn: others may wait for it to be over. Dropped, it went well as far
/// as they are concerned.
pub struct Turn {
    waker: Waker,
    key: FlightKey,
    id: u64,
    fared: Fared,
}

impl Turn {
    /// What became of the request.
    pub fn end(mut self, how: Fared) {
        self.fared = how;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.waker.0.drive(|holds| holds.handle_fared(Instant::now(), &self.key, self.id, self.fared));
    }
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turn").field("id", &self.id).finish_non_exhaustive()
    }
}

fn own_bounds(route: &Route) -> OwnBounds {
    let Some(rules) = &route.wake else { return OwnBounds::default() };
    OwnBounds {
        held: rules.held.map(usize::from),
        window: rules.release_window.map(usize::from),
        concurrency: rules.concurrency.map(usize::from),
    }
}

async fn run_timer(desk: Weak<Desk<Backhaul>>, timer: Arc<Notify>) {
    loop {
        let next = {
            let Some(desk) = desk.upgrade() else { return };
            desk.arm()
        };
        let due = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {
                let Some(desk) = desk.upgrade() else { return };
                desk.drive(|holds| holds.handle_timeout(Instant::now()));
            }
            () = timer.notified() => {}
        }
    }
}

/// What the hosts say, without keeping the holds alive.
struct Events(Weak<Desk<Backhaul>>);

impl EdgeEvents for Events {
    fn answer(&self, host: HostId, message: ToEdge) {
        let Some(desk) = self.0.upgrade() else { return };
        match message.message {
            Some(OwnerMessage::Answer(answer)) => {
                desk.drive(|holds| holds.handle_answer(Instant::now(), host, answer));
            }
            Some(OwnerMessage::Cordon(cordon)) if cordon.asks => {}
            Some(OwnerMessage::Cordon(cordon)) => desk.views.forget(&cordon.sprite, cordon.run),
            None => {}
        }
    }

    fn host_down(&self, host: HostId) {
        if let Some(desk) = self.0.upgrade() {
            desk.drive(|holds| holds.handle_host_down(Instant::now(), host));
        }
    }
}

#[cfg(test)]
mod tests;
