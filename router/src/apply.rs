//! From feed events to the table: every row is checked, a poisoned one is set aside and
//! the route it would have replaced stays.

use crate::names::SpriteName;
use crate::route::Route;
use crate::rows::{SPRITE_PREFIX, SpriteRow};
use crate::store::{EmbeddedStore, FeedEvent, StoreError};
use crate::table::RouteTable;
use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Pause before subscribing again after the feed failed (chosen).
const RETRY: Duration = Duration::from_millis(500);
/// Quiet time after which changes are written to the last-known-good file (chosen).
const SETTLE: Duration = Duration::from_millis(200);

/// Applies the store's sprite rows to `table` until it is dropped; never returns.
///
/// `last_known_good` is written after each snapshot and when changes have settled, so
/// that the next start can serve before any store answers.
pub async fn follow(store: Arc<EmbeddedStore>, table: Arc<RouteTable>, last_known_good: PathBuf) {
    loop {
        match store.subscribe(SPRITE_PREFIX, None) {
            Ok(feed) => apply_feed(feed, &table, &last_known_good).await,
            Err(error) => tracing::error!(%error, "the routing store does not answer; routes stay as they are"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn apply_feed(mut feed: crate::store::FeedReceiver, table: &RouteTable, last_known_good: &Path) {
    // Names the snapshot has; a name it lacks is swept when it ends.
    let mut marked: Option<HashSet<SpriteName>> = None;
    let mut dirty = false;
    loop {
        let event = tokio::select! {
            biased;
            event = feed.next() => event,
            // Cancelled and begun anew by each event: it ends once changes have settled.
            () = tokio::time::sleep(SETTLE), if dirty => {
                save(table, last_known_good);
                dirty = false;
                continue;
            }
        };
        let Some(event) = event else { return };
        match event {
            FeedEvent::SnapshotBegin => marked = Some(HashSet::new()),
            FeedEvent::Entry(entry) => {
                if let Some(name) = put(table, &entry.key, &entry.value)
                    && let Some(marked) = &mut marked
                {
                    marked.insert(name);
                }
            }
            FeedEvent::SnapshotEnd(_) => {
                if let Some(marked) = marked.take() {
                    sweep(table, &marked);
                }
                table.mark_synced();
                save(table, last_known_good);
            }
            FeedEvent::Put(entry, _) => {
                put(table, &entry.key, &entry.value);
                dirty = true;
            }
            FeedEvent::Delete(key, _) => {
                dirty = true;
                if let Some(name) = key.strip_prefix(SPRITE_PREFIX).and_then(|name| SpriteName::parse(name).ok()) {
                    table.apply_remove(&name);
                }
            }
            FeedEvent::ResyncNeeded => return tracing::warn!("fell behind the routing store; starting over"),
        }
    }
}

/// Applies one row; the name it is for, even when a newer route was kept.
fn put(table: &RouteTable, key: &str, value: &[u8]) -> Option<SpriteName> {
    match SpriteRow::decode(key, value) {
        Ok((name, row)) => {
            table.apply_put(&name, row.route());
            Some(name)
        }
        Err(error) => {
            tracing::warn!(key, %error, "row quarantined; the previous route stays");
            // Not swept either: a poisoned row is no proof that the sprite is gone.
            key.strip_prefix(SPRITE_PREFIX).and_then(|name| SpriteName::parse(name).ok())
        }
    }
}

fn sweep(table: &RouteTable, marked: &HashSet<SpriteName>) {
    for name in table.names() {
        if !marked.contains(&name) {
            table.apply_remove(&name);
        }
    }
}

/// Loads the routes of the last run, before any store answered. Absence of a name still
/// means nothing then: the table is not marked as synced. Returns how many were loaded.
///
/// # Errors
/// The file is there and cannot be read, or is none of ours.
pub fn load_last_known_good(table: &RouteTable, path: &Path) -> std::io::Result<usize> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut loaded = 0;
    for line in text.lines() {
        let Some((name, row)) = line.split_once(' ') else { continue };
        if put(table, &format!("{SPRITE_PREFIX}{name}"), row.as_bytes()).is_some() {
            loaded += 1;
        }
    }
    Ok(loaded)
}

/// Replaces the file as a whole, so that a crash leaves the old one or the new one.
fn save(table: &RouteTable, path: &Path) {
    let write = || -> std::io::Result<()> {
        let next = path.with_extension("next");
        let mut file = std::io::BufWriter::new(std::fs::File::create(&next)?);
        for name in table.names() {
            if let crate::table::Lookup::Found(route) = table.lookup(&name) {
                file.write_all(format!("{name} ").as_bytes())?;
                file.write_all(&row_of(&route).encode())?;
                file.write_all(b"\n")?;
            }
        }
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_data()?;
        std::fs::rename(&next, path)
    };
    if let Err(error) = write() {
        tracing::warn!(path = %path.display(), %error, "last-known-good routes not written");
    }
}

fn row_of(route: &Route) -> SpriteRow {
    SpriteRow {
        version: crate::rows::ROW_VERSION,
        tenant: String::new(),
        generation: route.generation,
        host: route.host,
        ports: route.ports.to_vec(),
        access: route.access,
        deleted: route.deleted,
    }
}

/// Writes nothing else of a row than what routing needs; exposed for tools and tests.
///
/// # Errors
/// [`StoreError`] of the write.
pub fn publish(
    store: &EmbeddedStore,
    name: &SpriteName,
    row: &SpriteRow,
    expected: Option<u64>,
) -> Result<u64, StoreError> {
    store.compare_and_set(&SpriteRow::key(name), expected, Some(&row.encode()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{Access, Generation, HostId};
    use crate::table::Lookup;

    fn row(generation: u64) -> SpriteRow {
        SpriteRow {
            version: 1,
            tenant: "t".into(),
            generation: Generation(generation),
            host: HostId(1),
            ports: vec![8080],
            access: Access::Public,
            deleted: false,
        }
    }

    async fn until(table: &RouteTable, name: &SpriteName, wanted: impl Fn(&Lookup) -> bool) {
        // Runs the applier in between; it needs no time, only turns.
        for _ in 0..10_000 {
            if wanted(&table.lookup(name)) {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("still {:?}", table.lookup(name));
    }

    #[tokio::test]
    async fn a_poisoned_row_leaves_the_route_it_would_replace() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(EmbeddedStore::open(&dir.path().join("s")).unwrap());
        let name = SpriteName::parse("a").unwrap();
        let version = publish(&store, &name, &row(2), None).unwrap();
        let table = Arc::new(RouteTable::new());
        let applier = tokio::spawn(follow(Arc::clone(&store), Arc::clone(&table), dir.path().join("good")));
        until(&table, &name, |found| matches!(found, Lookup::Found(_))).await;

        let version = store.compare_and_set("sprite/a", Some(version), Some(b"{\"version\":1}")).unwrap();
        let other = SpriteName::parse("b").unwrap();
        publish(&store, &other, &row(1), None).unwrap();
        until(&table, &other, |found| matches!(found, Lookup::Found(_))).await;
        assert_eq!(table.lookup(&name), Lookup::Found(row(2).route()));

        store.compare_and_set("sprite/a", Some(version), None).unwrap();
        until(&table, &name, |found| *found == Lookup::Unknown).await;
        applier.abort();
    }

    #[tokio::test]
    async fn the_last_known_good_routes_serve_before_the_store_does() {
        let dir = tempfile::tempdir().unwrap();
        let (good, name) = (dir.path().join("good"), SpriteName::parse("a").unwrap());
        {
            let store = Arc::new(EmbeddedStore::open(&dir.path().join("s")).unwrap());
            publish(&store, &name, &row(7), None).unwrap();
            let table = Arc::new(RouteTable::new());
            let applier = tokio::spawn(follow(store, Arc::clone(&table), good.clone()));
            until(&table, &name, |found| matches!(found, Lookup::Found(_))).await;
            while !table.is_synced() {
                tokio::task::yield_now().await;
            }
            applier.abort();
        }
        let table = RouteTable::new();
        assert_eq!(load_last_known_good(&table, &good).unwrap(), 1);
        assert_eq!(table.lookup(&name), Lookup::Found(row(7).route()));
        assert_eq!(table.lookup(&SpriteName::parse("b").unwrap()), Lookup::NotReady);
    }
}
