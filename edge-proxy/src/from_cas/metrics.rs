//! What is counted of certificates, and what is shown of them: by suffix, CA and PoP, never by domain.

use super::FromCas;
use super::as_served::Fault;
use super::served::{Served, target};
use super::wishes::WILDCARD;
use acme::ca::Class;
use acme::rows::Rows as _;
use acme::unix_now;
use arc_swap::ArcSwap;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How often gates and PoPs are looked at (chosen: a gate is closed for an hour, and a PoP is missed after a minute).
const EVERY: Duration = Duration::from_secs(15);
/// What custom domains are called together.
const DOMAINS: &str = "domains";

/// Two labels.
type Labels = [(&'static str, String); 2];

/// What this process has counted.
#[derive(Debug, Default)]
pub(super) struct Counted {
    outcomes: Family<Labels, Counter>,
    unanswered: Counter,
    looked: ArcSwap<Looked>,
}

/// What was found at the last look.
#[derive(Debug, Default)]
struct Looked {
    /// Until when each CA is asked nothing, seconds since 1970.
    gates: BTreeMap<String, u64>,
    /// PoPs that live and do not serve what is older than a minute.
    behind: BTreeSet<String>,
}

impl Counted {
    pub(super) fn outcome(&self, ca: &str, outcome: Result<(), Class>) {
        let outcome = outcome.map_or_else(Class::name, |()| "issued");
        self.outcomes.get_or_create(&[("ca", ca.to_owned()), ("outcome", outcome.to_owned())]).inc();
    }

    /// A CA has asked for an answer that nobody knows here.
    pub(super) fn unanswered(&self) {
        self.unanswered.inc();
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl FromCas {
    /// Looks at what no event tells; never returns.
    pub(super) async fn count(self: Arc<Self>) {
        loop {
            let now = unix_now();
            let gates = self.rows.scan("gate/").await.unwrap_or_default();
            let gates = gates.into_iter().filter_map(|row| {
                let until = std::str::from_utf8(&row.value).ok()?.parse().ok()?;
                let ca = row.key.strip_prefix("gate/")?;
                // Not those of renewal information alone: orders go on.
                (!ca.contains('/')).then(|| (ca.to_owned(), until))
            });
            let maybe = self.certificates.waited_for(|one| Served::may_speak_of(one, now));
            let rows = maybe.iter().filter_map(|(.., one)| self.certificates.row(one.number)).collect::<Vec<_>>();
            let spoken = rows.iter().filter(|found| self.served.speaks_of(&found.row, now));
            let missed = spoken.filter(|found| {
                let age = now.saturating_sub(found.row.issued_at);
                let newest = self.certificates.newest_summary(&found.wish);
                age >= super::causes::UNACKNOWLEDGED
                    && newest.is_some_and(|(generation, _)| generation == found.row.generation)
            });
            let behind = missed.flat_map(|found| self.lacking(&found.wish, &found.row)).collect();
            self.served.counted().looked.store(Arc::new(Looked { gates: gates.collect(), behind }));
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Shows it all.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let (counted, now) = (self.served.counted(), unix_now());
        let said = "What came of orders this edge worked on: issued, or the kind of refusal";
        registry.register("certificate_orders", said, counted.outcomes.clone());
        let said = "Tokens of HTTP-01 that were asked for and not answered";
        registry.register("certificate_challenges_unanswered", said, counted.unanswered.clone());
        let looked = counted.looked.load();

        let gates = Family::<[(&'static str, String); 1], Gauge>::default();
        for ca in self.wishes.ca_names() {
            let left = looked.gates.get(&ca).map_or(0, |until| until.saturating_sub(now));
            gates.get_or_create(&[("ca", ca)]).set(gauge(left));
        }
        registry.register("certificate_gate_closed_seconds", "How long a CA is asked nothing yet", gates);
        let behind: Gauge = Gauge::default();
        behind.set(gauge(looked.behind.len() as u64));
        let said = "PoPs that live and do not serve a certificate that came more than a minute ago";
        registry.register("certificate_unacknowledged_pops", said, behind);

        self.register_ends(registry, now);
        self.register_seen(registry, now);
    }

    /// What this edge believes.
    fn register_ends(&self, registry: &mut Registry, now: u64) {
        let (mut ends, mut last, mut of_domains) = (BTreeMap::<String, u64>::new(), 0, None::<u64>);
        self.certificates.visit(|wish, generation, one| {
            last = last.max(one.issued_at);
            // There may be a million of these, and the table stands still.
            if one.served {
                of_domains = Some(of_domains.unwrap_or(u64::MAX).min(one.not_after));
            } else if wish.starts_with(WILDCARD)
                && let Some((true, suffix)) = target(wish)
                && self.served.of_wish(&self.certificates, wish) == Some(generation)
            {
                let end = ends.entry(suffix).or_insert(u64::MAX);
                *end = (*end).min(one.not_after);
            }
        });
        ends.extend(of_domains.map(|end| (DOMAINS.to_owned(), end)));
        let family = Family::<[(&'static str, String); 1], Gauge>::default();
        for (names, end) in ends {
            family.get_or_create(&[("names", names)]).set(gauge(end) - gauge(now));
        }
        let said =
            "How long the certificate of a suffix lasts that this edge serves, and the shortest of all custom domains";
        registry.register("certificate_expiry_seconds", said, family);
        if last > 0 {
            let since: Gauge = Gauge::default();
            since.set(gauge(now.saturating_sub(last)));
            registry.register("certificate_issued_seconds_ago", "When the fleet has got its last certificate", since);
        }
    }

    /// What visitors are shown, as this edge has seen it.
    fn register_seen(&self, registry: &mut Registry, now: u64) {
        let (ends, faults) = (Family::<Labels, Gauge>::default(), Family::<Labels, Gauge>::default());
        for (pop, names) in &*self.as_served.seen() {
            let mut shortest = BTreeMap::<&str, i64>::new();
            for ((is_suffix, name), judged) in names {
                let Some(end) = judged.not_after else { continue };
                let left = shortest.entry(if *is_suffix { name } else { DOMAINS }).or_insert(i64::MAX);
                *left = (*left).min(end - gauge(now));
            }
            for (names, left) in shortest {
                ends.get_or_create(&[("pop", pop.clone()), ("names", names.to_owned())]).set(left);
            }
            for fault in Fault::ALL {
                let count = names.values().filter(|judged| judged.faults.contains(&fault)).count();
                let labels = [("pop", pop.clone()), ("fault", fault.name().to_owned())];
                faults.get_or_create(&labels).set(gauge(count as u64));
            }
        }
        let said =
            "How long the certificate lasts that a PoP shows to visitors; of custom domains the shortest of a sample";
        registry.register("certificate_shown_expiry_seconds", said, ends);
        let said = "Names at whose handshakes a PoP showed what is wrong, at the last look";
        registry.register("certificate_shown_faults", said, faults);
    }
}
