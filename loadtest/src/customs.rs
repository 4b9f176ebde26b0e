//! A million customers' domains: what their certificates take on a PoP's disk and in its memory, and how soon after a start it
//! answers handshakes.
//!
//! The store is one `nats-server`, with a row `domain/` and a row `cert/` for each. Certificates are as large as a public CA's:
//! a leaf of 1 KB with its time stamps, one intermediate. The CA that would renew them is away.

use crate::admin::Admin;
use crate::clock::now_ns;
use crate::cold_start;
use crate::figures::Figures;
use crate::machine::{Facts, memory};
use crate::servers::{Durability, Engine, Server, free_addresses};
use crate::table::scatter;
use acme::ca::Window;
use acme::certificate::{CertRow, cert_key, sealed_as};
use acme::rows::{Answer, Row, Rows, RowsError};
use acme::seal::{Kek, Sealer};
use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use http::Method;
use rcgen::{BasicConstraints, CertificateParams, CustomExtension, IsCa, Issuer, KeyPair};
use router::domains::row::{Claim, Holder};
use router::domains::{DomainName, DomainRow};
use router::names::SpriteName;
use router::rows::SpriteRow;
use router::store::{Entry, Store, StoreError};
use rustix::process::{Pid, Signal, kill_process};
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Serialize;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

/// From exec to the first handshake (tls-acme-dns.md §9).
const START_MS: f64 = 2_000.0;
/// Memory with the hot ones open (tls-acme-dns.md §9).
const MEMORY_MIB: u64 = 400;
/// Of the disk for each (tls-acme-dns.md §9).
const DISK_BYTES: f64 = 1_331.0;
/// How long the edge may take to hear all for the first time.
const PATIENCE: Duration = Duration::from_secs(900);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(2);
/// Rows written at once.
const WRITERS: usize = 128;
/// Extensions of a leaf of Let's Encrypt that are not made here, bytes: two time stamps, where its CA is found.
const LEAF_EXTRA: usize = 480;
/// What an intermediate with a signature of RSA 4096 is longer by.
const ISSUER_EXTRA: usize = 640;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Domains.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    domains: u32,
    /// Domains that are asked for; their certificates are open then.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    hot: u32,
    /// Starts after the first one.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    starts: u16,
    /// Exit with 1 when an aim is missed.
    #[arg(long)]
    check: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    facts: Facts,
    domains: u32,
    row_bytes: usize,
    /// From exec on an empty disk until the last domain is answered for.
    first_start_s: f64,
    /// The copy of certificates, bytes on the disk for each.
    disk_bytes: f64,
    /// From exec to the end of the first handshake for a name under a suffix of ours, and for a domain.
    to_sprite: Figures,
    to_domain: Figures,
    /// The first handshake for a domain, its certificate sealed; and the next one.
    sealed: Figures,
    open: Figures,
    hot: u32,
    /// MiB now, and the most since the start.
    after_start: (u64, u64),
    after_hot: (u64, u64),
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let facts = Facts::now();
    let (server, store) = Server::start_with(Engine::Nats, Durability::Later).await?;
    let mut edge = Edge::new(&server.address)?;
    let world = Arc::new(World::new(&edge, &store, &arguments).await?);
    let row_bytes = world.fill(&store).await?;
    drop(store);

    let began = Instant::now();
    edge.spawn()?;
    let last = world.hot(world.hot - 1);
    edge.until_it_answers_for(&world, &last).await?;
    edge.until_all_are_there(&world).await?;
    let first_start_s = began.elapsed().as_secs_f64();

    let (mut to_sprite, mut to_domain) = (Vec::new(), Vec::new());
    let mut after_start = (0, 0);
    for start in 0..arguments.starts {
        edge.end().await?;
        let began = now_ns();
        edge.spawn()?;
        let sprite = edge.until_it_answers_for(&world, "some-sprite.sprites.test").await?;
        let domain = world.hot(scatter(usize::from(start)) as u32 % world.hot);
        let domain = edge.until_it_answers_for(&world, &domain).await?;
        to_sprite.push(sprite - began);
        to_domain.push(domain - began);
        edge.until_all_are_there(&world).await?;
        after_start = mebibytes(edge.id()?)?;
    }
    let sealed = edge.ask_all(&world).await?;
    let open = edge.ask_all(&world).await?;
    let after_hot = mebibytes(edge.id()?)?;
    edge.end().await?;
    let disk = std::fs::metadata(edge.data().join("certificates"))?.blocks() * 512;
    let figures = |taken| Figures::of(taken).context("nothing was asked");
    let report = Report {
        facts,
        domains: world.domains,
        row_bytes,
        first_start_s,
        disk_bytes: disk as f64 / f64::from(world.domains),
        to_sprite: figures(to_sprite)?,
        to_domain: figures(to_domain)?,
        sealed: figures(sealed)?,
        open: figures(open)?,
        hot: world.hot,
        after_start,
        after_hot,
    };
    match arguments.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => report.print(),
    }
    Ok(!arguments.check || report.meets())
}

