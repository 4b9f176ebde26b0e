use super::*;
use crate::ca::Kind;
use crate::order::DAY;

const NOW: u64 = 1_800_000_000;

fn wish(id: &str) -> Wish {
    Wish { id: id.into(), names: vec![id.into()], kind: Kind::Http01, tenant: "t".into(), cas: vec![] }
}

fn wishes(count: usize) -> Vec<Wish> {
    (0..count).map(|number| wish(&format!("{number:04}"))).collect()
}

/// All there is now, worked on.
fn all(agenda: &mut Agenda, now: u64) -> Vec<String> {
    std::iter::from_fn(|| agenda.next(now)).map(|wish| wish.id.clone()).collect()
}

fn turn(opens: u64, ends: Option<u64>) -> Again {
    Again::Turn { door: "gate/ca".into(), opens, ends }
}

#[test]
fn each_is_looked_at_in_its_time_and_not_again_while_it_is_worked_on() {
    let mut agenda = Agenda::default();
    agenda.list(wishes(3), |wish| (Seen::default(), NOW + 10 * wish.id.parse::<u64>().unwrap()));
    assert_eq!((agenda.next(NOW - 1).is_none(), agenda.wake()), (true, Some(NOW)));
    assert_eq!(all(&mut agenda, NOW), ["0000"]);
    assert_eq!(agenda.wake(), Some(NOW + 10));
    agenda.done("0000", Again::At(NOW + 15), NOW + 1);
    assert_eq!(all(&mut agenda, NOW + 20), ["0001", "0000", "0002"]);
    assert_eq!(agenda.wake(), None);
    // Whatever says "now" waits a second.
    agenda.done("0001", Again::At(0), NOW + 20);
    assert_eq!(agenda.wake(), Some(NOW + 21));
}

#[test]
fn what_has_changed_is_looked_at_again_and_what_has_not_keeps_its_time() {
    let mut agenda = Agenda::default();
    agenda.list(wishes(2), |_| (Seen::default(), NOW));
    assert_eq!(all(&mut agenda, NOW).len(), 2);
    agenda.done("0000", Again::At(NOW + 100), NOW);
    agenda.list(wishes(2), |_| (Seen::default(), NOW));
    assert_eq!(agenda.wake(), Some(NOW + 100));
    let compromised = Seen { due: 1, ..Seen::default() };
    agenda.list(wishes(2), |_| (compromised, NOW));
    assert_eq!(all(&mut agenda, NOW), ["0000"]);
    // Of one that was worked on meanwhile, when that is over.
    agenda.done("0001", Again::At(NOW + 100), NOW);
    assert_eq!(all(&mut agenda, NOW + 1), ["0001"]);
    // Gone: also from where it waits and from under who works on it.
    agenda.done("0000", turn(NOW + 50, None), NOW);
    agenda.list(vec![], |_| (compromised, NOW));
    agenda.done("0001", Again::At(NOW), NOW);
    assert_eq!((agenda.wake(), agenda.entries.len(), agenda.doors.len(), agenda.times.len()), (None, 0, 0, 0));
}

#[test]
fn what_is_told_by_name_is_here_if_it_is_soon_and_gone_if_it_is_wanted_no_more() {
    let mut agenda = Agenda::default();
    let granted = |id: &str, due, at| Some((wish(id), Seen { due, ..Seen::default() }, at));
    agenda.tell("later", granted("later", 1, NOW + 101), NOW + 100);
    assert_eq!((agenda.wake(), agenda.entries.len()), (None, 0), "a list brings it in time");
    agenda.tell("soon", granted("soon", 1, NOW + 100), NOW + 100);
    assert_eq!(agenda.wake(), Some(NOW + 100));
    // One that is here is told whatever its time is by now.
    agenda.tell("soon", granted("soon", 2, NOW + 900), NOW + 100);
    assert_eq!(agenda.wake(), Some(NOW + 900));
    agenda.tell("soon", None, NOW + 100);
    assert_eq!((agenda.wake(), agenda.entries.len()), (None, 0));
    // While it is worked on: looked at again, gone, and wanted again.
    for (told, again) in
        [(vec![granted("it", 2, NOW + 900)], true), (vec![None], false), (vec![None, granted("it", 1, NOW)], true)]
    {
        agenda.tell("it", granted("it", 1, NOW), NOW + 100);
        assert_eq!(all(&mut agenda, NOW), ["it"]);
        told.into_iter().for_each(|told| agenda.tell("it", told, NOW + 100));
        agenda.done("it", Again::At(NOW + 50), NOW);
        assert_eq!(agenda.entries.contains_key("it"), again);
        agenda.tell("it", None, NOW + 100);
    }
}

