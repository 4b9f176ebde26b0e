//! Cold and warm wakes, one after the other: put to sleep, ask once, take apart.
//!
//! The guest (sample `stamp`) says on the machine's clock when it listened or was
//! continued, the receipt says when the driver acted. What is left of the whole is ours:
//!
//! ```text
//! request sent ──ours──▶ driver acts ──guest's──▶ guest listens, or goes on ──ours──▶ answer read
//! ```
//!
//! Ours includes the network both ways, the guest's work on one small answer, and this
//! program's own.

use crate::admin::Admin;
use crate::demo::Demo;
use crate::edge::{Answer, Door, Protocol, Visitor};
use crate::figures::Figures;
use crate::machine::{Facts, Steal};
use anyhow::{Context, ensure};
use http::Method;
use serde::Serialize;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Wakes that are not counted: code pages in, caches warm.
const UNCOUNTED: usize = 3;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Start a demo for the measurement, and end it.
    #[arg(long, conflicts_with_all = ["edge", "data_dir"])]
    demo: bool,
    /// Where the edge serves HTTPS; the port of the sprite's URL when left out.
    #[arg(long, value_name = "ADDRESS")]
    edge: Option<SocketAddr>,
    /// The edge's data directory, with ca.pem and admin.sock.
    #[arg(long, value_name = "DIR", default_value = "edge-proxy-data")]
    data_dir: PathBuf,
    /// The sprite to wake; made of the sample `stamp` when it does not exist.
    #[arg(long, default_value = "stamp")]
    name: String,
    /// Cold wakes.
    #[arg(long, default_value_t = 50)]
    cold: usize,
    /// Warm wakes.
    #[arg(long, default_value_t = 500)]
    warm: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Figures of one kind of wake.
#[derive(Debug, Serialize)]
struct Report {
    wakes: usize,
    /// From the request to its answer.
    total: Figures,
    /// From the driver's act to the guest's own word.
    guest: Figures,
    /// The rest.
    ours: Figures,
    /// Ours before the driver acted, and after the guest was ready.
    ours_before: Figures,
    ours_after: Figures,
    /// Wakes whose guest answered before it noticed that it went on: all of their time counts as ours.
    unmarked: usize,
}

/// One wake taken apart, nanoseconds.
struct Wake {
    total: u64,
    guest: u64,
    before: u64,
    after: u64,
    unmarked: bool,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let facts = Facts::now();
    if !arguments.demo {
        return measure(&arguments, &arguments.data_dir, &facts).await;
    }
    let demo = Demo::start().await?;
    let measured = measure(&arguments, demo.directory(), &facts).await;
    demo.stop().await?;
    measured
}

async fn measure(arguments: &Arguments, data_dir: &Path, facts: &Facts) -> anyhow::Result<()> {
    let admin = Admin::new(data_dir.join("admin.sock"));
    let url = url_of(&admin, &arguments.name).await?;
    let authority = url.trim_start_matches("https://").trim_end_matches('/').to_owned();
    let port = authority.rsplit_once(':').map_or(Ok(443), |(_, port)| port.parse())?;
    let address = arguments.edge.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], port)));
    let mut visitor = Visitor::new(Door::new(address, &data_dir.join("ca.pem"), Protocol::Http1)?, authority);

    let steal = Steal::begin();
    let cold = wakes(&admin, &mut visitor, &arguments.name, "cold", arguments.cold).await?;
    let warm = wakes(&admin, &mut visitor, &arguments.name, "warm", arguments.warm).await?;
    let steal = steal.percent();
    if arguments.json {
        println!("{}", json!({ "facts": facts, "stolen_percent": steal, "cold": cold, "warm": warm }));
        return Ok(());
    }
    print!("{}", facts.text());
    println!("stolen by the machine below: {steal:.1} % of the time wanted here");
    for (kind, report) in [("cold", cold), ("warm", warm)] {
        let Some(report) = report else { continue };
        println!("\n{}", Figures::head(&format!("{kind} wakes: {}", report.wakes)));
        println!("{}", report.total.row("total"));
        println!("{}", report.guest.row("guest"));
        println!("{}", report.ours.row("ours"));
        println!("{}", report.ours_before.row("  before the driver acts"));
        println!("{}", report.ours_after.row("  after the guest is ready"));
        if report.unmarked > 0 {
            println!("  {} unmarked: their whole time counts as ours", report.unmarked);
        }
    }
    Ok(())
}

