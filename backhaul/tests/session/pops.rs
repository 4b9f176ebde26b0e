//! PoPs that ask each other.

use crate::world::LONG;
use backhaul::keys::PrivateKey;
use backhaul::session::{ANSWER_BYTES_MAX, Answers, Identity, PopLink, PopOptions, PopPeer, QUESTION_BYTES_MAX};
use std::sync::Arc;
use std::time::Duration;

/// Knows one answer.
struct Knows(&'static [u8], &'static [u8]);

impl Answers for Knows {
    fn answer(&self, question: &[u8]) -> Vec<u8> {
        match question == self.0 {
            true => self.1.to_vec(),
            false if question == b"too long" => vec![1; ANSWER_BYTES_MAX + 1],
            false => Vec::new(),
        }
    }
}

struct Pop {
    link: PopLink,
    peer: PopPeer,
}

fn pop(knows: Knows) -> Pop {
    let (key, identity) = (PrivateKey::generate().unwrap(), Identity::generate().unwrap());
    let (public, pin) = (key.public(), identity.pin().to_owned());
    let address = public.derived_address();
    let options = PopOptions {
        listen: "127.0.0.1:0".parse().unwrap(),
        key,
        identity,
        address,
        inner_mtu: 1420,
        answers: Arc::new(knows),
    };
    let link = PopLink::start(options).unwrap();
    let endpoint = Some(link.local_addr());
    Pop { link, peer: PopPeer { key: public, address, pins: vec![pin], endpoint } }
}

/// Waits until one has so many others to ask.
async fn connected(pop: &Pop, count: usize) {
    let reached = async {
        while pop.link.connected() != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, reached).await.unwrap_or_else(|_| panic!("{} of {count}", pop.link.connected()));
}

async fn ask(pop: &Pop, question: &[u8]) -> Option<Vec<u8>> {
    tokio::time::timeout(LONG, pop.link.ask(question)).await.expect("an answer or none")
}

#[tokio::test]
async fn two_are_asked_and_the_one_who_knows_is_heard() {
    let pops = [pop(Knows(b"", b"")), pop(Knows(b"q", b"a")), pop(Knows(b"other", b"b")), pop(Knows(b"third", b"c"))];
    let peers: Vec<_> = pops.iter().map(|pop| pop.peer.clone()).collect();
    assert_eq!(ask(&pops[0], b"q").await, None, "nobody can be asked yet");
    for pop in &pops {
        let others = peers.iter().filter(|peer| **peer != pop.peer);
        pop.link.set_peers(others.cloned().collect());
    }
    connected(&pops[0], 2).await;
    assert_eq!(ask(&pops[0], b"q").await.as_deref(), Some(&b"a"[..]));
    assert_eq!(ask(&pops[0], b"other").await.as_deref(), Some(&b"b"[..]));
    assert_eq!(ask(&pops[0], b"third").await, None, "the third is not asked");
    assert_eq!(ask(&pops[0], &[b'x'; QUESTION_BYTES_MAX]).await, None);
    assert_eq!(ask(&pops[0], &[b'x'; QUESTION_BYTES_MAX + 1]).await, None, "longer than any question");
    assert_eq!(ask(&pops[0], b"too long").await, None, "longer than any answer");

    // Who is gone is asked no more, and the next one is.
    let [asks, gone, second, third] = pops;
    asks.link.set_peers([&gone, &second, &third].map(|pop| pop.peer.clone()).into());
    drop(gone.link);
    let heard = async {
        while ask(&asks, b"third").await.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, heard).await.expect("the third is asked in the place of the first");
    // Who may not ask any more is not answered: nor does he hear that he is not.
    third.link.set_peers(Vec::new());
    second.link.set_peers(Vec::new());
    assert_eq!(tokio::time::timeout(Duration::from_millis(300), asks.link.ask(b"third")).await.ok().flatten(), None);
}

#[tokio::test]
async fn a_stranger_and_one_with_anothers_certificate_are_answered_nothing() {
    let (one, other, third) = (pop(Knows(b"q", b"a")), pop(Knows(b"", b"")), pop(Knows(b"", b"")));
    // It has a tunnel, under the certificate of somebody else.
    let false_pin = PopPeer { pins: third.peer.pins.clone(), ..other.peer.clone() };
    one.link.set_peers(vec![false_pin, third.peer.clone()]);
    for asks in [&other, &third] {
        asks.link.set_peers(vec![one.peer.clone()]);
    }
    connected(&third, 1).await;
    assert_eq!(ask(&third, b"q").await.as_deref(), Some(&b"a"[..]));
    assert_eq!(tokio::time::timeout(Duration::from_secs(1), other.link.ask(b"q")).await.ok().flatten(), None);
}
