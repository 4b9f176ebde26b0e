//! The routing table in memory: bytes per route, what a lookup costs, and whether readers notice
//! a writer. In-process, since no socket could show nanoseconds.

use crate::figures::Figures;
use crate::machine::Facts;
use clap::Args;
use router::access::Access;
use router::names::SpriteName;
use router::route::{Generation, HostId, Route, Tenant};
use router::table::{Lookup, RouteTable};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Names that are asked for again and again (`routing.md` §1).
const HOT: usize = 10_000;
/// Lookups of one measurement.
const LOOKUPS: usize = 2_000_000;
/// The writer writes so many at a time, then waits for its next turn.
const BATCH: usize = 50;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Routes in the table.
    #[arg(long, default_value_t = 1_000_000)]
    routes: usize,
    /// Updates a second while readers are measured.
    #[arg(long, default_value_t = 50_000)]
    updates: usize,
    /// Seconds of each measurement beside the writer.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Exit with 1 when a figure misses its aim (routing.md §1).
    #[arg(long)]
    check: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    facts: Facts,
    routes: usize,
    fill_s: f64,
    bytes_per_route: f64,
    hot_ns: f64,
    uniform_ns: f64,
    dashmap_hot_ns: f64,
    dashmap_uniform_ns: f64,
    dashmap_bytes_per_route: f64,
    quiet: Figures,
    beside_writer: Figures,
    updates_per_second: f64,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let facts = Facts::now();
    let names: Vec<SpriteName> = (0..arguments.routes).map(name).collect::<Result<_, _>>()?;
    // Measured first: what is freed later is not given back to the system in an order of its own.
    let before = resident()?;
    let began = Instant::now();
    let table = RouteTable::new();
    for (number, name) in names.iter().enumerate() {
        table.apply_put(name, route(number, 1));
    }
    table.followed().mark_synced();
    let fill_s = began.elapsed().as_secs_f64();
    let bytes_per_route = per_route(before, resident()?, table.len());
    let hot = spread(&names, HOT);
    let find = |name: &SpriteName| matches!(table.lookup(name), Lookup::Found(_));
    let (hot_ns, uniform_ns) = (cpu_ns(&hot, &find), cpu_ns(&names, &find));

    let alone = latencies(&table, &hot, arguments.seconds, None);
    let beside = latencies(&table, &hot, arguments.seconds, Some((&names, arguments.updates)));

    let before = resident()?;
    let other = dashmap::DashMap::new();
    for (number, name) in names.iter().enumerate() {
        other.insert(name.clone(), route(number, 1));
    }
    let dashmap_bytes_per_route = per_route(before, resident()?, other.len());
    let find = |name: &SpriteName| other.get(name).map(|route| route.clone()).is_some();
    let (dashmap_hot_ns, dashmap_uniform_ns) = (cpu_ns(&hot, &find), cpu_ns(&names, &find));

    let report = Report {
        facts,
        routes: table.len(),
        fill_s,
        bytes_per_route,
        hot_ns,
        uniform_ns,
        dashmap_hot_ns,
        dashmap_uniform_ns,
        dashmap_bytes_per_route,
        quiet: alone.0,
        beside_writer: beside.0,
        updates_per_second: beside.1,
    };
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    Ok(!arguments.check || report.meets(arguments))
}

impl Report {
    fn meets(&self, arguments: &Arguments) -> bool {
        self.bytes_per_route <= 100.0
            && self.hot_ns <= 200.0
            && self.uniform_ns <= 900.0
            && self.updates_per_second >= 0.99 * arguments.updates as f64
            && self.beside_writer.p99_ms <= 1.1 * self.quiet.p99_ms
    }
}

fn print(report: &Report) {
    println!("{}", report.facts.text());
    println!("  {} routes in {:.2} s, {:.1} bytes each", report.routes, report.fill_s, report.bytes_per_route);
    println!(
        "  lookup, processor time: {:.0} ns of {HOT} hot names, {:.0} ns over all",
        report.hot_ns, report.uniform_ns
    );
    println!(
        "  dashmap with the same keys and owned routes: {:.1} bytes, {:.0} ns, {:.0} ns\n",
        report.dashmap_bytes_per_route, report.dashmap_hot_ns, report.dashmap_uniform_ns
    );
    println!("  one lookup by the clock, hot names, ns (the clock itself takes some 25)");
    let row = |what: &str, figures: &Figures| {
        let ns = |ms: f64| ms * 1e6;
        println!("    {what:20} p50 {:>6.0}  p99 {:>6.0}", ns(figures.p50_ms), ns(figures.p99_ms));
    };
    row("nobody writes", &report.quiet);
    row(&format!("{:.0} updates/s", report.updates_per_second), &report.beside_writer);
}

