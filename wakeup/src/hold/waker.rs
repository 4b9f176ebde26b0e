//! What a request awaits: one lock for a moment at each end of a hold, a channel between.

use super::core::{Action, Arrival, Fared, FlightKey, Holds, OwnBounds};
use super::views::Views;
use super::{HoldError, HoldLimits};
use backhaul::wire::{ClientClass, EdgeMessage, Opened, OwnerMessage, ToEdge, ToOwner, WakeKind};
use backhaul::{Backhaul, EdgeEvents};
use router::names::SpriteName;
use router::route::{Generation, HostId, Route};
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// Waiting pages that listen at a time (chosen: as many as there may be flights); further ones
/// are told that nobody waits.
pub(super) const WATCHERS_MAX: usize = 4_096;
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
}

/// The holds of this process. Cheap to clone, usable from every core.
#[derive(Clone)]
pub struct Waker(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    views: Views,
    backhaul: Backhaul,
    /// Outlives this, so that the timer task can wait without keeping the holds alive.
    timer: Arc<Notify>,
    next: AtomicU64,
}

struct State {
    holds: Holds,
    waiting: HashMap<u64, oneshot::Sender<Result<Opened, HoldError>>>,
    /// Who wants to hear that a sprite runs without waiting for it.
    watchers: Vec<(SpriteName, u64, oneshot::Sender<bool>)>,
    /// When the timer task will look again.
    armed: Option<Instant>,
    /// Messages in the order the core made them.
    outbox: VecDeque<(HostId, EdgeMessage)>,
    /// Somebody is emptying the outbox.
    sending: bool,
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
        let state = State {
            holds: Holds::new(limits, seed),
            waiting: HashMap::new(),
            watchers: Vec::new(),
            armed: None,
            outbox: VecDeque::new(),
            sending: false,
        };
        let timer = Arc::new(Notify::new());
        let inner = Arc::new(Inner {
            state: Mutex::new(state),
            views: Views::default(),
            backhaul,
            timer: Arc::clone(&timer),
            next: AtomicU64::new(0),
        });
        inner.backhaul.set_events(Arc::new(Events(Arc::downgrade(&inner))));
        tokio::spawn(run_timer(Arc::downgrade(&inner), timer));
        Self(inner)
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
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        let HoldRequest { name, route, port, deadline, client, client_class: class, reason, bytes } = request;
        let key = FlightKey { name, generation: route.generation, port };
        let own = own_bounds(&route);
        let arrival = Arrival {
            id,
            key: key.clone(),
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
        let mut place = Place { waker: self, id, taken: true };
        self.0.drive(|state| {
            state.waiting.insert(id, sender);
            state.holds.handle_request(began, arrival);
        });
        // The sender is dropped without a word only if this process is being torn down.
        let outcome = receiver.await.unwrap_or(Err(HoldError::Draining));
        place.taken = false;
        let opened = outcome?;
        let turn = Turn { waker: self.clone(), key, id, fared: Fared::Well };
        let woken = Woken {
            run: opened.run,
            generation: opened.generation,
            kind: opened.kind(),
            joined: opened.joined,
            held: began.elapsed(),
            wake_ms: opened.wake_ms,
            lost_memory: opened.lost_memory,
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
        self.0.lock().holds.is_waking(name)
    }

    /// How long the owner thinks that its wake will still take; zero when it does not say.
    #[must_use]
    pub fn eta(&self, name: &SpriteName, generation: u64) -> Duration {
        let eta = self.0.lock().holds.eta(name, Generation(generation));
        eta.map(|eta| eta.saturating_duration_since(Instant::now())).unwrap_or_default()
    }

    /// Waits until the sprite runs (`true`), or until nobody here waits for its wake any more.
    /// Wakes nothing and holds no place.
    ///
    /// # Cancel safety
    /// Holds no state but a place among the watchers, which is swept.
    pub async fn runs(&self, name: &SpriteName, generation: u64) -> bool {
        let receiver = {
            let mut state = self.0.lock();
            // Under the lock under which a flight ends, so that its end is not missed.
            if self.view(name, generation).is_some() {
                return true;
            }
            state.watchers.retain(|(_, _, sender)| !sender.is_closed());
            if !state.holds.is_waking(name) || state.watchers.len() >= WATCHERS_MAX {
                return false;
            }
            let (sender, receiver) = oneshot::channel();
            state.watchers.push((name.clone(), generation, sender));
            receiver
        };
        receiver.await.unwrap_or(false)
    }

    /// Requests held at this moment.
    #[must_use]
    pub fn held(&self) -> usize {
        self.0.lock().holds.held()
    }

    /// Refuses new holds; those there go on for a while.
    pub fn drain(&self) {
        self.0.drive(|state| state.holds.handle_drain(Instant::now() + DRAIN_HOLD));
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
        self.waker.0.drive(|state| state.holds.handle_fared(Instant::now(), &self.key, self.id, self.fared));
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

/// A request's place in the hold; dropping it while it is taken means that the client left.
struct Place<'a> {
    waker: &'a Waker,
    id: u64,
    taken: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.taken {
            return;
        }
        self.waker.0.drive(|state| {
            // Absent if the wait ended in this moment and nobody listened any more.
            if state.waiting.remove(&self.id).is_some() {
                state.holds.handle_client_gone(self.id);
            }
        });
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `change` happen, then does what the core wants done. Messages leave with the
    /// lock released, since the direct link may answer on this very call. One thread sends
    /// at a time and takes what others add: a `Withdraw` must not overtake its `Wake`, or
    /// the owner would start a guest for nobody.
    fn drive(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        self.settle(&mut state);
        if state.sending {
            return;
        }
        state.sending = true;
        let sending = Sending(self);
        while let Some((host, message)) = state.outbox.pop_front() {
            drop(state);
            let sent = self.backhaul.send(host, ToOwner { message: Some(message) });
            state = self.lock();
            if sent.is_err() {
                // Once per outage: what else was meant for this host has no use any more.
                state.outbox.retain(|(to, _)| *to != host);
                state.holds.handle_host_down(Instant::now(), host);
                self.settle(&mut state);
            }
        }
        // Under the lock that saw the outbox empty: whoever adds next sends.
        state.sending = false;
        drop(state);
        std::mem::forget(sending);
    }

    /// Takes every action of the core and sees to its next moment.
    fn settle(&self, state: &mut State) {
        let mut ended = false;
        while let Some(action) = state.holds.poll_action() {
            match action {
                Action::Wake(host, wake) => state.outbox.push_back((host, EdgeMessage::Wake(wake))),
                Action::Withdraw(host, withdraw) => {
                    ended = true;
                    state.outbox.push_back((host, EdgeMessage::Withdraw(withdraw)));
                }
                Action::Release(id, opened) => state.end(id, Ok(opened)),
                Action::Refuse(id, error) => {
                    ended = true;
                    state.end(id, Err(error));
                }
                Action::Runs(name, generation, run) => {
                    ended = true;
                    self.views.note(Instant::now(), &name, generation, run);
                }
            }
        }
        if ended && !state.watchers.is_empty() {
            self.tell_watchers(state);
        }
        let next = state.holds.poll_timeout();
        if next.is_some_and(|next| state.armed.is_none_or(|armed| next < armed)) {
            state.armed = next;
            self.timer.notify_one();
        }
    }
}

impl Inner {
    /// Those whose sprite runs, or is not being woken any more, have heard enough.
    fn tell_watchers(&self, state: &mut State) {
        for (name, generation, sender) in std::mem::take(&mut state.watchers) {
            let runs = self.views.run(Instant::now(), name.as_str(), generation).is_some();
            if runs || !state.holds.is_waking(&name) {
                // Gone meanwhile: nobody is left to tell.
                let _ = sender.send(runs);
            } else {
                state.watchers.push((name, generation, sender));
            }
        }
    }
}

/// Somebody sends, with the lock released; dropped only if sending panicked.
struct Sending<'a>(&'a Inner);

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.0.lock().sending = false;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The timer task finds that there is nothing left to time.
        self.timer.notify_one();
    }
}

