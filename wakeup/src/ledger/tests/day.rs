//! A day in virtual time: the owner's core, a driver that takes its time, guests that die, an
//! owner that is killed and a machine that loses its power. What the ledger adds up to and
//! what really ran differ by less than a second.

use super::*;
use crate::owner::core::{Action, Activity, CoreSettings, CoreSpec, OwnerCore, WakeRequest};
use crate::owner::runs::entry_of;
use crate::spec::{Depth, StateName};
use backhaul::owner::EdgeId;
use backhaul::wire::ClientClass;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const DAY_MS: u64 = 24 * 3_600 * 1_000;
const SPRITES: usize = 5;
/// The wall clock at the beginning.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// What really runs.
#[derive(Default)]
struct Guest {
    since: Option<u64>,
    total: u64,
    runs: u64,
}

/// Nothing is ever open, and nothing moved since long ago: guests sleep when they are idle.
struct Quiet(Instant);

impl Activity for Quiet {
    fn activity(&self, _name: &SpriteName, _run: u64) -> (u32, Instant) {
        (0, self.0)
    }
}

enum Due {
    Started(SpriteName, u64),
    Open(SpriteName, u64),
    Gate(SpriteName, u64, Option<Depth>),
    Stopped(SpriteName, u64, Depth),
}

struct Day {
    directory: TempDir,
    rng: SmallRng,
    base: Instant,
    /// Milliseconds of the day.
    now: u64,
    /// When the machine was started, and how often it was.
    booted: u64,
    boots: u32,
    core: OwnerCore,
    book: Option<Book>,
    due: BTreeMap<(u64, u64), Due>,
    next: u64,
    marked: u64,
    guests: BTreeMap<SpriteName, Guest>,
}

impl Day {
    fn new(seed: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let guests = (0..SPRITES).map(|n| (name(&format!("s{n}")), Guest::default())).collect();
        let mut day = Self {
            directory,
            rng: SmallRng::seed_from_u64(seed),
            base: Instant::now(),
            now: 0,
            booted: 0,
            boots: 1,
            core: core(seed),
            book: None,
            due: BTreeMap::new(),
            next: 0,
            marked: 0,
            guests,
        };
        day.owner_begins();
        day
    }

    fn instant(&self) -> Instant {
        self.base + Duration::from_millis(self.now)
    }

    fn stamp_of(&self, ms: u64) -> Stamp {
        Stamp { unix_ms: EPOCH_MS + ms, mono_ms: ms - self.booted }
    }

    /// An owner begins: guests of the one before are found and ended (by the same boot).
    fn owner_begins(&mut self) {
        let (boot, now) = (boot(self.boots), self.stamp_of(self.now));
        let small = LedgerSettings { segment_bytes: 100_000, ..settings(self.directory.path()) };
        let mut book = Book::open(small, boot, now).unwrap();
        self.core = core(self.rng.random());
        let known: BTreeMap<_, _> =
            book.runs().map(|(name, run, open)| (name.clone(), (run, open.is_some()))).collect();
        let names: Vec<_> = self.guests.keys().cloned().collect();
        for name in names {
            let (run, open) = known.get(&name).copied().unwrap_or_default();
            let alive = self.guest_ends(&name);
            if open {
                let entry = book.lost(&name, alive.then_some(now)).unwrap();
                book.append(entry).unwrap();
            }
            let spec = CoreSpec { run, ..CoreSpec::new(1) };
            self.core.handle_upsert(self.base + Duration::from_millis(self.now), &name, spec);
        }
        book.sync().unwrap();
        self.book = Some(book);
        self.act();
    }

    /// The owner is killed; its guests run on until the next one ends them, or lose their
    /// power with the machine.
    fn owner_is_lost(&mut self, power: bool) {
        self.due.clear();
        self.book = None;
        if power {
            let names: Vec<_> = self.guests.keys().cloned().collect();
            names.iter().for_each(|name| _ = self.guest_ends(name));
        }
        self.now += self.rng.random_range(1_000..120_000);
        if power {
            self.booted = self.now - 5_000.min(self.now);
            self.boots += 1;
        }
        self.owner_begins();
    }

    fn guest_ends(&mut self, name: &SpriteName) -> bool {
        let now = self.now;
        let guest = self.guests.get_mut(name).unwrap();
        let since = guest.since.take();
        guest.total += since.map_or(0, |since| now - since);
        since.is_some()
    }

    fn after(&mut self, longest: u64, due: Due) {
        self.next += 1;
        let at = self.now + self.rng.random_range(0..=longest);
        self.due.insert((at, self.next), due);
    }

