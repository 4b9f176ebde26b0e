//! Answers to challenges, on every PoP: rows `chal/KIND/NAME`, and who has heard of them.
//!
//! A CA looks from several places, and with Anycast each may reach another PoP. So a CA is told to look when every PoP that
//! is there answers: each says in a row of its own (`here/POP`) which challenges it answers, and that it lives. One that
//! says nothing for a while is not waited for.

use super::accounts::Accounts;
use super::alpn::AlpnAnswers;
use super::challenge_rows::{self, ChallengeRow, HERE, HereRow, PREFIX, mark};
use super::peers::Peers;
use super::pull::Puller;
use super::rows::StoreRows;
use super::served::Served;
use super::wishes::{self, For};
use crate::domains::delegation::Delegations;
use acme::ca::{Challenge, Class, Kind, Problem, Reply};
use acme::dns::Published;
use acme::order::issue::Challenges;
use acme::rows::{Rows, RowsError};
use acme::unix_now;
use config::Config;
use router::registry::{self, Registry, RegistryRow as _};
use router::store::Store;
use rustls::ServerConfig;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long every PoP has to answer a challenge before the step is tried again (`tls-acme-dns.md` §3).
const EVERYWHERE: Duration = Duration::from_secs(3);
/// How often a PoP says that it lives, when nothing else happens (chosen: twenty rows a minute and PoP).
const BEAT: Duration = Duration::from_secs(3);
/// A PoP whose row stood still for so long is not waited for (chosen: two beats may be lost, and it is over before the
/// dead PoP's leases are, `acme::lease::TAKE`).
const SILENT: Duration = Duration::from_secs(10);
/// An answer that nobody took back ends by itself, seconds (chosen: Let's Encrypt's authorizations live an hour).
const LIVES: u64 = 3600;
/// Tries of one write against others' (chosen: two CAs may prove a name at once).
const TRIES: usize = 8;

/// Where the answers are marked that need no row.
const STATELESS: &str = "http/*";

/// What [`Pops`] are made of.
pub(super) struct Given {
    pub(super) table: Arc<Registry<ChallengeRow>>,
    pub(super) published: Arc<Published>,
    pub(super) accounts: Arc<Accounts>,
    pub(super) delegations: Delegations,
    pub(super) peers: Option<Peers>,
    pub(super) served: Arc<Served>,
    /// Where the HTTPS of this PoP is reached.
    pub(super) https: Option<SocketAddr>,
    /// Ids of the key encryption keys this PoP knows, the one in use first.
    pub(super) keks: Vec<String>,
}

/// The PoPs of the fleet; a machine that stands alone is the only one.
pub(super) struct Pops {
    rows: Arc<StoreRows>,
    table: Arc<Registry<ChallengeRow>>,
    accounts: Arc<Accounts>,
    /// How a custom domain is proved that delegates nothing.
    kind: Kind,
    delegations: Delegations,
    /// What a handshake of TLS-ALPN-01 is answered with.
    alpn: AlpnAnswers,
    /// Who is asked for what this PoP has not heard of, if anybody is.
    puller: Option<Arc<Puller>>,
    peers: Option<Peers>,
    /// Marks of what this PoP answers.
    answered: watch::Sender<BTreeSet<String>>,
    served: Arc<Served>,
    /// Where others reach the HTTPS of this PoP.
    https: Option<SocketAddr>,
    keks: Vec<String>,
    here: Arc<Registry<HereRow>>,
    /// The own row's name; none for a machine that stands alone.
    pop: Option<String>,
    /// When each PoP's row was seen to change last.
    seen: Mutex<BTreeMap<String, (HereRow, Instant)>>,
}

