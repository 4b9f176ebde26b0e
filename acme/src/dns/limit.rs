//! How many answers a network gets over UDP in a second: a question's address may be a victim's.
//!
//! One cell for each hash of a network (/24, /56), each with the time until which its answers are spent (GCRA, ITU-T
//! I.371). Two networks in one cell share what is theirs: with so many cells that is rare, and nobody can choose it, since
//! the hash has a key. So memory is bounded, nothing has to be cleared, and no lock is needed.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Cells, 8 bytes each (chosen: 512 KiB).
const CELLS: usize = 65_536;

/// What becomes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is sent.
    Send,
    /// It is cut down to "come by TCP": every second one above the limit (slip 2).
    Cut,
    /// It is dropped.
    Drop,
}

/// The answers of each network.
pub(super) struct Limiter {
    cells: Box<[AtomicU64]>,
    hasher: foldhash::quality::RandomState,
    /// Microseconds an answer takes of a network's time.
    interval: u64,
}

/// Microseconds that may be spent ahead: answers of one second may come at once.
const BURST: u64 = 1_000_000;

impl Limiter {
    /// With so many answers a second for each network, 1 to 1,000,000.
    pub(super) fn new(answers_per_second: u32) -> Self {
        let interval = BURST / u64::from(answers_per_second.clamp(1, 1_000_000));
        let cells = (0..CELLS).map(|_| AtomicU64::new(0)).collect();
        Self { cells, hasher: foldhash::quality::RandomState::default(), interval }
    }

    /// Takes an answer to `to` from its network's share at `now`, the time since any fixed moment.
    pub(super) fn take(&self, to: IpAddr, now: Duration) -> Verdict {
        let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX >> 1) & (u64::MAX >> 1);
        let hash = self.hasher.hash_one(network(to)) as usize;
        let Some(cell) = self.cells.get(hash % CELLS) else { return Verdict::Drop };
        // Above: until when it is spent. The lowest bit: whether the last one above the limit was cut.
        let spend = |cell: u64| {
            let (until, cut) = (cell >> 1, cell & 1);
            let next = until.max(now) + self.interval;
            if next <= now + BURST { (next << 1) | cut } else { (until << 1) | (cut ^ 1) }
        };
        let mut seen = cell.load(Ordering::Relaxed);
        loop {
            let next = spend(seen);
            match cell.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) if next >> 1 != seen >> 1 => return Verdict::Send,
                Ok(_) if next & 1 == 1 => return Verdict::Cut,
                Ok(_) => return Verdict::Drop,
                Err(other) => seen = other,
            }
        }
    }
}

/// The network an address is in: what one customer of a provider has, and what a resolver spreads its questions over.
pub(super) fn network(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => u64::from(address.to_bits() >> 8),
        // Of its own kind: no /24 is one of these.
        IpAddr::V6(address) => (address.to_bits() >> 72) as u64 | 1 << 63,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(limiter: &Limiter, to: &str, at: Duration, questions: usize) -> [usize; 3] {
        let mut counts = [0; 3];
        for _ in 0..questions {
            counts[limiter.take(to.parse().unwrap(), at) as usize] += 1;
        }
        counts
    }

    #[test]
    fn a_network_gets_its_answers_and_every_second_one_above_is_cut() {
        let limiter = Limiter::new(100);
        let at = Duration::from_secs(1_000);
        assert_eq!(counted(&limiter, "192.0.2.1", at, 300), [100, 100, 100]);
        // Its neighbours are of it; others are not.
        assert_eq!(counted(&limiter, "192.0.2.255", at, 2), [0, 1, 1]);
        assert_eq!(counted(&limiter, "192.0.3.1", at, 1), [1, 0, 0]);
        // What it gets back is what has passed.
        assert_eq!(counted(&limiter, "192.0.2.1", at + Duration::from_millis(500), 100)[0], 50);
        assert_eq!(counted(&limiter, "192.0.2.1", at + Duration::from_secs(99), 300)[0], 100);
    }

    #[test]
    fn a_network_of_ipv6_is_a_56() {
        let limiter = Limiter::new(10);
        let at = Duration::from_secs(1);
        assert_eq!(counted(&limiter, "2001:db8:0:100::1", at, 12), [10, 1, 1]);
        assert_eq!(counted(&limiter, "2001:db8:0:1ff:ffff::1", at, 2)[0], 0);
        assert_eq!(counted(&limiter, "2001:db8:0:200::1", at, 1)[0], 1);
        // However an address is written it is the same.
        assert_eq!(network("::ffff:192.0.2.7".parse().unwrap()), network("192.0.2.9".parse().unwrap()));
    }

    #[test]
    fn threads_together_spend_no_more_than_one_would() {
        let limiter = Limiter::new(1_000);
        let sent = std::thread::scope(|threads| {
            let each = || counted(&limiter, "192.0.2.1", Duration::from_secs(5), 1_000)[0];
            let all: Vec<_> = (0..4).map(|_| threads.spawn(each)).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        });
        assert_eq!(sent, 1_000);
    }
}
