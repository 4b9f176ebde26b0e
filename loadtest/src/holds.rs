//! What a held request costs in memory: many at once, each of them held until all are.
//!
//! The growth of the edge's resident memory (`VmRSS`), over HTTP/2 and over HTTP/1.1 with a
//! TLS connection for each request, from before the first connection to when all are held.
//! An allocator keeps what was freed, so each protocol has an edge of its own.

use crate::bench::{Bench, Settings, Sprite, allow_files};
use crate::edge::{Door, Line, Protocol};
use crate::machine::Facts;
use crate::orchestrator::After;
use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::json;
use std::time::Duration;
use tokio::task::JoinSet;

/// Requests held for one sprite, the most that can be set.
const PER_SPRITE: usize = 1_024;
/// Requests on one HTTP/2 connection: the default of `limits.http2_streams`.
const STREAMS: usize = 100;
/// Handshakes at once (chosen: both cores have work, and no timeout comes near).
const HANDSHAKES: usize = 32;
/// The edge holds at most a quarter as many requests as it may open files (`hold.per_process`).
const FILES_PER_HOLD: u64 = 4;
/// How long until all are held. A hold without an answer ends after 10 s.
const HELD_WITHIN: Duration = Duration::from_secs(9);
/// What is asked of one hold, bytes.
const TARGET_HTTP2: u64 = 16 << 10;
const TARGET_HTTP1: u64 = 32 << 10;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Requests held at once; fewer when four times as many files may not be opened.
    #[arg(long, default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    holds: u32,
    /// Exit with 1 when a hold costs more than 16 KiB over HTTP/2, or 32 KiB over HTTP/1.1 with TLS.
    #[arg(long)]
    check: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Memory with one protocol, bytes.
#[derive(Debug, Serialize)]
struct Row {
    protocol: Protocol,
    holds: usize,
    connections: usize,
    /// Resident before the first connection, with all of them idle, with all requests held.
    before: u64,
    connected: u64,
    held: u64,
    /// Growth by one hold, its part of the connection included.
    per_hold: u64,
    target: u64,
}

/// True when every target was met or none was to be.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let facts = Facts::now();
    let wanted = u64::from(arguments.holds);
    let holds = wanted.min(allow_files(FILES_PER_HOLD * wanted) / FILES_PER_HOLD) as usize;
    if holds < arguments.holds as usize {
        eprintln!(
            "loadtest: {holds} holds, not {wanted}: more need {} open files (`ulimit -Hn`)",
            FILES_PER_HOLD * wanted
        );
    }
    let mut rows = Vec::new();
    for protocol in [Protocol::Http2, Protocol::Http1] {
        let limits =
            format!("per_sprite = {PER_SPRITE}\nper_client = {holds}\nper_tenant = {holds}\nper_process = {holds}");
        let bench = Bench::start(&Settings { hold: limits, ..Settings::default() }).await?;
        let row = measure(&bench, protocol, holds).await;
        bench.stop().await?;
        rows.push(row.with_context(|| format!("{protocol:?}"))?);
    }
    let met = rows.iter().all(|row| row.per_hold <= row.target);
    if arguments.json {
        println!("{}", json!({ "facts": facts, "holds": rows }));
        return Ok(met || !arguments.check);
    }
    print!("{}", facts.text());
    println!("\n                  holds  connections  before  connected    held  MiB   per hold   target  KiB");
    for row in &rows {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        println!(
            "  {:12} {:>8} {:>12} {:>7.1} {:>10.1} {:>7.1} {:>15.1} {:>8}",
            format!("{:?}", row.protocol).to_lowercase(),
            row.holds,
            row.connections,
            mib(row.before),
            mib(row.connected),
            mib(row.held),
            row.per_hold as f64 / 1024.0,
            row.target >> 10,
        );
    }
    println!("\nper hold at most the target: {}", if met { "met" } else { "missed" });
    Ok(met || !arguments.check)
}

async fn measure(bench: &Bench, protocol: Protocol, holds: usize) -> anyhow::Result<Row> {
    let warm = bench.create("warm", bench.machines.driver(After::Millis(0), bench.machines.guest())).await?;
    let door = bench.door(protocol)?;
    door.connect(&warm.authority).await?.ask(&warm.authority).await?;
    let mut sprites = Vec::new();
    for number in 0..holds.div_ceil(PER_SPRITE) {
        let driver = bench.machines.driver(After::Gate, bench.machines.guest());
        sprites.push(bench.create(&format!("held-{number}"), driver).await?);
    }
    let (before, _) = bench.memory()?;
    let lines = connect(&door, protocol, &sprites, holds).await?;
    let (connected, _) = bench.memory()?;
    let mut connections = 0;
    let mut asked = JoinSet::new();
    for (authority, mut line, requests) in lines {
        connections += 1;
        for _ in 1..requests {
            let (mut line, authority) = (line.share().context("one request at a time")?, authority.clone());
            asked.spawn(async move { line.ask(&authority).await });
        }
        asked.spawn(async move { line.ask(&authority).await });
    }
    bench.until_held(holds, HELD_WITHIN).await?;
    let (held, _) = bench.memory()?;
    bench.machines.open_gate();
    while let Some(answer) = asked.join_next().await {
        let answer = answer??;
        ensure!(answer.status == 200, "{}: {}", answer.status, String::from_utf8_lossy(&answer.body));
    }
    let target = if protocol == Protocol::Http2 { TARGET_HTTP2 } else { TARGET_HTTP1 };
    let per_hold = held.saturating_sub(before).div_ceil(holds as u64);
    Ok(Row { protocol, holds, connections, before, connected, held, per_hold, target })
}

/// As many connections as `holds` requests need, spread over the sprites, and how many requests each is to carry.
async fn connect(
    door: &Door,
    protocol: Protocol,
    sprites: &[Sprite],
    holds: usize,
) -> anyhow::Result<Vec<(String, Line, usize)>> {
    let each = if protocol == Protocol::Http2 { STREAMS } else { 1 };
    let (mut lines, mut making) = (Vec::new(), JoinSet::new());
    for (number, sprite) in sprites.iter().enumerate() {
        let of_sprite = PER_SPRITE.min(holds - number * PER_SPRITE);
        for first in (0..of_sprite).step_by(each) {
            if making.len() >= HANDSHAKES {
                lines.extend(making.join_next().await.transpose()?.transpose()?);
            }
            let (door, authority) = (door.clone(), sprite.authority.clone());
            making.spawn(async move {
                let line = door.connect(&authority).await?;
                anyhow::Ok((authority, line, each.min(of_sprite - first)))
            });
        }
    }
    while let Some(line) = making.join_next().await {
        lines.push(line??);
    }
    Ok(lines)
}