impl Pops {
    /// Begins to answer what the store says, and to say so.
    pub(super) fn start(
        config: &Config,
        store: &Store,
        rows: Arc<StoreRows>,
        given: Given,
        process: String,
    ) -> Arc<Self> {
        let pop = Some(config.fleet.name.clone()).filter(|name| !name.is_empty());
        let Given { table, published, accounts, delegations, peers, served, https, keks } = given;
        let here = Arc::new(Registry::new());
        let puller = peers.as_ref().map(|peers| Puller::new(Arc::new(peers.link.clone())));
        let answered = watch::Sender::new(BTreeSet::new());
        let alpn = AlpnAnswers::default();
        let kind = wishes::kind(config);
        let pops = Arc::new(Self {
            rows,
            table,
            accounts,
            kind,
            delegations,
            alpn,
            puller,
            peers,
            answered,
            served,
            https,
            keks,
            here,
            pop,
            seen: Mutex::default(),
        });
        let (store, table, here) = (Arc::clone(store), Arc::clone(&pops.table), Arc::clone(&pops.here));
        // Neither is of use after a start: an order lives minutes, and who was there may be gone.
        tokio::spawn(registry::follow_in_memory(Arc::clone(&store), table));
        tokio::spawn(Arc::clone(&pops).answer(published));
        if let Some(pop) = pops.pop.clone() {
            tokio::spawn(registry::follow_in_memory(store, here));
            let (this, own) = (Arc::clone(&pops), pop.clone());
            tokio::spawn(async move {
                if let Some(peers) = &this.peers {
                    peers.follow(&own, &this.here).await;
                }
            });
            tokio::spawn(Arc::clone(&pops).watch());
            tokio::spawn(Arc::clone(&pops).say(pop, process));
        }
        pops
    }

    /// What a token of a CA that is not the first is answered with.
    pub(super) fn http(&self, token: &str) -> Option<String> {
        let row = self.table.lookup(format!("http/{token}"))?;
        row.answers.first().map(|given| given.value.clone())
    }

    /// What other PoPs answer at `KIND/NAME`.
    pub(super) async fn pull(&self, at: String) -> Arc<[String]> {
        match &self.puller {
            Some(puller) => puller.pull(at).await,
            None => Arc::default(),
        }
    }

    /// What a handshake that looks for a challenge of this name goes on with.
    pub(super) fn alpn(&self, name: &str) -> Option<Arc<ServerConfig>> {
        self.alpn.find(name)
    }

