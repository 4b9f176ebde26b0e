//! Sees to it that every wish has a certificate in time: begins orders when they are due, works on them under a lease, and
//! leaves a CA alone that says it has had enough.
//!
//! What is to be done about a wish is in `decide.rs`, when it is looked at in `agenda.rs`; both are sans-io.

mod agenda;
mod decide;
mod gate;
mod leases;
mod sweep;
#[cfg(test)]
mod tests;
mod turns;
mod window;
mod work;

use crate::ca::{Authority, Kind};
use crate::certificate::CertRow;
use crate::clock::Clock;
use crate::lease::Lease;
use crate::order::issue::Issuer;
use crate::rows::RowsError;
use agenda::{Again, Agenda, Seen};
use decide::Todo;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Pause before it looks at what has changed (chosen: a domain that was just proved waits that long).
const TICK: Duration = Duration::from_secs(1);
/// Orders that are worked on at once (chosen).
const AT_ONCE: usize = 16;
/// Longest time one go may take (chosen: below what a lease lasts without being renewed, were one to hang).
const GO: Duration = Duration::from_secs(120);
/// What is to be done within so long, seconds, is on the agenda; all is looked at again in half of it (chosen: of a million
/// wishes a look takes a second or two of a processor, and what is on the agenda some 700 bytes each; a CA wants to be asked
/// for each window four times a day, so an eighteenth of all is on it).
const AHEAD: u64 = 20 * 60;
/// Changes that are looked at by name; more are looked at as all are, on a thread for such work (chosen: some milliseconds).
const NAMED_MAX: usize = 2_048;
/// Pause after one hung, panicked, or was asked for something it cannot do (chosen).
const STUCK: u64 = 60;

/// A certificate somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// What tells it from others, in keys of rows: letters, digits, `-` and `.`.
    pub id: String,
    /// Names, `*.` in front of one for all below it.
    pub names: Vec<String>,
    /// How they are proved.
    pub kind: Kind,
    /// Whose they are, who takes turns with others; nobody's for our own names.
    pub tenant: String,
    /// CAs by name, the preferred one first, each with its profile or nothing.
    pub cas: Vec<(String, String)>,
}

/// What the newest certificate of a wish says of the time to do something about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newest {
    /// Which of its wish's it is.
    pub generation: u64,
    /// When it is to be renewed, seconds since 1970.
    pub due: u64,
    /// When its CA is to be asked for its window (again), seconds since 1970; `u64::MAX` for one without.
    pub ask: u64,
    /// It is for the names of the wish.
    pub has_its_names: bool,
}

impl Newest {
    /// Of a wish's certificate.
    #[must_use]
    pub fn of(wish: &Wish, row: &CertRow) -> Self {
        let has_its_names = row.names == wish.names;
        Self { generation: row.generation, due: row.due(&wish.id), ask: row.asks_at(), has_its_names }
    }
}

/// What a manager is told by those who have tables.
pub trait Wishes: Send + Sync + 'static {
    /// Whether the certificates there are have been heard of since the start. Before that nothing is begun: what looks due
    /// may have been renewed long ago.
    fn are_known(&self) -> bool;
    /// The wishes that are granted, names that were proved to be somebody's and our own, and with something to do about them
    /// by then, seconds since 1970; more than those may be there. Those that are first there go first when many have to
    /// wait. May block, for seconds.
    fn due_by(&self, then: u64) -> Vec<Wish>;
    /// Each is told when [`Self::granted`], [`Self::newest`] or [`Self::are_known`] may say something else. It may be told
    /// too often.
    fn changes(&self) -> Vec<watch::Receiver<u64>>;
    /// The ids of which they may, since this was asked; `None`: of any.
    fn changed(&self) -> Option<BTreeSet<Box<str>>>;
    /// The wish of this id, if it is granted and can be fulfilled now.
    fn granted(&self, id: &str) -> Option<Wish>;
    /// The newest certificate of an id, as this PoP knows it.
    fn newest(&self, id: &str) -> Option<Arc<CertRow>>;
    /// What it says of the time to do something. Asked for every wish at each change: a table that keeps certificates on a
    /// disk answers from memory.
    fn newest_of(&self, wish: &Wish) -> Option<Newest> {
        self.newest(&wish.id).map(|row| Newest::of(wish, &row))
    }
    /// The wish of this id, if there is one, whether or not it can be fulfilled now.
    fn find(&self, id: &str) -> Option<Wish>;
    /// Certificates that ended before this, seconds since 1970, by id and generation.
    fn ended_before(&self, then: u64) -> Vec<(String, u64)>;
    /// A CA with an account, once it could be opened.
    fn authority(&self, name: &str) -> Option<Arc<dyn Authority>>;
    /// The account there may be another by now: open it again.
    fn reopen(&self, name: &str);
}

