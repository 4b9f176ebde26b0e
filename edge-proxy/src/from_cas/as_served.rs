//! What visitors are shown: each PoP makes a handshake with every PoP that lives, itself too, for a sample of names each
//! minute.
//!
//! Only what is shown counts: a row says what should be served, a PoP says what it believes it serves, and between
//! both and a visitor there are sockets, other processes and other people's machines.

mod judge;
mod look;

use super::FromCas;
use super::served::{Target, target};
use super::wishes::DOMAIN;
use acme::order::verify;
use acme::unix_now;
use arc_swap::ArcSwap;
use config::Config;
use futures_util::StreamExt as _;
use judge::judge;
pub(super) use judge::{Fault, Judged};
use look::{look, looker};
use router::trust::TrustError;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use tokio_rustls::TlsConnector;

/// How often (`tls-acme-dns.md` §9).
const EVERY: Duration = Duration::from_secs(60);
/// Custom domains of one round; the next round goes on behind them (chosen: 11,520 a day).
const DOMAINS: usize = 8;
/// Pause before it is looked again whether anything is served yet (chosen).
const LOOK: Duration = Duration::from_secs(1);
/// PoPs of one round; the next round goes on behind them (chosen: with 16 suffixes, 768 handshakes a minute).
const POPS: usize = 32;
/// Handshakes at once (chosen: 5 s for each that hangs, and all within the minute but on the worst day).
const AT_ONCE: usize = 64;
/// What is looked at under a suffix: too long for the name of a sprite, so that no handshake can wake one.
const LABEL: &str = "what-is-served-here-is-looked-at-once-a-minute";
/// A certificate that is younger may be missing yet, seconds (as for PoPs that do not acknowledge one).
const YOUNG: u64 = super::causes::UNACKNOWLEDGED;

/// By PoP: what each suffix and domain was answered with.
pub(super) type Seen = BTreeMap<String, BTreeMap<Target, Judged>>;

/// What is known of it.
pub(super) struct AsServed {
    /// Where this PoP's HTTPS is, for itself.
    own: SocketAddr,
    roots: Option<Arc<dyn ServerCertVerifier>>,
    /// No handshake for a custom domain, since one wakes its sprite.
    leaves_domains: bool,
    seen: ArcSwap<Seen>,
}

/// Where others reach the HTTPS of this PoP, if that can be said.
pub(super) fn announced(config: &Config, https: SocketAddr) -> Option<SocketAddr> {
    config.acme.seen_at.or_else(|| (!https.ip().is_unspecified()).then_some(https))
}

impl AsServed {
    /// For a PoP whose HTTPS is bound to `https`.
    ///
    /// # Errors
    /// The roots cannot be read.
    pub(super) fn new(config: &Config, https: SocketAddr) -> anyhow::Result<Self> {
        let roots = match router::trust::roots(&config.acme.visitor_roots) {
            Ok(roots) => {
                let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
                Some(WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()? as _)
            }
            Err(TrustError::NoRoots) => None,
            Err(error) => return Err(error.into()),
        };
        let ip = match https.ip() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let own = SocketAddr::new(ip, https.port());
        let leaves_domains = config.hold.wake_at_client_hello;
        Ok(Self { own, roots, leaves_domains, seen: ArcSwap::default() })
    }

    /// What was seen last, by PoP and name.
    pub(super) fn seen(&self) -> Arc<Seen> {
        self.seen.load_full()
    }
}

/// The next `count` behind the one that was last, in their order and from the beginning again.
fn sample<T: Ord + Clone>(all: &BTreeSet<T>, last: &mut Option<T>, count: usize) -> Vec<T> {
    let (before, behind): (Vec<_>, Vec<_>) =
        all.iter().cloned().partition(|one| last.as_ref().is_some_and(|last| one <= last));
    let sample: Vec<_> = behind.into_iter().chain(before).take(count).collect();
    *last = sample.last().cloned();
    sample
}

