//! Sees to it that every wish has a certificate in time: begins orders when they are due, works on them under a lease, and
//! leaves a CA alone that says it has had enough.

use crate::ca::{Authority, Class, Kind};
use crate::certificate::{CertRow, cert_key};
use crate::lease::{LEASE_PREFIX, Lease, LeaseRow, Next, shard};
use crate::order::issue::{Halt, Issuer, Outcome};
use crate::order::{GATE, OrderRow};
use crate::rows::RowsError;
use crate::unix_now;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How often it looks for what is due (chosen: a domain that was just proved waits that long).
const TICK: Duration = Duration::from_secs(1);
/// Orders that are worked on at once (chosen).
const AT_ONCE: usize = 16;
/// Steps of an order in one go, before its lease is looked at again (chosen: more than an order has).
const STEPS_MAX: usize = 32;
/// Longest time one go may take (chosen: below what a lease lasts without being renewed, were one to hang).
const GO: Duration = Duration::from_secs(120);
/// Pause after the table did not answer.
const ROWS_AWAY: u64 = 5;
/// Failures at one CA before the next one is asked, when little of the old certificate's life is left
/// (`tls-acme-dns.md` §3).
const FAILURES_HERE: u32 = 2;
/// Renewal information is asked for at least this often (Let's Encrypt: twice a day).
const ASK_WINDOW: u64 = 12 * 3600;

/// A certificate somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// What tells it from others, in keys of rows: letters, digits, `-` and `.`.
    pub id: String,
    /// Names, `*.` in front of one for all below it.
    pub names: Vec<String>,
    /// How they are proved.
    pub kind: Kind,
    /// CAs by name, the preferred one first, each with its profile or nothing.
    pub cas: Vec<(String, String)>,
}

/// What a manager is told by those who have tables.
pub trait Wishes: Send + Sync + 'static {
    /// All wishes that are granted: names that were proved to be somebody's, and our own.
    fn all(&self) -> Vec<Wish>;
    /// The newest certificate of an id, as this PoP knows it.
    fn newest(&self, id: &str) -> Option<Arc<CertRow>>;
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
    leases: Mutex<HashMap<u64, Lease>>,
    /// When each wish is looked at again, and when it was due then: somebody may want it sooner.
    again: Mutex<HashMap<String, (u64, u64)>>,
}

/// Why nothing was done just now.
enum Pause {
    Until(u64),
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
    pub fn new(issuer: Arc<Issuer>, wishes: Arc<dyn Wishes>, me: String) -> Arc<Self> {
        Arc::new(Self { issuer, wishes, me, leases: Mutex::default(), again: Mutex::default() })
    }

