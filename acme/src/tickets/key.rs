//! One ticket key: AES-256-GCM, its epoch in every ticket and under its seal.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use zeroize::Zeroizing;

/// Bytes of a key.
pub(super) const KEY_BYTES: usize = 32;
const EPOCH_BYTES: usize = 8;
const TAG_BYTES: usize = 16;
/// Longest ticket that is looked at (RFC 8446 §4.6.1 allows 64 KiB; chosen: ours with a long client chain have 10).
const TICKET_BYTES_MAX: usize = 32 * 1024;

/// A key of the ring. Its bytes are in the library alone, which clears them when the key is dropped.
pub struct TicketKey {
    epoch: u64,
    key: LessSafeKey,
    issued: AtomicU64,
}

impl TicketKey {
    /// From the bytes of an opened row; `None` when they are no key.
    #[must_use]
    pub fn new(epoch: u64, bytes: &[u8]) -> Option<Self> {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).ok()?);
        Some(Self { epoch, key, issued: AtomicU64::new(0) })
    }

    /// New bytes for a key; `None` when the system has no random numbers.
    #[must_use]
    pub fn random() -> Option<Zeroizing<[u8; KEY_BYTES]>> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        aws_lc_rs::rand::fill(&mut *bytes).ok()?;
        Some(bytes)
    }

    /// Its number.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Tickets this process has made with it.
    #[must_use]
    pub fn issued(&self) -> u64 {
        self.issued.load(Ordering::Relaxed)
    }

    /// `epoch ‖ nonce ‖ sealed`; the epoch and `scope` are associated data.
    pub(super) fn seal(&self, scope: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
        self.issued.fetch_add(1, Ordering::Relaxed);
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).ok()?;
        let mut ticket = Vec::with_capacity(EPOCH_BYTES + NONCE_LEN + plain.len() + TAG_BYTES);
        ticket.extend_from_slice(&self.epoch.to_be_bytes());
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(plain);
        let body = &mut ticket[EPOCH_BYTES + NONCE_LEN..];
        let about = Aad::from(self.about(scope));
        let tag = self.key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), about, body).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    /// What [`Self::seal`] sealed with this key and scope.
    pub(super) fn open(&self, scope: &[u8], ticket: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = ticket.get(EPOCH_BYTES..)?.split_first_chunk::<NONCE_LEN>()?;
        let mut plain = sealed.to_vec();
        let about = Aad::from(self.about(scope));
        let length = self.key.open_in_place(Nonce::assume_unique_for_key(*nonce), about, &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }

    fn about(&self, scope: &[u8]) -> [u8; EPOCH_BYTES + super::ring::SCOPE_BYTES] {
        let mut about = [0; EPOCH_BYTES + super::ring::SCOPE_BYTES];
        about[..EPOCH_BYTES].copy_from_slice(&self.epoch.to_be_bytes());
        about[EPOCH_BYTES..].copy_from_slice(scope);
        about
    }
}

/// The epoch a ticket says it is of; `None` for what is none of ours.
pub(super) fn epoch_of(ticket: &[u8]) -> Option<u64> {
    let fits = (EPOCH_BYTES + NONCE_LEN + TAG_BYTES..=TICKET_BYTES_MAX).contains(&ticket.len());
    ticket.first_chunk().filter(|_| fits).map(|epoch| u64::from_be_bytes(*epoch))
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKey").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

#[cfg(test)]
impl TicketKey {
    /// As if it had made so many.
    pub(super) fn wear(&self, issued: u64) {
        self.issued.store(issued, Ordering::Relaxed);
    }
}
