//! The composition root: binds what must be bound, builds each part in order, spawns,
//! waits, drains.

use crate::admin::sprites::SpriteError;
use crate::admin::{self, Admin};
use crate::cli::{Exit, failed};
use crate::core_dumps;
use crate::dns::{self, Dns};
use crate::domain_certificates::DomainCertificates;
use crate::domains::Domains;
use crate::domains::delegation::Delegations;
use crate::door::SpriteDoors;
use crate::fleet::{self, Acks, Moving};
use crate::from_cas::{self, CertificateTable, SealedCertificates};
use crate::host::Host;
use crate::listen::{self, bind_per_worker};
use crate::machine_keys::{self, End};
use crate::primary;
use crate::sessions;
use crate::signed_rows::{self, Own};
use crate::stores::{self, Stores};
use crate::tables::{FollowedRegion, Tables};
use crate::tickets::Tickets;
use crate::tls::Tls;
use crate::watchdog::Watchdog;
use crate::webhook::Webhook;
use crate::worker::{Edge, EdgeParts, Worker};
use acme::local_ca::LocalCa;
use acme::resolver::{Certificates, Policy};
use anyhow::{Context, anyhow};
use backhaul::Backhaul;
use config::{Config, Expired, StoreEngine, UnknownNames};
use router::domains::{DomainName, DomainTable};
use router::hosts::HostTable;
use router::names::{SpriteName, Suffix, parse_host};
use router::pops::PopRow;
use router::regions::{DomainRegions, Routes};
use router::roles;
use router::route::{HostId, HostRow};
use router::store::Store;
use router::table::{Lookup, RouteTable};
use std::collections::HashMap;
use std::net::TcpListener;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::runtime::LocalOptions;
use wakeup::hold::{HoldLimits, SourceBudget, Waker};
use wakeup::owner::OwnerHandle;
use wakeup::spec::{DriverSpec, SpriteSpec};

/// The worker host of this machine; a fleet numbers its hosts.
pub const LOCAL_HOST: HostId = HostId(0);
/// How long requests in progress may take to end at shutdown (chosen: a terminal's patience).
const DRAIN: Duration = Duration::from_secs(2);
/// Pause between two attempts to write the route of a sprite of the config file (chosen).
const PUBLISH_AGAIN: Duration = Duration::from_secs(5);

/// How long a start may take to issue the certificates of the custom domains it knows (chosen: a thousand of them).
const CERTIFICATES: Duration = Duration::from_secs(1);

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Edge and worker host, of a machine that stands alone.
    Alone,
    /// An edge of a fleet.
    Pop,
    /// A worker host of a fleet.
    Host,
}

impl Role {
    /// What `run` starts: an edge, with the worker host of a machine that stands alone.
    #[must_use]
    pub const fn of_run(config: &Config) -> Self {
        if config.fleet.name.is_empty() { Self::Alone } else { Self::Pop }
    }
}

/// Runs it until a signal ends it.
pub fn run(config: Config, role: Role) -> Exit {
    match run_until_signal(config, role, |_| Box::pin(async { Ok(()) })) {
        Ok(()) => Exit::Done,
        Err(error) => failed(&format!("{error:#}")),
    }
}

/// A future of the caller's, run once everything serves.
pub type Ready<'a> = std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// Starts everything, lets `ready` happen, waits for SIGINT or SIGTERM, and ends everything.
///
/// # Errors
/// Whatever kept it from starting, in one sentence that says what and where.
pub fn run_until_signal(
    config: Config,
    role: Role,
    ready: impl for<'a> FnOnce(&'a Running) -> Ready<'a>,
) -> anyhow::Result<()> {
    // Before any key is read.
    if !config.core_dumps {
        core_dumps::forbid();
    }
    std::fs::create_dir_all(&config.data_dir).with_context(|| format!("data_dir {}", config.data_dir.display()))?;
    // First of all: who is told "port in use" should not wait for anything else.
    let listeners = (role != Role::Host).then(|| Listeners::bind(&config)).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let running = Running::start(&config, role, listeners).await?;
        ready(&running).await?;
        signal().await?;
        running.stop().await;
        Ok(())
    })
}

