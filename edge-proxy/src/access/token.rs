//! Bearer tokens: 32 random bytes, of which the table knows the SHA-256 only.
//!
//! So random a secret needs no slow hash: there is nothing to guess.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderName, header};
use router::access::{Key, Private};

/// What a token begins with, for people and for scanners of leaked secrets.
const PREFIX: &str = "spt_";

/// Carries a token beside an `Authorization` that is the guest's own.
pub const SPRITE_TOKEN: HeaderName = HeaderName::from_static("sprite-token");

/// A new token. It is shown once and stored nowhere.
///
/// # Errors
/// The system has no random bytes.
pub fn generate() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
}

/// What the table keeps of a token.
#[must_use]
pub fn hash(token: &str) -> Key {
    let mut key = [0; 32];
    key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    Key(key)
}

/// Whether the request brings one of the sprite's tokens. An `Authorization` that did is
/// taken off: the guest must not learn it.
#[must_use]
pub fn opens(private: &Private, headers: &mut HeaderMap) -> bool {
    if headers.get(SPRITE_TOKEN).and_then(|value| value.to_str().ok()).is_some_and(|token| is_one(private, token)) {
        // `headers.rs` keeps the whole `sprite-` family from the guest.
        return true;
    }
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer);
    let opens = bearer.is_some_and(|token| is_one(private, token));
    if opens {
        headers.remove(header::AUTHORIZATION);
    }
    opens
}

/// The credentials of scheme `Bearer` (RFC 6750 §2.1); schemes are case-insensitive (RFC 9110 §11.1).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn is_one(private: &Private, token: &str) -> bool {
    let presented = hash(token);
    // All are compared, so that the time does not say which.
    private.tokens.iter().filter(|known| verify_slices_are_equal(&known.0, &presented.0).is_ok()).count() > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn any_of_its_tokens_opens_by_either_header_and_only_ours_is_taken_off() {
        let (one, other) = (generate().unwrap(), generate().unwrap());
        assert!(one.starts_with(PREFIX) && one.len() == 47 && one != other);
        let private = Private { tokens: vec![hash("x"), hash(&one)], share_key: None, cors: None };
        for scheme in ["Bearer", "bearer", "BEARER"] {
            let mut with = headers("authorization", &format!("{scheme} {one}"));
            assert!(opens(&private, &mut with) && with.is_empty());
        }
        assert!(opens(&private, &mut headers("sprite-token", &one)));
        for (name, value) in [
            ("authorization", format!("Bearer {other}")),
            ("authorization", format!("Basic {one}")),
            ("authorization", one.clone()),
            ("authorization", "Bearer ".into()),
            ("sprite-token", String::new()),
        ] {
            let mut with = headers(name, &value);
            assert!(!opens(&private, &mut with) && with.len() == 1, "{name} {value}");
        }
        assert!(!opens(&Private::default(), &mut headers("sprite-token", &one)));
    }
}
