//! Measures the edge from outside: sockets only, no crate of the product.
//!
//! `loadtest wake` measures wakes and which part of each is ours. What a request costs
//! beside other proxies is measured with `direct.toml` (see its head).

mod admin;
mod clock;
mod demo;
mod edge;
mod figures;
mod machine;
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
    /// Cold and warm wakes: whole time, the guest's part and ours.
    Wake(wake::Arguments),
}

fn main() -> ExitCode {
    let Cli { command: Command::Wake(arguments) } = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(wake::run(arguments)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            ExitCode::from(70)
        }
    }
}