/// As people and machines name them: some 20 bytes. Of ten million, one in 400 is the name of another one too.
pub(crate) fn name(number: usize) -> Result<SpriteName, router::names::NameError> {
    const WORDS: [&str; 8] = ["brave", "calm", "eager", "fuzzy", "golden", "quiet", "rapid", "silver"];
    SpriteName::parse(&format!("{}-otter-{:x}", WORDS[number % WORDS.len()], scatter(number) >> 36))
}

/// Spreads neighbours apart (SplitMix64's constants).
pub(crate) fn scatter(number: usize) -> u64 {
    let mut z = (number as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn route(number: usize, generation: u64) -> Route {
    Route {
        generation: Generation(generation),
        host: HostId(u32::try_from(number % 1_000).unwrap_or(0)),
        tenant: Tenant::from("t"),
        access: Access::Public,
        wake: None,
        ports: [].into(),
        client_certificate: None,
        deleted: false,
    }
}

fn spread(names: &[SpriteName], count: usize) -> Vec<SpriteName> {
    names.iter().step_by((names.len() / count).max(1)).take(count).cloned().collect()
}

/// Nanoseconds of this thread's processor time for one lookup, names in a scattered order.
fn cpu_ns(names: &[SpriteName], find: &impl Fn(&SpriteName) -> bool) -> f64 {
    let order: Vec<u32> = (0..LOOKUPS).map(|n| (scatter(n) % names.len() as u64) as u32).collect();
    let began = thread_time();
    let found = order.iter().filter(|&&at| find(black_box(&names[at as usize]))).count();
    let took = thread_time() - began;
    assert_eq!(found, LOOKUPS, "every name is in the table");
    took.as_nanos() as f64 / LOOKUPS as f64
}

pub(crate) fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// How long lookups take by the clock, one after another, and how fast the writer was.
fn latencies(
    table: &RouteTable,
    hot: &[SpriteName],
    seconds: u64,
    writer: Option<(&[SpriteName], usize)>,
) -> (Figures, f64) {
    let over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let over = &over;
        let writer = writer.map(|(names, rate)| threads.spawn(move || write(table, names, rate, over)));
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut taken = Vec::new();
        let mut number = 0;
        while Instant::now() < end {
            let name = &hot[(scatter(number) % hot.len() as u64) as usize];
            number += 1;
            let began = Instant::now();
            black_box(table.lookup(name));
            taken.push(began.elapsed().as_nanos() as u64);
        }
        over.store(true, Ordering::Relaxed);
        let rate = writer.map_or(0.0, |writer| writer.join().unwrap_or(0.0));
        (Figures::of(taken).unwrap_or(Figures { p50_ms: 0.0, p90_ms: 0.0, p99_ms: 0.0, max_ms: 0.0 }), rate)
    })
}

/// Moves sprites about at `rate` a second until it is over; the rate it kept.
fn write(table: &RouteTable, names: &[SpriteName], rate: usize, over: &AtomicBool) -> f64 {
    let began = Instant::now();
    let mut written = 0;
    while !over.load(Ordering::Relaxed) {
        for _ in 0..BATCH {
            let at = (scatter(written) % names.len() as u64) as usize;
            table.apply_put(&names[at], route(written, 2 + written as u64));
            written += 1;
        }
        let due = began + Duration::from_secs_f64(written as f64 / rate as f64);
        std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
    }
    written as f64 / began.elapsed().as_secs_f64()
}

pub(crate) fn resident() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    Ok(kib.ok_or_else(|| anyhow::anyhow!("no VmRSS in /proc/self/status"))? * 1024.0)
}

pub(crate) fn per_route(before: f64, after: f64, routes: usize) -> f64 {
    (after - before) / routes as f64
}
