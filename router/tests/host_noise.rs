//! wake.md, test 14: whatever stands in a `Host` line, the parser of `port--name` neither panics
//! nor takes for a sprite's name what is none.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics where it stands")]

use proptest::prelude::*;
use router::names::{SpriteName, Suffix, parse_host};

/// Of `SpriteName`: longer than this is none.
const NAME_BYTES_MAX: usize = 40;

fn suffixes() -> Vec<Suffix> {
    ["sprites.dev", "localhost", "a.b.c.example"].map(|text| Suffix::parse(text).unwrap()).into()
}

/// What it says must be a whole, plain, lower-case name, and so must be what it is made of.
fn judge(host: &str) {
    let Ok(target) = parse_host(host, &suffixes()) else { return };
    let name = target.name.as_str();
    assert!(!name.is_empty() && name.len() <= NAME_BYTES_MAX, "{host:?}: {name:?}");
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    assert!(name.bytes().all(plain) && !name.contains("--"), "{host:?}: {name:?}");
    assert!(host.to_ascii_lowercase().contains(name), "{host:?}: {name:?}");
    assert_eq!(SpriteName::parse(name).unwrap(), target.name, "{host:?}");
    assert_ne!(target.port, Some(0), "{host:?}");
    // Written the proper way it is the same.
    let proper = match target.port {
        None => format!("{name}.sprites.dev"),
        Some(port) => format!("{port}--{name}.sprites.dev"),
    };
    assert_eq!(parse_host(&proper, &suffixes()).unwrap(), target, "{host:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn any_text_is_judged(host in any::<String>()) {
        judge(&host);
        judge(&format!("{host}.sprites.dev"));
        judge(&format!("{host}.sprites.dev:443"));
        judge(&format!("80--{host}.localhost"));
    }

    #[test]
    fn bytes_of_any_kind_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        judge(&String::from_utf8_lossy(&bytes));
        judge(&bytes.iter().copied().map(char::from).collect::<String>());
    }

    #[test]
    fn damaged_hosts_are_judged(
        port in any::<u32>(),
        name in "[a-zA-Z0-9-]{0,50}",
        suffix in 0..3_usize,
        end in "(:[0-9]{0,6})?\\.?",
        noise in proptest::collection::vec((any::<prop::sample::Index>(), any::<char>(), any::<bool>()), 0..4),
    ) {
        let mut host: Vec<char> = format!("{port}--{name}.{}{end}", suffixes()[suffix].as_str()).chars().collect();
        for (at, char, instead) in noise {
            let at = at.index(host.len());
            if instead { host[at] = char } else { host.insert(at, char) }
        }
        judge(&host.into_iter().collect::<String>());
    }
}