impl FromCas {
    /// Looks each minute; never returns.
    pub(super) async fn look_as_visitors(self: Arc<Self>) {
        let looker = match looker() {
            Ok(looker) => looker,
            Err(error) => return tracing::error!(%error, "what is served cannot be looked at"),
        };
        let (mut last_domain, mut last_pop) = (None, None);
        let mut spoken = self.served.spoken();
        while self.served.suffixes().is_empty() && self.some_domains(&mut None).is_empty() {
            // Not everything that is served is spoken of.
            let _ = tokio::time::timeout(LOOK, spoken.changed()).await;
        }
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let (own, mut pops) = self.pops.reached_at();
            pops.insert(own.clone(), self.as_served.own);
            let alive: BTreeSet<_> = pops.keys().cloned().collect();
            let mut looked_at = sample(&alive, &mut last_pop, POPS);
            if !looked_at.contains(&own) {
                looked_at.push(own);
            }
            let domains = if self.as_served.leaves_domains { Vec::new() } else { self.some_domains(&mut last_domain) };
            let suffixes = self.served.suffixes().into_iter().map(|suffix| (true, suffix));
            let looks = suffixes
                .chain(domains)
                .flat_map(|target| looked_at.iter().map(move |pop| (pop.clone(), target.clone())));
            let looks = looks.filter_map(|(pop, target)| Some((*pops.get(&pop)?, pop, target))).collect::<Vec<_>>();
            let looks = futures_util::stream::iter(looks).map(|(address, pop, target)| {
                let (this, looker) = (&self, &looker);
                async move {
                    let judged = this.look_at(looker, address, &target).await;
                    (pop, target, judged)
                }
            });
            let found: Vec<_> = looks.buffer_unordered(AT_ONCE).collect().await;
            let mut seen = Seen::clone(&self.as_served.seen.load());
            seen.retain(|pop, _| alive.contains(pop) && !looked_at.contains(pop));
            for (pop, target, judged) in found {
                if !judged.faults.is_empty() {
                    tracing::warn!(pop, name = target.1, faults = ?judged.faults, "a visitor is shown a wrong certificate");
                }
                seen.entry(pop).or_default().insert(target, judged);
            }
            self.as_served.seen.store(Arc::new(seen));
        }
    }

    /// The next domains behind the last one that are answered for, and from the beginning again.
    fn some_domains(&self, last: &mut Option<Box<str>>) -> Vec<Target> {
        let prefix = format!("{DOMAIN}.");
        let mut wishes = self.certificates.wishes_after(&prefix, last.as_deref(), DOMAINS);
        if wishes.len() < DOMAINS && last.is_some() {
            let before = self.certificates.wishes_after(&prefix, None, DOMAINS - wishes.len());
            wishes.extend(before.into_iter().filter(|wish| Some(wish) <= last.as_ref()));
        }
        *last = wishes.last().cloned();
        wishes.retain(|wish| self.certificates.served(wish).is_some());
        wishes.iter().filter_map(|wish| target(wish)).collect()
    }

    async fn look_at(&self, looker: &TlsConnector, address: SocketAddr, target: &Target) -> Judged {
        let asked = if target.0 { format!("{LABEL}.{}", target.1) } else { target.1.clone() };
        let Ok(name) = ServerName::try_from(asked) else { return Judged::default() };
        match look(looker, address, &name).await {
            Err(fault) => Judged { not_after: None, faults: [fault].into() },
            Ok(chain) => {
                let now = unix_now();
                judge(&chain, &name, &self.newest_leaves(target, now), self.as_served.roots.as_deref(), now)
            }
        }
    }

    /// The leaves that may answer for a suffix or domain: of each CA the newest, and the one before when that is young.
    fn newest_leaves(&self, of: &Target, now: u64) -> Vec<Vec<u8>> {
        let mut leaves = Vec::new();
        for id in self.wishes.ids_of(&of.1).into_iter().filter(|id| target(id).as_ref() == Some(of)) {
            let generations = self.certificates.rows_of(&id);
            for found in generations.iter().rev() {
                leaves.extend(verify::leaf(&found.row.chain));
                if now.saturating_sub(found.row.issued_at) >= YOUNG {
                    break;
                }
            }
        }
        leaves
    }

    /// What was seen of a name, by PoP.
    pub(super) fn seen_of(&self, of: &Target) -> Value {
        let seen = self.as_served.seen();
        let of_it = seen.iter().filter_map(|(pop, names)| {
            let judged = names.get(of)?;
            Some((pop.clone(), json!({ "not_after_unix_s": judged.not_after, "faults": judged.faults })))
        });
        of_it.collect::<serde_json::Map<_, _>>().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_go_round_and_leave_nobody_out() {
        let all: BTreeSet<_> = (0..7).collect();
        let mut last = None;
        let rounds: Vec<_> = (0..4).map(|_| sample(&all, &mut last, 3)).collect();
        assert_eq!(rounds, [vec![0, 1, 2], vec![3, 4, 5], vec![6, 0, 1], vec![2, 3, 4]]);
        assert_eq!(sample(&BTreeSet::from([1, 2]), &mut Some(9), 3), [1, 2]);
        assert!(sample(&BTreeSet::<u8>::new(), &mut None, 3).is_empty());
    }

    #[test]
    fn no_handshake_of_ours_can_be_for_a_sprite() {
        assert!(router::names::SpriteName::parse(LABEL).is_err());
        assert!(LABEL.len() < 64, "it is one label");
    }
}
