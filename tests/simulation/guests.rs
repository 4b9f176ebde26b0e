//! The guests of one host as a driver would see them: processes that live, freeze and end.

use router::names::SpriteName;
use std::collections::BTreeMap;
use std::time::Instant;
use wakeup::owner::core::Activity;

/// What there is of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Life {
    #[default]
    Absent,
    Alive,
    Frozen,
}

/// One guest.
#[derive(Debug, Default)]
pub(crate) struct Guest {
    pub(crate) life: Life,
    pub(crate) run: u64,
    /// Its port answers.
    pub(crate) listening: bool,
    /// Requests in it.
    pub(crate) open: u32,
    pub(crate) last: Option<Instant>,
    pub(crate) gate_closed: bool,
    /// Its owner has told everybody that it runs.
    pub(crate) present: bool,
    /// The driver is putting it to sleep or ending it: its stop is committed.
    pub(crate) ending: bool,
    /// The driver does one thing after another.
    pub(crate) busy_until: Option<Instant>,
}

/// All guests of the host.
#[derive(Debug, Default)]
pub(crate) struct Guests(BTreeMap<SpriteName, Guest>);

impl Guests {
    pub(crate) fn of(&mut self, name: &SpriteName) -> &mut Guest {
        self.0.entry(name.clone()).or_default()
    }

    /// The guest, if `run` is its life.
    pub(crate) fn in_run(&mut self, name: &SpriteName, run: u64) -> Option<&mut Guest> {
        self.0.get_mut(name).filter(|guest| guest.run == run && guest.life == Life::Alive && !guest.ending)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&SpriteName, &Guest)> {
        self.0.iter()
    }

    /// A process is made, or continues: I1, there is never a second one.
    pub(crate) fn begin(&mut self, now: Instant, name: &SpriteName, run: u64, expected: Life) {
        let guest = self.of(name);
        assert!(!guest.ending, "I1: run {run} of {name} begins while run {} ends", guest.run);
        assert_eq!(guest.life, expected, "I1: run {run} of {name} begins while run {} is there", guest.run);

        *guest = Guest { life: Life::Alive, run, last: Some(now), ..Guest::default() };
    }

    /// It answers no more; its process is `life` now.
    pub(crate) fn stop(&mut self, name: &SpriteName, life: Life) {
        let guest = self.of(name);
        guest.life = life;
        guest.ending = false;
        guest.listening = false;
        guest.present = false;
        guest.open = 0;
    }
}

impl Activity for Guests {
    fn activity(&self, name: &SpriteName, run: u64) -> (u32, Instant) {
        let guest = self.0.get(name).filter(|guest| guest.run == run).expect("the core asks for running sprites");
        (guest.open, guest.last.expect("a running guest has begun"))
    }
}
