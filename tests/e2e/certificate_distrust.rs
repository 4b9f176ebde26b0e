//! A CA that visitors trust no more: what it issued gives way at once, and others' names are issued anew by another one.

use crate::certificates::{DOMAIN, ISSUED, Site, leaf, trusted};
use harness::until;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::time::Instant;

#[tokio::test]
async fn one_word_moves_every_name_to_the_other_ca() {
    let Some((site, second)) = Site::with_two_cas().await else { return };
    let edge = &site.edge;
    let first_only = site.roots().await;
    let mut second_only = RootCertStore::empty();
    second_only.add(CertificateDer::from_pem_slice(second.root().await.as_bytes()).unwrap()).unwrap();
    let name = "any.sprites.test";
    edge.create_guest("shop").await;
    site.prove(DOMAIN, "shop").await;
    trusted(edge, &first_only, DOMAIN).await;
    // Both are there; which one answers is nobody's business yet.
    let states = async || {
        let list = edge.admin(&["cert", "list"]).await;
        let of = |id: &str| list.as_array().unwrap().iter().find(|one| one["id"] == id).unwrap().clone();
        ["wild.first.sprites.test", "wild.second.sprites.test"].map(of)
    };
    until("a wildcard of each", ISSUED, async || states().await.iter().all(|one| one["generation"] == 1).then_some(()))
        .await;

    // Away from whichever answers now.
    let shown = edge.admin(&["cert", "explain", name]).await["answers"]["id"].clone();
    let is_first = shown == "wild.first.sprites.test";
    let (from, to, roots) = if is_first { ("first", "second", &second_only) } else { ("second", "first", &first_only) };
    let began = Instant::now();
    let said = edge.admin(&["cert", "distrust", from]).await;
    assert_eq!(said, serde_json::json!({ "ca": from, "distrusted": true, "instead": [to] }));
    until("the other one to answer", ISSUED, async || leaf(edge, roots, name).await.ok()).await;
    eprintln!("the wildcard was another CA's after {:?}", began.elapsed());
    let [first, other] = states().await;
    let (old, new) = if is_first { (first, other) } else { (other, first) };
    assert_eq!((&old["state"], &new["state"]), (&"distrusted".into(), &"served".into()));
    assert_eq!((&old["generation"], &new["generation"]), (&1.into(), &1.into()), "nothing was ordered for it");
    // Nobody is left to take the last one's place.
    let refused = edge.try_admin(&["cert", "distrust", to]).await;
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("acme.fallback"));
    let unknown = edge.try_admin(&["cert", "distrust", "nobody"]).await;
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("nobody"));

    // The domain has one of the first CA alone.
    if is_first {
        until("the domain to have another one's", ISSUED, async || leaf(edge, &second_only, DOMAIN).await.ok()).await;
    } else {
        edge.admin(&["cert", "distrust", from, "--undo"]).await;
        edge.admin(&["cert", "distrust", "first"]).await;
        until("the domain to have another one's", ISSUED, async || leaf(edge, &second_only, DOMAIN).await.ok()).await;
    }
    let explained = edge.admin(&["cert", "explain", DOMAIN]).await["certificates"][0].clone();
    assert_eq!((&explained["ca"], &explained["generation"]), (&"second".into(), &2.into()));
    assert_eq!(explained["explained"]["cause"], "served");
    site.edge.stop().await;
}
