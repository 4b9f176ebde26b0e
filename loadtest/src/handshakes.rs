//! Full TLS handshakes: the processor's time each costs the edge, beside HAProxy and nginx, all up at once.

use crate::admin::Admin;
use crate::machine::{Facts, Steal, processor};
use crate::servers::{find, free_addresses};
use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use rcgen::{CertificateParams, KeyPair};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::{ClientConfig, ClientConnection, RootCertStore, version};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Serialize;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// How long a program may take to start (chosen: each takes a tenth of a second).
const START: Duration = Duration::from_secs(20);
/// A handshake that takes so long has failed.
const LOST: Duration = Duration::from_secs(5);
/// After the last handshake of a turn, until a program is done with it.
const REST: Duration = Duration::from_millis(50);
/// The aim: HAProxy takes so many times as much.
const AIM: f64 = 2.0;
const NAME: &str = "brave-otter.sprites.test";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Turns of each program, one after the other; the median of them is the figure.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    rounds: u16,
    /// Handshakes in a turn.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    handshakes: u32,
    /// A further program that runs already: its name, its address, its process, the PEM file of a
    /// certificate to trust; it has to be on core 0 by itself (taskset).
    #[arg(long, value_name = "NAME,ADDRESS,PID,PEM")]
    peer: Vec<String>,
    /// Leave out HAProxy and nginx.
    #[arg(long)]
    alone: bool,
    /// Exit with 1 when HAProxy takes less than twice the edge's time, or another peer less than the edge.
    #[arg(long, conflicts_with = "alone")]
    check: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    facts: Facts,
    handshakes: u64,
    programs: Vec<Row>,
    steal_percent: f64,
}

/// What one program takes, µs of processor time for one handshake, the kernel's part included.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    median_us: f64,
    least_us: f64,
    /// In a second of processor time, by the median.
    per_processor_second: f64,
}

/// A program that is up. It ends when it is dropped, if it is ours.
struct Program {
    name: String,
    at: SocketAddr,
    id: u32,
    client: Arc<ClientConfig>,
    _child: Option<Child>,
    taken_us: Vec<f64>,
}

/// True when the aim was met or none was to be.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let facts = Facts::now();
    let directory = tempfile::Builder::new().prefix("loadtest-").tempdir()?;
    let mut programs = vec![edge(directory.path()).await?];
    if !arguments.alone {
        let files = certificate(directory.path())?;
        programs.push(haproxy(directory.path(), &files)?);
        programs.push(nginx(directory.path(), &files)?);
    }
    for peer in &arguments.peer {
        programs.push(given(peer)?);
    }
    // They have core 0; we have the other one, so that nobody waits for us there.
    stay_on_core(1);
    let steal = Steal::begin();
    for program in &mut programs {
        program.until_it_answers().await?;
        program.turn(arguments.handshakes / 10).await?;
    }
    programs.iter_mut().for_each(|program| program.taken_us.clear());
    for round in 0..usize::from(arguments.rounds) {
        // Whoever is first in one round is last in the next: no one is always beside the same.
        let count = programs.len();
        for turn in 0..count {
            programs[(round + turn) % count].turn(arguments.handshakes).await?;
        }
    }
    let report = Report {
        facts,
        handshakes: u64::from(arguments.rounds) * u64::from(arguments.handshakes),
        programs: programs.iter_mut().map(Program::row).collect(),
        steal_percent: steal.percent(),
    };
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    let edge = report.programs[0].median_us;
    let misses = |row: &Row| row.median_us < edge * if row.name == "haproxy" { AIM } else { 1.0 };
    Ok(!arguments.check || !report.programs[1..].iter().any(misses))
}

fn print(report: &Report) {
    println!("{}", report.facts.text());
    println!(
        "{:26} {:>9} {:>9} {:>12}   {} full handshakes each, nothing else; steal {:.1} %",
        "us of processor time", "median", "least", "in a second", report.handshakes, report.steal_percent
    );
    for Row { name, median_us, least_us, per_processor_second } in &report.programs {
        println!("  {name:24} {median_us:>9.1} {least_us:>9.1} {per_processor_second:>12.0}");
    }
}

impl Program {
    /// So many handshakes, one after another, each with nothing of an earlier one; then the connection is closed.
    async fn turn(&mut self, handshakes: u32) -> anyhow::Result<()> {
        let before = processor(self.id)?;
        for _ in 0..handshakes {
            self.handshake()?;
        }
        tokio::time::sleep(REST).await;
        let taken = processor(self.id)? - before;
        self.taken_us.push(taken.as_secs_f64() * 1e6 / f64::from(handshakes));
        Ok(())
    }

    fn handshake(&self) -> anyhow::Result<()> {
        let failed = || format!("a handshake with {} at {}", self.name, self.at);
        let mut stream = TcpStream::connect_timeout(&self.at, LOST).with_context(failed)?;
        stream.set_read_timeout(Some(LOST))?;
        stream.set_nodelay(true)?;
        let mut connection = ClientConnection::new(Arc::clone(&self.client), ServerName::try_from(NAME)?)?;
        while connection.is_handshaking() || connection.wants_write() {
            connection.complete_io(&mut stream).with_context(failed)?;
        }
        ensure!(connection.handshake_kind() == Some(rustls::HandshakeKind::Full), "{} resumed", self.name);
        connection.send_close_notify();
        connection.write_tls(&mut stream)?;
        stream.flush()?;
        stream.shutdown(std::net::Shutdown::Write)?;
        // Its tickets and its end: closed before they were read, it would meet a reset.
        let mut rest = [0; 4_096];
        loop {
            match stream.read(&mut rest) {
                Ok(0) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(anyhow!(error).context(failed())),
            }
        }
    }

