//! What one run of a guest has in progress: the lock-free gate between requests
//! and the decision to sleep.
//!
//! One [`RunActivity`] exists per (sprite, run) on each side. The owner's is the
//! authority for sleeping; an edge process keeps its own to know which leases it
//! owes. The gate makes "nothing in progress" and "no more may begin" one atomic
//! step, so a request either begins before the run is closed and is served, or
//! sees the gate closed and becomes a new flight (`wake.md` I10).
//!
//! Every open item has a stream under it, so the streams are what the items can be checked
//! against: [`RunActivity::reconcile`]. `backhaul/tests/activity_schedules.rs` builds this
//! very file over atomics whose every order of threads can be tried, hence `super::sync`.

use super::sync::{AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// Set in the gate word once the run is closed.
const CLOSED: u64 = 1 << 63;
/// Set with it while the run is held: it goes on soon.
const HELD: u64 = 1 << 62;
/// One open stream; bits 31 to 61 count them. In one word with the items, so that one look
/// sees both as they were at the same moment.
const STREAM: u64 = 1 << 31;
/// The bits that count open items.
const ITEMS: u64 = STREAM - 1;

/// How often items are compared with streams (`wake.md` §8).
pub const RECONCILE_EVERY: Duration = Duration::from_secs(60);

/// Counters and gate of one run. All methods are callable from any thread.
#[derive(Debug)]
pub struct RunActivity {
    /// [`CLOSED`] and [`HELD`], the number of streams and that of open items.
    gate: AtomicU64,
    /// Items without a stream when [`RunActivity::reconcile`] last looked.
    suspected: AtomicU32,
    /// Of the open items, those that ended without saying so: they count no more.
    leaked: AtomicU32,
    /// Milliseconds from `epoch` to the last byte or request.
    last_ms: AtomicU64,
    to_guest_bytes: AtomicU64,
    from_guest_bytes: AtomicU64,
    /// Of the open items, those that may be silent for long.
    sockets: AtomicU32,
    /// Its owner is about to put it to sleep.
    cordoned: watch::Sender<bool>,
    /// Wakes what waits at the closed gate.
    reopened: Notify,
    epoch: Instant,
    ended: watch::Sender<bool>,
}

impl RunActivity {
    /// An open gate, active at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Arc<Self> {
        Arc::new(Self {
            gate: AtomicU64::new(0),
            suspected: AtomicU32::new(0),
            leaked: AtomicU32::new(0),
            last_ms: AtomicU64::new(0),
            to_guest_bytes: AtomicU64::new(0),
            from_guest_bytes: AtomicU64::new(0),
            sockets: AtomicU32::new(0),
            cordoned: watch::Sender::new(false),
            reopened: Notify::new(),
            epoch: now,
            ended: watch::Sender::new(false),
        })
    }

    /// Begins a request or socket; `None` when the run is closed.
    ///
    /// Does not read the clock: the item's end does ([`ActivityGuard`]), and while
    /// one is open the run is active by definition.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> Option<ActivityGuard> {
        let before = self.gate.fetch_add(1, Ordering::AcqRel);
        if before & CLOSED != 0 {
            self.gate.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(ActivityGuard { run: Arc::clone(self), socket: false, silent: false })
    }

    /// Begins one more piece of what is open already; `None` when the run is closed. A hold
    /// lets it pass.
    #[must_use]
    pub fn go_on(self: &Arc<Self>) -> Option<ActivityGuard> {
        let before = self.gate.fetch_add(1, Ordering::AcqRel);
        if before & CLOSED != 0 && before & HELD == 0 {
            self.gate.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(ActivityGuard { run: Arc::clone(self), socket: false, silent: false })
    }

    /// Notes a stream to the guest for as long as what is returned lives. What begins on it
    /// ends before it.
    #[must_use]
    pub fn stream(self: &Arc<Self>) -> RunStream {
        self.gate.fetch_add(STREAM, Ordering::AcqRel);
        RunStream { run: Arc::clone(self) }
    }

    /// Items in progress.
    #[must_use]
    pub fn open(&self) -> u32 {
        self.items_of(self.gate.load(Ordering::Acquire))
    }

    /// Open streams, whether something is in progress on them or not.
    #[must_use]
    pub fn streams(&self) -> u32 {
        streams_of(self.gate.load(Ordering::Acquire))
    }

    fn items_of(&self, gate: u64) -> u32 {
        u32::try_from(gate & ITEMS).unwrap_or(u32::MAX).saturating_sub(self.leaked.load(Ordering::Acquire))
    }

    /// Compares the items in progress with the streams they need, and no longer counts those
    /// that had none now and at the look before: what was lost without its end being told must
    /// not keep a sprite awake for ever. How many are newly found so.
    ///
    /// Each look decides anew, so a wrong one is made good by the next. Called by one thread,
    /// each [`RECONCILE_EVERY`]; begin and end of an item pay nothing for it.
    pub fn reconcile(&self) -> u32 {
        let gate = self.gate.load(Ordering::Acquire);
        let items = u32::try_from(gate & ITEMS).unwrap_or(u32::MAX);
        let without = items.saturating_sub(streams_of(gate));
        let leaked = without.min(self.suspected.swap(without, Ordering::Relaxed));
        leaked.saturating_sub(self.leaked.swap(leaked, Ordering::AcqRel))
    }

    /// Whether [`RunActivity::end`] or a successful [`RunActivity::close_if_idle`] happened.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.gate.load(Ordering::Acquire) & CLOSED != 0
    }

    /// Closes the gate if nothing is in progress; `true` when it is closed afterwards and
    /// nothing is in progress.
    #[must_use]
    pub fn close_if_idle(&self) -> bool {
        let mut gate = self.gate.load(Ordering::Acquire);
        loop {
            if self.items_of(gate) > 0 {
                return false;
            }
            if gate & CLOSED != 0 {
                return true;
            }
            match self.gate.compare_exchange(gate, gate | CLOSED, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                // A stream came or went, or something began.
                Err(now) => gate = now,
            }
        }
    }

    /// Closes the gate to what has not begun; what is open goes on (a hold).
    pub fn close(&self) {
        self.gate.fetch_or(CLOSED | HELD, Ordering::AcqRel);
    }

    /// Whether it is closed by [`RunActivity::close`] only.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.gate.load(Ordering::Acquire) & HELD != 0
    }

    /// Opens the gate again after [`RunActivity::close_if_idle`] or [`RunActivity::close`],
    /// while the run goes on (an interrupted stop, the end of a hold).
    pub fn reopen(&self) {
        self.cordoned.send_if_modified(|cordoned| std::mem::replace(cordoned, false));
        self.gate.fetch_and(!(CLOSED | HELD), Ordering::AcqRel);
        self.reopened.notify_waiters();
    }

    /// As [`RunActivity::go_on`], but waits as long as the gate is closed and may open again: a
    /// stop that is called off delays a request and does not turn it away. Does not resolve once
    /// [`RunActivity::end`] was called. Cancel safe.
    pub async fn go_on_patiently(self: &Arc<Self>) -> ActivityGuard {
        loop {
            // Before the look, so that no opening falls in between.
            let reopened = self.reopened.notified();
            if let Some(guard) = self.go_on() {
                return guard;
            }
            reopened.await;
        }
    }

    /// Closes the gate whatever is in progress and tells every splice to end.
    pub fn end(&self) {
        self.gate.fetch_or(CLOSED, Ordering::AcqRel);
        self.gate.fetch_and(!HELD, Ordering::AcqRel);
        self.ended.send_replace(true);
    }

    /// Resolves once [`RunActivity::end`] was called. Cancel safe.
    pub async fn ended(&self) {
        let mut watch = self.ended.subscribe();
        // The sender lives in self, so the channel cannot close while we wait.
        let _ = watch.wait_for(|ended| *ended).await;
    }

    /// Open items that may be silent for long: sockets, streams of events, long answers.
    #[must_use]
    pub fn sockets(&self) -> u32 {
        // Which of the items are lost is not known: rather none of those that are alive is
        // taken for a socket.
        self.sockets.load(Ordering::Relaxed).saturating_sub(self.leaked.load(Ordering::Acquire))
    }

    /// Its owner is about to put it to sleep: what is open and silent is to end.
    pub fn cordon(&self) {
        self.cordoned.send_replace(true);
    }

    /// Whether [`RunActivity::cordon`] was the last word, and not [`RunActivity::reopen`].
    #[must_use]
    pub fn is_cordoned(&self) -> bool {
        *self.cordoned.borrow()
    }

    /// Resolves once [`RunActivity::cordon`] was called. Cancel safe.
    pub async fn cordoned(&self) {
        let mut watch = self.cordoned.subscribe();
        // The sender lives in self, so the channel cannot close while we wait.
        let _ = watch.wait_for(|cordoned| *cordoned).await;
    }

    /// Notes activity at `now`.
    pub fn touch(&self, now: Instant) {
        let ms = u64::try_from(now.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX);
        self.last_ms.fetch_max(ms, Ordering::Relaxed);
    }

    /// The latest instant given to [`RunActivity::touch`], or the creation.
    #[must_use]
    pub fn last(&self) -> Instant {
        self.epoch + Duration::from_millis(self.last_ms.load(Ordering::Relaxed))
    }

    /// Adds to the byte counters.
    pub fn count(&self, to_guest: u64, from_guest: u64) {
        if to_guest > 0 {
            self.to_guest_bytes.fetch_add(to_guest, Ordering::Relaxed);
        }
        if from_guest > 0 {
            self.from_guest_bytes.fetch_add(from_guest, Ordering::Relaxed);
        }
    }

    /// Bytes delivered to the guest and received from it.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.to_guest_bytes.load(Ordering::Relaxed), self.from_guest_bytes.load(Ordering::Relaxed))
    }
}

