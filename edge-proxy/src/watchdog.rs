//! Sees from outside of every runtime that the routing table answers and is kept up: a thread of
//! its own that looks names up, as a request does, and counts the turns of the appliers.
//!
//! A table whose applier stands still goes on answering, with what was true when it stopped; nobody
//! would notice. The watchdog changes nothing: it says so, in the log, in `status` and in the metrics.

use crate::tables::FollowedRegion;
use router::followed::TURN;
use router::regions::Routes;
use router::table::Lookup;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Between two looks (chosen, as the appliers' own least pace).
const PERIOD: Duration = TURN;
/// An applier that has not turned for so long stands still (chosen: ten of its turns, so that a
/// busy machine raises no alarm).
pub const STANDS_STILL: Duration = Duration::from_secs(10);
/// A lookup that takes longer is counted and logged (chosen: it takes under a microsecond, and a
/// thread that waits for its core a few milliseconds).
pub const SLOW_LOOKUP: Duration = Duration::from_millis(100);
/// Names looked up in each period (chosen), and one that does not exist.
const NAMES: usize = 16;
/// No sprite can have it: an underscore is in no name.
const ABSENT: &str = "_watchdog";

/// What the watchdog has seen. Reading it takes no lock.
#[derive(Debug)]
pub struct Status {
    began: Instant,
    /// Milliseconds from `began` to the last look.
    looked_ms: AtomicU64,
    slow_lookups: AtomicU64,
    stalls: AtomicU64,
    /// Milliseconds the longest-standing applier has stood still; nothing below the bound.
    still_ms: AtomicU64,
}

impl Status {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            looked_ms: AtomicU64::new(0),
            slow_lookups: AtomicU64::new(0),
            stalls: AtomicU64::new(0),
            still_ms: AtomicU64::new(0),
        }
    }

    /// How long ago the names were looked up last: seconds mean that the watchdog itself is not
    /// let run, or that a lookup does not come back.
    #[must_use]
    pub fn looked_ago(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.looked_ms.load(Ordering::Relaxed)))
    }

    /// Looks with a lookup over [`SLOW_LOOKUP`], since the start.
    #[must_use]
    pub fn slow_lookups(&self) -> u64 {
        self.slow_lookups.load(Ordering::Relaxed)
    }

    /// How often an applier was found to stand still, since the start.
    #[must_use]
    pub fn stalls(&self) -> u64 {
        self.stalls.load(Ordering::Relaxed)
    }

    /// How long an applier has stood still, the longest; `None` while all move or have stood for
    /// less than [`STANDS_STILL`].
    #[must_use]
    pub fn still_for(&self) -> Option<Duration> {
        let still = self.still_ms.load(Ordering::Relaxed);
        (still > 0).then(|| Duration::from_millis(still))
    }
}

/// The running thread. Dropping it ends the thread within one look; it is not waited for, since a
/// lookup that does not come back must not hold up the end of the process.
pub struct Watchdog {
    status: Arc<Status>,
    _end: Sender<()>,
}

impl Watchdog {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(table: Arc<Routes>, regions: Arc<[FollowedRegion]>) -> std::io::Result<Self> {
        Self::with_bound(table, regions, PERIOD, STANDS_STILL)
    }

    fn with_bound(
        table: Arc<Routes>,
        regions: Arc<[FollowedRegion]>,
        period: Duration,
        bound: Duration,
    ) -> std::io::Result<Self> {
        let status = Arc::new(Status::new());
        let (end, ended) = channel();
        let seen = Arc::clone(&status);
        let watch = move || {
            let now = Instant::now();
            let follows: Vec<_> = regions.iter().flat_map(appliers).collect();
            let pulse = |(.., applier): &Applier| Pulse::new(applier.turns(), now, period, bound);
            let mut pulses: Vec<_> = follows.iter().map(pulse).collect();
            while matches!(ended.recv_timeout(period), Err(RecvTimeoutError::Timeout)) {
                look_up(&table, &seen);
                let now = Instant::now();
                let mut still = Duration::ZERO;
                for ((region, what, applier), pulse) in follows.iter().zip(&mut pulses) {
                    match pulse.look(applier.turns(), now) {
                        Said::Nothing => {}
                        Said::StandsStill => {
                            seen.stalls.fetch_add(1, Ordering::Relaxed);
                            tracing::error!(
                                region,
                                what,
                                still_s = pulse.still.as_secs(),
                                "the applier of the table stands still: what the store says is not applied"
                            );
                        }
                        Said::MovesAgain(stood) => {
                            tracing::warn!(
                                region,
                                what,
                                stood_s = stood.as_secs(),
                                "the applier of the table moves again"
                            );
                        }
                    }
                    still = still.max(if pulse.alarmed { pulse.still } else { Duration::ZERO });
                }
                seen.still_ms.store(millis(still), Ordering::Relaxed);
                seen.looked_ms.store(millis(seen.began.elapsed()), Ordering::Relaxed);
            }
        };
        std::thread::Builder::new().name("watchdog".into()).spawn(watch)?;
        Ok(Self { status, _end: end })
    }

    /// What it sees.
    #[must_use]
    pub const fn status(&self) -> &Arc<Status> {
        &self.status
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Looks some names up as a request does, present ones and an absent one.
/// The region, what it applies, and how it stands.
type Applier<'a> = (&'a str, &'static str, &'a router::followed::Followed);

fn appliers(region: &FollowedRegion) -> [Applier<'_>; 2] {
    [(&region.name, "routes", region.routes.followed()), (&region.name, "domains", region.domains.followed())]
}

fn look_up(table: &Routes, seen: &Status) {
    let names = table.some_names(NAMES);
    let mut longest = Duration::ZERO;
    for name in names.iter().map(router::names::SpriteName::as_str).chain([ABSENT]) {
        let began = Instant::now();
        let found = table.lookup(name);
        longest = longest.max(began.elapsed());
        debug_assert!(name != ABSENT || !matches!(found, Lookup::Found(_)), "no sprite can have this name");
    }
    if longest > SLOW_LOOKUP {
        seen.slow_lookups.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(?longest, "a lookup in the routing table took long");
    }
}

/// What one look says of an applier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    /// For the first time since it moved.
    StandsStill,
    /// After it stood still for so long.
    MovesAgain(Duration),
}

