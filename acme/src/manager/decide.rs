//! What is to be done about a wish: no clock, no rows, no CA.

use super::{Newest, Wish};
use crate::certificate::CertRow;
use crate::order::OrderRow;

/// Failures at one CA before the next one is asked, when little of the old certificate's life is left
/// (`tls-acme-dns.md` §3).
pub(super) const FAILURES_HERE: u32 = 2;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Todo {
    /// Nothing before then, seconds since 1970.
    Nothing(u64),
    /// Ask the CA when it wants the certificate renewed.
    AskWindow,
    /// Order a certificate, or go on with that.
    Order,
}

/// What to do about a wish whose newest certificate is this one.
pub(super) fn todo(newest: Option<Newest>, now: u64) -> Todo {
    match newest.filter(|newest| newest.has_its_names) {
        None => Todo::Order,
        Some(newest) if newest.due <= now => Todo::Order,
        Some(newest) if newest.ask <= now => Todo::AskWindow,
        Some(newest) => Todo::Nothing(newest.due.min(newest.ask)),
    }
}

/// A new order for a wish, at the CA it prefers; `None` when it has no CA.
pub(super) fn new_order(
    wish: &Wish,
    newest: Option<&CertRow>,
    generation: u64,
    fence: u64,
    now: u64,
) -> Option<OrderRow> {
    let (ca, profile) = wish.cas.first()?;
    let new = OrderRow::new(wish.names.clone(), ca, wish.kind, generation, now);
    // Only a CA that said when it wants this one renewed has heard of such things (RFC 9773 §5).
    let replaced = newest.filter(|newest| newest.ca == *ca && newest.not_after > now && newest.window.is_some());
    let replaces = replaced.and_then(|newest| newest.ari.clone());
    Some(OrderRow { profile: profile.clone(), replaces, fence, ..new })
}

/// The CA an order goes on at with its profile, when that is another one than it is at.
pub(super) fn elsewhere<'a>(
    wish: &'a Wish,
    row: &OrderRow,
    newest: Option<&CertRow>,
    now: u64,
) -> Option<&'a (String, String)> {
    let Some(here) = wish.cas.iter().position(|(name, _)| *name == row.ca) else { return wish.cas.first() };
    // What nobody trusts, and what its CA or somebody else's key spoils, is as good as ended.
    let short = newest.is_none_or(|row| {
        let is_spoilt = row.compromised || !wish.cas.iter().any(|(ca, _)| *ca == row.ca);
        is_spoilt || row.not_after.saturating_sub(now) * 3 < row.not_after - row.not_before
    });
    let leaves = row.failures_here >= FAILURES_HERE && short && wish.cas.len() > 1;
    leaves.then(|| &wish.cas[(here + 1) % wish.cas.len()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::{Class, Kind, Problem};

    #[test]
    fn another_ca_is_asked_sooner_for_what_is_as_good_as_ended() {
        let now = 1_800_000_000;
        let named = |cas: &[&str]| Wish {
            id: "domain.a".into(),
            names: vec!["a".into()],
            kind: Kind::Http01,
            tenant: String::new(),
            cas: cas.iter().map(|ca| ((*ca).to_owned(), String::new())).collect(),
        };
        let fresh = CertRow {
            names: vec!["a".into()],
            ca: "first".into(),
            generation: 1,
            chain: String::new(),
            sealed_key: String::new(),
            not_before: now,
            not_after: now + 1000,
            issued_at: now,
            ari: None,
            window: None,
            compromised: false,
            renew_asked: None,
            revocation: None,
        };
        let mut row = OrderRow::new(vec!["a".into()], "second", Kind::Http01, 2, now);
        for _ in 0..FAILURES_HERE {
            row = row.failed(Problem::new(Class::Caa, "no"), now);
        }
        let asks = |wish: &Wish, newest: Option<&CertRow>| elsewhere(wish, &row, newest, now).map(|(ca, _)| ca.clone());
        let all = named(&["first", "second", "third"]);
        assert_eq!(asks(&all, Some(&fresh)), None, "there is time");
        assert_eq!(asks(&all, None).as_deref(), Some("third"));
        let stolen = CertRow { compromised: true, ..fresh.clone() };
        assert_eq!(asks(&all, Some(&stolen)).as_deref(), Some("third"));
        // The first one is trusted no more.
        assert_eq!(asks(&named(&["second", "third"]), Some(&fresh)).as_deref(), Some("third"));
        assert_eq!(asks(&named(&["third"]), Some(&fresh)).as_deref(), Some("third"), "nor is the second");
    }
}
