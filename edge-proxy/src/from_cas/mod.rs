//! Certificates from public CAs, on this PoP: what `acme` needs of the store, the domains, the DNS and the resolver.
//!
//! Every PoP follows the rows `cert/` and serves what they say (`serving.rs`), answers challenges (`challenges.rs`), and works
//! on orders when it holds their lease ([`acme::manager`]). Nothing of this is in the way of a handshake.

mod accounts;
mod alpn;
mod challenge_rows;
mod challenges;
mod peers;
mod pull;
mod rows;
mod serving;
mod table;
mod thumbprints;
mod wishes;

use crate::domain_certificates::DomainCertificates;
use crate::domains::delegation::Delegations;
use accounts::Accounts;
use acme::account::ACCOUNT_PREFIX;
use acme::dns::Published;
use acme::manager::Manager;
use acme::order::issue::Issuer;
use acme::seal::{Kek, SealError, Sealer};
use anyhow::Context;
use challenges::{Given, Pops};
use config::Config;
use peers::Peers;
use router::domains::{DomainName, DomainTable};
use router::pops::PopTable;
use router::registry::{self, Registry};
use router::store::Store;
use rows::StoreRows;
use rustls::ServerConfig;
use std::sync::Arc;
use std::time::Duration;
use table::CertificateRow;
pub use table::CertificateTable;
use thumbprints::Thumbprints;
use wishes::Known;

/// Pause between two tries to read the data keys from a store that is away (chosen).
const AGAIN: Duration = Duration::from_secs(2);

/// What this process is called in leases: another one after each start.
fn process_name(config: &Config) -> String {
    let machine = if config.fleet.name.is_empty() { "alone" } else { &config.fleet.name };
    // No two starts of a machine share it.
    let start = getrandom::u64().map_or_else(|_| std::process::id().to_string(), |bits| format!("{bits:016x}"));
    format!("{machine}-{start}")
}

/// The certificates of the fleet, as this PoP knows them.
pub struct FromCas {
    /// Every certificate there is.
    pub certificates: Arc<CertificateTable>,
    accounts: Arc<Accounts>,
    pops: Arc<Pops>,
}

impl FromCas {
    /// What HTTP-01 answers to a token: that of a CA that is not the first one has a row, here or at another PoP.
    ///
    /// # Cancel safety
    /// Holds no state.
    pub async fn key_authorization(&self, token: &str) -> Option<String> {
        let known = match self.pops.http(token) {
            // Only of several CAs another one may have asked for what is not in a row here.
            None if self.accounts.are_several() => self.pops.pull(format!("http/{token}")).await.first().cloned(),
            known => known,
        };
        known.or_else(|| Some(format!("{token}.{}", self.accounts.thumbprint()?)))
    }

    /// What a handshake goes on with that asks for the answer to a challenge of `name` (lower case), and for nothing else.
    ///
    /// # Cancel safety
    /// Holds no state.
    pub async fn challenge_of(&self, name: &str) -> Option<Arc<ServerConfig>> {
        if let Some(known) = self.pops.alpn(name) {
            return Some(known);
        }
        // Whatever else is called so can be no name of a challenge.
        let name = DomainName::parse(name).ok()?;
        let pulled = self.pops.pull(format!("alpn/{name}")).await;
        acme::alpn::config(name.as_str(), pulled.last()?).ok()
    }

    /// What other PoPs answer for a name in the DNS.
    pub(crate) async fn txt(&self, name: &str) -> Vec<Box<str>> {
        self.pops.pull(format!("txt/{name}")).await.iter().map(|value| value.as_str().into()).collect()
    }
}

/// Begins to follow, serve and order. Returns at once: a store or a CA that is away is waited for beside.
///
/// # Errors
/// The key encryption key or the key of an account binding cannot be read, or the roots of a CA.
pub fn start(
    config: &Config,
    store: &Store,
    domains: Arc<DomainTable>,
    delegations: Delegations,
    pops: Option<Arc<PopTable>>,
    serving: &Arc<DomainCertificates>,
    published: Arc<Published>,
) -> anyhow::Result<Arc<FromCas>> {
    let kek = match config.acme.kek_file.as_os_str().is_empty() {
        true => Kek::from_file_or_new(&config.data_dir.join("kek")),
        false => Kek::from_file(&config.acme.kek_file),
    };
    let kek = kek.context("acme.kek_file")?;
    let (known, file) = (Arc::new(Thumbprints::new()), config.data_dir.join("accounts.last-known-good"));
    known.load(&file).with_context(|| file.display().to_string())?;
    let accounts = Accounts::new(&config.acme, Arc::clone(&known))?;
    tokio::spawn(registry::follow(Arc::clone(store), known, |ca: &String| format!("{ACCOUNT_PREFIX}{ca}"), file));
    let certificates = Arc::new(CertificateTable::new());
    let file = config.data_dir.join("certificates.last-known-good");
    certificates.load(&file).with_context(|| file.display().to_string())?;
    tokio::spawn(registry::follow(Arc::clone(store), Arc::clone(&certificates), CertificateRow::key, file));

    let (rows, me) = (Arc::new(StoreRows(Arc::clone(store))), process_name(config));
    let table = Arc::new(Registry::new());
    let peers = Peers::open(config, pops, pull::Table(Arc::clone(&table)))?;
    let given = Given { table, published, accounts: Arc::clone(&accounts), delegations, peers };
    let pops = Pops::start(config, store, Arc::clone(&rows), given, me.clone());
    let from_cas = Arc::new(FromCas {
        certificates: Arc::clone(&certificates),
        accounts: Arc::clone(&accounts),
        pops: Arc::clone(&pops),
    });
    let wishes = Known::new(config, domains, Arc::clone(&certificates), Arc::clone(&accounts));
    let serving = Arc::clone(serving);
    tokio::spawn(async move {
        let Some(sealer) = sealer(kek, &rows).await else { return };
        tokio::spawn(serving::follow(certificates, Arc::clone(&sealer), Arc::clone(&rows), serving));
        tokio::spawn(accounts.keep_open(Arc::clone(&rows), Arc::clone(&sealer)));
        let issuer = Arc::new(Issuer { rows, sealer, challenges: pops });
        Manager::new(issuer, wishes, me).run().await;
    });
    Ok(from_cas)
}

/// The data keys, as soon as the store says them; `None` when the KEK is not the fleet's: nothing can be done then.
async fn sealer(kek: Kek, rows: &StoreRows) -> Option<Arc<Sealer>> {
    let kek = Arc::new(kek);
    loop {
        match Sealer::load(&kek, rows).await {
            Ok(sealer) => return Some(Arc::new(sealer)),
            Err(SealError::Rows(error)) => {
                tracing::warn!(%error, "the keys of certificates are not read yet");
                tokio::time::sleep(AGAIN).await;
            }
            Err(error) => {
                tracing::error!(%error, "certificates from CAs are neither served nor ordered: acme.kek_file is another than the fleet's");
                return None;
            }
        }
    }
}
