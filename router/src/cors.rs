//! Which other sites' scripts may ask a private sprite: what the edge answers a CORS preflight
//! with, which never carries credentials (Fetch standard, "CORS-preflight fetch").

use serde::{Deserialize, Serialize};

/// Most origins, methods and header names of a policy, each (chosen: an answer of a few KiB).
pub const NAMES_MAX: usize = 16;
/// Longest of them, bytes (an origin: scheme, a host of 253 bytes, port).
pub const NAME_BYTES_MAX: usize = 272;
/// Longest time a browser may keep an answer, seconds (chosen; browsers cap it at two hours or a day).
pub const MAX_AGE_MAX: u32 = 86_400;

/// The policy of one private sprite.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorsPolicy {
    /// Origins as browsers write them (`https://app.example`, no slash at the end), or `*` alone
    /// for every site.
    pub origins: Vec<String>,
    /// Methods besides those that need no leave (GET, HEAD, POST).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Names of request headers.
    #[serde(default = "usual_headers")]
    pub headers: Vec<String>,
    /// Cookies may come along; not with `*`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub credentials: bool,
    /// How long a browser may keep the answer, seconds; at most [`MAX_AGE_MAX`].
    #[serde(default = "ten_minutes")]
    pub max_age: u32,
}

/// What a script needs to bring a token and JSON.
fn usual_headers() -> Vec<String> {
    ["authorization", "content-type", "sprite-token"].map(str::to_owned).into()
}

const fn ten_minutes() -> u32 {
    600
}

impl CorsPolicy {
    /// The rule it breaks, if it is one no edge can answer with.
    #[must_use]
    pub fn broken_rule(&self) -> Option<&'static str> {
        let lists = [&self.origins, &self.methods, &self.headers];
        if self.origins.is_empty() || lists.iter().any(|list| list.len() > NAMES_MAX) {
            return Some("1 to 16 origins, at most 16 methods and 16 headers");
        }
        if !(self.any_origin() || self.origins.iter().all(|origin| is_origin(origin))) {
            return Some("origins are https://host, http://host:port and the like, without a path; or \"*\" alone");
        }
        if self.any_origin() && self.credentials {
            return Some("with every origin (\"*\") there are no credentials");
        }
        if !self.methods.iter().chain(&self.headers).all(|name| is_token(name)) {
            return Some("methods and headers are plain names");
        }
        (self.max_age > MAX_AGE_MAX).then_some("max_age is at most a day")
    }

    /// Whether scripts of this origin may ask.
    #[must_use]
    pub fn allows(&self, origin: &str) -> bool {
        self.any_origin() || self.origins.iter().any(|allowed| allowed == origin)
    }

    /// Whether it is for every site.
    #[must_use]
    pub fn any_origin(&self) -> bool {
        matches!(self.origins.as_slice(), [only] if only == "*")
    }
}

/// A scheme and a host, perhaps a port, in lower case (RFC 6454 §6.2).
fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let visible = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.:[]_".contains(&byte);
    text.len() <= NAME_BYTES_MAX && host.is_some_and(|host| !host.is_empty() && host.bytes().all(visible))
}

/// RFC 9110 §5.6.2.
fn is_token(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'+-.^_`|~".contains(&byte);
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str) -> CorsPolicy {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn origins_are_whole_and_exact() {
        let one = policy(r#"{"origins":["https://app.example","http://localhost:5173"]}"#);
        assert_eq!(one.broken_rule(), None);
        assert!(one.allows("https://app.example") && one.allows("http://localhost:5173"));
        for other in ["https://app.example.evil", "http://app.example", "https://app.example:444", "null", ""] {
            assert!(!one.allows(other), "{other}");
        }
        assert!(policy(r#"{"origins":["*"]}"#).allows("https://anybody.example"));
    }

    #[test]
    fn a_policy_no_edge_can_answer_with_is_refused_by_its_rule() {
        for (text, word) in [
            (r#"{"origins":[]}"#, "origins"),
            (r#"{"origins":["https://a.example/"]}"#, "without a path"),
            (r#"{"origins":["*","https://a.example"]}"#, "alone"),
            (r#"{"origins":["a.example"]}"#, "https://"),
            (r#"{"origins":["*"],"credentials":true}"#, "credentials"),
            (r#"{"origins":["*"],"methods":["PUT, DELETE"]}"#, "plain"),
            (r#"{"origins":["*"],"headers":["x\r\ny"]}"#, "plain"),
            (r#"{"origins":["*"],"max_age":86401}"#, "day"),
        ] {
            assert!(policy(text).broken_rule().is_some_and(|rule| rule.contains(word)), "{text}");
        }
    }
}
