//! Where requests wait: the one lock of the holds, the channels behind it, and the messages
//! that leave from it.
//!
//! What is decided is in `core.rs`; this is only how many threads share it: a request takes a
//! [`Place`] and awaits its end, whoever changes something tells the others, and messages go
//! out in the order the core made them, one thread at a time. It has no timer and no link of
//! its own ([`Post`], [`Desk::timer`]), so that `schedules.rs` can build this very file a
//! second time, over locks whose every order of threads can be tried. Hence `super::sync`.

use super::sync::{Mutex, MutexGuard};
use crate::hold::HoldError;
use crate::hold::core::{Action, Arrival, Fared, FlightKey, Holds};
use crate::hold::views::Views;
use backhaul::Unreachable;
use backhaul::wire::{EdgeMessage, Opened, ToOwner};
use router::names::SpriteName;
use router::route::HostId;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// Waiting pages that listen at a time (chosen: as many as there may be flights); further ones
/// are told that nobody waits.
pub(super) const WATCHERS_MAX: usize = 4_096;

/// Who takes messages to the hosts.
pub(super) trait Post: Send + Sync + 'static {
    /// Takes one; never waits. May call [`Desk::drive`] before it returns.
    fn send(&self, host: HostId, message: ToOwner) -> Result<(), Unreachable>;

    /// How long a word to this host and its answer take at the least.
    fn round_trip(&self, host: HostId) -> Duration;
}

/// What a released request is told: the owner's word, and how many may be on their way at once.
pub(super) type Released = (Opened, usize);

/// The holds of one process, as its threads share them.
pub(super) struct Desk<P> {
    state: Mutex<State>,
    pub(super) views: Views,
    post: P,
    /// Told when the next moment of the holds comes earlier than it knows, and in the end.
    pub(super) timer: Arc<Notify>,
    next: AtomicU64,
}

struct State {
    holds: Holds,
    waiting: HashMap<u64, oneshot::Sender<Result<Released, HoldError>>>,
    /// Who wants to hear that a sprite runs without waiting for it.
    watchers: Vec<(SpriteName, u64, oneshot::Sender<bool>)>,
    /// When the timer will look again.
    armed: Option<Instant>,
    /// Messages in the order the core made them.
    outbox: VecDeque<(HostId, EdgeMessage)>,
    /// Somebody is emptying the outbox.
    sending: bool,
}

impl<P: Post> Desk<P> {
    pub(super) fn new(holds: Holds, post: P, timer: Arc<Notify>) -> Self {
        let state = State {
            holds,
            waiting: HashMap::new(),
            watchers: Vec::new(),
            armed: None,
            outbox: VecDeque::new(),
            sending: false,
        };
        Self { state: Mutex::new(state), views: Views::default(), post, timer, next: AtomicU64::new(0) }
    }

    /// Waits for the end of a hold; `arrival` is called with the id it is known by.
    ///
    /// # Cancel safety
    /// Dropping the future frees the place.
    pub(super) async fn wait(
        &self,
        now: Instant,
        arrival: impl FnOnce(u64) -> Arrival,
    ) -> (u64, Result<Released, HoldError>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let arrival = arrival(id);
        let (sender, receiver) = oneshot::channel();
        let mut place = Place { desk: self, key: arrival.key.clone(), id, taken: true };
        self.enter(now, arrival, sender);
        // The sender is dropped without a word only if this process is being torn down.
        let outcome = receiver.await.unwrap_or(Err(HoldError::Draining));
        place.taken = false;
        (id, outcome)
    }

    fn enter(&self, now: Instant, arrival: Arrival, sender: oneshot::Sender<Result<Released, HoldError>>) {
        self.change(|state| {
            state.waiting.insert(arrival.id, sender);
            state.holds.handle_request(now, arrival);
        });
    }

    /// Waits until the sprite runs (`true`), or until nobody here waits for its wake any more.
    ///
    /// # Cancel safety
    /// Holds no state but a place among the watchers, which is swept.
    pub(super) async fn runs(&self, name: &SpriteName, generation: u64) -> bool {
        let receiver = {
            let mut state = self.lock();
            // Under the lock under which a flight ends, so that its end is not missed.
            if self.views.run(Instant::now(), name.as_str(), generation).is_some() {
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

    /// Looks at the holds without changing them.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Holds) -> T) -> T {
        look(&self.lock().holds)
    }

    /// Lets `change` happen to the holds, and whatever follows from it.
    pub(super) fn drive(&self, change: impl FnOnce(&mut Holds)) {
        self.change(|state| change(&mut state.holds));
    }

    /// When the timer has to look again; it is told if that becomes earlier.
    pub(super) fn arm(&self) -> Option<Instant> {
        let mut state = self.lock();
        state.armed = state.holds.poll_timeout();
        state.armed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `change` happen, then does what the core wants done. Messages leave with the
    /// lock released, since the direct link may answer on this very call. One thread sends
    /// at a time and takes what others add: a `Withdraw` must not overtake its `Wake`, or
    /// the owner would start a guest for nobody.
    fn change(&self, change: impl FnOnce(&mut State)) {
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
            let asked = match &message {
                EdgeMessage::Wake(wake) => Some((wake.wake_id_high, wake.wake_id_low, self.post.round_trip(host))),
                _ => None,
            };
            let sent = self.post.send(host, ToOwner { message: Some(message) });
            state = self.lock();
            // The timer is not told: a moment that comes too early finds nothing due.
            if let Some((high, low, round_trip)) = asked {
                state.holds.handle_sent(high, low, round_trip);
            }
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
                Action::Release(id, opened, window) => state.end(id, Ok((opened, window))),
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

/// A request's place in the hold; dropping it while it is taken means that the client left.
struct Place<'a, P: Post> {
    desk: &'a Desk<P>,
    key: FlightKey,
    id: u64,
    taken: bool,
}

impl<P: Post> Drop for Place<'_, P> {
    fn drop(&mut self) {
        if !self.taken {
            return;
        }
        self.desk.change(|state| {
            match state.waiting.remove(&self.id) {
                Some(_) => state.holds.handle_client_gone(self.id),
                // The wait ended in this moment and nobody listened any more. If it was let go,
                // its turn is over before it began.
                None => state.holds.handle_fared(Instant::now(), &self.key, self.id, Fared::Well),
            }
        });
    }
}

/// Somebody sends, with the lock released; dropped only if sending panicked.
struct Sending<'a, P: Post>(&'a Desk<P>);

impl<P: Post> Drop for Sending<'_, P> {
    fn drop(&mut self) {
        self.0.lock().sending = false;
    }
}

impl<P> Drop for Desk<P> {
    fn drop(&mut self) {
        // The timer task finds that there is nothing left to time.
        self.timer.notify_one();
    }
}

impl State {
    fn end(&mut self, id: u64, outcome: Result<Released, HoldError>) {
        if let Some(waiting) = self.waiting.remove(&id) {
            // The receiver is gone only if its request was dropped in this very moment.
            let _ = waiting.send(outcome);
        }
    }
}
