//! wake.md, test 5: a long way and a bad one between edge and owner. What the hold adds to a
//! wake is one round trip: the question there, the answer back.
//!
//! Measured at the client, with real datagrams over a relay: a request to a sleeping sprite,
//! less what its owner says the wake took, less a request to the same sprite awake. Each is
//! compared with the same in a pair that is not apart at all and is measured in the same
//! moments, so that what this machine does at that time is not taken for ours.
//!
//! Where datagrams are lost, half of the requests lose none and keep to the same bound. The
//! others wait for QUIC's timer, as everything over that way does: nine of ten once, nobody
//! more than three times in a row (which doubles it each time), and everybody is served.
//!
//! In all a request to a sleeping sprite takes two round trips and the wake: one for the hold,
//! one for itself, as to a sprite that runs. They cannot be one: what the guest is told with the
//! request (`Sprite-Wake`, `Sprite-Hold-Ms`) is known only when it runs, and a client that leaves
//! until then must have left nothing behind.

use harness::apart::{Apart, Visitor};
use harness::client::Answer;
use router::names::SpriteName;
use std::time::{Duration, Instant};

const ROUND_TRIPS_MS: [u64; 4] = [0, 70, 150, 300];
const LOST_PER_THOUSAND: [u32; 3] = [0, 10, 50];
/// Sprites measured side by side, and how often each sleeps in one cell.
const SPRITES: usize = 6;
const SLEEPS: usize = 8;
/// What the hold may add beyond a round trip (wake.md, test 5).
const ADDED_MS: f64 = 5.0;
/// QUIC's timer beyond two round trips: the delay of an acknowledgement (RFC 9000 §18.2: 25 ms)
/// and four times the variance that a busy machine makes of nothing (chosen).
const TIMER_MS: f64 = 100.0;
/// How often a cell is measured at most. A machine that is busy in one moment is not in another;
/// a round trip too many is there each time.
const TRIES: u32 = 4;

/// Milliseconds of one sleep: the request that woke it, less the wake; and the next one.
#[derive(Clone, Copy, Debug)]
struct Sample {
    cold: f64,
    warm: f64,
}

#[derive(Debug)]
struct Figures {
    cold: Vec<f64>,
    warm: Vec<f64>,
}

impl Figures {
    fn of(samples: &[Sample]) -> Self {
        let sorted = |of: fn(&Sample) -> f64| {
            let mut all: Vec<_> = samples.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            all
        };
        Self { cold: sorted(|sample| sample.cold), warm: sorted(|sample| sample.warm) }
    }

    /// What the hold adds, by the medians.
    fn added(&self) -> f64 {
        at(&self.cold, 50) - at(&self.warm, 50)
    }
}

fn at(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() - 1) * percent / 100]
}

async fn sample(pair: &Apart, visitor: &mut Visitor, name: &SpriteName) -> Sample {
    pair.lull(name).await;
    let (answer, cold) = timed(visitor, name).await;
    assert_eq!(answer.header("sprite-wake"), "warm", "{answer:?}");
    let (running, warm) = timed(visitor, name).await;
    assert!(matches!(running.header("sprite-wake"), "" | "none"), "{running:?}");
    Sample { cold: cold - wake_ms(&answer), warm }
}

async fn timed(visitor: &mut Visitor, name: &SpriteName) -> (Answer, f64) {
    let began = Instant::now();
    let answer = visitor.get(name).await;
    let took = began.elapsed().as_secs_f64() * 1000.0;
    assert_eq!(answer.status, 200, "{answer:?}");
    (answer, took)
}

/// `wake;dur=` of `Server-Timing`: the owner's own figure.
fn wake_ms(answer: &Answer) -> f64 {
    let timing = answer.header("server-timing");
    let wake = timing.split("wake;dur=").nth(1).and_then(|rest| rest.split([';', ',']).next()?.parse().ok());
    wake.unwrap_or_else(|| panic!("no wake in {timing:?}"))
}

/// One sprite of the pair and one of the pair beside it, in turn.
async fn sleeps(pair: &Apart, control: &Apart, name: &SpriteName) -> Vec<(Sample, Sample)> {
    let (mut far, mut near) = (pair.visitor().await, control.visitor().await);
    let mut samples = Vec::new();
    for _ in 0..SLEEPS {
        samples.push((sample(pair, &mut far, name).await, sample(control, &mut near, name).await));
    }
    samples
}