    /// Works; never returns.
    ///
    /// # Cancel safety
    /// Dropping it leaves orders where their rows say they are. Others take over when its leases end.
    pub async fn run(self: Arc<Self>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut working = JoinSet::new();
        let mut busy = std::collections::HashSet::new();
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                Some(done) = working.join_next() => {
                    if let Ok((id, again)) = done {
                        busy.remove(&id);
                        self.again.lock().unwrap_or_else(PoisonError::into_inner).insert(id, again);
                    }
                    continue;
                }
            }
            let now = unix_now();
            let wishes = self.wishes.all();
            self.forget(&wishes);
            for wish in wishes {
                if working.len() >= AT_ONCE {
                    break;
                }
                if busy.contains(&wish.id) || !self.is_time(&wish, now) {
                    continue;
                }
                busy.insert(wish.id.clone());
                let (this, due) = (Arc::clone(&self), self.due(&wish));
                working.spawn(async move {
                    let until = tokio::time::timeout(GO, this.go(&wish)).await;
                    let until = until.unwrap_or_else(|_| {
                        tracing::warn!(id = wish.id, "an order hung; it is gone on with later");
                        unix_now() + ROWS_AWAY
                    });
                    (wish.id, (until, due))
                });
            }
        }
    }

    fn forget(&self, wishes: &[Wish]) {
        let mut again = self.again.lock().unwrap_or_else(PoisonError::into_inner);
        if again.len() > wishes.len() {
            let wanted: std::collections::HashSet<_> = wishes.iter().map(|wish| wish.id.as_str()).collect();
            again.retain(|id, _| wanted.contains(id.as_str()));
        }
    }

    /// When its newest certificate is due; at once without one.
    fn due(&self, wish: &Wish) -> u64 {
        self.wishes.newest(&wish.id).map_or(0, |newest| newest.due(&wish.id))
    }

    fn is_time(&self, wish: &Wish, now: u64) -> bool {
        let again = self.again.lock().unwrap_or_else(PoisonError::into_inner).get(&wish.id).copied();
        if again.is_some_and(|(again, due)| now < again && due <= self.due(wish)) {
            return false;
        }
        self.wishes
            .newest(&wish.id)
            .is_none_or(|newest| newest.names != wish.names || newest.due(&wish.id) <= now || asks_window(&newest, now))
    }

    /// Does what can be done about a wish; when to look again.
    async fn go(&self, wish: &Wish) -> u64 {
        match self.work(wish).await {
            Ok(until) | Err(Pause::Until(until)) => until,
            // Somebody else has it, and its row says more next time.
            Err(Pause::Rows(RowsError::Conflict)) => unix_now() + 1,
            Err(Pause::Rows(error)) => {
                tracing::warn!(id = wish.id, %error, "no certificate can be seen to without the store");
                unix_now() + ROWS_AWAY
            }
        }
    }

    async fn work(&self, wish: &Wish) -> Result<u64, Pause> {
        let fence = self.hold(shard(&wish.id)).await?;
        let newest = self.wishes.newest(&wish.id);
        let due = newest.as_ref().is_none_or(|newest| newest.names != wish.names || newest.due(&wish.id) <= unix_now());
        if !due {
            let newest = newest.ok_or_else(|| Pause::Until(unix_now() + 1))?;
            return self.ask_window(wish, &newest).await;
        }
        let mut order = match self.issuer.find(&wish.id).await? {
            Some(order) if order.row.names == wish.names => order,
            Some(order) => {
                // Of a wish that has changed since.
                let key = crate::order::issue::order_key(&wish.id);
                self.issuer.rows.compare_and_set(&key, Some(order.version), None).await?;
                return Ok(unix_now());
            }
            None => self.issuer.begin(&wish.id, Self::new_order(wish, newest.as_deref(), fence)?).await?,
        };
        let life_left = |now: u64| {
            newest.as_ref().is_none_or(|row| (row.not_after.saturating_sub(now)) * 3 < row.not_after - row.not_before)
        };
        for _ in 0..STEPS_MAX {
            let now = unix_now();
            let row = &order.row;
            let known = wish.cas.iter().position(|(name, _)| *name == row.ca);
            if known.is_none() || (row.failures_here >= FAILURES_HERE && life_left(now) && wish.cas.len() > 1) {
                let (ca, profile) = &wish.cas[known.map_or(0, |at| (at + 1) % wish.cas.len())];
                tracing::info!(id = wish.id, from = row.ca, to = ca, "another CA is asked");
                let elsewhere = OrderRow { profile: profile.clone(), ..row.elsewhere(ca, now) };
                self.issuer.write(&mut order, elsewhere).await?;
                continue;
            }
            let ca = self.wishes.authority(&row.ca).ok_or(Pause::Until(now + 1))?;
            self.gate(ca.name(), now).await?;
            if self.fence(shard(&wish.id)) != Some(fence) {
                return Ok(now + 1);
            }
            let failures = order.row.failures;
            let outcome = match self.issuer.step(&mut order, &*ca, now).await {
                Ok(outcome) => outcome,
                Err(Halt::Rows(error)) => return Err(error.into()),
                Err(error) => {
                    tracing::error!(id = wish.id, %error, "an order cannot go on");
                    return Ok(now + 60);
                }
            };
            if order.row.failures > failures {
                self.heed(&order.row, now).await?;
            }
            match outcome {
                Outcome::Again => {}
                Outcome::Wait(until) if until <= now + 3 => {
                    tokio::time::sleep(Duration::from_secs(until.saturating_sub(now).max(1))).await;
                    self.hold(shard(&wish.id)).await?;
                }
                Outcome::Wait(until) => return Ok(until),
                Outcome::Issued(row) => {
                    tracing::info!(id = wish.id, names = ?row.names, ca = row.ca, not_after = row.not_after, "a certificate");
                    // Until the table says so here too.
                    return Ok(now + 5);
                }
            }
        }
        Ok(unix_now() + 1)
    }

    fn new_order(wish: &Wish, newest: Option<&CertRow>, fence: u64) -> Result<OrderRow, Pause> {
        let now = unix_now();
        let (ca, profile) = wish.cas.first().ok_or(Pause::Until(now + 60))?;
        let generation = newest.map_or(1, |newest| newest.generation + 1);
        let new = OrderRow::new(wish.names.clone(), ca, wish.kind, generation, now);
        let replaced = newest.filter(|newest| newest.ca == *ca && newest.not_after > now && newest.window.is_some());
        let replaces = replaced.and_then(|newest| newest.ari.clone());
        Ok(OrderRow { profile: profile.clone(), replaces, fence, ..new })
    }

    /// What a failure means for more than its order.
    async fn heed(&self, row: &OrderRow, now: u64) -> Result<(), RowsError> {
        let Some(problem) = &row.last_problem else { return Ok(()) };
        match problem.class {
            Class::RateLimited => {
                let wait = problem.retry_after.map_or(GATE, |wait| wait.as_secs());
                let key = gate_key(&row.ca);
                let present = self.issuer.rows.get(&key).await?;
                let until = (now + wait).to_string();
                let version = present.map(|row| row.version);
                match self.issuer.rows.compare_and_set(&key, version, Some(until.as_bytes())).await {
                    // Somebody else has heard it as well.
                    Ok(_) | Err(RowsError::Conflict) => Ok(()),
                    Err(error) => Err(error),
                }
            }
            Class::Account => {
                self.wishes.reopen(&row.ca);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether the CA may be asked anything.
    async fn gate(&self, ca: &str, now: u64) -> Result<(), Pause> {
        let closed = self.issuer.rows.get(&gate_key(ca)).await?;
        let until = closed.and_then(|row| std::str::from_utf8(&row.value).ok()?.parse::<u64>().ok());
        match until {
            Some(until) if now < until => Err(Pause::Until(until)),
            _ => Ok(()),
        }
    }

    async fn ask_window(&self, wish: &Wish, newest: &CertRow) -> Result<u64, Pause> {
        let now = unix_now();
        let ca = self.wishes.authority(&newest.ca).ok_or(Pause::Until(now + 60))?;
        self.gate(ca.name(), now).await?;
        let Some(leaf) = crate::order::verify::leaf(&newest.chain) else { return Ok(now + ASK_WINDOW) };
        let window = match ca.window(&leaf).await {
            // One that has none is not asked again soon.
            Ok(None) => return Ok(now + ASK_WINDOW),
            Ok(Some(window)) => window,
            Err(problem) => {
                tracing::info!(id = wish.id, ca = newest.ca, %problem, "no renewal information");
                let wait = problem.retry_after.map_or(ASK_WINDOW / 12, |wait| wait.as_secs());
                return Ok(now + wait);
            }
        };
        let row = CertRow { window: Some(window), ..newest.clone() };
        let key = cert_key(&wish.id, newest.generation);
        let Some(found) = self.issuer.rows.get(&key).await? else { return Ok(now + 5) };
        self.issuer.rows.compare_and_set(&key, Some(found.version), Some(&row.encode())).await?;
        Ok(now + 5)
    }

    fn fence(&self, shard: u64) -> Option<u64> {
        let leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        leases.get(&shard)?.fence(Instant::now())
    }

    /// Holds the lease of a shard; its fence.
    async fn hold(&self, shard: u64) -> Result<u64, Pause> {
        let key = format!("{LEASE_PREFIX}{shard}");
        let found = self.issuer.rows.get(&key).await?;
        let row =
            found.as_ref().and_then(|row| Some((serde_json::from_slice::<LeaseRow>(&row.value).ok()?, row.version)));
        let began = Instant::now();
        let with = |does: &mut dyn FnMut(&mut Lease)| {
            let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
            does(leases.entry(shard).or_insert_with(|| Lease::new(self.me.clone())));
        };
        let mut next = None;
        with(&mut |lease| next = Some(lease.look(row.as_ref().map(|(row, version)| (row, *version)), began)));
        match next {
            Some(Next::Write(wanted)) => {
                let value = serde_json::to_vec(&wanted).unwrap_or_default();
                let expected = found.map(|row| row.version);
                let version = self.issuer.rows.compare_and_set(&key, expected, Some(&value)).await?;
                with(&mut |lease| lease.wrote(&wanted, version, began));
                Ok(wanted.fence)
            }
            Some(Next::Wait(until)) => match self.fence(shard) {
                Some(fence) => Ok(fence),
                None => {
                    let wait = until.saturating_duration_since(Instant::now()).as_secs().clamp(1, 5);
                    Err(Pause::Until(unix_now() + wait))
                }
            },
            None => Err(Pause::Until(unix_now() + 1)),
        }
    }
}

/// Where it stands until when a CA is left alone, seconds since 1970.
fn gate_key(ca: &str) -> String {
    format!("gate/{ca}")
}

fn asks_window(row: &CertRow, now: u64) -> bool {
    row.ari.is_some() && row.window.is_none_or(|window| window.ask_again <= now)
}
