//! Who waited is let go in turns; bounds of tenants and memory; how long waiting is worth it.

use super::*;

fn released(bench: &mut Bench) -> Vec<u64> {
    let released = bench.actions().into_iter().filter_map(|action| match action {
        Action::Release(id, ..) => Some(id),
        _ => None,
    });
    released.collect()
}

fn turns(count: u64) -> (Bench, Vec<u64>) {
    let limits = HoldLimits { per_sprite: 1_000, per_client: 1_000, ..HoldLimits::from(&config::Hold::default()) };
    let mut bench = Bench::new(limits);
    let ids: Vec<_> = (0..count).map(|n| bench.request_from("a", &format!("192.0.2.{}", n % 2), 30_000)).collect();
    let wakes = bench.wakes();
    bench.answer(&wakes[0], ready());
    (bench, ids)
}

#[test]
fn eight_go_at_once_the_others_when_those_are_served_or_a_moment_later() {
    let (mut bench, ids) = turns(40);
    let first = released(&mut bench);
    assert_eq!(first, ids[..8], "first come, first served, clients in turn");
    bench.holds.handle_fared(bench.now, &key("a", 0), first[0], Fared::Well);
    assert_eq!(released(&mut bench), [ids[8]]);
    bench.holds.handle_fared(bench.now, &key("a", 0), first[0], Fared::Well);
    assert_eq!(released(&mut bench), [0; 0], "its turn is over already");
    bench.later(25);
    assert_eq!(released(&mut bench).len(), 8);
    let late = bench.request("a");
    assert_eq!(released(&mut bench), [0; 0], "who comes now is behind those who waited");
    assert_consistent(&bench.holds);
    bench.later(1_000);
    let rest = released(&mut bench);
    assert_eq!((rest.len(), rest.last()), (40 - 17 + 1, Some(&late)));
    bench.assert_empty();
}

#[test]
fn a_view_is_worth_something_only_once_everybody_was_let_go() {
    let (mut bench, _) = turns(9);
    let runs = |bench: &mut Bench| bench.actions().iter().any(|action| matches!(action, Action::Runs(..)));
    assert!(!runs(&mut bench));
    bench.later(25);
    assert!(runs(&mut bench));
}

#[test]
fn those_who_still_wait_ask_again_when_the_run_is_over_and_begin_with_fewer() {
    let (mut bench, ids) = turns(40);
    let first = released(&mut bench);
    bench.holds.handle_fared(bench.now, &key("a", 0), first[3], Fared::Asleep);
    let wakes = bench.wakes();
    assert_eq!(wakes.len(), 1, "one question for all of them");
    assert_consistent(&bench.holds);
    assert_eq!(bench.holds.held(), 32);
    // The others of the old turn have nothing to say any more.
    bench.holds.handle_fared(bench.now, &key("a", 0), first[4], Fared::Asleep);
    assert!(bench.wakes().is_empty());
    bench.answer(&wakes[0], ready());
    assert_eq!(released(&mut bench), ids[8..12], "half as many");
}

#[test]
fn a_reset_halves_the_window() {
    let (mut bench, _) = turns(40);
    for id in released(&mut bench) {
        bench.holds.handle_fared(bench.now, &key("a", 0), id, Fared::Reset);
    }
    // 8 resets: 4, 2, 1; each freed a place, and none was left free.
    assert!(released(&mut bench).len() <= 1);
    bench.later(25);
    assert!(released(&mut bench).len() <= 2);
}

#[test]
fn who_leaves_or_is_late_in_its_turn_ends_alone() {
    let (mut bench, ids) = turns(10);
    released(&mut bench);
    bench.holds.handle_client_gone(ids[8]);
    assert_consistent(&bench.holds);
    let impatient = bench.request_from("a", "192.0.2.1", 10);
    bench.now += Duration::from_millis(10);
    bench.holds.handle_timeout(bench.now);
    assert!(matches!(bench.refusal(impatient), Some(HoldError::Deadline { .. })));
    bench.later(25);
    assert_eq!(released(&mut bench), [ids[9]]);
    bench.assert_empty();
}

#[test]
fn a_sprite_may_have_bounds_of_its_own() {
    let mut bench = Bench::standard();
    let own = OwnBounds { held: Some(3), window: Some(1), concurrency: None };
    let ids: Vec<_> = (0..4).map(|_| bench.request_with("a", |arrival| arrival.own = own)).collect();
    let actions = bench.actions();
    assert!(actions.contains(&Action::Refuse(ids[3], HoldError::HoldFull)));
    let Some(Action::Wake(_, wake)) = actions.first() else { panic!("{actions:?}") };
    bench.answer(wake, ready());
    assert_eq!(released(&mut bench), [ids[0]]);
}