/// The sockets clients come to, by worker.
struct Listeners {
    https: Vec<Vec<TcpListener>>,
    http: Vec<Vec<TcpListener>>,
    dns: Option<dns::Bound>,
    /// The first address of HTTPS.
    address: std::net::SocketAddr,
}

impl Listeners {
    fn bind(config: &Config) -> anyhow::Result<Self> {
        let workers = match config.listen.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        let https = bind_all(&config.listen.https, workers)?;
        let http = bind_all(&config.listen.http, workers)?;
        let dns = dns::Bound::bind(config, workers)?;
        let first = https.first().and_then(|listeners| listeners.first()).context("no HTTPS address")?;
        let address = first.local_addr()?;
        Ok(Self { https, http, dns, address })
    }
}

/// Listeners by worker: each worker has one per address.
fn bind_all(addresses: &[std::net::SocketAddr], workers: usize) -> anyhow::Result<Vec<Vec<TcpListener>>> {
    let mut by_worker: Vec<_> = (0..workers).map(|_| Vec::new()).collect();
    for &address in addresses {
        let listeners = bind_per_worker(address, workers).with_context(|| format!("cannot listen on {address}"))?;
        for (listeners_of, listener) in by_worker.iter_mut().zip(listeners) {
            listeners_of.push(listener);
        }
    }
    Ok(by_worker)
}

async fn signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// A process that serves.
pub struct Running {
    /// What the admin API works on.
    pub admin: Arc<Admin>,
    edge: Option<EdgeSide>,
    host: Option<Host>,
    socket: std::path::PathBuf,
    /// FollowedRegion until the very end.
    _tables: Tables,
}

/// The edge of this process, and the threads that serve its clients.
struct EdgeSide {
    edge: Arc<Edge>,
    tls: Arc<Tls>,
    https: std::net::SocketAddr,
    threads: Vec<std::thread::JoinHandle<()>>,
    watchdog: Watchdog,
    dns: Option<(Arc<Dns>, acme::dns::server::Server)>,
}

impl Running {
    /// Where HTTPS is served, if this is an edge.
    #[must_use]
    pub fn https(&self) -> Option<std::net::SocketAddr> {
        self.edge.as_ref().map(|edge| edge.https)
    }

