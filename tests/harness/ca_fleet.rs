//! Three PoPs on NATS that order certificates at one CA, through the proxy that spoils them.

use crate::ca_proxy::{CaProxy, Extras, Seen};
use crate::fleet::{Machine, SUFFIX};
use crate::nats::Nats;
use crate::pebble::{Moods, Pebble};
use crate::service::Service;
use crate::store_gate::StoreGate;
use crate::{Demo, DnsServer, cluster, processes, until};
use router::store::Store;
use router::store::nats::NatsStore;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// How many PoPs.
pub const POPS: usize = 3;
/// A KEK that is nobody's secret.
pub const KEK: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n";
/// Until a PoP knows what the host wrote (measured: below a second).
const KNOWN: Duration = Duration::from_secs(60);

/// The fleet, its store and its CA.
pub struct CaFleet {
    /// The PoPs that run.
    pub pops: Vec<Option<Demo>>,
    /// What is between them and the CA.
    pub proxy: CaProxy,
    /// What is between the first PoP and the store. What it closes the way for is refused by the proxy as well.
    pub gate: StoreGate,
    /// The store they share.
    pub store: Store,
    /// What visitors trust.
    pub roots: RootCertStore,
    machines: Vec<Machine>,
    dns: Vec<SocketAddr>,
    http: Vec<SocketAddr>,
    resolver: DnsServer,
    host: Demo,
    driver: PathBuf,
    _service: Service,
    _pebble: Pebble,
    _nats: Nats,
    _shared: TempDir,
}

impl CaFleet {
    /// With a worker host that runs, a sprite `shop`, and PoPs that are enrolled and do not run yet; `None` when there is no
    /// NATS or no Pebble to start.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start(extras: Extras) -> Option<Self> {
        let nats = Nats::start().await?;
        // Each PoP has an address of its own, and one port of all is where the CA comes to.
        let own: Vec<_> = (0..POPS).map(|_| cluster::addresses(3)).collect();
        let port = own[0][0].port();
        let http: Vec<_> = own.iter().map(|own| SocketAddr::from((own[0].ip(), port))).collect();
        let dns: Vec<_> = own.iter().map(|own| *own[1..].iter().find(|dns| dns.port() != port).unwrap()).collect();
        let resolver = DnsServer::start().await;
        let pebble = Pebble::start(resolver.address, port, 1, Moods::default()).await?;
        let proxy = CaProxy::start(&pebble, extras).await;
        let gate = StoreGate::start(nats.address(), proxy.closer()).await;
        let shared = tempfile::tempdir().unwrap();
        let kek = shared.path().join("kek");
        std::fs::write(&kek, KEK).unwrap();
        let mut machines = Vec::new();
        for (number, (http, dns)) in http.iter().zip(&dns).enumerate() {
            let sections = format!(
                "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = [\"{http}\"]\n[tls]\nhandshake_timeout = \"5s\"\n\
                 [dns]\nlisten = [\"{dns}\"]\naddresses = [\"127.0.0.1\"]\n\
                 name_servers = [{{ name = \"ns.example.net\" }}]\n\
                 [domains]\nresolvers = [\"{}\"]\n\
                 [acme]\ndirectory = {:?}\nca_file = {:?}\nkek_file = {kek:?}\n{}",
                resolver.address,
                proxy.directory(),
                proxy.ca_file(),
                if number == 0 { gate.sections() } else { nats.sections() },
            );
            machines.push(Machine::enrolled_pop(&format!("pop-{number}"), &sections).await);
        }
        let machine = Machine::enrolled_host("host-a", &nats.sections(), "").await;
        let host = machine.start().await;
        let service = Service::start().await;
        let driver = machine.data().join("driver.toml");
        std::fs::write(&driver, service.driver()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(pebble.root().await.as_bytes()).unwrap()).unwrap();
        let store: Store = Arc::new(NatsStore::connect(&nats.settings()).await.unwrap());
        let pops = (0..POPS).map(|_| None).collect();
        let (_service, _pebble, _nats, _shared) = (service, pebble, nats, shared);
        let fleet = Self {
            pops,
            proxy,
            gate,
            store,
            roots,
            machines,
            dns,
            http,
            resolver,
            host,
            driver,
            _service,
            _pebble,
            _nats,
            _shared,
        };
        let driver = fleet.driver.to_str().expect("temporary paths are text");
        fleet.host.admin(&["sprite", "create", "shop", "--public", "--driver", driver]).await;
        Some(fleet)
    }

    /// Starts a PoP.
    ///
    /// # Panics
    /// When it runs.
    pub async fn boot(&mut self, number: usize) {
        assert!(self.pops[number].is_none(), "it runs");
        self.pops[number] = Some(self.machines[number].start().await);
    }

    /// A PoP that runs.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn pop(&self, number: usize) -> &Demo {
        self.pops[number].as_ref().expect("it runs")
    }

    /// From now on the CA finds the suffix and these domains at that PoP, as if the others were withdrawn.
    pub fn lead_to(&self, number: usize, domains: &[String]) {
        self.resolver.delegate(SUFFIX, self.dns[number]);
        for domain in domains {
            self.resolver.clear(domain);
            self.resolver.set_address(domain, self.http[number].ip());
        }
    }

    /// Domains that lead to `shop`, on an operator's word, said to that PoP.
    pub async fn add_domains(&self, number: usize, domains: &[String]) {
        for domain in domains {
            until("the edge to know the sprite", KNOWN, async || {
                let arguments = ["domain", "add", domain, "shop", "--proved"];
                self.pop(number).try_admin(&arguments).await.status.success().then_some(())
            })
            .await;
        }
    }

    /// Which PoP sent this; it must still wait for the answer.
    ///
    /// # Panics
    /// When none did.
    #[must_use]
    pub fn whose(&self, seen: &Seen) -> usize {
        let is = |pop: &Option<Demo>| pop.as_ref().is_some_and(|pop| processes::has_connection(pop.pid(), seen.from));
        self.pops.iter().position(is).unwrap_or_else(|| panic!("nobody has sent {seen:?}"))
    }

    /// What is in the store there.
    pub async fn value(&self, key: &str) -> Option<Vec<u8>> {
        Some(self.store.get(key).await.ok()??.value)
    }

    /// Ends all of it as Ctrl-C does.
    pub async fn stop(self) {
        for pop in self.pops.into_iter().flatten() {
            pop.stop().await;
        }
        self.host.stop().await;
    }
}
