//! The accounts at the CAs, opened beside everything else and opened again when a CA does not know them.

use super::rows::StoreRows;
use super::thumbprints::Thumbprints;
use acme::account::{self, Ca};
use acme::ca::Authority;
use acme::ca::client::{External, Http};
use acme::seal::Sealer;
use anyhow::Context;
use arc_swap::ArcSwapOption;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use config::{Acme, AcmeCa};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use zeroize::Zeroizing;

/// First pause after an account could not be opened, doubled each time.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest (chosen).
const AGAIN_MAX: Duration = Duration::from_secs(300);
/// How often the row of an account is read again: another PoP may have changed its key (chosen).
const READ: Duration = Duration::from_secs(60);

struct Account {
    ca: Ca,
    open: ArcSwapOption<Opened>,
    thumbprint: ArcSwapOption<String>,
    again: Notify,
}

struct Opened {
    authority: Arc<dyn Authority>,
    generation: u64,
}

/// All accounts, the first CA's first.
pub(super) struct Accounts {
    all: Vec<Account>,
    /// What was known of them at the last run, and what the store says.
    known: Arc<Thumbprints>,
}

impl Accounts {
    pub(super) fn new(acme: &Acme, known: Arc<Thumbprints>) -> anyhow::Result<Arc<Self>> {
        let open = |ca: AcmeCa| -> anyhow::Result<Account> {
            let trusts = router::trust::trusting(&ca.ca_file).with_context(|| format!("acme: CA {}", ca.name))?;
            let external = external(&ca)?;
            let http = Http::new(trusts);
            let contact = acme.contact.clone();
            let ca = Ca { name: ca.name, directory: ca.directory, contact, external, http };
            Ok(Account { ca, open: ArcSwapOption::empty(), thumbprint: ArcSwapOption::empty(), again: Notify::new() })
        };
        let all = acme.cas().into_iter().map(open).collect::<Result<_, _>>()?;
        Ok(Arc::new(Self { all, known }))
    }

    fn find(&self, name: &str) -> Option<&Account> {
        self.all.iter().find(|account| account.ca.name == name)
    }

    pub(super) fn authority(&self, name: &str) -> Option<Arc<dyn Authority>> {
        Some(Arc::clone(&self.find(name)?.open.load_full()?.authority))
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
        let first = self.all.first()?;
        first.thumbprint.load_full().or_else(|| {
            let known = self.known.lookup(first.ca.name.clone())?;
            let here = known.account.directory == first.ca.directory;
            here.then(|| Arc::new(known.account.thumbprint.clone()))
        })
    }

    /// Opens each account, and again when it is another one; never returns.
    pub(super) async fn keep_open(self: Arc<Self>, rows: Arc<StoreRows>, sealer: Arc<Sealer>) {
        let mut all = tokio::task::JoinSet::new();
        for at in 0..self.all.len() {
            let (this, rows, sealer) = (Arc::clone(&self), Arc::clone(&rows), Arc::clone(&sealer));
            all.spawn(async move { this.all[at].keep_open(&rows, &sealer).await });
        }
        all.join_all().await;
    }
}

impl Account {
    async fn keep_open(&self, rows: &StoreRows, sealer: &Sealer) {
        let mut pause = AGAIN;
        loop {
            match self.look(rows, sealer).await {
                Ok(()) => {
                    pause = AGAIN;
                    tokio::select! {
                        () = self.again.notified() => tokio::time::sleep(AGAIN).await,
                        () = tokio::time::sleep(READ) => {}
                    }
                }
                Err(error) => {
                    tracing::warn!(ca = self.ca.name, %error, ?pause, "the account at a CA is not open");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(AGAIN_MAX);
                }
            }
        }
    }

    async fn look(&self, rows: &StoreRows, sealer: &Sealer) -> Result<(), account::AccountError> {
        let find = || account::find(&self.ca, rows);
        let here = |row: &account::AccountRow| row.directory == self.ca.directory;
        let mut found = find().await?.filter(|(row, _)| here(row));
        // A CA that is away answers no challenge, and still asks: what it asks for is in the row.
        if let Some((row, _)) = &found {
            self.thumbprint.store(Some(Arc::new(row.thumbprint.clone())));
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
