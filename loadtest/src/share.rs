//! Our share of a wake: machines wake after a time that is known, the rest is the edge's.
//!
//! ```text
//! request sent ──ours──▶ owner asked ──its time──▶ it answers ──ours──▶ answer read
//! ```
//!
//! With `--owner product` it is an orchestrator that is asked, and the owner's work is in the figure too.
//!
//! Off the last part goes what the same client needs for the same guest without an edge
//! (HTTP/1.1 without TLS, median), after it was idle for as long as the machine takes: a
//! processor that slept is slow to begin. All else is ours: TLS and HTTP/2 of the client
//! too, the driver's request to the orchestrator, the look whether the port answers.

use crate::bench::{Bench, OwnerKind, Settings, Sprite};
use crate::edge::{Line, Protocol, Visitor};
use crate::figures::Figures;
use crate::machine::{Facts, Steal};
use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::json;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// Requests that are not counted: code pages in, caches warm.
const UNCOUNTED: usize = 3;
/// Round trips without a wake (chosen: a steady median), and how long they may take with the
/// idle time between them; some there are always.
const BARE: u64 = 500;
const BARE_MS: u64 = 10_000;
const BARE_MIN: u64 = 20;
/// What is asked of our share at p99, milliseconds.
const TARGET_MS: f64 = 1.0;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How long a machine takes to wake, milliseconds.
    #[arg(long, value_name = "MS,…", value_delimiter = ',', default_values_t = [0, 120, 300, 1500])]
    wake_ms: Vec<u64>,
    /// Wakes of each kind.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    cycles: u32,
    /// Who wakes them: an owner that knows only time, or the product's own with its driver `http`.
    #[arg(long, value_enum, default_value_t = OwnerKind::Fake)]
    owner: OwnerKind,
    /// Requests a second to another sprite, that runs, meanwhile: an edge that nobody else asks for 300 ms
    /// begins with cold caches. 0: none.
    #[arg(long, value_name = "PER SECOND", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=5_000))]
    beside: u32,
    /// Exit with 1 when the p99 of our share is above 1 ms anywhere.
    #[arg(long)]
    check: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Figures of one protocol, depth and time.
#[derive(Debug, Serialize)]
struct Row {
    protocol: Protocol,
    depth: &'static str,
    wake_ms: u64,
    cycles: u32,
    /// The guest without an edge, after as long an idle time.
    bare: Figures,
    /// From the request to its answer.
    total: Figures,
    /// What the orchestrator took, measured there.
    machine: Figures,
    /// The rest, less the round trip without an edge.
    ours: Figures,
    /// Ours before the orchestrator is asked, and after it answered.
    ours_before: Figures,
    ours_after: Figures,
}

/// One wake, nanoseconds.
struct Wake {
    total: u64,
    machine: u64,
    before: u64,
    after: u64,
}

/// True when every target was met or none was to be.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let facts = Facts::now();
    let bench = Bench::start_before(&Settings::default(), arguments.owner).await?;
    let steal = Steal::begin();
    let measured = measure(&bench, &arguments).await;
    let steal = steal.percent();
    bench.stop().await?;
    let (awake, rows) = measured?;
    let met = rows.iter().all(|row| row.ours.p99_ms <= TARGET_MS);
    if arguments.json {
        let report =
            json!({ "facts": facts, "stolen_percent": steal, "owner": arguments.owner, "awake": awake, "wakes": rows });
        println!("{report}");
        return Ok(met || !arguments.check);
    }
    print!("{}", facts.text());
    println!("stolen by the machine below: {steal:.1} % of the time wanted here\n");
    println!("{}", Figures::head("no wake"));
    for (protocol, figures) in &awake {
        println!("{}", figures.row(&format!("awake, through it, {protocol:?}").to_lowercase()));
    }
    for row in &rows {
        let title = format!("{:?} {} {} ms, {}", row.protocol, row.depth, row.wake_ms, row.cycles).to_lowercase();
        println!("\n{}", Figures::head(&title));
        println!("{}", row.bare.row("guest without an edge"));
        println!("{}", row.total.row("total"));
        println!("{}", row.machine.row("machine"));
        println!("{}", row.ours.row("ours"));
        println!("{}", row.ours_before.row("  before it is asked"));
        println!("{}", row.ours_after.row("  after it answered"));
    }
    let said = if met { "met" } else { "missed" };
    println!("\nours at p99, at most {TARGET_MS} ms everywhere: {said}");
    Ok(met || !arguments.check)
}

type Measured = (Vec<(Protocol, Figures)>, Vec<Row>);

