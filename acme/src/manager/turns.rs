//! Who is next of those that wait for a first certificate: one of each tenant in turn, and of a tenant in the order of their
//! coming, so that a tenant with ten thousand domains holds up another one's by one.
//!
//! Sans-io. Each tenant that waits has a round, and the least one is next; then it has the round after (start-time fair
//! queueing). One that comes begins after the round that goes on. Our own names have no tenant and go before all.

use std::collections::{BTreeSet, HashMap};

/// Those that wait.
#[derive(Debug, Default)]
pub(super) struct Turns {
    tenants: HashMap<String, Tenant>,
    /// By round.
    order: BTreeSet<(u64, String)>,
    round: u64,
}

#[derive(Debug, Default)]
struct Tenant {
    round: u64,
    /// By number.
    waiting: BTreeSet<(u64, String)>,
}

impl Turns {
    pub(super) fn insert(&mut self, id: &str, tenant: &str, number: u64) {
        let next = if tenant.is_empty() { 0 } else { self.round + 1 };
        let of_tenant = self.tenants.entry(tenant.to_owned()).or_default();
        if of_tenant.waiting.is_empty() {
            of_tenant.round = next;
            self.order.insert((next, tenant.to_owned()));
        }
        of_tenant.waiting.insert((number, id.to_owned()));
    }

    /// Takes one out that has lost interest.
    pub(super) fn remove(&mut self, id: &str, tenant: &str, number: u64) {
        let Some(of_tenant) = self.tenants.get_mut(tenant) else { return };
        of_tenant.waiting.remove(&(number, id.to_owned()));
        if of_tenant.waiting.is_empty() {
            self.order.remove(&(of_tenant.round, tenant.to_owned()));
            self.tenants.remove(tenant);
        }
    }

    /// Takes out whose turn it is.
    pub(super) fn pop(&mut self) -> Option<String> {
        let (round, tenant) = self.order.pop_first()?;
        self.round = self.round.max(round);
        let of_tenant = self.tenants.get_mut(&tenant)?;
        let (_, id) = of_tenant.waiting.pop_first()?;
        if of_tenant.waiting.is_empty() {
            self.tenants.remove(&tenant);
        } else {
            of_tenant.round = if tenant.is_empty() { 0 } else { round + 1 };
            self.order.insert((of_tenant.round, tenant));
        }
        Some(id)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in `a1`: the tenant, and the number.
    fn parts(id: &str) -> (&str, u64) {
        let tenant = id.trim_end_matches(|digit: char| digit.is_ascii_digit());
        (tenant, id[tenant.len()..].parse().unwrap())
    }

    fn come(turns: &mut Turns, ids: &[&str]) {
        ids.iter().for_each(|id| turns.insert(id, parts(id).0, parts(id).1));
    }

    #[test]
    fn one_of_each_tenant_goes_in_turn_and_ours_before_all() {
        let mut turns = Turns::default();
        come(&mut turns, &["a4", "a2", "a3", "a1", "b1", "b2", "c1"]);
        let mut gone: Vec<_> = (0..4).filter_map(|_| turns.pop()).collect();
        assert_eq!(gone, ["a1", "b1", "c1", "a2"]);
        // Who comes late waits for nobody's hundreds, and has no turns of before.
        come(&mut turns, &["d1", "d2", "1", "2"]);
        turns.remove("a4", "a", 4);
        gone = std::iter::from_fn(|| turns.pop()).collect();
        assert_eq!(gone, ["1", "2", "b2", "a3", "d1", "d2"]);
        assert!(turns.is_empty() && turns.tenants.is_empty());
    }

    #[test]
    fn a_tenant_that_was_alone_owes_nothing() {
        let mut turns = Turns::default();
        for number in 0..1_000 {
            turns.insert(&format!("a{number}"), "a", number);
        }
        for _ in 0..500 {
            turns.pop();
        }
        come(&mut turns, &["b1"]);
        turns.remove("b1", "b", 1);
        come(&mut turns, &["b2", "b3"]);
        let next: Vec<_> = (0..4).filter_map(|_| turns.pop()).collect();
        assert_eq!(next, ["a500", "b2", "a501", "b3"]);
    }
}
