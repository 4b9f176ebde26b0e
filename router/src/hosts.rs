//! The worker hosts as every edge knows them: number → keys and addresses.
//!
//! Routes hold a host's number only, so a host that changes its address is one write here
//! and none in the routing table.

use crate::papers::{self, Enrolled, Papers};
use crate::registry::{self, Registry, RegistryRow};
use crate::route::{HostId, HostRow};
use crate::rows::RowError;
use crate::signing::Operators;
use crate::store::Store;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use std::path::PathBuf;
use std::sync::Arc;

/// Keys of host rows begin with this; the host's number follows.
pub const HOST_PREFIX: &str = "host/";
/// Most pinned public keys of one host (chosen: the current, the next, and spare ones).
pub const PINS_MAX: usize = 8;
/// Longest name of a host, bytes: a DNS label (RFC 1035 §2.3.4).
const NAME_BYTES_MAX: usize = 63;

/// A machine's name: a DNS label.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.bytes().all(legal)
}

/// 32 bytes in base64.
pub(crate) fn is_wireguard_key(text: &str) -> bool {
    BASE64_STANDARD.decode(text).is_ok_and(|key| key.len() == 32)
}

/// At least one, since without a pin nobody could prove to be this machine, and no more than
/// [`PINS_MAX`]; each a SHA-256 in hexadecimal.
pub(crate) fn are_pins(pins: &[String]) -> bool {
    let is_pin = |pin: &String| pin.len() == 64 && pin.bytes().all(|byte| byte.is_ascii_hexdigit());
    !pins.is_empty() && pins.len() <= PINS_MAX && pins.iter().all(is_pin)
}

impl HostRow {
    /// The key of a host's row.
    #[must_use]
    pub fn key(number: HostId) -> String {
        format!("{HOST_PREFIX}{}", number.0)
    }

    /// The encoded value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a struct of plain fields always encodes")
    }

    /// Decodes and checks a stored row.
    ///
    /// # Errors
    /// [`RowError`]: what is wrong with it; the row is to be quarantined.
    pub fn decode(key: &str, value: &[u8]) -> Result<Self, RowError> {
        let row: Self = serde_json::from_slice(value).map_err(RowError::Value)?;
        let wrong = if key != Self::key(row.number) {
            "number"
        } else if !is_name(&row.name) {
            "name"
        } else if !is_wireguard_key(&row.wireguard_key) {
            "wireguard_key"
        } else if row.endpoint.port() == 0 || row.endpoint.ip().is_unspecified() {
            "endpoint"
        } else if !row.address.is_unique_local() {
            "address"
        } else if !are_pins(&row.spki_pins) {
            "spki_pins"
        } else if !papers::are_bounded(row.papers.as_ref()) {
            "papers"
        } else {
            return Ok(row);
        };
        Err(RowError::Field(wrong))
    }
}

impl RegistryRow for HostRow {
    type Id = HostId;
    const PREFIX: &'static str = HOST_PREFIX;
    const WHAT: &'static str = "host";
    const SIGNED: bool = true;

    fn id(&self) -> HostId {
        self.number
    }

    fn id_in(key: &str) -> Option<HostId> {
        key.strip_prefix(HOST_PREFIX).and_then(|number| number.parse().ok()).map(HostId)
    }

    fn encode(&self) -> Vec<u8> {
        Self::encode(self)
    }

    fn decode(key: &str, value: &[u8]) -> Result<Self, RowError> {
        Self::decode(key, value)
    }

    fn check(&self, known: Option<&Self>, operators: &Operators) -> Result<(), RowError> {
        papers::check(self, known, operators)
    }

    fn is_removed(&self) -> bool {
        papers::are_ended(self.papers.as_ref())
    }

    fn is_same_machine(&self, other: &Self) -> bool {
        self.wireguard_key == other.wireguard_key
    }

    fn clashes(&self, other: &Self) -> bool {
        self.wireguard_key == other.wireguard_key || self.address == other.address || self.name == other.name
    }
}

impl Enrolled for HostRow {
    fn store_key(&self) -> String {
        Self::key(self.number)
    }

    fn machine(&self) -> &str {
        &self.name
    }

    fn papers(&self) -> Option<&Papers> {
        self.papers.as_ref()
    }

    fn with_papers(self, papers: Option<Papers>) -> Self {
        Self { papers, ..self }
    }
}

/// Every host.
pub type HostTable = Registry<HostRow>;

