//! What a CA answers: which order each of its URLs is of, and what Pebble leaves out.

use super::{Endpoint, Seen};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::body::Bytes;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A window of renewal information (RFC 9773 §4.2).
#[derive(Clone, Debug)]
pub struct Told {
    /// From here.
    pub start: SystemTime,
    /// To here.
    pub end: SystemTime,
    /// As it stands in the head.
    pub retry_after: String,
}

/// How a field of an order comes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Echo {
    /// As it was sent.
    #[default]
    Same,
    /// Not at all.
    Dropped,
    /// As this.
    Other(&'static str),
}

/// What the CA has besides what Pebble has.
#[derive(Clone, Default)]
pub struct Extras {
    /// Renewal information: of the order's names, and the how manyth certificate of them it is, from 1.
    pub renewal: Option<fn(&[String], usize) -> Told>,
    /// Profiles.
    pub profiles: Vec<&'static str>,
    /// How an order's profile comes back, by its names.
    pub profile: Option<fn(&[String]) -> Echo>,
    /// How what an order replaces comes back, by its names.
    pub replaces: Option<fn(&[String]) -> Echo>,
}

pub(super) struct Reply {
    pub(super) parts: http::response::Parts,
    pub(super) body: Bytes,
}

impl Reply {
    fn json(status: u16, value: &Value, retry_after: Option<&str>) -> Self {
        let mut response = http::Response::builder().status(status).header("content-type", "application/json");
        if let Some(retry_after) = retry_after {
            response = response.header("retry-after", retry_after);
        }
        let (parts, ()) = response.body(()).unwrap().into_parts();
        Self { parts, body: value.to_string().into() }
    }

    fn path_in_head(&self) -> Option<String> {
        path(self.parts.headers.get("location")?.to_str().ok()?)
    }
}

fn path(url: &str) -> Option<String> {
    Some(url.parse::<http::Uri>().ok()?.path().to_owned())
}

/// An order, as it was asked for.
#[derive(Debug, Default)]
struct Asked {
    names: Vec<String>,
    profile: Value,
    replaces: Value,
}

/// What the proxy has learnt of the CA.
#[derive(Default)]
pub(super) struct Known {
    /// By the path of anything that is an order's.
    orders: HashMap<String, Arc<Asked>>,
    /// By the last part of renewal information's path, which is made of these: the serial, base64url.
    certificates: HashMap<String, (Vec<String>, usize)>,
}

