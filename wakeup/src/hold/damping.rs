//! Sockets that come back by themselves. A sprite that fell asleep closed them; their
//! browsers reconnect for hours, and each try would wake it for nobody (`wake.md` §8).
//!
//! A mark remembers whose socket was closed. While it lasts, a socket of the same session
//! wakes nothing, unless somebody came in between: a page, a call, anything but a socket.

use super::prefix::Prefix;
use router::names::SpriteName;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a mark lasts, counted from the last refusal (`wake.md` §8).
const LASTS: Duration = Duration::from_secs(600);
/// First pause that is asked for; doubled up to [`LASTS`] (`wake.md` §8).
const FIRST: Duration = Duration::from_secs(30);
/// Marks kept (chosen: some 8 MiB). Beyond it new ones are not made: their sockets wake.
const MARKS_MAX: usize = 65_536;

/// Whose socket it is: a network, a session in it, a sprite.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SocketKey {
    prefix: Prefix,
    session: u64,
    name: SpriteName,
}

impl SocketKey {
    /// `session` is what tells sessions of a network apart: a hash of their cookies.
    #[must_use]
    pub fn new(client: IpAddr, session: u64, name: SpriteName) -> Self {
        Self { prefix: client.into(), session, name }
    }
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    until: Instant,
    refused: u32,
}

/// The marks of one edge process.
#[derive(Debug, Default)]
pub struct Damping(Mutex<HashMap<SocketKey, Mark>>);

impl Damping {
    /// A socket was closed because its sprite fell asleep.
    pub fn mark(&self, now: Instant, key: SocketKey) {
        let mut marks = self.lock();
        if marks.len() >= MARKS_MAX {
            marks.retain(|_, mark| mark.until > now);
            if marks.len() >= MARKS_MAX {
                return;
            }
        }
        marks.insert(key, Mark { until: now + LASTS, refused: 0 });
    }

    /// A socket wants to wake its sprite.
    ///
    /// # Errors
    /// It comes back by itself: when it may try again.
    pub fn check(&self, now: Instant, key: &SocketKey) -> Result<(), Duration> {
        let mut marks = self.lock();
        let Some(mark) = marks.get_mut(key) else { return Ok(()) };
        if mark.until <= now {
            marks.remove(key);
            return Ok(());
        }
        let pause = (FIRST * (1 << mark.refused.min(5))).min(LASTS);
        mark.refused = mark.refused.saturating_add(1);
        // A client that does not keep to the pauses is a loop: it stays marked.
        mark.until = now + LASTS;
        Err(pause)
    }

    /// Somebody of the same session came: its sockets may wake again.
    pub fn visited(&self, key: &SocketKey) {
        self.lock().remove(key);
    }

    /// Whether there is any mark at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketKey, Mark>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(session: u64) -> SocketKey {
        SocketKey::new("192.0.2.1".parse().unwrap(), session, SpriteName::parse("a").unwrap())
    }

    #[test]
    fn a_browser_that_reconnects_for_an_hour_wakes_nothing_and_a_visit_lets_it_again() {
        let (damping, mut now) = (Damping::default(), Instant::now());
        assert_eq!(damping.check(now, &key(1)), Ok(()));
        damping.mark(now, key(1));
        let mut wakes = 0;
        // It backs off as libraries do: 1 s to 30 s, whatever it is told.
        for attempt in 0..150_u64 {
            wakes += u32::from(damping.check(now, &key(1)).is_ok());
            now += Duration::from_secs(1 << attempt.min(5)).min(Duration::from_secs(30));
        }
        assert_eq!(wakes, 0);
        assert_eq!(damping.check(now, &key(2)), Ok(()), "another session");
        damping.visited(&key(1));
        assert_eq!(damping.check(now, &key(1)), Ok(()));
    }

    #[test]
    fn pauses_double_to_ten_minutes_and_a_mark_ends_with_silence() {
        let (damping, now) = (Damping::default(), Instant::now());
        damping.mark(now, key(1));
        let pauses: Vec<_> = (0..7).map(|_| damping.check(now, &key(1)).unwrap_err().as_secs()).collect();
        assert_eq!(pauses, [30, 60, 120, 240, 480, 600, 600]);
        assert_eq!(damping.check(now + LASTS, &key(1)), Ok(()));
        assert!(damping.is_empty());
    }

    #[test]
    fn marks_are_bounded() {
        let (damping, now) = (Damping::default(), Instant::now());
        for session in 0..=MARKS_MAX as u64 {
            damping.mark(now, key(session));
        }
        assert_eq!(damping.lock().len(), MARKS_MAX);
        damping.mark(now + LASTS, key(1));
        assert_eq!(damping.lock().len(), 1);
    }
}