/// Measures one cell; why it does not keep to its bounds.
async fn cell(round_trip_ms: u64, lost_per_thousand: u32, names: &[SpriteName], control: &Apart) -> Result<(), String> {
    let seed = round_trip_ms * 1_000 + u64::from(lost_per_thousand);
    let pair = Apart::start(Duration::from_micros(round_trip_ms * 500), seed, names).await;
    // The session is made and its round trip known before anything is lost or measured.
    let mut first = pair.visitor().await;
    for name in names {
        assert_eq!(first.get(name).await.status, 200);
    }
    pair.relay.lose(lost_per_thousand);
    let all = futures_util::future::join_all(names.iter().map(|name| sleeps(&pair, control, name))).await;
    let (far, near): (Vec<_>, Vec<_>) = all.into_iter().flatten().unzip();
    let (passed, lost, overflowed) = pair.relay.counts();
    assert_eq!(overflowed, 0, "the relay itself dropped datagrams");
    assert!(lost_per_thousand == 0 || lost > 0, "nothing was lost of {passed}");

    let (far, near, round_trip) = (Figures::of(&far), Figures::of(&near), round_trip_ms as f64);
    println!(
        "{round_trip_ms:>3} ms, {:>2} in 1000 lost ({lost} of {}): cold less wake {:.1} / {:.1} / {:.1}, warm {:.1} / {:.1} / {:.1}, \
         added {:.1}; beside it {:.1} / {:.1} / {:.1}, warm {:.1}, added {:.1}",
        lost_per_thousand,
        passed + lost,
        at(&far.cold, 50),
        at(&far.cold, 90),
        at(&far.cold, 100),
        at(&far.warm, 50),
        at(&far.warm, 90),
        at(&far.warm, 100),
        far.added(),
        at(&near.cold, 50),
        at(&near.cold, 90),
        at(&near.cold, 100),
        at(&near.warm, 50),
        near.added(),
    );
    assert!(at(&far.warm, 0) >= round_trip, "the way is not as long as it should be");
    // What this machine added where nothing is apart, and how unevenly; and to a request awake.
    let noise = near.added().max(0.0) + at(&near.cold, 90) - at(&near.cold, 50) + at(&far.warm, 50) - round_trip;
    let what = format!("{round_trip_ms} ms, {lost_per_thousand} in 1000 lost, noise {noise:.1}: {far:?}");
    pair.stop().await;
    let (timer, whole) = (2.0 * round_trip + TIMER_MS, 2.0 * round_trip + ADDED_MS);
    let bad = lost_per_thousand > 0;
    if far.added() > round_trip + ADDED_MS + noise {
        Err(format!("the hold adds {:.1} ms at {what}", far.added()))
    } else if bad && at(&far.cold, 90) > whole + timer + at(&near.cold, 90) {
        Err(format!("nine of ten at {what}"))
    } else if bad && at(&far.cold, 100) > whole + 7.0 * timer + at(&near.cold, 100) {
        Err(format!("the last at {what}"))
    } else {
        Ok(())
    }
}

#[tokio::test]
async fn over_any_way_a_hold_adds_one_round_trip_to_its_wake() {
    let full = std::env::var_os("EDGE_PROXY_TEST_FULL").is_some_and(|full| full == "1");
    let (far, bad) = if full { (4, 3) } else { (2, 2) };
    let names: Vec<_> = (0..SPRITES).map(|n| SpriteName::parse(&format!("far-{n}")).unwrap()).collect();
    let control = Apart::start(Duration::ZERO, 0, &names).await;
    let mut visitor = control.visitor().await;
    for name in &names {
        assert_eq!(visitor.get(name).await.status, 200);
    }
    for round_trip_ms in &ROUND_TRIPS_MS[..far] {
        for lost in &LOST_PER_THOUSAND[..bad] {
            let mut measured = cell(*round_trip_ms, *lost, &names, &control).await;
            for _ in 1..TRIES {
                let Err(why) = &measured else { break };
                println!("again: {why}");
                measured = cell(*round_trip_ms, *lost, &names, &control).await;
            }
            measured.unwrap();
        }
    }
    control.stop().await;
}