    /// Keeps what this PoP answers as the table is.
    async fn answer(self: Arc<Self>, published: Arc<Published>) {
        let (mut changes, mut accounts) = (self.table.changes(), self.accounts.changes());
        let mut known = BTreeSet::new();
        loop {
            changes.mark_unchanged();
            accounts.mark_unchanged();
            let rows = self.table.all();
            let all: BTreeSet<_> = rows
                .iter()
                .flat_map(|row| row.answers.iter().map(|given| (row.at.clone(), given.value.clone())))
                .collect();
            for (at, value) in known.difference(&all) {
                match at.split_once('/') {
                    Some(("txt", name)) => drop(published.remove(name, value)),
                    Some(("alpn", name)) => self.alpn.remove(name),
                    _ => {}
                }
            }
            let mut answered = all.clone();
            for (at, value) in all.difference(&known) {
                let added = match at.split_once('/') {
                    Some(("txt", name)) => published.add(name, value).map_err(|error| error.to_string()),
                    Some(("alpn", name)) => self.alpn.add(name, value).map_err(|error| error.to_string()),
                    _ => Ok(()),
                };
                if let Err(error) = added {
                    tracing::warn!(at, error, "a challenge is not answered");
                    answered.remove(&(at.clone(), value.clone()));
                }
            }
            let marks = answered.iter().map(|(at, value)| mark(at, value));
            let stateless = self.accounts.thumbprint().map(|thumbprint| mark(STATELESS, &thumbprint));
            let answers: BTreeSet<_> = marks.chain(stateless).collect();
            self.answered.send_if_modified(|before| {
                let changed = *before != answers;
                *before = answers;
                changed
            });
            known = answered;
            let changed = tokio::select! {
                changed = changes.changed() => changed,
                changed = accounts.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Notes when each PoP's row changes.
    async fn watch(self: Arc<Self>) {
        let mut changes = self.here.changes();
        loop {
            changes.mark_unchanged();
            let (rows, now) = (self.here.all(), Instant::now());
            {
                let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.retain(|pop, _| rows.iter().any(|row| row.pop == *pop));
                for row in rows {
                    if seen.get(&row.pop).is_none_or(|(known, _)| *known != *row) {
                        seen.insert(row.pop.clone(), ((*row).clone(), now));
                    }
                }
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Says what this PoP answers, at each change and each [`BEAT`].
    async fn say(self: Arc<Self>, pop: String, process: String) {
        let at = format!("{HERE}{pop}");
        let (mut answered, mut spoken) = (self.answered.subscribe(), self.served.spoken());
        let mut beat = 0;
        loop {
            let (answers, serves) = (answered.borrow_and_update().clone(), spoken.borrow_and_update().clone());
            beat += 1;
            let (key, endpoint) = self.peers.as_ref().map(|peers| (peers.key.clone(), peers.endpoint)).unzip();
            let (pop, process, https, keks) = (pop.clone(), process.clone(), self.https, self.keks.clone());
            let row = HereRow { pop, process, beat, answers, serves, https, key, endpoint, keks };
            if let Err(error) = put(&self.rows, &at, &row.encode()).await {
                tracing::debug!(%error, "the PoP's presence is not written");
            }
            tokio::select! {
                changed = answered.changed() => if changed.is_err() { return },
                changed = spoken.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(BEAT) => {}
            }
        }
    }

    /// Where the answers to the challenges of an order are, and who does not answer them.
    pub(super) fn challenges_of(&self, id: &str) -> (Vec<String>, Vec<String>) {
        let rows = self.table.all();
        let given = rows.iter().flat_map(|row| row.answers.iter().map(|given| (&row.at, given)));
        let of_it: Vec<_> = given.filter(|(_, given)| given.id == id).collect();
        let marks: Vec<_> = of_it.iter().map(|(at, given)| mark(at, &given.value)).collect();
        (of_it.into_iter().map(|(at, _)| at.clone()).collect(), self.lacking(&marks))
    }

    /// The name of this PoP, and where the HTTPS of the others that live is reached.
    pub(super) fn reached_at(&self) -> (String, BTreeMap<String, SocketAddr>) {
        let own = self.pop.clone().unwrap_or_else(|| "this machine".into());
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let others = seen.iter().filter(|(pop, (_, since))| **pop != own && since.elapsed() < SILENT);
        let others = others.filter_map(|(pop, (row, _))| Some((pop.clone(), row.https?))).collect();
        (own, others)
    }

    /// What each PoP that lives says it serves of a wish: a generation, 0 for none, nothing when it does not say. This one
    /// comes first.
    pub(super) fn serving(&self, wish: &str) -> Vec<(String, Option<u64>)> {
        let own = self.pop.as_deref().unwrap_or("this machine");
        let here = self.served.spoken().borrow().get(wish).copied();
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let others = seen.iter().filter(|(pop, (_, since))| *pop != own && since.elapsed() < SILENT);
        let others = others.map(|(pop, (row, _))| (pop.clone(), row.serves.get(wish).copied()));
        std::iter::once((own.to_owned(), here)).chain(others).collect()
    }

    /// The key encryption keys each PoP that lives knows, the one in use first; this one comes first.
    pub(super) fn keks(&self) -> Vec<(String, Vec<String>)> {
        let own = self.pop.as_deref().unwrap_or("this machine");
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let others = seen.iter().filter(|(pop, (_, since))| *pop != own && since.elapsed() < SILENT);
        let others = others.map(|(pop, (row, _))| (pop.clone(), row.keks.clone()));
        std::iter::once((own.to_owned(), self.keks.clone())).chain(others).collect()
    }

    /// Who does not answer all of this yet.
    fn lacking(&self, marks: &[String]) -> Vec<String> {
        let lacks = |answers: &BTreeSet<String>| marks.iter().any(|mark| !answers.contains(mark));
        let own = self.pop.as_deref().unwrap_or("this machine");
        let mut lacking = Vec::new();
        if lacks(&self.answered.borrow()) {
            lacking.push(own.to_owned());
        }
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let others = seen.iter().filter(|(pop, (_, since))| *pop != own && since.elapsed() < SILENT);
        lacking.extend(others.filter(|(_, (row, _))| lacks(&row.answers)).map(|(pop, _)| pop.clone()));
        lacking
    }

    async fn everywhere(&self, marks: &[String]) -> Result<(), Problem> {
        let end = Instant::now() + EVERYWHERE;
        loop {
            let lacking = self.lacking(marks);
            if lacking.is_empty() {
                return Ok(());
            }
            if Instant::now() >= end {
                let why = format!("not every PoP answers the challenge yet: {}", lacking.join(", "));
                return Err(Problem::new(Class::Unready, why));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn change(&self, at: &str, change: impl Fn(&mut Vec<challenge_rows::Given>)) -> Result<(), RowsError> {
        let key = format!("{PREFIX}{at}");
        for _ in 0..TRIES {
            let found = self.rows.get(&key).await?;
            let mut answers: Vec<challenge_rows::Given> =
                found.as_ref().and_then(|row| serde_json::from_slice(&row.value).ok()).unwrap_or_default();
            let before = answers.clone();
            let now = unix_now();
            answers.retain(|given| given.until > now);
            change(&mut answers);
            if answers == before {
                return Ok(());
            }
            let value = (!answers.is_empty()).then(|| serde_json::to_vec(&answers).unwrap_or_default());
            match self.rows.compare_and_set(&key, found.map(|row| row.version), value.as_deref()).await {
                Err(RowsError::Conflict) => {}
                written => return written.map(drop),
            }
        }
        Err(RowsError::Conflict)
    }

    /// Where the answer to a challenge is, and what it is; `None` when every PoP answers it without.
    fn place(&self, id: &str, challenge: &Challenge) -> Option<(String, String)> {
        match challenge.kind {
            Kind::Dns01 => {
                let ours = || format!("_acme-challenge.{}", challenge.name);
                let delegated = match For::of(id) {
                    Some(For::Domain(domain)) => self.delegations.target(domain),
                    _ => None,
                };
                Some((format!("txt/{}", delegated.unwrap_or_else(ours)), challenge.txt.clone()))
            }
            Kind::Http01 => {
                let (_, thumbprint) = challenge.key_authorization.split_once('.')?;
                let firsts = self.accounts.thumbprint().is_some_and(|first| *first == thumbprint);
                (!firsts).then(|| (format!("http/{}", challenge.token), challenge.key_authorization.clone()))
            }
            // One answer at a time: a handshake has room for no other (RFC 8737 §3).
            Kind::TlsAlpn01 => Some((format!("alpn/{}", challenge.name), challenge.txt.clone())),
        }
    }
}

/// Writes a row that is nobody else's, whatever is there.
async fn put(rows: &StoreRows, key: &str, value: &[u8]) -> Result<(), RowsError> {
    for _ in 0..TRIES {
        let version = rows.get(key).await?.map(|row| row.version);
        match rows.compare_and_set(key, version, Some(value)).await {
            Err(RowsError::Conflict) => {}
            written => return written.map(drop),
        }
    }
    Err(RowsError::Conflict)
}

fn problem(error: &RowsError) -> Problem {
    Problem::new(Class::Unavailable, format!("the answer to a challenge is not in the store: {error}"))
}

impl Challenges for Pops {
    fn publish<'a>(&'a self, id: &'a str, challenges: &'a [Challenge]) -> Reply<'a, ()> {
        Box::pin(async move {
            let mut marks = Vec::new();
            for challenge in challenges {
                let Some((at, value)) = self.place(id, challenge) else {
                    // Whoever still answers with another key of the account is waited for.
                    let thumbprint = challenge.key_authorization.split_once('.').map(|(_, thumbprint)| thumbprint);
                    let stateless = thumbprint.filter(|_| challenge.kind == Kind::Http01);
                    marks.extend(stateless.map(|thumbprint| mark(STATELESS, thumbprint)));
                    continue;
                };
                let add = |answers: &mut Vec<challenge_rows::Given>| {
                    answers.retain(|given| given.value != value && challenge.kind != Kind::TlsAlpn01);
                    answers.push(challenge_rows::Given {
                        value: value.clone(),
                        id: id.to_owned(),
                        until: unix_now() + LIVES,
                    });
                };
                self.change(&at, add).await.map_err(|error| problem(&error))?;
                marks.push(mark(&at, &value));
            }
            self.everywhere(&marks).await
        })
    }

    fn came_of_it(&self, ca: &str, outcome: Result<(), Class>) {
        self.served.counted().outcome(ca, outcome);
    }

    fn kind<'a>(&'a self, id: &'a str, names: &'a [String], wanted: Kind) -> Reply<'a, Kind> {
        Box::pin(async move {
            let Some(For::Domain(domain)) = For::of(id) else { return Ok(wanted) };
            let usual = if wanted == Kind::Dns01 { self.kind } else { wanted };
            match self.delegations.look(domain).await {
                Ok(()) => Ok(Kind::Dns01),
                // Nothing but DNS-01 proves one (RFC 8555 §7.1.3).
                Err(why) if names.iter().any(|name| name.starts_with("*.")) => {
                    Err(Problem::new(Class::Undelegated, why))
                }
                Err(_) => Ok(usual),
            }
        })
    }

    fn withdraw<'a>(&'a self, id: &'a str) -> Reply<'a, ()> {
        Box::pin(async move {
            let all = self.table.all();
            let of_it = all.iter().filter(|row| row.answers.iter().any(|given| given.id == id));
            for row in of_it {
                let take = |answers: &mut Vec<challenge_rows::Given>| answers.retain(|given| given.id != id);
                self.change(&row.at, take).await.map_err(|error| problem(&error))?;
            }
            Ok(())
        })
    }
}