    async fn start(config: &Config, role: Role, listeners: Option<Listeners>) -> anyhow::Result<Self> {
        let socket = config.admin_socket();
        let listener = bind_admin(&socket).await?;
        let mut stores = Stores::open(config, role == Role::Host).await?;
        let operators = machine_keys::operators(config)?;
        let suffixes =
            config.names.suffixes.iter().map(|suffix| Suffix::parse(suffix)).collect::<Result<Vec<_>, _>>()?;
        let domains = DomainTable::new(fixed_domains(config, &suffixes)?, &suffixes, &reserved(config));
        let feeds = stores::feeds(config, &stores.routes, role == Role::Host).await?;
        // A worker host asks no other region for routes: it has its sprites, and lets in whose edges come for them.
        let routed = if role == Role::Host { &feeds[..1] } else { &feeds };
        let tables = Tables::load(routed, domains, &operators).await?;
        let (routes, regions) = (Arc::clone(&tables.routes), Arc::clone(&tables.regions));
        let (table, domains) = (Arc::clone(tables.routes.own()), Arc::clone(tables.domains.own()));

        let doors = SpriteDoors::new(config.data_dir.join("sprites"));
        let all_hosts = (role != Role::Alone).then(|| fleet::hosts(routed, &operators));
        let hosts = all_hosts.as_ref().map(|hosts| Arc::clone(hosts.own()));
        let serve = config.store.embedded.serve.filter(|_| config.store.engine == StoreEngine::Embedded);
        let pops = (role == Role::Host || (role == Role::Pop && (serve.is_some() || config.fleet.peers.is_some())))
            .then(|| fleet::pops(if role == Role::Host { &feeds } else { &feeds[..1] }, &operators));
        if let (Some(at), Some(hosts), Some(pops)) = (serve, &hosts, &pops) {
            // Whoever is enrolled here: another region's machines have no business with this store.
            primary::serve(config, role == Role::Host, at, &stores.routes, hosts, pops.own()).await?;
        }
        let (mut moving, mut acks, mut rotation) = (None, None, None);
        let (host, number, backhaul) = match (role, &hosts) {
            (Role::Alone, _) | (_, None) => {
                let (host, backhaul) = Host::alone(config, LOCAL_HOST, &doors).await?;
                (Some(host), LOCAL_HOST, Some(backhaul))
            }
            (Role::Pop, Some(_)) => {
                stores = stores.acting(roles::Role::Edge, PopRow::key(&config.fleet.name));
                let hosts = all_hosts.as_ref().context("an edge of a fleet follows its hosts")?;
                fleet::read(hosts, &regions).await;
                let edge = sessions::connect(config, End::of_edge(config)?, Arc::clone(hosts.all()))?;
                let backhaul = Backhaul::quic(edge);
                for region in &*regions {
                    let (hosts, name) = (Arc::clone(hosts), region.name.clone());
                    let is_of_region = move |host: HostId| hosts.counts(&name, &host);
                    tokio::spawn(fleet::tell_hosts(region.routes.changes(), backhaul.clone(), is_of_region));
                }
                (None, LOCAL_HOST, Some(backhaul))
            }
            (Role::Host, Some(hosts)) => {
                let row = fleet::own_row(config, hosts).await?;
                let (number, key) = (row.number, End::of_host(config)?.signing);
                stores = stores.acting(roles::Role::Host, HostRow::key(number));
                if operators.demand() {
                    let (key, operators) = (key.clone(), operators.clone());
                    stores.own = Some(Arc::new(Own { host: number, key, operators }));
                    tokio::spawn(signed_rows::repair(stores.clone(), Arc::clone(&table)));
                }
                let pops = pops.as_ref().context("a worker host follows the PoPs")?;
                let pops = Arc::clone(pops.all());
                let heard = Arc::new(Acks::new(Arc::clone(&pops)));
                let (host, listens) = Host::in_fleet(config, &doors, pops, Arc::clone(&heard)).await?;
                acks = Some(heard);
                rotation = Some(fleet::rotation(config, host.orders.clone()));
                let (store, hosts) = (Arc::clone(&stores.routes), Arc::clone(hosts));
                tokio::spawn(fleet::announce(config.clone(), store, Arc::clone(&hosts), number, key, listens));
                moving = Some(Arc::new(Moving {
                    hook: config.fleet.move_hook.clone(),
                    sprites: config.data_dir.join("sprites"),
                    own: row,
                    hosts,
                    handovers: fleet::handovers(&stores.routes, &config.data_dir, &operators),
                    giving: fleet::Giving::default(),
                }));
                (Some(host), number, None)
            }
        };
        let owner = host.as_ref().map(|host| host.owner.clone());
        match &owner {
            Some(owner) => adopt(config, &stores, &table, owner, number).await?,
            None if config.sprites.is_empty() => {}
            None => return Err(anyhow!("sprites of a config file need a worker host; this is an edge of a fleet")),
        }
        if let (Some(moving), Some(owner)) = (&moving, &owner) {
            let (stores, owner) = (stores.clone(), owner.clone());
            let hosts = Arc::clone(&moving.hosts);
            tokio::spawn(fleet::call_off_cut_short(stores.clone(), Arc::clone(moving)));
            tokio::spawn(fleet::clear_up(stores.clone(), owner.clone(), hosts, number));
            tokio::spawn(fleet::receive(stores, owner, Arc::clone(&table), Arc::clone(moving)));
        }
        let webhook = owner.as_ref().map(|owner| notify(config, owner)).transpose()?.flatten();

        let certificates = match role {
            // It ends no TLS.
            Role::Host => (DomainCertificates::new(Certificates::default(), None), None),
            Role::Alone | Role::Pop => certificates(config)?,
        };
        let (certificates, sealed) = certificates;
        let edge = match listeners.zip(backhaul) {
            Some((listeners, backhaul)) => {
                let tls = Tls::new(certificates.resolver(), shared_tickets(config, &stores.routes).await?)?;
                tokio::spawn(Arc::clone(&certificates).follow(Arc::clone(&tables.domains)));
                if tokio::time::timeout(CERTIFICATES, certificates.begun()).await.is_err() {
                    tracing::warn!("certificates of custom domains are not all issued yet; the others serve");
                }
                let (table, domains) = (Arc::clone(&routes), Arc::clone(&tables.domains));
                let hosts = all_hosts.as_ref().map(|hosts| Arc::clone(hosts.all()));
                let known = Known { table, hosts, domains, suffixes, regions: Arc::clone(&regions) };
                Some(EdgeSide::start(config, known, backhaul, tls, listeners)?)
            }
            None => None,
        };
        if let Some((side, (dns, _))) = edge.as_ref().and_then(|side| Some((side, side.dns.as_ref()?)))
            && let Some(sealed) = &sealed
        {
            let (own, published) = (Arc::clone(tables.domains.own()), dns.published());
            let zone = challenge_zone(config).context("acme: no zone")?;
            let front = from_cas::Front {
                delegations: Delegations::new(Arc::clone(&own), &config.domains.resolvers, zone),
                domains: own,
                pops: pops.as_ref().map(|pops| Arc::clone(pops.own())),
                published,
                serving: Arc::clone(&certificates),
                tls: Arc::clone(&side.tls),
                https: side.https,
            };
            let started = from_cas::start(config, &stores.routes, sealed, front)?;
            dns.ask(&started);
            side.edge.answer_for(started);
        }
        let domains = Arc::new(Domains::new(
            &config.domains,
            Arc::clone(&stores.routes),
            domains,
            certificates,
            challenge_zone(config),
        ));
        if edge.is_some() {
            tokio::spawn(Arc::clone(&domains).keep_proving());
        }
        let admin = Arc::new(Admin {
            owner,
            stores,
            table: routes,
            regions,
            edge: edge.as_ref().map(|side| Arc::clone(&side.edge)),
            tls: edge.as_ref().map(|side| Arc::clone(&side.tls)),
            watchdog: edge.as_ref().map(|side| Arc::clone(side.watchdog.status())),
            domains,
            dns: edge.as_ref().and_then(|side| side.dns.as_ref()).map(|(dns, _)| Arc::clone(dns)),
            hosts: all_hosts,
            moving,
            acks,
            rotation,
            host: number,
            suffix: config.names.suffixes.first().cloned().unwrap_or_default(),
            https_port: edge.as_ref().map_or(443, |edge| edge.https.port()),
            started: Instant::now(),
            followers: admin::followers(),
            webhook,
        });
        doors.serve(&admin);
        tokio::spawn(admin::serve(listener, Arc::clone(&admin)));
        Ok(Self { admin, edge, host, socket, _tables: tables })
    }

