//! An operator of NATS, its account and users with credentials files, made for one cluster.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use nkeys::{KeyPair, KeyPairType};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Who signs whom.
pub struct Users {
    operator: KeyPair,
    account: KeyPair,
    system: KeyPair,
}

impl Users {
    /// New keys.
    ///
    /// # Panics
    /// When there are no random bytes.
    #[must_use]
    pub fn new() -> Self {
        Self {
            operator: pair(KeyPairType::Operator),
            account: pair(KeyPairType::Account),
            system: pair(KeyPairType::Account),
        }
    }

    /// What the servers are configured with.
    #[must_use]
    pub fn sections(&self) -> String {
        let account = |pair: &KeyPair, name: &str, streams: i64| {
            let nats = json!({
                "limits": {
                    "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
                    "leaf": -1, "mem_storage": streams, "disk_storage": streams, "streams": streams, "consumer": streams,
                },
                "type": "account", "version": 2,
            });
            token(&self.operator, &pair.public_key(), name, nats)
        };
        let operator =
            token(&self.operator, &self.operator.public_key(), "operator", json!({ "type": "operator", "version": 2 }));
        format!(
            "operator: {operator}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {}, {}: {} }}\n",
            self.system.public_key(),
            self.account.public_key(),
            account(&self.account, "edges", -1),
            self.system.public_key(),
            account(&self.system, "system", 0),
        )
    }

    /// Writes the credentials of a user who may publish to and subscribe to these subjects alone.
    ///
    /// # Panics
    /// When the file cannot be written.
    #[must_use]
    pub fn credentials(&self, folder: &Path, name: &str, publish: &[&str], subscribe: &[&str]) -> PathBuf {
        let user = pair(KeyPairType::User);
        let nats = json!({
            "pub": { "allow": publish }, "sub": { "allow": subscribe },
            "subs": -1, "data": -1, "payload": -1, "type": "user", "version": 2,
        });
        let token = token(&self.account, &user.public_key(), name, nats);
        let seed = user.seed().unwrap();
        let path = folder.join(format!("{name}.creds"));
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Default for Users {
    fn default() -> Self {
        Self::new()
    }
}

fn pair(kind: KeyPairType) -> KeyPair {
    KeyPair::new_from_raw(kind, rand::random()).unwrap()
}

/// A claim about `subject`, signed as NATS wants it.
fn token(issuer: &KeyPair, subject: &str, name: &str, nats: Value) -> String {
    let claims = json!({
        "jti": name, "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject, "name": name, "nats": nats,
    });
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })), part(&claims));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(issuer.sign(text.as_bytes()).unwrap());
    format!("{text}.{signature}")
}
