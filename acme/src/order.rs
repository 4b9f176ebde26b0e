//! An order, from the wish for a certificate to the chain: its row, and what comes next.
//!
//! Sans-io: [`next`] looks at the row and at the order as the CA has it, and says one thing to do. The row says what
//! was *begun*, since it is written before each thing is done, and the CA's word says what was done. So whoever reads
//! the row after a crash, on whichever PoP, goes on without having heard a single reply; the one thing that can be done
//! twice is to place the order.

#[cfg(test)]
mod crashes;
pub mod issue;
pub mod kinds;
pub mod ours;
#[cfg(test)]
pub(crate) mod sim;
pub mod verify;

use crate::ca::{Class, Kind, Problem, Status};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Where orders are.
pub const ORDER_PREFIX: &str = "order/";
/// Pause between two looks at an order that the CA works on (chosen: Boulder asks for 3 s; most are done sooner).
const POLL: Duration = Duration::from_secs(1);
/// The longest such pause (Boulder's 3 s).
const POLL_MAX: Duration = Duration::from_secs(3);
/// An order that the CA works on for so long has failed (chosen: Let's Encrypt's `shortlived` orders live 8 h).
const WORKS_MAX: u64 = 3600;
/// A CA that has not met its challenges for so long is told to look again, seconds (chosen: Let's Encrypt looks for some
/// 10 s; what it was told may be lost in it).
const LOOKS: u64 = 120;
/// First pause after a CA was out of order, doubled each time (`tls-acme-dns.md` §3).
const UNAVAILABLE: u64 = 60;
/// First pause after no answer came, or after a PoP did not answer a challenge in time, doubled each time (chosen: what
/// was lost mostly was done, and a PoP that has died is waited for no longer soon).
const SOON: u64 = 2;
/// Longest of all those (chosen).
const UNAVAILABLE_MAX: u64 = 3600;
/// Longest pause before a name's own DNS is looked at again (chosen: it costs a question there, and nothing at the CA).
const UNDELEGATED_MAX: u64 = 300;
/// Pause after the name's DNS was at fault, and when an account or request is.
const HOUR: u64 = 3600;
/// The longest pause (Let's Encrypt: grow to at most once a day).
pub const DAY: u64 = 24 * 3600;
/// How long a CA is left alone that says there was too much and not for how long (chosen).
pub const GATE: u64 = 3600;

/// How far it was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Nothing was done.
    Wanted,
    /// The key of the certificate is in the row, sealed.
    KeySealed,
    /// The order is being placed.
    Ordering,
    /// Its URL is in the row.
    Ordered,
    /// The answers to its challenges are being given to every PoP.
    Publishing,
    /// The CA is being told to look at them.
    Asking,
    /// The request is being handed in.
    Finalising,
}

/// A row `order/ID`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderRow {
    /// Names, `*.` in front of one for all below it.
    pub names: Vec<String>,
    /// The CA's name.
    pub ca: String,
    /// The CA's profile, or nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub profile: String,
    /// How the names are proved.
    pub kind: Kind,
    /// Which certificate of this id it is to be.
    pub generation: u64,
    /// ARI's id of the certificate it takes the place of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<String>,
    /// Of the lease it was last written under.
    pub fence: u64,
    /// How far it was begun.
    pub step: Step,
    /// Base64 of the sealed key (PKCS#8).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_key: Option<String>,
    /// The order's URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Failures in a row.
    #[serde(default)]
    pub failures: u32,
    /// Of those, the ones at this CA.
    #[serde(default)]
    pub failures_here: u32,
    /// Not before, seconds since 1970.
    #[serde(default)]
    pub next_try: u64,
    /// Why it failed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_problem: Option<Problem>,
    /// When the present attempt began or its order was placed, seconds since 1970.
    pub began: u64,
    /// When the CA took it that it is to look at all the answers, seconds since 1970; 0 when nobody knows. It shows that it
    /// looks by its challenges' status `processing` (RFC 8555 §7.1.6), or not at all: Let's Encrypt's stay `pending` until
    /// they are met (Boulder #9032).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub asked_at: u64,
    /// Names (without `*.`, one for each proof) for which our limits had to do since then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proving: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_zero(seconds: &u64) -> bool {
    *seconds == 0
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Make a key and seal it into the row.
    SealKey,
    /// Place the order, and write its URL down.
    Order,
    /// See how far it is.
    Look,
    /// Give the answers to every PoP, and tell the CA to look at them: again when either was begun, since nobody
    /// knows which PoP had heard of them.
    Prove,
    /// Prove the names by this kind: the CA does not offer the one that was to be.
    Use(Kind),
    /// Hand in the request.
    Finalise,
    /// Fetch the chain.
    Fetch,
    /// Nothing before then: seconds since 1970.
    Wait(u64),
    /// It has failed: write that down ([`OrderRow::failed`]).
    Fail(Problem),
}