    /// Drains, ends every guest, waits for the workers.
    async fn stop(self) {
        if let Some(side) = &self.edge {
            side.edge.drain();
            let end = Instant::now() + DRAIN;
            while side.edge.connections() > 0 && Instant::now() < end {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        if let Some(host) = self.host {
            host.stop().await;
        }
        if let Some(side) = self.edge {
            side.edge.stop();
            for thread in side.threads {
                // A worker that panicked has said so already.
                drop(thread.join());
            }
            // The last of all: while we end, nobody else may answer for our names.
            if let Some((_, server)) = side.dns {
                server.stop();
            }
        }
        if let Err(error) = std::fs::remove_file(&self.socket) {
            tracing::debug!(%error, "admin socket not removed");
        }
    }
}

/// The sprites of this host: those it had, and those of the config file.
async fn adopt(
    config: &Config,
    stores: &Stores,
    table: &RouteTable,
    owner: &OwnerHandle,
    number: HostId,
) -> anyhow::Result<()> {
    // Whose last move may have come to its end is asked for first (`fleet::clear_up`).
    let leaving = fleet::leaving(stores)?;
    for spec in admin::sprites::stored(&stores.local)?.into_iter().filter(|spec| !leaving.contains(&spec.name)) {
        owner.upsert(spec).await;
    }
    static_sprites(config, stores, table, owner, number).await?;
    owner.settle().await;
    Ok(())
}

/// Begins to tell the receiver of the ledger, if there is one.
fn notify(config: &Config, owner: &OwnerHandle) -> anyhow::Result<Option<Arc<crate::webhook::Status>>> {
    let webhook = Webhook::load(&config.webhook, Arc::clone(owner.ledger()), &config.data_dir.join("ledger"))?;
    Ok(webhook.map(|webhook| {
        let status = Arc::clone(webhook.status());
        tokio::spawn(webhook.run());
        status
    }))
}

/// What an edge finds sprites by.
struct Known {
    table: Arc<Routes>,
    hosts: Option<Arc<HostTable>>,
    domains: Arc<DomainRegions>,
    suffixes: Vec<Suffix>,
    regions: Arc<[FollowedRegion]>,
}

impl EdgeSide {
    fn start(
        config: &Config,
        known: Known,
        backhaul: Backhaul,
        tls: Arc<Tls>,
        listeners: Listeners,
    ) -> anyhow::Result<Self> {
        let Known { table, hosts, domains, suffixes, regions } = known;
        let watchdog = Watchdog::start(Arc::clone(&table), regions)?;
        let waker = Waker::new(hold_limits(&config.hold), backhaul.clone());
        let edge = Edge::new(EdgeParts {
            table,
            hosts,
            waker,
            backhaul,
            suffixes,
            domains,
            limits: config.limits.clone(),
            handshake_timeout: config.tls.handshake_timeout,
            hold_timeout: config.hold.timeout,
            wake_at_client_hello: config.hold.wake_at_client_hello,
            budget: SourceBudget::new(config.hold.wasted_wakes_per_hour),
            hsts: config.tls.hsts,
            unknown_as_private: config.names.unknown_names == UnknownNames::AsPrivate,
        });
        let Listeners { https, http, dns, address } = listeners;
        let threads = https.into_iter().zip(http).enumerate().map(|(number, (https, http))| {
            spawn_worker(number, Arc::clone(&edge), Arc::clone(&tls), https, http, address.port())
        });
        let threads = threads.collect::<std::io::Result<Vec<_>>>()?;
        let dns = dns.map(|dns| dns.serve(config)).transpose()?;
        Ok(Self { edge, tls, https: address, threads, watchdog, dns })
    }
}

/// Held requests keep their connections open: at most a quarter of the open files this process
/// may have (`wake.md` §5), so that there are always some for those that are served.
fn hold_limits(hold: &config::Hold) -> HoldLimits {
    let limits = HoldLimits::from(hold);
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let quarter = usize::try_from(files / 4).unwrap_or(usize::MAX).max(1);
    HoldLimits { per_process: limits.per_process.min(quarter), ..limits }
}

async fn bind_admin(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("admin socket {}", path.display()))?;
    }
    admin::bind(path).await.with_context(|| format!("admin socket {}", path.display()))
}