/// Applies the store's host rows to `hosts`, and keeps them in the file at `path`; never returns.
pub async fn follow(store: Store, hosts: Arc<HostTable>, path: PathBuf) {
    registry::follow(store, hosts, |number| HostRow::key(*number), path).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Cursor, Embedded, EmbeddedStore, Entry, FeedEvent};

    const CURSOR: Cursor = Cursor { epoch: 1, version: 1 };

    fn row(number: u32) -> HostRow {
        HostRow {
            name: format!("host-{number}"),
            number: HostId(number),
            wireguard_key: BASE64_STANDARD.encode([7; 32]),
            endpoint: ([192, 0, 2, 1], 51820).into(),
            address: "fd00::1".parse().unwrap(),
            spki_pins: vec!["0a".repeat(32)],
            papers: None,
        }
    }

    fn entry(row: &HostRow) -> Entry {
        Entry { key: HostRow::key(row.number), value: row.encode(), version: 1 }
    }

    #[test]
    fn a_host_row_that_is_not_certain_is_refused() {
        assert_eq!(HostRow::decode("host/1", &row(1).encode()).unwrap(), row(1));
        let wrong = |row: HostRow| HostRow::decode("host/1", &row.encode()).unwrap_err().to_string();
        assert!(wrong(row(2)).starts_with("number"));
        assert!(wrong(HostRow { name: "a\nb".into(), ..row(1) }).starts_with("name"));
        assert!(wrong(HostRow { wireguard_key: "AAAA".into(), ..row(1) }).starts_with("wireguard_key"));
        assert!(wrong(HostRow { endpoint: ([192, 0, 2, 1], 0).into(), ..row(1) }).starts_with("endpoint"));
        assert!(wrong(HostRow { address: "2001:db8::1".parse().unwrap(), ..row(1) }).starts_with("address"));
        for pins in [vec![], vec!["zz".repeat(32)], vec!["0a".into()], vec!["0a".repeat(32); 9]] {
            assert!(wrong(HostRow { spki_pins: pins, ..row(1) }).starts_with("spki_pins"));
        }
    }

    #[test]
    fn the_table_follows_the_feed_and_keeps_what_a_poisoned_row_would_replace() {
        let (hosts, mut seen) = (HostTable::new(), std::collections::BTreeSet::new());
        let mut handle = |event| {
            hosts.handle(event, &mut seen);
        };
        handle(FeedEvent::SnapshotBegin { epoch: 1 });
        handle(FeedEvent::Entry(entry(&row(1))));
        handle(FeedEvent::Entry(entry(&row(2))));
        assert!(!hosts.is_read());
        handle(FeedEvent::SnapshotEnd(CURSOR));
        assert!(hosts.is_read());
        let moved = HostRow { endpoint: ([192, 0, 2, 9], 51820).into(), ..row(1) };
        handle(FeedEvent::Put(entry(&moved), CURSOR));
        handle(FeedEvent::Put(Entry { value: b"{}".to_vec(), ..entry(&row(2)) }, CURSOR));
        assert_eq!(hosts.lookup(HostId(1)).as_deref(), Some(&moved));
        assert_eq!(hosts.lookup(HostId(2)).as_deref(), Some(&row(2)));
        // The next snapshot lacks the first and has the second poisoned.
        handle(FeedEvent::SnapshotBegin { epoch: 1 });
        handle(FeedEvent::Entry(Entry { value: b"{}".to_vec(), ..entry(&row(2)) }));
        handle(FeedEvent::SnapshotEnd(CURSOR));
        assert_eq!(hosts.all(), [Arc::new(row(2))]);
        // One that has none at all has lost them.
        handle(FeedEvent::SnapshotBegin { epoch: 1 });
        handle(FeedEvent::SnapshotEnd(CURSOR));
        assert_eq!(hosts.all(), [Arc::new(row(2))]);
        handle(FeedEvent::Delete("host/2".into(), CURSOR));
        assert!(hosts.all().is_empty());
    }

    #[tokio::test]
    async fn a_host_that_is_written_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(EmbeddedStore::open(&dir.path().join("s")).unwrap());
        let hosts = Arc::new(HostTable::new());
        let following =
            tokio::spawn(follow(Arc::new(Embedded(Arc::clone(&store))), Arc::clone(&hosts), dir.path().join("hosts")));
        store.compare_and_set("host/3", None, Some(&row(3).encode())).unwrap();
        let known = async {
            while hosts.lookup(HostId(3)).is_none() {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), known).await.unwrap();
        // The next one knows it before any store answers.
        let written = async {
            let next = HostTable::new();
            while next.load(&dir.path().join("hosts")).unwrap() == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            assert_eq!(next.lookup(HostId(3)).as_deref(), Some(&row(3)));
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), written).await.unwrap();
        following.abort();
    }
}