/// What comes next, `now` in seconds since 1970. `seen` is the order as the CA had it a moment ago, or nothing.
#[must_use]
pub fn next(row: &OrderRow, seen: Option<&Status>, now: u64) -> Act {
    if now < row.next_try {
        return Act::Wait(row.next_try);
    }
    if row.sealed_key.is_none() {
        return Act::SealKey;
    }
    if row.url.is_none() {
        return Act::Order;
    }
    let poll = || match row.began + WORKS_MAX < now {
        true => Act::Fail(Problem::new(Class::Unavailable, "the CA has not finished the order within an hour")),
        false => Act::Wait(now + ((now.saturating_sub(row.began)) / 4).clamp(POLL.as_secs(), POLL_MAX.as_secs())),
    };
    match seen {
        None => Act::Look,
        Some(Status::Pending(challenges)) => {
            let mut mine = challenges.iter().filter(|challenge| challenge.kind == row.kind).peekable();
            match mine.peek().is_some() {
                // All that could be met is met, and the order has not noticed yet.
                false if challenges.is_empty() => poll(),
                false => match kinds::offered(row.kind, challenges) {
                    Some(kind) => Act::Use(kind),
                    None => Act::Fail(Problem::new(Class::Rejected, format!("the CA does not offer {}", row.kind))),
                },
                true if row.step == Step::Asking && now < row.asked_at.saturating_add(LOOKS) => poll(),
                true if mine.all(|challenge| challenge.asked) => poll(),
                true => Act::Prove,
            }
        }
        Some(Status::Ready) => Act::Finalise,
        Some(Status::Processing) => poll(),
        Some(Status::Valid) => Act::Fetch,
        Some(Status::Invalid(problem)) => Act::Fail(problem.clone()),
    }
}

impl OrderRow {
    /// A new one.
    #[must_use]
    pub fn new(names: Vec<String>, ca: &str, kind: Kind, generation: u64, now: u64) -> Self {
        Self {
            names,
            ca: ca.to_owned(),
            profile: String::new(),
            kind,
            generation,
            replaces: None,
            fence: 0,
            step: Step::Wanted,
            sealed_key: None,
            url: None,
            failures: 0,
            failures_here: 0,
            next_try: 0,
            last_problem: None,
            began: now,
            asked_at: 0,
            proving: Vec::new(),
        }
    }

    /// As JSON.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// After a failure: when it is tried again, and from where. The key stays.
    #[must_use]
    pub fn failed(&self, problem: Problem, now: u64) -> Self {
        let failures = self.failures.saturating_add(1);
        let doubled = |first: u64, max: u64| first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(max);
        let (pause, again) = match problem.class {
            // Nothing is wrong with the order.
            Class::BadNonce => {
                return Self { next_try: 0, failures, last_problem: Some(problem), ..self.clone() };
            }
            Class::Unavailable => (doubled(UNAVAILABLE, UNAVAILABLE_MAX), false),
            Class::Lost | Class::Unready => (doubled(SOON, UNAVAILABLE_MAX), false),
            Class::Undelegated => (doubled(UNAVAILABLE, UNDELEGATED_MAX), false),
            Class::RateLimited | Class::Held => (GATE, false),
            Class::Unauthorized => (kinds::pause(self.kind, failures), true),
            Class::Dns | Class::Caa | Class::Account => (HOUR, true),
            Class::Order => (doubled(1, HOUR), true),
            Class::Rejected => (DAY, true),
            Class::Other => (doubled(UNAVAILABLE, DAY), true),
        };
        // At least as long as the CA asks for.
        let pause = problem.retry_after.map_or(pause, |wait| wait.as_secs().max(1).max(if again { pause } else { 0 }));
        let kind = if problem.class == Class::Unauthorized { kinds::next(self.kind) } else { self.kind };
        let step = if again && self.sealed_key.is_some() { Step::KeySealed } else { self.step };
        Self {
            kind,
            step,
            url: if again { None } else { self.url.clone() },
            asked_at: if again { 0 } else { self.asked_at },
            proving: if again { Vec::new() } else { self.proving.clone() },
            failures,
            // Another CA would not find us readier, nor the name's owner.
            failures_here: self
                .failures_here
                .saturating_add((!matches!(problem.class, Class::Unready | Class::Undelegated)).into()),
            next_try: now + pause,
            began: now + pause,
            last_problem: Some(problem),
            ..self.clone()
        }
    }