/// Our zone in which answers to the challenges of custom domains are, where certificates come from public CAs.
fn challenge_zone(config: &Config) -> Option<String> {
    config.dns.zones(&config.names).into_iter().next().filter(|_| config.acme.is_on())
}

/// Domains of the config file. One that is a sprite's name by itself would never be looked up.
fn fixed_domains(config: &Config, suffixes: &[Suffix]) -> anyhow::Result<HashMap<DomainName, SpriteName>> {
    let mut fixed = HashMap::new();
    for sprite in &config.sprites {
        let name = SpriteName::parse(&sprite.name).map_err(|error| anyhow!("sprite {:?}: {error}", sprite.name))?;
        for domain in &sprite.domains {
            if let Ok(target) = parse_host(domain, suffixes) {
                return Err(anyhow!("sprite {name}: the domain {domain} is the name of sprite {}", target.name));
            }
            let domain = DomainName::parse_any(domain).map_err(|error| anyhow!("sprite {name}: {domain}: {error}"))?;
            fixed.insert(domain, name.clone());
        }
    }
    Ok(fixed)
}

/// Names of ours besides the suffixes: nobody proves one and is served under it.
fn reserved(config: &Config) -> Vec<String> {
    let cname = (!config.domains.cname.is_empty()).then(|| config.domains.cname.clone());
    config.domains.reserved.iter().cloned().chain(cname).collect()
}

