//! What an edge asks of its CA.

use super::reply::Known;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

/// The endpoints of a CA, as Pebble has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// The directory.
    Directory,
    /// A fresh nonce.
    NewNonce,
    /// A new account.
    NewAccount,
    /// A new order.
    NewOrder,
    /// A look at an order.
    Order,
    /// A look at an authorization.
    Authorization,
    /// "Look at my answer to this challenge."
    Challenge,
    /// The certificate request.
    Finalize,
    /// The chain.
    Certificate,
    /// When a certificate is to be renewed.
    RenewalInfo,
    /// Anything else.
    Other,
}

impl Endpoint {
    pub(super) fn of(path: &str) -> Self {
        let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        match first {
            "dir" => Self::Directory,
            "nonce-plz" => Self::NewNonce,
            "sign-me-up" => Self::NewAccount,
            "order-plz" => Self::NewOrder,
            "my-order" => Self::Order,
            "authZ" => Self::Authorization,
            "chalZ" => Self::Challenge,
            "finalize-order" => Self::Finalize,
            "certZ" => Self::Certificate,
            "renewal-info" => Self::RenewalInfo,
            _ => Self::Other,
        }
    }
}

/// A request.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Where to.
    pub endpoint: Endpoint,
    /// The last part of its path.
    pub id: String,
    /// The names of the order it is about, sorted; none of what is about no order.
    pub names: Vec<String>,
    /// What was signed; `Null` when nothing was.
    pub payload: Value,
    /// Who asked.
    pub from: SocketAddr,
    /// When.
    pub at: Instant,
    /// When, by the clock that Retry-After dates go by.
    pub time: SystemTime,
    pub(super) path: String,
}

impl Seen {
    pub(super) fn new(from: SocketAddr, path: &str, body: &[u8], known: &Known) -> Self {
        let endpoint = Endpoint::of(path);
        let payload = payload(body).unwrap_or_default();
        let names = match endpoint {
            Endpoint::NewOrder => names(&payload),
            _ => known.names(path),
        };
        let id = path.rsplit('/').next().unwrap_or_default().to_owned();
        Self { endpoint, id, names, payload, from, at: Instant::now(), time: SystemTime::now(), path: path.to_owned() }
    }

    /// Whether it is about an order for this name.
    #[must_use]
    pub fn is_for(&self, name: &str) -> bool {
        self.names.iter().any(|own| own == name)
    }
}

fn names(order: &Value) -> Vec<String> {
    let identifiers = order["identifiers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut names: Vec<_> = identifiers.iter().filter_map(|one| Some(one["value"].as_str()?.to_owned())).collect();
    names.sort();
    names
}

/// What a JWS (RFC 7515, flattened JSON) carries.
fn payload(body: &[u8]) -> Option<Value> {
    let jws: Value = serde_json::from_slice(body).ok()?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(jws["payload"].as_str()?).ok()?).ok()
}
