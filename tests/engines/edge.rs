//! The table of an edge that follows a store, watched all the time.

use router::apply::follow;
use router::names::SpriteName;
use router::store::Store;
use router::table::{Lookup, RouteTable};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// A name that exists before the edge starts, as long as it runs.
pub(crate) const STEADY: &str = "steady";

/// The table, its applier, and a thread that looks [`STEADY`] up without a pause.
pub(crate) struct Edge {
    pub(crate) table: Arc<RouteTable>,
    pub(crate) last_known_good: PathBuf,
    applier: tokio::task::JoinHandle<()>,
    end: Arc<AtomicBool>,
    watcher: Option<JoinHandle<u64>>,
    _folder: tempfile::TempDir,
}

impl Edge {
    /// Follows `store`, which has [`STEADY`], until its snapshot is there.
    pub(crate) async fn follow(store: Store) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let last_known_good = folder.path().join("good");
        let table = Arc::new(RouteTable::new());
        let applier = tokio::spawn(follow(store, Arc::clone(&table), last_known_good.clone()));
        harness::until("the first snapshot", crate::PATIENCE, async || table.followed().is_synced().then_some(()))
            .await;
        let end = Arc::new(AtomicBool::new(false));
        let watcher = std::thread::spawn({
            let (table, end) = (Arc::clone(&table), Arc::clone(&end));
            move || {
                let (mut looks, mut last) = (0, 0);
                while !end.load(Ordering::Relaxed) {
                    let Lookup::Found(route) = table.lookup(STEADY) else { panic!("{STEADY} was gone after {looks}") };
                    assert!(route.generation.0 >= last, "a generation went back");
                    last = route.generation.0;
                    looks += 1;
                    std::thread::park_timeout(std::time::Duration::from_micros(200));
                }
                looks
            }
        });
        Self { table, last_known_good, applier, end, watcher: Some(watcher), _folder: folder }
    }

    pub(crate) fn generation(&self, name: &str) -> Option<u64> {
        match self.table.lookup(&SpriteName::parse(name).unwrap()) {
            Lookup::Found(route) => Some(route.generation.0),
            _ => None,
        }
    }

    /// Waits until the table has `name` at `generation`.
    pub(crate) async fn has(&self, name: &str, generation: Option<u64>) {
        let what = format!("{name} to be at {generation:?}");
        harness::until(&what, crate::PATIENCE, async || (self.generation(name) == generation).then_some(())).await;
    }

    /// Waits until the table has so many names: the order of writes says nothing where an engine gossips.
    pub(crate) async fn holds(&self, names: usize) {
        let what = format!("{names} names to be there");
        harness::until(&what, crate::PATIENCE, async || (self.table.len() == names).then_some(())).await;
    }

    /// Proves that the table says what the store does, and that [`STEADY`] was there all the time.
    pub(crate) async fn agrees_with(mut self, store: &Store) {
        harness::until("the table to agree with the store", crate::PATIENCE, async || {
            let entries = store.scan("sprite/").await.ok()?;
            let rows = entries.iter().map(|entry| {
                let (name, row) = router::rows::SpriteRow::decode(&entry.key, &entry.value).unwrap();
                (name.as_str().to_owned(), row.generation.0)
            });
            let mut routes: Vec<_> = self.table.names().iter().map(|name| name.as_str().to_owned()).collect();
            routes.sort();
            let routes: Vec<_> =
                routes.into_iter().map(|name| (name.clone(), self.generation(&name).unwrap_or(0))).collect();
            (routes == rows.collect::<Vec<_>>()).then_some(())
        })
        .await;
        self.end.store(true, Ordering::Relaxed);
        let looks = self.watcher.take().unwrap().join().expect("the steady route was always there");
        assert!(looks > 10, "{looks}");
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        self.applier.abort();
    }
}
