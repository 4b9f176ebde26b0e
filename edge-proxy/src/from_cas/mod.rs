//! Certificates from public CAs, on this PoP: what `acme` needs of the store, the domains, the DNS and the resolver.
//!
//! Every PoP follows the rows `cert/` and serves what they say (`serving.rs`), answers challenges (`challenges.rs`), and works
//! on orders when it holds their lease ([`acme::manager`]). Nothing of this is in the way of a handshake.

mod accounts;
mod as_served;
pub(crate) mod asked;
pub mod causes;
mod challenges;
mod keys;
mod metrics;
mod report;
mod roll_over;
mod rows;
mod served;
mod serving;
mod table;
mod wishes;
mod withdraw;

use crate::domain_certificates::DomainCertificates;
use crate::tls::Tls;
use accounts::Accounts;
use acme::dns::Published;
use acme::manager::Manager;
use acme::order::issue::Issuer;
use acme::revoke::Revoker;
use acme::seal::Kek;
use anyhow::Context;
use as_served::AsServed;
use challenges::Pops;
use config::Config;
use keys::{Keys, KeysHere};
use router::domains::DomainTable;
use router::registry;
use router::store::Store;
use rows::StoreRows;
use served::Served;
use std::net::SocketAddr;
use std::sync::Arc;
use table::CertificateRow;
pub use table::CertificateTable;
use wishes::Known;

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
    wishes: Arc<Known>,
    rows: Arc<StoreRows>,
    served: Arc<Served>,
    keys: Arc<Keys>,
    tls: Arc<Tls>,
    as_served: AsServed,
}

/// What visitors come to.
pub struct Front {
    /// The certificates of handshakes.
    pub serving: Arc<DomainCertificates>,
    /// The handshakes.
    pub tls: Arc<Tls>,
    /// The first address of HTTPS, as it was bound.
    pub https: SocketAddr,
}

impl FromCas {
    /// What HTTP-01 answers to a token: that of a CA that is not the first one has a row.
    #[must_use]
    pub fn key_authorization(&self, token: &str) -> Option<String> {
        let stateless = || Some(format!("{token}.{}", self.accounts.thumbprint()?));
        let answer = self.pops.http(token).or_else(stateless);
        if answer.is_none() {
            self.served.counted().unanswered();
        }
        answer
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
    published: Arc<Published>,
    front: Front,
) -> anyhow::Result<Arc<FromCas>> {
    let kek = match config.acme.kek_file.as_os_str().is_empty() {
        true => Kek::from_file_or_new(&config.data_dir.join("kek")),
        false => Kek::from_file(&config.acme.kek_file),
    };
    let kek = kek.context("acme.kek_file")?;
    let accounts = Accounts::new(&config.acme)?;
    let file = config.data_dir.join("accounts.last-known-good");
    accounts.follow(store, file.clone()).with_context(|| file.display().to_string())?;
    let certificates = Arc::new(CertificateTable::new());
    let file = config.data_dir.join("certificates.last-known-good");
    certificates.load(&file).with_context(|| file.display().to_string())?;
    tokio::spawn(registry::follow(Arc::clone(store), Arc::clone(&certificates), CertificateRow::key, file));

    let (rows, me) = (Arc::new(StoreRows(Arc::clone(store))), process_name(config));
    let (served, keys) = (Arc::<Served>::default(), Arc::<Keys>::default());
    let (followed, answers) = (Arc::clone(&served), Arc::clone(&accounts));
    let Front { serving, tls, https } = front;
    let as_served = AsServed::new(config, https).context("acme.visitor_roots")?;
    let followed = (followed, as_served::announced(config, https));
    let pops = Pops::start(config, store, Arc::clone(&rows), published, answers, followed, me.clone());
    let wishes = Known::new(config, domains, Arc::clone(&certificates), Arc::clone(&accounts));
    let from_cas = Arc::new(FromCas { certificates, accounts, pops, wishes, rows, served, keys, tls, as_served });
    tokio::spawn(Arc::clone(&from_cas).work(kek, serving, me));
    Ok(from_cas)
}

impl FromCas {
    /// Serves and orders, as soon as keys open; returns when they never will.
    async fn work(self: Arc<Self>, kek: Kek, serving: Arc<DomainCertificates>, me: String) {
        let Some(sealer) = self.keys.open(kek, &self.rows).await else { return };
        let (certificates, rows) = (Arc::clone(&self.certificates), Arc::clone(&self.rows));
        tokio::spawn(serving::follow(
            certificates,
            Arc::clone(&sealer),
            Arc::clone(&rows),
            serving,
            Arc::clone(&self.served),
        ));
        tokio::spawn(Arc::clone(&self.accounts).keep_open(Arc::clone(&rows), Arc::clone(&sealer)));
        tokio::spawn(Arc::clone(&self).count());
        tokio::spawn(Arc::clone(&self).look_as_visitors());
        let revoker = Revoker::new(Arc::clone(&rows) as _, Arc::clone(&self) as _, me.clone());
        tokio::spawn(revoker.run());
        let issuer = Arc::new(Issuer { rows, sealer, challenges: Arc::clone(&self.pops) as _ });
        Manager::new(issuer, Arc::clone(&self.wishes) as _, me).run().await;
    }
}
