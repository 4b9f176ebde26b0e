//! What a request awaits: one lock for a moment at each end of a hold, a channel between.

use super::core::{Action, Arrival, FlightKey, Holds};
use super::{HoldError, HoldLimits};
use backhaul::wire::{ClientClass, EdgeMessage, Opened, OwnerMessage, ToEdge, ToOwner, WakeKind};
use backhaul::{Backhaul, EdgeEvents};
use dashmap::DashMap;
use router::names::SpriteName;
use router::route::{HostId, Route};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// How long a view of a running sprite is believed (`wake.md` §3).
const VIEW_TTL: Duration = Duration::from_secs(60);
/// Views kept (chosen: about 10 MB).
const VIEWS_MAX: usize = 100_000;
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
}

#[derive(Clone, Copy)]
struct View {
    generation: u64,
    run: u64,
    at: Instant,
}

/// The holds of this process. Cheap to clone, usable from every core.
#[derive(Clone)]
pub struct Waker(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    views: DashMap<SpriteName, View>,
    backhaul: Backhaul,
    timer: Notify,
    next: AtomicU64,
}

struct State {
    holds: Holds,
    waiting: HashMap<u64, oneshot::Sender<Result<Opened, HoldError>>>,
    /// When the timer task will look again.
    armed: Option<Instant>,
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
        let state = State { holds: Holds::new(limits, seed), waiting: HashMap::new(), armed: None };
        let inner = Arc::new(Inner {
            state: Mutex::new(state),
            views: DashMap::new(),
            backhaul,
            timer: Notify::new(),
            next: AtomicU64::new(0),
        });
        inner.backhaul.set_events(Arc::new(Events(Arc::downgrade(&inner))));
        tokio::spawn(run_timer(Arc::downgrade(&inner)));
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
    pub async fn hold(&self, request: HoldRequest) -> Result<Woken, HoldError> {
        let began = Instant::now();
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        let place = Place { waker: self, id };
        self.0.drive(|state| {
            state.waiting.insert(id, sender);
            let HoldRequest { name, route, port, deadline, client, client_class: class, reason } = request.clone();
            let key = FlightKey { name, generation: route.generation, port };
            state.holds.handle_request(began, Arrival { id, key, host: route.host, client, class, deadline, reason });
        });
        // The sender is dropped without a word only if this process is being torn down.
        let outcome = receiver.await.unwrap_or(Err(HoldError::Draining));
        drop(place);
        let opened = outcome?;
        self.note_running(&request.name, opened.generation, opened.run);
        Ok(Woken {
            run: opened.run,
            generation: opened.generation,
            kind: opened.kind(),
            joined: opened.joined,
            held: began.elapsed(),
            wake_ms: opened.wake_ms,
        })
    }

    /// The run this process believes to be running, if it learnt of it a short while ago.
    #[must_use]
    pub fn view(&self, name: &SpriteName, generation: u64) -> Option<u64> {
        let view = *self.0.views.get(name)?;
        (view.generation == generation && view.at.elapsed() < VIEW_TTL).then_some(view.run)
    }

    /// Remembers that a run runs. Over its bound the views start over: each is a guess.
    pub fn note_running(&self, name: &SpriteName, generation: u64, run: u64) {
        if self.0.views.len() >= VIEWS_MAX {
            self.0.views.clear();
        }
        self.0.views.insert(name.clone(), View { generation, run, at: Instant::now() });
    }

    /// Forgets a view that proved wrong.
    pub fn forget(&self, name: &SpriteName, run: u64) {
        self.0.views.remove_if(name, |_, view| view.run == run);
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

/// A request's place in the hold; dropping it early means that the client left.
struct Place<'a> {
    waker: &'a Waker,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waker.0.drive(|state| {
            // Present only while nothing has ended the wait.
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

    /// Lets `change` happen, then does what the core wants done. Messages leave after the
    /// lock is released, since the direct link may answer on this very call.
    fn drive(&self, change: impl FnOnce(&mut State)) {
        let mut messages = self.step(change);
        while !messages.is_empty() {
            let mut unreachable = Vec::new();
            for (host, message) in messages {
                if self.backhaul.send(host, ToOwner { message: Some(message) }).is_err() {
                    unreachable.push(host);
                }
            }
            messages = match unreachable.is_empty() {
                true => Vec::new(),
                false => self.step(|state| {
                    for &host in &unreachable {
                        state.holds.handle_host_down(Instant::now(), host);
                    }
                }),
            };
        }
    }

    fn step(&self, change: impl FnOnce(&mut State)) -> Vec<(HostId, EdgeMessage)> {
        let mut messages = Vec::new();
        let mut state = self.lock();
        change(&mut state);
        while let Some(action) = state.holds.poll_action() {
            match action {
                Action::Wake(host, wake) => messages.push((host, EdgeMessage::Wake(wake))),
                Action::Withdraw(host, withdraw) => messages.push((host, EdgeMessage::Withdraw(withdraw))),
                Action::Release(id, opened) => state.end(id, Ok(opened)),
                Action::Refuse(id, error) => state.end(id, Err(error)),
            }
        }
        let next = state.holds.poll_timeout();
        if next.is_some_and(|next| state.armed.is_none_or(|armed| next < armed)) {
            state.armed = next;
            self.timer.notify_one();
        }
        messages
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

async fn run_timer(inner: Weak<Inner>) {
    loop {
        let Some(strong) = inner.upgrade() else { return };
        let next = {
            let mut state = strong.lock();
            state.armed = state.holds.poll_timeout();
            state.armed
        };
        // Without a deadline of its own the task looks once a minute whether it is still needed.
        let at = next.unwrap_or_else(|| Instant::now() + Duration::from_secs(60));
        tokio::select! {
            () = tokio::time::sleep_until(at.into()) => strong.drive(|state| state.holds.handle_timeout(Instant::now())),
            () = strong.timer.notified() => {}
        }
    }
}

/// What the hosts say, without keeping the holds alive.
struct Events(Weak<Inner>);

impl EdgeEvents for Events {
    fn answer(&self, _host: HostId, message: ToEdge) {
        let Some(inner) = self.0.upgrade() else { return };
        match message.message {
            Some(OwnerMessage::Answer(answer)) => {
                inner.drive(|state| state.holds.handle_answer(Instant::now(), answer))
            }
            Some(OwnerMessage::Cordon(cordon)) => {
                inner.views.remove_if(cordon.sprite.as_str(), |_, view| view.run == cordon.run);
            }
            None => {}
        }
    }

    fn host_down(&self, host: HostId) {
        if let Some(inner) = self.0.upgrade() {
            inner.drive(|state| state.holds.handle_host_down(Instant::now(), host));
        }
    }
}
