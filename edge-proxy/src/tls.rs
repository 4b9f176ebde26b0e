//! What a handshake is answered with, decided at the ClientHello: a certificate, opened first if it lies sealed, or
//! an alert that says what was wrong.
//!
//! rustls's own resolver can neither wait nor say why it has nothing (it sends `access_denied` for every reason), so
//! the name is looked up before rustls goes on.

use crate::client_certificate;
use crate::tickets::Tickets;
use acme::resolver::{CertResolver, Found, OpenError};
use acme::tickets::{Policy, scope};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use router::client_certificate::ClientCertificate;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Configurations that ask for client certificates and are kept; then all are made anew (chosen: some tens of KiB each).
const ASKING_MAX: usize = 1_024;

/// Why a client was refused at its ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It asks for a name there is no certificate for.
    UnknownName,
    /// It names nobody, and `tls.default_name` names nobody either.
    NoName,
    /// The certificate has expired, and `tls.expired` is "refuse".
    Expired,
    /// The certificate lies sealed and cannot be opened.
    NotOpened,
    /// Its sprite asks for client certificates by rules that are none.
    NotAsked,
    /// It looks for a challenge there is no answer to.
    NoChallenge,
}

impl Refusal {
    /// In metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownName => "unknown_name",
            Self::NoName => "no_name",
            Self::Expired => "expired",
            Self::NotOpened => "not_opened",
            Self::NotAsked => "not_asked",
            Self::NoChallenge => "no_challenge",
        }
    }

    /// The alert's description (RFC 8446 §6.2, RFC 6066 §3).
    const fn alert(self) -> u8 {
        match self {
            Self::UnknownName | Self::Expired => 112, // unrecognized_name
            Self::NoName => 109,                      // missing_extension
            Self::NotOpened | Self::NotAsked => 80,   // internal_error
            Self::NoChallenge => 120,                 // no_application_protocol (RFC 7301 §3.2)
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    reason: &'static str,
}

/// The TLS of an edge, shared by its cores.
pub struct Tls {
    resolver: Arc<CertResolver>,
    config: Arc<ServerConfig>,
    tickets: Option<Arc<Tickets>>,
    /// By ticket scope: those that ask for client certificates.
    asking: Mutex<HashMap<[u8; 32], Arc<ServerConfig>>>,
    refused: Family<OfReason, Counter>,
}

/// AEADs with forward secrecy alone, in our order: AES with 128 bits is as safe for the life of a connection and a third
/// cheaper, and whoever has no AES in hardware is rare by now (chosen). The first group keeps what is recorded today from
/// whoever has a quantum computer later, for 25 µs of server CPU (tls-acme-dns.md §3).
fn provider() -> Arc<CryptoProvider> {
    use rustls::crypto::aws_lc_rs::{cipher_suite as suite, kx_group as group};
    let cipher_suites = vec![
        suite::TLS13_AES_128_GCM_SHA256,
        suite::TLS13_AES_256_GCM_SHA384,
        suite::TLS13_CHACHA20_POLY1305_SHA256,
        suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        // For keys of the operator's that are RSA.
        suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ];
    let kx_groups = vec![group::X25519MLKEM768, group::X25519, group::SECP256R1, group::SECP384R1];
    Arc::new(CryptoProvider { cipher_suites, kx_groups, ..rustls::crypto::aws_lc_rs::default_provider() })
}

/// What all configurations of an edge have in common; each has tickets of its own.
fn dress(
    config: &mut ServerConfig,
    tickets: Option<&Tickets>,
    policy: Policy,
    scope: [u8; 32],
) -> Result<(), rustls::Error> {
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ignore_client_order = true;
    // Tickets rather than a locked cache: resumption costs no memory and no lock.
    config.ticketer = match tickets {
        Some(tickets) => tickets.ticketer(policy, scope),
        None => rustls::crypto::aws_lc_rs::Ticketer::new()?,
    };
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    Ok(())
}

impl Tls {
    /// With the certificates of `resolver`, and tickets that all edges share, or else of this process alone.
    ///
    /// # Errors
    /// No random bytes.
    pub fn new(resolver: Arc<CertResolver>, tickets: Option<Arc<Tickets>>) -> anyhow::Result<Arc<Self>> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&resolver) as _);
        acme::compression::enable(&mut config);
        dress(&mut config, tickets.as_deref(), Policy::Normal, scope(&[]))?;
        let (asking, refused) = (Mutex::default(), Family::default());
        Ok(Arc::new(Self { resolver, config: Arc::new(config), tickets, asking, refused }))
    }

    /// The keys all edges share, if they do.
    #[must_use]
    pub fn tickets(&self) -> Option<&Tickets> {
        self.tickets.as_deref()
    }

    /// With what a client that asks for `name` goes on, where its sprite may ask for a certificate.
    ///
    /// # Errors
    /// [`Refusal`].
    ///
    /// # Cancel safety
    /// Holds no state.
    pub async fn admit(
        &self,
        name: Option<&str>,
        asks: Option<&ClientCertificate>,
    ) -> Result<Arc<ServerConfig>, Refusal> {
        let mut found = self.resolver.look(name);
        if let Found::Sealed(handle) = found {
            if let Err(error) = self.resolver.open(handle).await {
                if error != OpenError::Busy {
                    tracing::warn!(name, %error, "no certificate for a name that has one");
                }
                return Err(Refusal::NotOpened);
            }
            // Open, it says when it ends.
            found = self.resolver.look(name);
        }
        match found {
            // Sealed again already: whoever resolves opens it.
            Found::Ready(_) | Found::Sealed(_) => {}
            Found::Expired(_) if self.resolver.refuses_expired() => return Err(Refusal::Expired),
            Found::Expired(certificate) => {
                tracing::debug!(name, not_after = certificate.not_after, "an expired certificate is served");
            }
            Found::Unknown => return Err(if name.is_some() { Refusal::UnknownName } else { Refusal::NoName }),
        }
        match asks {
            None => Ok(Arc::clone(&self.config)),
            Some(rules) => self.asking(rules).map_err(|error| {
                tracing::warn!(name, error, "the client certificates of a sprite cannot be asked for");
                Refusal::NotAsked
            }),
        }
    }

    /// The configuration that asks by these rules, made when it is wanted first.
    fn asking(&self, rules: &ClientCertificate) -> Result<Arc<ServerConfig>, String> {
        let scope = client_certificate::ticket_scope(rules);
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = asking.get(&scope) {
            return Ok(Arc::clone(config));
        }
        let verifier = client_certificate::verifier(rules, Arc::clone(self.config.crypto_provider()))?;
        let config = ServerConfig::builder_with_provider(Arc::clone(self.config.crypto_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12]);
        let config = config.map_err(|error| error.to_string())?.with_client_cert_verifier(verifier);
        let mut config = config.with_cert_resolver(Arc::clone(&self.resolver) as _);
        dress(&mut config, self.tickets.as_deref(), Policy::ClientCertificate, scope)
            .map_err(|error| error.to_string())?;
        config.cert_compressors.clone_from(&self.config.cert_compressors);
        config.cert_compression_cache = Arc::clone(&self.config.cert_compression_cache);
        if asking.len() >= ASKING_MAX {
            asking.clear();
        }
        let config = Arc::new(config);
        asking.insert(scope, Arc::clone(&config));
        Ok(config)
    }

    /// Tells a client why, and counts it. Whatever it has sent since stays unread.
    pub async fn refuse(&self, refusal: Refusal, to: &mut (impl AsyncWrite + Unpin)) {
        self.refused.get_or_create(&OfReason { reason: refusal.name() }).inc();
        // A fatal alert as a record of its own (RFC 8446 §5.1, §6): 7 bytes fit any socket, and who is gone misses nothing.
        drop(to.write_all(&[21, 3, 3, 0, 2, 2, refusal.alert()]).await);
        drop(to.shutdown().await);
    }

    /// Shows what it counts.
    pub fn register(&self, registry: &mut Registry) {
        let refused = "Handshakes refused at the ClientHello";
        registry.register("tls_refused", refused, self.refused.clone());
        let gauge = |value| {
            let gauge: Gauge = Gauge::default();
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
            gauge
        };
        let (names, open) = self.whole_names();
        registry.register("tls_names", "Whole names with a certificate of their own", gauge(names));
        registry.register(
            "tls_certificates_open",
            "Certificates of whole names that lay sealed and are open",
            gauge(open),
        );
    }

    /// Whole names with a certificate of their own, and how many of these lay sealed and are open.
    #[must_use]
    pub fn whole_names(&self) -> (usize, usize) {
        (self.resolver.names(), self.resolver.opened())
    }
}
