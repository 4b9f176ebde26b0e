//! What is kept in memory of a certificate: enough to say whether it is due, and where the rest of it lies.

use acme::certificate::CertRow;

/// Of one certificate. 64 bytes, where the row has some 3 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Of its chain and key on this machine's disk: another chain has another number.
    pub number: u64,
    /// Its last second, seconds since 1970.
    pub not_after: u64,
    /// When it came, seconds since 1970.
    pub issued_at: u64,
    /// When it is to be renewed, seconds since 1970.
    pub due: u64,
    /// When its CA is to be asked for its window again; `u64::MAX` for one that has none.
    pub ask: u64,
    /// Tells its set of names from others.
    pub names: u64,
    /// Tells its CA from others.
    pub ca: u32,
    /// Its key is somebody else's too.
    pub compromised: bool,
    /// It is to be revoked, and is not yet.
    pub is_withdrawn: bool,
    /// And the tickets that were made under it are void.
    pub tickets_void: bool,
    /// It has a wildcard among its names.
    pub has_below: bool,
    /// Its key was opened once on this machine, and fits.
    pub checked: bool,
    /// Handshakes are answered with it, here and now: of this run, and not on the disk.
    pub served: bool,
}

/// As it lies on the disk: see [`Summary`], in this order; the last is bits.
pub(super) type Stored = (u64, u64, u64, u64, u64, u64, u32, u8);

const COMPROMISED: u8 = 1;
const CHECKED: u8 = 2;
const WITHDRAWN: u8 = 4;
const TICKETS_VOID: u8 = 8;
const BELOW: u8 = 16;

impl Summary {
    pub(super) fn of(id: &str, row: &CertRow, number: u64, checked: bool) -> Self {
        Self {
            number,
            not_after: row.not_after,
            issued_at: row.issued_at,
            due: row.due(id),
            ask: row.asks_at(),
            names: names(&row.names),
            ca: ca_number(&row.ca),
            compromised: row.compromised,
            has_below: row.names.iter().any(|name| name.starts_with("*.")),
            is_withdrawn: row.revocation.as_ref().is_some_and(|revocation| !revocation.is_over(u64::MAX, 0)),
            tickets_void: row.revocation.as_ref().is_some_and(|revocation| revocation.tickets_void),
            checked,
            served: false,
        }
    }

    /// As `CertRow::is_being_withdrawn`.
    #[must_use]
    pub fn is_being_withdrawn(&self, now: u64) -> bool {
        self.is_withdrawn && !(self.tickets_void && self.not_after <= now)
    }

    pub(super) fn stored(&self) -> Stored {
        let bits = [
            (self.compromised, COMPROMISED),
            (self.checked, CHECKED),
            (self.is_withdrawn, WITHDRAWN),
            (self.tickets_void, TICKETS_VOID),
            (self.has_below, BELOW),
        ];
        let bits = bits.into_iter().filter(|(is, _)| *is).map(|(_, bit)| bit).sum();
        (self.number, self.not_after, self.issued_at, self.due, self.ask, self.names, self.ca, bits)
    }
}

impl From<Stored> for Summary {
    fn from((number, not_after, issued_at, due, ask, names, ca, bits): Stored) -> Self {
        let has = |bit| bits & bit != 0;
        Self {
            number,
            not_after,
            issued_at,
            due,
            ask,
            names,
            ca,
            compromised: has(COMPROMISED),
            is_withdrawn: has(WITHDRAWN),
            tickets_void: has(TICKETS_VOID),
            has_below: has(BELOW),
            checked: has(CHECKED),
            served: false,
        }
    }
}

/// A number that tells a CA's name from others, the same in every process: 32 bits of SHA-256, for the two or three there are.
pub(crate) fn ca_number(ca: &str) -> u32 {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, ca.as_bytes());
    digest.as_ref().first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// A number that tells a set of names from another, the same in every process: 64 bits of SHA-256.
pub(crate) fn names(names: &[String]) -> u64 {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, names.join("\n").as_bytes());
    digest.as_ref().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
