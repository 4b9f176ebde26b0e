//! Session tickets that every PoP can open: keys in rows of the store, sealed, and a ring of them in memory.
//!
//! A key is *staged* first, which opens tickets and makes none; when every PoP has it, it becomes *active*; then it is
//! *old* for six more turns and forgotten. Without that order a ticket would meet PoPs that cannot open it. Whoever cannot
//! open a ticket makes a full handshake: nothing depends on a ring being the same everywhere but the time that takes.

mod key;
mod ring;
mod rotation;
mod rows;

pub use key::TicketKey;
pub use ring::{ISSUED_MAX, ISSUED_ROTATE, TicketRing, scope};
pub use rotation::{Rotation, Shown, State, Write};
pub use rows::{About, AckRow, KeyRow, PREFIX, Policy};

use crate::seal::Kek;
use zeroize::Zeroizing;

/// Keys that were active and still open tickets (tls-acme-dns.md §7).
pub const OLD_MAX: usize = 6;

/// Seals what only PoPs may read. What was sealed for one row and generation opens for no other.
pub trait Sealer: Send + Sync + 'static {
    /// Seals `plain` for the row `name`.
    ///
    /// # Errors
    /// In words.
    fn seal(&self, name: &str, generation: u64, plain: &[u8]) -> Result<Vec<u8>, String>;

    /// Opens what was sealed for the row `name`.
    ///
    /// # Errors
    /// In words, without a secret in them: another row's, another key's, or changed.
    fn open(&self, name: &str, generation: u64, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, String>;
}

impl Sealer for Kek {
    fn seal(&self, name: &str, generation: u64, plain: &[u8]) -> Result<Vec<u8>, String> {
        Self::seal(self, name, generation, plain).map_err(|error| error.to_string())
    }

    fn open(&self, name: &str, generation: u64, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, String> {
        Self::open(self, name, generation, sealed).map_err(|error| error.to_string())
    }
}
