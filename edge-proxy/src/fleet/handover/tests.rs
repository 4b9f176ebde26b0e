use super::*;
use crate::admin::sprites::NewSprite;
use crate::domain_certificates::DomainCertificates;
use crate::domains::Domains;
use crate::tables::FollowedRegion;
use acme::resolver::Certificates;
use router::access::Access;
use router::domains::DomainTable;
use router::registry::Merged;
use router::store::{Answer, Cursor, Embedded, EmbeddedStore, Entry, Feed, Store};
use router::wake::WakeRules;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use tempfile::TempDir;
use wakeup::drivers::DoorKeeper;
use wakeup::ledger::LedgerSettings;
use wakeup::owner::{HostSettings, Rang};
use wakeup::spec::DriverSpec;

/// Whatever is awaited here takes turns and a few writes to a disk.
const LIMIT: Duration = Duration::from_secs(20);

/// What the next write of a route meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Fault {
    None,
    /// It is done, and its answer is lost.
    AnswerLost,
    /// It is lost itself, and nobody says so.
    WriteLost,
    /// The store is away since then.
    Away,
}

/// A store that goes away in the middle of a write. Feeds go on: other machines still hear it.
struct Losing {
    inner: Embedded,
    fault: AtomicU8,
}

impl Losing {
    fn set(&self, fault: Fault) {
        self.fault.store(fault as u8, Ordering::SeqCst);
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault.load(Ordering::SeqCst) == fault as u8
    }
}

fn away<T>() -> Result<T, StoreError> {
    Err(StoreError::Unavailable("cut off".into()))
}

impl Engine for Losing {
    fn name(&self) -> &'static str {
        "losing"
    }

    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Entry>> {
        Box::pin(async move { if self.is(Fault::Away) { away() } else { self.inner.get(key).await } })
    }

    fn scan<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Entry>> {
        Box::pin(async move { if self.is(Fault::Away) { away() } else { self.inner.scan(prefix).await } })
    }

    fn compare_and_set<'a>(&'a self, key: &'a str, expected: Option<u64>, value: Option<&'a [u8]>) -> Answer<'a, u64> {
        Box::pin(async move {
            let of_a_route = key.starts_with("sprite/");
            if self.is(Fault::Away) {
                return away();
            }
            if self.is(Fault::None) || !of_a_route {
                return self.inner.compare_and_set(key, expected, value).await;
            }
            if self.is(Fault::AnswerLost) {
                self.inner.compare_and_set(key, expected, value).await?;
            }
            self.set(Fault::Away);
            Err(StoreError::Uncertain("no answer".into()))
        })
    }

    fn subscribe<'a>(&'a self, prefix: &'a str, resume: Option<Cursor>) -> Answer<'a, Feed> {
        self.inner.subscribe(prefix, resume)
    }
}

/// A worker host: all of it but its tunnel.
struct Machine {
    admin: Admin,
    owner: OwnerHandle,
    table: Arc<RouteTable>,
    _data: TempDir,
}

