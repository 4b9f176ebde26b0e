//! Let's Encrypt's limits, as it counts itself: what an order costs when it is placed, and what when it is issued.

use crate::ca::{Class, Problem};
use crate::limits::registered;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

const HOUR: f64 = 3600.0;
const WEEK: f64 = 7.0 * 24.0 * HOUR;

/// So many at once, and one more each so many seconds.
#[derive(Clone, Copy)]
struct Size(f64, f64);

const ORDERS: Size = Size(300.0, 3.0 * HOUR / 300.0);
const DOMAIN: Size = Size(50.0, WEEK / 50.0);
const SET: Size = Size(5.0, WEEK / 5.0);
const PROOFS: Size = Size(5.0, HOUR / 5.0);
const FAILURES: Size = Size(1152.0, 24.0 * HOUR);

/// What is left of each, and when that was.
#[derive(Default)]
pub(crate) struct Counted {
    left: HashMap<String, (f64, u64)>,
    replaced: HashSet<String>,
    /// When it refused what.
    pub(crate) refused: Vec<(u64, String)>,
    /// Orders that counted, and renewals that did not.
    pub(crate) counted: usize,
    pub(crate) exempt: usize,
}

impl Counted {
    fn left(&self, key: &str, Size(most, every): Size, now: u64) -> f64 {
        let (left, at) = self.left.get(key).copied().unwrap_or((most, now));
        (left + (now - at) as f64 / every).min(most)
    }

    fn take(&mut self, key: String, size: Size, now: u64) {
        let left = self.left(&key, size, now);
        if left < 1.0 {
            self.refused.push((now, key.clone()));
        }
        self.left.insert(key, (left - 1.0, now));
    }

    /// An order is placed; whether it counts. `replaces` as it is known to the CA.
    pub(crate) fn order(&mut self, names: &[String], replaces: Option<&str>, now: u64) -> Result<bool, Problem> {
        if replaces.is_some_and(|id| self.replaced.insert(id.to_owned())) {
            self.exempt += 1;
            return Ok(false);
        }
        let proofs = names.iter().map(|name| name.trim_start_matches("*."));
        let proofs =
            proofs.flat_map(|name| [(format!("proofs {name}"), PROOFS), (format!("failures {name}"), FAILURES)]);
        let all = proofs.chain([("orders".to_owned(), ORDERS)]).chain(issuing(names));
        let empty = all.into_iter().find(|(key, size)| self.left(key, *size, now) < 1.0);
        if let Some((key, Size(_, every))) = empty {
            self.refused.push((now, key.clone()));
            let retry_after = Some(Duration::from_secs_f64(every));
            return Err(Problem { retry_after, ..Problem::new(Class::RateLimited, key) });
        }
        self.counted += 1;
        self.take("orders".to_owned(), ORDERS, now);
        Ok(true)
    }

    /// A certificate is issued that counts.
    pub(crate) fn issued(&mut self, names: &[String], now: u64) {
        issuing(names).for_each(|(key, size)| self.take(key, size, now));
    }

    /// A proof has failed.
    pub(crate) fn failed(&mut self, name: &str, now: u64) {
        self.take(format!("proofs {name}"), PROOFS, now);
        self.take(format!("failures {name}"), FAILURES, now);
    }
}

fn issuing(names: &[String]) -> impl Iterator<Item = (String, Size)> {
    let domains: BTreeSet<_> = names.iter().map(|name| registered(name)).collect();
    let set: BTreeSet<_> = names.iter().cloned().collect();
    let set = (format!("set {set:?}"), SET);
    domains.into_iter().map(|name| (format!("domain {name}"), DOMAIN)).chain([set])
}
