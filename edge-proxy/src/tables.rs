//! The tables of this process: loaded from the last run, then kept up by a thread of their own, so
//! that no wake waits while a snapshot of a million rows is applied.

use crate::stores::RegionStore;
use router::domains::DomainTable;
use router::regions::{DomainRegions, Region, Regions, Routes};
use router::signing::Operators;
use router::table::RouteTable;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;
use tracing::Instrument;

/// How long the store may need at start before we listen without it, when nothing is known of a last run.
const SYNC: Duration = Duration::from_secs(5);
/// And when the routes of the last run are loaded (chosen: a small store that is there is read within it, and
/// one that is large or away does not hold up the start).
const SYNC_LOADED: Duration = Duration::from_millis(250);

/// One region as this process follows it.
pub struct FollowedRegion {
    /// What the configuration calls it.
    pub name: Box<str>,
    /// What keeps its rows.
    pub engine: &'static str,
    /// Its routes.
    pub routes: Arc<RouteTable>,
    /// Its custom domains.
    pub domains: Arc<DomainTable>,
}

impl FollowedRegion {
    /// Whether its store has been read to its end.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.routes.followed().is_synced() && self.domains.followed().is_synced()
    }

    /// Rows it no longer has and that are served on.
    #[must_use]
    pub fn held_removals(&self) -> usize {
        self.routes.followed().held_removals() + self.domains.followed().held_removals()
    }

    /// Rows of it that were set aside.
    #[must_use]
    pub fn quarantined(&self) -> u64 {
        self.routes.followed().quarantined() + self.domains.followed().quarantined()
    }

    /// What vanished is meant to be gone; how many rows that are.
    #[must_use]
    pub fn accept_removals(&self) -> usize {
        let held = self.held_removals();
        self.routes.followed().accept_removals();
        self.domains.followed().accept_removals();
        held
    }
}

/// Applies what a store says; never returns.
type Applying = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Routes and domains, and the thread of their appliers. Dropping it ends the thread, when a file
/// that is being written is whole.
pub(crate) struct Tables {
    pub(crate) routes: Arc<Routes>,
    pub(crate) domains: Arc<DomainRegions>,
    /// Each region's tables, the own one's first.
    pub(crate) regions: Arc<[FollowedRegion]>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Tables {
    /// Loads what the last run knew of each region, the own one first, then follows their stores
    /// ([`router::apply::follow_beside`]). Returns when all are read, or after each one's [`SYNC`] or [`SYNC_LOADED`].
    ///
    /// # Errors
    /// The system has no thread or no runtime to give.
    pub(crate) async fn load(feeds: &[RegionStore], domains: DomainTable, operators: &Operators) -> io::Result<Self> {
        let others: Vec<_> = feeds.iter().skip(1).map(|_| domains.beside()).collect();
        let domains = std::iter::once(domains).chain(others).map(Arc::new);
        let followed = |(feed, domains): (&RegionStore, _)| FollowedRegion {
            name: feed.name.clone(),
            engine: feed.store.name(),
            routes: Arc::new(RouteTable::trusting(operators.clone())),
            domains,
        };
        let regions: Arc<[FollowedRegion]> = feeds.iter().zip(domains).map(followed).collect();
        let known: Vec<usize> =
            feeds.iter().zip(&*regions).map(|(feed, region)| load_last_known(feed, region)).collect();
        let applying: Vec<_> = feeds.iter().enumerate().flat_map(|(at, feed)| appliers(feed, at, &regions)).collect();
        let (end, ended) = oneshot::channel();
        let thread = begin(applying, ended)?;
        let tables = Self {
            routes: Arc::new(together(&regions, |region| &region.routes)),
            domains: Arc::new(together(&regions, |region| &region.domains)),
            regions,
            end: Some(end),
            thread: Some(thread),
        };
        let waits = tables.regions.iter().zip(known).map(|(region, known)| async move {
            let patience = if known > 0 { SYNC_LOADED } else { SYNC };
            if tokio::time::timeout(patience, synced(region)).await.is_err() {
                let name = &*region.name;
                tracing::warn!(region = name, known, "the routing store is not read yet; serving what was known last");
            }
        });
        futures_util::future::join_all(waits).await;
        Ok(tables)
    }
}

/// The tables of one kind, the own region's first.
fn together<T>(regions: &[FollowedRegion], of: impl Fn(&FollowedRegion) -> &Arc<T>) -> Regions<T> {
    let region = |followed: &FollowedRegion| Region { name: followed.name.clone(), table: Arc::clone(of(followed)) };
    Regions::new(region(&regions[0]), regions[1..].iter().map(region).collect())
}

/// What keeps the tables of the region in place `at` as its store is.
fn appliers(feed: &RegionStore, at: usize, regions: &[FollowedRegion]) -> [Applying; 2] {
    let region = &regions[at];
    let others = regions.iter().enumerate().filter(|(other, _)| *other != at);
    let others = others.map(|(_, other)| Arc::clone(&other.routes)).collect();
    let (routes, domains) = (Arc::clone(&region.routes), Arc::clone(&region.domains));
    let routes = router::apply::follow_beside(
        Arc::clone(&feed.store),
        routes,
        others,
        routes_file(&feed.folder),
        feed.bulk_delay,
    );
    let domains = router::domains::apply::follow(Arc::clone(&feed.store), domains, domains_file(&feed.folder));
    // With one region there is nothing to tell apart.
    let span = match regions.len() {
        1 => tracing::Span::none(),
        _ => tracing::error_span!("feed", region = &*region.name),
    };
    [Box::pin(routes.instrument(span.clone())), Box::pin(domains.instrument(span))]
}

/// Begins the thread of the appliers.
fn begin(applying: Vec<Applying>, ended: oneshot::Receiver<()>) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("tables".into()).spawn(move || {
        runtime.block_on(async {
            // Tasks of their own: a long sweep of one is no reason for the others to be asked each time.
            let all: Vec<_> = applying.into_iter().map(tokio::spawn).collect();
            tokio::select! {
                _ = ended => {}
                _ = futures_util::future::join_all(all) => tracing::error!("the appliers of the tables have ended"),
            }
        });
    })
}