impl Machine {
    async fn start(routes: &Store, hosts: &Arc<HostTable>, number: u32, hook: &str) -> Self {
        let data = tempfile::tempdir().unwrap();
        let path = |name: &str| data.path().join(name);
        let settings = HostSettings {
            directory: path("sprites"),
            host: config::Host::default(),
            drivers: config::Drivers::default(),
            doors: DoorKeeper::default(),
            rang: Rang::default(),
            ledger: LedgerSettings {
                directory: path("ledger"),
                segment_bytes: config::Ledger::default().segment_bytes,
                keep_bytes: config::Ledger::default().keep_bytes,
            },
        };
        let owner = OwnerHandle::start(settings).await.unwrap();
        let local = Arc::new(EmbeddedStore::open(&path("store.redb")).unwrap());
        let stores = Stores { local, routes: Arc::clone(routes), own: None };
        let table = Arc::new(RouteTable::new());
        tokio::spawn(router::apply::follow(Arc::clone(routes), Arc::clone(&table), path("routes")));
        let handovers = Arc::new(Handovers::new());
        tokio::spawn(router::handover::follow(Arc::clone(routes), Arc::clone(&handovers), path("handovers")));
        let moving = Arc::new(Moving {
            hook: hook.into(),
            sprites: path("sprites"),
            own: hosts.lookup(HostId(number)).unwrap(),
            hosts: Arc::clone(hosts),
            handovers,
            giving: Giving::default(),
        });
        tokio::spawn(receive(stores.clone(), owner.clone(), Arc::clone(&table), Arc::clone(&moving)));
        let domains = Arc::new(DomainTable::new(HashMap::new(), &[], &[]));
        let certificates = DomainCertificates::new(Certificates::default(), None);
        let admin = Admin {
            tls: None,
            dns: None,
            watchdog: None,
            rotation: None,
            owner: Some(owner.clone()),
            regions: Arc::new([FollowedRegion {
                name: "own".into(),
                engine: "losing",
                routes: Arc::clone(&table),
                domains: Arc::clone(&domains),
            }]),
            domains: Arc::new(Domains::new(
                &config::Domains::default(),
                Arc::clone(routes),
                domains,
                certificates,
                None,
            )),
            stores,
            table: Arc::new(Arc::clone(&table).into()),
            edge: None,
            hosts: Some(Merged::new(("own".into(), Arc::clone(hosts)), Vec::new())),
            moving: Some(moving),
            acks: None,
            host: HostId(number),
            suffix: "sprites.test".into(),
            https_port: 443,
            started: Instant::now(),
            followers: crate::admin::followers(),
            webhook: None,
        };
        Self { admin, owner, table, _data: data }
    }

    fn data(&self) -> &Path {
        &self.admin.moving.as_ref().unwrap().sprites
    }
}