    /// The same order with a key that is still to be made; what was placed is left.
    #[must_use]
    pub fn anew(&self, now: u64) -> Self {
        Self { sealed_key: None, step: Step::Wanted, ..self.elsewhere(&self.ca, now) }
    }

    /// The same order at another CA, from the start.
    #[must_use]
    pub fn elsewhere(&self, ca: &str, now: u64) -> Self {
        Self {
            ca: ca.to_owned(),
            step: if self.sealed_key.is_some() { Step::KeySealed } else { Step::Wanted },
            url: None,
            replaces: None,
            failures_here: 0,
            next_try: 0,
            began: now,
            asked_at: 0,
            proving: Vec::new(),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::Challenge;

    const NOW: u64 = 1_800_000_000;

    fn row() -> OrderRow {
        let row = OrderRow::new(vec!["*.sprites.test".into()], "first", Kind::Dns01, 1, NOW);
        OrderRow { sealed_key: Some("k".into()), url: Some("https://ca/1".into()), step: Step::Ordered, ..row }
    }

    fn pending(asked: &[bool]) -> Status {
        let challenge = |asked: &bool| Challenge::new("sprites.test".into(), Kind::Dns01, "t".into(), "p", *asked);
        Status::Pending(asked.iter().map(challenge).collect())
    }

    #[test]
    fn every_state_leads_on() {
        let fresh = OrderRow::new(vec!["a".into()], "first", Kind::Dns01, 1, NOW);
        assert_eq!(next(&fresh, None, NOW), Act::SealKey);
        let sealed = OrderRow { sealed_key: Some("k".into()), step: Step::KeySealed, ..fresh };
        assert_eq!(next(&sealed, None, NOW), Act::Order);
        // Nobody knows whether it was placed.
        assert_eq!(next(&OrderRow { step: Step::Ordering, ..sealed }, None, NOW), Act::Order);
        assert_eq!(next(&row(), None, NOW), Act::Look);
        let at = |step| OrderRow { step, ..row() };
        for step in [Step::Ordered, Step::Publishing, Step::Asking] {
            assert_eq!(next(&at(step), Some(&pending(&[false])), NOW), Act::Prove, "{step:?}");
        }
        assert_eq!(next(&at(Step::Asking), Some(&pending(&[false, true])), NOW), Act::Prove, "one was not asked for");
        assert_eq!(next(&at(Step::Asking), Some(&pending(&[true, true])), NOW), Act::Wait(NOW + 1));
        assert_eq!(next(&at(Step::Asking), Some(&pending(&[true])), NOW + 100), Act::Wait(NOW + 103));
        assert!(matches!(next(&at(Step::Asking), Some(&pending(&[true])), NOW + 3601), Act::Fail(_)));
        // It was told, and shows nothing of that; after a while nobody believes that it looks.
        let told = OrderRow { asked_at: NOW - 60, ..at(Step::Asking) };
        assert!(matches!(next(&told, Some(&pending(&[false, false])), NOW), Act::Wait(_)));
        assert_eq!(next(&told, Some(&pending(&[false, false])), NOW + 60), Act::Prove);
        let before = OrderRow { asked_at: NOW, ..at(Step::Ordered) };
        assert_eq!(next(&before, Some(&pending(&[false])), NOW), Act::Prove, "of another attempt");
        assert_eq!(next(&row(), Some(&pending(&[])), NOW), Act::Wait(NOW + 1));
        assert_eq!(next(&row(), Some(&Status::Ready), NOW), Act::Finalise);
        assert_eq!(next(&at(Step::Finalising), Some(&Status::Ready), NOW), Act::Finalise, "it was not done");
        assert_eq!(next(&at(Step::Finalising), Some(&Status::Processing), NOW), Act::Wait(NOW + 1));
        assert_eq!(next(&row(), Some(&Status::Valid), NOW), Act::Fetch);
        let problem = Problem::new(Class::Dns, "SERVFAIL");
        assert_eq!(next(&row(), Some(&Status::Invalid(problem.clone())), NOW), Act::Fail(problem));
        let http = OrderRow { kind: Kind::Http01, ..row() };
        assert!(matches!(next(&http, Some(&pending(&[false])), NOW), Act::Fail(no) if no.class == Class::Rejected));
        let alpn = Challenge::new("sprites.test".into(), Kind::TlsAlpn01, "t".into(), "p", false);
        assert_eq!(next(&http, Some(&Status::Pending(vec![alpn])), NOW), Act::Use(Kind::TlsAlpn01));
        assert_eq!(next(&OrderRow { next_try: NOW + 5, ..row() }, None, NOW), Act::Wait(NOW + 5));
    }

    #[test]
    fn a_failure_waits_by_its_class_and_keeps_the_key() {
        let failed = |row: &OrderRow, class| row.failed(Problem::new(class, "x"), NOW);
        let waits = |class, times: usize| {
            let mut row = row();
            (0..times)
                .map(|_| {
                    row = failed(&row, class);
                    row.next_try - NOW
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(waits(Class::Unauthorized, 5), [720, 3600, DAY, DAY, DAY]);
        assert_eq!(waits(Class::Unavailable, 8), [60, 120, 240, 480, 960, 1920, 3600, 3600]);
        assert_eq!(waits(Class::Lost, 4), [2, 4, 8, 16]);
        assert_eq!(waits(Class::Unready, 13).last(), Some(&3600));
        let here = |class| failed(&row(), class).failures_here;
        assert_eq!((here(Class::Lost), here(Class::Unready)), (1, 0));
        assert_eq!(waits(Class::Dns, 3), [3600; 3]);
        assert_eq!(waits(Class::Undelegated, 5), [60, 120, 240, 300, 300]);
        assert_eq!(failed(&row(), Class::Undelegated).failures_here, 0, "no CA has failed");
        assert_eq!(waits(Class::RateLimited, 2), [GATE; 2]);
        let stale = failed(&row(), Class::BadNonce);
        assert_eq!((stale.next_try, stale.step, &stale.url), (0, Step::Ordered, &row().url));
        for (class, url) in [
            (Class::Unavailable, true),
            (Class::Lost, true),
            (Class::Unready, true),
            (Class::RateLimited, true),
            (Class::Unauthorized, false),
        ] {
            let failed = failed(&row(), class);
            assert_eq!((failed.url.is_some(), failed.sealed_key.is_some()), (url, true), "{class:?}");
        }
        // As long as the CA asks for; after a failed proof at least as long as its limit allows.
        let told = |class, seconds| {
            let problem = Problem { retry_after: Some(Duration::from_secs(seconds)), ..Problem::new(class, "x") };
            row().failed(problem, NOW).next_try - NOW
        };
        assert_eq!((told(Class::RateLimited, 129_600), told(Class::Unavailable, 5)), (129_600, 5));
        assert_eq!((told(Class::Unauthorized, 5), told(Class::Unauthorized, 7200)), (720, 7200));
        let elsewhere = failed(&row(), Class::RateLimited).elsewhere("second", NOW);
        assert_eq!((elsewhere.step, elsewhere.url, elsewhere.next_try), (Step::KeySealed, None, 0));
    }

    #[test]
    fn a_row_is_read_as_it_was_written() {
        let row = row().failed(Problem::new(Class::Dns, "SERVFAIL"), NOW);
        assert_eq!(serde_json::from_slice::<OrderRow>(&row.encode()).unwrap(), row);
    }
}
