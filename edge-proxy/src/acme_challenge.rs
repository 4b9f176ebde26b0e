//! `/.well-known/acme-challenge/`: certificates are the edge's matter. What a certificate authority
//! asks there is never forwarded, never redirected, wakes nothing, and tells nobody which
//! names there are (`wake.md` §3, step 5).
//!
//! HTTP-01 needs no memory: the answer is the token, a dot and the account's thumbprint (RFC 8555 §8.1), so a PoP that
//! has lost its store answers as well. Whatever the host: it proves a name to our own account alone.

use crate::body::EdgeBody;
use crate::from_cas::FromCas;
use http::{HeaderValue, Response, StatusCode, header};

/// Paths below this one (RFC 8555 §8.3).
const PREFIX: &str = "/.well-known/acme-challenge/";
/// Longest token that is answered (`tls-acme-dns.md` §4).
const TOKEN_BYTES_MAX: usize = 128;

/// The token if `path` is one of a challenge, or what stands in its place.
#[must_use]
pub fn token(path: &str) -> Option<&str> {
    path.strip_prefix(PREFIX)
}

/// The answer to a token.
///
/// # Cancel safety
/// Holds no state.
pub async fn answer(token: &str, from_cas: Option<&FromCas>) -> Response<EdgeBody> {
    let authorized = match from_cas.filter(|_| is_token(token)) {
        Some(from_cas) => from_cas.key_authorization(token).await,
        None => None,
    };
    let (status, text) = match authorized {
        Some(text) => (StatusCode::OK, text),
        None => (StatusCode::NOT_FOUND, "There is no such challenge.\n".to_owned()),
    };
    let mut response = Response::new(EdgeBody::full(text.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Anything else would hand a stranger's text back to whoever follows a stranger's link.
fn is_token(token: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=TOKEN_BYTES_MAX).contains(&token.len()) && token.bytes().all(fine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_is_short_and_of_base64url() {
        for token in ["a", "Z9-_", &"x".repeat(128)] {
            assert!(is_token(token), "{token}");
        }
        for token in ["", "a/b", "a.b", "<script>", "a b", &"x".repeat(129)] {
            assert!(!is_token(token), "{token}");
        }
        assert_eq!(token("/other"), None);
        assert_eq!(token("/.well-known/acme-challenge/a"), Some("a"));
        assert_eq!(answer("a", None).await.status(), StatusCode::NOT_FOUND);
    }
}
