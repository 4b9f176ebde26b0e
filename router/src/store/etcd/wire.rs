//! What the gateway says: protobuf as JSON, where 64-bit numbers are texts, bytes are base64
//! and whatever is zero is left out.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer};

/// Bytes as JSON carries them.
pub(super) fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Header {
    #[serde(deserialize_with = "number")]
    pub(super) cluster_id: u64,
    #[serde(deserialize_with = "number")]
    pub(super) revision: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct KeyValue {
    #[serde(deserialize_with = "bytes")]
    pub(super) key: Vec<u8>,
    #[serde(deserialize_with = "bytes")]
    pub(super) value: Vec<u8>,
    #[serde(deserialize_with = "number")]
    pub(super) mod_revision: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RangeAnswer {
    pub(super) header: Header,
    pub(super) kvs: Vec<KeyValue>,
    /// The answer is not all there is.
    pub(super) more: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TxnAnswer {
    pub(super) header: Header,
    pub(super) succeeded: bool,
    pub(super) responses: Vec<TxnResponse>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TxnResponse {
    #[serde(rename = "response_range")]
    pub(super) range: Option<RangeAnswer>,
}

#[derive(Debug, Deserialize)]
pub(super) struct AuthAnswer {
    pub(super) token: String,
}

/// One line of a watch.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WatchLine {
    pub(super) result: Option<WatchAnswer>,
    pub(super) error: Option<Problem>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WatchAnswer {
    pub(super) header: Header,
    pub(super) canceled: bool,
    pub(super) cancel_reason: String,
    /// The oldest revision there is, when what was asked for is older.
    #[serde(deserialize_with = "number")]
    pub(super) compact_revision: u64,
    pub(super) events: Vec<WatchEvent>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WatchEvent {
    /// `DELETE`, or nothing for a put.
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) kv: KeyValue,
}

/// An answer that is none.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Problem {
    /// A gRPC status code.
    #[serde(alias = "grpc_code")]
    pub(super) code: u32,
    #[serde(alias = "error")]
    pub(super) message: String,
}

/// gRPC status codes (the protocol's documentation, "Status codes and their use in gRPC").
const DEADLINE_EXCEEDED: u32 = 4;
const PERMISSION_DENIED: u32 = 7;
const UNAVAILABLE: u32 = 14;
const UNAUTHENTICATED: u32 = 16;
const UNKNOWN: u32 = 2;

impl Problem {
    pub(super) fn parse(body: &[u8]) -> Self {
        // The text comes twice, as `error` and as `message`: serde would refuse both.
        let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let text = ["message", "error"].iter().find_map(|field| value[*field].as_str());
        let fallback = || String::from_utf8_lossy(body).chars().take(200).collect();
        let code = value["code"].as_u64().and_then(|code| u32::try_from(code).ok()).unwrap_or(UNKNOWN);
        Self { code, message: text.map_or_else(fallback, str::to_owned) }
    }

    /// Another member, or the same one later, may answer.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self.code, UNAVAILABLE | DEADLINE_EXCEEDED | UNKNOWN)
    }

    pub(super) fn is_refusal(&self) -> bool {
        // Wrong names and passwords come as invalid arguments.
        matches!(self.code, PERMISSION_DENIED | UNAUTHENTICATED)
            || ["auth", "user name"].iter().any(|word| self.message.contains(word))
    }

    pub(super) fn is_about_the_token(&self) -> bool {
        self.code == UNAUTHENTICATED || self.message.contains("auth token")
    }
}

fn number<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Text(String),
        Plain(u64),
    }
    match Number::deserialize(from)? {
        Number::Text(text) => text.parse().map_err(serde::de::Error::custom),
        Number::Plain(number) => Ok(number),
    }
}

fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    BASE64_STANDARD.decode(String::deserialize(from)?).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_gateway_says_is_understood() {
        let text = r#"{"result":{"header":{"cluster_id":"14841639068965178418","revision":"42"},
            "events":[{"kv":{"key":"YQ==","value":"AP8=","mod_revision":"41"}},{"type":"DELETE","kv":{"key":"Yg==","mod_revision":42}}]}}"#;
        let line: WatchLine = serde_json::from_str(text).unwrap();
        let answer = line.result.unwrap();
        assert_eq!((answer.header.revision, answer.canceled, answer.compact_revision), (42, false, 0));
        assert_eq!((answer.events[0].kv.value.as_slice(), answer.events[0].kind.as_str()), (&[0, 255][..], ""));
        assert_eq!((answer.events[1].kv.mod_revision, answer.events[1].kind.as_str()), (42, "DELETE"));
        let line: WatchLine =
            serde_json::from_str(r#"{"result":{"canceled":true,"compact_revision":"40","header":{}}}"#).unwrap();
        assert_eq!(line.result.unwrap().compact_revision, 40);
    }

    #[test]
    fn a_problem_says_whether_asking_again_may_help() {
        let leaderless =
            Problem::parse(br#"{"error":"etcdserver: no leader","code":14,"message":"etcdserver: no leader"}"#);
        assert!(leaderless.may_pass() && !leaderless.is_refusal());
        let denied = Problem::parse(br#"{"error":"etcdserver: permission denied","code":7}"#);
        assert!(denied.is_refusal() && !denied.may_pass());
        let token = Problem::parse(br#"{"message":"etcdserver: invalid auth token","code":16}"#);
        assert!(token.is_about_the_token());
        assert_eq!(Problem::parse(b"gateway down").message, "gateway down");
    }
}