#[test]
fn a_tenant_and_the_memory_of_all_are_bounded_and_strangers_go_first() {
    let limits = HoldLimits { per_tenant: 2, memory: 5 * BYTES, ..HoldLimits::from(&config::Hold::default()) };
    let mut bench = Bench::new(limits);
    bench.request("a");
    bench.request("b");
    let third = bench.request("c");
    assert_eq!(bench.refusal(third), Some(HoldError::TenantHoldFull));
    let other = |arrival: &mut Arrival| arrival.tenant = "other".into();
    bench.request_with("d", other);
    bench.request_with("e", other);
    let third = |arrival: &mut Arrival| arrival.tenant = "third".into();
    let stranger = bench.request_with("f", third);
    assert_eq!(bench.refusal(stranger), Some(HoldError::EdgeBusy));
    let known = |arrival: &mut Arrival| {
        third(arrival);
        arrival.class = ClientClass::Authenticated;
    };
    let friend = bench.request_with("f", known);
    assert_eq!(bench.refusal(friend), None);
    let friend = bench.request_with("f", known);
    assert_eq!(bench.refusal(friend), Some(HoldError::EdgeBusy));
    assert_consistent(&bench.holds);
}

#[test]
fn one_host_cannot_have_all_the_flights() {
    let limits = HoldLimits { flights_per_host: 2, ..HoldLimits::from(&config::Hold::default()) };
    let mut bench = Bench::new(limits);
    bench.request("a");
    bench.request("b");
    let third = bench.request("c");
    assert_eq!(bench.refusal(third), Some(HoldError::EdgeBusy));
    let elsewhere = bench.request_with("d", |arrival| arrival.host = HostId(2));
    assert_eq!(bench.refusal(elsewhere), None);
}

#[test]
fn waiting_is_worth_it_for_as_long_as_its_wakes_took_unless_it_is_held() {
    let mut bench = Bench::standard();
    for _ in 0..5 {
        bench.request("a");
        let wakes = bench.wakes();
        bench.answer(&wakes[0], ready());
        released(&mut bench);
    }
    let id = bench.request("a");
    let wake = bench.wakes().remove(0);
    bench.accept(&wake);
    bench.later(9_999);
    assert_eq!(bench.refusal(id), None);
    bench.later(1);
    assert!(matches!(bench.refusal(id), Some(HoldError::Deadline { .. })), "ten seconds, not thirty");
    let id = bench.request("a");
    let wake = bench.wakes().remove(0);
    let held = Accepted { held: true, ..Accepted::default() };
    bench.answer(&wake, Outcome::Accepted(held));
    let later = bench.request("a");
    for _ in 0..29 {
        bench.later(1_000);
        bench.accept(&wake);
    }
    assert_eq!(bench.holds.held(), 2);
    bench.later(1_000);
    let ended: Vec<_> = bench.actions().into_iter().filter(|action| matches!(action, Action::Refuse(..))).collect();
    assert!(matches!(&ended[..], [Action::Refuse(a, _), Action::Refuse(b, _)] if (*a, *b) == (id, later)), "{ended:?}");
    bench.assert_empty();
}

#[test]
fn a_deadline_says_how_long_it_may_still_take() {
    let mut bench = Bench::standard();
    let id = bench.request_from("a", "192.0.2.1", 1_000);
    let wake = bench.wakes().remove(0);
    bench.answer(&wake, Outcome::Accepted(Accepted { eta_ms: 7_000, ..Accepted::default() }));
    bench.later(1_000);
    let eta = Duration::from_secs(6);
    assert_eq!(bench.refusal(id), Some(HoldError::Deadline { phase: Phase::Queued, eta }));
}

#[test]
fn each_that_goes_tells_how_many_might_be_on_their_way() {
    let (mut bench, ids) = turns(40);
    let windows = |bench: &mut Bench| -> Vec<_> {
        let windows = bench.actions().into_iter().filter_map(|action| match action {
            Action::Release(_, _, window) => Some(window),
            _ => None,
        });
        windows.collect()
    };
    assert_eq!(windows(&mut bench), [8; 8]);
    bench.later(25);
    assert_eq!(windows(&mut bench), [16; 8]);
    bench.holds.handle_fared(bench.now, &key("a", 0), ids[0], Fared::Reset);
    bench.holds.handle_fared(bench.now, &key("a", 0), ids[1], Fared::Reset);
    for id in &ids[2..16] {
        bench.holds.handle_fared(bench.now, &key("a", 0), *id, Fared::Well);
    }
    assert_eq!(windows(&mut bench), [4; 4], "halved twice");
}
