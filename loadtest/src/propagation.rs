//! From a write to the store to the table of another process, on the machine's own clock.
//!
//! The other process is this program again: it follows the store as an edge does
//! ([`router::apply::follow`]), looks one name up every few dozen microseconds and says when it saw a new generation.
//! An embedded store is of one process; there the other end is a thread.

use crate::clock::now_ns;
use crate::figures::Figures;
use crate::machine::{Facts, Steal};
use crate::servers::{Engine, Server};
use crate::table;
use anyhow::{Context, ensure};
use clap::Args;
use router::access::Access;
use router::apply::publish;
use router::names::SpriteName;
use router::route::{Generation, HostId};
use router::rows::{ROW_VERSION, SpriteRow};
use router::store::{Store, StoreError};
use router::table::{Lookup, RouteTable};
use serde::Serialize;
use std::io::Write;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// From the write to the table, on loopback.
const AIM_MS: f64 = 5.0;
/// The name whose generation goes up.
const PROBE: &str = "probe";
/// Between two looks of the other end: with the kernel's own slack of 50 µs, what the figures are exact to.
const LOOK: Duration = Duration::from_micros(20);
/// How long the other end may take to see one write, and a row to be written that is not measured.
const PATIENCE: Duration = Duration::from_secs(60);
/// Writes that are not counted: code pages in, connections are made.
const UNCOUNTED: u64 = 20;
/// Pause before a store that was busy is asked to write the same row again.
const AGAIN: Duration = Duration::from_millis(50);
/// Rows written at once while the store is filled.
const FILL: usize = 64;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The store.
    #[arg(long, value_enum)]
    engine: Engine,
    /// Writes, one after the other: the next when the last was seen.
    #[arg(long, default_value_t = 3_000)]
    puts: u64,
    /// Pause after each, milliseconds; drawn between nothing and this.
    #[arg(long, default_value_t = 4)]
    pause_ms: u64,
    /// Other rows in the store.
    #[arg(long, default_value_t = 0)]
    rows: usize,
    /// Exit with 1 when the p99 misses the aim of 5 ms.
    #[arg(long)]
    check: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The other process.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    #[arg(long, value_enum)]
    engine: Engine,
    #[arg(long)]
    address: String,
}

#[derive(Debug, Serialize)]
struct Report {
    facts: Facts,
    engine: Engine,
    puts: u64,
    rows: usize,
    /// From the call that writes to the table of the other process.
    visible: Figures,
    /// From the same call to its acknowledgement: the store's own part of it, and its disk's.
    acknowledged: Figures,
    /// From the acknowledgement to the table; nothing when the table was first.
    after_acknowledgement: Figures,
    steal_percent: f64,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let facts = Facts::now();
    let (server, store) = Server::start(arguments.engine).await?;
    fill(&store, arguments.rows).await?;
    let mut other = Other::start(arguments.engine, &server.address, &store).await?;
    let name = SpriteName::parse(PROBE)?;
    let (mut version, mut steal) = (None, Steal::begin());
    let (mut visible, mut acknowledged, mut after) = (Vec::new(), Vec::new(), Vec::new());
    for generation in 1..=UNCOUNTED + arguments.puts {
        if generation == UNCOUNTED + 1 {
            steal = Steal::begin();
        }
        let row = row(generation);
        let began = now_ns();
        version = Some(publish(&*store, &name, &row, version).await?);
        let said = now_ns();
        let seen = other.sees(generation).await?;
        if generation > UNCOUNTED {
            visible.push(seen.saturating_sub(began));
            acknowledged.push(said - began);
            after.push(seen.saturating_sub(said));
        }
        let pause = table::scatter(generation as usize) % (arguments.pause_ms * 1_000 + 1);
        tokio::time::sleep(Duration::from_micros(pause)).await;
    }
    let figures = |taken| Figures::of(taken).context("--puts: at least one");
    let report = Report {
        facts,
        engine: arguments.engine,
        puts: arguments.puts,
        rows: arguments.rows,
        visible: figures(visible)?,
        acknowledged: figures(acknowledged)?,
        after_acknowledgement: figures(after)?,
        steal_percent: steal.percent(),
    };
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{}", report.facts.text());
        println!("  {} writes beside {} rows; steal {:.1} %", report.puts, report.rows, report.steal_percent);
        println!("{}", Figures::head("from the write"));
        println!("{}", report.acknowledged.row("to its acknowledgement"));
        println!("{}", report.after_acknowledgement.row("from there to the table"));
        println!("{}", report.visible.row("to the other's table"));
    }
    Ok(!arguments.check || report.visible.p99_ms <= AIM_MS)
}

