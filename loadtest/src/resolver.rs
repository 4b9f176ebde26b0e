//! Certificates by name, in memory: bytes per name, what a lookup costs, what compression costs and saves.
//! In-process, since no socket could show nanoseconds.

use crate::figures::Figures;
use crate::machine::Facts;
use crate::table::{per_route, resident, scatter, thread_time};
use acme::local_ca::LocalCa;
use acme::resolver::{CertResolver, Certificates, Found, Handle, Policy, Slot};
use clap::Args;
use rustls::compress::{BROTLI_COMPRESSOR, CertCompressor, CompressionLevel, ZLIB_COMPRESSOR};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

/// Names that are asked for again and again.
const HOT: usize = 10_000;
/// Lookups of one measurement.
const LOOKUPS: usize = 2_000_000;
/// Changes of one name each.
const CHANGES: usize = 2_000;
/// Compressions of one measurement.
const COMPRESSIONS: usize = 200;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Whole names.
    #[arg(long, default_value_t = 1_000_000)]
    names: usize,
    /// Exit with 1 when a figure misses its aim (tls-acme-dns.md §6).
    #[arg(long)]
    check: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    facts: Facts,
    names: usize,
    index_bytes_per_name: f64,
    sealed_resident_per_name: f64,
    loaded_resident_per_name: f64,
    wildcard_ns: f64,
    hot_ns: f64,
    uniform_ns: f64,
    unknown_ns: f64,
    hot: Figures,
    uniform: Figures,
    change_us: f64,
    compressed: Vec<Compressed>,
}

#[derive(Debug, Serialize)]
struct Compressed {
    how: String,
    us: f64,
    from: usize,
    to: usize,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let facts = Facts::now();
    let dir = tempfile::tempdir()?;
    let ca = LocalCa::load_or_create(dir.path())?;
    let key = Arc::new(ca.issue(&["*.sprites.example".to_owned()])?);
    let names: Vec<String> = (0..arguments.names).map(name).collect();
    let empty = || {
        let suffixes = vec![("sprites.example".to_owned(), Arc::clone(&key))];
        CertResolver::with(Certificates { suffixes, ..Certificates::default() }, Policy::default(), None)
    };
    let fill = |slot: &dyn Fn(usize) -> Option<Slot>| -> anyhow::Result<_> {
        let before = resident()?;
        let resolver = empty();
        // In pieces, so that what is put in does not lie in memory twice.
        for (piece, some) in names.chunks(50_000).enumerate() {
            resolver.change(some.iter().enumerate().map(|(at, name)| (name.clone(), slot(piece * 50_000 + at))));
        }
        Ok((per_route(before, resident()?, names.len()), resolver))
    };
    let (sealed_resident_per_name, sealed) = fill(&|number| Handle::new(number as u64).map(Slot::Sealed))?;
    let (loaded_resident_per_name, loaded) = fill(&|_| Some(Slot::Loaded(Arc::clone(&key).into())))?;
    drop(sealed);

    let ready = |name: &String| matches!(loaded.look(Some(name)), Found::Ready(_));
    let wildcards: Vec<_> = (0..HOT).map(|number| format!("sprite-{number}.sprites.example")).collect();
    let unknown: Vec<_> = (0..HOT).map(|number| format!("unknown-{number}.example")).collect();
    let hot: Vec<_> = names.iter().step_by((names.len() / HOT).max(1)).take(HOT).cloned().collect();
    let report = Report {
        facts,
        names: loaded.names(),
        index_bytes_per_name: loaded.index_bytes() as f64 / loaded.names() as f64,
        sealed_resident_per_name,
        loaded_resident_per_name,
        wildcard_ns: cpu_ns(&wildcards, &ready),
        hot_ns: cpu_ns(&hot, &ready),
        uniform_ns: cpu_ns(&names, &ready),
        unknown_ns: cpu_ns(&unknown, &|name| matches!(loaded.look(Some(name)), Found::Unknown)),
        hot: by_the_clock(&hot, &ready),
        uniform: by_the_clock(&names, &ready),
        change_us: changes(&loaded, &names, &Slot::Loaded(Arc::clone(&key).into())),
        compressed: compressed(&[&key.cert[0], &CertificateDer::from_pem_file(dir.path().join("ca.pem"))?])?,
    };
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    Ok(!arguments.check || report.meets())
}

