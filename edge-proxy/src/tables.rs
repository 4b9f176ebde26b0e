//! The tables of this process: loaded from the last run, then kept up by a thread of their own, so
//! that no wake waits while a snapshot of a million rows is applied.

use router::domains::DomainTable;
use router::signing::Operators;
use router::store::Store;
use router::table::RouteTable;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long the store may need at start before we listen without it, when nothing is known of a last run.
const SYNC: Duration = Duration::from_secs(5);
/// And when the routes of the last run are loaded (chosen: a small store that is there is read within it, and
/// one that is large or away does not hold up the start).
const SYNC_LOADED: Duration = Duration::from_millis(250);

/// Routes and domains, and the thread of their appliers. Dropping it ends the thread, when a file
/// that is being written is whole.
pub(crate) struct Tables {
    pub(crate) routes: Arc<RouteTable>,
    pub(crate) domains: Arc<DomainTable>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Tables {
    /// Loads what the last run knew, then follows `store` ([`router::apply::follow_later`]). Returns when the store is read, or after
    /// [`SYNC`] or [`SYNC_LOADED`].
    ///
    /// # Errors
    /// The system has no thread or no runtime to give.
    pub(crate) async fn load(
        store: &Store,
        domains: DomainTable,
        data_dir: &Path,
        bulk_delay: Duration,
        operators: &Operators,
    ) -> io::Result<Self> {
        let (routes, domains) = (Arc::new(RouteTable::trusting(operators.clone())), Arc::new(domains));
        let routes_file = data_dir.join("routes.last-known-good");
        let known = say_loaded(&routes_file, router::apply::load_last_known_good(&routes, &routes_file));
        let domains_file = data_dir.join("domains.last-known-good");
        say_loaded(&domains_file, router::domains::apply::load_last_known_good(&domains, &domains_file));

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let follow_routes =
            router::apply::follow_later(Arc::clone(store), Arc::clone(&routes), routes_file, bulk_delay);
        let follow_domains = router::domains::apply::follow(Arc::clone(store), Arc::clone(&domains), domains_file);
        let (end, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("tables".into()).spawn(move || {
            runtime.block_on(async {
                let both = async {
                    // Tasks of their own: a long sweep of one is no reason for the other to be asked each time.
                    let (routes, domains) = (tokio::spawn(follow_routes), tokio::spawn(follow_domains));
                    tokio::join!(routes, domains)
                };
                tokio::select! {
                    _ = ended => {}
                    _ = both => tracing::error!("the appliers of the tables have ended"),
                }
            });
        })?;
        let tables = Self { routes, domains, end: Some(end), thread: Some(thread) };
        let patience = if known > 0 { SYNC_LOADED } else { SYNC };
        if tokio::time::timeout(patience, tables.synced()).await.is_err() {
            tracing::warn!(known, "the routing store is not read yet; serving what was known last");
        }
        Ok(tables)
    }

    async fn synced(&self) {
        while !(self.routes.followed().is_synced() && self.domains.followed().is_synced()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
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
    use router::store::{Answer, Embedded, EmbeddedStore, Engine, Entry, Feed, StoreError};
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

    #[tokio::test]
    async fn what_the_store_says_is_applied_while_this_runtime_is_busy() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(EmbeddedStore::open(&dir.path().join("store")).unwrap());
        let engine: Store = Arc::new(Embedded(Arc::clone(&store)));
        let tables = Tables::load(&engine, domains(), dir.path(), Duration::ZERO, &Operators::default()).await.unwrap();
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
        fn subscribe<'a>(&'a self, _: &'a str, _: Option<router::store::Cursor>) -> Answer<'a, Feed> {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_store_holds_up_a_start_that_knows_routes_far_less_than_one_that_knows_none() {
        let dir = tempfile::tempdir().unwrap();
        let silent: Store = Arc::new(Silent);
        let began = tokio::time::Instant::now();
        let tables = Tables::load(&silent, domains(), dir.path(), Duration::ZERO, &Operators::default()).await.unwrap();
        assert_eq!(tables.routes.lookup("a"), Lookup::NotReady);
        assert!(began.elapsed() >= SYNC);
        let line = String::from_utf8(row().encode()).unwrap();
        std::fs::write(dir.path().join("routes.last-known-good"), format!("cursor 1 1\na {line}\n")).unwrap();
        let began = tokio::time::Instant::now();
        let tables = Tables::load(&silent, domains(), dir.path(), Duration::ZERO, &Operators::default()).await.unwrap();
        assert!(matches!(tables.routes.lookup("a"), Lookup::Found(_)));
        assert!(began.elapsed() < 2 * SYNC_LOADED);
    }
}
