//! A certificate authority, as an order needs it: each call is one step, and each can be asked again.
//!
//! [`client`] speaks RFC 8555 to a real one. What a call did is found out by looking at the order again
//! ([`Authority::look`]); no reply is needed for the next step, so none that is lost is missed.

pub mod client;
mod http;
mod key_change;

use base64::Engine as _;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::pin::Pin;
use std::time::Duration;

/// The future of a reply.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, Problem>> + Send + 'a>>;

/// How a challenge is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A TXT record (RFC 8555 §8.4).
    #[serde(rename = "dns-01")]
    Dns01,
    /// A path (RFC 8555 §8.3).
    #[serde(rename = "http-01")]
    Http01,
    /// A certificate for the protocol `acme-tls/1` (RFC 8737).
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dns01 => "dns-01",
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
        })
    }
}

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewOrder<'a> {
    /// Names, `*.` in front of one for all below it.
    pub names: &'a [String],
    /// The CA's profile, empty for its default.
    pub profile: &'a str,
    /// The certificate this one takes the place of (RFC 9773 §5).
    pub replaces: Option<&'a str>,
}

/// How far an order is (RFC 8555 §7.1.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Names are still to be proved.
    Pending(Vec<Challenge>),
    /// All names are proved; the CA waits for the request.
    Ready,
    /// The CA issues.
    Processing,
    /// The certificate can be fetched.
    Valid,
    /// It has failed.
    Invalid(Problem),
}

/// A challenge that has not been met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// The name to be proved, without `*.`.
    pub name: String,
    /// Which kind.
    pub kind: Kind,
    /// The CA's token.
    pub token: String,
    /// `token.thumbprint`: what HTTP-01 answers with.
    pub key_authorization: String,
    /// Its digest as DNS-01's TXT record has it.
    pub txt: String,
    /// Whether the CA was told to look, and has not said what it found.
    pub asked: bool,
}

impl Challenge {
    /// The answer an account with this thumbprint gives (RFC 8555 §8.1, §8.4).
    #[must_use]
    pub fn new(name: String, kind: Kind, token: String, thumbprint: &str, asked: bool) -> Self {
        let key_authorization = format!("{token}.{thumbprint}");
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key_authorization.as_bytes());
        let txt = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(digest);
        Self { name, kind, token, key_authorization, txt, asked }
    }
}

/// An order as the CA has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Its URL.
    pub url: String,
    /// How far it is.
    pub status: Status,
    /// The profile it goes by, if the CA has profiles.
    pub profile: Option<String>,
}

/// When a CA wants a certificate renewed (RFC 9773 §4.2); seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// From here.
    pub start: u64,
    /// To here.
    pub end: u64,
    /// When to ask again.
    pub ask_again: u64,
}

/// What kind of refusal it is: that decides when it is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The nonce was stale: at once.
    BadNonce,
    /// The CA says that it is out of order.
    Unavailable,
    /// No answer came. Whether it was done is seen by looking again, and soon, since mostly it was.
    Lost,
    /// It is we who are not ready: some PoP does not answer the challenge yet. Nothing was asked of the CA.
    Unready,
    /// Too many of something: nothing is asked of this CA for a while, by no PoP.
    RateLimited,
    /// It did not find what was to prove the name.
    Unauthorized,
    /// The name's DNS does not answer.
    Dns,
    /// The name's CAA records forbid this CA (RFC 8659).
    Caa,
    /// What the order needs in the name's own DNS is not there yet: the CA was not asked.
    Undelegated,
    /// The account is not known, or its key is another one.
    Account,
    /// It will never issue this: name or profile.
    Rejected,
    /// The order is not where it was believed to be.
    Order,
    /// Not the CA's word: one of our own limits for it is used up ([`crate::limits`]).
    Held,
    /// It answered nonsense.
    Other,
}

impl Class {
    /// In metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadNonce => "bad_nonce",
            Self::Unavailable => "unavailable",
            Self::Lost => "lost",
            Self::Unready => "unready",
            Self::Held => "held",
            Self::Undelegated => "undelegated",
            Self::RateLimited => "rate_limited",
            Self::Unauthorized => "unauthorized",
            Self::Dns => "dns",
            Self::Caa => "caa",
            Self::Account => "account",
            Self::Rejected => "rejected",
            Self::Order => "order",
            Self::Other => "other",
        }
    }
}

/// A refusal, or no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{class:?}: {detail}")]
pub struct Problem {
    /// Which kind.
    pub class: Class,
    /// What the CA said, for people. At most [`DETAIL_MAX`] characters.
    pub detail: String,
    /// How long it wants to be left alone (Retry-After).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<Duration>,
}

/// Characters of a CA's words that are kept (chosen: a row has room for them).
pub const DETAIL_MAX: usize = 500;