impl Report {
    fn meets(&self) -> bool {
        self.index_bytes_per_name <= 48.0 && self.wildcard_ns <= 100.0 && self.uniform.p50_ms <= 300e-6
    }
}

fn print(report: &Report) {
    println!("{}", report.facts.text());
    let (sealed, loaded) = (report.sealed_resident_per_name, report.loaded_resident_per_name);
    println!("  {} names: {:.1} bytes each of the index", report.names, report.index_bytes_per_name);
    println!("    of resident memory {sealed:.1} filled with sealed ones, {loaded:.1} with loaded ones after that");
    println!("  lookup, processor time: a wildcard's name {:.0} ns", report.wildcard_ns);
    println!("    a whole name {:.0} ns of {HOT} hot ones, {:.0} ns over all", report.hot_ns, report.uniform_ns);
    println!("    an unknown name {:.0} ns", report.unknown_ns);
    let ns = |ms: f64| ms * 1e6;
    for (what, figures) in [("hot names", &report.hot), ("over all", &report.uniform)] {
        let (p50, p99) = (ns(figures.p50_ms), ns(figures.p99_ms));
        println!("  by the clock, {what}: p50 {p50:.0} ns, p99 {p99:.0} ns (the clock itself takes some 25)");
    }
    println!("  a change of one name: {:.0} µs", report.change_us);
    for one in &report.compressed {
        println!("  {}: {} bytes of a chain to {}, {:.0} µs", one.how, one.from, one.to, one.us);
    }
}

fn name(number: usize) -> String {
    format!("www.customer-{:x}.example", scatter(number) >> 28)
}

/// Nanoseconds of this thread's processor time for one lookup, names in a scattered order.
fn cpu_ns(names: &[String], find: &impl Fn(&String) -> bool) -> f64 {
    let order: Vec<u32> = (0..LOOKUPS).map(|n| (scatter(n) % names.len() as u64) as u32).collect();
    let began = thread_time();
    let found = order.iter().filter(|&&at| find(black_box(&names[at as usize]))).count();
    let took = thread_time() - began;
    assert_eq!(found, LOOKUPS, "every lookup ends as it should");
    took.as_nanos() as f64 / LOOKUPS as f64
}

fn by_the_clock(names: &[String], find: &impl Fn(&String) -> bool) -> Figures {
    let taken = (0..LOOKUPS).map(|number| {
        // The name itself is brought near first: a handshake has just read it.
        let name = black_box(names[(scatter(number) % names.len() as u64) as usize].clone());
        let began = Instant::now();
        black_box(find(&name));
        began.elapsed().as_nanos() as u64
    });
    Figures::of(taken.collect()).unwrap_or(Figures { p50_ms: 0.0, p90_ms: 0.0, p99_ms: 0.0, max_ms: 0.0 })
}

/// Microseconds of one change of one name.
fn changes(resolver: &CertResolver, names: &[String], slot: &Slot) -> f64 {
    let began = thread_time();
    for number in 0..CHANGES {
        let name = names[(scatter(number) % names.len() as u64) as usize].clone();
        resolver.change([(name, Some(slot.clone()))]);
    }
    (thread_time() - began).as_micros() as f64 / CHANGES as f64
}

/// Each way to compress a chain, at rustls's two levels.
fn compressed(chain: &[&[u8]]) -> anyhow::Result<Vec<Compressed>> {
    let whole = chain.concat();
    let mut ways = Vec::new();
    for (name, compressor) in [("brotli", BROTLI_COMPRESSOR), ("zlib", ZLIB_COMPRESSOR)] {
        for level in [CompressionLevel::Interactive, CompressionLevel::Amortized] {
            ways.push(one_way(format!("{name}, {level:?}"), compressor, level, &whole)?);
        }
    }
    Ok(ways)
}

fn one_way(
    how: String,
    with: &dyn CertCompressor,
    level: CompressionLevel,
    whole: &[u8],
) -> anyhow::Result<Compressed> {
    let began = thread_time();
    let mut to = 0;
    for _ in 0..COMPRESSIONS {
        let made = with.compress(whole.to_vec(), level).map_err(|error| anyhow::anyhow!("{how}: {error:?}"))?;
        to = black_box(made).len();
    }
    let us = (thread_time() - began).as_micros() as f64 / COMPRESSIONS as f64;
    Ok(Compressed { how, us, from: whole.len(), to })
}