fn mebibytes(id: u32) -> anyhow::Result<(u64, u64)> {
    memory(id).map(|(now, most)| (now >> 20, most >> 20))
}

impl Report {
    fn meets(&self) -> bool {
        let slowest = self.to_sprite.max_ms.max(self.to_domain.max_ms);
        slowest <= START_MS && self.after_hot.0 <= MEMORY_MIB && self.disk_bytes <= DISK_BYTES
    }

    fn print(&self) {
        println!("{}", self.facts.text());
        println!("  {} domains, a row of {} bytes each in the store", self.domains, self.row_bytes);
        println!("  on an empty disk all are there after {:.1} s", self.first_start_s);
        println!("  the copy takes {:.0} bytes of the disk for each", self.disk_bytes);
        let memory = |(now, most): (u64, u64)| format!("{now} MiB, {most} at the most");
        println!("  memory after a start: {}", memory(self.after_start));
        println!("  with {} certificates open: {}", self.hot, memory(self.after_hot));
        println!("{}", Figures::head("from exec"));
        println!("{}", self.to_sprite.row("to a sprite's handshake"));
        println!("{}", self.to_domain.row("to a domain's handshake"));
        println!("{}", Figures::head("a handshake, with TCP"));
        println!("{}", self.sealed.row("the first of a domain"));
        println!("{}", self.open.row("the next one"));
    }
}

/// The domains, their certificates, and who trusts them.
struct World {
    domains: u32,
    hot: u32,
    sealer: Sealer,
    issuer: Issuer<'static, KeyPair>,
    issuer_pem: String,
    client: TlsConnector,
    /// Of every domain nobody asks for: a leaf, its key.
    cold: (String, Vec<u8>),
}

