//! The accounts at the CAs, opened beside everything else and opened again when a CA does not know them.

use super::rows::StoreRows;
use acme::account::{self, ACCOUNT_PREFIX, AccountError, AccountRow, Ca, account_key};
use acme::ca::client::{External, Http};
use acme::ca::{Authority, Class, Problem};
use acme::seal::Sealer;
use anyhow::Context;
use arc_swap::ArcSwapOption;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use config::{Acme, AcmeCa};
use router::registry::{self, Registry, RegistryRow};
use router::rows::RowError;
use router::store::Store;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use zeroize::Zeroizing;

/// First pause after an account could not be opened, doubled each time.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest (chosen).
const AGAIN_MAX: Duration = Duration::from_secs(300);
/// How often the row of an account is read again, whatever was heard of it (chosen).
const READ: Duration = Duration::from_secs(60);
/// A change of key that somebody else has begun is finished here after so long (chosen: it takes a second or two).
const ABANDONED: Duration = Duration::from_secs(30);

/// A row `acct/CA`: its CA, and what it says.
#[derive(Clone, Debug)]
struct Said(String, AccountRow);

impl RegistryRow for Said {
    type Id = String;
    const PREFIX: &'static str = ACCOUNT_PREFIX;
    const WHAT: &'static str = "account at a CA";

    fn id(&self) -> String {
        self.0.clone()
    }

    fn id_in(key: &str) -> Option<String> {
        key.strip_prefix(ACCOUNT_PREFIX).map(str::to_owned)
    }

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(&self.1).unwrap_or_default()
    }

    fn decode(key: &str, value: &[u8]) -> Result<Self, RowError> {
        let ca = Self::id_in(key).ok_or(RowError::Field("key"))?;
        Ok(Self(ca, serde_json::from_slice(value).map_err(RowError::Value)?))
    }
}

struct Account {
    ca: Ca,
    open: ArcSwapOption<Opened>,
    thumbprint: ArcSwapOption<String>,
    /// Why it is not open.
    trouble: ArcSwapOption<Problem>,
    again: Notify,
    /// Its key is being changed.
    changes_key: AtomicBool,
    /// Since when the row has had the next key that it has.
    since: Mutex<Option<(String, Instant)>>,
}

struct Opened {
    authority: Arc<dyn Authority>,
    generation: u64,
}

/// All accounts, the first CA's first.
pub(super) struct Accounts {
    all: Vec<Account>,
    said: Arc<Registry<Said>>,
    /// Counts the times a thumbprint may be another.
    changed: watch::Sender<u64>,
}

impl Accounts {
    pub(super) fn new(acme: &Acme) -> anyhow::Result<Arc<Self>> {
        let open = |ca: AcmeCa| -> anyhow::Result<Account> {
            let trusts = router::trust::trusting(&ca.ca_file).with_context(|| format!("acme: CA {}", ca.name))?;
            let external = external(&ca)?;
            let http = Http::new(trusts);
            let contact = acme.contact.clone();
            let ca = Ca { name: ca.name, directory: ca.directory, contact, external, http };
            let (open, thumbprint, trouble) = (ArcSwapOption::empty(), ArcSwapOption::empty(), ArcSwapOption::empty());
            let (changes_key, since) = (AtomicBool::new(false), Mutex::default());
            Ok(Account { ca, open, thumbprint, trouble, again: Notify::new(), changes_key, since })
        };
        let all = acme.cas().into_iter().map(open).collect::<Result<_, _>>()?;
        Ok(Arc::new(Self { all, said: Arc::new(Registry::new()), changed: watch::Sender::new(0) }))
    }

    fn find(&self, name: &str) -> Option<&Account> {
        self.all.iter().find(|account| account.ca.name == name)
    }

    /// Not while its key is being changed: what is signed with the one may come to the CA when it knows the other.
    pub(super) fn authority(&self, name: &str) -> Option<Arc<dyn Authority>> {
        let account = self.find(name).filter(|account| !account.changes_key.load(Ordering::Acquire))?;
        Some(Arc::clone(&account.open.load_full()?.authority))
    }

    /// Why the account at a CA is not open, as far as that is known.
    pub(super) fn trouble(&self, name: &str) -> Option<Problem> {
        let account = self.find(name)?;
        let unopened = account.open.load().is_none();
        unopened.then(|| account.trouble.load_full().as_deref().cloned()).flatten()
    }

    pub(super) fn reopen(&self, name: &str) {
        if let Some(account) = self.find(name) {
            account.open.store(None);
            account.again.notify_one();
        }
    }

    /// Whether there is more than one CA.
    pub(super) const fn are_several(&self) -> bool {
        self.all.len() > 1
    }

    /// The first CA's.
    pub(super) fn thumbprint(&self) -> Option<Arc<String>> {
        self.all.first()?.thumbprint.load_full()
    }

    /// Tells when a thumbprint may be another.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// A CA of this name, or the first.
    pub(super) fn ca(&self, name: Option<&str>) -> Option<&Ca> {
        match name {
            None => self.all.first(),
            Some(name) => self.find(name),
        }
        .map(|account| &account.ca)
    }

