//! Who is told what the ledger says.

use crate::text::all_positive;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// What may be told.
const EVENTS: [&str; 4] = ["start", "stop", "failed", "gone"];
/// Longest pause between attempts, however configured (chosen: a receiver that is back should
/// hear within a coffee).
const RETRY_MAX: Duration = Duration::from_secs(300);

/// Section `[webhook]`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Webhook {
    /// Who is told; empty for nobody.
    pub url: String,
    /// Where the signing secret is.
    pub secret_file: PathBuf,
    /// Roots the receiver's certificate is checked against; empty for the system's.
    pub ca_file: PathBuf,
    /// What is told.
    pub events: Vec<String>,
    /// From the connection to the end of the answer.
    #[serde(with = "crate::text")]
    pub timeout: Duration,
    /// Pause after the first failure.
    #[serde(with = "crate::text")]
    pub retry_min: Duration,
    /// Longest pause.
    #[serde(with = "crate::text")]
    pub retry_max: Duration,
}

impl Default for Webhook {
    fn default() -> Self {
        Self {
            url: String::new(),
            secret_file: PathBuf::new(),
            ca_file: PathBuf::new(),
            events: EVENTS.map(str::to_owned).to_vec(),
            timeout: Duration::from_secs(10),
            retry_min: Duration::from_secs(1),
            retry_max: RETRY_MAX,
        }
    }
}

impl std::fmt::Debug for Webhook {
    /// The path of a webhook is often a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhook").field("events", &self.events).finish_non_exhaustive()
    }
}

impl Webhook {
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        let plain = self.url.strip_prefix("http://").map(host_of);
        let here = |host: &str| host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        if !(self.url.is_empty() || self.url.starts_with("https://") || plain.is_some_and(here)) {
            return Err(("webhook.url", "begins with https://, or with http:// and an address of this machine".into()));
        }
        if self.url.is_empty() != self.secret_file.as_os_str().is_empty() {
            return Err(("webhook.secret_file", "url and secret_file are given together".into()));
        }
        if self.events.is_empty() || self.events.iter().any(|event| !EVENTS.contains(&event.as_str())) {
            return Err(("webhook.events", format!("at least one of {}", EVENTS.join(", "))));
        }
        all_positive(&[("webhook.timeout", self.timeout)])?;
        if self.timeout > Duration::from_secs(60) {
            return Err(("webhook.timeout", "at most 60s".into()));
        }
        if self.retry_min < Duration::from_secs(1) || self.retry_min > self.retry_max {
            return Err(("webhook.retry_min", "at least 1s and at most retry_max".into()));
        }
        if self.retry_max > RETRY_MAX {
            return Err(("webhook.retry_max", "at most 5m".into()));
        }
        Ok(())
    }
}

/// The host of what stands behind `http://`, without its port and brackets.
fn host_of(rest: &str) -> &str {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(v6),
        None => authority.split(':').next().unwrap_or(authority),
    }
}
