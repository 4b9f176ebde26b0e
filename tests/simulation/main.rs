//! The holds of three edges and the owner of one host, the real cores, in virtual time.
//!
//! One seed makes one history: requests, clients that leave, deadlines, sleeps, guests
//! that fail, hang or die, sessions that break, edges that die, messages that are late,
//! doubled or lost. A failure prints its seed; `SIM_SEED=N cargo nextest run -p tests
//! --test simulation` plays that history again.

mod acts;
mod awake;
mod chances;
mod guests;
mod invariants;
mod scenarios;
mod world;

use chances::Chances;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use world::{Ended, World};

/// Histories every run plays.
const FIXED_SEEDS: u64 = 300;
/// How long fresh histories are tried after them, real time.
const FRESH: Duration = Duration::from_secs(3);
/// How long one history lasts before its clients are gone.
const HISTORY: Duration = Duration::from_secs(120);

#[test]
fn every_invariant_holds_in_every_history() {
    if let Some(seed) = asked_seed() {
        let world = play(seed, Chances::rough());
        return eprintln!("seed={seed}: {} requests, {} starts", world.ended.len(), world.starts);
    }
    for seed in 0..FIXED_SEEDS {
        play(seed, Chances::rough());
    }
    let (began, mut seed) = (Instant::now(), rand::random::<u32>().into());
    while began.elapsed() < FRESH {
        play(seed, Chances::rough());
        seed += 1;
    }
}

#[test]
fn as_long_as_nothing_breaks_every_request_is_served() {
    let seeds = asked_seed().map_or(0..50, |seed| seed..seed + 1);
    for seed in seeds {
        let world = play(seed, Chances::healthy());
        let failed: Vec<_> = world.ended.iter().filter(|(_, how)| !matches!(how, Ended::Served { .. })).collect();
        assert!(failed.is_empty(), "seed={seed}: {failed:?}");
    }
}

#[test]
fn one_seed_is_one_history() {
    for seed in 0..3 {
        let (one, other) = (play(seed, Chances::rough()), play(seed, Chances::rough()));
        assert_eq!(one.ended, other.ended, "seed={seed}");
        assert_eq!((one.starts, one.wakes_sent), (other.starts, other.wakes_sent), "seed={seed}");
        assert!(one.ended.len() > 300 && one.starts > 10, "seed={seed}: hardly anything happened");
    }
}

fn asked_seed() -> Option<u64> {
    Some(std::env::var("SIM_SEED").ok()?.parse().expect("SIM_SEED is a number"))
}

fn play(seed: u64, chances: Chances) -> World {
    let history = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, chances);
        world.run_for(HISTORY);
        world.quiesce();
        world
    }));
    history.unwrap_or_else(|failure| {
        eprintln!("seed={seed}; play it again with SIM_SEED={seed}");
        std::panic::resume_unwind(failure)
    })
}
