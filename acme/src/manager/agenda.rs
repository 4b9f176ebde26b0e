//! When each wish is looked at: by its time, or in its turn at a door that is closed for many.
//!
//! Sans-io. A *door* is what a CA or our own limits keep shut until a moment: all who wait for it wait in one queue, and
//! when it opens they are let through one, two, four at a time for as long as it stays open. So ten thousand that wait
//! for one thing cost no more than one. One that takes its time in there holds the others up for seconds, not for
//! as long as it is there.

use super::turns::Turns;
use super::{Newest, Wish};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Most that are let through a door at once (chosen: as many as are worked on).
const TURN_MAX: usize = super::AT_ONCE;
/// Whoever is through takes so long at most to tell whether the door is open, seconds; after that twice as many may be on
/// their way each second (chosen: a few requests of a CA that is well).
const PATIENCE: u64 = 2;
/// A certificate that ends so soon goes before those that never were, seconds (chosen: what a failure of days leaves
/// time for).
const SOON: u64 = 5 * crate::order::DAY;

/// Nothing is looked at again sooner, whatever it is that went wrong with it, seconds.
const AGAIN: u64 = 1;

/// When to look again at a wish that was worked on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// Then, seconds since 1970.
    At(u64),
    /// When it is its turn at the door.
    Turn {
        /// Which door.
        door: String,
        /// When it opens, seconds since 1970.
        opens: u64,
        /// When its certificate ends, if there is one.
        ends: Option<u64>,
    },
}

/// What was known of a wish when its time was set: another value sets another time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    generation: u64,
    due: u64,
}

impl Seen {
    /// Of a wish's newest certificate.
    pub(super) fn of(newest: Option<Newest>) -> Self {
        newest.map(|Newest { generation, due, .. }| Self { generation, due }).unwrap_or_default()
    }
}

#[derive(Debug)]
enum Place {
    At(u64),
    Door(String, Option<u64>),
    /// It is worked on; let through this door.
    Working(Option<String>),
}

#[derive(Debug)]
struct Entry {
    wish: Arc<Wish>,
    /// In the order of their coming.
    number: u64,
    seen: Seen,
    place: Place,
    /// Something has changed while it was worked on.
    changed: bool,
    /// It is wanted no more.
    gone: bool,
}

#[derive(Debug)]
struct Door {
    opens: u64,
    /// Those without a certificate.
    firsts: Turns,
    /// Those with one, by its end.
    renewals: BTreeSet<(u64, String)>,
    /// How many may be on their way through, and since when; more and more when a CA takes its time with those.
    turn: usize,
    since: u64,
    inside: usize,
}

impl Door {
    /// Takes out whose turn it is.
    fn next(&mut self, now: u64) -> Option<String> {
        let is_soon = self.renewals.first().is_some_and(|(ends, _)| *ends < now + SOON);
        if !is_soon && let Some(first) = self.firsts.pop() {
            return Some(first);
        }
        self.renewals.pop_first().map(|(_, id)| id)
    }

    /// When it lets the next one through; `None` when nobody waits, or not before somebody is through.
    fn permits_at(&self) -> Option<u64> {
        let waits = !self.is_empty() && self.inside < TURN_MAX;
        let doublings = (0..).find(|&doublings| self.inside < self.turn << doublings).unwrap_or(0);
        let later = if doublings == 0 { 0 } else { PATIENCE + doublings };
        waits.then(|| self.opens.max(self.since) + later)
    }

    /// How many may be on their way through by now.
    fn grown(&self, now: u64) -> usize {
        let waited = now.saturating_sub(self.opens.max(self.since));
        (self.turn << waited.saturating_sub(PATIENCE).min(5)).min(TURN_MAX)
    }

    fn is_empty(&self) -> bool {
        self.firsts.is_empty() && self.renewals.is_empty()
    }
}

/// All wishes and their times.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    entries: HashMap<String, Entry>,
    times: BTreeSet<(u64, u64, String)>,
    doors: BTreeMap<String, Door>,
    number: u64,
}

impl Agenda {
    /// Takes in what is wanted now. `look` says what is known of a wish, and when there is something to do about it.
    pub(super) fn list(&mut self, wishes: Vec<Wish>, look: impl Fn(&Wish) -> (Seen, u64)) {
        let mut wanted = HashSet::with_capacity(wishes.len());
        for wish in wishes {
            let (seen, at) = look(&wish);
            wanted.insert(wish.id.clone());
            self.take_in(wish, seen, at);
        }
        if self.entries.len() > wanted.len() {
            let unwanted: Vec<_> = self.entries.keys().filter(|id| !wanted.contains(*id)).cloned().collect();
            unwanted.iter().for_each(|id| self.forget(id));
        }
    }

    /// Takes in what one wish is now, or that it is wanted no more. What is due after `ahead` and is not here comes with
    /// a list.
    pub(super) fn tell(&mut self, id: &str, granted: Option<(Wish, Seen, u64)>, ahead: u64) {
        match granted {
            Some((wish, seen, at)) if at <= ahead || self.entries.contains_key(id) => self.take_in(wish, seen, at),
            Some(_) => {}
            None => self.forget(id),
        }
    }