    /// Begins to follow the rows of accounts, kept in `file`: what a challenge is answered with is known without the store
    /// and without the CA.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub(super) fn follow(self: &Arc<Self>, store: &Store, file: PathBuf) -> std::io::Result<()> {
        self.said.load(&file)?;
        tokio::spawn(registry::follow(Arc::clone(store), Arc::clone(&self.said), |ca: &String| account_key(ca), file));
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let mut changes = this.said.changes();
            loop {
                changes.mark_unchanged();
                for account in &this.all {
                    let said = this.said.lookup(account.ca.name.clone());
                    if let Some(said) = said.filter(|said| said.1.directory == account.ca.directory) {
                        account.heard(&said.1);
                    }
                }
                this.changed.send_modify(|changed| *changed += 1);
                if changes.changed().await.is_err() {
                    return;
                }
            }
        });
        Ok(())
    }

    /// Opens each account, and again when it is another one; never returns.
    pub(super) async fn keep_open(self: Arc<Self>, rows: Arc<StoreRows>, sealer: Arc<Sealer>) {
        let mut all = tokio::task::JoinSet::new();
        for at in 0..self.all.len() {
            let (this, rows, sealer) = (Arc::clone(&self), Arc::clone(&rows), Arc::clone(&sealer));
            all.spawn(async move { this.all[at].keep_open(&rows, &sealer, &this.changed).await });
        }
        all.join_all().await;
    }
}

impl Account {
    /// What its row says.
    fn heard(&self, row: &AccountRow) {
        let known = self.open.load().as_ref().map(|open| open.generation);
        self.thumbprint.store(Some(Arc::new(row.thumbprint.clone())));
        self.changes_key.store(row.next.is_some(), Ordering::Release);
        if known.is_some_and(|known| known != row.generation) {
            self.open.store(None);
            self.again.notify_one();
        }
    }

    /// Whether somebody has begun to change its key, and not finished.
    fn is_abandoned(&self, row: &AccountRow) -> bool {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(next) = &row.next else {
            *since = None;
            return false;
        };
        match &*since {
            Some((known, since)) if *known == next.thumbprint => since.elapsed() >= ABANDONED,
            _ => {
                *since = Some((next.thumbprint.clone(), Instant::now()));
                false
            }
        }
    }

    async fn keep_open(&self, rows: &StoreRows, sealer: &Sealer, changed: &watch::Sender<u64>) {
        let mut pause = AGAIN;
        loop {
            let looked = self.look(rows, sealer).await;
            changed.send_modify(|changed| *changed += 1);
            match looked {
                Ok(()) => {
                    pause = AGAIN;
                    self.trouble.store(None);
                    tokio::select! {
                        () = self.again.notified() => tokio::time::sleep(AGAIN).await,
                        () = tokio::time::sleep(READ) => {}
                    }
                }
                Err(error) => {
                    // Not before the CA wants to hear of it again.
                    let asked_for = match &error {
                        AccountError::Problem(problem) => problem.retry_after.unwrap_or_default(),
                        _ => Duration::ZERO,
                    };
                    let wait = pause.max(asked_for);
                    tracing::warn!(ca = self.ca.name, %error, pause = ?wait, "the account at a CA is not open");
                    self.trouble.store(Some(Arc::new(match error {
                        AccountError::Problem(problem) => problem,
                        error => Problem::new(Class::Unavailable, error.to_string()),
                    })));
                    tokio::time::sleep(wait).await;
                    pause = (pause * 2).min(AGAIN_MAX);
                }
            }
        }
    }

    async fn look(&self, rows: &StoreRows, sealer: &Sealer) -> Result<(), AccountError> {
        let find = || account::find(&self.ca, rows);
        let here = |row: &AccountRow| row.directory == self.ca.directory;
        let mut found = find().await?.filter(|(row, _)| here(row));
        // A CA that is away answers no challenge, and still asks: what it asks for is in the row.
        if let Some((row, _)) = &found {
            self.heard(row);
            if self.is_abandoned(row) {
                tracing::warn!(ca = self.ca.name, "a change of the account's key was not finished; it is now");
                account::finish_roll_over(&self.ca, rows, sealer).await?;
                found = find().await?.filter(|(row, _)| here(row));
            }
        }
        let known = self.open.load().as_ref().map(|open| open.generation);
        if known.is_some() && known == found.as_ref().map(|(row, _)| row.generation) {
            return Ok(());
        }
        let client = account::open(&self.ca, rows, sealer).await?;
        if found.is_none() {
            found = find().await?.filter(|(row, _)| here(row));
        }
        let generation = found.map_or(0, |(row, _)| row.generation);
        self.thumbprint.store(Some(Arc::new(client.thumbprint().to_owned())));
        self.open.store(Some(Arc::new(Opened { authority: Arc::new(client), generation })));
        Ok(())
    }
}

fn external(ca: &AcmeCa) -> anyhow::Result<Option<External>> {
    if ca.eab_id.is_empty() {
        return Ok(None);
    }
    let path = &ca.eab_key_file;
    let text = std::fs::read_to_string(path).map(Zeroizing::new);
    let text = text.with_context(|| format!("acme: eab_key_file {}", path.display()))?;
    let key = URL_SAFE_NO_PAD.decode(text.trim().trim_end_matches('=')).ok();
    let key = key.with_context(|| format!("acme: eab_key_file {}: no base64url", path.display()))?;
    Ok(Some(External { id: ca.eab_id.clone(), key: Zeroizing::new(key) }))
}