fn host(number: u32) -> HostRow {
    HostRow {
        papers: None,
        name: format!("host-{number}"),
        number: HostId(number),
        wireguard_key: String::new(),
        endpoint: ([127, 0, 0, 1], 1).into(),
        address: "fd00::1".parse().unwrap(),
        spki_pins: Vec::new(),
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !holds().await {
        assert!(Instant::now() < end, "waited in vain for: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

struct World {
    store: Arc<Losing>,
    from: Machine,
    to: Machine,
    name: SpriteName,
    _folder: TempDir,
}

/// Two hosts, and a sprite on the first one whose move ends without an answer of the store.
async fn moved_without_an_answer(fault: Fault) -> World {
    let folder = tempfile::tempdir().unwrap();
    let file = EmbeddedStore::open(&folder.path().join("shared.redb")).unwrap();
    let store = Arc::new(Losing { inner: Embedded(Arc::new(file)), fault: AtomicU8::new(Fault::None as u8) });
    let (routes, hosts) = (Arc::clone(&store) as Store, Arc::new(HostTable::new()));
    for number in [1, 2] {
        hosts.apply_put(host(number));
    }
    let to = Machine::start(&routes, &hosts, 2, "").await;
    let hook = format!("mkdir -p {0} && cp -a \"$SPRITE_DIRECTORY\" {0}/", to.data().display());
    let from = Machine::start(&routes, &hosts, 1, &hook).await;
    let name = SpriteName::parse("nomad").unwrap();
    let new = NewSprite {
        name: name.clone(),
        driver: DriverSpec::Process { command: "sleep 100".into(), memory_mib: None },
        ports: Vec::new(),
        idle_timeout: None,
        access: Access::Public,
        wake: WakeRules::default(),
    };
    sprites::create(&from.admin.stores, &from.owner, HostId(1), new).await.unwrap();
    until("the first host's table", async || matches!(from.table.lookup(&name), Lookup::Found(_))).await;
    store.set(fault);
    let (status, said) = give(&from.admin, &name, "host-2").await.unwrap_err();
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(said.contains("the store is asked whether nomad has moved"), "{said}");
    assert!(store.is(Fault::Away));
    World { store, from, to, name, _folder: folder }
}

impl World {
    /// Here nobody is let through to it for as long as nobody knows whose it is.
    async fn is_held(&self) {
        let status = self.from.owner.status(&self.name).await.expect("it is not given up");
        assert!(status.held && status.state == StateName::Asleep, "{status:?}");
        assert_eq!(leaving(&self.from.admin.stores).unwrap(), std::slice::from_ref(&self.name));
    }

    async fn is_cleared_up(&self) {
        let stores = &self.from.admin.stores;
        until("the move to be cleared up", async || leaving(stores).unwrap().is_empty()).await;
        let waits = || self.to.admin.stores.local.scan(INCOMING_PREFIX).unwrap();
        until("the other host to have decided", async || waits().is_empty()).await;
    }
}

#[tokio::test]
async fn a_move_whose_answer_is_lost_is_held_until_the_store_says_that_it_was_done() {
    let world = moved_without_an_answer(Fault::AnswerLost).await;
    // The other host hears of its route by the feed; the first one cannot ask, and keeps its visitors waiting.
    until("the other host to take it", async || world.to.owner.status(&world.name).await.is_some()).await;
    // Longer than the pause between two questions.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    world.is_held().await;
    world.store.set(Fault::None);
    world.is_cleared_up().await;
    assert!(world.from.owner.status(&world.name).await.is_none(), "it is the other host's");
    assert!(sprites::find(&world.from.admin.stores.local, &world.name).unwrap().is_none());
    let taken = world.to.owner.status(&world.name).await.unwrap();
    assert_eq!((taken.generation, taken.held), (2, false));
}

#[tokio::test]
async fn a_move_whose_write_is_lost_stays_where_it_was_when_the_store_says_so() {
    let world = moved_without_an_answer(Fault::WriteLost).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    world.is_held().await;
    assert!(world.to.owner.status(&world.name).await.is_none());
    world.store.set(Fault::None);
    world.is_cleared_up().await;
    let kept = world.from.owner.status(&world.name).await.unwrap();
    assert_eq!((kept.generation, kept.held), (1, false));
    assert!(world.to.owner.status(&world.name).await.is_none(), "nobody gave it away");
}

#[tokio::test]
async fn what_a_host_that_died_has_said_of_a_move_is_taken_back_by_its_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = EmbeddedStore::open(&folder.path().join("shared.redb")).unwrap();
    let store = Arc::new(Losing { inner: Embedded(Arc::new(file)), fault: AtomicU8::new(Fault::None as u8) });
    let (routes, hosts) = (Arc::clone(&store) as Store, Arc::new(HostTable::new()));
    for number in [1, 2] {
        hosts.apply_put(host(number));
    }
    let row = |name: &str, from: u32, to: u32| HandoverRow {
        version: ROW_VERSION,
        name: SpriteName::parse(name).unwrap(),
        from: HostId(from),
        to: HostId(to),
        generation: Generation(2),
        ready: true,
        seal: None,
    };
    // Written by the process before, which died before it wrote that the sprite leaves; one that this process gives
    // away now; and another host's.
    for row in [row("cut", 1, 2), row("now", 1, 2), row("theirs", 2, 1)] {
        store.compare_and_set(&HandoverRow::key(&row.name), None, Some(&row.encode())).await.unwrap();
    }
    let from = Machine::start(&routes, &hosts, 1, "").await;
    let moving = Arc::clone(from.admin.moving.as_ref().unwrap());
    let now = SpriteName::parse("now").unwrap();
    let given = moving.giving.begin(&now);
    // The store is away at first.
    store.set(Fault::Away);
    let starting = tokio::spawn(call_off_cut_short(from.admin.stores.clone(), Arc::clone(&moving)));
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!starting.is_finished());
    store.set(Fault::None);
    tokio::time::timeout(LIMIT, starting).await.expect("it ends").unwrap();
    let left = store.scan(HANDOVER_PREFIX).await.unwrap();
    let left: Vec<_> = left.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(left, ["handover/now", "handover/theirs"]);
    drop(given);
    assert!(!moving.giving.has(&now));
}