/// The sprite's URL; the sprite is made if need be.
async fn url_of(admin: &Admin, name: &str) -> anyhow::Result<String> {
    let path = format!("/v1/sprites/{name}");
    let row = match admin.call(Method::GET, &path, None).await {
        Ok(row) => row,
        Err(_) => {
            let sprite = json!({ "name": name, "command": "exec \"$EDGE_PROXY\" sample stamp", "access": "public" });
            admin.call(Method::POST, "/v1/sprites", Some(sprite)).await?
        }
    };
    Ok(row["url"].as_str().context("the sprite has no URL")?.to_owned())
}

async fn wakes(
    admin: &Admin,
    visitor: &mut Visitor,
    name: &str,
    kind: &'static str,
    count: usize,
) -> anyhow::Result<Option<Report>> {
    if count == 0 {
        return Ok(None);
    }
    visitor.visit().await.context("the first visit")?;
    let mut wakes = Vec::with_capacity(count);
    for number in 0..UNCOUNTED + count {
        admin.call(Method::POST, &format!("/v1/sprites/{name}/sleep"), Some(json!({ "depth": kind }))).await?;
        let visit = visitor.visit().await.with_context(|| format!("{kind} wake {number}"))?;
        ensure!(
            visit.headers.get("sprite-wake").is_some_and(|said| said == kind),
            "not a {kind} wake: {:?}",
            visit.headers
        );
        let receipts = admin.call(Method::GET, &format!("/v1/sprites/{name}/receipts"), None).await?;
        if number >= UNCOUNTED {
            wakes.push(take_apart(&visit, started_ns(&receipts)?, kind)?);
        }
    }
    let of = |part: fn(&Wake) -> u64| Figures::of(wakes.iter().map(part).collect()).context("no wakes");
    Ok(Some(Report {
        wakes: count,
        total: of(|wake| wake.total)?,
        guest: of(|wake| wake.guest)?,
        ours: of(|wake| wake.before + wake.after)?,
        ours_before: of(|wake| wake.before)?,
        ours_after: of(|wake| wake.after)?,
        unmarked: wakes.iter().filter(|wake| wake.unmarked).count(),
    }))
}

/// When the driver acted in the last wake.
fn started_ns(receipts: &Value) -> anyhow::Result<u64> {
    let started =
        receipts.as_array().into_iter().flatten().filter_map(|receipt| receipt["started_monotonic_ns"].as_u64());
    started.max().context("no receipt of the wake")
}

fn take_apart(visit: &Answer, started: u64, kind: &str) -> anyhow::Result<Wake> {
    let stamp: Value = serde_json::from_slice(&visit.body).context("the sprite is no stamp sample")?;
    let field = if kind == "cold" { "listen_monotonic_ns" } else { "continue_monotonic_ns" };
    let ready = stamp[field].as_u64().with_context(|| format!("no {field} in {stamp}"))?;
    ensure!(started >= visit.sent_ns, "the driver acted before the request was sent: somebody else woke it");
    let before = started - visit.sent_ns;
    let total = visit.answered_ns - visit.sent_ns;
    // A continued guest may read the request before it handles SIGCONT; then its mark is an older one.
    let unmarked = ready < started;
    let guest = if unmarked { 0 } else { ready - started };
    ensure!(before + guest <= total, "the clocks disagree: {before} + {guest} of {total}");
    Ok(Wake { total, guest, before, after: total - before - guest, unmarked })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visit(body: Value) -> Answer {
        let status = http::StatusCode::OK;
        Answer {
            sent_ns: 1_000,
            answered_ns: 9_000,
            status,
            headers: http::HeaderMap::new(),
            body: body.to_string().into(),
        }
    }

    #[test]
    fn a_wake_is_taken_apart_at_the_guests_own_word() {
        let visit = visit(json!({ "listen_monotonic_ns": 7_000, "continue_monotonic_ns": 500 }));
        let wake = take_apart(&visit, 2_000, "cold").unwrap();
        assert_eq!((wake.before, wake.guest, wake.after, wake.unmarked), (1_000, 5_000, 2_000, false));
        // The continue mark is of an earlier wake: nothing is taken off our share.
        let wake = take_apart(&visit, 2_000, "warm").unwrap();
        assert_eq!((wake.before + wake.after, wake.guest, wake.unmarked), (8_000, 0, true));
        assert!(take_apart(&visit, 900, "cold").is_err(), "it ran before the request");
    }
}