impl Known {
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let serial = path.rsplit('.').next().unwrap_or_default();
        let of_certificate = || Some(self.certificates.get(serial)?.0.clone());
        self.orders.get(path).map(|order| order.names.clone()).or_else(of_certificate).unwrap_or_default()
    }

    /// The answer to a question for renewal information.
    pub(super) fn window(&self, extras: &Extras, seen: &Seen) -> Reply {
        let serial = seen.id.rsplit('.').next().unwrap_or_default();
        let known = extras.renewal.zip(self.certificates.get(serial));
        let Some((renewal, (names, number))) = known else {
            let problem = json!({ "type": "urn:ietf:params:acme:error:malformed", "detail": "no such certificate" });
            return Reply::json(404, &problem, None);
        };
        let told = renewal(names, *number);
        let window = json!({ "suggestedWindow": { "start": rfc3339(told.start), "end": rfc3339(told.end) } });
        Reply::json(200, &window, Some(&told.retry_after))
    }

    /// Learns from a reply, and puts in what Pebble leaves out.
    pub(super) fn learn(&mut self, extras: &Extras, seen: &Seen, reply: &mut Reply) {
        if seen.endpoint == Endpoint::Certificate {
            self.learn_certificate(seen, &reply.body);
            return;
        }
        let Ok(mut body) = serde_json::from_slice::<Value>(&reply.body) else { return };
        match seen.endpoint {
            Endpoint::Directory => {
                if extras.renewal.is_some() {
                    let url = body["newOrder"].as_str().unwrap_or_default().replace("order-plz", "renewal-info");
                    body["renewalInfo"] = url.into();
                }
                let text = |name: &&str| ((*name).to_owned(), Value::from("a profile"));
                if !extras.profiles.is_empty() {
                    body["meta"]["profiles"] = extras.profiles.iter().map(text).collect();
                }
            }
            Endpoint::NewOrder if reply.parts.status == 201 => {
                let (profile, replaces) = (seen.payload["profile"].clone(), seen.payload["replaces"].clone());
                let order = Arc::new(Asked { names: seen.names.clone(), profile, replaces });
                if let Some(path) = reply.path_in_head() {
                    self.orders.insert(path, Arc::clone(&order));
                }
                self.learn_order(&order, &body);
                echo(extras, &order, &mut body);
            }
            Endpoint::Order | Endpoint::Finalize if reply.parts.status == 200 => {
                let Some(order) = self.orders.get(&seen.path).cloned() else { return };
                self.learn_order(&order, &body);
                echo(extras, &order, &mut body);
            }
            Endpoint::Authorization => {
                let Some(order) = self.orders.get(&seen.path).cloned() else { return };
                let challenges = body["challenges"].as_array().map(Vec::as_slice).unwrap_or_default();
                let urls = challenges.iter().filter_map(|challenge| path(challenge["url"].as_str()?));
                self.orders.extend(urls.map(|path| (path, Arc::clone(&order))));
                return;
            }
            _ => return,
        }
        reply.body = body.to_string().into();
        reply.parts.headers.insert("content-length", reply.body.len().into());
    }

    fn learn_order(&mut self, order: &Arc<Asked>, body: &Value) {
        let authorizations = body["authorizations"].as_array().map(Vec::as_slice).unwrap_or_default();
        let urls = authorizations.iter().chain([&body["finalize"], &body["certificate"]]);
        let paths = urls.filter_map(|url| path(url.as_str()?));
        self.orders.extend(paths.map(|path| (path, Arc::clone(order))));
    }

    fn learn_certificate(&mut self, seen: &Seen, chain: &[u8]) {
        let leaf = CertificateDer::pem_slice_iter(chain).next().and_then(Result::ok);
        let Some(serial) = leaf.as_ref().and_then(|leaf| serial(leaf)) else { return };
        let serial = URL_SAFE_NO_PAD.encode(serial);
        let before = self.certificates.values().filter(|(names, _)| *names == seen.names).count();
        self.certificates.entry(serial).or_insert_with(|| (seen.names.clone(), before + 1));
    }
}

fn echo(extras: &Extras, order: &Asked, body: &mut Value) {
    let mut put = |field: &str, sent: &Value, how: Option<fn(&[String]) -> Echo>| match how.map(|how| how(&order.names))
    {
        Some(Echo::Dropped) => {}
        Some(Echo::Other(other)) => body[field] = other.into(),
        Some(Echo::Same) | None if sent.is_null() => {}
        Some(Echo::Same) | None => body[field] = sent.clone(),
    };
    if !extras.profiles.is_empty() {
        put("profile", &order.profile, extras.profile);
    }
    if extras.renewal.is_some() {
        put("replaces", &order.replaces, extras.replaces);
    }
}

/// The serial number's bytes in a certificate (RFC 5280 §4.1): the second thing in it, after its version.
fn serial(certificate: &[u8]) -> Option<&[u8]> {
    let (_, certificate) = element(certificate)?;
    let (_, signed) = element(certificate)?;
    let version = usize::try_from(element(signed)?.0).ok()?;
    Some(element(&signed[version..])?.1)
}

/// The length of a DER element, and what is in it.
fn element(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let first = *bytes.get(1)?;
    let (head, length) = match first {
        0..=0x7f => (2, usize::from(first)),
        _ => {
            let more = usize::from(first & 0x7f);
            let digits = bytes.get(2..2 + more)?;
            (2 + more, digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)))
        }
    };
    Some(((head + length) as u64, bytes.get(head..head + length)?))
}

/// A time as ACME writes it (RFC 3339), seconds and UTC.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let time = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(seconds);
    time.format(&Rfc3339).expect("a year of four digits")
}
