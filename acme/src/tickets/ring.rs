//! The keys of one policy in memory, as rustls uses them: no lock, one copy of the ticket.

use super::key::{TicketKey, epoch_of};
use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use rustls::server::ProducesTickets;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub(super) const SCOPE_BYTES: usize = 32;

/// Tickets of one process after which its key is to be replaced. Nonces are random, so one key is good for 2^32 of them in
/// a whole fleet (NIST SP 800-38D §8.3); 2^24 leaves room for 256 processes.
pub const ISSUED_ROTATE: u64 = 1 << 24;
/// Tickets of one process after which it makes no more with this key: 64 processes reach 2^32 together.
pub const ISSUED_MAX: u64 = 1 << 26;

/// The keys of one policy. Replaced as a whole.
#[derive(Debug)]
pub struct TicketRing {
    keys: ArcSwap<Keys>,
    lifetime: u32,
}

#[derive(Debug, Default)]
struct Keys {
    active: Option<Arc<TicketKey>>,
    all: Vec<Arc<TicketKey>>,
}

impl TicketRing {
    /// Without a key, so that no ticket is made; a key is changed every `period`.
    #[must_use]
    pub fn new(period: Duration) -> Arc<Self> {
        let window = period.as_secs().saturating_mul(super::OLD_MAX as u64).max(1);
        // RFC 8446 §4.6.1: a week at most.
        let lifetime = u32::try_from(window.min(7 * 24 * 3600)).unwrap_or(u32::MAX);
        Arc::new(Self { keys: ArcSwap::default(), lifetime })
    }

    /// Uses these keys from now on; whatever is not among them is forgotten as soon as no handshake uses it.
    pub fn install(&self, active: Option<Arc<TicketKey>>, all: Vec<Arc<TicketKey>>) {
        self.keys.store(Arc::new(Keys { active, all }));
    }

    /// The epoch new tickets are made with.
    #[must_use]
    pub fn active(&self) -> Option<u64> {
        self.keys.load().active.as_ref().map(|key| key.epoch())
    }

    /// The keys it opens tickets with.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.load().all.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether its active key has made so many tickets that it is to be replaced before its time.
    #[must_use]
    pub fn is_worn(&self) -> bool {
        self.keys.load().active.as_ref().is_some_and(|key| key.issued() >= ISSUED_ROTATE)
    }

    /// What rustls is given. A ticket opens in the scope it was made in alone, whatever keys two scopes share.
    #[must_use]
    pub fn ticketer(self: &Arc<Self>, scope: [u8; SCOPE_BYTES]) -> Arc<dyn ProducesTickets> {
        Arc::new(Ticketer { ring: Arc::clone(self), scope })
    }

    fn seal(&self, scope: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys.load();
        keys.active.as_ref().filter(|key| key.issued() < ISSUED_MAX)?.seal(scope, plain)
    }

    fn open(&self, scope: &[u8], ticket: &[u8]) -> Option<Vec<u8>> {
        let epoch = epoch_of(ticket)?;
        let keys = self.keys.load();
        keys.all.iter().find(|key| key.epoch() == epoch)?.open(scope, ticket)
    }
}

/// A scope of its own for each list of parts that differs.
#[must_use]
pub fn scope(parts: &[&[u8]]) -> [u8; SCOPE_BYTES] {
    let mut all = Vec::new();
    for part in parts {
        all.extend_from_slice(&(part.len() as u64).to_be_bytes());
        all.extend_from_slice(part);
    }
    let mut scope = [0; SCOPE_BYTES];
    scope.copy_from_slice(digest(&SHA256, &all).as_ref());
    scope
}

struct Ticketer {
    ring: Arc<TicketRing>,
    scope: [u8; SCOPE_BYTES],
}

impl fmt::Debug for Ticketer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticketer").field("ring", &self.ring).finish_non_exhaustive()
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        // Always: without, rustls would use a store of sessions of its own. Without a key it makes none.
        true
    }

    fn lifetime(&self) -> u32 {
        self.ring.lifetime
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.ring.seal(&self.scope, plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.ring.open(&self.scope, cipher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(epoch: u64, byte: u8) -> Arc<TicketKey> {
        Arc::new(TicketKey::new(epoch, &[byte; 32]).unwrap())
    }

    #[test]
    fn a_ticket_opens_with_every_key_of_the_ring_and_in_its_scope_alone() {
        let ring = TicketRing::new(Duration::from_secs(3600));
        let ticketer = ring.ticketer(scope(&[b"a"]));
        assert!(ticketer.encrypt(b"state").is_none(), "there is no key");
        ring.install(Some(key(1, 1)), vec![key(1, 1)]);
        let old = ticketer.encrypt(b"state").unwrap();
        assert_eq!(old.len(), 8 + 12 + 5 + 16);
        ring.install(Some(key(2, 2)), vec![key(2, 2), key(1, 1)]);
        let new = ticketer.encrypt(b"state").unwrap();
        for ticket in [&old, &new, &new] {
            assert_eq!(ticketer.decrypt(ticket).unwrap(), b"state");
            assert!(ring.ticketer(scope(&[b"b"])).decrypt(ticket).is_none());
        }
        ring.install(Some(key(2, 2)), vec![key(2, 2)]);
        assert!(ticketer.decrypt(&old).is_none(), "its key is forgotten");
        ring.install(Some(key(2, 3)), vec![key(2, 3)]);
        assert!(ticketer.decrypt(&new).is_none(), "the same epoch, another key");
        assert_eq!(ticketer.lifetime(), 6 * 3600);
    }

    #[test]
    fn nothing_that_was_changed_opens() {
        let ring = TicketRing::new(Duration::from_secs(3600));
        ring.install(Some(key(7, 1)), vec![key(7, 1), key(6, 2)]);
        let ticketer = ring.ticketer(scope(&[]));
        let ticket = ticketer.encrypt(b"state").unwrap();
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert!(ticketer.decrypt(&changed).is_none(), "byte {at}");
            assert!(ticketer.decrypt(&ticket[..at]).is_none(), "{at} bytes");
        }
        assert!(ticketer.decrypt(&[0; 70_000]).is_none());
    }

    #[test]
    fn a_key_that_has_made_too_many_tickets_makes_no_more() {
        let ring = TicketRing::new(Duration::from_secs(3600));
        let worn = key(1, 1);
        ring.install(Some(Arc::clone(&worn)), vec![Arc::clone(&worn)]);
        assert!(!ring.is_worn());
        worn.wear(ISSUED_ROTATE);
        assert!(ring.is_worn());
        let ticketer = ring.ticketer(scope(&[]));
        let last = ticketer.encrypt(b"state").unwrap();
        worn.wear(ISSUED_MAX);
        assert!(ticketer.encrypt(b"state").is_none());
        assert!(ticketer.decrypt(&last).is_some());
    }

    #[test]
    fn no_two_lists_of_parts_share_a_scope() {
        assert_ne!(scope(&[b"ab", b"c"]), scope(&[b"a", b"bc"]));
        assert_ne!(scope(&[b"a"]), scope(&[b"a", b""]));
    }
}
