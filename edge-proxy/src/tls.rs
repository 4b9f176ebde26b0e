//! What a handshake is answered with, decided at the ClientHello: a certificate, opened first if it lies sealed, or
//! an alert that says what was wrong.
//!
//! rustls's own resolver can neither wait nor say why it has nothing (it sends `access_denied` for every reason), so
//! the name is looked up before rustls goes on.

use crate::tickets::Tickets;
use acme::resolver::{CertResolver, Found, OpenError};
use acme::tickets::{Policy, scope};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use std::sync::Arc;
use tokio::io::{AsyncWrite, AsyncWriteExt};

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
            Self::NoChallenge => "no_challenge",
        }
    }

    /// The alert's description (RFC 8446 §6.2, RFC 6066 §3).
    const fn alert(self) -> u8 {
        match self {
            Self::UnknownName | Self::Expired => 112, // unrecognized_name
            Self::NoName => 109,                      // missing_extension
            Self::NotOpened => 80,                    // internal_error
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
    refused: Family<OfReason, Counter>,
}

impl Tls {
    /// With the certificates of `resolver`, and tickets that all edges share, or else of this process alone.
    ///
    /// # Errors
    /// No random bytes.
    pub fn new(resolver: Arc<CertResolver>, tickets: Option<Arc<Tickets>>) -> anyhow::Result<Arc<Self>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&resolver) as _);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        acme::compression::enable(&mut config);
        // Tickets rather than a locked cache: resumption costs no memory and no lock.
        config.ticketer = match &tickets {
            Some(tickets) => tickets.ticketer(Policy::Normal, scope(&[])),
            None => rustls::crypto::aws_lc_rs::Ticketer::new()?,
        };
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 1;
        Ok(Arc::new(Self { resolver, config: Arc::new(config), tickets, refused: Family::default() }))
    }

    /// The keys all edges share, if they do.
    #[must_use]
    pub fn tickets(&self) -> Option<&Tickets> {
        self.tickets.as_deref()
    }

    /// With what a client that asks for `name` goes on.
    ///
    /// # Errors
    /// [`Refusal`].
    ///
    /// # Cancel safety
    /// Holds no state.
    pub async fn admit(&self, name: Option<&str>) -> Result<Arc<ServerConfig>, Refusal> {
        let certificate = match self.resolver.look(name) {
            Found::Ready(_) => return Ok(Arc::clone(&self.config)),
            Found::Expired(certificate) => certificate,
            Found::Sealed(handle) => match self.resolver.open(handle).await {
                Ok(_) => return Ok(Arc::clone(&self.config)),
                Err(error) => {
                    if error != OpenError::Busy {
                        tracing::warn!(name, %error, "no certificate for a name that has one");
                    }
                    return Err(Refusal::NotOpened);
                }
            },
            Found::Unknown => return Err(if name.is_some() { Refusal::UnknownName } else { Refusal::NoName }),
        };
        if self.resolver.refuses_expired() {
            return Err(Refusal::Expired);
        }
        tracing::debug!(name, not_after = certificate.not_after, "an expired certificate is served");
        Ok(Arc::clone(&self.config))
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
    }
}
