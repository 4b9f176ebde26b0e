//! What the tests of the authority have in common: zones, and hickory's reader and writer of messages, which share no code with
//! what they test.

mod connections;
mod flood;
mod golden;
mod mutations;
mod refusals;
mod sockets;

use super::*;
use config::{Dns, Issuer, NameServer, Names, Text};
use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{Name, RecordType};
use std::sync::Arc;

/// An id others' challenges are delegated to.
const ID: &str = "0123456789abcdef0123456789abcdef";

fn dns() -> Dns {
    let server = |name: &str, addresses: &[&str]| NameServer {
        name: name.into(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
    };
    let issuer =
        |ca: &str, account: &str| Issuer { ca: ca.into(), account: account.into(), methods: vec!["dns-01".into()] };
    let text = |name: &str, value: &str| Text { name: name.into(), value: value.into() };
    Dns {
        listen: vec![([192, 0, 2, 53], 53).into()],
        name_servers: vec![
            server("ns1.sprites.dev", &["192.0.2.53", "2001:db8::53"]),
            server("NS2.dns.sprites.dev", &["198.51.100.53"]),
            server("ns3.elsewhere.example", &[]),
        ],
        addresses: ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|address| address.parse().unwrap()).into(),
        issuers: vec![issuer("ca.example", "https://ca.example/acct/1"), issuer("other.example", "")],
        texts: vec![text("sprites.dev", "v=spf1 -all"), text("_psl.Sprites.dev", "https://example/1")],
        ..Dns::default()
    }
}

fn names() -> Names {
    let suffixes = ["sprites.dev", "eu.sprites.dev", "x.y.sprites.dev", "sprites.example"];
    Names { suffixes: suffixes.map(Into::into).into(), ..Names::default() }
}

fn view() -> ZoneView {
    let (dns, names) = (dns(), names());
    ZoneView::new(&dns, &names, &[]).unwrap()
}

/// A question as hickory writes it, which takes so many bytes over UDP.
fn question(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

/// What is answered to `message`, as hickory reads it.
fn answered(message: &[u8], transport: Transport, challenges: &dyn Challenges) -> Message {
    let mut out = vec![7; 7];
    answer(message, transport, &view(), challenges, &mut out).expect("an answer");
    Message::from_vec(&out).expect("hickory reads it")
}

/// An authority on those zones, with nobody to ask.
fn authority(answers_per_second: u32) -> Arc<Authority> {
    Authority::new(view(), answers_per_second, Arc::new(Published::default()), None)
}
