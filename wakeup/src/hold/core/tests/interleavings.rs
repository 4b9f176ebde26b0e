//! wake.md, test 14, the flight: any order of inputs keeps the counts, ends every wait once, and
//! never passes a bound.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Input {
    Request {
        sprite: u8,
        port: u16,
        client: u8,
        patience: u64,
    },
    Leave(usize),
    /// What the owner says about the nth wake ever sent, late or not.
    Answer(usize, u8),
    HostDown,
    /// How the nth request ever let go fared.
    Fared(usize, u8),
    Pass(u64),
    Drain(u64),
}

fn input() -> impl Strategy<Value = Input> {
    let request = (0..4_u8, 0..2_u16, 0..4_u8, 0..12_000_u64);
    prop_oneof![
        12 => request.prop_map(|(sprite, port, client, patience)| Input::Request { sprite, port, client, patience }),
        4 => any::<usize>().prop_map(Input::Leave),
        6 => (any::<usize>(), 0..7_u8).prop_map(|(wake, what)| Input::Answer(wake, what)),
        1 => Just(Input::HostDown),
        5 => (any::<usize>(), 0..3_u8).prop_map(|(nth, how)| Input::Fared(nth, how)),
        5 => (0..3_000_u64).prop_map(Input::Pass),
        1 => (0..30_000_u64).prop_map(Input::Drain),
    ]
}

fn outcome(what: u8) -> Outcome {
    let refused =
        |cause: Cause| Outcome::Refused(Refused { cause: cause.into(), retry_after_ms: 1_000, detail: String::new() });
    match what {
        0 => Outcome::Accepted(Accepted { joined: true, ..Accepted::default() }),
        1 => Outcome::Progress(Progress { phase: Phase::Starting.into() }),
        2 => refused(Cause::WakeDeadline),
        3 => refused(Cause::WakeFailed),
        4 => Outcome::Gone(backhaul::wire::Gone { generation: 1 }),
        5 => refused(Cause::HostBusy),
        _ => ready(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_interleaving_keeps_the_counts_and_ends_every_wait_once(inputs in prop::collection::vec(input(), 1..120)) {
        let limits = HoldLimits { per_sprite: 6, per_client: 8, per_process: 14, flights: 5, release_window: 2, ..HoldLimits::from(&config::Hold::default()) };
        let mut bench = Bench::new(limits.clone());
        let (mut waiting, mut wakes, mut gone) = (BTreeMap::new(), Vec::new(), Vec::new());
        for input in inputs {
            match input {
                Input::Request { sprite, port, client, patience } => {
                    let deadline = bench.now + Duration::from_millis(patience);
                    let id = bench.request_for(&format!("s{sprite}"), port, &format!("192.0.2.{client}"), patience);
                    waiting.insert(id, (deadline, sprite, client, port));
                }
                Input::Leave(nth) => {
                    if let Some(&id) = waiting.keys().nth(nth % waiting.len().max(1)) {
                        bench.holds.handle_client_gone(id);
                        waiting.remove(&id);
                    }
                }
                Input::Answer(nth, what) => {
                    if let Some(wake) = wakes.get(nth % wakes.len().max(1)).cloned() {
                        bench.answer(&wake, outcome(what));
                    }
                }
                Input::Fared(nth, how) => {
                    let how = [Fared::Well, Fared::Reset, Fared::Asleep][usize::from(how)];
                    if let Some((key, id)) = gone.get(nth % gone.len().max(1)) {
                        bench.holds.handle_fared(bench.now, key, *id, how);
                    }
                }
                Input::HostDown => bench.holds.handle_host_down(bench.now, HOST),
                Input::Pass(ms) => bench.later(ms),
                Input::Drain(ms) => bench.holds.handle_drain(bench.now + Duration::from_millis(ms)),
            }
            let now = bench.now;
            for action in bench.actions() {
                match action {
                    Action::Wake(_, wake) => {
                        prop_assert!(wake.deadline_ms > 0);
                        wakes.push(wake);
                    }
                    Action::Withdraw(..) | Action::Runs(..) => {}
                    Action::Release(id, ..) => {
                        let ended = waiting.remove(&id);
                        prop_assert!(ended.is_some(), "{} ended twice", id);
                        if let Some((_, sprite, _, port)) = ended {
                            gone.push((key(&format!("s{sprite}"), port), id));
                        }
                    }
                    Action::Refuse(id, error) => {
                        let ended = waiting.remove(&id);
                        let late = matches!(error, HoldError::Deadline { .. });
                        prop_assert!(ended.is_some_and(|(deadline, ..)| !late || deadline <= now), "{}: {}", id, error);
                    }
                }
            }
            assert_consistent(&bench.holds);
            prop_assert_eq!(bench.holds.held(), waiting.len());
            prop_assert!(bench.holds.held() <= limits.per_process && bench.holds.flights() <= limits.flights);
            for n in 0..4 {
                prop_assert!(waiting.values().filter(|(_, sprite, ..)| *sprite == n).count() <= limits.per_sprite);
                prop_assert!(waiting.values().filter(|(_, _, client, _)| *client == n).count() <= limits.per_client);
            }
        }
        bench.later(12_000);
        bench.assert_empty();
    }
}