async fn measure(bench: &Bench, arguments: &Arguments) -> anyhow::Result<Measured> {
    let (mut awake, mut rows) = (Vec::new(), Vec::new());
    let _beside = beside(bench, arguments.beside).await?;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        for &millis in &arguments.wake_ms {
            let name = format!("{protocol:?}-{millis}").to_lowercase();
            let sprite = bench.sprite(&name, Duration::from_millis(millis)).await?;
            let mut visitor = Visitor::new(bench.door(protocol)?, sprite.authority.clone());
            visitor.visit().await.context("the first visit")?;
            if awake.len() == rows.len() / (2 * arguments.wake_ms.len()) {
                awake.push((protocol, running(&mut visitor).await?));
            }
            let bare = bare(bench, millis).await?;
            let bare_ns = (bare.p50_ms * 1e6) as u64;
            for depth in ["warm", "cold"] {
                let wakes = wakes(bench, &sprite, &mut visitor, depth, arguments.cycles, bare_ns).await?;
                let of = |part: fn(&Wake) -> u64| Figures::of(wakes.iter().map(part).collect()).context("no wakes");
                rows.push(Row {
                    protocol,
                    depth,
                    wake_ms: millis,
                    cycles: arguments.cycles,
                    bare,
                    total: of(|wake| wake.total)?,
                    machine: of(|wake| wake.machine)?,
                    ours: of(|wake| wake.before + wake.after)?,
                    ours_before: of(|wake| wake.before)?,
                    ours_after: of(|wake| wake.after)?,
                });
            }
        }
    }
    Ok((awake, rows))
}

/// Visits a running sprite that often, until what is returned is dropped.
async fn beside(bench: &Bench, per_second: u32) -> anyhow::Result<JoinSet<anyhow::Result<()>>> {
    let mut visits = JoinSet::new();
    if per_second > 0 {
        let sprite = bench.sprite("beside", Duration::ZERO).await?;
        let mut visitor = Visitor::new(bench.door(Protocol::Http2)?, sprite.authority);
        visitor.visit().await.context("the visit beside")?;
        visits.spawn(async move {
            let mut turns = tokio::time::interval(Duration::from_secs(1) / per_second);
            turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                turns.tick().await;
                visitor.visit().await?;
            }
        });
    }
    Ok(visits)
}

/// The guest asked directly, each time after `idle_ms` of nothing.
async fn bare(bench: &Bench, idle_ms: u64) -> anyhow::Result<Figures> {
    let mut line = Line::plain(bench.machines.guest()).await?;
    let mut took = Vec::new();
    let times = BARE.min(BARE_MS / idle_ms.max(1)).max(BARE_MIN);
    for number in 0..UNCOUNTED as u64 + times {
        if idle_ms > 0 {
            tokio::time::sleep(Duration::from_millis(idle_ms)).await;
        }
        let answer = line.ask("guest").await?;
        if number >= UNCOUNTED as u64 {
            took.push(answer.took_ns());
        }
    }
    Figures::of(took).context("no round trips")
}

/// A running sprite, through the edge.
async fn running(visitor: &mut Visitor) -> anyhow::Result<Figures> {
    let mut took = Vec::new();
    for _ in 0..BARE {
        took.push(visitor.visit().await?.took_ns());
    }
    Figures::of(took).context("no round trips")
}

async fn wakes(
    bench: &Bench,
    sprite: &Sprite,
    visitor: &mut Visitor,
    depth: &str,
    cycles: u32,
    bare_ns: u64,
) -> anyhow::Result<Vec<Wake>> {
    let mut wakes = Vec::with_capacity(cycles as usize);
    for number in 0..UNCOUNTED + cycles as usize {
        bench.sleep(sprite, depth).await?;
        let known = bench.wakes(sprite).len();
        let visit = visitor.visit().await.with_context(|| format!("{depth} wake {number}"))?;
        let said = visit.headers.get("sprite-wake");
        ensure!(said.is_some_and(|said| said == depth), "no {depth} wake: {:?}", visit.headers);
        let seen = bench.wakes(sprite);
        ensure!(seen.len() == known + 1, "{} wakes for one request", seen.len() - known);
        let machine = seen[known];
        ensure!(
            visit.sent_ns <= machine.asked_ns && machine.answered_ns <= visit.answered_ns,
            "the wake was not for this request"
        );
        if number >= UNCOUNTED {
            wakes.push(Wake {
                total: visit.took_ns(),
                machine: machine.answered_ns - machine.asked_ns,
                before: machine.asked_ns - visit.sent_ns,
                after: (visit.answered_ns - machine.answered_ns).saturating_sub(bare_ns),
            });
        }
    }
    Ok(wakes)
}
