//! What is answered for each kind of name and type.

use super::*;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::Record;

/// Code and records of an answer: `name ttl type data`, a line for each; what is beside it after `--`, more after `++`.
fn shown(message: &Message) -> String {
    let line = |record: &Record| format!("{} {} {} {}", record.name, record.ttl, record.record_type(), record.data);
    let mut lines = vec![format!("{:?}", message.metadata.response_code)];
    lines.extend(message.answers.iter().map(line));
    lines.extend(message.authorities.iter().map(|record| format!("-- {}", line(record))));
    lines.extend(message.additionals.iter().map(|record| format!("++ {}", line(record))));
    lines.join("\n")
}

fn ask(name: &str, kind: RecordType) -> Message {
    answered(&question(name, kind, Some(1232)), Transport::Udp, &Published::default())
}

/// Asks `name`; the answer, without the SOA's data, which has a test of its own.
fn says(name: &str, kind: RecordType) -> String {
    let shown = shown(&ask(name, kind));
    match shown.split_once(" ns1.sprites.dev. hostmaster.") {
        Some((before, _)) if shown.contains("SOA") => before.to_owned(),
        _ => shown,
    }
}

const NODATA: &str = "NoError\n-- sprites.dev. 5 SOA";
const NXDOMAIN: &str = "NXDomain\n-- sprites.dev. 5 SOA";

#[test]
fn every_name_under_a_suffix_leads_to_the_edge() {
    for name in ["anything", "*", "a.b.c", "x-1", "anything.eu", "eu", "x.y", "other.x.y"] {
        let name = format!("{name}.sprites.dev.");
        assert_eq!(says(&name, RecordType::A), format!("NoError\n{name} 60 A 192.0.2.1\n{name} 60 A 192.0.2.2"));
        assert_eq!(says(&name, RecordType::AAAA), format!("NoError\n{name} 60 AAAA 2001:db8::1"));
        let https = format!(
            "NoError\n{name} 60 HTTPS 1 . alpn=h2,\n++ {name} 60 A 192.0.2.1\n++ {name} 60 A 192.0.2.2\n++ {name} 60 AAAA 2001:db8::1"
        );
        assert_eq!(says(&name, RecordType::HTTPS), https);
        for kind in
            [RecordType::TXT, RecordType::CAA, RecordType::NS, RecordType::MX, RecordType::CNAME, RecordType::DS]
        {
            assert_eq!(says(&name, kind), NODATA, "{name} {kind}");
        }
        assert!(says(&name, RecordType::ANY).starts_with(&format!("NoError\n{name} 3600 HINFO")), "{name}");
    }
}

#[test]
fn http3_is_promised_where_it_is_served() {
    let view = ZoneView::new(&Dns { http3: true, ..dns() }, &names(), &[]).unwrap();
    let mut out = Vec::new();
    answer(&question("a.sprites.dev", RecordType::HTTPS, None), Transport::Udp, &view, &Published::default(), &mut out);
    assert!(shown(&Message::from_vec(&out).unwrap()).contains("HTTPS 1 . alpn=h3,h2,"));
}

