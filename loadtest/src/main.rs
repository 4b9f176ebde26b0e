//! wake.md, test 15, by wall: measures the edge from outside, by sockets only; but for the routing table
//! and how fast it follows a store, which no socket shows.
//!
//! `docs/benchmarks.md` says what each command measures, and what was measured. What a
//! request costs beside other proxies is measured with `direct.toml` (see its head).

mod admin;
mod bench;
mod clock;
mod cold_start;
mod customs;
mod demo;
mod dns;
mod edge;
mod fake_owner;
mod fan_out;
mod figures;
mod handshakes;
mod herd;
mod holds;
mod machine;
mod orchestrator;
mod propagation;
mod resolver;
mod servers;
mod share;
mod table;
mod wake;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "loadtest", about = "Measures edge-proxy from outside.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Cold and warm wakes of a real process: whole time, the guest's part and ours.
    Wake(wake::Arguments),
    /// Our share of a wake, with machines that wake after 0, 120, 300 and 1,500 ms.
    Share(share::Arguments),
    /// Memory of one held request, with 8,192 of them.
    Holds(holds::Arguments),
    /// 1,000 different sprites woken at once: our share of each wake.
    FanOut(fan_out::Arguments),
    /// The routing table: bytes per route, lookups, readers beside a writer.
    Table(table::Arguments),
    /// Certificates by name: bytes per name, lookups, handshakes while certificates are swapped, compression.
    Resolver(resolver::Arguments),
    /// From exec to the first request that is answered, with a million routes of the last run.
    ColdStart(cold_start::Arguments),
    /// A million customers' domains: their certificates on a PoP's disk and in its memory, and a start with them.
    Customs(customs::Arguments),
    /// From a write to the store to the table of another process.
    Propagation(propagation::Arguments),
    /// The other process of `propagation`.
    #[command(hide = true)]
    Watch(propagation::Watch),
    /// The DNS authority: answers in a second of its processor's time, with the limits on.
    Dns(dns::Arguments),
    /// Full TLS handshakes: processor time of each, beside HAProxy and nginx.
    Handshakes(handshakes::Arguments),
    /// 10,000 requests in a second at one sleeping sprite: who is served, who is refused, what others notice.
    Herd(herd::Arguments),
}

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(Into::into).and_then(|runtime| {
        runtime.block_on(async {
            match command {
                Command::Wake(arguments) => wake::run(arguments).await.map(|()| true),
                Command::Share(arguments) => share::run(arguments).await,
                Command::Holds(arguments) => holds::run(arguments).await,
                Command::FanOut(arguments) => fan_out::run(arguments).await,
                Command::Table(arguments) => table::run(&arguments),
                Command::Resolver(arguments) => resolver::run(&arguments),
                Command::ColdStart(arguments) => cold_start::run(arguments).await,
                Command::Customs(arguments) => customs::run(arguments).await,
                Command::Propagation(arguments) => propagation::run(arguments).await,
                Command::Watch(watch) => propagation::watch(&watch).map(|()| true),
                Command::Dns(arguments) => dns::run(arguments).await,
                Command::Handshakes(arguments) => handshakes::run(arguments).await,
                Command::Herd(arguments) => herd::run(arguments).await,
            }
        })
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            ExitCode::from(70)
        }
    }
}
