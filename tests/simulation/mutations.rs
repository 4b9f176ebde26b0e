//! Worlds in which one thing is missing (`wake.md`, test 16): a named scenario, which holds
//! in the whole world, must fail in each of them. What is taken away is taken away outside
//! of the cores: by the network, the clients, the limits.

use super::scenarios as whole;
use super::{moves, world::World};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// Nobody tells an owner that the last waiter left.
    NoWithdrawal,
    /// The end of the request that began a flight ends the flight.
    LeaderEndsAll,
    /// Everybody is let go at once.
    NoPacing,
    /// A claim goes on for ever.
    LeasesNeverExpire,
    /// A request goes where its route led before it was held.
    NoReResolve,
}

impl World {
    pub(super) fn mutated(&self, by: Mutation) -> bool {
        self.mutation == Some(by)
    }
}

/// The scenario holds in the whole world, and fails with `says` in the mutated one.
fn caught(mutation: Mutation, says: &str, scenario: fn(Option<Mutation>)) {
    scenario(None);
    let failure = catch_unwind(AssertUnwindSafe(|| scenario(Some(mutation)))).expect_err("nothing was noticed");
    let text = failure.downcast_ref::<String>().cloned();
    let text = text.or_else(|| failure.downcast_ref::<&str>().map(|text| (*text).to_owned())).expect("a text");
    assert!(text.contains(says), "it was noticed by something else: {text}");
}

#[test]
fn without_withdrawal_a_sprite_starts_for_nobody() {
    caught(Mutation::NoWithdrawal, "I2:", whole::all_leave_before_the_start);
}

#[test]
fn without_detachment_a_leader_that_leaves_takes_the_others_with_it() {
    caught(Mutation::LeaderEndsAll, "I4:", |mutation| whole::the_leader_leaves(mutation, 100));
}

#[test]
fn without_pacing_more_are_let_go_than_the_window_has_room_for() {
    caught(Mutation::NoPacing, "I8:", whole::many_wait);
}

#[test]
fn without_the_end_of_leases_a_sprite_never_sleeps() {
    caught(Mutation::LeasesNeverExpire, "I5:", whole::one_visit);
}

#[test]
fn without_a_new_route_a_request_goes_where_its_sprite_was() {
    caught(Mutation::NoReResolve, "I7:", moves::a_table_that_changes_behind_a_hold);
}

#[test]
fn without_a_new_route_who_waits_for_a_moved_sprite_is_refused() {
    caught(Mutation::NoReResolve, "the move refused", moves::a_move_in_the_middle_of_a_wake);
}
