//! `edge-proxy cert …`: what is said of certificates, and what is done with them by hand.

use crate::certificates::{DOMAIN, ISSUED, Port80, SUFFIX, Site, leaf, trusted};
use harness::pebble::Moods;
use harness::until;

#[tokio::test]
async fn certificates_are_listed_explained_and_renewed_before_their_time() {
    let limits = "limits = \"letsencrypt\"\n";
    let Some(site) = Site::with(Moods::default(), Port80::Ours, limits).await else { return };
    let roots = site.roots().await;
    let edge = &site.edge;
    let first = trusted(edge, &roots, "any.sprites.test").await;
    let listed = until("it to be served", ISSUED, async || {
        let list = edge.admin(&["cert", "list"]).await;
        (list[0]["state"] == "served").then_some(list)
    })
    .await;
    assert_eq!(listed.as_array().unwrap().len(), 1);
    let one = &listed[0];
    assert_eq!(one["id"], "wild.first.sprites.test");
    assert_eq!(one["names"], serde_json::json!(["*.sprites.test", "sprites.test"]));
    assert_eq!((&one["ca"], &one["generation"], &one["served_here"]), (&"first".into(), &1.into(), &1.into()));
    assert!(one["days_left"].as_u64().unwrap() > 300 && one["due_unix_s"].as_u64() < one["not_after_unix_s"].as_u64());
    for name in ["any.sprites.test", SUFFIX, "*.sprites.test", "wild.first.sprites.test"] {
        let explained = edge.admin(&["cert", "explain", name]).await;
        assert_eq!(explained["answers"]["id"], "wild.first.sprites.test", "{name}");
        assert_eq!(explained["certificates"][0]["explained"]["cause"], "served", "{name}");
        assert_eq!(explained["certificates"][0]["not_served_by"], serde_json::json!([]), "{name}");
    }
    // One order of 270 in three hours, and whatever is left of the limits for its name.
    let limits = edge.admin(&["cert", "explain", SUFFIX]).await["limits"].clone();
    assert_eq!(limits["limit/first/orders"]["left"], 269, "{limits}");
    assert_eq!(limits["limit/first/domain.sprites.test"]["left"], 44, "{limits}");
    let socket = edge.data().join("admin.sock");
    let text = harness::admin::run(&["--admin", socket.to_str().unwrap(), "cert", "explain", SUFFIX]).await;
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.starts_with("sprites.test: generation 1 of wild.first.sprites.test answers here"), "{text}");

    // It is shown to whoever comes, and is what it should be.
    let shown = until("it to be looked at", ISSUED, async || {
        let shown = edge.admin(&["cert", "explain", SUFFIX]).await["shown"]["this machine"].clone();
        shown["not_after_unix_s"].is_u64().then_some(shown)
    })
    .await;
    assert_eq!((&shown["not_after_unix_s"], &shown["faults"]), (&one["not_after_unix_s"], &serde_json::json!([])));
    let metrics = harness::admin::run(&["--admin", socket.to_str().unwrap(), "metrics"]).await;
    let metrics = String::from_utf8(metrics.stdout).unwrap();
    for line in [
        "certificate_orders_total{ca=\"first\",outcome=\"issued\"} 1\n",
        "certificate_gate_closed_seconds{ca=\"first\"} 0\n",
        "certificate_unacknowledged_pops 0\n",
        "certificate_expiry_seconds{names=\"sprites.test\"} 15",
        "certificate_issued_seconds_ago ",
        "certificate_shown_expiry_seconds{pop=\"this machine\",names=\"sprites.test\"} 15",
        "certificate_shown_faults{pop=\"this machine\",fault=\"untrusted\"} 0\n",
        "certificate_challenges_unanswered_total ",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }

    // A domain that is claimed and not proved, and one that nobody claims.
    edge.create_guest("shop").await;
    let added = edge.admin(&["domain", "add", DOMAIN, "shop"]).await;
    let (record, value) = (added["txt_name"].as_str().unwrap(), added["txt_value"].as_str().unwrap());
    let explained = edge.admin(&["domain", "explain", DOMAIN]).await;
    assert_eq!(explained["certificate"]["cause"], "not_proved");
    assert_eq!(explained["certificate"]["record"], format!("{record} TXT {value}"));
    let other = edge.admin(&["cert", "explain", "other.example"]).await;
    assert_eq!(other["certificates"][0]["explained"]["cause"], "not_wanted");
    assert!(other["answers"].is_null());
    let none = edge.try_admin(&["cert", "renew", "other.example"]).await;
    assert_eq!(none.status.code(), Some(70));
    assert!(String::from_utf8_lossy(&none.stderr).contains("not_wanted"));

    // Proved where the CA does not find it: nothing listens at that address.
    site.dns.clear(DOMAIN);
    site.dns.set_address(DOMAIN, std::net::Ipv4Addr::new(127, 0, 0, 99).into());
    site.dns.set_txt(record, value);
    edge.admin(&["domain", "check", DOMAIN]).await;
    let explained = until("the CA to have looked", ISSUED, async || {
        let explained = edge.admin(&["domain", "explain", DOMAIN]).await;
        (explained["certificate"]["cause"] == "challenge_not_found").then_some(explained)
    })
    .await;
    assert!(explained["certificate"]["next_try_unix_s"].as_u64().unwrap() > 0, "{explained}");
    let listed = edge.admin(&["cert", "list"]).await;
    assert_eq!(listed[0]["id"], format!("domain.{DOMAIN}"));
    assert_eq!(
        (&listed[0]["state"], &listed[0]["generation"]),
        (&"challenge_not_found".into(), &serde_json::Value::Null)
    );

    // Renewed by hand, however long its CA was not to be asked again.
    let renewed = edge.admin(&["cert", "renew", SUFFIX, "--wait"]).await;
    assert_eq!(renewed, serde_json::json!([{ "id": "wild.first.sprites.test", "generation": 1 }]));
    let second = leaf(edge, &roots, "any.sprites.test").await.unwrap();
    assert_ne!(first, second);
    assert_eq!(edge.admin(&["cert", "list"]).await[1]["generation"], 2);
    site.edge.stop().await;
}
