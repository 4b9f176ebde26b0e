//! Every cause, with the words that go with it.

use super::*;
use acme::order::GATE;

const NOW: u64 = 1_800_000_000;

fn certificate(issued_days_ago: u64) -> CertRow {
    let not_before = NOW - issued_days_ago * DAY;
    CertRow {
        names: vec!["shop.example".into()],
        ca: "first".into(),
        generation: 3,
        chain: String::new(),
        sealed_key: String::new(),
        not_before,
        not_after: not_before + 90 * DAY,
        issued_at: not_before,
        ari: None,
        window: None,
        compromised: false,
        renew_asked: None,
        revocation: None,
    }
}

fn order(step: Step) -> OrderRow {
    OrderRow { step, ..OrderRow::new(vec!["shop.example".into()], "first", Kind::Http01, 4, NOW) }
}

fn failed(step: Step, class: Class, said: &str) -> OrderRow {
    order(step).failed(Problem::new(class, said), NOW)
}

fn records() -> Records {
    Records {
        points_here: "shop.example CNAME edge.example.net".into(),
        proof: Some("_sprite-challenge.shop.example TXT sprite-domain=x".into()),
        caa: "shop.example CAA 0 issue \"letsencrypt.org\"".into(),
        delegation: "sprites.test NS ns1.example.net".into(),
    }
}

const fn facts<'a>(keys: &'a Keys, records: &'a Records) -> Facts<'a> {
    Facts {
        now: NOW,
        wanted: true,
        claimed: true,
        newest: None,
        served: None,
        not_opened: None,
        lacking: Vec::new(),
        order: None,
        gate: None,
        account: None,
        distrusted: false,
        set_aside: false,
        keys,
        records,
    }
}

