//! A domain whose owner delegates its challenges: a certificate before it points here, and one for all names below it.

use crate::certificates::{DOMAIN, ISSUED, Site, leaf, trusted};
use harness::pebble::Moods;
use harness::until;
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

fn names(leaf: &[u8]) -> BTreeSet<String> {
    let (_, leaf) = X509Certificate::from_der(leaf).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        other => panic!("{other:?}"),
    };
    names.iter().map(name).collect()
}

async fn status(site: &Site, roots: &RootCertStore, host: &str) -> String {
    let config = rustls::ClientConfig::builder().with_root_certificates(roots.clone()).with_no_client_auth();
    let stream = TcpStream::connect(site.edge.https).await.unwrap();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let mut tls = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let request = format!("GET /page HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tls.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).lines().next().unwrap().to_owned()
}

/// The step of `domain explain`.
async fn delegation(site: &Site, domain: &str) -> (serde_json::Value, String) {
    let explained = site.edge.admin(&["domain", "explain", domain]).await;
    let mut steps = explained["steps"].as_array().unwrap().iter();
    let step = steps.find(|step| step["step"] == "delegation").unwrap_or_else(|| panic!("{explained}"));
    (step["done"].clone(), step["detail"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn all_names_below_a_domain_have_a_certificate_and_lead_to_its_sprite_before_any_of_them_points_here() {
    let Some(site) = Site::start(Moods::default()).await else { return };
    let roots = site.roots().await;
    let wildcard = trusted(&site.edge, &roots, "any.sprites.test").await;
    site.edge.create_guest("shop").await;
    site.edge.create_guest("bare").await;
    // Nothing leads here.
    site.dns.clear(DOMAIN);

    let added = site.edge.admin(&["domain", "add", "*.Shop.Example", "shop"]).await;
    let (from, to) = (added["acme_cname_name"].as_str().unwrap(), added["acme_cname_value"].as_str().unwrap());
    assert_eq!(
        (from, &added["wildcard"], &added["domain"]),
        ("_acme-challenge.shop.example", &true.into(), &DOMAIN.into())
    );
    let id = to.strip_suffix(".acme.sprites.test").unwrap_or_else(|| panic!("{to}"));
    assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    let (done, told) = delegation(&site, DOMAIN).await;
    assert!(done == false && told.contains(&format!("set CNAME {from} {to}")), "{told}");

    // By way of somebody else's name.
    site.dns.set_cname(from, "acme.elsewhere.example");
    assert!(delegation(&site, DOMAIN).await.1.contains("leads to acme.elsewhere.example"));
    site.dns.set_cname("acme.elsewhere.example", to);
    assert_eq!(delegation(&site, DOMAIN).await.0, true);
    site.prove("*.shop.example", "shop").await;
    // Asked for again it is the same.
    assert_eq!(site.edge.admin(&["domain", "add", "*.shop.example", "shop"]).await["acme_cname_value"], to);
    // One that delegates nothing, and can be proved by nothing else.
    site.prove("*.bare.example", "bare").await;

    let own = trusted(&site.edge, &roots, DOMAIN).await;
    assert_eq!(names(&own), BTreeSet::from(["shop.example".into(), "*.shop.example".into()]));
    assert_eq!(leaf(&site.edge, &roots, "any.shop.example").await.unwrap(), own);
    assert!(leaf(&site.edge, &roots, "a.b.shop.example").await.is_err());
    assert_eq!(site.edge.receipts("shop").await.len(), 0);
    for host in [DOMAIN, "any.shop.example"] {
        assert_eq!(status(&site, &roots, host).await, "HTTP/1.1 200 OK", "{host}");
    }
    assert_eq!(site.edge.receipts("shop").await.len(), 1);

    // It was told, and no CA was asked.
    until("the order to wait for its delegation", ISSUED, async || {
        site.edge.log().contains("Undelegated: _acme-challenge.bare.example has no CNAME; set CNAME").then_some(())
    })
    .await;
    assert!(!site.pebble.log().contains("bare.example"), "{}", site.pebble.log());
    assert!(leaf(&site.edge, &roots, "bare.example").await.is_err());

    // Of a whole name the delegation is the owner's choice.
    site.edge.create_guest("plain").await;
    site.edge.admin(&["domain", "add", "plain.example", "plain"]).await;
    let (done, told) = delegation(&site, "plain.example").await;
    assert!(done == true && told.contains("without it as soon as it points here"), "{told}");
    let added = site.prove("plain.example", "plain").await;
    site.edge.admin(&["domain", "remove", "plain.example"]).await;
    let again = site.edge.admin(&["domain", "add", "plain.example", "plain"]).await;
    assert_ne!(again["acme_cname_value"], added["acme_cname_value"], "a forgotten record leads nowhere");
    site.dns.set_cname("_acme-challenge.plain.example", again["acme_cname_value"].as_str().unwrap());
    site.prove("plain.example", "plain").await;
    let plain = trusted(&site.edge, &roots, "plain.example").await;
    assert_eq!(names(&plain), BTreeSet::from(["plain.example".into()]));
    assert_ne!(plain, wildcard);
    site.edge.stop().await;
}
