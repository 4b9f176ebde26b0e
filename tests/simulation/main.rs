//! The holds of three edges and the owner of one host, the real cores, in virtual time.
//!
//! One seed makes one history: requests, clients that leave, deadlines, sleeps, guests
//! that fail or die, messages that are late, doubled or lost. A failure prints its seed;
//! `SIM_SEED=N cargo nextest run -p tests --test simulation` plays that history again.

mod invariants;
mod scenarios;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use world::{Chances, World};

/// Histories every run plays.
const FIXED_SEEDS: u64 = 200;
/// How long fresh histories are tried after them, real time.
const FRESH: Duration = Duration::from_secs(5);

#[test]
fn every_invariant_holds_in_every_history() {
    if let Ok(seed) = std::env::var("SIM_SEED") {
        return play(seed.parse().expect("SIM_SEED is a number"));
    }
    (0..FIXED_SEEDS).for_each(play);
    let (began, mut seed) = (Instant::now(), rand::random::<u32>().into());
    while began.elapsed() < FRESH {
        play(seed);
        seed += 1;
    }
}

fn play(seed: u64) {
    let history = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, Chances::rough());
        world.run_for(Duration::from_secs(120));
        world.quiesce();
    }));
    if let Err(failure) = history {
        eprintln!("seed={seed}; play it again with SIM_SEED={seed}");
        std::panic::resume_unwind(failure);
    }
}
