use super::*;
use crate::access::Access;
use crate::signing::tests::key;
use crate::wake::WakeRules;

/// An operator, three hosts (numbers 1 to 3), and one who is none of them.
const OPERATOR: u8 = 100;
const STRANGER: u8 = 200;

pub(crate) fn operators() -> Operators {
    Operators::new([key(OPERATOR).public()])
}

pub(crate) fn host_key(host: u32) -> SigningKey {
    key(u8::try_from(host).unwrap())
}

pub(crate) fn name(text: &str) -> SpriteName {
    SpriteName::parse(text).unwrap()
}

/// What would be signed for the next placement of `chain`.
fn placement<'a>(name: &'a SpriteName, chain: &[Link], generation: u64, to: u32) -> Placement<'a> {
    Placement {
        name,
        tenant: "t",
        generation: Generation(generation),
        from: chain.last().map(|link| link.to),
        to: HostId(to),
        key: host_key(to).public(),
    }
}

/// A chain from an operator through these hosts, each from a generation on.
pub(crate) fn chain(name: &SpriteName, hosts: &[(u64, u32)]) -> Vec<Link> {
    let mut chain: Vec<Link> = Vec::new();
    for &(generation, to) in hosts {
        let by = chain.last().map_or_else(|| key(OPERATOR), |link| host_key(link.to.0));
        let link = placement(name, &chain, generation, to).sign(chain.last(), &by);
        chain.push(link);
    }
    chain
}

/// A row at the end of such a chain, sealed by the host it leads to.
pub(crate) fn row(text: &str, hosts: &[(u64, u32)], generation: u64, serial: u64) -> SpriteRow {
    let name = name(text);
    let (_, host) = *hosts.last().unwrap();
    let mut row = SpriteRow {
        version: ROW_VERSION,
        tenant: "t".into(),
        generation: Generation(generation),
        host: HostId(host),
        ports: vec![8080],
        access: Access::Public,
        wake: WakeRules::default(),
        client_certificate: None,
        deleted: false,
        proof: Proof { serial, chain: chain(&name, hosts), seal: None },
    };
    row.seal(&name, &host_key(host));
    row
}

fn known(host: u32, generation: u64, serial: u64) -> Option<Known> {
    Some(Known { host: HostId(host), generation: Generation(generation), serial, unchanged: false })
}

fn why(row: &SpriteRow, known: Option<Known>) -> &'static str {
    match row.check_proof(&name("a"), known, &operators()) {
        Ok(()) => "",
        Err(RowError::Forged(why)) => why,
        Err(error) => panic!("{error}"),
    }
}

const NOBODY: &str = "nobody has signed it";
const ELSEWHERE: &str = "its chain does not lead to its host";
const OLD: &str = "it is older than what is known";
const FORKED: &str = "it was another host's when its chain says it was given away";
const UNPLACED: &str = "no operator has placed it";
const BROKEN: &str = "its chain is broken";
const NOT_GIVEN: &str = "the host that had it has not handed it over";
const WRONG_SEAL: &str = "it is sealed by somebody who does not have the sprite";
const TORN_SEAL: &str = "its seal is not of this row";

#[test]
fn a_sprite_goes_from_an_operator_by_the_hosts_that_had_it() {
    let placed = row("a", &[(1, 1)], 1, 0);
    assert_eq!(why(&placed, None), "");
    let moved = row("a", &[(1, 1), (2, 2), (3, 1), (5, 3)], 5, 0);
    // Seen from the start, from each step of it, and from nowhere.
    for before in [None, known(1, 1, 4), known(2, 2, 0), known(1, 3, 0), known(1, 4, 9)] {
        assert_eq!(why(&moved, before), "", "{before:?}");
    }
    // Its host changes it, an operator may, and it is made again where it was.
    assert_eq!(why(&row("a", &[(1, 1)], 1, 1), known(1, 1, 0)), "");
    assert_eq!(why(&row("a", &[(1, 1)], 7, 0), known(1, 6, 3)), "");
    let mut signed_again = row("a", &[(1, 1)], 1, 1);
    signed_again.seal(&name("a"), &key(OPERATOR));
    assert_eq!(why(&signed_again, known(1, 1, 0)), "");
    // What a machine knew at its last start.
    let unchanged = Known { unchanged: true, ..known(3, 5, 0).unwrap() };
    assert_eq!(why(&moved, Some(unchanged)), "");
    // Where no operator's key is configured, nothing is asked.
    let unsigned = SpriteRow { proof: Proof::default(), ..placed };
    assert_eq!(why(&unsigned, None), NOBODY);
    assert!(unsigned.check_proof(&name("a"), None, &Operators::default()).is_ok());
}

