//! Many different sprites woken at once by one edge, each by one request.
//!
//! Every sprite has a connection that is open before. On a machine where the client, the
//! orchestrator and the guests share the cores with the edge, a burst measures how long all
//! of their work takes one after the other; `--within` spreads the requests.

use crate::bench::{Bench, OwnerKind, Settings, Sprite, need_files};
use crate::clock::now_ns;
use crate::edge::{Door, Line, Protocol};
use crate::figures::Figures;
use crate::machine::{Facts, Steal};
use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::json;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// What is asked of our share at p99, milliseconds.
const TARGET_MS: f64 = 5.0;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Sprites.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=4096))]
    sprites: u32,
    /// How long a machine takes to wake, milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 120)]
    wake_ms: u64,
    /// Send the requests evenly spread over so many milliseconds; 0 sends all at once.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    within: u64,
    /// Who wakes them: an owner that knows only time, or the product's own with its driver `http`.
    #[arg(long, value_enum, default_value_t = OwnerKind::Fake)]
    owner: OwnerKind,
    /// Exit with 1 when the p99 of our share is above 5 ms.
    #[arg(long)]
    check: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    sprites: usize,
    /// The same requests to the guest without an edge and without a wake, at the same pace.
    bare: Figures,
    /// From the request to its answer.
    total: Figures,
    /// What the orchestrator took, measured there.
    machine: Figures,
    /// The rest, less the median of the round trips without an edge.
    ours: Figures,
    ours_before: Figures,
    ours_after: Figures,
    /// From the first request to the last answer.
    whole_ms: f64,
    /// Processor time of the edge for it, milliseconds, all threads.
    edge_cpu_ms: u64,
}

/// True when every target was met or none was to be.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let facts = Facts::now();
    let sprites = arguments.sprites as usize;
    // A client, a wake and a stream to the guest each; a quarter of all for holds.
    need_files(8 * sprites as u64 + 1_024)?;
    let hold = format!(
        "per_client = {sprites}\nper_tenant = {sprites}\nflights = {}\nflights_per_host = {}",
        4 * sprites,
        4 * sprites
    );
    let settings = Settings { hold, host: format!("start_slots = {sprites}") };
    let bench = Bench::start_before(&settings, arguments.owner).await?;
    let steal = Steal::begin();
    let report = measure(&bench, &arguments).await;
    let steal = steal.percent();
    bench.stop().await?;
    let report = report?;
    let met = report.ours.p99_ms <= TARGET_MS;
    if arguments.json {
        println!("{}", json!({ "facts": facts, "stolen_percent": steal, "owner": arguments.owner, "fan_out": report }));
        return Ok(met || !arguments.check);
    }
    print!("{}", facts.text());
    println!("stolen by the machine below: {steal:.1} % of the time wanted here\n");
    println!("{}", Figures::head(&format!("{sprites} sprites")));
    println!("{}", report.bare.row("guest without an edge"));
    println!("{}", report.total.row("total"));
    println!("{}", report.machine.row("machine"));
    println!("{}", report.ours.row("ours"));
    println!("{}", report.ours_before.row("  before it is asked"));
    println!("{}", report.ours_after.row("  after it answered"));
    println!(
        "\nfirst request to last answer: {:.0} ms; processor time of the edge: {} ms",
        report.whole_ms, report.edge_cpu_ms
    );
    println!("ours at p99, at most {TARGET_MS} ms: {}", if met { "met" } else { "missed" });
    Ok(met || !arguments.check)
}

async fn measure(bench: &Bench, arguments: &Arguments) -> anyhow::Result<Report> {
    let count = arguments.sprites as usize;
    let mut sprites = Vec::with_capacity(count);
    for number in 0..count {
        let wakes_in = Duration::from_millis(arguments.wake_ms);
        sprites.push(bench.sprite(&format!("many-{number}"), wakes_in).await?);
    }
    let pause = Duration::from_millis(arguments.within) / arguments.sprites;
    let mut plain = Vec::with_capacity(count);
    for _ in 0..count {
        plain.push((String::from("guest"), Line::plain(bench.machines.guest()).await?));
    }
    let bare: Vec<u64> = ask_all(plain, pause).await?.iter().map(|&(_, sent, answered)| answered - sent).collect();
    let bare = Figures::of(bare).context("no round trips")?;

    let door = bench.door(Protocol::Http2)?;
    let lines = connect(&door, &sprites).await?;
    let (cpu, began) = (bench.processor_ms()?, now_ns());
    let answers = ask_all(lines, pause).await?;
    let whole_ms = (now_ns() - began) as f64 / 1e6;
    let edge_cpu_ms = bench.processor_ms()? - cpu;

    let bare_ns = (bare.p50_ms * 1e6) as u64;
    let (mut total, mut machine, mut ours, mut before, mut after) = (vec![], vec![], vec![], vec![], vec![]);
    for (authority, sent, answered) in answers {
        let sprite = sprites.iter().find(|sprite| sprite.authority == authority).context("a stranger answered")?;
        let wakes = bench.wakes(sprite);
        ensure!(wakes.len() == 1, "{} was woken {} times", sprite.name, wakes.len());
        let (first, last) = (wakes[0].asked_ns - sent, (answered - wakes[0].answered_ns).saturating_sub(bare_ns));
        total.push(answered - sent);
        machine.push(wakes[0].answered_ns - wakes[0].asked_ns);
        ours.push(first + last);
        before.push(first);
        after.push(last);
    }
    let of = |values| Figures::of(values).context("no wakes");
    Ok(Report {
        sprites: count,
        bare,
        total: of(total)?,
        machine: of(machine)?,
        ours: of(ours)?,
        ours_before: of(before)?,
        ours_after: of(after)?,
        whole_ms,
        edge_cpu_ms,
    })
}

async fn connect(door: &Door, sprites: &[Sprite]) -> anyhow::Result<Vec<(String, Line)>> {
    let mut lines = Vec::with_capacity(sprites.len());
    for sprite in sprites {
        lines.push((sprite.authority.clone(), door.connect(&sprite.authority).await?));
    }
    Ok(lines)
}

/// One request on each line, `pause` apart; whom it was for, when it was sent and when answered.
async fn ask_all(lines: Vec<(String, Line)>, pause: Duration) -> anyhow::Result<Vec<(String, u64, u64)>> {
    let start = Instant::now();
    let mut asked = JoinSet::new();
    for (number, (authority, mut line)) in (0..).zip(lines) {
        asked.spawn(async move {
            tokio::time::sleep_until(start + pause * number).await;
            let answer = line.ask(&authority).await?;
            ensure!(answer.status == 200, "{}: {}", answer.status, String::from_utf8_lossy(&answer.body));
            Ok((authority, answer.sent_ns, answer.answered_ns))
        });
    }
    let mut answers = Vec::with_capacity(asked.len());
    while let Some(answer) = asked.join_next().await {
        answers.push(answer??);
    }
    Ok(answers)
}
