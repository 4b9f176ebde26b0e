//! Questions in a victim's name: what it gets is no more than half as much again as what was sent, on average.

use super::super::counters::Counters;
use super::super::udp::limited;
use super::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Ten seconds of questions at `rate` a second, in the names of `victims`; bytes asked and bytes answered.
fn flood(seed: u64, rate: u32, victims: &[IpAddr], names: &[(&str, RecordType)]) -> (usize, usize) {
    let random = &mut SmallRng::seed_from_u64(seed);
    let (authority, counters) = (authority(dns().answers_per_second), Counters::default());
    let questions: Vec<_> = names.iter().map(|(name, kind)| question(name, *kind, Some(65_535))).collect();
    let (mut asked, mut answered, mut out) = (0, 0, Vec::new());
    for number in 0..rate * 10 {
        let now = Duration::from_secs(1_000) + Duration::from_secs(10) * number / (rate * 10);
        let message = &questions[random.random_range(0..questions.len())];
        let mut answer = authority.answer(message, Transport::Udp, &mut out).unwrap();
        asked += message.len();
        let to = victims[random.random_range(0..victims.len())];
        if limited(&authority, &counters, to, now, &mut answer, &mut out) {
            answered += out.len();
        }
    }
    (asked, answered)
}

fn check(rate: u32, victims: &[IpAddr], names: &[(&str, RecordType)]) {
    for seed in 0..5 {
        let (asked, answered) = flood(seed, rate, victims, names);
        let times = answered as f64 / asked as f64;
        assert!(times <= 1.5, "{times:.2} times as much, with seed {seed}");
    }
}

const LONGEST: [(&str, RecordType); 4] = [
    ("sprites.dev", RecordType::CAA),
    ("sprites.dev", RecordType::NS),
    ("sprites.dev", RecordType::ANY),
    ("a.sprites.dev", RecordType::HTTPS),
];

#[test]
fn a_flood_in_one_victims_name_is_no_weapon() {
    check(10_000, &[Ipv4Addr::new(192, 0, 2, 7).into()], &LONGEST);
    let network: Vec<IpAddr> = (0..=255).map(|last| Ipv4Addr::new(192, 0, 2, last).into()).collect();
    check(10_000, &network, &LONGEST);
    let v6: Vec<IpAddr> = (0..256).map(|n| Ipv6Addr::new(0x2001, 0xdb8, 0, n, n, 0, 0, n).into()).collect();
    check(10_000, &v6, &LONGEST);
}

#[test]
fn a_flood_over_many_networks_is_no_weapon_either() {
    let networks: Vec<IpAddr> = (0..16).map(|third| Ipv4Addr::new(192, 0, third, 1).into()).collect();
    check(100_000, &networks, &LONGEST);
}

#[test]
fn without_the_limit_it_would_be_one() {
    let random = &mut SmallRng::seed_from_u64(1);
    let (mut asked, mut answered, mut out) = (0, 0, Vec::new());
    for _ in 0..1_000 {
        let (name, kind) = LONGEST[random.random_range(0..LONGEST.len())];
        let message = question(name, kind, Some(65_535));
        authority(1).answer(&message, Transport::Udp, &mut out).unwrap();
        asked += message.len();
        answered += out.len();
    }
    assert!(answered > 3 * asked, "{answered} of {asked}");
}

#[test]
fn a_certification_authority_is_told_to_come_by_tcp_and_never_left_waiting() {
    let (authority, counters) = (authority(1), Counters::default());
    let to = IpAddr::from([192, 0, 2, 1]);
    let mut out = Vec::new();
    for (name, kind) in [("sprites.dev", RecordType::CAA), ("_acme-challenge.sprites.dev", RecordType::TXT)] {
        for number in 0..20 {
            let mut answer = authority.answer(&question(name, kind, None), Transport::Udp, &mut out).unwrap();
            assert!(limited(&authority, &counters, to, Duration::from_secs(9), &mut answer, &mut out));
            let message = Message::from_vec(&out).unwrap();
            assert!(message.metadata.truncation || number == 0, "{number}");
        }
    }
}
