//! Which certificate answers a handshake: the wildcard of a suffix first, then whole names.
//!
//! A name under a suffix of ours costs a comparison and no hash. Whole names lie in an index of 45 bytes each
//! (`resolver/index.rs`), in memory or sealed (`resolver/sealed.rs`). What is looked up is a whole certificate with its
//! key: a swap happens between two handshakes, never in one.

mod index;
mod opened;
mod sealed;
#[cfg(test)]
mod tests;

pub use index::Slot;
pub use sealed::{OpenError, SealedStore};

use crate::validity::not_after;
use arc_swap::ArcSwap;
use index::Index;
use rustix::time::{ClockId, clock_gettime};
use rustls::client::verify_server_name;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sealed::Opener;
use std::collections::HashMap;
use std::sync::Arc;

/// Certificates that were sealed and stay open (tls-acme-dns.md §9: 50,000 hot ones; 1.6 KB each).
pub const OPENED_MAX: usize = 50_000;

/// A certificate with its key, and when it ends.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// What a handshake is answered with.
    pub key: Arc<CertifiedKey>,
    /// Its last second, Unix time; the end of time when the leaf does not say. The index keeps minutes of it.
    pub not_after: i64,
}

impl From<Arc<CertifiedKey>> for Certificate {
    fn from(key: Arc<CertifiedKey>) -> Self {
        let not_after = key.cert.first().and_then(not_after).unwrap_or(i64::MAX);
        Self { key, not_after }
    }
}

/// Names a sealed certificate in its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(u64);