/// One applier, seen by its turns: no clock, no table.
#[derive(Debug)]
struct Pulse {
    turns: u64,
    looked_at: Instant,
    /// For how long it has not turned while we looked.
    still: Duration,
    alarmed: bool,
    period: Duration,
    bound: Duration,
}

impl Pulse {
    const fn new(turns: u64, now: Instant, period: Duration, bound: Duration) -> Self {
        Self { turns, looked_at: now, still: Duration::ZERO, alarmed: false, period, bound }
    }

    fn look(&mut self, turns: u64, now: Instant) -> Said {
        // Where we were kept from looking, so was it from turning: a process that was stopped
        // raises no alarm when it goes on.
        let since = now.saturating_duration_since(self.looked_at).min(2 * self.period);
        self.looked_at = now;
        if turns != self.turns {
            self.turns = turns;
            let stood = std::mem::take(&mut self.still);
            return match std::mem::take(&mut self.alarmed) {
                true => Said::MovesAgain(stood),
                false => Said::Nothing,
            };
        }
        self.still += since;
        if self.alarmed || self.still < self.bound {
            return Said::Nothing;
        }
        self.alarmed = true;
        Said::StandsStill
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use router::domains::DomainTable;
    use router::store::{Embedded, EmbeddedStore, Store};
    use router::table::RouteTable;
    use std::collections::HashMap;

    #[test]
    fn an_applier_that_does_not_turn_is_said_once_to_stand_still_and_once_to_move_again() {
        let second = Duration::from_secs(1);
        let mut now = Instant::now();
        let mut pulse = Pulse::new(7, now, second, 4 * second);
        let mut look = |turns, after: Duration| {
            now += after;
            pulse.look(turns, now)
        };
        let looks = [8, 8, 8, 8, 8, 8, 9, 9].map(|turns| look(turns, second));
        let mut wanted = [Said::Nothing; 8];
        (wanted[4], wanted[6]) = (Said::StandsStill, Said::MovesAgain(5 * second));
        assert_eq!(looks, wanted);
        // Nobody looked for a day: nobody turned either.
        assert_eq!(look(9, 86_400 * second), Said::Nothing);
        assert_eq!(look(9, second), Said::StandsStill);
    }

    /// Waits for what another thread does, 20 s at most.
    fn until(what: &str, wanted: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !wanted() {
            assert!(Instant::now() < end, "{what}");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_real_applier_whose_thread_is_blocked_is_seen_and_so_is_its_next_turn() {
        let dir = tempfile::tempdir().unwrap();
        let store: Store = Arc::new(Embedded(Arc::new(EmbeddedStore::open(&dir.path().join("s")).unwrap())));
        let (table, domains) = (Arc::new(RouteTable::new()), Arc::new(DomainTable::new(HashMap::new(), &[], &[])));
        let moves = (Arc::new(RouteTable::new()), Arc::new(DomainTable::new(HashMap::new(), &[], &[])));
        let other = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (routes, elsewhere) = (Arc::clone(&moves.0), dir.path().join("fra"));
        std::fs::create_dir_all(&elsewhere).unwrap();
        other.spawn(router::apply::follow(Arc::clone(&store), routes, elsewhere.join("routes")));
        other.spawn(router::domains::apply::follow(
            Arc::clone(&store),
            Arc::clone(&moves.1),
            elsewhere.join("domains"),
        ));
        let (block, blocked) = channel::<()>();
        let blocked_on = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let handle = blocked_on.handle().clone();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn({
            let (table, domains, dir) = (Arc::clone(&table), Arc::clone(&domains), dir.path().to_owned());
            move || {
                blocked_on.block_on(async {
                    tokio::spawn(router::apply::follow(Arc::clone(&store), table, dir.join("routes")));
                    tokio::spawn(router::domains::apply::follow(store, domains, dir.join("domains")));
                    drop(ended.await);
                });
            }
        });
        until("the appliers do not begin", || table.followed().is_synced() && domains.followed().is_synced());
        // Two turns and a half of a quiet applier.
        let bound = TURN * 5 / 2;
        let region = |name: &str, routes: &Arc<RouteTable>, domains| {
            let routes = Arc::clone(routes);
            FollowedRegion { name: name.into(), engine: "embedded", routes, domains }
        };
        // The one that stands still is not the own one.
        let own = region("fra", &moves.0, Arc::clone(&moves.1));
        let regions = Arc::new([own, region("ams", &table, domains)]);
        let all = Arc::new(Arc::clone(&moves.0).into());
        let watchdog = Watchdog::with_bound(all, regions, Duration::from_millis(50), bound).unwrap();
        until("the watchdog does not look", || watchdog.status().looked_ms.load(Ordering::Relaxed) > 0);
        assert_eq!(watchdog.status().still_for(), None);
        // As code of ours would that waits where it must not.
        handle.spawn(async move {
            let _ = blocked.recv();
        });
        until("it is not seen", || watchdog.status().still_for().is_some_and(|still| still >= bound));
        assert!(watchdog.status().stalls() >= 1);
        assert!(watchdog.status().looked_ago() < Duration::from_secs(10));
        drop(block);
        until("that it moves is not seen", || watchdog.status().still_for().is_none());
        drop(end);
        thread.join().unwrap();
    }
}
