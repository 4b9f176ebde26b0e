//! Where we listen, for which names, with which certificate.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Addresses. Each is bound once per worker; port 0 picks a free one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// HTTPS (HTTP/1.1 and HTTP/2).
    pub https: Vec<SocketAddr>,
    /// Plain HTTP: answers with a redirect only.
    pub http: Vec<SocketAddr>,
    /// Worker threads; 0 is one per core.
    pub workers: usize,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            https: vec![SocketAddr::from(([0, 0, 0, 0], 443))],
            http: vec![SocketAddr::from(([0, 0, 0, 0], 80))],
            workers: 0,
        }
    }
}

impl Listen {
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.https.is_empty() {
            return Err(("listen.https", "at least one address is needed".into()));
        }
        if self.workers > 1024 {
            return Err(("listen.workers", "at most 1024".into()));
        }
        Ok(())
    }
}

/// Names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Names {
    /// Domains under which each label is a sprite, without a leading dot.
    pub suffixes: Vec<String>,
    /// What a name that does not exist is answered with.
    pub unknown_names: UnknownNames,
}

/// How names that do not exist are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownNames {
    /// 404.
    #[default]
    NotFound,
    /// As a private sprite without credentials, so that names are secret: 401.
    AsPrivate,
}

impl Default for Names {
    fn default() -> Self {
        Self { suffixes: vec!["sprites.dev".into()], unknown_names: UnknownNames::default() }
    }
}

impl Names {
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.suffixes.is_empty() || self.suffixes.len() > 16 {
            return Err(("names.suffixes", "1 to 16 suffixes are needed".into()));
        }
        match self.suffixes.iter().find(|suffix| !is_domain(suffix, SUFFIX_BYTES_MAX)) {
            Some(wrong) => Err(("names.suffixes", format!("{wrong:?} is no domain name"))),
            None => Ok(()),
        }
    }
}

/// Longest suffix, bytes: a label of 63 (RFC 1035 §2.3.4) and a dot before it must fit the
/// 253 of a host name.
const SUFFIX_BYTES_MAX: usize = 189;

/// Whether `text` is a domain name of letters, digits and dashes, without a dot at its ends.
pub(crate) fn is_domain(text: &str, bytes_max: usize) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    text.len() <= bytes_max && text.split('.').all(label)
}

/// Shortest life of a ticket key as the active one (chosen: edges are waited for 5 s).
const TICKET_PERIOD_MIN: Duration = Duration::from_secs(10);
/// Longest (six of them are within the week that RFC 8446 §4.6.1 allows a ticket).
const TICKET_PERIOD_MAX: Duration = Duration::from_secs(24 * 3600);

/// TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Certificate chain, PEM. Empty: a local CA in the data directory issues one.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// From accept to the end of the handshake.
    #[serde(with = "crate::text")]
    pub handshake_timeout: Duration,
    /// How long browsers ask for our own names by HTTPS alone (`Strict-Transport-Security`, RFC 6797), whole seconds; 0: they
    /// are not told to.
    #[serde(with = "crate::text")]
    pub hsts: Duration,
    /// Clients that name nobody get the certificate of this name. Empty: they are refused.
    pub default_name: String,
    /// What a client gets whose name has only a certificate that has expired.
    pub expired: Expired,
    /// The key all edges of a fleet seal ticket keys with: a file of lines of 32 bytes in base64; the first seals, all open.
    /// Empty: a machine that stands alone makes one, an edge of a fleet shares no tickets.
    pub kek: PathBuf,
    /// How often the key of session tickets is changed; six old ones are good still.
    #[serde(with = "crate::text")]
    pub ticket_period: Duration,
}

/// What is done with a certificate that has expired when there is no other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expired {
    /// It is served: the client is told what is wrong, and this machine's clock decides nothing.
    #[default]
    Serve,
    /// The handshake is refused.
    Refuse,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            certificate: PathBuf::new(),
            key: PathBuf::new(),
            handshake_timeout: Duration::from_secs(10),
            hsts: Duration::ZERO,
            default_name: String::new(),
            expired: Expired::default(),
            kek: PathBuf::new(),
            ticket_period: Duration::from_secs(3600),
        }
    }
}

impl Tls {
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.certificate.as_os_str().is_empty() != self.key.as_os_str().is_empty() {
            return Err(("tls.certificate", "certificate and key are given together or not at all".into()));
        }
        if !self.default_name.is_empty() && !is_domain(&self.default_name, 253) {
            return Err(("tls.default_name", format!("{:?} is no domain name", self.default_name)));
        }
        if !(TICKET_PERIOD_MIN..=TICKET_PERIOD_MAX).contains(&self.ticket_period) {
            return Err(("tls.ticket_period", "10s to 24h".into()));
        }
        crate::text::all_positive(&[("tls.handshake_timeout", self.handshake_timeout)])
    }
}

/// The admin API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Unix socket; left out: `admin.sock` in the data directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}