/// Sprites of the config file: in the table and at the owner, not in the store's definitions.
async fn static_sprites(
    config: &Config,
    stores: &Stores,
    table: &RouteTable,
    owner: &OwnerHandle,
    host: HostId,
) -> anyhow::Result<()> {
    for sprite in &config.sprites {
        let name = SpriteName::parse(&sprite.name).map_err(|error| anyhow!("sprite {:?}: {error}", sprite.name))?;
        let driver = match (&sprite.address, &sprite.command) {
            (Some(address), _) => DriverSpec::Fixed { address: *address },
            (None, Some(command)) => DriverSpec::Process { command: command.clone(), memory_mib: sprite.memory_mib },
            (None, None) => return Err(anyhow!("sprite {name}: needs an address or a command")),
        };
        let spec = SpriteSpec { ports: sprite.ports.clone(), ..SpriteSpec::new(name.clone(), 0, driver) };
        let generation = match publish_static(stores, host, &spec).await {
            Ok(generation) => {
                // The first request may come the moment we listen.
                table_has(table, &name, generation).await;
                generation
            }
            Err(SpriteError::Store(error)) => {
                tracing::warn!(sprite = %name, %error, "its route is not written yet; trying again");
                tokio::spawn(publish_later(stores.clone(), host, owner.clone(), spec.clone()));
                match table.lookup(&name) {
                    Lookup::Found(route) => route.generation.0,
                    Lookup::Unknown | Lookup::NotReady => 1,
                }
            }
            Err(error) => return Err(error.into()),
        };
        owner.upsert(SpriteSpec { generation, ..spec }).await;
    }
    Ok(())
}

