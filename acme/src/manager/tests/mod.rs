//! Managers in virtual time, on rows and CAs in memory.

mod cas;
mod days;
mod renewal;
mod takeover;

use super::{Manager, Wish, Wishes};
use crate::ca::{Authority, Kind};
use crate::certificate::{CERT_PREFIX, CertRow, parse_cert_key};
use crate::clock::Clock;
use crate::order::sim::World;
use crate::order::sim::ca::Ca;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(super) const START: u64 = 1_800_000_000;
pub(super) const HOUR: u64 = 3600;

/// What a PoP would know of its tables, at once.
pub(super) struct Tables {
    world: Arc<World>,
    wishes: Mutex<Vec<Wish>>,
    changed: watch::Sender<u64>,
    changed_ids: Mutex<Option<BTreeSet<Box<str>>>>,
    known: AtomicBool,
    /// It has heard of no certificate.
    pub(super) blind: AtomicBool,
    pub(super) reopened: Mutex<Vec<String>>,
    read: Mutex<HashMap<String, (u64, Arc<CertRow>)>>,
}

impl Tables {
    pub(super) fn set(&self, wishes: Vec<Wish>) {
        let mut before = self.wishes.lock().unwrap();
        if let Some(ids) = &mut *self.changed_ids.lock().unwrap() {
            let is_other = |wish: &&Wish, others: &[Wish]| !others.contains(wish);
            ids.extend(before.iter().filter(|wish| is_other(wish, &wishes)).map(|wish| wish.id.as_str().into()));
            ids.extend(wishes.iter().filter(|wish| is_other(wish, &before)).map(|wish| wish.id.as_str().into()));
        }
        *before = wishes;
        drop(before);
        self.changed.send_modify(|count| *count += 1);
    }

    /// The store has told of a certificate of this wish.
    pub(super) fn hears_of(&self, id: &str) {
        if let Some(ids) = &mut *self.changed_ids.lock().unwrap() {
            ids.insert(id.into());
        }
        self.changed.send_modify(|count| *count += 1);
    }

    /// Whether it has heard of all certificates.
    pub(super) fn know(&self, known: bool) {
        self.known.store(known, Ordering::Relaxed);
        self.changed.send_modify(|count| *count += 1);
    }
}

impl Wishes for Tables {
    fn are_known(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }

    fn due_by(&self, then: u64) -> Vec<Wish> {
        let is_due = |wish: &&Wish| {
            self.newest_of(wish).is_none_or(|newest| !newest.has_its_names || newest.due.min(newest.ask) <= then)
        };
        self.wishes.lock().unwrap().iter().filter(is_due).cloned().collect()
    }

    fn changed(&self) -> Option<BTreeSet<Box<str>>> {
        self.changed_ids.lock().unwrap().replace(BTreeSet::new())
    }

    fn granted(&self, id: &str) -> Option<Wish> {
        self.find(id)
    }

    fn changes(&self) -> Vec<watch::Receiver<u64>> {
        vec![self.changed.subscribe()]
    }

    fn newest(&self, id: &str) -> Option<Arc<CertRow>> {
        if self.blind.load(Ordering::Relaxed) {
            return None;
        }
        let mut read = self.read.lock().unwrap();
        let known = read.get(id).cloned();
        let (version, row) = self.world.rows.last(&format!("{CERT_PREFIX}{id}/"), |row| match known {
            Some(known) if known.0 == row.version => known,
            _ => (row.version, Arc::new(serde_json::from_slice(&row.value).unwrap())),
        })?;
        read.insert(id.to_owned(), (version, Arc::clone(&row)));
        Some(row)
    }

    fn find(&self, id: &str) -> Option<Wish> {
        self.wishes.lock().unwrap().iter().find(|wish| wish.id == id).cloned()
    }

    fn ended_before(&self, then: u64) -> Vec<(String, u64)> {
        let rows = self.world.rows.all(CERT_PREFIX);
        let rows = rows.iter().map(|row| (parse_cert_key(&row.key).unwrap(), &row.value));
        let ended = rows.filter(|(_, value)| serde_json::from_slice::<CertRow>(value).unwrap().not_after < then);
        ended.map(|((id, generation), _)| (id.to_owned(), generation)).collect()
    }

    fn authority(&self, name: &str) -> Option<Arc<dyn Authority>> {
        Some(self.world.ca(name))
    }

    fn reopen(&self, name: &str) {
        self.reopened.lock().unwrap().push(name.to_owned());
    }
}

/// A manager, which dies when this is dropped.
pub(super) struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A world with managers.
pub(super) struct Fleet {
    pub(super) world: Arc<World>,
    pub(super) tables: Arc<Tables>,
    pub(super) clock: Clock,
}

impl Fleet {
    /// With one CA, `sim`, and these wishes.
    pub(super) fn new(wishes: Vec<Wish>) -> Self {
        let clock = Clock::starting_at(START);
        let world = World::new(clock);
        let tables = Tables {
            world: Arc::clone(&world),
            wishes: Mutex::new(wishes),
            changed: watch::Sender::new(0),
            changed_ids: Mutex::default(),
            known: AtomicBool::new(true),
            blind: AtomicBool::new(false),
            reopened: Mutex::default(),
            read: Mutex::default(),
        };
        Self { world, tables: Arc::new(tables), clock }
    }

    pub(super) fn ca(&self) -> Arc<Ca> {
        self.world.ca("sim")
    }

    /// A manager that has just started.
    pub(super) async fn manager(&self, name: &str) -> Running {
        let issuer = Arc::new(self.world.process().await);
        let wishes: Arc<dyn Wishes> = Arc::clone(&self.tables) as _;
        Running(tokio::spawn(Manager::new(issuer, wishes, name.to_owned(), self.clock).run()))
    }

    pub(super) fn newest(&self, id: &str) -> Option<Arc<CertRow>> {
        self.tables.newest(id)
    }

    /// Goes on to then, seconds since 1970.
    pub(super) async fn until(&self, unix: u64) {
        tokio::time::sleep(Duration::from_secs(unix.saturating_sub(self.clock.now()))).await;
    }

    pub(super) async fn pass(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

pub(super) fn wish(name: &str, cas: &[&str]) -> Wish {
    Wish {
        id: format!("domain.{name}"),
        names: vec![name.to_owned()],
        kind: Kind::Http01,
        tenant: name.to_owned(),
        cas: cas.iter().map(|ca| ((*ca).to_owned(), String::new())).collect(),
    }
}