#[test]
fn an_operator_places_it_anew_whatever_its_host_says() {
    assert_eq!(why(&row("a", &[(6, 3)], 6, 0), known(1, 5, 7)), "");
    // But an old word of an operator does not come back.
    assert_eq!(why(&row("a", &[(5, 3)], 9, 0), known(1, 5, 7)), FORKED);
    assert_eq!(why(&row("a", &[(4, 3)], 9, 0), known(1, 5, 7)), FORKED);
    let stranger = Operators::new([key(STRANGER).public()]);
    assert!(matches!(
        row("a", &[(1, 1)], 1, 0).check_proof(&name("a"), None, &stranger),
        Err(RowError::Forged(UNPLACED))
    ));
}

#[test]
fn a_host_gives_away_what_it_has_once() {
    let elsewhere = known(2, 2, 0);
    // It takes it back, gives it to another, at the next generation, at the last.
    for (to, generation) in [(1, 3), (3, 3), (3, Generation::MAX.0)] {
        assert_eq!(why(&row("a", &[(1, 1), (generation, to)], generation, 0), elsewhere), FORKED, "{to} {generation}");
    }
    assert_eq!(why(&row("a", &[(1, 1), (2, 3)], 2, 0), elsewhere), OLD, "two at the same generation");
    assert_eq!(why(&row("a", &[(1, 1), (2, 3)], 2, 1), elsewhere), FORKED, "and with a higher number");
    assert_eq!(why(&row("a", &[(1, 1)], 3, 0), elsewhere), FORKED, "the row from before the move, made newer");
    assert_eq!(why(&row("a", &[(1, 1)], 1, 9), elsewhere), OLD, "the row from before the move");
}

#[test]
fn nobody_takes_what_another_has() {
    let mine = |host: u32| {
        let mut row = row("a", &[(1, 1)], 1, 0);
        row.host = HostId(host);
        row.generation = Generation(9);
        row.seal(&name("a"), &host_key(host));
        row
    };
    assert_eq!(why(&mine(3), None), ELSEWHERE);
    let mut chained = mine(3);
    let given = placement(&name("a"), &chained.proof.chain, 9, 3).sign(chained.proof.chain.last(), &host_key(3));
    chained.proof.chain.push(given);
    chained.seal(&name("a"), &host_key(3));
    assert_eq!(why(&chained, None), NOT_GIVEN);
    // A hand-over of one chain behind another one that leads to the same host.
    let other = chain(&name("a"), &[(4, 1), (9, 3)]);
    chained.proof.chain[1] = other[1].clone();
    assert_eq!(why(&chained, None), NOT_GIVEN);
    // Itself an operator.
    let mut placed = mine(3);
    placed.proof.chain = vec![placement(&name("a"), &[], 1, 3).sign(None, &host_key(3))];
    placed.seal(&name("a"), &host_key(3));
    assert_eq!(why(&placed, None), UNPLACED);
    // A chain of another sprite, or of another tenant.
    let mut other = row("b", &[(1, 3)], 1, 0);
    other.seal(&name("a"), &host_key(3));
    assert_eq!(why(&other, None), UNPLACED);
    let mut other = row("a", &[(1, 3)], 1, 0);
    other.tenant = "other".into();
    other.seal(&name("a"), &host_key(3));
    assert_eq!(why(&other, None), UNPLACED);
    // A link in front of its time, or from somebody else.
    let mut back = row("a", &[(3, 1), (3, 3)], 3, 0);
    assert_eq!(why(&back, None), BROKEN);
    back.proof.chain[1].generation = Generation(4);
    back.proof.chain[1].from = Some(HostId(2));
    back.generation = Generation(4);
    assert_eq!(why(&back, None), BROKEN);
}