    fn happen(&mut self, due: Due) {
        let now = self.instant();
        match due {
            Due::Started(name, token) => {
                let guest = self.guests.get_mut(&name).unwrap();
                (guest.since, guest.runs) = (Some(self.now), guest.runs + 1);
                self.core.handle_started(now, &name, token);
                self.after(300, Due::Open(name, token));
            }
            Due::Open(name, token) => self.core.handle_port_open(now, &name, token),
            Due::Gate(name, token, forced) => self.core.handle_gate(now, &name, token, true, forced),
            Due::Stopped(name, token, depth) => {
                self.guest_ends(&name);
                self.core.handle_stopped(now, &name, token, depth);
            }
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.core.poll_action() {
            match action {
                Action::Start { name, token, .. } | Action::Continue { name, token, .. } => {
                    self.after(400, Due::Started(name, token));
                }
                Action::CloseGate { name, token, force, .. } => self.after(3, Due::Gate(name, token, force)),
                Action::Freeze { name, token, .. } => self.after(200, Due::Stopped(name, token, Depth::Warm)),
                Action::Suspend { name, token, .. } | Action::End { name, token, .. } => {
                    self.after(2_000, Due::Stopped(name, token, Depth::Cold));
                }
                Action::Probe { name, token } => self.after(300, Due::Open(name, token)),
                other => self.write_down(other),
            }
        }
    }

    fn write_down(&mut self, action: Action) {
        let (base, booted) = (self.base, self.booted);
        let stamp = |at: Instant| {
            let ms = u64::try_from(at.duration_since(base).as_millis()).unwrap();
            Stamp { unix_ms: EPOCH_MS + ms, mono_ms: ms - booted }
        };
        if let (Some(entry), Some(book)) = (entry_of(action, stamp, &boot(self.boots), (1, 2)), &mut self.book) {
            book.append(entry).unwrap();
        }
    }

    fn run(&mut self) {
        while self.now < DAY_MS {
            let timer = self.core.poll_timeout().map(|at| {
                u64::try_from(at.saturating_duration_since(self.base).as_nanos().div_ceil(1_000_000)).unwrap()
            });
            let chance = self.now + self.rng.random_range(1..20_000);
            let first = self.due.keys().next().map(|(at, _)| *at);
            let at = [Some(chance), timer, first].into_iter().flatten().min().unwrap().max(self.now);
            self.mark_until(at);
            self.now = at;
            if let Some(entry) = self.due.first_entry().filter(|entry| entry.key().0 <= at) {
                let due = entry.remove();
                self.happen(due);
            } else if timer.is_some_and(|timer| timer <= at) {
                let now = self.instant();
                self.core.handle_timeout(now, &Quiet(self.base));
            } else {
                self.something();
            }
            self.act();
        }
    }

    /// The mark of every second until then, while anything runs.
    fn mark_until(&mut self, at: u64) {
        let Some(book) = self.book.as_ref().filter(|book| book.any_open()) else { return };
        let last = at / 1_000 * 1_000;
        if last > self.marked && last >= self.now {
            book.mark(self.stamp_of(last), false).unwrap();
            self.marked = last;
        }
    }

    fn something(&mut self) {
        let name = name(&format!("s{}", self.rng.random_range(0..SPRITES)));
        let now = self.instant();
        match self.rng.random_range(0..10_000) {
            0..5 => self.owner_is_lost(false),
            5..8 => self.owner_is_lost(true),
            8..300 => {
                let state = self.core.status(&name, now).unwrap();
                if state.state == StateName::Running {
                    self.guest_ends(&name);
                    self.core.handle_exited(now, &name, state.run, "killed by signal 9");
                }
            }
            300..1_000 => {
                let depth = if self.rng.random() { Depth::Warm } else { Depth::Cold };
                self.core.handle_sleep(now, &name, depth);
            }
            _ => {
                self.next += 1;
                let waiter = (EdgeId(1), u128::from(self.next));
                let deadline = now + Duration::from_secs(self.rng.random_range(1..30));
                let reason = "day".into();
                self.core.handle_wake(
                    now,
                    WakeRequest { waiter, name, generation: 1, deadline, reason, class: ClientClass::Anonymous },
                );
            }
        }
    }
}

fn core(seed: u64) -> OwnerCore {
    OwnerCore::new(CoreSettings {
        idle_timeout: Duration::from_secs(30),
        warm_for: Duration::from_secs(90),
        minimum_run: Duration::from_secs(1),
        abandoned_timeout: Duration::from_secs(5),
        port_wait: Duration::from_secs(10),
        start_slots: 3,
        seed,
        ..CoreSettings::from(&config::Host::default())
    })
}

#[test]
fn awake_seconds_add_up_to_reality_over_a_day_of_wakes_crashes_and_power_failures() {
    for seed in 0..4 {
        let mut day = Day::new(seed);
        day.run();
        // The end of the day is the end of every guest, as an owner does it.
        day.owner_is_lost(false);
        let (now, boot) = (day.stamp_of(day.now), boot(day.boots));
        let path = settings(day.directory.path()).directory;
        let records = all(&day.directory);
        assert!(records.iter().zip(1..).all(|(record, seq)| record.seq == seq), "seed {seed}: a gap");
        let mut runs: BTreeMap<SpriteName, u64> = BTreeMap::new();
        for record in records.iter().filter(|record| record.event.name() == "start") {
            let last = runs.insert(record.sprite.clone(), record.run).unwrap_or(0);
            assert!(record.run > last, "seed {seed}: run {} after {last}", record.run);
        }
        for (name, guest) in &day.guests {
            let told = usage::usage(&path, name, 0, u64::MAX, now, &boot).unwrap();
            assert!(guest.runs > 100, "seed {seed}: {name} ran {} times only", guest.runs);
            assert_eq!((told.runs, told.open_since_ms), (guest.runs, None), "seed {seed}: {name}");
            // A power failure leaves what the last mark says: at most a second each.
            let off = told.awake_ms.abs_diff(guest.total);
            assert!(off < 1_000 * u64::from(day.boots), "seed {seed}: {name} is {off} ms off of {}", guest.total);
            if day.boots == 1 {
                assert_eq!(off, 0, "seed {seed}: {name}");
            }
        }
    }
}
