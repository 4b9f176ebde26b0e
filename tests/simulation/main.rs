//! wake.md, test 1: The holds of three edges and the owners of two hosts, the real cores, in virtual time.
//!
//! One seed makes one history: requests, clients that leave, deadlines, sleeps, moves,
//! destructions, guests that fail, hang or die, sessions that break, edges and owners that
//! die or are not scheduled for seconds, messages that are late, doubled or lost, tables that
//! are behind. A failure prints its seed; `SIM_SEED=N cargo nextest run -p tests --test
//! simulation` plays that history again. With `EDGE_PROXY_TEST_FULL=1` ten thousand are played.

mod acts;
mod awake;
mod chances;
mod edges;
mod feed;
mod guests;
mod happenings;
mod invariants;
mod moves;
mod mutations;
mod owners;
mod reconnects;
mod requests;
mod scenarios;
mod world;

use chances::Chances;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use world::{Ended, World};

/// Histories each of [`PARTS`] plays in every run.
const FIXED_SEEDS: u64 = 75;
/// Histories all of them play together with `EDGE_PROXY_TEST_FULL=1`.
const FULL_SEEDS: u64 = 10_000;
/// The histories are shared among so many tests, which run side by side.
const PARTS: u64 = 4;
/// How long each of them tries fresh histories, real time.
const FRESH: Duration = Duration::from_secs(10);
/// How long one history lasts before its clients are gone.
const HISTORY: Duration = Duration::from_secs(60);

#[test]
fn every_invariant_holds_in_every_history_1() {
    play_part(0);
}

#[test]
fn every_invariant_holds_in_every_history_2() {
    play_part(1);
}

#[test]
fn every_invariant_holds_in_every_history_3() {
    play_part(2);
}

#[test]
fn every_invariant_holds_in_every_history_4() {
    play_part(3);
}

fn play_part(part: u64) {
    if let Some(seed) = asked_seed() {
        let world = play(seed, Chances::rough());
        return eprintln!("seed={seed}: {} requests, {} starts", world.ended.len(), world.starts);
    }
    let full = std::env::var("EDGE_PROXY_TEST_FULL").is_ok_and(|full| full == "1");
    let seeds = if full { FULL_SEEDS / PARTS } else { FIXED_SEEDS };
    let began = Instant::now();
    for seed in part * seeds..(part + 1) * seeds {
        play(seed, Chances::rough());
    }
    let (fixed, mut seed) = (began.elapsed(), u64::from(rand::random::<u32>()) << 20);
    let mut fresh = 0;
    while began.elapsed() < fixed + FRESH {
        play(seed, Chances::rough());
        (seed, fresh) = (seed + 1, fresh + 1);
    }
    eprintln!("{seeds} fixed histories in {fixed:?}, {fresh} fresh ones; all of them: EDGE_PROXY_TEST_FULL=1");
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

/// Also where requests go by what their edge believes to run.
#[test]
fn moves_cost_hops_and_no_request() {
    for warm in [0, 400] {
        let seeds = asked_seed().map_or(0..50, |seed| seed..seed + 1);
        for seed in seeds {
            let world = play(seed, Chances { move_every_ms: 6_000, warm, ..Chances::healthy() });
            let failed: Vec<_> = world.ended.iter().filter(|(_, how)| !matches!(how, Ended::Served { .. })).collect();
            assert!(failed.is_empty(), "seed={seed}, {warm} of 1000 warm: {failed:?}");
        }
    }
}

#[test]
fn one_seed_is_one_history() {
    for seed in 0..3 {
        let (one, other) = (play(seed, Chances::rough()), play(seed, Chances::rough()));
        assert_eq!(one.ended, other.ended, "seed={seed}");
        assert_eq!((one.starts, one.wakes_sent), (other.starts, other.wakes_sent), "seed={seed}");
        assert!(one.ended.len() > 200 && one.starts > 10, "seed={seed}: hardly anything happened");
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