/// One item in progress; dropping it ends the item.
#[derive(Debug)]
pub struct ActivityGuard {
    run: Arc<RunActivity>,
    /// Counted among the sockets.
    socket: bool,
    /// Its end is no activity.
    silent: bool,
}

impl ActivityGuard {
    /// The run it belongs to.
    #[must_use]
    pub fn run(&self) -> &Arc<RunActivity> {
        &self.run
    }
}

impl ActivityGuard {
    /// From now on it may be silent for long: it keeps its run awake only as long as there is
    /// data on it now and then ([`RunActivity::touch`]).
    pub fn becomes_socket(&mut self) {
        if !std::mem::replace(&mut self.socket, true) {
            self.run.sockets.fetch_add(1, Ordering::Relaxed);
            self.run.touch(Instant::now());
        }
    }

    /// Its end says nothing about whether anybody is there.
    #[must_use]
    pub const fn silent(mut self) -> Self {
        self.silent = true;
        self
    }
}

impl Drop for ActivityGuard {
    fn drop(&mut self) {
        // Before the count: whoever sees no open item must also see when the last one ended.
        if !self.silent {
            self.run.touch(Instant::now());
        }
        if self.socket {
            self.run.sockets.fetch_sub(1, Ordering::Relaxed);
        }
        self.run.gate.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One open stream to a guest; dropping it ends it.
#[derive(Debug)]
pub struct RunStream {
    run: Arc<RunActivity>,
}

impl Drop for RunStream {
    fn drop(&mut self) {
        self.run.gate.fetch_sub(STREAM, Ordering::AcqRel);
    }
}

fn streams_of(gate: u64) -> u32 {
    u32::try_from((gate & !(CLOSED | HELD)) / STREAM).unwrap_or(u32::MAX)
}
