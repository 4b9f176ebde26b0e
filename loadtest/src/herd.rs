//! A herd: thousands of requests within a second at one sleeping sprite whose guest serves
//! one connection at a time, with a short backlog; and what its neighbour notices.
//!
//! Holds have their default bounds, so most of the herd is to be refused in a clean way. A
//! failure to connect to the guest is none of those: the bounds exist so that it never is.

use crate::bench::{Bench, Settings, need_files};
use crate::edge::{Line, Protocol, Visitor};
use crate::figures::Figures;
use crate::machine::{Facts, Steal};
use crate::orchestrator::{After, single_threaded_guest};
use anyhow::{Context, anyhow};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// What the guest's listener lets wait.
const BACKLOG: i32 = 50;
/// How long its machine takes to wake.
const WAKE_MS: u64 = 120;
/// Pause between two requests of the neighbour's visitor (chosen: a few hundred while the herd is there).
const NEIGHBOUR: Duration = Duration::from_millis(5);
/// Requests of the neighbour's visitor before the herd comes.
const BEFORE: usize = 500;
/// Codes of answers that say that a request was over a bound: refused before it waited.
const OVER_A_BOUND: [&str; 4] = ["hold_full", "client_hold_full", "tenant_hold_full", "edge_busy"];

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Requests.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    requests: u32,
    /// HTTP/2 connections they come on, opened before.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=2_000))]
    connections: u32,
    /// Spread evenly over so many milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 1_000)]
    within: u64,
    /// Exit with 1 when a request inside the bounds failed, or there was more than one start.
    #[arg(long)]
    check: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Answers by status and code; `lost` had none.
    answers: BTreeMap<String, usize>,
    /// 5xx that is no refusal over a bound, and what had no answer.
    failed_inside_bounds: usize,
    starts: usize,
    /// How long the requests that were answered 200 took.
    served: Option<Figures>,
    /// From the first request to the last answer.
    whole_ms: f64,
    /// A running sprite's round trips, before the herd and from its first request to its last answer.
    neighbour_before: Figures,
    neighbour_during: Option<Figures>,
    /// Resident memory of the edge before the herd, and the most there was, bytes.
    memory_before: u64,
    memory_peak: u64,
}

/// True when every target was met or none was to be.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let facts = Facts::now();
    need_files(u64::from(arguments.connections) * 2 + 1_024)?;
    let bench = Bench::start(&Settings::default()).await?;
    let steal = Steal::begin();
    let report = measure(&bench, &arguments).await;
    let steal = steal.percent();
    bench.stop().await?;
    let report = report?;
    let met = report.failed_inside_bounds == 0 && report.starts == 1;
    if arguments.json {
        println!("{}", json!({ "facts": facts, "stolen_percent": steal, "herd": report }));
        return Ok(met || !arguments.check);
    }
    print!("{}", facts.text());
    println!("stolen by the machine below: {steal:.1} % of the time wanted here\n");
    for (answer, count) in &report.answers {
        println!("  {answer:40} {count:>7}");
    }
    println!("\nstarts: {}; failed inside the bounds: {}", report.starts, report.failed_inside_bounds);
    println!("first request to last answer: {:.0} ms", report.whole_ms);
    println!("\n{}", Figures::head(""));
    let rows = [("answered 200", report.served), ("neighbour before", Some(report.neighbour_before))];
    for (name, figures) in rows.into_iter().chain([("neighbour during", report.neighbour_during)]) {
        println!("{}", figures.map_or_else(|| format!("  {name}: none"), |figures| figures.row(name)));
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("\nmemory before {:.1} MiB, peak {:.1} MiB", mib(report.memory_before), mib(report.memory_peak));
    Ok(met || !arguments.check)
}