impl State {
    fn end(&mut self, id: u64, outcome: Result<Opened, HoldError>) {
        if let Some(waiting) = self.waiting.remove(&id) {
            // The receiver is gone only if its request was dropped in this very moment.
            let _ = waiting.send(outcome);
        }
    }
}

async fn run_timer(inner: Weak<Inner>, timer: Arc<Notify>) {
    loop {
        let next = {
            let Some(inner) = inner.upgrade() else { return };
            let mut state = inner.lock();
            state.armed = state.holds.poll_timeout();
            state.armed
        };
        let due = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {
                let Some(inner) = inner.upgrade() else { return };
                inner.drive(|state| state.holds.handle_timeout(Instant::now()));
            }
            () = timer.notified() => {}
        }
    }
}

/// What the hosts say, without keeping the holds alive.
struct Events(Weak<Inner>);

impl EdgeEvents for Events {
    fn answer(&self, host: HostId, message: ToEdge) {
        let Some(inner) = self.0.upgrade() else { return };
        match message.message {
            Some(OwnerMessage::Answer(answer)) => {
                inner.drive(|state| state.holds.handle_answer(Instant::now(), host, answer));
            }
            Some(OwnerMessage::Cordon(cordon)) => inner.views.forget(&cordon.sprite, cordon.run),
            None => {}
        }
    }

    fn host_down(&self, host: HostId) {
        if let Some(inner) = self.0.upgrade() {
            inner.drive(|state| state.holds.handle_host_down(Instant::now(), host));
        }
    }
}

#[cfg(test)]
mod tests;
