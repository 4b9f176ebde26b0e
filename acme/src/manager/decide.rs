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
pub(super) fn new_order(wish: &Wish, newest: Option<&CertRow>, fence: u64, now: u64) -> Option<OrderRow> {
    let (ca, profile) = wish.cas.first()?;
    let generation = newest.map_or(1, |newest| newest.generation + 1);
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
    let short = newest.is_none_or(|row| (row.not_after.saturating_sub(now)) * 3 < row.not_after - row.not_before);
    let leaves = row.failures_here >= FAILURES_HERE && short && wish.cas.len() > 1;
    leaves.then(|| &wish.cas[(here + 1) % wish.cas.len()])
}
