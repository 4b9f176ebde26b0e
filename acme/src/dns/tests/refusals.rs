//! What is refused, and how long an answer may be.

use super::*;
use hickory_proto::op::{Metadata, OpCode, ResponseCode};
use hickory_proto::rr::DNSClass;

fn code(message: &[u8]) -> ResponseCode {
    answered(message, Transport::Udp, &Published::default()).metadata.response_code
}

fn silent(message: &[u8]) -> bool {
    let mut out = vec![1];
    answer(message, Transport::Udp, &view(), &Published::default(), &mut out).is_none() && out.is_empty()
}

#[test]
fn zones_are_not_transferred() {
    for transport in [Transport::Udp, Transport::Tcp] {
        for kind in [RecordType::AXFR, RecordType::IXFR] {
            let message = answered(&question("sprites.dev", kind, None), transport, &Published::default());
            assert_eq!(message.metadata.response_code, ResponseCode::Refused);
            assert_eq!(message.all_sections().count(), 0);
        }
    }
    // As it is really sent: with the SOA that is known beside it.
    let mut ixfr = question("sprites.dev", RecordType::IXFR, None);
    ixfr[9] = 1;
    ixfr.extend(b"\xc0\x0c\0\x06\0\x01\0\0\0\0\0\x16\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(code(&ixfr), ResponseCode::Refused);
}

#[test]
fn what_is_no_question_is_not_implemented() {
    for op in [OpCode::Notify, OpCode::Update, OpCode::Status] {
        let mut message = Message::query();
        message.metadata = Metadata::new(7, message.metadata.message_type, op);
        message.add_query(Query::query(Name::from_ascii("sprites.dev").unwrap(), RecordType::SOA));
        let answer = answered(&message.to_vec().unwrap(), Transport::Udp, &Published::default());
        assert_eq!(
            (answer.metadata.response_code, answer.metadata.op_code, answer.metadata.id),
            (ResponseCode::NotImp, op, 7)
        );
    }
    for kind in [RecordType::Unknown(249), RecordType::Unknown(253), RecordType::Unknown(254)] {
        assert_eq!(code(&question("sprites.dev", kind, None)), ResponseCode::NotImp);
    }
}

#[test]
fn two_questions_or_none_are_an_error() {
    let mut message = Message::query();
    assert_eq!(code(&message.to_vec().unwrap()), ResponseCode::FormErr);
    for name in ["sprites.dev", "a.sprites.dev"] {
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    }
    let answer = answered(&message.to_vec().unwrap(), Transport::Udp, &Published::default());
    assert_eq!((answer.metadata.response_code, answer.queries.len()), (ResponseCode::FormErr, 0));
}

#[test]
fn other_classes_are_refused() {
    for class in [DNSClass::CH, DNSClass::ANY] {
        let mut message = Message::query();
        let mut query = Query::query(Name::from_ascii("version.bind").unwrap(), RecordType::TXT);
        query.set_query_class(class);
        message.add_query(query);
        assert_eq!(code(&message.to_vec().unwrap()), ResponseCode::Refused);
    }
}

#[test]
fn edns_of_another_version_is_told_ours() {
    let mut message = question("sprites.dev", RecordType::A, Some(1232));
    let at = message.len() - 5;
    message[at] = 1;
    let answer = answered(&message, Transport::Udp, &Published::default());
    let edns = answer.edns.unwrap();
    // 16: hickory's name for it is that of another code with the same number.
    assert_eq!((u16::from(answer.metadata.response_code), edns.version(), answer.answers.len()), (16, 0, 0));
}

#[test]
fn an_opt_is_answered_with_one_and_only_then() {
    let with = answered(&question("sprites.dev", RecordType::A, Some(4096)), Transport::Udp, &Published::default());
    assert_eq!(with.edns.unwrap().max_payload(), 1232);
    let without = answered(&question("sprites.dev", RecordType::A, None), Transport::Udp, &Published::default());
    assert_eq!(without.edns, None);
    let mut asked = question("sprites.dev", RecordType::A, Some(1232));
    let flags = asked.len() - 4;
    asked[flags] |= 0x80;
    assert!(answered(&asked, Transport::Udp, &Published::default()).edns.unwrap().flags().dnssec_ok);
    // A second one, one that is not at the root, and one whose options do not end.
    let opt = |owner: &[u8], options: &[u8]| {
        let mut message = question("sprites.dev", RecordType::A, None);
        message[11] += 1;
        message.extend(
            [owner, &[0, 41, 4, 208, 0, 0, 0, 0], &u16::try_from(options.len()).unwrap().to_be_bytes(), options]
                .concat(),
        );
        message
    };
    assert_eq!(code(&opt(b"\0", &[0, 10, 0, 2, 7, 7])), ResponseCode::NoError);
    assert_eq!(code(&opt(b"\x01a\0", &[])), ResponseCode::FormErr);
    assert_eq!(code(&opt(b"\xc0\x0c", &[])), ResponseCode::FormErr);
    assert_eq!(code(&opt(b"\0", &[0, 10, 0, 9, 7, 7])), ResponseCode::FormErr);
    let mut two = opt(b"\0", &[]);
    two[11] += 1;
    two.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    assert_eq!(code(&two), ResponseCode::FormErr);
}

#[test]
fn compression_is_followed_nowhere() {
    // A question that points at itself, one that points ahead, and records that point at each other.
    let header = |extra: u8| [0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, extra];
    for name in [&b"\xc0\x0c"[..], b"\x01a\xc0\x0c", b"\xc0\x20", b"\xff\xff"] {
        assert_eq!(code(&[&header(0)[..], name, &[0, 1, 0, 1]].concat()), ResponseCode::FormErr);
    }
    let mut bomb = [&header(4)[..], b"\x07sprites\x03dev\0\0\x01\0\x01"].concat();
    for _ in 0..4 {
        bomb.extend(b"\xc0\x0c\0\x10\0\x01\0\0\0\0\0\x02\xc0\x0c");
    }
    assert_eq!(code(&bomb), ResponseCode::NoError);
    bomb[11] = 5;
    bomb.extend(b"\xc0\x0c\0\x10\0\x01\0\0\0\0\0\x02\xc0\x0c");
    assert_eq!(code(&bomb), ResponseCode::FormErr);
    // Of a second section, and of bytes nobody counted.
    let mut more = question("sprites.dev", RecordType::A, None);
    more.push(0);
    assert_eq!(code(&more), ResponseCode::FormErr);
    let mut answers = question("sprites.dev", RecordType::A, None);
    answers[7] = 1;
    assert_eq!(code(&answers), ResponseCode::FormErr);
}

#[test]
fn an_answer_is_not_answered_and_what_has_no_header_neither() {
    let mut message = question("sprites.dev", RecordType::A, None);
    message[2] |= 0x80;
    assert!(silent(&message));
    assert!(silent(&[0; 11]) && silent(&[]));
    assert_eq!(code(&[0; 12]), ResponseCode::FormErr);
}

#[test]
fn an_answer_is_no_longer_than_its_asker_takes_and_never_than_1232_bytes() {
    let published = Published::default();
    for number in 0..VALUES_MAX {
        published.add("_acme-challenge.sprites.dev", &format!("{number:x}{}", "x".repeat(70))).unwrap();
    }
    let ask = |payload, transport| {
        let mut out = Vec::new();
        let asked = question("_acme-challenge.sprites.dev", RecordType::TXT, payload);
        answer(&asked, transport, &view(), &published, &mut out).unwrap();
        (out.len(), Message::from_vec(&out).unwrap())
    };
    // 16 times 84 bytes: more than a datagram of ours holds, however much its asker takes.
    for payload in [None, Some(0), Some(512), Some(1232), Some(4096), Some(65_535)] {
        let (length, message) = ask(payload, Transport::Udp);
        assert!(message.metadata.truncation && message.answers.is_empty() && length < 100, "{payload:?}");
        assert_eq!(message.edns.is_some(), payload.is_some());
    }
    let (_, message) = ask(Some(1232), Transport::Tcp);
    assert!(!message.metadata.truncation && message.answers.len() == VALUES_MAX);
    for _ in 0..4 {
        let name = "_acme-challenge.sprites.dev";
        let value = published.txt(name).unwrap()[0].clone();
        published.remove(name, &value);
    }
    // 12 times 84 fit 1,232, and not 512.
    assert!(ask(Some(512), Transport::Udp).1.metadata.truncation && ask(None, Transport::Udp).1.metadata.truncation);
    for payload in [1232, 65_535] {
        let (length, message) = ask(Some(payload), Transport::Udp);
        assert!(!message.metadata.truncation && message.answers.len() == 12 && (1_000..=1_232).contains(&length));
    }
}

#[test]
fn the_most_a_configuration_allows_fits_a_datagram() {
    let mut dns = dns();
    let issuer = Issuer {
        ca: "certification-authority.example".into(),
        account: format!("https://{}", "a".repeat(90)),
        methods: vec!["dns-01".into()],
    };
    dns.issuers = (0..4).map(|number| Issuer { ca: format!("{number}.{}", issuer.ca), ..issuer.clone() }).collect();
    let addresses = vec!["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()];
    dns.name_servers = (0..8)
        .map(|number| NameServer { name: format!("ns{number}.sprites.dev"), addresses: addresses.clone() })
        .collect();
    let view = ZoneView::new(&dns, &names(), &[]).unwrap();
    for kind in [RecordType::NS, RecordType::HTTPS, RecordType::A, RecordType::SOA] {
        let mut out = Vec::new();
        let answer =
            answer(&question("sprites.dev", kind, Some(1232)), Transport::Udp, &view, &Published::default(), &mut out)
                .unwrap();
        assert!(!answer.truncated && out.len() <= 1_232, "{kind}: {}", out.len());
    }
}
