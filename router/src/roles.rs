//! Who may write what in the store: role → key prefix → right.
//!
//! The table holds three times over. A process opens the store in its role ([`Writer`]) and refuses what
//! is not its to write, which keeps a mistake from becoming a row. An engine that knows users is to be
//! given the same table (docs/stores.md). And whoever reads a row of a fleet whose operators sign asks who
//! wrote it ([`crate::placement`], [`crate::papers`]), since a host whose machine is somebody else's
//! keeps to no table.

use crate::store::{Answer, Cursor, Engine, Entry, Feed, Store, StoreError};
use std::fmt;

/// What a process is to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `edge-proxy fleet`: enrols machines, places sprites.
    Operator,
    /// A worker host of a fleet.
    Host,
    /// An edge of a fleet.
    Edge,
}

/// What a role may do with the rows under a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Nothing but reading.
    Read,
    /// Write the one row that is its own.
    Own,
    /// Write.
    Write,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Own => "write its own",
            Self::Write => "write",
        })
    }
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Rights {
    /// Keys that begin with this.
    pub prefix: &'static str,
    /// An operator's.
    pub operator: Right,
    /// A host's.
    pub host: Right,
    /// An edge's.
    pub edge: Right,
    /// What stands there.
    pub what: &'static str,
}

const fn rights(prefix: &'static str, host: Right, edge: Right, what: &'static str) -> Rights {
    Rights { prefix, operator: Right::Write, host, edge, what }
}

/// The table. What stands under another prefix nobody writes.
pub const TABLE: [Rights; 17] = [
    rights("sprite/", Right::Write, Right::Read, "where a sprite lives; sealed by the host that has it"),
    rights("placement/", Right::Read, Right::Read, "where one may be made; signed by an operator"),
    rights("handover/", Right::Write, Right::Read, "sprites on their way; sealed by the host that speaks"),
    rights("host/", Right::Own, Right::Read, "worker hosts; sealed by an operator or by themselves"),
    rights("pop/", Right::Read, Right::Own, "edges; sealed by an operator or by themselves"),
    rights("domain/", Right::Read, Right::Write, "custom domains; edges prove them"),
    rights("stek/", Right::Read, Right::Write, "keys of session tickets, sealed; edges make them"),
    rights("acct/", Right::Read, Right::Write, "accounts at CAs; their keys are sealed"),
    rights("seal/", Right::Read, Right::Write, "keys that secrets in rows are sealed under, wrapped by one no row has"),
    rights("order/", Right::Read, Right::Write, "certificates on their way; their keys are sealed"),
    rights("cert/", Right::Read, Right::Write, "certificates; their keys are sealed"),
    rights("chal/", Right::Read, Right::Write, "answers to the challenges of CAs"),
    rights(
        "here/",
        Right::Read,
        Right::Write,
        "PoPs that live, which challenges they answer, and which certificates they serve",
    ),
    rights("lease/", Right::Read, Right::Write, "which PoP works on which orders"),
    rights("distrust/", Right::Read, Right::Write, "CAs whose certificates are the last resort"),
    rights("gate/", Right::Read, Right::Write, "until when a CA is asked nothing"),
    rights("limit/", Right::Read, Right::Write, "what is left of our own limits for a CA"),
];

impl Role {
    /// What it may do with the row under `key`.
    #[must_use]
    pub fn right(self, key: &str) -> Right {
        let line = TABLE.iter().find(|line| key.starts_with(line.prefix));
        line.map_or(Right::Read, |line| match self {
            Self::Operator => line.operator,
            Self::Host => line.host,
            Self::Edge => line.edge,
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Operator => "an operator",
            Self::Host => "a worker host",
            Self::Edge => "an edge",
        })
    }
}

/// A store as one role may use it. Reads pass; a write that is not the role's ends with
/// [`StoreError::Denied`] before the engine is asked.
pub struct Writer {
    store: Store,
    role: Role,
    own: Option<String>,
}

impl Writer {
    /// `own` is the key of its own row, when it is known.
    #[must_use]
    pub fn new(store: Store, role: Role, own: Option<String>) -> Self {
        Self { store, role, own }
    }

