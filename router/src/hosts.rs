//! The worker hosts as every edge knows them: number → keys and addresses.
//!
//! Routes hold a host's number only, so a host that changes its address is one write here
//! and none in the routing table.

use crate::route::{HostId, HostRow};
use crate::rows::RowError;
use crate::store::{FeedEvent, Store};
use crate::subscriber::{Heard, Subscriber};
use arc_swap::ArcSwap;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Keys of host rows begin with this; the host's number follows.
pub const HOST_PREFIX: &str = "host/";
/// Most pinned public keys of one host (chosen: the current, the next, and spare ones).
pub const PINS_MAX: usize = 8;
/// Longest name of a host, bytes: a DNS label (RFC 1035 §2.3.4).
const NAME_BYTES_MAX: usize = 63;

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
        let is_pin = |pin: &String| pin.len() == 64 && pin.bytes().all(|byte| byte.is_ascii_hexdigit());
        let wrong = if key != Self::key(row.number) {
            "number"
        } else if row.name.is_empty() || row.name.len() > NAME_BYTES_MAX || row.name.contains(char::is_control) {
            "name"
        } else if !BASE64_STANDARD.decode(&row.wireguard_key).is_ok_and(|key| key.len() == 32) {
            "wireguard_key"
        } else if row.endpoint.port() == 0 || row.endpoint.ip().is_unspecified() {
            "endpoint"
        } else if !row.address.is_unique_local() {
            "address"
        } else if row.spki_pins.is_empty() || row.spki_pins.len() > PINS_MAX || !row.spki_pins.iter().all(is_pin) {
            // Without a pin nobody could prove to be this host.
            "spki_pins"
        } else {
            return Ok(row);
        };
        Err(RowError::Field(wrong))
    }
}

/// Every host. Reads take no lock; a write copies the map, which is small and changes rarely.
#[derive(Debug, Default)]
pub struct HostTable {
    hosts: ArcSwap<BTreeMap<HostId, Arc<HostRow>>>,
}

impl HostTable {
    /// No hosts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The host of this number.
    #[must_use]
    pub fn lookup(&self, number: HostId) -> Option<Arc<HostRow>> {
        self.hosts.load().get(&number).cloned()
    }

    /// Every host, by number.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<HostRow>> {
        self.hosts.load().values().cloned().collect()
    }

    /// Puts a host in place of what was known of it.
    pub fn apply_put(&self, row: HostRow) {
        let row = Arc::new(row);
        self.change(|hosts| drop(hosts.insert(row.number, Arc::clone(&row))));
    }

    /// Forgets a host.
    pub fn apply_remove(&self, number: HostId) {
        self.change(|hosts| drop(hosts.remove(&number)));
    }

    fn retain(&self, keep: &[HostId]) {
        self.change(|hosts| hosts.retain(|number, _| keep.contains(number)));
    }

    fn change(&self, change: impl Fn(&mut BTreeMap<HostId, Arc<HostRow>>)) {
        self.hosts.rcu(|hosts| {
            let mut hosts = BTreeMap::clone(hosts);
            change(&mut hosts);
            hosts
        });
    }

    /// Applies one event. `seen` collects the hosts of a snapshot.
    fn handle(&self, event: FeedEvent, seen: &mut Vec<HostId>) {
        match event {
            FeedEvent::SnapshotBegin { .. } => seen.clear(),
            FeedEvent::Entry(entry) => {
                // A poisoned row is no proof that the host is gone.
                seen.extend(number_in(&entry.key));
                self.put(&entry.key, &entry.value);
            }
            FeedEvent::SnapshotEnd(_) => self.retain(seen),
            FeedEvent::Put(entry, _) => self.put(&entry.key, &entry.value),
            FeedEvent::Delete(key, _) => {
                if let Some(number) = number_in(&key) {
                    self.apply_remove(number);
                }
            }
            FeedEvent::Current(_) => {}
        }
    }

    fn put(&self, key: &str, value: &[u8]) {
        match HostRow::decode(key, value) {
            Ok(row) => self.apply_put(row),
            Err(error) => tracing::warn!(key, %error, "host row quarantined; the previous one stays"),
        }
    }
}

fn number_in(key: &str) -> Option<HostId> {
    key.strip_prefix(HOST_PREFIX).and_then(|number| number.parse().ok()).map(HostId)
}

/// Applies the store's host rows to `hosts`; never returns.
pub async fn follow(store: Store, hosts: Arc<HostTable>) {
    let mut seen = Vec::new();
    let mut subscriber = Subscriber::new(store, HOST_PREFIX);
    loop {
        if let Heard::Event(event) = subscriber.next().await {
            hosts.handle(event, &mut seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Cursor, Embedded, EmbeddedStore, Entry};

    const CURSOR: Cursor = Cursor { epoch: 1, version: 1 };

    fn row(number: u32) -> HostRow {
        HostRow {
            name: format!("host-{number}"),
            number: HostId(number),
            wireguard_key: BASE64_STANDARD.encode([7; 32]),
            endpoint: ([192, 0, 2, 1], 51820).into(),
            address: "fd00::1".parse().unwrap(),
            spki_pins: vec!["0a".repeat(32)],
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
        let (hosts, mut seen) = (HostTable::new(), Vec::new());
        let mut handle = |event| hosts.handle(event, &mut seen);
        handle(FeedEvent::SnapshotBegin { epoch: 1 });
        handle(FeedEvent::Entry(entry(&row(1))));
        handle(FeedEvent::Entry(entry(&row(2))));
        handle(FeedEvent::SnapshotEnd(CURSOR));
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
        handle(FeedEvent::Delete("host/2".into(), CURSOR));
        assert!(hosts.all().is_empty());
    }

    #[tokio::test]
    async fn a_host_that_is_written_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(EmbeddedStore::open(&dir.path().join("s")).unwrap());
        let hosts = Arc::new(HostTable::new());
        let following = tokio::spawn(follow(Arc::new(Embedded(Arc::clone(&store))), Arc::clone(&hosts)));
        store.compare_and_set("host/3", None, Some(&row(3).encode())).unwrap();
        let known = async {
            while hosts.lookup(HostId(3)).is_none() {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), known).await.unwrap();
        following.abort();
    }
}