impl World {
    async fn new(edge: &Edge, store: &Store, arguments: &Arguments) -> anyhow::Result<Self> {
        let kek = Arc::new(Kek::from_file_or_new(&edge.kek())?);
        let sealer = Sealer::load(&kek, &StoreRows(Arc::clone(store))).await?;
        let (root_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = authority.clone().self_signed(&root_key)?;
        let root_der = root.der().clone();
        authority.distinguished_name.push(rcgen::DnType::CommonName, "X9");
        authority.custom_extensions.push(filler(ISSUER_EXTRA));
        let of_root = Issuer::new(CertificateParams::new(Vec::new())?, root_key);
        let intermediate = authority.signed_by(&key, &of_root)?;
        let issuer_pem = intermediate.pem().replace("\r\n", "\n");
        let issuer = Issuer::new(authority, key);
        let cold = leaf(&issuer, "nobody.example")?;
        let client = client(root_der)?;
        Ok(Self {
            domains: arguments.domains,
            hot: arguments.hot.min(arguments.domains),
            sealer,
            issuer,
            issuer_pem,
            client,
            cold,
        })
    }

    /// One that is asked for.
    fn hot(&self, number: u32) -> String {
        domain(number * (self.domains / self.hot))
    }

    /// Writes every row; the bytes of the last one.
    async fn fill(self: &Arc<Self>, store: &Store) -> anyhow::Result<usize> {
        let mut writers = tokio::task::JoinSet::new();
        for first in 0..WRITERS as u32 {
            let (this, store) = (Arc::clone(self), Arc::clone(store));
            writers.spawn(async move {
                let mut bytes = 0;
                for number in (first..this.domains).step_by(WRITERS) {
                    let (key, value) = this.domain_row(number)?;
                    store.compare_and_set(&key, None, Some(&value)).await?;
                    let (key, value) = this.certificate_of(number)?;
                    bytes = value.len();
                    store.compare_and_set(&key, None, Some(&value)).await?;
                }
                anyhow::Ok(bytes)
            });
        }
        let wild = "wild.first.sprites.test".to_owned();
        let (key, value) =
            self.certificate_row(wild, "*.sprites.test".into(), leaf(&self.issuer, "*.sprites.test")?, 0)?;
        store.compare_and_set(&key, None, Some(&value)).await?;
        // An edge that knows of no sprite gives the store more time before it listens.
        let sprite = (SpriteRow::key(&SpriteName::parse("some-sprite")?), cold_start::row(0, false).encode());
        store.compare_and_set(&sprite.0, None, Some(&sprite.1)).await?;
        let mut bytes = 0;
        while let Some(done) = writers.join_next().await {
            bytes = done??.max(bytes);
        }
        Ok(bytes)
    }

    fn domain_row(&self, number: u32) -> anyhow::Result<(String, Vec<u8>)> {
        let claim = Claim {
            tenant: format!("tenant-{}", number % 1_000),
            sprite: SpriteName::parse(&format!("sprite-{number}"))?,
            challenge: "x".repeat(43),
            claimed_at: acme::unix_now(),
            wildcard: false,
        };
        let holder = Holder { claim, proved_at: acme::unix_now(), missing_since: None, suspended_at: None };
        let row = DomainRow { holder: Some(holder), id: format!("{number:032x}"), ..DomainRow::empty() };
        Ok((DomainRow::key(&DomainName::parse(&domain(number))?), row.encode()))
    }

    fn certificate_of(&self, number: u32) -> anyhow::Result<(String, Vec<u8>)> {
        let name = domain(number);
        let is_hot = number.is_multiple_of(self.domains / self.hot);
        let certified = if is_hot { leaf(&self.issuer, &name)? } else { self.cold.clone() };
        // Some CA wants to be asked about each of them four times a day.
        let asked = scatter(number as usize) % (6 * 3_600);
        self.certificate_row(format!("domain.{name}"), name, certified, asked)
    }

    fn certificate_row(
        &self,
        wish: String,
        name: String,
        (leaf, key): (String, Vec<u8>),
        asked: u64,
    ) -> anyhow::Result<(String, Vec<u8>)> {
        let (now, day) = (acme::unix_now(), 24 * 3_600);
        let row = CertRow {
            names: vec![name],
            ca: "first".into(),
            generation: 1,
            chain: leaf + &self.issuer_pem,
            sealed_key: STANDARD.encode(self.sealer.seal(&sealed_as(&wish), 1, &key)?),
            not_before: now - day,
            not_after: now + 89 * day,
            issued_at: now - day,
            ari: Some("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE3QyE3QyE3QyE3QyE3".into()),
            window: Some(Window { start: now + 58 * day, end: now + 60 * day, ask_again: now + 600 + asked }),
            compromised: false,
            renew_asked: None,
            revocation: None,
        };
        Ok((cert_key(&wish, 1), row.encode()))
    }
}

fn domain(number: u32) -> String {
    format!("www.customer-{number}.example")
}

/// Bytes nothing looks at, as an extension of a certificate.
fn filler(bytes: usize) -> CustomExtension {
    // An OCTET STRING of that length.
    let length = bytes as u16;
    let content = [&[4, 0x82], &length.to_be_bytes()[..], &vec![0xa5; bytes]].concat();
    CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], content)
}

fn leaf(issuer: &Issuer<'_, KeyPair>, name: &str) -> anyhow::Result<(String, Vec<u8>)> {
    let key = KeyPair::generate()?;
    let mut leaf = CertificateParams::new(vec![name.to_owned()])?;
    leaf.custom_extensions.push(filler(LEAF_EXTRA));
    let leaf = leaf.signed_by(&key, issuer)?;
    Ok((leaf.pem().replace("\r\n", "\n"), key.serialize_der()))
}

fn client(root: CertificateDer<'static>) -> anyhow::Result<TlsConnector> {
    let mut store = RootCertStore::empty();
    store.add(root)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut client = client.with_root_certificates(store).with_no_client_auth();
    client.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(client)))
}

/// The edge, in a directory of its own.
struct Edge {
    program: PathBuf,
    directory: tempfile::TempDir,
    at: SocketAddr,
    child: Option<Child>,
}

