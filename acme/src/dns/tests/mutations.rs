//! Whatever comes, it never panics, and what leaves is a message that is not too long. Seeded: a failure names its seed.

use super::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Messages of each seed.
const MESSAGES: usize = 2_000;
const SEEDS: u64 = 20;

/// A message of the kind that resolvers send, or one that is not.
fn message(random: &mut SmallRng) -> Vec<u8> {
    const NAMES: [&str; 10] = [
        "sprites.dev",
        "a.sprites.dev",
        "*.sprites.dev",
        "a.b.c.eu.sprites.dev",
        "_acme-challenge.sprites.dev",
        "0123456789abcdef0123456789abcdef.acme.sprites.dev",
        "x.acme.sprites.dev",
        "ns1.sprites.dev",
        "example.com",
        ".",
    ];
    if random.random_ratio(1, 8) {
        return (0..random.random_range(0..600)).map(|_| random.random()).collect();
    }
    let kind = match random.random_ratio(1, 4) {
        true => random.random::<u16>(),
        false => [1, 2, 6, 16, 28, 41, 65, 251, 252, 255, 257][random.random_range(0..11)],
    };
    let payload = random.random_bool(0.7).then(|| random.random());
    let mut message = question(NAMES[random.random_range(0..NAMES.len())], RecordType::from(kind), payload);
    for _ in 0..random.random_range(0..4) {
        let at = random.random_range(0..message.len());
        match random.random_range(0..5) {
            0 => message[at] = random.random(),
            1 => message[at] ^= 1 << random.random_range(0..8),
            2 => message.truncate(at.max(1)),
            3 => message.insert(at, random.random()),
            _ => message.extend_from_within(at..),
        }
    }
    message
}

fn round(seed: u64) {
    let random = &mut SmallRng::seed_from_u64(seed);
    let (view, published) = (view(), Published::default());
    for value in ["one", "two", &"x".repeat(255), &"y".repeat(255), &"z".repeat(255), &"u".repeat(255)] {
        published.add("_acme-challenge.sprites.dev", value).unwrap();
    }
    let mut out = Vec::new();
    let mut answers = 0;
    for _ in 0..MESSAGES {
        let message = message(random);
        let transport = if random.random() { Transport::Udp } else { Transport::Tcp };
        let Some(mut answer) = answer(&message, transport, &view, &published, &mut out) else {
            assert!(out.is_empty() && (message.len() < 12 || message[2] & 0x80 != 0), "{message:?}");
            continue;
        };
        answers += 1;
        let read = Message::from_vec(&out).unwrap_or_else(|error| panic!("{error}: {message:?} {out:?}"));
        assert_eq!(out[..2], message[..2]);
        if transport == Transport::Udp {
            let takes = read.edns.as_ref().map_or(512, |_| UDP_BYTES_MAX);
            assert!(out.len() <= takes, "{} bytes to {message:?}", out.len());
        }
        answer.cut(&mut out);
        assert!(out.len() <= message.len(), "{} bytes, cut, to {message:?}", out.len());
        Message::from_vec(&out).unwrap_or_else(|error| panic!("{error}: {message:?}, cut to {out:?}"));
    }
    assert!(answers > MESSAGES / 2);
}

#[test]
fn no_message_panics_or_is_answered_at_length() {
    for seed in 0..SEEDS {
        let done = std::panic::catch_unwind(|| round(seed));
        assert!(done.is_ok(), "with seed {seed}");
    }
}
