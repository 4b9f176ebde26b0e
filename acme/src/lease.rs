//! Who works on a share of the orders: one PoP at a time, and soon another one when it is gone.
//!
//! A lease is a row that its holder writes again and again. Nobody compares clocks: a PoP takes the lease over when it
//! has itself watched the row stand still for long enough, and a holder lets go of its own accord before that. Both go
//! by the time that passes, which clocks that are minutes apart agree on.

use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::Instant;

/// Where leases are.
pub const LEASE_PREFIX: &str = "lease/";
/// How many shares there are (`tls-acme-dns.md` §2).
pub const SHARDS: u64 = 64;
/// How often a holder writes (chosen: three times before it lets go).
pub const RENEW: Duration = Duration::from_secs(3);
/// A holder that could not write for so long lets go (chosen).
pub const LET_GO: Duration = Duration::from_secs(9);
/// A row that stood still for so long is taken over (chosen: a third more than [`LET_GO`], which no two clocks of
/// machines differ by; with [`RENEW`], below the 20 s a fail-over may take).
pub const TAKE: Duration = Duration::from_secs(12);

/// A row `lease/SHARD`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRow {
    /// The process that holds it; empty when nobody does.
    pub holder: String,
    /// Counts the holders: what was begun with a lower one is over.
    pub fence: u64,
}

/// The share of an order.
#[must_use]
pub fn shard(id: &str) -> u64 {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, id.as_bytes());
    let first = digest.as_ref().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    first % SHARDS
}

/// One process's view of one lease. Sans-io: it is shown the row, and says what to write.
#[derive(Debug)]
pub struct Lease {
    me: String,
    /// The version the row stands at, and since when this process has seen it there.
    seen: Option<(Option<u64>, Instant)>,
    /// Since when what it wrote last was true.
    held: Option<(u64, Instant)>,
}

/// What to do about a lease.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Write this, expecting the version that was shown; then [`Lease::wrote`].
    Write(LeaseRow),
    /// Look again then.
    Wait(Instant),
}

impl Lease {
    /// Not held yet. `me` names the process, not the machine: one that starts again is another holder.
    #[must_use]
    pub fn new(me: impl Into<String>) -> Self {
        Self { me: me.into(), seen: None, held: None }
    }

    /// The fence, while it is held.
    #[must_use]
    pub fn fence(&self, now: Instant) -> Option<u64> {
        self.held.filter(|(_, since)| now.duration_since(*since) < LET_GO).map(|(fence, _)| fence)
    }

    /// What to do, when the row is this now (`None`: there is none) and there is work to do.
    pub fn look(&mut self, row: Option<(&LeaseRow, u64)>, now: Instant) -> Next {
        let version = row.map(|(_, version)| version);
        if self.seen.is_none_or(|(seen, _)| seen != version) {
            self.seen = Some((version, now));
        }
        let still = self.seen.map_or(now, |(_, since)| since);
        let mine = |row: &LeaseRow| row.holder == self.me && self.held.is_some_and(|(fence, _)| fence == row.fence);
        match row {
            Some((row, _)) if mine(row) => match self.held.map(|(_, since)| since + RENEW) {
                Some(due) if now < due => Next::Wait(due),
                _ => Next::Write(row.clone()),
            },
            Some((row, _)) if !row.holder.is_empty() && now < still + TAKE => {
                self.held = None;
                Next::Wait(still + TAKE)
            }
            row => {
                self.held = None;
                let fence = row.map_or(1, |(row, _)| row.fence + 1);
                Next::Write(LeaseRow { holder: self.me.clone(), fence })
            }
        }
    }

    /// The row was written, in a call that began at `began`.
    pub fn wrote(&mut self, row: &LeaseRow, version: u64, began: Instant) {
        self.held = (row.holder == self.me).then_some((row.fence, began));
        self.seen = Some((Some(version), began));
    }

    /// What to write to let go of it, when the row is this: others need not wait then.
    #[must_use]
    pub fn release(&self, row: &LeaseRow) -> Option<LeaseRow> {
        let mine = row.holder == self.me && self.held.is_some_and(|(fence, _)| fence == row.fence);
        mine.then(|| LeaseRow { holder: String::new(), fence: row.fence })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lease row, its version, and who looks at it.
    #[derive(Default)]
    struct Table(Option<(LeaseRow, u64)>);

    impl Table {
        fn look(&mut self, lease: &mut Lease, now: Instant) -> Option<Instant> {
            match lease.look(self.0.as_ref().map(|(row, version)| (row, *version)), now) {
                Next::Wait(until) => Some(until),
                Next::Write(row) => {
                    let version = self.0.as_ref().map_or(1, |(_, version)| version + 1);
                    self.0 = Some((row.clone(), version));
                    lease.wrote(&row, version, now);
                    None
                }
            }
        }
    }

    #[test]
    fn a_lease_goes_to_another_when_its_holder_is_silent_and_never_to_two() {
        let (mut table, start) = (Table::default(), Instant::now());
        let (mut a, mut b) = (Lease::new("a"), Lease::new("b"));
        assert_eq!(table.look(&mut a, start), None);
        assert_eq!(a.fence(start), Some(1));
        let mut now = start;
        // While it renews, nobody takes it.
        for _ in 0..20 {
            let due = table.look(&mut a, now).expect("it is not due");
            assert_eq!(due, now + RENEW);
            assert!(table.look(&mut b, now).is_some());
            assert_eq!(b.fence(now), None);
            now = due;
            assert_eq!(table.look(&mut a, now), None, "renewed");
        }
        // It falls silent.
        let silent = now;
        let mut taken = None;
        while taken.is_none() {
            now += Duration::from_millis(500);
            let both = a.fence(now).is_some();
            table.look(&mut b, now);
            if b.fence(now).is_some() {
                assert!(!both, "two holders at {:?}", now - silent);
                taken = Some(now - silent);
            }
        }
        assert!(taken.unwrap() < Duration::from_secs(15), "{taken:?}");
        assert_eq!(b.fence(now), Some(2));
        // The old one comes back, and is not the holder.
        assert!(table.look(&mut a, now).is_some());
        assert_eq!((a.fence(now), b.fence(now)), (None, Some(2)));
        // Let go of, it is free at once.
        let row = b.release(&table.0.as_ref().unwrap().0).unwrap();
        table.0 = Some((row, 99));
        assert_eq!(table.look(&mut a, now), None);
        assert_eq!(a.fence(now), Some(3));
    }

    #[test]
    fn a_process_that_starts_again_under_its_name_waits_like_any_other() {
        let (mut table, now) = (Table::default(), Instant::now());
        assert_eq!(table.look(&mut Lease::new("a"), now), None);
        let mut again = Lease::new("a");
        assert_eq!(table.look(&mut again, now), Some(now + TAKE));
        assert_eq!(again.fence(now), None);
    }

    #[test]
    fn shares_are_even() {
        let mut counts = [0_u32; 64];
        for number in 0..6_400 {
            counts[usize::try_from(shard(&format!("domain-{number}.example"))).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (50..200).contains(count)), "{counts:?}");
    }
}
