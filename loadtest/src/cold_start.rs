//! From exec to the first request that is answered 200, by an edge that finds many routes of its
//! last run on disk.
//!
//! The sprite that is asked for sleeps, in a machine that wakes at once, and its route is one of
//! the many. The store has that one row alone: the other routes are of the file, and are served on because
//! too many are missing at once (docs/stores.md), which is more work than a store that has them all.

use crate::bench::{Bench, Settings};
use crate::clock::now_ns;
use crate::edge::{Door, Protocol};
use crate::figures::Figures;
use crate::machine::Facts;
use crate::orchestrator::After;
use crate::table;
use anyhow::{Context, ensure};
use clap::Args;
use router::access::{Access, Key, Private};
use router::route::{Generation, HostId};
use router::rows::{ROW_VERSION, SpriteRow};
use serde::Serialize;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// From exec to the first answer (chosen: nobody's visitors wait longer for a restart).
const AIM_MS: f64 = 2_000.0;
/// How long one start may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(120);
/// Pause between two attempts.
const LOOK: Duration = Duration::from_millis(2);
/// The file of the last run's routes (docs/stores.md).
const FILE: &str = "routes.last-known-good";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Routes in the file.
    #[arg(long, default_value_t = 1_000_000)]
    routes: usize,
    /// Every sprite is private, with a token and a key for share links of its own.
    #[arg(long)]
    private: bool,
    /// Starts.
    #[arg(long, default_value_t = 3)]
    starts: usize,
    /// Exit with 1 when the slowest start misses the aim of 2 s.
    #[arg(long)]
    check: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    facts: Facts,
    routes: u64,
    file_mib: f64,
    /// From exec to the end of the first answer.
    first_answer: Figures,
    /// The first connection that was accepted.
    accepts: Figures,
    /// The edge's memory after the last start, and its most, MiB.
    memory_mib: (u64, u64),
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    ensure!(arguments.starts > 0, "--starts: at least one");
    let facts = Facts::now();
    let mut bench = Bench::start(&Settings::default()).await?;
    let driver = bench.machines.driver(After::Millis(0), bench.machines.guest());
    let sprite = bench.create("first", driver).await?;
    let door = bench.door(Protocol::Http1)?;
    let file = bench.data().join(FILE);
    until_written(&file, &sprite.name).await?;
    bench.halt().await?;
    let (kept, file_mib) = write_routes(&file, &arguments)?;

    let (mut answered, mut accepted) = (Vec::new(), Vec::new());
    let mut routes = 0;
    let mut memory = (0, 0);
    for _ in 0..arguments.starts {
        std::fs::copy(&kept, &file)?;
        let began = now_ns();
        bench.again()?;
        let (accept, answer) = first_answer(&door, &sprite.authority).await?;
        accepted.push(accept - began);
        answered.push(answer - began);
        routes = bench.status().await?["routes"].as_u64().context("the status has no number of routes")?;
        let (now, most) = bench.memory()?;
        memory = (now >> 20, most >> 20);
        bench.halt().await?;
    }
    bench.stop().await?;
    // Of ten million names, one in 400 is another one's too.
    ensure!(routes >= arguments.routes as u64 * 99 / 100, "only {routes} routes were loaded");
    let figures = |taken| Figures::of(taken).context("no start");
    let (first_answer, accepts) = (figures(answered)?, figures(accepted)?);
    let report = Report { facts, routes, file_mib, first_answer, accepts, memory_mib: memory };
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{}", report.facts.text());
        println!("  {} routes in a file of {:.0} MiB", report.routes, report.file_mib);
        println!("  memory of the edge: {} MiB, {} at the most", report.memory_mib.0, report.memory_mib.1);
        println!("{}", Figures::head("from exec"));
        println!("{}", report.accepts.row("to the first accept"));
        println!("{}", report.first_answer.row("to the first 200"));
    }
    Ok(!arguments.check || report.first_answer.max_ms <= AIM_MS)
}

async fn until_written(file: &Path, name: &str) -> anyhow::Result<()> {
    let end = Instant::now() + PATIENCE;
    while !std::fs::read_to_string(file).is_ok_and(|text| text.contains(&format!("\n{name} "))) {
        ensure!(Instant::now() < end, "{} is not written", file.display());
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Adds the routes to a copy of the file; where it is, and its size in MiB.
fn write_routes(file: &Path, arguments: &Arguments) -> anyhow::Result<(std::path::PathBuf, f64)> {
    let kept = file.with_extension("kept");
    std::fs::copy(file, &kept)?;
    let mut lines = BufWriter::new(std::fs::File::options().append(true).open(&kept)?);
    for number in 0..arguments.routes {
        write!(lines, "{} ", table::name(number)?)?;
        lines.write_all(&row(number, arguments.private).encode())?;
        lines.write_all(b"\n")?;
    }
    lines.flush()?;
    let size = std::fs::metadata(&kept)?.len();
    Ok((kept, size as f64 / f64::from(1 << 20)))
}

/// As the last run writes them.
pub(crate) fn row(number: usize, private: bool) -> SpriteRow {
    let key = |salt: u64| {
        let words = [0, 1, 2, 3].map(|word| table::scatter(number * 8 + word) ^ salt);
        let mut bytes = [0; 32];
        bytes.chunks_exact_mut(8).zip(words).for_each(|(part, word)| part.copy_from_slice(&word.to_le_bytes()));
        Key(bytes)
    };
    let access = match private {
        true => Access::Private(Arc::new(Private { tokens: vec![key(0)], share_key: Some(key(1)), cors: None })),
        false => Access::Public,
    };
    SpriteRow {
        version: ROW_VERSION,
        tenant: String::new(),
        generation: Generation(1),
        host: HostId(0),
        ports: Vec::new(),
        access,
        wake: router::wake::WakeRules::default(),
        client_certificate: None,
        deleted: false,
        proof: router::placement::Proof::default(),
    }
}

/// When the edge accepted first, and when it had answered 200.
async fn first_answer(door: &Door, authority: &str) -> anyhow::Result<(u64, u64)> {
    let end = Instant::now() + PATIENCE;
    let mut accepted = None;
    let mut said = String::new();
    while Instant::now() < end {
        if let Ok(mut line) = door.connect(authority).await {
            accepted.get_or_insert_with(now_ns);
            match line.ask(authority).await {
                Ok(answer) if answer.status.is_success() => {
                    return Ok((accepted.unwrap_or(answer.answered_ns), answer.answered_ns));
                }
                Ok(answer) => said = answer.status.to_string(),
                Err(error) => said = error.to_string(),
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    anyhow::bail!("no answer 200 within {PATIENCE:?}; the last was: {said}")
}