/// Waits until the table has what was written, a second at most: it follows within a turn, or the store is away.
async fn table_has(table: &RouteTable, name: &SpriteName, generation: u64) {
    for _ in 0..1_000 {
        if matches!(table.lookup(name), Lookup::Found(route) if route.generation.0 >= generation) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn publish_static(stores: &Stores, host: HostId, spec: &SpriteSpec) -> Result<u64, SpriteError> {
    admin::sprites::publish_static(stores, host, &spec.name, &spec.ports).await
}

/// Until the store takes the route of a sprite of the config file.
async fn publish_later(stores: Stores, host: HostId, owner: OwnerHandle, spec: SpriteSpec) {
    let generation = loop {
        tokio::time::sleep(PUBLISH_AGAIN).await;
        match publish_static(&stores, host, &spec).await {
            Ok(generation) => break generation,
            Err(error) => tracing::debug!(sprite = %spec.name, %error, "its route is not written yet"),
        }
    };
    owner.upsert(SpriteSpec { generation, ..spec }).await;
}

/// The certificates handshakes begin with, and the CA that issues more for custom domains.
fn certificates(config: &Config) -> anyhow::Result<(Arc<DomainCertificates>, Option<Arc<SealedCertificates>>)> {
    let domains = || config.sprites.iter().flat_map(|sprite| sprite.domains.iter().map(|d| d.to_ascii_lowercase()));
    let default_name = Some(config.tls.default_name.to_ascii_lowercase()).filter(|name| !name.is_empty());
    let policy = Policy { default_name, refuse_expired: config.tls.expired == Expired::Refuse };
    if config.acme.is_on() {
        let sealed = SealedCertificates::new(Arc::new(CertificateTable::open(&from_cas::file(config))?));
        let store = Some(Arc::clone(&sealed) as _);
        return Ok((DomainCertificates::with(Certificates::default(), None, policy, store), Some(sealed)));
    }
    let (key, ca) = if config.tls.certificate.as_os_str().is_empty() {
        let ca = LocalCa::load_or_create(&config.data_dir)?;
        let suffixes = config.names.suffixes.iter().flat_map(|suffix| [format!("*.{suffix}"), suffix.clone()]);
        (ca.issue(&suffixes.chain(domains()).collect::<Vec<_>>())?, Some(ca))
    } else {
        (acme::load::from_files(&config.tls.certificate, &config.tls.key)?, None)
    };
    let key = Arc::new(key);
    let suffixes = config.names.suffixes.iter().map(|suffix| (suffix.to_ascii_lowercase(), Arc::clone(&key))).collect();
    let names = domains().map(|domain| (domain, Arc::clone(&key))).collect();
    let fallback = ca.is_none().then(|| Arc::clone(&key));
    Ok((DomainCertificates::with(Certificates { suffixes, names, fallback }, ca, policy, None), None))
}

/// The ticket keys this edge shares with the others, followed from here on.
async fn shared_tickets(config: &Config, store: &Store) -> anyhow::Result<Option<Arc<Tickets>>> {
    let member = match config.fleet.name.as_str() {
        "" => "alone".to_owned(),
        // A PoP may have two processes.
        name => format!("{name}-{}", &End::of_edge(config)?.identity.pin()[..8]),
    };
    let Some(tickets) = Tickets::open(config, Arc::clone(store), &member)? else {
        tracing::info!("tls.kek is empty: this edge shares no session tickets with the others");
        return Ok(None);
    };
    tokio::spawn(Arc::clone(&tickets).follow());
    tickets.begun().await;
    Ok(Some(tickets))
}

fn spawn_worker(
    number: usize,
    edge: Arc<Edge>,
    tls: Arc<Tls>,
    https: Vec<TcpListener>,
    http: Vec<TcpListener>,
    https_port: u16,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let (built, hears) = std::sync::mpsc::channel();
    let serve = move || {
        // Made here: such a runtime stays on its thread, which is what makes its tasks cheap.
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = match builder.enable_all().build_local(LocalOptions::default()) {
            Ok(runtime) => runtime,
            Err(error) => return drop(built.send(Err(error))),
        };
        drop(built.send(Ok(())));
        runtime.block_on(async move {
            let worker = Rc::new(Worker::new(Arc::clone(&edge)));
            for listener in https {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { continue };
                tokio::task::spawn_local(listen::tls::accept_loop(Rc::clone(&worker), listener, Arc::clone(&tls)));
            }
            for listener in http {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { continue };
                tokio::task::spawn_local(listen::plain::accept_loop(Rc::clone(&worker), listener, https_port));
            }
            loop {
                tokio::select! {
                    () = edge.stopped() => return,
                    () = tokio::time::sleep(Duration::from_secs(1)) => {
                        worker.pool.sweep();
                        edge.hints.sweep(Instant::now());
                    }
                }
            }
        });
    };
    let thread = std::thread::Builder::new().name(format!("worker-{number}")).spawn(serve)?;
    hears.recv().map_err(|_| std::io::Error::other("the worker ended at its start"))??;
    Ok(thread)
}