#[test]
fn who_may_ask_is_said_by_the_host_that_has_it() {
    let change = |by: &SigningKey| {
        let mut row = row("a", &[(1, 1), (2, 2)], 2, 1);
        row.ports = vec![22];
        row.seal(&name("a"), by);
        row
    };
    assert_eq!(why(&change(&host_key(2)), known(2, 2, 0)), "");
    assert_eq!(why(&change(&key(OPERATOR)), known(2, 2, 0)), "");
    for other in [host_key(1), host_key(3)] {
        assert_eq!(why(&change(&other), known(2, 2, 0)), WRONG_SEAL);
        assert_eq!(why(&change(&other), None), WRONG_SEAL);
    }
    let mut torn = change(&host_key(2));
    torn.deleted = true;
    assert_eq!(why(&torn, known(2, 2, 0)), TORN_SEAL);
    assert_eq!(why(&change(&host_key(2)), known(2, 2, 1)), OLD, "the same number says something else");
    assert_eq!(why(&change(&host_key(2)), known(2, 2, 2)), OLD, "an older policy");
    // The host that gave it away writes the row of the hand-over, and not a second one.
    let mut given = row("a", &[(1, 1), (2, 2)], 2, 0);
    given.seal(&name("a"), &host_key(1));
    assert_eq!(why(&given, known(1, 1, 5)), "");
    given.ports = vec![22];
    given.seal(&name("a"), &host_key(1));
    assert_eq!(why(&given, known(2, 2, 0)), OLD);
    given.generation = Generation(3);
    given.seal(&name("a"), &host_key(1));
    assert_eq!(why(&given, known(2, 2, 0)), WRONG_SEAL);
}

#[test]
fn a_row_that_says_nothing_signs_nothing_and_one_that_was_signed_reads_back() {
    let row = row("a", &[(1, 1), (2, 2)], 2, 7);
    let (name, read) = SpriteRow::decode("sprite/a", &row.encode()).unwrap();
    assert_eq!(read, row);
    assert!(read.check_proof(&name, None, &operators()).is_ok());
    let long: Vec<_> = (1..=33).map(|step| (step, 1 + u32::try_from(step % 2).unwrap())).collect();
    let row = self::row("a", &long, 33, 0);
    assert!(matches!(SpriteRow::decode("sprite/a", &row.encode()), Err(RowError::Field("proof"))));
    assert!(row.encode().len() < 8 * 1024, "{}", row.encode().len());
}

#[test]
fn a_grant_is_an_operators_word_about_one_name() {
    let link = chain(&name("a"), &[(1, 1)]).remove(0);
    let grant = Grant { version: ROW_VERSION, tenant: "t".into(), link };
    assert_eq!(Grant::decode(&name("a"), &grant.encode(), &operators()).unwrap(), grant);
    let forged = |grant: &Grant, text: &str| {
        matches!(Grant::decode(&name(text), &grant.encode(), &operators()), Err(RowError::Forged(_)))
    };
    assert!(forged(&grant, "b"));
    assert!(forged(&Grant { tenant: "u".into(), ..grant.clone() }, "a"));
    let to = Link { to: HostId(2), ..grant.link.clone() };
    assert!(forged(&Grant { link: to, ..grant.clone() }, "a"));
    let later = Link { generation: Generation(2), ..grant.link.clone() };
    assert!(forged(&Grant { link: later, ..grant.clone() }, "a"));
    let newer = Grant { version: 2, ..grant };
    assert!(matches!(Grant::decode(&name("a"), &newer.encode(), &operators()), Err(RowError::Version(2))));
}