#[test]
fn an_apex_has_what_a_zone_has() {
    assert_eq!(
        says("sprites.dev.", RecordType::NS),
        "NoError\nsprites.dev. 3600 NS ns1.sprites.dev.\nsprites.dev. 3600 NS NS2.dns.sprites.dev.\nsprites.dev. 3600 NS ns3.elsewhere.example.\n\
         ++ ns1.sprites.dev. 3600 A 192.0.2.53\n++ ns1.sprites.dev. 3600 AAAA 2001:db8::53\n++ ns2.dns.sprites.dev. 3600 A 198.51.100.53"
    );
    let soa = shown(&ask("sprites.dev", RecordType::SOA));
    let (before, numbers) = soa.split_once(" hostmaster.sprites.dev. ").unwrap();
    assert_eq!(before, "NoError\nsprites.dev. 3600 SOA ns1.sprites.dev.");
    assert!(numbers.ends_with(" 3600 600 1209600 5"), "{numbers}");
    assert_eq!(
        says("sprites.dev.", RecordType::CAA),
        "NoError\n\
         sprites.dev. 300 CAA 0 issue \"ca.example; accounturi=https://ca.example/acct/1; validationmethods=dns-01\"\n\
         sprites.dev. 300 CAA 0 issuewild \"ca.example; accounturi=https://ca.example/acct/1; validationmethods=dns-01\"\n\
         sprites.dev. 300 CAA 0 issue \"other.example; validationmethods=dns-01\"\n\
         sprites.dev. 300 CAA 0 issuewild \"other.example; validationmethods=dns-01\""
    );
    assert_eq!(says("sprites.dev.", RecordType::TXT), "NoError\nsprites.dev. 300 TXT v=spf1 -all");
    assert_eq!(says("_psl.sprites.dev.", RecordType::TXT), "NoError\n_psl.sprites.dev. 300 TXT https://example/1");
    // A zone that has nothing but what was configured for all.
    assert!(says("sprites.example.", RecordType::CAA).contains("issuewild"));
    assert!(says("nobody.sprites.example.", RecordType::A).contains("192.0.2.1"));
    assert!(says("_psl.sprites.example.", RecordType::TXT).starts_with("NoError\n-- sprites.example. 5 SOA"));
}

#[test]
fn a_name_server_has_its_addresses_and_no_others() {
    assert_eq!(says("ns1.sprites.dev.", RecordType::A), "NoError\nns1.sprites.dev. 3600 A 192.0.2.53");
    assert_eq!(says("ns2.dns.sprites.dev.", RecordType::AAAA), NODATA);
    assert_eq!(says("ns1.sprites.dev.", RecordType::HTTPS), NODATA);
}

#[test]
fn what_is_only_above_others_is_there_and_empty() {
    // RFC 4592 §2.2.2: no wildcard stands for it. RFC 2308: no data is not no name.
    for name in ["dns.sprites.dev.", "y.sprites.dev.", "acme.sprites.dev.", "_acme-challenge.sprites.dev."] {
        for kind in [RecordType::A, RecordType::TXT, RecordType::ANY] {
            assert_eq!(says(name, kind), NODATA, "{name} {kind}");
        }
    }
}

#[test]
fn a_name_under_one_without_a_wildcard_is_none() {
    // RFC 4592 §4.3: the wildcard is at the closest name that exists, or nowhere.
    let id = format!("{ID}.acme.sprites.dev.");
    let below = format!("x.{id}");
    for name in [
        "x.ns1.sprites.dev.",
        "ns9.dns.sprites.dev.",
        "other.y.sprites.dev.",
        "x._acme-challenge.sprites.dev.",
        "x.*.sprites.dev.",
        "short.acme.sprites.dev.",
        &id,
        &below,
    ] {
        for kind in [RecordType::A, RecordType::TXT, RecordType::ANY] {
            assert_eq!(says(name, kind), NXDOMAIN, "{name} {kind}");
        }
    }
}

#[test]
fn challenges_are_where_they_were_published_for_five_seconds_and_nowhere_else() {
    let published = Published::default();
    let id = format!("{ID}.acme.sprites.dev");
    for name in ["_acme-challenge.sprites.dev", "_acme-challenge.eu.sprites.dev", &id] {
        let ask = |kind| shown(&answered(&question(&format!("{name}."), kind, None), Transport::Udp, &published));
        published.add(name, "one").unwrap();
        published.add(name, "two").unwrap();
        assert_eq!(ask(RecordType::TXT), format!("NoError\n{name}. 5 TXT one\n{name}. 5 TXT two"));
        assert!(ask(RecordType::A).starts_with(NODATA), "{}", ask(RecordType::A));
        assert!(ask(RecordType::ANY).contains("HINFO"));
        published.remove(name, "one");
        assert_eq!(ask(RecordType::TXT), format!("NoError\n{name}. 5 TXT two"));
    }
    // Somebody's own name: a node there would take its address away.
    published.add("_acme-challenge.anything.sprites.dev", "three").unwrap();
    let other = question("_acme-challenge.anything.sprites.dev", RecordType::TXT, None);
    assert!(shown(&answered(&other, Transport::Udp, &published)).starts_with(NODATA));
    assert!(says("anything.sprites.dev.", RecordType::A).contains("192.0.2.1"));
}

