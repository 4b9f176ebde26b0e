//! Letting go of those who waited, not all at once: an app that has just begun to listen
//! has one thread and a short queue in front of it (`wake.md` §6).

use super::flight::Flight;
use backhaul::wire::{Opened, Wake};
use router::route::HostId;
use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// Without a refusal the window doubles this often (`wake.md` §6).
const STEP: Duration = Duration::from_millis(25);
/// From then on there is no window (`wake.md` §6).
const WHOLE: Duration = Duration::from_secs(1);

/// How a request that was let go fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fared {
    /// It has its answer, or its client has left.
    Well,
    /// Its guest broke the connection.
    Reset,
    /// The run is over, or its port refused: those who still wait must ask again.
    Asleep,
}

/// Those of one flight who are still to be let go.
#[derive(Debug)]
pub(super) struct Release {
    pub(super) host: HostId,
    /// What the owner was asked.
    pub(super) wake: Wake,
    pub(super) opened: Opened,
    queue: VecDeque<u64>,
    /// Let go, and nothing heard of them yet.
    out: BTreeSet<u64>,
    window: usize,
    /// What its people set as the most the sprite serves at a time.
    most: usize,
    doubles_at: Instant,
    whole_at: Instant,
    /// Its entry in the timers.
    pub(super) armed: Option<Instant>,
}

impl Release {
    /// The first one is let go with `window`, never more than `most` at a time.
    pub(super) fn new(now: Instant, flight: Flight, opened: Opened, window: usize, most: usize) -> Self {
        let window = flight.window.unwrap_or(window).min(most).max(1);
        Self {
            host: flight.host,
            wake: flight.wake.clone(),
            opened,
            queue: flight.into_waiters().collect(),
            out: BTreeSet::new(),
            window,
            most,
            doubles_at: now + STEP,
            whole_at: now + WHOLE,
            armed: None,
        }
    }

    /// Whether everybody was let go.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The next one to let go, if there is room for it.
    pub(super) fn next(&mut self, now: Instant) -> Option<u64> {
        if self.out.len() >= self.window && now < self.whole_at {
            return None;
        }
        let id = self.queue.pop_front()?;
        self.out.insert(id);
        Some(id)
    }

    /// One more, behind those who are there.
    pub(super) fn join(&mut self, id: u64) {
        self.queue.push_back(id);
    }

    pub(super) fn leave(&mut self, id: u64) {
        self.queue.retain(|waiting| *waiting != id);
    }

    /// Those who still wait.
    pub(super) fn waiting(&self) -> impl Iterator<Item = u64> {
        self.queue.iter().copied()
    }

    /// One that was let go needs its place no more; `false` for one of another release.
    pub(super) fn fared(&mut self, now: Instant, id: u64, how: Fared) -> bool {
        let mine = self.out.remove(&id);
        if mine && how != Fared::Well {
            self.window = (self.window / 2).max(1);
            self.doubles_at = now + STEP;
        }
        mine
    }

    /// The window grows.
    pub(super) fn tick(&mut self, now: Instant) {
        while self.doubles_at <= now {
            self.doubles_at += STEP;
            self.window = self.window.saturating_mul(2).min(self.most);
        }
    }

    /// No more turns.
    pub(super) fn open_wide(&mut self, now: Instant) {
        self.whole_at = now;
    }

    /// Requests that may be on their way at once.
    pub(super) fn window(&self) -> usize {
        self.window
    }

    /// When something is due next.
    pub(super) fn due(&self) -> Instant {
        self.doubles_at.min(self.whole_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(now: Instant, count: u64, most: usize) -> Release {
        let mut flight = Flight::new(now, HostId(1), Wake::default());
        for id in 0..count {
            flight.join(id, std::net::IpAddr::from([192, 0, 2, 1]).into(), now + WHOLE * 2);
        }
        Release::new(now, flight, Opened::default(), 8, most)
    }

    fn go(release: &mut Release, now: Instant) -> Vec<u64> {
        release.tick(now);
        std::iter::from_fn(|| release.next(now)).collect()
    }

    #[test]
    fn eight_then_twice_as_many_each_25_ms_and_after_a_second_all() {
        let began = Instant::now();
        let mut release = release(began, 1_000, usize::MAX);
        assert_eq!(go(&mut release, began).len(), 8);
        assert_eq!(go(&mut release, began + STEP).len(), 8, "16 on their way");
        assert_eq!(go(&mut release, began + STEP * 2).len(), 16);
        for id in 0..32 {
            assert!(release.fared(began + STEP * 2, id, Fared::Well));
        }
        assert!(!release.fared(began, 0, Fared::Reset), "it was heard of already");
        assert_eq!(go(&mut release, began + STEP * 2).len(), 32);
        assert_eq!(go(&mut release, began + WHOLE).len(), 1_000 - 64);
        assert!(release.is_empty());
    }

    #[test]
    fn a_reset_halves_it_and_one_is_always_on_its_way() {
        let began = Instant::now();
        let mut release = release(began, 100, usize::MAX);
        for id in go(&mut release, began) {
            release.fared(began, id, Fared::Reset);
        }
        assert_eq!((release.window(), go(&mut release, began).len()), (1, 1));
        assert_eq!(go(&mut release, began + STEP).len(), 1, "two at a time");
    }

    #[test]
    fn its_people_s_limit_caps_it_and_who_leaves_is_skipped() {
        let began = Instant::now();
        let mut release = release(began, 10, 3);
        release.leave(1);
        assert_eq!(go(&mut release, began), [0, 2, 3]);
        assert_eq!(go(&mut release, began + STEP * 5), [0; 0]);
        assert_eq!(release.window(), 3);
    }
}