    async fn until_it_answers(&self) -> anyhow::Result<()> {
        let end = Instant::now() + START;
        while let Err(error) = self.handshake() {
            ensure!(Instant::now() < end, "{} does not start: {error:#}", self.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn row(&mut self) -> Row {
        self.taken_us.sort_by(f64::total_cmp);
        let median_us = self.taken_us[self.taken_us.len() / 2];
        let per_processor_second = 1e6 / median_us;
        Row { name: self.name.clone(), median_us, least_us: self.taken_us[0], per_processor_second }
    }
}

/// Who trusts those, speaks TLS 1.3 with X25519 as all can, and keeps nothing.
fn client(roots: &[CertificateDer<'static>]) -> anyhow::Result<Arc<ClientConfig>> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone())?;
    }
    let mut provider = default_provider();
    provider.kx_groups = vec![kx_group::X25519];
    let mut client = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&version::TLS13])?
        .with_root_certificates(store)
        .with_no_client_auth();
    client.resumption = Resumption::disabled();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(client))
}

fn program(name: &str, at: SocketAddr, child: Child, roots: &[CertificateDer<'static>]) -> anyhow::Result<Program> {
    let id = child.id().with_context(|| format!("{name} has ended"))?;
    Ok(Program { name: name.to_owned(), at, id, client: client(roots)?, _child: Some(child), taken_us: Vec::new() })
}

/// The edge beside this program.
async fn edge(directory: &Path) -> anyhow::Result<Program> {
    let path = std::env::current_exe()?.with_file_name("edge-proxy");
    ensure!(path.is_file(), "{} is not built: cargo build --release -p edge-proxy", path.display());
    let (file, data, [at]) = (directory.join("edge.toml"), directory.join("data"), free_addresses()?);
    let text = format!(
        "data_dir = {data:?}\n[listen]\nhttps = [\"{at}\"]\nhttp = []\nworkers = 1\n\
         [names]\nsuffixes = [\"sprites.test\"]\n"
    );
    std::fs::write(&file, text)?;
    let child = on_core_0(&path, &["run", "--config", &file.display().to_string()])?;
    Admin::new(data.join("admin.sock")).started().await?;
    program("edge", at, child, &[CertificateDer::from_pem_file(data.join("ca.pem"))?])
}

/// Certificate and key of the peers, of the kind the edge has: ECDSA P-256.
struct Files {
    both: PathBuf,
    certificate: CertificateDer<'static>,
}

fn certificate(directory: &Path) -> anyhow::Result<Files> {
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec![NAME.to_owned()])?.self_signed(&key)?;
    let both = directory.join("both.pem");
    std::fs::write(&both, certificate.pem() + &key.serialize_pem())?;
    Ok(Files { both, certificate: certificate.der().clone() })
}

fn haproxy(directory: &Path, files: &Files) -> anyhow::Result<Program> {
    let path = find("haproxy").context("haproxy is not on PATH (Debian: haproxy), or say --alone")?;
    let (file, [at]) = (directory.join("haproxy.cfg"), free_addresses()?);
    let text = format!(
        "global\n  nbthread 1\n  maxconn 9000\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n\
         \x20 timeout server 60s\nfrontend f\n  bind {at} ssl crt {} alpn h2,http/1.1\n  default_backend b\n\
         backend b\n  server s 127.0.0.1:9\n",
        files.both.display()
    );
    std::fs::write(&file, text)?;
    let child = on_core_0(&path, &["-db", "-f", &file.display().to_string()])?;
    program("haproxy", at, child, std::slice::from_ref(&files.certificate))
}

fn nginx(directory: &Path, files: &Files) -> anyhow::Result<Program> {
    let path = find("nginx").context("nginx is not on PATH (Debian: nginx-light), or say --alone")?;
    let (file, [at]) = (directory.join("nginx.conf"), free_addresses()?);
    let both = files.both.display();
    let text = format!(
        "daemon off; master_process off; worker_processes 1; pid nginx.pid; error_log /dev/null;\n\
         events {{ worker_connections 9000; }}\n\
         http {{ access_log off; server {{ listen {at} ssl http2;\n\
         ssl_certificate {both}; ssl_certificate_key {both}; ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:a:10m;\n\
         location / {{ return 204; }} }} }}\n"
    );
    std::fs::write(&file, text)?;
    let folder = format!("{}/", directory.display());
    let child = on_core_0(&path, &["-p", &folder, "-c", &file.display().to_string()])?;
    program("nginx", at, child, std::slice::from_ref(&files.certificate))
}

/// One that runs already.
fn given(peer: &str) -> anyhow::Result<Program> {
    let [name, at, id, pem] = peer.split(',').collect::<Vec<_>>()[..] else {
        bail!("--peer {peer:?}: needs NAME,ADDRESS,PID,PEM");
    };
    let at = at.parse().with_context(|| format!("--peer {peer:?}: {at:?} is no address"))?;
    let id = id.parse().with_context(|| format!("--peer {peer:?}: {id:?} is no process"))?;
    let root = CertificateDer::from_pem_file(pem).with_context(|| format!("--peer {peer:?}: certificate {pem}"))?;
    let client = client(&[root])?;
    Ok(Program { name: name.to_owned(), at, id, client, _child: None, taken_us: Vec::new() })
}

fn on_core_0(path: &Path, arguments: &[&str]) -> anyhow::Result<Child> {
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(path).args(arguments).env("RUST_LOG", "warn").kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().with_context(|| format!("starting {} by taskset (Debian: util-linux)", path.display()))
}

/// This thread alone; a machine with one core leaves it where it is, and the figures are of one that is shared.
fn stay_on_core(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        eprintln!("loadtest: not on core {core} ({error}): the figures are of a core that is shared");
    }
}