    fn may(&self, key: &str) -> bool {
        match self.role.right(key) {
            Right::Read => false,
            Right::Own => self.own.as_deref() == Some(key),
            Right::Write => true,
        }
    }
}

impl Engine for Writer {
    fn name(&self) -> &'static str {
        self.store.name()
    }

    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Entry>> {
        self.store.get(key)
    }

    fn scan<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Entry>> {
        self.store.scan(prefix)
    }

    fn compare_and_set<'a>(&'a self, key: &'a str, expected: Option<u64>, value: Option<&'a [u8]>) -> Answer<'a, u64> {
        if self.may(key) {
            return self.store.compare_and_set(key, expected, value);
        }
        Box::pin(async move { Err(StoreError::Denied(format!("{} does not write {key}", self.role))) })
    }

    fn subscribe<'a>(&'a self, prefix: &'a str, resume: Option<Cursor>) -> Answer<'a, Feed> {
        self.store.subscribe(prefix, resume)
    }
}

/// Another region's store: it is followed, and nothing is ever written to it.
pub struct Reader(Store);

impl Reader {
    /// What may be read there.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self(store)
    }
}

impl Engine for Reader {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Entry>> {
        self.0.get(key)
    }

    fn scan<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Entry>> {
        self.0.scan(prefix)
    }

    fn compare_and_set<'a>(&'a self, key: &'a str, _: Option<u64>, _: Option<&'a [u8]>) -> Answer<'a, u64> {
        Box::pin(async move { Err(StoreError::Denied(format!("{key}: nobody writes to another region's store"))) })
    }

    fn subscribe<'a>(&'a self, prefix: &'a str, resume: Option<Cursor>) -> Answer<'a, Feed> {
        self.0.subscribe(prefix, resume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Embedded, EmbeddedStore};
    use std::sync::Arc;

    #[tokio::test]
    async fn a_role_writes_what_the_table_says_and_reads_all() {
        let dir = tempfile::tempdir().unwrap();
        let store: Store = Arc::new(Embedded(Arc::new(EmbeddedStore::open(&dir.path().join("s")).unwrap())));
        let keys = [
            "sprite/a",
            "placement/a",
            "handover/a",
            "host/1",
            "host/2",
            "pop/a",
            "pop/b",
            "domain/a.b",
            "stek/a",
            "acct/x",
            "other/x",
        ];
        let writes = async |role, own: &str| {
            let writer = Writer::new(Arc::clone(&store), role, Some(own.into()));
            let mut written = Vec::new();
            for key in keys {
                let before = writer.get(key).await.unwrap().map(|entry| entry.version);
                match writer.compare_and_set(key, before, Some(b"1")).await {
                    Ok(_) => written.push(key),
                    Err(StoreError::Denied(_)) => {
                        assert_eq!(store.get(key).await.unwrap().map(|entry| entry.version), before, "{key}");
                    }
                    Err(error) => panic!("{key}: {error}"),
                }
            }
            written
        };
        assert_eq!(writes(Role::Operator, "").await, keys[..10]);
        assert_eq!(writes(Role::Host, "host/1").await, ["sprite/a", "handover/a", "host/1"]);
        assert_eq!(writes(Role::Edge, "pop/a").await, ["pop/a", "domain/a.b", "stek/a", "acct/x"]);
        assert_eq!(Writer::new(Arc::clone(&store), Role::Edge, None).scan("sprite/").await.unwrap().len(), 1);
        // Another region's is read, and that is all.
        let reader = Reader::new(Arc::clone(&store));
        let before = store.get("domain/a.b").await.unwrap().unwrap();
        assert_eq!(reader.get("domain/a.b").await.unwrap().unwrap(), before);
        for key in keys {
            assert!(matches!(reader.compare_and_set(key, None, Some(b"2")).await, Err(StoreError::Denied(_))), "{key}");
        }
        assert_eq!(store.get("domain/a.b").await.unwrap().unwrap(), before);
    }

    #[test]
    fn the_page_about_fleets_has_the_table() {
        let page = include_str!("../../docs/fleet.md");
        for Rights { prefix, operator, host, edge, what } in TABLE {
            let line = format!("| `{prefix}` | {operator} | {host} | {edge} | {what} |");
            assert!(page.contains(&line), "docs/fleet.md lacks: {line}");
        }
    }
}
