//! Our own limits ahead of a CA's: what would spend from one of its buckets spends from ours first, which are smaller, so
//! that the CA never has to refuse.
//!
//! A bucket is a row `limit/CA/BUCKET`, for the whole fleet, written by compare-and-set before the CA is called. What was
//! taken is given back once when a proof was met, since a CA counts those that fail, and never otherwise: after a crash, a
//! lost reply or a refusal ours has less in it than the CA's, never more.

mod bucket;
mod registered;
mod scope;

pub use bucket::{Bucket, Forecast};
pub use registered::registered;
pub use scope::is_of_names;

use crate::rows::{Rows, RowsError};
use config::AcmeLimits;
use std::collections::{BTreeSet, HashMap};
use tokio::sync::Mutex;

/// Where buckets are.
pub const LIMIT_PREFIX: &str = "limit/";
/// Tries to write a bucket that others write too (chosen: processes of a fleet; tasks of one go in turn).
const TRIES: usize = 8;
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// A bucket's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// What is in it when it is full.
    pub most: u32,
    /// Seconds after which one comes back.
    pub every: u64,
}

impl Allowance {
    /// Less than a CA allows that allows so many in so many seconds: a tenth less, one at least (chosen: PoPs' clocks
    /// may be ten minutes apart, and a call may take its half minute).
    #[must_use]
    pub const fn below(most: u32, seconds: u64) -> Self {
        let margin = if most / 10 > 1 { most / 10 } else { 1 };
        let most = most - margin;
        Self { most, every: seconds.div_ceil(most as u64) }
    }
}

/// What a CA's orders are held to; `None`: to nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// New orders of the account.
    pub orders: Option<Allowance>,
    /// Certificates of a registered domain.
    pub domain: Option<Allowance>,
    /// Certificates of the very same names.
    pub set: Option<Allowance>,
    /// Failed proofs of a name. Each proof is counted until it is met, since nobody knows before.
    pub proofs: Option<Allowance>,
    /// Failures of a name one after another. Each proof is counted until it is met.
    pub failures: Option<Allowance>,
}

impl Limits {
    /// None.
    pub const NONE: Self = Self { orders: None, domain: None, set: None, proofs: None, failures: None };

    /// Let's Encrypt's (its page "Rate Limits", 2026) with a margin: 300 orders of an account in 3 h, 50 certificates of a
    /// registered domain and 5 of a set of names in a week, 5 failed proofs of a name in an hour, 1,152 failures in a
    /// row, one of which is forgotten each day.
    pub const LETS_ENCRYPT: Self = Self {
        orders: Some(Allowance::below(300, 3 * HOUR)),
        domain: Some(Allowance::below(50, 7 * DAY)),
        set: Some(Allowance::below(5, 7 * DAY)),
        proofs: Some(Allowance::below(5, HOUR)),
        failures: Some(Allowance::below(1152, 1152 * DAY)),
    };

    /// Those of the CA with this directory: Let's Encrypt's for its hosts (its staging one allows more), else none.
    #[must_use]
    pub fn of_directory(url: &str) -> Self {
        let host = url.strip_prefix("https://").unwrap_or(url).split(['/', ':']).next().unwrap_or_default();
        let host = host.to_ascii_lowercase();
        match host == "letsencrypt.org" || host.ends_with(".letsencrypt.org") {
            true => Self::LETS_ENCRYPT,
            false => Self::NONE,
        }
    }
}

impl From<&config::AcmeCa> for Limits {
    fn from(ca: &config::AcmeCa) -> Self {
        match ca.limits {
            AcmeLimits::Directory => Self::of_directory(&ca.directory),
            AcmeLimits::LetsEncrypt => Self::LETS_ENCRYPT,
            AcmeLimits::None => Self::NONE,
        }
    }
}

/// One of a CA's buckets.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Want {
    bucket: String,
    of: Allowance,
    count: u32,
}

/// A bucket that does not have enough in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The key of its row.
    pub bucket: String,
    /// When it has, seconds since 1970.
    pub until: u64,
    /// Whether it is of many orders, or of this one's names alone.
    pub shared: bool,
}