impl Handle {
    /// None for a number of 2^63 or more, which a slot has no room for.
    #[must_use]
    pub const fn new(number: u64) -> Option<Self> {
        if number < 1 << 63 { Some(Self(number)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// A whole set of certificates by name.
#[derive(Clone, Debug, Default)]
pub struct Certificates {
    /// A domain, lower-case, and the certificate for each single label under it and for itself; 16 at most are meant.
    pub suffixes: Vec<(String, Arc<CertifiedKey>)>,
    /// Whole names, lower-case.
    pub names: HashMap<String, Arc<CertifiedKey>>,
    /// For every other name it covers: what an operator has configured.
    pub fallback: Option<Arc<CertifiedKey>>,
}

/// What is done in cases no certificate decides.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// A client that names nobody gets the certificate of this name; none: it is refused.
    pub default_name: Option<String>,
    /// A client whose name has only a certificate that has expired is refused.
    pub refuse_expired: bool,
}

/// What a name has.
#[derive(Clone, Debug)]
pub enum Found {
    /// This one.
    Ready(Certificate),
    /// This one, which has expired, and nothing better.
    Expired(Certificate),
    /// One that has to be opened first: [`CertResolver::open`].
    Sealed(Handle),
    /// Nothing.
    Unknown,
}

/// The resolver rustls asks.
#[derive(Debug, Default)]
pub struct CertResolver {
    base: ArcSwap<Base>,
    names: Index,
    opener: Option<Arc<Opener>>,
    policy: Policy,
}

#[derive(Debug, Default)]
struct Base {
    suffixes: Vec<(String, Certificate)>,
    fallback: Option<Certificate>,
}

impl CertResolver {
    /// With this set, and nothing sealed.
    #[must_use]
    pub fn new(certificates: Certificates) -> Arc<Self> {
        Self::with(certificates, Policy::default(), None)
    }

    /// With this set; what is sealed lies in `store`, and `OPENED_MAX` of it stay open.
    #[must_use]
    pub fn with(certificates: Certificates, policy: Policy, store: Option<Arc<dyn SealedStore>>) -> Arc<Self> {
        let opener = store.map(|store| Opener::new(store, OPENED_MAX));
        let this = Self { opener, policy, ..Self::default() };
        this.replace(certificates);
        Arc::new(this)
    }

    /// Uses another set from now on; sealed names are forgotten. Handshakes under way end with what they began with.
    pub fn replace(&self, certificates: Certificates) {
        let Certificates { suffixes, names, fallback } = certificates;
        let suffixes = suffixes.into_iter().map(|(suffix, key)| (suffix, key.into())).collect();
        self.base.store(Arc::new(Base { suffixes, fallback: fallback.map(Into::into) }));
        let gone = self.names.replace(names.into_iter().map(|(name, key)| (name, Slot::Loaded(key.into()))));
        self.forget(&gone);
    }

    /// Answers for a suffix, lower-case, with this certificate from now on.
    pub fn put_suffix(&self, suffix: &str, key: Arc<CertifiedKey>) {
        let certificate = Certificate::from(key);
        self.base.rcu(|base| {
            let mut suffixes = base.suffixes.clone();
            match suffixes.iter_mut().find(|(known, _)| known == suffix) {
                Some((_, known)) => *known = certificate.clone(),
                None => suffixes.push((suffix.to_owned(), certificate.clone())),
            }
            Base { suffixes, fallback: base.fallback.clone() }
        });
    }

    /// Puts (`Some`) and takes away (`None`) whole names, lower-case, and leaves all others as they are. One that begins with
    /// a dot stands for every single label before it that has nothing of its own. Many at once
    /// cost less than one at a time: 256 copies of a 256th at most.
    pub fn change(&self, changes: impl IntoIterator<Item = (String, Option<Slot>)>) {
        let gone = self.names.change(changes);
        self.forget(&gone);
    }

    fn forget(&self, gone: &[Handle]) {
        if let Some(opener) = &self.opener {
            opener.opened.forget(gone);
        }
    }

    /// What there is for a name as rustls gives it (lower-case; its final dot, which no client should send, RFC 6066 §3,
    /// is no part of it), or for a client that names nobody. No lock; nothing is read from anywhere.
    #[must_use]
    pub fn look(&self, name: Option<&str>) -> Found {
        let Some(name) = name.or(self.policy.default_name.as_deref()) else { return Found::Unknown };
        let name = name.strip_suffix('.').unwrap_or(name);
        let base = self.base.load();
        let expired = match self.own(&base, name) {
            None => None,
            Some(Slot::Sealed(handle)) => return Found::Sealed(handle),
            Some(Slot::Loaded(certificate)) if is_over(&certificate) => Some(certificate),
            Some(Slot::Loaded(certificate)) => return Found::Ready(certificate),
        };
        match (base.fallback.as_ref().filter(|fallback| is_valid_for(&fallback.key, name)), expired) {
            (Some(fallback), _) if !is_over(fallback) => Found::Ready(fallback.clone()),
            (_, Some(expired)) => Found::Expired(expired),
            (Some(fallback), None) => Found::Expired(fallback.clone()),
            (None, None) => Found::Unknown,
        }
    }

    fn own(&self, base: &Base, name: &str) -> Option<Slot> {
        if let Some((_, wildcard)) = base.suffixes.iter().find(|(suffix, _)| covers(suffix, name)) {
            return Some(Slot::Loaded(wildcard.clone()));
        }
        // A wildcard stands in the index as its domain with a dot before it.
        let below = || self.names.find(name.get(name.find('.')?..)?);
        match self.names.find(name).or_else(below)? {
            Slot::Sealed(handle) => {
                let open = self.opener.as_ref().and_then(|opener| opener.opened.get(handle));
                Some(open.map_or(Slot::Sealed(handle), Slot::Loaded))
            }
            loaded => Some(loaded),
        }
    }

    /// Opens what [`Self::look`] found sealed; the next look finds it open. Once for all who ask at the same time.
    ///
    /// # Errors
    /// [`OpenError`].
    ///
    /// # Cancel safety
    /// The opening goes on, for whoever asks next.
    pub async fn open(&self, handle: Handle) -> Result<Certificate, OpenError> {
        match &self.opener {
            Some(opener) => opener.open(handle).await,
            None => Err(OpenError::Store("there is no store".into())),
        }
    }

    /// The certificate in memory for a name, expired or not.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        match self.look(Some(name)) {
            Found::Ready(certificate) | Found::Expired(certificate) => Some(certificate.key),
            Found::Sealed(_) | Found::Unknown => None,
        }
    }

    /// Whether expired certificates are refused.
    #[must_use]
    pub const fn refuses_expired(&self) -> bool {
        self.policy.refuse_expired
    }

    /// Whole names it has.
    #[must_use]
    pub fn names(&self) -> usize {
        self.names.len()
    }

    /// Bytes of the index of whole names, without certificates.
    #[must_use]
    pub fn index_bytes(&self) -> usize {
        self.names.bytes()
    }

    /// Sealed certificates that are open, [`OPENED_MAX`] at most.
    #[must_use]
    pub fn opened(&self) -> usize {
        self.opener.as_ref().map_or(0, |opener| opener.opened.len())
    }
}

fn is_over(certificate: &Certificate) -> bool {
    // The clock of the last tick: a few milliseconds late, and no look at the hardware.
    certificate.not_after < clock_gettime(ClockId::RealtimeCoarse).tv_sec
}

/// Whether a client that asks for `name` takes this certificate for it (RFC 9525 §6).
fn is_valid_for(key: &CertifiedKey, name: &str) -> bool {
    let (Some(leaf), Ok(name)) = (key.cert.first(), ServerName::try_from(name)) else { return false };
    ParsedCertificate::try_from(leaf).is_ok_and(|leaf| verify_server_name(&leaf, &name).is_ok())
}

/// A wildcard covers exactly one label (RFC 9525 §6.3); ours carry the bare suffix too.
fn covers(suffix: &str, name: &str) -> bool {
    match name.strip_suffix(suffix) {
        Some("") => true,
        Some(label) => label.strip_suffix('.').is_some_and(|label| !label.is_empty() && !label.contains('.')),
        None => false,
    }
}

impl ResolvesServerCert for CertResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match self.look(hello.server_name()) {
            Found::Ready(certificate) => Some(certificate.key),
            Found::Expired(certificate) => (!self.policy.refuse_expired).then_some(certificate.key),
            // It was opened a moment ago and is gone already, or whoever accepts does not look first.
            Found::Sealed(handle) => Some(self.opener.as_ref()?.open_here(handle).ok()?.key),
            Found::Unknown => None,
        }
    }
}
