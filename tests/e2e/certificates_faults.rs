//! A CA that has bad days: replies that are lost, refusals with a time to wait, windows for renewal, profiles.

use crate::certificates::{ISSUED, leaf, trusted};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use harness::ca_proxy::{At, CaProxy, Echo, Endpoint, Extras, Fault, Seen, Told};
use harness::pebble::{self, Moods, Pebble};
use harness::{Demo, DnsServer, Options, cluster, until};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

const SUFFIX: &str = "sprites.test";

/// A CA behind its proxy, and where it looks for a machine.
struct Ca {
    pebble: Pebble,
    proxy: CaProxy,
    resolver: DnsServer,
    dns: SocketAddr,
    http: SocketAddr,
}

impl Ca {
    async fn start(extras: Extras) -> Option<Self> {
        let own = cluster::addresses(2);
        let (dns, http) = (own[0], own[1]);
        let resolver = DnsServer::start().await;
        resolver.delegate(SUFFIX, dns);
        let pebble = Pebble::start(resolver.address, http.port(), 1, Moods::default()).await?;
        let proxy = CaProxy::start(&pebble, extras).await;
        Some(Self { pebble, proxy, resolver, dns, http })
    }

    async fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pebble.root().await.as_bytes()).unwrap()).unwrap();
        roots
    }

    /// A machine that wants certificates for its suffix and these domains.
    async fn edge(&self, domains: &[&str], acme: &str) -> Demo {
        for domain in domains {
            self.resolver.set_address(domain, self.http.ip());
        }
        let config = format!(
            "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = [\"{}\"]\n\
             [dns]\nlisten = [\"{}\"]\naddresses = [\"127.0.0.1\"]\nname_servers = [{{ name = \"ns.example.net\" }}]\n\
             [acme]\ndirectory = {:?}\nca_file = {:?}\n{acme}\
             [[sprite]]\nname = \"shop\"\naddress = \"127.0.0.1:9\"\ndomains = {domains:?}\n",
            self.http,
            self.dns,
            self.proxy.directory(),
            self.proxy.ca_file(),
        );
        let (config, suffix) = (Some(config), Some(SUFFIX.to_owned()));
        Demo::start(Options { config, suffix, ..Options::default() }).await
    }

    fn count(&self, endpoint: Endpoint, name: &str) -> usize {
        self.proxy.seen_of(endpoint, name).len()
    }
}