    fn take_in(&mut self, wish: Wish, seen: Seen, at: u64) {
        let id = wish.id.clone();
        let Some(entry) = self.entries.get_mut(&id) else {
            self.number += 1;
            self.times.insert((at, self.number, id.clone()));
            let (wish, place, number) = (Arc::new(wish), Place::At(at), self.number);
            self.entries.insert(id, Entry { wish, number, seen, place, changed: false, gone: false });
            return;
        };
        entry.gone = false;
        if entry.seen == seen && *entry.wish == wish {
            return;
        }
        // Another CA is asked now, whatever door of the one before it waits at; or it is somebody else's turn.
        let is_another = entry.wish.cas != wish.cas || entry.wish.tenant != wish.tenant;
        let leaves = is_another && matches!(entry.place, Place::Door(..));
        if leaves {
            self.leave(&id);
        }
        let Some(entry) = self.entries.get_mut(&id) else { return };
        (entry.seen, entry.wish) = (seen, Arc::new(wish));
        if leaves {
            entry.place = Place::At(at);
            self.times.insert((at, entry.number, id));
            return;
        }
        match &mut entry.place {
            Place::Working(_) => entry.changed = true,
            Place::At(time) => {
                self.times.remove(&(*time, entry.number, id.clone()));
                *time = at;
                self.times.insert((at, entry.number, id));
            }
            // What it waits for is closed for any certificate.
            Place::Door(..) => {}
        }
    }

    fn forget(&mut self, id: &str) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        match &entry.place {
            Place::Working(_) => {
                entry.gone = true;
                return;
            }
            Place::At(time) => drop(self.times.remove(&(*time, entry.number, id.to_owned()))),
            Place::Door(..) => self.leave(id),
        }
        self.entries.remove(id);
    }

    /// Takes one that waits at a door out of its queue.
    fn leave(&mut self, id: &str) {
        let Some(entry) = self.entries.get(id) else { return };
        let Place::Door(door, ends) = &entry.place else { return };
        if let Some(door) = self.doors.get_mut(door) {
            match ends {
                Some(ends) => drop(door.renewals.remove(&(*ends, id.to_owned()))),
                None => door.firsts.remove(id, &entry.wish.tenant, entry.number),
            }
        }
    }

    /// A wish it is time for; [`Self::done`] follows when it was worked on.
    pub(super) fn next(&mut self, now: u64) -> Option<Arc<Wish>> {
        if self.times.first().is_some_and(|(at, ..)| *at <= now) {
            let (.., id) = self.times.pop_first()?;
            return self.work(&id, None);
        }
        let ready = |door: &Door| door.permits_at().is_some_and(|at| at <= now);
        let (name, door) = self.doors.iter_mut().find(|(_, door)| ready(door))?;
        let (id, name) = (door.next(now)?, name.clone());
        door.inside += 1;
        self.work(&id, Some(name))
    }

    fn work(&mut self, id: &str, through: Option<String>) -> Option<Arc<Wish>> {
        let entry = self.entries.get_mut(id)?;
        entry.place = Place::Working(through);
        Some(Arc::clone(&entry.wish))
    }

    /// When [`Self::next`] has something again, were nothing to change.
    pub(super) fn wake(&self) -> Option<u64> {
        let doors = self.doors.values().filter_map(Door::permits_at).min();
        let first = self.times.first().map(|(at, ..)| *at);
        first.into_iter().chain(doors).min()
    }

    /// A wish was worked on.
    pub(super) fn done(&mut self, id: &str, again: Again, now: u64) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let Place::Working(through) = std::mem::replace(&mut entry.place, Place::At(now)) else { return };
        if let Some(name) = &through {
            let closed = matches!(&again, Again::Turn { door, .. } if door == name);
            if let Some(door) = self.doors.get_mut(name) {
                door.inside = door.inside.saturating_sub(1);
                door.turn = if closed { 1 } else { (door.grown(now) + 1).min(TURN_MAX) };
                door.since = now;
            }
        }
        if entry.gone {
            self.entries.remove(id);
        } else {
            let again = if std::mem::take(&mut entry.changed) { Again::At(now) } else { again };
            match again {
                Again::At(at) => {
                    let at = at.max(now + AGAIN);
                    entry.place = Place::At(at);
                    self.times.insert((at, entry.number, id.to_owned()));
                }
                Again::Turn { door: name, opens, ends } => {
                    let (firsts, renewals) = Default::default();
                    let new = || Door { opens, firsts, renewals, turn: 1, since: now, inside: 0 };
                    let door = self.doors.entry(name.clone()).or_insert_with(new);
                    door.opens = door.opens.max(opens).max(now + AGAIN);
                    match ends {
                        Some(ends) => drop(door.renewals.insert((ends, id.to_owned()))),
                        None => door.firsts.insert(id, &entry.wish.tenant, entry.number),
                    }
                    entry.place = Place::Door(name, ends);
                }
            }
        }
        self.doors.retain(|_, door| door.inside > 0 || !door.is_empty());
    }
}

#[cfg(test)]
mod tests;
