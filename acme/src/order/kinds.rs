//! By which challenge names are proved: what comes after one that was refused, and when.
//!
//! HTTP-01 and TLS-ALPN-01 both show that a name leads here, one on port 80 and one on port 443, and either port may be
//! somebody else's for a while. So each follows the other. DNS-01 shows something else and is followed by itself.

use super::DAY;
use crate::ca::{Challenge, Kind};

/// Pauses after a name was not proved: 5 failures per name and hour are allowed, one every 12 minutes (Let's Encrypt).
const PAUSES: [u64; 3] = [12 * 60, 3600, DAY];
/// Pause before the other kind is tried for the first time (chosen: it is another port, and of the 5 failures one is spent).
const OTHER: u64 = 1;

/// What shows the same by another port.
const fn other(kind: Kind) -> Option<Kind> {
    match kind {
        Kind::Http01 => Some(Kind::TlsAlpn01),
        Kind::TlsAlpn01 => Some(Kind::Http01),
        Kind::Dns01 => None,
    }
}

/// By what the names are proved after this kind was refused.
pub(super) fn next(refused: Kind) -> Kind {
    other(refused).unwrap_or(refused)
}

/// How long that waits, seconds, after so many failures in a row.
pub(super) fn pause(refused: Kind, failures: u32) -> u64 {
    let spared = u32::from(other(refused).is_some());
    match failures.saturating_sub(1).checked_sub(spared) {
        None => OTHER,
        Some(at) => PAUSES[usize::try_from(at).unwrap_or(usize::MAX).min(PAUSES.len() - 1)],
    }
}

/// What a CA offers in the place of a kind that it does not.
pub(super) fn offered(missing: Kind, challenges: &[Challenge]) -> Option<Kind> {
    other(missing).filter(|other| challenges.iter().any(|challenge| challenge.kind == *other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::{Class, Problem};
    use crate::order::{OrderRow, Step};

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn each_port_follows_the_other_and_five_failures_take_more_than_an_hour() {
        let mut row = OrderRow::new(vec!["shop.example".into()], "first", Kind::Http01, 1, NOW);
        row = OrderRow { sealed_key: Some("k".into()), url: Some("u".into()), step: Step::Asking, ..row };
        let mut tried = Vec::new();
        let mut now = NOW;
        for _ in 0..5 {
            let before = now;
            row = row.failed(Problem::new(Class::Unauthorized, "connection refused"), now);
            now = row.next_try;
            assert_eq!((row.step, &row.url), (Step::KeySealed, &None), "a new order: the failed one is over");
            tried.push((row.kind, now - before));
        }
        let (http, alpn) = (Kind::Http01, Kind::TlsAlpn01);
        assert_eq!(tried, [(alpn, 1), (http, 720), (alpn, 3600), (http, DAY), (alpn, DAY)]);
        // What says nothing about the port changes nothing about it.
        let away = row.failed(Problem::new(Class::Unavailable, "503"), now);
        assert_eq!(away.kind, row.kind);
        assert_eq!(pause(Kind::Dns01, 1), 720);
    }
}
