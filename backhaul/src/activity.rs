//! What one run of a guest has in progress: the lock-free gate between requests
//! and the decision to sleep.
//!
//! One [`RunActivity`] exists per (sprite, run) on each side. The owner's is the
//! authority for sleeping; an edge process keeps its own to know which leases it
//! owes. The gate makes "nothing in progress" and "no more may begin" one atomic
//! step, so a request either begins before the run is closed and is served, or
//! sees the gate closed and becomes a new flight (`wake.md` I10).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;
use tokio::sync::watch;

/// Set in the gate word once the run is closed; the lower bits count open items.
const CLOSED: u64 = 1 << 63;
/// Set with it while the run is held: it goes on soon.
const HELD: u64 = 1 << 62;

/// Counters and gate of one run. All methods are callable from any thread.
#[derive(Debug)]
pub struct RunActivity {
    /// [`CLOSED`] and [`HELD`] plus the number of open items.
    gate: AtomicU64,
    /// Milliseconds from `epoch` to the last byte or request.
    last_ms: AtomicU64,
    to_guest_bytes: AtomicU64,
    from_guest_bytes: AtomicU64,
    /// Of the open items, those that may be silent for long.
    sockets: AtomicU32,
    /// Its owner is about to put it to sleep.
    cordoned: watch::Sender<bool>,
    epoch: Instant,
    ended: watch::Sender<bool>,
}

impl RunActivity {
    /// An open gate, active at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Arc<Self> {
        Arc::new(Self {
            gate: AtomicU64::new(0),
            last_ms: AtomicU64::new(0),
            to_guest_bytes: AtomicU64::new(0),
            from_guest_bytes: AtomicU64::new(0),
            sockets: AtomicU32::new(0),
            cordoned: watch::Sender::new(false),
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

    /// Items in progress.
    #[must_use]
    pub fn open(&self) -> u32 {
        u32::try_from(self.gate.load(Ordering::Acquire) & !(CLOSED | HELD)).unwrap_or(u32::MAX)
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
        match self.gate.compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(current) => current & !HELD == CLOSED,
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
        self.sockets.load(Ordering::Relaxed)
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
        self.epoch + std::time::Duration::from_millis(self.last_ms.load(Ordering::Relaxed))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_begins_after_the_gate_closed_and_nothing_closes_it_while_open() {
        let run = RunActivity::new(Instant::now());
        let guard = run.begin().expect("open");
        assert!(!run.close_if_idle());
        drop(guard);
        assert!(run.close_if_idle());
        assert!(run.begin().is_none());
        assert_eq!(run.open(), 0);
        run.reopen();
        assert!(run.begin().is_some());
    }

    #[test]
    fn a_hold_lets_what_is_open_go_on() {
        let run = RunActivity::new(Instant::now());
        let guard = run.begin().expect("open");
        run.close();
        assert!(run.begin().is_none() && run.open() == 1 && run.is_held());
        assert!(run.go_on().is_some(), "a piece of what is open");
        assert!(!run.close_if_idle(), "closed, but something is in progress");
        drop(guard);
        assert!(run.close_if_idle());
        run.end();
        assert!(run.go_on().is_none());
    }
}