#[test]
fn a_door_lets_through_one_two_four_while_it_is_open_and_one_when_it_was_closed() {
    let mut agenda = Agenda::default();
    agenda.list(wishes(40), |_| (Seen::default(), NOW));
    for id in all(&mut agenda, NOW) {
        agenda.done(&id, turn(NOW + 60, None), NOW);
    }
    assert_eq!((agenda.wake(), agenda.next(NOW + 59).is_none()), (Some(NOW + 60), true));
    // The first one finds it closed still: nobody else tries.
    assert_eq!(all(&mut agenda, NOW + 60), ["0000"]);
    agenda.done("0000", turn(NOW + 90, None), NOW + 60);
    assert_eq!(agenda.wake(), Some(NOW + 90));
    let mut turns = Vec::new();
    loop {
        let through = all(&mut agenda, NOW + 90);
        if through.is_empty() {
            break;
        }
        turns.push(through.len());
        through.iter().for_each(|id| agenda.done(id, Again::At(NOW + DAY), NOW + 90));
    }
    assert_eq!(turns, [1, 2, 4, 8, 16, 9]);
    assert_eq!(agenda.doors.len(), 0);
}

#[test]
fn one_that_takes_its_time_behind_a_door_holds_the_others_up_for_seconds() {
    let mut agenda = Agenda::default();
    agenda.list(wishes(40), |_| (Seen::default(), NOW));
    for id in all(&mut agenda, NOW) {
        agenda.done(&id, turn(NOW + 60, None), NOW);
    }
    let opens = NOW + 60;
    let through: Vec<_> = (0..10).map(|second| all(&mut agenda, opens + second).len()).collect();
    assert_eq!((through, agenda.wake()), (vec![1, 0, 0, 1, 2, 4, 8, 0, 0, 0], None));
    // The next as soon as one of them is through.
    agenda.done("0003", Again::At(NOW + DAY), opens + 10);
    assert_eq!(all(&mut agenda, opens + 10).len(), 1);
}

#[test]
fn those_that_end_soon_go_first_then_those_that_have_none_in_the_order_of_their_coming() {
    let mut agenda = Agenda::default();
    agenda.list(wishes(6), |_| (Seen::default(), NOW));
    let ends = [None, Some(NOW + 20 * DAY), None, Some(NOW + 4 * DAY), Some(NOW + DAY), Some(NOW + 9 * DAY)];
    let mut began = all(&mut agenda, NOW);
    began.reverse();
    for id in began {
        agenda.done(&id, turn(NOW + 60, ends[id.parse::<usize>().unwrap()]), NOW);
    }
    let mut order = Vec::new();
    while let Some(next) = agenda.next(NOW + 60) {
        order.push(next.id.clone());
        // One at a time.
        agenda.done(&next.id, Again::At(NOW + DAY), NOW + 60);
    }
    assert_eq!(order, ["0004", "0003", "0000", "0002", "0005", "0001"]);
}

#[test]
fn one_that_is_to_ask_another_ca_does_not_wait_at_the_door_of_the_first() {
    let mut agenda = Agenda::default();
    agenda.list(wishes(3), |_| (Seen::default(), NOW));
    for id in all(&mut agenda, NOW) {
        agenda.done(&id, turn(NOW + 7 * DAY, Some(NOW + DAY)), NOW);
    }
    assert!(all(&mut agenda, NOW + 60).is_empty());
    let mut changed = wishes(3);
    changed[1].cas = vec![("second".into(), String::new())];
    agenda.list(changed.clone(), |_| (Seen::default(), NOW + 60));
    assert_eq!(all(&mut agenda, NOW + 60), ["0001"]);
    agenda.done("0001", Again::At(NOW + 100), NOW + 60);
    agenda.list(changed, |_| (Seen::default(), NOW + 60));
    assert_eq!(all(&mut agenda, NOW + 100), ["0001"]);
    // The others wait on.
    agenda.done("0001", Again::At(NOW + 30 * DAY), NOW + 100);
    assert_eq!(agenda.wake(), Some(NOW + 7 * DAY));
}

#[test]
fn at_a_door_one_of_each_tenant_goes_in_turn() {
    let mut agenda = Agenda::default();
    let mut many = wishes(100);
    many.push(Wish { tenant: "u".into(), ..wish("late") });
    agenda.list(many, |_| (Seen::default(), NOW));
    for id in all(&mut agenda, NOW) {
        agenda.done(&id, turn(NOW + 60, None), NOW);
    }
    // The first finds it closed, and is its tenant's first again.
    assert_eq!(all(&mut agenda, NOW + 60), ["0000"]);
    agenda.done("0000", turn(NOW + 90, None), NOW + 60);
    let mut gone = Vec::new();
    for now in NOW + 90..NOW + 100 {
        for id in all(&mut agenda, now) {
            agenda.done(&id, Again::At(NOW + DAY), now);
            gone.push(id);
        }
    }
    assert_eq!(gone[..4], ["late", "0000", "0001", "0002"]);
}
