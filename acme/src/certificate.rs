//! A certificate's row, and when it is renewed.

use crate::ca::Window;
use crate::order::DAY;
use crate::revoke::Revocation;
use serde::{Deserialize, Serialize};

/// Where certificates are.
pub const CERT_PREFIX: &str = "cert/";
/// Below so long a life a certificate is renewed at its half (Let's Encrypt's integration guide).
const SHORT: u64 = 10 * DAY;

/// A row `cert/ID/GENERATION`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertRow {
    /// The names it is for.
    pub names: Vec<String>,
    /// Whose it is.
    pub ca: String,
    /// Which of its id's it is.
    pub generation: u64,
    /// PEM, the leaf first.
    pub chain: String,
    /// Base64 of the sealed key (PKCS#8).
    pub sealed_key: String,
    /// Its beginning, seconds since 1970.
    pub not_before: u64,
    /// Its end, seconds since 1970.
    pub not_after: u64,
    /// When it came, seconds since 1970.
    pub issued_at: u64,
    /// Its id for renewal information (RFC 9773 §4.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ari: Option<String>,
    /// When its CA wants it renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// Its key is somebody else's too: served only as long as there is no other one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub compromised: bool,
    /// When somebody asked for a new one, seconds since 1970: it is due from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew_asked: Option<u64>,
    /// How far its revocation is, if it is to be revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation: Option<Revocation>,
}

/// The key of a certificate's row. Generations sort as numbers.
#[must_use]
pub fn cert_key(id: &str, generation: u64) -> String {
    format!("{CERT_PREFIX}{id}/{generation:010}")
}

/// The id and the generation of a row's key.
#[must_use]
pub fn parse_cert_key(key: &str) -> Option<(&str, u64)> {
    let (id, generation) = key.strip_prefix(CERT_PREFIX)?.rsplit_once('/')?;
    Some((id, generation.parse().ok()?))
}

/// What the key of a certificate is sealed as, in an order's row and in its own.
#[must_use]
pub fn sealed_as(id: &str) -> String {
    format!("{CERT_PREFIX}{id}")
}

/// A number that every PoP computes alike from an id and a generation, below `below`.
fn drawn(id: &str, generation: u64, below: u64) -> u64 {
    let text = format!("{id}\n{generation}");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    let number = digest.as_ref().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    number.checked_rem(below).unwrap_or(0)
}

impl CertRow {
    /// As JSON.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Whether it is to be revoked and is not yet, `now` in seconds since 1970.
    #[must_use]
    pub fn is_being_withdrawn(&self, now: u64) -> bool {
        self.revocation.as_ref().is_some_and(|revocation| !revocation.is_over(self.not_after, now))
    }

    /// When its CA is to be asked when it wants it renewed, seconds since 1970; `u64::MAX` when it has no id to ask by.
    #[must_use]
    pub fn asks_at(&self) -> u64 {
        match (&self.ari, self.window) {
            (None, _) => u64::MAX,
            (Some(_), None) => 0,
            (Some(_), Some(window)) => window.ask_again,
        }
    }

    /// When it is to be renewed, seconds since 1970: at a point of the CA's window (RFC 9773 §4.2), else when two thirds
    /// of its life are over, or half of a short one, and a little earlier, so that not all come at once. Every PoP
    /// computes the same.
    #[must_use]
    pub fn due(&self, id: &str) -> u64 {
        if self.compromised || self.renew_asked.is_some() {
            return 0;
        }
        if let Some(window) = self.window {
            return window.start + drawn(id, self.generation, window.end.saturating_sub(window.start).max(1));
        }
        let life = self.not_after.saturating_sub(self.not_before);
        let used = if life < SHORT { life / 2 } else { life / 3 * 2 };
        // A tenth of what is left (chosen).
        let earlier = drawn(id, self.generation, ((life - used) / 10).max(1));
        self.not_before + used - earlier
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn row(days: u64) -> CertRow {
        let not_before = 1_800_000_000;
        CertRow {
            names: vec!["a.test".into()],
            ca: "first".into(),
            generation: 3,
            chain: String::new(),
            sealed_key: String::new(),
            not_before,
            not_after: not_before + days * DAY,
            issued_at: not_before,
            ari: None,
            window: None,
            compromised: false,
            renew_asked: None,
            revocation: None,
        }
    }

    #[test]
    fn it_is_renewed_when_its_ca_says_or_by_its_life() {
        let days = |row: &CertRow, id: &str| (row.due(id) - row.not_before) as f64 / DAY as f64;
        let long = row(90);
        assert!((57.0..=60.0).contains(&days(&long, "x")), "{}", days(&long, "x"));
        let spread: std::collections::BTreeSet<_> = (0..100).map(|at| long.due(&at.to_string())).collect();
        assert!(spread.len() > 95 && spread.last().unwrap() - spread.first().unwrap() > 2 * DAY);
        assert!((2.6..=3.0).contains(&days(&row(6), "x")));
        let window = Window { start: 1_800_500_000, end: 1_800_600_000, ask_again: 0 };
        let told = CertRow { window: Some(window), ..long.clone() };
        assert!((window.start..window.end).contains(&told.due("x")));
        assert_eq!(told.due("x"), told.due("x"));
        assert_eq!(CertRow { renew_asked: Some(1), ..told.clone() }.due("x"), 0);
        assert_eq!(CertRow { compromised: true, ..told }.due("x"), 0);
    }

    #[test]
    fn keys_are_read_as_they_are_written() {
        assert_eq!(cert_key("wild.sprites.test", 7), "cert/wild.sprites.test/0000000007");
        assert_eq!(parse_cert_key("cert/wild.sprites.test/0000000007"), Some(("wild.sprites.test", 7)));
        for wrong in ["cert/", "cert/a", "cert/a/x", "order/a/1"] {
            assert_eq!(parse_cert_key(wrong), None, "{wrong}");
        }
        let row = row(90);
        assert_eq!(serde_json::from_slice::<CertRow>(&row.encode()).unwrap(), row);
    }
}