/// What is about to be done at a CA.
#[derive(Clone, Copy, Debug)]
pub enum About<'a> {
    /// An order of these names is placed, which is no renewal the CA knows as one.
    Order(&'a [String]),
    /// These names are proved, without `*.`, one for each proof.
    Prove(&'a [String]),
    /// The request of an order of these names is handed in, which is no renewal the CA knows as one.
    Issue(&'a [String]),
}

/// The buckets of all CAs.
#[derive(Debug, Default)]
pub struct Limiter {
    cas: HashMap<String, Limits>,
    turn: Mutex<()>,
}

impl Limiter {
    /// CAs by name. Another one has no limits.
    pub fn new(cas: impl IntoIterator<Item = (String, Limits)>) -> Self {
        Self { cas: cas.into_iter().collect(), turn: Mutex::default() }
    }

    /// Takes what that costs, if it is there: `None`, and it may be done.
    ///
    /// # Errors
    /// [`RowsError`].
    ///
    /// # Cancel safety
    /// Some may have been taken.
    pub async fn take(&self, rows: &dyn Rows, ca: &str, about: About<'_>, now: u64) -> Result<Option<Held>, RowsError> {
        let Some(limits) = self.cas.get(ca).filter(|limits| **limits != Limits::NONE) else { return Ok(None) };
        let (looked_at, taken) = wants(limits, about);
        if looked_at.is_empty() && taken.is_empty() {
            return Ok(None);
        }
        let _turn = self.turn.lock().await;
        // Nothing is taken from one for what another does not have.
        for want in looked_at.iter().chain(&taken) {
            let key = format!("{LIMIT_PREFIX}{ca}/{}", want.bucket);
            let (bucket, _) = find(rows, &key).await?;
            if let Err(until) = bucket.take(want.of, want.count, now) {
                return Ok(Some(held(key, until)));
            }
        }
        for want in &taken {
            let key = format!("{LIMIT_PREFIX}{ca}/{}", want.bucket);
            if let Some(until) = spend(rows, &key, want, now).await? {
                return Ok(Some(held(key, until)));
            }
        }
        Ok(None)
    }

    /// Gives back what proofs of these names cost that were met.
    ///
    /// # Errors
    /// [`RowsError`].
    ///
    /// # Cancel safety
    /// Some may be given back; it is not to be called again.
    pub async fn give_back(&self, rows: &dyn Rows, ca: &str, proved: &[String], now: u64) -> Result<(), RowsError> {
        let Some(limits) = self.cas.get(ca).filter(|_| !proved.is_empty()) else { return Ok(()) };
        let _turn = self.turn.lock().await;
        for want in wants(limits, About::Prove(proved)).1 {
            let key = format!("{LIMIT_PREFIX}{ca}/{}", want.bucket);
            for _ in 0..TRIES {
                let (bucket, Some(version)) = find(rows, &key).await? else { break };
                let value = serde_json::to_vec(&bucket.give(want.of, want.count, now)).unwrap_or_default();
                match rows.compare_and_set(&key, Some(version), Some(&value)).await {
                    Err(RowsError::Conflict) => {}
                    done => {
                        done?;
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// What is in each bucket that is not full, by the key of its row, and when it is empty at this rate.
    ///
    /// # Errors
    /// [`RowsError`].
    pub async fn forecast(&self, rows: &dyn Rows, now: u64) -> Result<Vec<(String, Forecast)>, RowsError> {
        let found = rows.scan(LIMIT_PREFIX).await?;
        let one = |row: crate::rows::Row| {
            let (ca, name) = row.key.strip_prefix(LIMIT_PREFIX)?.split_once('/')?;
            let of = self.cas.get(ca)?.allowance(name)?;
            let bucket: Bucket = serde_json::from_slice(&row.value).ok()?;
            (bucket.full_at > now).then(|| (row.key.clone(), bucket.forecast(of, now)))
        };
        Ok(found.into_iter().filter_map(one).collect())
    }
}

impl Limits {
    fn allowance(&self, bucket: &str) -> Option<Allowance> {
        match bucket.split_once('.').map_or(bucket, |(kind, _)| kind) {
            "orders" => self.orders,
            "domain" => self.domain,
            "set" => self.set,
            "proofs" => self.proofs,
            "failures" => self.failures,
            _ => None,
        }
    }
}

/// What is looked at, and what is taken.
fn wants(limits: &Limits, about: About<'_>) -> (Vec<Want>, Vec<Want>) {
    let want = |bucket: String, of: Option<Allowance>, count| of.map(|of| Want { bucket, of, count });
    let issue = |names: &[String]| {
        let domains: BTreeSet<_> = names.iter().map(|name| registered(name)).collect();
        let domains = domains.into_iter().filter_map(|name| want(format!("domain.{name}"), limits.domain, 1));
        domains.chain(want(set_name(names), limits.set, 1)).collect()
    };
    match about {
        About::Order(names) => (issue(names), want("orders".into(), limits.orders, 1).into_iter().collect()),
        About::Issue(names) => (Vec::new(), issue(names)),
        About::Prove(names) => {
            let mut counts = std::collections::BTreeMap::<_, u32>::new();
            names.iter().for_each(|name| *counts.entry(name.as_str()).or_default() += 1);
            let both = counts.into_iter().flat_map(|(name, count)| {
                let proofs = want(format!("proofs.{name}"), limits.proofs, count);
                proofs.into_iter().chain(want(format!("failures.{name}"), limits.failures, count))
            });
            (Vec::new(), both.collect())
        }
    }
}

/// A bucket's name for a set of names: keys of rows have no room for a hundred of them.
fn set_name(names: &[String]) -> String {
    let names: BTreeSet<_> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
    let text = names.into_iter().collect::<Vec<_>>().join("\n");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    let hex: String = digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("set.{hex}")
}

fn held(bucket: String, until: u64) -> Held {
    let shared = ["/orders", "/domain."].iter().any(|kind| bucket.contains(kind));
    Held { bucket, until, shared }
}

async fn find(rows: &dyn Rows, key: &str) -> Result<(Bucket, Option<u64>), RowsError> {
    let found = rows.get(key).await?;
    let version = found.as_ref().map(|row| row.version);
    // One that cannot be read is written anew, as if it were full.
    let bucket = found.and_then(|row| serde_json::from_slice(&row.value).ok()).unwrap_or_default();
    Ok((bucket, version))
}

/// Takes from one bucket; when it has enough, if it has not.
async fn spend(rows: &dyn Rows, key: &str, want: &Want, now: u64) -> Result<Option<u64>, RowsError> {
    for _ in 0..TRIES {
        let (bucket, version) = find(rows, key).await?;
        let less = match bucket.take(want.of, want.count, now) {
            Ok(less) => less,
            Err(until) => return Ok(Some(until)),
        };
        let value = serde_json::to_vec(&less).unwrap_or_default();
        match rows.compare_and_set(key, version, Some(&value)).await {
            Ok(_) => {
                warn_at_half(key, want.of, bucket, less, now);
                return Ok(None);
            }
            Err(RowsError::Conflict) => {}
            Err(error) => return Err(error),
        }
    }
    // So many others take from it: in a moment again.
    Ok(Some(now + 1))
}

fn warn_at_half(key: &str, of: Allowance, before: Bucket, after: Bucket, now: u64) {
    let half = of.most / 2;
    let told = after.forecast(of, now);
    if let Some(empty_at) = told.empty_at.filter(|_| told.left < half && before.forecast(of, now).left >= half) {
        tracing::warn!(bucket = key, left = told.left, most = of.most, empty_at = %date(empty_at), "at this rate a limit is reached");
    }
}

/// A date for people.
pub(crate) fn date(unix: u64) -> String {
    httpdate::fmt_http_date(std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix.min(200_000_000_000)))
}

#[cfg(test)]
mod tests;
