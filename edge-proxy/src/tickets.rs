//! The ticket keys of this edge, kept in step with the rows of the store: one task for both rings.

use acme::seal::Kek;
use acme::tickets::{PREFIX, Policy, Rotation, Sealer, Shown, TicketRing, Write};
use anyhow::Context;
use config::Config;
use router::store::{FeedEvent, Store, StoreError};
use router::subscriber::{Heard, Subscriber};
use rustls::server::ProducesTickets;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

/// Longest pause between two looks at what is due (chosen: a key becomes active within a second of its minute).
const TURN_MAX: Duration = Duration::from_secs(1);
/// Looks in a period, so that short ones of tests are kept too.
const TURNS: u32 = 120;
/// After a write that the store did not do, the pause before the next (chosen).
const AGAIN: Duration = Duration::from_secs(1);
/// How long a start waits for its first key (chosen: an embedded store answers at once, and without a key there is
/// no ticket, which costs a client a full handshake).
const FIRST: Duration = Duration::from_millis(250);
/// Times a purge looks for rows that were written meanwhile (chosen).
const PURGES: usize = 8;

/// Both rings, and what is done with them.
pub struct Tickets {
    store: Store,
    sealer: Box<dyn Sealer>,
    period: Duration,
    rings: [Ring; 2],
    wakes: Notify,
    first: Notify,
}

struct Ring {
    policy: Policy,
    ring: Arc<TicketRing>,
    rotation: Mutex<Rotation>,
}