impl Problem {
    /// Of this class.
    #[must_use]
    pub fn new(class: Class, detail: impl Into<String>) -> Self {
        let detail: String = detail.into();
        let detail = match detail.char_indices().nth(DETAIL_MAX) {
            Some((end, _)) => detail[..end].to_owned(),
            None => detail,
        };
        Self { class, detail, retry_after: None }
    }

    /// The class of an ACME error type (RFC 8555 §6.7) that came with this status.
    #[must_use]
    pub fn of_type(kind: &str, status: u16, detail: impl Into<String>) -> Self {
        let class = match kind.strip_prefix("urn:ietf:params:acme:error:").unwrap_or_default() {
            "badNonce" => Class::BadNonce,
            "rateLimited" => Class::RateLimited,
            "unauthorized" | "incorrectResponse" | "connection" | "tls" => Class::Unauthorized,
            "dns" => Class::Dns,
            "caa" => Class::Caa,
            "accountDoesNotExist" | "externalAccountRequired" | "userActionRequired" => Class::Account,
            "rejectedIdentifier" | "unsupportedIdentifier" | "invalidProfile" | "badCSR" | "alreadyReplaced" => {
                Class::Rejected
            }
            "orderNotReady" => Class::Order,
            "serverInternal" => Class::Unavailable,
            _ if status == 429 => Class::RateLimited,
            _ if status >= 500 => Class::Unavailable,
            _ => Class::Other,
        };
        Self::new(class, detail)
    }
}

/// A CA with an account of ours.
///
/// # Cancel safety
/// A dropped call may have been done. Look again.
pub trait Authority: Send + Sync {
    /// Its name in the configuration.
    fn name(&self) -> &str;

    /// The account's key thumbprint (RFC 7638): what follows the dot of a key authorization.
    fn thumbprint(&self) -> &str;

    /// Places an order. The answer may leave its challenges out: they are seen by looking, when its URL is safe.
    ///
    /// # Errors
    /// [`Problem`].
    fn order<'a>(&'a self, new: NewOrder<'a>) -> Reply<'a, View>;

    /// An order as it is now.
    ///
    /// # Errors
    /// [`Problem`]; [`Class::Order`] when there is no such order any more.
    fn look<'a>(&'a self, url: &'a str) -> Reply<'a, View>;

    /// Tells the CA to look for the answer to the challenges of this kind.
    ///
    /// # Errors
    /// [`Problem`].
    fn ask<'a>(&'a self, url: &'a str, kind: Kind) -> Reply<'a, ()>;

    /// Hands in the certificate request (DER).
    ///
    /// # Errors
    /// [`Problem`].
    fn finalise<'a>(&'a self, url: &'a str, request: &'a [u8]) -> Reply<'a, ()>;

    /// The chain (PEM) of a valid order; `None` when it is not there yet.
    ///
    /// # Errors
    /// [`Problem`].
    fn fetch<'a>(&'a self, url: &'a str) -> Reply<'a, Option<String>>;

    /// When it wants this certificate (DER of the leaf) renewed; `None` when it does not say such things. `now` in
    /// seconds since 1970.
    ///
    /// # Errors
    /// [`Problem`].
    fn window<'a>(&'a self, leaf: &'a [u8], now: u64) -> Reply<'a, Option<Window>>;

    /// Revokes a certificate (DER of the leaf); `compromised`: because its key is somebody else's.
    ///
    /// # Errors
    /// [`Problem`].
    fn revoke<'a>(&'a self, leaf: &'a [u8], compromised: bool) -> Reply<'a, ()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_of_the_class_that_says_when_to_try_again() {
        for (kind, status, class) in [
            ("badNonce", 400, Class::BadNonce),
            ("rateLimited", 429, Class::RateLimited),
            ("somethingNew", 429, Class::RateLimited),
            ("serverInternal", 500, Class::Unavailable),
            ("", 503, Class::Unavailable),
            ("unauthorized", 403, Class::Unauthorized),
            ("connection", 400, Class::Unauthorized),
            ("caa", 403, Class::Caa),
            ("dns", 400, Class::Dns),
            ("rejectedIdentifier", 400, Class::Rejected),
            ("invalidProfile", 400, Class::Rejected),
            ("accountDoesNotExist", 400, Class::Account),
            ("orderNotReady", 403, Class::Order),
            ("malformed", 400, Class::Other),
        ] {
            let problem = Problem::of_type(&format!("urn:ietf:params:acme:error:{kind}"), status, "x");
            assert_eq!(problem.class, class, "{kind} {status}");
        }
        assert_eq!(Problem::new(Class::Other, "ä".repeat(900)).detail.chars().count(), DETAIL_MAX);
    }
}
