//! Certificates from public CAs, on this PoP: what `acme` needs of the store, the domains, the DNS and the resolver.
//!
//! Every PoP follows the rows `cert/` and serves what they say (`serving.rs`), answers challenges (`challenges.rs`), and works
//! on orders when it holds their lease ([`acme::manager`]). Nothing of this is in the way of a handshake.

mod accounts;
mod alpn;
mod as_served;
pub(crate) mod asked;
pub mod causes;
mod challenge_rows;
mod challenges;
mod distrust;
mod kek;
mod metrics;
mod opening;
mod peers;
mod pull;
mod report;
mod roll_over;
mod rows;
mod served;
mod serving;
mod table;
mod wishes;
mod withdraw;

use crate::domain_certificates::DomainCertificates;
use crate::domains::delegation::Delegations;
use crate::tls::Tls;
use accounts::Accounts;
use acme::clock::Clock;
use acme::dns::Published;
use acme::limits::{Limiter, Limits};
use acme::manager::Manager;
use acme::order::issue::Issuer;
use acme::order::ours::Ours;
use acme::revoke::Revoker;
use acme::seal::Kek;
use anyhow::Context;
use as_served::AsServed;
use challenges::{Given, Pops};
use config::Config;
use distrust::Distrusted;
pub use opening::SealedCertificates;
use peers::Peers;
use router::domains::{DomainName, DomainTable};
use router::pops::PopTable;
use router::registry::Registry;
use router::store::Store;
use rows::StoreRows;
use rustls::ServerConfig;
use served::Served;
use serving::Serving;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
pub use table::CertificateTable;
use tokio::sync::Notify;
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
    sealed: Arc<SealedCertificates>,
    tls: Arc<Tls>,
    as_served: AsServed,
    limits: Arc<Limiter>,
    distrusted: Arc<Distrusted>,
}

/// The edge that orders and serves them.
pub struct Front {
    /// Custom domains of this region.
    pub domains: Arc<DomainTable>,
    /// Which of them delegate their challenges.
    pub delegations: Delegations,
    /// The PoPs of the fleet, if there is one.
    pub pops: Option<Arc<PopTable>>,
    /// What the DNS answers of challenges.
    pub published: Arc<Published>,
    /// The certificates of handshakes.
    pub serving: Arc<DomainCertificates>,
    /// The handshakes.
    pub tls: Arc<Tls>,
    /// The first address of HTTPS, as it was bound.
    pub https: SocketAddr,
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
        let answer = known.or_else(|| Some(format!("{token}.{}", self.accounts.thumbprint()?)));
        if answer.is_none() {
            self.served.counted().unanswered();
        }
        answer
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

/// Where this machine keeps its copy of the certificates.
#[must_use]
pub fn file(config: &Config) -> PathBuf {
    config.data_dir.join("certificates")
}

/// Begins to follow, serve and order. Returns at once: a store or a CA that is away is waited for beside.
///
/// # Errors
/// The key encryption key or the key of an account binding cannot be read, or the roots of a CA.
pub fn start(
    config: &Config,
    store: &Store,
    sealed: &Arc<SealedCertificates>,
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
    let file = config.data_dir.join("distrust.last-known-good");
    let distrusted = Distrusted::follow(store, file.clone()).with_context(|| file.display().to_string())?;
    let certificates = Arc::clone(sealed.table());
    tokio::spawn(Arc::clone(&certificates).follow(Arc::clone(store)));

    let (rows, me) = (Arc::new(StoreRows(Arc::clone(store))), process_name(config));
    let served = Arc::<Served>::default();
    let Front { domains, delegations, pops, published, serving, tls, https } = front;
    let as_served = AsServed::new(config, https).context("acme.visitor_roots")?;
    let table = Arc::new(Registry::new());
    let peers = Peers::open(config, pops, pull::Table(Arc::clone(&table)))?;
    let given = Given {
        table,
        published,
        accounts: Arc::clone(&accounts),
        delegations,
        peers,
        served: Arc::clone(&served),
        https: as_served::announced(config, https),
        keks: kek.ids(),
    };
    let pops = Pops::start(config, store, Arc::clone(&rows), given, me.clone());
    let wishes = Known::new(config, domains, Arc::clone(&certificates), Arc::clone(&accounts), Arc::clone(&distrusted));
    let limits = config.acme.cas().into_iter().map(|ca| (ca.name.clone(), Limits::from(&ca)));
    let (sealed, limits) = (Arc::clone(sealed), Arc::new(Limiter::new(limits)));
    let from_cas = Arc::new(FromCas {
        certificates,
        accounts,
        pops,
        wishes,
        rows,
        served,
        sealed,
        tls,
        as_served,
        limits,
        distrusted,
    });
    let ours = Ours::new(config.names.suffixes.iter().cloned());
    tokio::spawn(Arc::clone(&from_cas).work(kek, serving, me, ours));
    Ok(from_cas)
}

impl FromCas {
    /// Serves and orders, as soon as keys open; returns when they never will.
    async fn work(self: Arc<Self>, kek: Kek, serving: Arc<DomainCertificates>, me: String, ours: Ours) {
        let (sealed, rows) = (Arc::clone(&self.sealed), Arc::clone(&self.rows));
        let Some(sealer) = sealed.unlock(kek, &rows).await else { return };
        let again = Arc::new(Notify::new());
        let serves = Serving::new(Arc::clone(&sealed), serving, Arc::clone(&self.served), Arc::clone(&self.distrusted));
        tokio::spawn(serves.follow(Arc::clone(&again)));
        tokio::spawn(sealed.keep(Arc::clone(&sealer), Arc::clone(&rows), move || again.notify_one()));
        tokio::spawn(Arc::clone(&self.accounts).keep_open(Arc::clone(&rows), Arc::clone(&sealer)));
        tokio::spawn(Arc::clone(&self).count());
        tokio::spawn(Arc::clone(&self).look_as_visitors());
        let revoker = Revoker::new(Arc::clone(&rows) as _, Arc::clone(&self) as _, me.clone());
        tokio::spawn(revoker.run());
        let (challenges, limits) = (Arc::clone(&self.pops) as _, Arc::clone(&self.limits));
        let issuer = Arc::new(Issuer { rows, sealer, challenges, limits, ours });
        Manager::new(issuer, Arc::clone(&self.wishes) as _, me, Clock::system()).run().await;
    }
}