#[test]
fn the_letters_of_a_name_come_back_as_they_went() {
    // 0x20: a resolver knows its answer by them.
    for name in ["wWw.SpRiTeS.dEv.", "NO.such.NS1.Sprites.DEV.", "_ACME-challenge.SPRITES.dev."] {
        let message = ask(name, RecordType::A);
        assert_eq!(message.queries[0].name.to_string(), name);
        for record in &message.answers {
            assert_eq!(record.name.to_string(), name);
        }
        // As it was asked, the end of it.
        for record in &message.authorities {
            assert!(name.ends_with(&record.name.to_string()), "{name} {}", record.name);
        }
    }
}

#[test]
fn an_answer_is_ours_and_nothing_is_looked_up_for_others() {
    let mut asked = Message::query();
    asked.metadata.id = 4711;
    asked.metadata.recursion_desired = true;
    asked.metadata.checking_disabled = true;
    asked.metadata.authentic_data = true;
    asked.add_query(Query::query(Name::from_ascii("sprites.dev").unwrap(), RecordType::SOA));
    let answer = answered(&asked.to_vec().unwrap(), Transport::Udp, &Published::default()).metadata;
    assert_eq!((answer.id, answer.authoritative, answer.recursion_desired), (4711, true, true));
    assert_eq!((answer.recursion_available, answer.authentic_data, answer.checking_disabled), (false, false, false));
    for outside in ["example.com", "dev", ".", "xsprites.dev", "sprites.dev.example"] {
        let message = ask(outside, RecordType::A);
        assert_eq!((message.metadata.response_code, message.metadata.authoritative), (ResponseCode::Refused, false));
        assert_eq!(message.all_sections().count(), 0);
    }
}

#[test]
fn what_would_be_answered_is_said_in_words() {
    let authority = authority(1);
    let explained = authority.explain("a.sprites.dev", "aaaa").unwrap();
    assert_eq!((explained.code.as_str(), explained.bytes), ("NOERROR", 59));
    assert_eq!(explained.answers, ["a.sprites.dev. 60 IN AAAA 2001:db8::1"]);
    let explained = authority.explain("x.ns1.sprites.dev.", "TXT").unwrap();
    assert_eq!((explained.code.as_str(), explained.answers.len(), explained.authority.len()), ("NXDOMAIN", 0, 1));
    assert_eq!(authority.explain("example.com", "A").unwrap().code, "REFUSED");
    assert!(matches!(authority.explain("a..b", "A"), Err(ExplainError::Name(_))));
    assert!(matches!(authority.explain("a", "NONE-SUCH"), Err(ExplainError::Kind(_))));
}

#[test]
fn challenges_have_places_of_their_own() {
    let authority = authority(1);
    let id = format!("{ID}.acme.sprites.dev");
    for name in ["_acme-challenge.sprites.dev", "_ACME-challenge.eu.sprites.dev.", &id] {
        assert!(authority.is_for_challenges(name), "{name}");
    }
    for name in [
        "_acme-challenge.a.sprites.dev",
        "sprites.dev",
        "x.acme.sprites.dev",
        "_acme-challenge.example.com",
        "",
        "a..b",
    ] {
        assert!(!authority.is_for_challenges(name), "{name}");
    }
}

#[test]
fn two_edges_with_the_same_records_say_the_same_serial() {
    let serial = |dns: &Dns| {
        let view = ZoneView::new(dns, &names(), &[]).unwrap();
        let mut out = Vec::new();
        answer(&question("sprites.dev", RecordType::SOA, None), Transport::Udp, &view, &Published::default(), &mut out);
        shown(&Message::from_vec(&out).unwrap())
    };
    assert_eq!(serial(&dns()), serial(&dns()));
    assert_ne!(serial(&dns()), serial(&Dns { http3: true, ..dns() }));
}