fn row(generation: u64) -> SpriteRow {
    SpriteRow {
        version: ROW_VERSION,
        tenant: "t".into(),
        generation: Generation(generation),
        host: HostId(0),
        ports: Vec::new(),
        access: Access::Public,
        wake: router::wake::WakeRules::default(),
        client_certificate: None,
        deleted: false,
        proof: router::placement::Proof::default(),
    }
}

/// Other rows, [`FILL`] at once.
async fn fill(store: &Store, rows: usize) -> anyhow::Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for first in 0..FILL.min(rows) {
        let store = Arc::clone(store);
        tasks.spawn(async move {
            for number in (first..rows).step_by(FILL) {
                let (key, value) = (SpriteRow::key(&table::name(number)?), row(1).encode());
                let end = Instant::now() + PATIENCE;
                loop {
                    match store.compare_and_set(&key, None, Some(&value)).await {
                        // Another one has this name, or it was written although nobody said so.
                        Ok(_) | Err(StoreError::Conflict { .. }) => break,
                        Err(StoreError::Unavailable(_) | StoreError::Uncertain(_)) if Instant::now() < end => {
                            tokio::time::sleep(AGAIN).await;
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// What the other end says.
struct Other {
    seen: mpsc::UnboundedReceiver<(u64, u64)>,
    _child: Option<Child>,
}

impl Other {
    /// Starts it, and waits until it follows.
    async fn start(engine: Engine, address: &str, store: &Store) -> anyhow::Result<Self> {
        let (says, seen) = mpsc::unbounded_channel();
        let child = match engine {
            Engine::Embedded => {
                let store = Arc::clone(store);
                std::thread::Builder::new().name("watch".into()).spawn(move || {
                    follow_and_watch(async move { Ok(store) }, |generation, at| says.send((generation, at)).is_ok())
                })?;
                None
            }
            Engine::Nats | Engine::Etcd => {
                let mut child = Command::new(std::env::current_exe()?)
                    .args(["watch", "--address", address, "--engine"])
                    .arg(format!("{engine:?}").to_lowercase())
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .kill_on_drop(true)
                    .spawn()?;
                let mut lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
                tokio::spawn(async move {
                    while let Ok(Some(line)) = lines.next_line().await {
                        let numbers = line.split_once(' ').map(|(one, other)| (one.parse(), other.parse()));
                        if let Some((Ok(generation), Ok(at))) = numbers
                            && says.send((generation, at)).is_err()
                        {
                            return;
                        }
                    }
                });
                Some(child)
            }
        };
        let mut other = Self { seen, _child: child };
        // It says generation 0 when its table is that of the store.
        other.sees(0).await?;
        Ok(other)
    }

    /// When it saw this generation.
    async fn sees(&mut self, generation: u64) -> anyhow::Result<u64> {
        let said = tokio::time::timeout(PATIENCE, self.seen.recv()).await;
        let (seen, at) = said.context("the other end does not see it")?.context("the other end has ended")?;
        ensure!(seen == generation, "the other end saw generation {seen}, not {generation}");
        Ok(at)
    }
}

/// The other process: one line `GENERATION NANOSECONDS` for each that is seen, until nobody reads them.
pub(crate) fn watch(arguments: &Watch) -> anyhow::Result<()> {
    let Watch { engine, address } = arguments;
    let (engine, address) = (*engine, address.clone());
    follow_and_watch(async move { engine.open(&address).await }, |generation, at| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{generation} {at}").and_then(|()| out.flush()).is_ok()
    })
}

/// Follows a store on a thread of its own, as an edge does, and looks from this one.
fn follow_and_watch(
    open: impl Future<Output = anyhow::Result<Store>> + Send + 'static,
    mut say: impl FnMut(u64, u64) -> bool,
) -> anyhow::Result<()> {
    let table = Arc::new(RouteTable::new());
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("routes");
    let followed = Arc::clone(&table);
    std::thread::Builder::new().name("follow".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            router::apply::follow(open.await?, followed, file).await;
            anyhow::Ok(())
        })
    })?;
    while !table.followed().is_synced() {
        std::thread::park_timeout(LOOK);
    }
    let mut last = 0;
    if !say(0, now_ns()) {
        return Ok(());
    }
    loop {
        if let Lookup::Found(route) = table.lookup(PROBE)
            && route.generation.0 > last
        {
            last = route.generation.0;
            if !say(last, now_ns()) {
                return Ok(());
            }
        }
        std::thread::park_timeout(LOOK);
    }
}
