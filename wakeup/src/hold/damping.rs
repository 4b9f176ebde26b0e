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

/// How long a mark lasts, counted from when its socket may come again (`wake.md` §8).
const LASTS: Duration = Duration::from_secs(600);
/// First pause that is asked for; doubled up to [`LASTS`] (`wake.md` §8).
const FIRST: Duration = Duration::from_secs(30);
/// Marks kept (chosen: some 8 MiB). Beyond it new ones are not made: their sockets wake.
const MARKS_MAX: usize = 65_536;
/// Marks of one network and sprite (chosen: more sessions than a household has). Beyond it the
/// oldest is forgotten.
const SESSIONS_MAX: usize = 64;

/// Whose socket it is: a network, a session in it, a sprite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketKey {
    from: From,
    session: u64,
}

/// A network and the sprite it asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct From {
    prefix: Prefix,
    name: SpriteName,
}

impl SocketKey {
    /// `session` is what tells sessions of a network apart: a hash of their cookies.
    #[must_use]
    pub fn new(client: IpAddr, session: u64, name: SpriteName) -> Self {
        Self { from: From { prefix: client.into(), name }, session }
    }
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    session: u64,
    until: Instant,
    refused: u32,
}

/// The marks of one edge process.
#[derive(Debug, Default)]
pub struct Damping(Mutex<Marks>);

#[derive(Debug, Default)]
struct Marks {
    /// Never an empty list.
    from: HashMap<From, Vec<Mark>>,
    /// All of them together.
    count: usize,
}

impl Damping {
    /// A socket was closed because its sprite fell asleep.
    pub fn mark(&self, now: Instant, key: SocketKey) {
        let mut marks = self.lock();
        marks.remove(&key);
        if marks.count >= MARKS_MAX {
            marks.sweep(now);
            if marks.count >= MARKS_MAX {
                return;
            }
        }
        let mark = Mark { session: key.session, until: now + LASTS, refused: 0 };
        let sessions = marks.from.entry(key.from).or_default();
        if sessions.len() >= SESSIONS_MAX {
            sessions.remove(0);
            sessions.push(mark);
            return;
        }
        sessions.push(mark);
        marks.count += 1;
    }

    /// A request came for a sprite that is not known to run. `socket` says whether browsers
    /// make such a request by themselves; `is_waking`, whether somebody else wakes the sprite
    /// already: to join costs nothing.
    ///
    /// # Errors
    /// It is a socket that comes back by itself: when it may try again.
    pub fn arrives(
        &self,
        now: Instant,
        key: &SocketKey,
        socket: bool,
        is_waking: impl FnOnce() -> bool,
    ) -> Result<(), Duration> {
        if !socket {
            self.visited(key);
            return Ok(());
        }
        if is_waking() { Ok(()) } else { self.check(now, key) }
    }

    /// A socket wants to wake its sprite.
    fn check(&self, now: Instant, key: &SocketKey) -> Result<(), Duration> {
        let mut marks = self.lock();
        let Some(mark) = marks.find(key) else { return Ok(()) };
        if mark.until <= now {
            marks.remove(key);
            return Ok(());
        }
        let pause = (FIRST * (1 << mark.refused.min(5))).min(LASTS);
        mark.refused = mark.refused.saturating_add(1);
        // A client that does not keep to the pauses is a loop: it stays marked. One that does
        // comes back behind the pause, and must not find the mark gone for that.
        mark.until = now + pause + LASTS;
        Err(pause)
    }

    /// Somebody of the same session came: its sockets may wake again.
    fn visited(&self, key: &SocketKey) {
        self.lock().remove(key);
    }

    /// Whether a socket of any session of this network may come back to this sprite.
    #[must_use]
    pub fn expects(&self, now: Instant, client: IpAddr, name: &SpriteName) -> bool {
        let marks = self.lock();
        let from = From { prefix: client.into(), name: name.clone() };
        marks.from.get(&from).is_some_and(|marks| marks.iter().any(|mark| mark.until > now))
    }

    /// Whether there is any mark at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().count == 0
    }

    fn lock(&self) -> MutexGuard<'_, Marks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Marks {
    fn find(&mut self, key: &SocketKey) -> Option<&mut Mark> {
        self.from.get_mut(&key.from)?.iter_mut().find(|mark| mark.session == key.session)
    }

    fn remove(&mut self, key: &SocketKey) {
        let Some(marks) = self.from.get_mut(&key.from) else { return };
        let before = marks.len();
        marks.retain(|mark| mark.session != key.session);
        self.count -= before - marks.len();
        if marks.is_empty() {
            self.from.remove(&key.from);
        }
    }

    fn sweep(&mut self, now: Instant) {
        self.from.retain(|_, marks| {
            marks.retain(|mark| mark.until > now);
            !marks.is_empty()
        });
        self.count = self.from.values().map(Vec::len).sum();
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
        let comes = now + Duration::from_secs(600);
        assert!(damping.check(comes, &key(1)).is_err(), "it did as it was told");
        assert_eq!(damping.check(comes + Duration::from_secs(600) + LASTS, &key(1)), Ok(()));
        assert!(damping.is_empty());
    }

    #[test]
    fn marks_are_bounded() {
        let (damping, now) = (Damping::default(), Instant::now());
        let nth = |n: u32| SocketKey::new(IpAddr::V4(n.into()), 1, SpriteName::parse("a").unwrap());
        for n in 0..u32::try_from(MARKS_MAX).unwrap() + 100 {
            damping.mark(now, nth(n));
        }
        assert_eq!(damping.lock().count, MARKS_MAX);
        damping.mark(now + LASTS, key(1));
        assert_eq!(damping.lock().count, 1);
    }

    #[test]
    fn sessions_of_one_network_are_bounded_and_the_oldest_is_forgotten() {
        let (damping, now) = (Damping::default(), Instant::now());
        for session in 0..=SESSIONS_MAX as u64 {
            damping.mark(now, key(session));
        }
        assert_eq!(damping.lock().count, SESSIONS_MAX);
        assert_eq!(damping.check(now, &key(0)), Ok(()));
        assert!(damping.check(now, &key(1)).is_err() && damping.check(now, &key(SESSIONS_MAX as u64)).is_err());
    }

    #[test]
    fn a_network_is_expected_back_by_any_of_its_sessions_for_ten_minutes() {
        let (damping, now) = (Damping::default(), Instant::now());
        let (client, name): (IpAddr, _) = ("192.0.2.1".parse().unwrap(), SpriteName::parse("a").unwrap());
        damping.mark(now, key(1));
        damping.mark(now, key(1));
        damping.mark(now, key(2));
        assert!(damping.expects(now, client, &name));
        assert!(!damping.expects(now, "192.0.2.2".parse().unwrap(), &name));
        assert!(!damping.expects(now, client, &SpriteName::parse("b").unwrap()));
        assert!(!damping.expects(now + LASTS, client, &name));
        damping.visited(&key(1));
        assert!(damping.expects(now, client, &name) && !damping.is_empty());
        damping.visited(&key(2));
        assert!(!damping.expects(now, client, &name) && damping.is_empty());
    }
}