/// Works on orders for as long as it runs.
pub struct Manager {
    issuer: Arc<Issuer>,
    wishes: Arc<dyn Wishes>,
    me: String,
    clock: Clock,
    leases: Mutex<HashMap<u64, Lease>>,
}

/// Why nothing was done just now.
enum Pause {
    Until(u64),
    /// Something that many wait for is closed.
    Closed {
        door: String,
        until: u64,
    },
    Rows(RowsError),
}

impl From<RowsError> for Pause {
    fn from(error: RowsError) -> Self {
        Self::Rows(error)
    }
}

impl Manager {
    /// For a process called `me`, unlike any other: one that starts again is another.
    #[must_use]
    pub fn new(issuer: Arc<Issuer>, wishes: Arc<dyn Wishes>, me: String, clock: Clock) -> Arc<Self> {
        Arc::new(Self { issuer, wishes, me, clock, leases: Mutex::default() })
    }

    /// Works; never returns.
    ///
    /// # Cancel safety
    /// Dropping it leaves orders where their rows say they are. Others take over when its leases end.
    pub async fn run(self: Arc<Self>) {
        let (changed, mut beside) = merged(self.wishes.changes());
        beside.spawn(Arc::clone(&self).sweep());
        beside.spawn(Arc::clone(&self).tidy());
        let mut agenda = Agenda::default();
        let mut working = JoinSet::new();
        let mut ids = HashMap::new();
        let (mut list_at, mut listed) = (Some(Instant::now()), None);
        loop {
            let now = self.clock.now();
            if list_at.is_some_and(|at| at <= Instant::now()) {
                list_at = None;
                self.list(&mut agenda, &mut listed, now).await;
            }
            while working.len() < AT_ONCE
                && let Some(wish) = agenda.next(now)
            {
                let (this, id) = (Arc::clone(&self), wish.id.clone());
                let task = working.spawn(async move { this.go(&wish).await });
                ids.insert(task.id(), id);
            }
            let wake = if working.len() < AT_ONCE { agenda.wake() } else { None };
            tokio::select! {
                Some(done) = working.join_next_with_id() => {
                    let (task, again) = match done {
                        Ok(done) => done,
                        Err(error) => (error.id(), Again::At(self.clock.now() + STUCK)),
                    };
                    if let Some(id) = ids.remove(&task) {
                        agenda.done(&id, again, self.clock.now());
                    }
                }
                () = changed.notified(), if list_at.is_none() => list_at = Some(Instant::now() + TICK),
                () = tokio::time::sleep_until(list_at.unwrap_or_else(Instant::now)), if list_at.is_some() => {}
                () = self.clock.sleep_towards(wake.unwrap_or(u64::MAX)) => {}
                () = self.clock.sleep_towards(listed.map_or(u64::MAX, |at| at + AHEAD / 2)) => {
                    // It may have slept for a part of that.
                    if listed.is_none_or(|at| at + AHEAD / 2 <= self.clock.now()) {
                        list_at = Some(Instant::now());
                    }
                }
            }
        }
    }

    /// Puts what has changed on the agenda, or all that is to be done soon. `listed` is when that was looked at last.
    async fn list(&self, agenda: &mut Agenda, listed: &mut Option<u64>, now: u64) {
        if !self.wishes.are_known() {
            return;
        }
        // Asked before the look at all, or what changes meanwhile would be in neither.
        let changed = self.wishes.changed();
        match (changed, *listed) {
            (Some(ids), Some(at)) if now < at + AHEAD / 2 && ids.len() <= NAMED_MAX => {
                for id in ids {
                    let granted = self.wishes.granted(&id).map(|wish| {
                        let (seen, due) = self.look(&wish, now);
                        (wish, seen, due)
                    });
                    agenda.tell(&id, granted, at + AHEAD);
                }
            }
            _ => {
                // Until it is known, all is looked at again.
                *listed = None;
                let wishes = Arc::clone(&self.wishes);
                if let Ok(due) = tokio::task::spawn_blocking(move || wishes.due_by(now + AHEAD)).await {
                    agenda.list(due, |wish| self.look(wish, now));
                    *listed = Some(now);
                }
            }
        }
    }

    /// What is known of a wish, and when there is something to do about it.
    fn look(&self, wish: &Wish, now: u64) -> (Seen, u64) {
        let newest = self.wishes.newest_of(wish);
        let at = match decide::todo(newest, now) {
            Todo::Nothing(until) => until,
            Todo::AskWindow | Todo::Order => now,
        };
        (Seen::of(newest), at)
    }
}

/// One word for the changes of all, for as long as what comes with it is kept.
fn merged(all: Vec<watch::Receiver<u64>>) -> (Arc<Notify>, JoinSet<()>) {
    let (changed, mut watching) = (Arc::new(Notify::new()), JoinSet::new());
    for mut one in all {
        let changed = Arc::clone(&changed);
        watching.spawn(async move {
            while one.changed().await.is_ok() {
                changed.notify_one();
            }
        });
    }
    (changed, watching)
}
