//! Engines that know users keep to the table of roles: with the rights `docs/stores.md` names for each.

use crate::write;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use harness::etcd::Etcd;
use harness::nats::Nats;
use router::roles::{Right, Role, TABLE};
use router::store::etcd::EtcdStore;
use router::store::nats::NatsStore;
use router::store::{Store, StoreError};
use serde_json::json;
use std::sync::Arc;

/// Rows of every kind, and who the machines are: host 1 and PoP `fra-1`.
const KEYS: [&str; 11] = [
    "sprite/a",
    "placement/a",
    "handover/a",
    "host/1",
    "host/2",
    "pop/fra-1",
    "pop/fra-2",
    "domain/a.example",
    "stek/normal/1",
    "cert/domain.a.example/0000000001",
    "strange/a",
];

const ROLES: [(Role, &str); 3] = [(Role::Operator, "operator"), (Role::Host, "host"), (Role::Edge, "edge")];

/// What a machine of this role may write: whole prefixes, and its own row.
fn rights(role: Role) -> (Vec<&'static str>, &'static str) {
    let own = match role {
        Role::Operator => "",
        Role::Host => "host/1",
        Role::Edge => "pop/fra-1",
    };
    (TABLE.iter().map(|line| line.prefix).filter(|prefix| role.right(prefix) == Right::Write).collect(), own)
}

/// Tries to write each row as this role, and has what the engine took compared with the table.
async fn keeps_to_the_table(role: Role, store: Store, all: &Store) {
    let (prefixes, own) = rights(role);
    for key in KEYS {
        let before = all.get(key).await.unwrap().map(|entry| entry.version);
        let written = store.compare_and_set(key, before, Some(b"1")).await;
        let may = key == own || prefixes.iter().any(|prefix| key.starts_with(prefix));
        assert_eq!(written.is_ok(), may, "{role} {key}: {written:?}");
        let refused = matches!(written, Ok(_) | Err(StoreError::Denied(_) | StoreError::Uncertain(_)));
        assert!(refused, "{role} {key}: {written:?}");
        let after = all.get(key).await.unwrap().map(|entry| entry.version);
        assert_eq!(after != before, may, "{role} {key}");
    }
    // It reads what others wrote.
    assert!(store.get("sprite/a").await.unwrap().is_some());
}

#[tokio::test]
async fn nats_gives_each_role_what_the_table_says() {
    let Some(nats) = Nats::start_with_users().await else { return };
    let user = async |name: &str, writes: &[String]| {
        let mut publish = crate::secured::FOLLOWS[..4].to_vec();
        publish.extend(writes.iter().map(String::as_str));
        let credentials_file = nats.credentials(name, &publish, &["_INBOX.>"]);
        NatsStore::connect(&config::NatsStore { credentials_file, ..nats.settings() }).await.unwrap()
    };
    let all: Store = Arc::new(user("everything", &["$KV.routes.>".into()]).await);
    write(&all, "sprite/a", Some(b"1")).await;
    for (role, name) in ROLES {
        let (prefixes, own) = rights(role);
        let mut writes: Vec<_> =
            prefixes.iter().map(|prefix| format!("$KV.routes.{}>", prefix.replace('/', "."))).collect();
        writes.extend((!own.is_empty()).then(|| format!("$KV.routes.{}", own.replace('/', "."))));
        keeps_to_the_table(role, Arc::new(user(name, &writes).await), &all).await;
    }
}

#[tokio::test]
async fn etcd_gives_each_role_what_the_table_says() {
    let Some(etcd) = Etcd::start().await else { return };
    let ask = async |path: &str, body| etcd.order(path, body).await;
    let key = |key: &str| BASE64_STANDARD.encode(format!("/edge-proxy/{key}"));
    // From a prefix to the first key behind it: "/" and "0" are neighbours.
    let end =
        |prefix: &str| BASE64_STANDARD.encode(format!("/edge-proxy/{prefix}").trim_end_matches('/').to_owned() + "0");
    let grant = async |role: &str, right: serde_json::Value| {
        ask("/v3/auth/role/grant", json!({ "name": role, "perm": right })).await;
    };
    let all: Store = Arc::new(EtcdStore::open(&etcd.settings()).unwrap());
    write(&all, "sprite/a", Some(b"1")).await;
    for name in ["root", "everything", "operator", "host", "edge"] {
        ask("/v3/auth/role/add", json!({ "name": name })).await;
        ask("/v3/auth/user/add", json!({ "name": name, "password": "secret" })).await;
        ask("/v3/auth/user/grant", json!({ "user": name, "role": name })).await;
    }
    grant("everything", json!({ "key": key(""), "range_end": end(""), "permType": "READWRITE" })).await;
    for (role, name) in ROLES {
        grant(name, json!({ "key": key(""), "range_end": end(""), "permType": "READ" })).await;
        let (prefixes, own) = rights(role);
        for prefix in prefixes {
            grant(name, json!({ "key": key(prefix), "range_end": end(prefix), "permType": "WRITE" })).await;
        }
        if !own.is_empty() {
            grant(name, json!({ "key": key(own), "permType": "WRITE" })).await;
        }
    }
    ask("/v3/auth/enable", json!({})).await;
    let folder = tempfile::tempdir().unwrap();
    let user = |name: &str| -> Store {
        let password_file = folder.path().join(name);
        std::fs::write(&password_file, "secret").unwrap();
        Arc::new(EtcdStore::open(&config::EtcdStore { user: name.into(), password_file, ..etcd.settings() }).unwrap())
    };
    let all = user("everything");
    for (role, name) in ROLES {
        keeps_to_the_table(role, user(name), &all).await;
    }
}