async fn synced(region: &FollowedRegion) {
    while !region.is_synced() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn routes_file(folder: &Path) -> std::path::PathBuf {
    folder.join("routes.last-known-good")
}

fn domains_file(folder: &Path) -> std::path::PathBuf {
    folder.join("domains.last-known-good")
}

/// How many routes the last run knew of a region.
fn load_last_known(feed: &RegionStore, region: &FollowedRegion) -> usize {
    let (routes, domains) = (routes_file(&feed.folder), domains_file(&feed.folder));
    let known = say_loaded(&routes, router::apply::load_last_known_good(&region.routes, &routes));
    say_loaded(&domains, router::domains::apply::load_last_known_good(&region.domains, &domains));
    known
}

impl Drop for Tables {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so already.
            drop(thread.join());
        }
    }
}

/// How many were loaded.
fn say_loaded(path: &Path, loaded: io::Result<usize>) -> usize {
    match loaded {
        Ok(count) => {
            tracing::debug!(path = %path.display(), count, "last-known-good rows loaded");
            count
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "last-known-good rows not loaded");
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use router::access::Access;
    use router::names::SpriteName;
    use router::route::{Generation, HostId};
    use router::rows::{ROW_VERSION, SpriteRow};
    use router::store::Store;
    use router::store::{self, Answer, Embedded, EmbeddedStore, Engine, Entry, StoreError};
    use router::table::Lookup;
    use router::wake::WakeRules;
    use std::collections::HashMap;
    use std::time::Instant;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn row() -> SpriteRow {
        SpriteRow {
            version: ROW_VERSION,
            tenant: "t".into(),
            generation: Generation(1),
            host: HostId(1),
            ports: Vec::new(),
            access: Access::Public,
            wake: WakeRules::default(),
            client_certificate: None,
            deleted: false,
            proof: router::placement::Proof::default(),
        }
    }

    fn domains() -> DomainTable {
        DomainTable::new(HashMap::new(), &[], &[])
    }

    fn feed(name: &str, store: &Store, folder: &Path) -> RegionStore {
        let (store, folder) = (Arc::clone(store), folder.to_owned());
        RegionStore { name: name.into(), store, bulk_delay: Duration::ZERO, folder }
    }

    #[tokio::test]
    async fn what_the_store_says_is_applied_while_this_runtime_is_busy() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(EmbeddedStore::open(&dir.path().join("store")).unwrap());
        let engine: Store = Arc::new(Embedded(Arc::clone(&store)));
        let tables = Tables::load(&[feed("own", &engine, dir.path())], domains(), &Operators::default()).await.unwrap();
        let name = SpriteName::parse("a").unwrap();
        store.compare_and_set(&SpriteRow::key(&name), None, Some(&row().encode())).unwrap();
        // Nothing is awaited: a task of this runtime could not run.
        let end = Instant::now() + PATIENCE;
        while !matches!(tables.routes.lookup(&name), Lookup::Found(_)) {
            assert!(Instant::now() < end, "the row does not come");
            std::thread::yield_now();
        }
    }

    /// Never answers.
    struct Silent;

    impl Engine for Silent {
        fn name(&self) -> &'static str {
            "silent"
        }
        fn get<'a>(&'a self, _: &'a str) -> Answer<'a, Option<Entry>> {
            Box::pin(std::future::pending())
        }
        fn compare_and_set<'a>(&'a self, _: &'a str, _: Option<u64>, _: Option<&'a [u8]>) -> Answer<'a, u64> {
            Box::pin(async { Err(StoreError::Unavailable(String::new())) })
        }
        fn subscribe<'a>(&'a self, _: &'a str, _: Option<store::Cursor>) -> Answer<'a, store::Feed> {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_store_holds_up_a_start_that_knows_routes_far_less_than_one_that_knows_none() {
        let dir = tempfile::tempdir().unwrap();
        let silent: Store = Arc::new(Silent);
        let began = tokio::time::Instant::now();
        let feeds = [feed("own", &silent, dir.path())];
        let tables = Tables::load(&feeds, domains(), &Operators::default()).await.unwrap();
        assert_eq!(tables.routes.lookup("a"), Lookup::NotReady);
        assert!(began.elapsed() >= SYNC);
        let line = String::from_utf8(row().encode()).unwrap();
        std::fs::write(dir.path().join("routes.last-known-good"), format!("cursor 1 1\na {line}\n")).unwrap();
        let began = tokio::time::Instant::now();
        let tables = Tables::load(&feeds, domains(), &Operators::default()).await.unwrap();
        assert!(matches!(tables.routes.lookup("a"), Lookup::Found(_)));
        assert!(began.elapsed() < 2 * SYNC_LOADED);
    }

    // In real time: what reads the store is a thread, and a clock that is not waited for would not wait for it.
    #[tokio::test]
    async fn a_region_that_is_silent_takes_nothing_from_one_that_speaks_and_serves_what_was_known() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(EmbeddedStore::open(&dir.path().join("store")).unwrap());
        store.compare_and_set("sprite/a", None, Some(&row().encode())).unwrap();
        let (own, silent): (Store, Store) = (Arc::new(Embedded(store)), Arc::new(Silent));
        let away = dir.path().join("ams");
        std::fs::create_dir_all(&away).unwrap();
        let line = String::from_utf8(row().encode()).unwrap();
        std::fs::write(routes_file(&away), format!("cursor 1 1\nb {line}\n")).unwrap();
        let feeds = [feed("fra", &own, dir.path()), feed("ams", &silent, &away)];
        let began = tokio::time::Instant::now();
        let tables = Tables::load(&feeds, domains(), &Operators::default()).await.unwrap();
        assert!(began.elapsed() < SYNC, "its file is there");
        let whose = |name: &str| tables.routes.explain(name).1.map(|region| region.name.to_string());
        assert_eq!([whose("a"), whose("b"), whose("c")], [Some("fra".into()), Some("ams".into()), None]);
        assert_eq!(tables.routes.lookup("c"), Lookup::NotReady, "it may have it");
        assert_eq!([tables.regions[0].is_synced(), tables.regions[1].is_synced()], [true, false]);
        assert_eq!(tables.regions[0].routes.followed().stale_for(), None);
    }
}
