//! Another key for an account (RFC 8555 §7.3.5), with a key that was made, and written down, before.
//!
//! The library makes the new key in the call that hands it in: were the reply lost, the account would be too. So this one
//! request is signed here: inside by the new key, outside by the present one.

use super::http::Http;
use super::{Class, Problem};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::{Zeroize, Zeroizing};

/// Times a stale nonce is taken for another (the library's figure).
const NONCES: usize = 3;

/// An account's credentials as the library writes them, and as its rows keep them sealed.
#[derive(Serialize, Deserialize)]
pub(super) struct Credentials {
    pub(super) id: String,
    /// PKCS#8 in base64url.
    key_pkcs8: String,
    pub(super) directory: String,
}

impl Drop for Credentials {
    fn drop(&mut self) {
        self.key_pkcs8.zeroize();
    }
}

impl Credentials {
    pub(super) fn read(text: &[u8]) -> Result<Self, Problem> {
        // What is wrong with them is not said: they are secret.
        serde_json::from_slice(text)
            .map_err(|_| Problem::new(Class::Account, "the account's credentials cannot be read"))
    }

    pub(super) fn write(&self) -> Result<Zeroizing<Vec<u8>>, Problem> {
        serde_json::to_vec(self).map(Zeroizing::new).map_err(|error| Problem::new(Class::Other, error.to_string()))
    }

    /// The same account with a new key.
    pub(super) fn with_new_key(&self) -> Result<Self, Problem> {
        let no = |_| Problem::new(Class::Other, "no key could be made");
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).map_err(no)?;
        let key_pkcs8 = URL_SAFE_NO_PAD.encode(key.as_ref());
        Ok(Self { id: self.id.clone(), key_pkcs8, directory: self.directory.clone() })
    }

    fn key(&self) -> Result<EcdsaKeyPair, Problem> {
        let no = || Problem::new(Class::Account, "the account's key cannot be used");
        let bytes = URL_SAFE_NO_PAD.decode(self.key_pkcs8.as_bytes()).map(Zeroizing::new).map_err(|_| no())?;
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &bytes).map_err(|_| no())
    }

    /// RFC 7638.
    pub(super) fn thumbprint(&self) -> Result<String, Problem> {
        let (x, y) = coordinates(&self.key()?);
        // In this order, without spaces.
        let text = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        Ok(URL_SAFE_NO_PAD.encode(digest(&SHA256, text.as_bytes())))
    }
}

fn coordinates(key: &EcdsaKeyPair) -> (String, String) {
    // An uncompressed point: 4, then 32 bytes each.
    let point = key.public_key().as_ref();
    let (x, y) = point.get(1..).unwrap_or_default().split_at_checked(32).unwrap_or_default();
    (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y))
}

fn jwk(key: &EcdsaKeyPair) -> Value {
    let (x, y) = coordinates(key);
    json!({ "crv": "P-256", "kty": "EC", "x": x, "y": y })
}

/// A signed text (RFC 7515 §7.2.2).
fn signed(key: &EcdsaKeyPair, head: &Value, payload: &Value) -> Result<Value, Problem> {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let (head, payload) = (part(head), part(payload));
    let no = |_| Problem::new(Class::Other, "the request could not be signed");
    let signature = key.sign(&SystemRandom::new(), format!("{head}.{payload}").as_bytes()).map_err(no)?;
    Ok(json!({ "protected": head, "payload": payload, "signature": URL_SAFE_NO_PAD.encode(signature) }))
}

/// Puts the key of `next` in the place of that of `present`.
///
/// # Errors
/// [`Problem`]. When the reply is lost it may have been done: see which key the CA takes.
pub(super) async fn key_change(present: &Credentials, next: &Credentials, http: &Http) -> Result<(), Problem> {
    let directory = http.get(&present.directory).await?;
    let url = |name: &str| {
        let url = directory[name].as_str().map(str::to_owned);
        url.ok_or_else(|| Problem::new(Class::Other, format!("the CA's directory has no {name}")))
    };
    let (change, new_nonce) = (url("keyChange")?, url("newNonce")?);
    let (old, new) = (present.key()?, next.key()?);
    let inner_head = json!({ "alg": "ES256", "jwk": jwk(&new), "url": change });
    let inner = signed(&new, &inner_head, &json!({ "account": present.id, "oldKey": jwk(&old) }))?;
    let mut nonce = http.nonce(&new_nonce).await?;
    let mut tries = 0;
    loop {
        let head = json!({ "alg": "ES256", "kid": present.id, "nonce": nonce, "url": change });
        let body = signed(&old, &head, &inner)?;
        tries += 1;
        match http.post(&change, &body).await {
            Err((problem, Some(fresh))) if problem.class == Class::BadNonce && tries < NONCES => nonce = fresh,
            done => return done.map_err(|(problem, _)| problem),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    #[test]
    fn a_request_is_signed_inside_by_the_new_key_and_outside_by_the_present_one() {
        let seed = Credentials { id: "https://ca/acct/1".into(), key_pkcs8: String::new(), directory: "d".into() };
        let (old, new) = (seed.with_new_key().unwrap(), seed.with_new_key().unwrap());
        assert_ne!(old.thumbprint().unwrap(), new.thumbprint().unwrap());
        let text = new.write().unwrap();
        let read = Credentials::read(&text).unwrap();
        assert_eq!((read.thumbprint().unwrap(), &read.id), (new.thumbprint().unwrap(), &new.id));
        assert!(Credentials::read(b"{}").is_err() && seed.key().is_err());

        let key = new.key().unwrap();
        let value = signed(&key, &json!({ "alg": "ES256" }), &json!({ "a": 1 })).unwrap();
        let part = |name: &str| value[name].as_str().unwrap().to_owned();
        let signature = URL_SAFE_NO_PAD.decode(part("signature")).unwrap();
        let message = format!("{}.{}", part("protected"), part("payload"));
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.public_key().as_ref());
        public.verify(message.as_bytes(), &signature).unwrap();
        assert_eq!(URL_SAFE_NO_PAD.decode(part("payload")).unwrap(), br#"{"a":1}"#);
    }
}