#[tokio::test]
async fn a_reply_that_is_lost_costs_a_second_order_at_most_and_no_certificate() {
    let Some(ca) = Ca::start(Extras::default()).await else { return };
    let lost = [
        (Endpoint::NewOrder, "new-order.example"),
        (Endpoint::Order, "order.example"),
        (Endpoint::Authorization, "authorization.example"),
        (Endpoint::Challenge, "challenge.example"),
        (Endpoint::Finalize, "finalize.example"),
        (Endpoint::Certificate, "certificate.example"),
    ];
    for (endpoint, name) in lost {
        ca.proxy.plan(At::both(endpoint, name), [Fault::Lose]);
    }
    for endpoint in [Endpoint::Directory, Endpoint::NewNonce, Endpoint::NewAccount] {
        ca.proxy.plan(At::endpoint(endpoint), [Fault::Lose]);
    }
    let edge = ca.edge(&lost.map(|(_, name)| name), "").await;
    let roots = ca.roots().await;
    trusted(&edge, &roots, "any.sprites.test").await;
    for (lost, name) in lost {
        trusted(&edge, &roots, name).await;
        for endpoint in [Endpoint::NewOrder, Endpoint::Challenge, Endpoint::Finalize] {
            // What was done is seen by looking; only whether an order was placed is not to be seen anywhere.
            let times = if (lost, endpoint) == (Endpoint::NewOrder, Endpoint::NewOrder) { 2 } else { 1 };
            assert_eq!(ca.count(endpoint, name), times, "{name}: {endpoint:?}");
        }
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_ca_that_is_out_of_order_is_asked_again_when_it_says_and_not_before() {
    let Some(ca) = Ca::start(Extras::default()).await else { return };
    let (seconds, later) = (Duration::from_secs(4), Duration::from_secs(6));
    let refuse = |retry_after: String| [Fault::Refuse(503, "serverInternal", Some(retry_after))];
    ca.proxy.plan(At::both(Endpoint::NewOrder, "seconds.example"), refuse(seconds.as_secs().to_string()));
    ca.proxy.plan(At::both(Endpoint::Finalize, "date.example"), [Fault::RefuseUntil(503, "serverInternal", later)]);
    ca.proxy.plan(At::endpoint(Endpoint::NewAccount), [Fault::Refuse(429, "rateLimited", Some("4".into()))]);
    let edge = ca.edge(&["seconds.example", "date.example"], "").await;
    let roots = ca.roots().await;
    trusted(&edge, &roots, "seconds.example").await;
    trusted(&edge, &roots, "date.example").await;
    // An order for a name that was refused waits as a whole.
    let about = |name: &str, refused: Endpoint| -> (Seen, Seen) {
        let all: Vec<_> = ca.proxy.seen().into_iter().filter(|seen| seen.is_for(name)).collect();
        let at = all.iter().position(|seen| seen.endpoint == refused).unwrap();
        (all[at].clone(), all[at + 1].clone())
    };
    // Times of rows are whole seconds.
    let second = Duration::from_secs(1);
    let accounts: Vec<_> = ca.proxy.seen().into_iter().filter(|seen| seen.endpoint == Endpoint::NewAccount).collect();
    assert_eq!(accounts.len(), 2, "an account that was refused is asked for again");
    assert!(accounts[1].at - accounts[0].at >= seconds, "{:?}", accounts[1].at - accounts[0].at);
    let (refused, again) = about("seconds.example", Endpoint::NewOrder);
    assert!(again.at - refused.at >= seconds - second, "{:?}", again.at - refused.at);
    assert_eq!(again.endpoint, Endpoint::NewOrder);
    let (refused, again) = about("date.example", Endpoint::Finalize);
    // So is the date.
    assert!(again.at - refused.at >= later - second * 2, "{:?}", again.at - refused.at);
    assert_eq!(ca.count(Endpoint::NewOrder, "date.example"), 1, "its order is gone on with");
    edge.stop().await;
}

/// The first certificates of most names are to be renewed at once, all others much later.
fn windows(names: &[String], number: usize) -> Told {
    let (hour, now) = (Duration::from_secs(3600), SystemTime::now());
    let past = number == 1 && names[0] != "ahead.example";
    let (start, end) = if past { (now - hour * 2, now - hour) } else { (now + hour * 24, now + hour * 48) };
    // Less than what is ever heeded.
    Told { start, end, retry_after: "1".into() }
}

fn replaces(names: &[String]) -> Echo {
    if names[0] == "dropped.example" { Echo::Dropped } else { Echo::Same }
}

#[tokio::test]
async fn a_certificate_is_renewed_when_its_ca_says_and_as_the_one_it_takes_the_place_of() {
    let extras = Extras { renewal: Some(windows), replaces: Some(replaces), ..Extras::default() };
    let Some(ca) = Ca::start(extras).await else { return };
    let refuse = |status, kind| [Fault::Pass, Fault::Refuse(status, kind, None)];
    ca.proxy.plan(At::both(Endpoint::NewOrder, "already.example"), refuse(409, "alreadyReplaced"));
    ca.proxy.plan(At::both(Endpoint::NewOrder, "malformed.example"), refuse(400, "malformed"));
    // Which orders are placed in all, and which of them say what they replace.
    let domains = [
        ("plain.example", vec![false, true]),
        ("dropped.example", vec![false, true]),
        ("already.example", vec![false, true, false]),
        ("malformed.example", vec![false, true, false]),
        ("ahead.example", vec![false]),
    ];
    let edge = ca.edge(&domains.each_ref().map(|(name, _)| *name), "").await;
    let roots = ca.roots().await;
    let asked = |name: &str, count: usize| -> Option<Vec<Seen>> {
        let asked = ca.proxy.seen_of(Endpoint::RenewalInfo, name);
        (asked.len() >= count).then_some(asked)
    };
    for (name, orders) in &domains {
        let certificates = if *name == "ahead.example" { 1 } else { 2 };
        let asked = until(&format!("{name} to be renewed"), ISSUED, async || asked(name, certificates)).await;
        let ids: Vec<_> = asked.iter().map(|seen| seen.id.as_str()).collect();
        let placed = ca.proxy.seen_of(Endpoint::NewOrder, name);
        let replaced: Vec<_> = placed.iter().map(|seen| seen.payload["replaces"].as_str()).collect();
        assert_eq!(replaced.iter().map(Option::is_some).collect::<Vec<_>>(), *orders, "{name}");
        assert!(replaced.iter().flatten().all(|id| *id == ids[0]), "{name}: {replaced:?} of {ids:?}");
        // The id says which certificate is served (RFC 9773 §4.1): the issuer's key and the serial number.
        let served = trusted(&edge, &roots, name).await;
        let (issuer, serial) = ids[certificates - 1].split_once('.').unwrap();
        let number = URL_SAFE_NO_PAD.decode(serial).unwrap();
        let number: String = number.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(number.trim_start_matches('0'), pebble::serial(&served), "{name}: {ids:?}");
        let issuer = URL_SAFE_NO_PAD.decode(issuer).unwrap();
        assert!(issuer.len() >= 8 && served.windows(issuer.len()).any(|window| window == issuer), "{name}: {ids:?}");
    }
    trusted(&edge, &roots, "any.sprites.test").await;
    // A second is less than what is heeded: none is asked about again within a minute.
    let first = ca.proxy.seen_of(Endpoint::RenewalInfo, "ahead.example")[0].at;
    until("some seconds to pass", ISSUED, async || (first.elapsed() > Duration::from_secs(8)).then_some(())).await;
    let mut ids: Vec<_> = ca.proxy.seen().into_iter().filter(|seen| seen.endpoint == Endpoint::RenewalInfo).collect();
    assert!(first.elapsed() < Duration::from_secs(60), "a machine too slow for this test");
    let asked = ids.len();
    ids.sort_by(|one, other| one.id.cmp(&other.id));
    ids.dedup_by(|one, other| one.id == other.id);
    assert_eq!(asked, ids.len(), "asked about one of them twice");
    edge.stop().await;
}

fn profiles(names: &[String]) -> Echo {
    match names[0].as_str() {
        "other.example" => Echo::Other("classic"),
        "none.example" => Echo::Dropped,
        _ => Echo::Same,
    }
}

#[tokio::test]
async fn a_profile_is_asked_for_and_an_order_that_goes_by_another_is_left_alone() {
    let extras = Extras { profiles: vec!["classic", "shortlived"], profile: Some(profiles), ..Extras::default() };
    let Some(ca) = Ca::start(extras).await else { return };
    let edge = ca.edge(&["same.example", "other.example", "none.example"], "profile = \"shortlived\"\n").await;
    let roots = ca.roots().await;
    trusted(&edge, &roots, "same.example").await;
    for (name, said) in [("other.example", "the order has classic"), ("none.example", "the order has none")] {
        let said = format!("profile \\\"shortlived\\\" was asked for, and {said}");
        let plain = said.replace('\\', "");
        until(&said, ISSUED, async || {
            let log = edge.log();
            (log.contains(&said) || log.contains(&plain)).then_some(())
        })
        .await;
        // Nothing is proved and nothing issued by it; tomorrow is another day.
        assert_eq!(ca.count(Endpoint::NewOrder, name), 1);
        assert_eq!(ca.count(Endpoint::Challenge, name) + ca.count(Endpoint::Finalize, name), 0, "{name}");
        assert!(leaf(&edge, &roots, name).await.is_err());
    }
    let all = ca.proxy.seen();
    let placed = all.iter().filter(|seen| seen.endpoint == Endpoint::NewOrder);
    assert!(placed.clone().all(|seen| seen.payload["profile"] == "shortlived"));
    edge.stop().await;
}