#[test]
fn every_cause_has_its_evidence_its_next_try_and_what_helps() {
    let (open, records) = (Keys::Open, records());
    let base = || facts(&open, &records);
    let said = |facts: &Facts<'_>| {
        let explained = explain(facts);
        let next = explained.next_try_unix_s.map_or_else(|| "never".to_owned(), |next| format!("+{}", next - NOW));
        format!("{} | next {next}", explained.in_words())
    };
    let wrong = Keys::Wrong("it is sealed under a key that this machine's KEK does not open".into());
    let away = Keys::Away("no answer".into());
    let (fresh, old, gone) = (certificate(10), certificate(80), certificate(100));
    let orders = [
        order(Step::Asking),
        failed(Step::Publishing, Class::Unready, "not every PoP answers the challenge yet: fra-1, iad-2"),
        failed(Step::Asking, Class::Unauthorized, "connection refused"),
        failed(Step::Asking, Class::Caa, "CAA record for shop.example prevents issuance"),
        failed(Step::Asking, Class::Dns, "SERVFAIL looking up A"),
        failed(Step::Ordering, Class::Unavailable, "no reply within 30 s"),
        failed(Step::Ordering, Class::RateLimited, "too many orders"),
        failed(Step::Ordering, Class::Rejected, "policy forbids it"),
        failed(Step::Finalising, Class::Other, "it is for another key"),
        failed(Step::Ordering, Class::Account, "unknown account"),
        failed(Step::Ordering, Class::Held, "limit/first/orders: 0 of 270 left"),
        failed(Step::Ordering, Class::Undelegated, "_acme-challenge.shop.example has no CNAME"),
    ];
    let dns = OrderRow { kind: Kind::Dns01, ..orders[2].clone() };
    let again = OrderRow { next_try: NOW - 1, ..orders[2].clone() };
    let with = |order| Facts { order: Some(order), ..base() };
    let valid = |newest| Facts { newest: Some(newest), served: Some(3), ..base() };
    let closed = |class| Some(Problem::new(class, "no way to it"));
    for (facts, golden) in [
        (
            Facts { wanted: false, claimed: false, ..base() },
            "not_wanted: it is under none of names.suffixes, and nobody claims it; claim it: edge-proxy domain add NAME SPRITE | next never",
        ),
        (
            Facts { wanted: false, ..base() },
            "not_proved: the domain is claimed, and not proved yet; record: _sprite-challenge.shop.example TXT sprite-domain=x; \
             set the record; the edge finds it by itself, or at once with `domain check` | next never",
        ),
        (
            facts(&wrong, &records),
            "key_missing: it is sealed under a key that this machine's KEK does not open; \
             put the fleet's key encryption key into acme.kek_file on this machine, and start again | next never",
        ),
        (facts(&away, &records), "store_away: no answer; see that the store is there | next never"),
        (base(), "not_begun: no order is on its way | next +1"),
        (with(&orders[0]), "order_on_its_way: the CA is looking for the answers at first | next +0"),
        (
            with(&again),
            "order_on_its_way: the CA is looking for the answers at first; it failed 1 times, last: connection refused | next +0",
        ),
        (
            with(&orders[1]),
            "barrier_not_passed: not every PoP answers the challenge yet: fra-1, iad-2; \
             see why those PoPs do not follow the store, or end them | next +2",
        ),
        (
            with(&orders[2]),
            "challenge_not_found: first: connection refused; record: shop.example CNAME edge.example.net; \
             let the name lead here, with no other address, and no proxy in between | next +1",
        ),
        (
            with(&dns),
            "challenge_not_found: first: connection refused; record: sprites.test NS ns1.example.net; \
             let the name's DNS lead the CA's questions to this edge | next +1",
        ),
        (
            with(&orders[3]),
            "caa_forbids: first: CAA record for shop.example prevents issuance; \
             record: shop.example CAA 0 issue \"letsencrypt.org\"; let the name's CAA records allow the CA, or remove them | next +3600",
        ),
        (
            with(&orders[4]),
            "dns_fails: first: SERVFAIL looking up A; \
             see why the name's DNS servers do not answer everywhere; broken DNSSEC is a common cause | next +3600",
        ),
        (
            with(&orders[10]),
            "limit_reached: limit/first/orders: 0 of 270 left; wait; another CA can be configured (acme.fallback) | next +3600",
        ),
        (
            with(&orders[11]),
            "not_delegated: _acme-challenge.shop.example has no CNAME; \
             let the name's owner set that record; a wildcard is proved by nothing else | next +60",
        ),
        (with(&orders[5]), "ca_away: first: no reply within 30 s | next +60"),
        (
            Facts { account: closed(Class::Unavailable), ..with(&orders[0]) },
            "ca_away: the account at first is not open: no way to it | next never",
        ),
        (
            Facts { account: closed(Class::Account), ..with(&orders[0]) },
            "account_refused: the account at first is not open: no way to it; \
             see acme.eab_id and acme.contact, and what the CA says | next never",
        ),
        (
            Facts { gate: Some(NOW + GATE), ..with(&orders[6]) },
            "gate_closed: first wants to be left alone for 60 min: too many orders; \
             wait; another CA can be configured (acme.fallback) | next +3600",
        ),
        (
            Facts { gate: Some(NOW - 1), ..with(&orders[7]) },
            "rejected: first: policy forbids it; use another CA (acme.fallback), profile or name | next +86400",
        ),
        (with(&orders[8]), "unfit: first: it is for another key | next +60"),
        (
            with(&orders[9]),
            "account_refused: first: unknown account; see acme.eab_id and acme.contact, and what the CA says | next +3600",
        ),
        (valid(&fresh), "served: generation 3 of first, which ends in 80 days | next never"),
        (
            Facts { served: Some(0), ..valid(&fresh) },
            "served: generation 3 of first, which ends in 80 days | next never",
        ),
        (
            Facts { served: Some(2), not_opened: Some("forged".into()), ..valid(&fresh) },
            "not_served_here: generation 3 cannot be opened here: forged; see that this machine has the fleet's acme.kek_file | next never",
        ),
        (
            Facts { served: None, ..valid(&fresh) },
            "not_served_here: generation 3 came 864000 s ago, and this PoP does not serve it; see its log, and start it again | next never",
        ),
        (
            Facts { lacking: vec!["iad-2".into()], ..valid(&fresh) },
            "not_served_everywhere: generation 3 came 864000 s ago, and is not served by iad-2; see the log of those PoPs | next never",
        ),
        (valid(&old), "expiring_soon: it ends in 10 days; no order is on its way | next +1"),
        (
            Facts { order: Some(&orders[2]), ..valid(&old) },
            "challenge_not_found: first: connection refused; the present one ends in 10 days; \
             record: shop.example CNAME edge.example.net; \
             let the name lead here, with no other address, and no proxy in between | next +1",
        ),
        (
            Facts { order: Some(&orders[0]), ..valid(&fresh) },
            "order_on_its_way: the CA is looking for the answers at first; the present one ends in 80 days | next +0",
        ),
        (
            Facts { order: Some(&orders[0]), ..valid(&gone) },
            "expired: generation 3 has ended 10 days ago; the CA is looking for the answers at first | next +0",
        ),
        (
            Facts { order: Some(&orders[3]), ..valid(&gone) },
            "caa_forbids: first: CAA record for shop.example prevents issuance; \
             record: shop.example CAA 0 issue \"letsencrypt.org\"; let the name's CAA records allow the CA, or remove them | next +3600",
        ),
    ] {
        assert_eq!(said(&facts), golden);
    }
    let bad = CertRow { compromised: true, ..certificate(10) };
    assert_eq!(
        said(&Facts { order: Some(&orders[0]), ..valid(&bad) }),
        "compromised: the key of generation 3 is somebody else's too; the CA is looking for the answers at first | next +0"
    );
    // One of before, by a CA that is trusted, may answer meanwhile.
    assert_eq!(
        said(&Facts { distrusted: true, order: Some(&orders[0]), ..Facts { served: Some(2), ..valid(&fresh) } }),
        "distrusted: visitors trust first no more; the CA is looking for the answers at first | next +0"
    );
    for aside in [valid(&fresh), valid(&gone), base()] {
        assert_eq!(
            said(&Facts { distrusted: true, set_aside: true, ..aside }),
            "distrusted: visitors trust its CA no more, and nothing is ordered of it; \
             the certificate of another CA answers; `cert distrust --undo` takes it back | next never"
        );
    }
    assert_eq!(Explained::without_cas(false, false).cause, Cause::NoCa);
    assert_eq!(Explained::without_cas(true, true).cause, Cause::Served);
    // A new one is given its time before it is missed.
    let new = CertRow { issued_at: NOW - UNACKNOWLEDGED + 1, ..certificate(0) };
    for missed in [Facts { served: Some(2), ..valid(&new) }, Facts { lacking: vec!["iad-2".into()], ..valid(&new) }] {
        assert_eq!(explain(&missed).cause, Cause::Served);
    }
}