async fn measure(bench: &Bench, arguments: &Arguments) -> anyhow::Result<Report> {
    let machines = &bench.machines;
    let herded =
        bench.create("herded", machines.driver(After::Millis(WAKE_MS), single_threaded_guest(BACKLOG)?)).await?;
    let neighbour = bench.create("neighbour", machines.driver(After::Millis(0), machines.guest())).await?;
    let neighbour_door = bench.door(Protocol::Http2)?;
    let mut visitor = Visitor::new(neighbour_door.clone(), neighbour.authority.clone());
    let mut before = Vec::new();
    for _ in 0..BEFORE {
        before.push(visitor.visit().await?.took_ns());
        tokio::time::sleep(NEIGHBOUR).await;
    }
    let door = bench.door(Protocol::Http2)?;
    let mut lines = Vec::new();
    for _ in 0..arguments.connections {
        lines.push(door.connect(&herded.authority).await?);
    }

    let (memory_before, _) = bench.memory()?;
    let over = watch::Sender::new(false);
    let mut ended = over.subscribe();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // On a thread of its own: what the herd's clients make each other wait is nobody's at the edge.
    let neighbour = std::thread::Builder::new().name("neighbour".into()).spawn(move || {
        runtime.block_on(async move {
            let (mut took, mut visitor) = (Vec::new(), Visitor::new(neighbour_door, neighbour.authority));
            // Its connection is made before it is timed.
            visitor.visit().await?;
            while !*ended.borrow_and_update() {
                took.push(visitor.visit().await?.took_ns());
                tokio::time::sleep(NEIGHBOUR).await;
            }
            anyhow::Ok(took)
        })
    })?;
    let began = Instant::now();
    let (answers, served) = stampede(&lines, &herded.authority, arguments).await?;
    let whole_ms = began.elapsed().as_secs_f64() * 1e3;
    over.send_replace(true);
    let during = neighbour.join().map_err(|_| anyhow!("the neighbour's thread"))?.context("the neighbour's visitor")?;
    let (_, memory_peak) = bench.memory()?;
    let failed = answers.iter().filter(|(answer, _)| is_failure(answer)).map(|(_, count)| count).sum();
    Ok(Report {
        failed_inside_bounds: failed,
        answers,
        starts: machines.wakes("herded").len(),
        served: Figures::of(served),
        whole_ms,
        neighbour_before: Figures::of(before).context("the neighbour was not asked")?,
        neighbour_during: Figures::of(during),
        memory_before,
        memory_peak,
    })
}

/// All requests; how many were answered how, and how long those with a 200 took.
async fn stampede(
    lines: &[Line],
    authority: &str,
    arguments: &Arguments,
) -> anyhow::Result<(BTreeMap<String, usize>, Vec<u64>)> {
    let pause = Duration::from_millis(arguments.within) / arguments.requests;
    let start = Instant::now();
    let mut asked = JoinSet::new();
    for (number, line) in (0..arguments.requests).zip(lines.iter().cycle()) {
        let mut line = line.share().context("one request at a time")?;
        let authority = authority.to_owned();
        asked.spawn(async move {
            tokio::time::sleep_until(start + pause * number).await;
            line.ask(&authority).await
        });
    }
    let (mut answers, mut served) = (BTreeMap::new(), Vec::new());
    while let Some(answer) = asked.join_next().await {
        let key = match answer? {
            Ok(answer) if answer.status == 200 => {
                served.push(answer.took_ns());
                "200".into()
            }
            Ok(answer) => {
                let said: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                format!("{} {}", answer.status.as_u16(), said["code"].as_str().unwrap_or("without a code"))
            }
            Err(_) => "lost".into(),
        };
        *answers.entry(key).or_insert(0) += 1;
    }
    Ok((answers, served))
}

/// Whether it is neither the guest's answer nor a refusal over a bound.
fn is_failure(answer: &str) -> bool {
    let (status, code) = answer.split_once(' ').unwrap_or((answer, ""));
    status != "200" && !(["429", "503"].contains(&status) && OVER_A_BOUND.contains(&code))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_refusal_over_a_bound_is_no_failure_and_all_else_is() {
        for (answer, failed) in [
            ("200", false),
            ("503 hold_full", false),
            ("429 client_hold_full", false),
            ("503 host_unreachable", true),
            ("502 port_closed", true),
            ("500 hold_full", true),
            ("lost", true),
        ] {
            assert_eq!(super::is_failure(answer), failed, "{answer}");
        }
    }
}