impl Edge {
    /// Writes its configuration, and starts nothing.
    fn new(nats: &str) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("edge-proxy");
        ensure!(program.is_file(), "{} is not built: cargo build --release -p edge-proxy", program.display());
        let directory = tempfile::Builder::new().prefix("loadtest-").tempdir()?;
        let [at, dns] = free_addresses()?;
        let edge = Self { program, directory, at, child: None };
        // Nobody is there who would renew anything.
        let text = format!(
            "data_dir = {:?}\n[listen]\nhttps = [\"{at}\"]\nhttp = []\n[names]\nsuffixes = [\"sprites.test\"]\n\
             [store]\nengine = \"nats\"\n[store.nats]\nservers = [{nats:?}]\n[fleet]\nname = \"pop\"\n\
             [dns]\nlisten = [\"{dns}\"]\naddresses = [\"127.0.0.1\"]\nname_servers = [{{ name = \"ns.example.net\" }}]\n\
             [acme]\ndirectory = \"https://127.0.0.1:9/dir\"\nkek_file = {:?}\n",
            edge.data(),
            edge.kek(),
        );
        std::fs::write(edge.directory.path().join("edge.toml"), text)?;
        Ok(edge)
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn kek(&self) -> PathBuf {
        self.directory.path().join("kek")
    }

    fn spawn(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.program);
        command.args(["run", "--config"]).arg(self.directory.path().join("edge.toml")).env("RUST_LOG", "error");
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        self.child = Some(command.spawn()?);
        Ok(())
    }

    fn id(&self) -> anyhow::Result<u32> {
        self.child.as_ref().and_then(Child::id).context("the edge has ended")
    }

    /// Ends it as Ctrl-C does.
    async fn end(&mut self) -> anyhow::Result<()> {
        if let Some(pid) = Pid::from_raw(self.id()?.cast_signed()) {
            kill_process(pid, Signal::INT)?;
        }
        if let Some(mut child) = self.child.take() {
            child.wait().await?;
        }
        Ok(())
    }

    /// As the first visitor would notice; when that was.
    async fn until_it_answers_for(&mut self, world: &World, name: &str) -> anyhow::Result<u64> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.handshake(world, name).await {
                Ok(_) => return Ok(now_ns()),
                Err(error) => ensure!(Instant::now() < end, "{name} is not answered for: {error:#}"),
            }
            if let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                anyhow::bail!("the edge ended at once: {status}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Until it knows every certificate.
    async fn until_all_are_there(&self, world: &World) -> anyhow::Result<()> {
        let (admin, end) = (Admin::new(self.data().join("admin.sock")), Instant::now() + PATIENCE);
        loop {
            let served = admin.call(Method::GET, "/v1/status", None).await?["certificates"]["names"].as_u64();
            if served.context("the status has no number of names")? >= u64::from(world.domains) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "of {} certificates {served:?} are there", world.domains);
            tokio::time::sleep(LOOK * 50).await;
        }
    }

    /// From the first SYN to the last byte of the handshake, nanoseconds.
    async fn handshake(&self, world: &World, name: &str) -> anyhow::Result<u64> {
        let name = ServerName::try_from(name.to_owned())?;
        let began = now_ns();
        let stream = TcpStream::connect(self.at).await?;
        stream.set_nodelay(true)?;
        let stream = world.client.connect(name, stream).await?;
        let took = now_ns() - began;
        drop(stream);
        Ok(took)
    }

    /// A handshake for each of the hot ones.
    async fn ask_all(&self, world: &World) -> anyhow::Result<Vec<u64>> {
        let mut taken = Vec::new();
        for number in 0..world.hot {
            taken.push(self.handshake(world, &world.hot(number)).await?);
        }
        Ok(taken)
    }
}

/// The store, as `acme` knows stores.
struct StoreRows(Store);

fn error(error: StoreError) -> RowsError {
    match error {
        StoreError::Conflict { .. } => RowsError::Conflict,
        error => RowsError::Unavailable(error.to_string()),
    }
}

fn row(entry: Entry) -> Row {
    Row { key: entry.key, value: entry.value, version: entry.version }
}

impl Rows for StoreRows {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Row>> {
        Box::pin(async move { Ok(self.0.get(key).await.map_err(error)?.map(row)) })
    }

    fn scan<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Row>> {
        Box::pin(async move { Ok(self.0.scan(prefix).await.map_err(error)?.into_iter().map(row).collect()) })
    }

    fn compare_and_set<'a>(&'a self, key: &'a str, expected: Option<u64>, value: Option<&'a [u8]>) -> Answer<'a, u64> {
        Box::pin(async move { self.0.compare_and_set(key, expected, value).await.map_err(error) })
    }
}