impl Ring {
    fn rotation(&self) -> MutexGuard<'_, Rotation> {
        self.rotation.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tickets {
    /// As the config says; `None` for an edge of a fleet that has no key to seal with (`tls.kek`, or else
    /// `acme.kek_file`). `member` names this
    /// process among the edges.
    ///
    /// # Errors
    /// The key's file, and why.
    pub fn open(config: &Config, store: Store, member: &str) -> anyhow::Result<Option<Arc<Self>>> {
        let sealer = match (config.tls.kek.as_os_str().is_empty(), config.fleet.name.is_empty()) {
            (false, _) => Kek::from_file(&config.tls.kek).context("tls.kek")?,
            // Alone, nobody else has to open what is sealed here.
            (true, true) => Kek::from_file_or_new(&config.data_dir.join("kek"))?,
            // The fleet has a key already, and tickets that all edges know can be made void on all of them.
            (true, false) if config.acme.is_on() => Kek::from_file(&config.acme.kek_file).context("acme.kek_file")?,
            (true, false) => return Ok(None),
        };
        let period = config.tls.ticket_period;
        let rings = Policy::ALL.map(|policy| {
            let rotation = Mutex::new(Rotation::new(policy, member, period));
            Ring { policy, ring: TicketRing::new(period), rotation }
        });
        let (wakes, first) = (Notify::new(), Notify::new());
        Ok(Some(Arc::new(Self { store, sealer: Box::new(sealer), period, rings, wakes, first })))
    }

    /// What rustls is given for names of this policy; a ticket opens in the scope it was made in alone.
    #[must_use]
    pub fn ticketer(&self, policy: Policy, scope: [u8; 32]) -> Arc<dyn ProducesTickets> {
        self.of(policy).ring.ticketer(scope)
    }

    fn of(&self, policy: Policy) -> &Ring {
        &self.rings[usize::from(policy != Policy::Normal)]
    }

    /// Waits until tickets are made, a quarter of a second at most.
    ///
    /// # Cancel safety
    /// Holds no state.
    pub async fn begun(&self) {
        let first = self.first.notified();
        if self.rings.iter().any(|ring| ring.ring.active().is_none()) {
            drop(tokio::time::timeout(FIRST, first).await);
        }
    }

    /// Follows the store; never returns.
    ///
    /// # Cancel safety
    /// Dropping it leaves the rings as they are.
    pub async fn follow(self: Arc<Self>) {
        let mut subscriber = Subscriber::new(Arc::clone(&self.store), PREFIX);
        let mut turns = tokio::time::interval((self.period / TURNS).min(TURN_MAX).max(Duration::from_millis(10)));
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pause_until = tokio::time::Instant::now();
        loop {
            tokio::select! {
                heard = subscriber.next() => self.heard(heard),
                _ = turns.tick() => {}
                () = self.wakes.notified() => {}
            }
            for ring in &self.rings {
                let writes = self.turn(ring);
                if tokio::time::Instant::now() < pause_until {
                    continue;
                }
                for write in writes {
                    if !self.write(ring, write).await {
                        pause_until = tokio::time::Instant::now() + AGAIN;
                        break;
                    }
                }
                self.turn(ring);
            }
            if self.rings.iter().all(|ring| ring.ring.active().is_some()) {
                self.first.notify_waiters();
            }
        }
    }

    fn heard(&self, heard: Heard) {
        for ring in &self.rings {
            let mut rotation = ring.rotation();
            match &heard {
                Heard::Lost => rotation.lost(),
                Heard::Event(FeedEvent::SnapshotBegin { .. }) => rotation.snapshot_begin(),
                Heard::Event(FeedEvent::SnapshotEnd(_)) => rotation.snapshot_end(),
                Heard::Event(FeedEvent::Current(_)) => rotation.caught_up(),
                Heard::Event(FeedEvent::Entry(entry)) => {
                    rotation.put(&entry.key, entry.version, &entry.value, &*self.sealer, now());
                }
                Heard::Event(FeedEvent::Put(entry, _)) => {
                    rotation.caught_up();
                    rotation.put(&entry.key, entry.version, &entry.value, &*self.sealer, now());
                }
                Heard::Event(FeedEvent::Delete(key, _)) => {
                    rotation.caught_up();
                    rotation.delete(key);
                }
            }
        }
    }

    /// What is due goes into the ring; what is to be written is the answer.
    fn turn(&self, ring: &Ring) -> Vec<Write> {
        let mut rotation = ring.rotation();
        if ring.ring.is_worn() {
            rotation.want();
        }
        let writes = rotation.turn(&*self.sealer, now());
        let (active, all) = rotation.ring(now());
        let before = (ring.ring.active(), ring.ring.len());
        if (active.as_ref().map(|key| key.epoch()), all.len()) != before {
            ring.ring.install(active, all);
            tracing::debug!(policy = %ring.policy, active = ring.ring.active(), keys = ring.ring.len(), "ticket keys");
        }
        writes
    }

    /// False when the store did not answer.
    async fn write(&self, ring: &Ring, write: Write) -> bool {
        let done = self.store.compare_and_set(&write.key, write.expected, write.value.as_deref()).await;
        let mut rotation = ring.rotation();
        match (done, write.value) {
            (Ok(version), Some(value)) => rotation.put(&write.key, version, &value, &*self.sealer, now()),
            (Ok(_), None) => rotation.delete(&write.key),
            // Somebody else has done it; the feed says what.
            (Err(StoreError::Conflict { .. }), _) => {}
            (Err(error), _) => {
                tracing::debug!(key = write.key, %error, "a row of a ticket key is not written");
                return false;
            }
        }
        true
    }

    /// Makes new keys, which are used as soon as every edge has them.
    pub fn rotate(&self) {
        for ring in &self.rings {
            ring.rotation().want();
        }
        self.wakes.notify_one();
    }

    /// Deletes every key, everywhere: no ticket made before is worth anything. How many rows there were.
    ///
    /// # Errors
    /// [`StoreError`]: some may be deleted.
    ///
    /// # Cancel safety
    /// What is deleted stays so; call it again.
    pub async fn purge(&self) -> Result<usize, StoreError> {
        let mut purged = Vec::new();
        for round in 0..PURGES {
            let rows = self.store.scan(PREFIX).await?;
            let is_key = |key: &str| Policy::ALL.iter().any(|policy| policy.is_key(key));
            // What is made after the first look is new.
            let rows: Vec<_> = rows.into_iter().filter(|row| is_key(&row.key)).collect();
            if round == 0 {
                purged = rows.iter().map(|row| row.key.clone()).collect();
            }
            let mut left = 0;
            for row in rows.into_iter().filter(|row| purged.contains(&row.key)) {
                match self.store.compare_and_set(&row.key, Some(row.version), None).await {
                    Ok(_) => self.rings.iter().for_each(|ring| ring.rotation().delete(&row.key)),
                    Err(StoreError::Conflict { actual: None, .. }) => {}
                    Err(StoreError::Conflict { .. }) => left += 1,
                    Err(error) => return Err(error),
                }
            }
            if left == 0 {
                break;
            }
        }
        self.wakes.notify_one();
        Ok(purged.len())
    }

    /// What there is, for a person.
    #[must_use]
    pub fn list(&self) -> Value {
        let shown = |ring: &Ring| {
            let shown = ring.rotation().show(now());
            shown.into_iter().map(|key| as_json(ring.policy, &key)).collect::<Vec<_>>()
        };
        self.rings.iter().flat_map(shown).collect()
    }
}

fn as_json(policy: Policy, key: &Shown) -> Value {
    json!({
        "policy": policy.name(),
        "epoch": key.epoch,
        "state": key.state.name(),
        "made_at": key.made_at / 1_000,
        "opened": key.opened,
        "issued_here": key.issued,
        "edges": key.members,
    })
}

/// Milliseconds of Unix time.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
