//! Cookies at the border: ours stays here, and a guest sets none for its neighbours.

use super::share::COOKIE;
use http::{HeaderMap, HeaderValue, header};

/// The value of our cookie, if the request brings it.
pub(super) fn own_cookie(headers: &HeaderMap) -> Option<&str> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(crumbs).find_map(|(name, value)| (name == COOKIE).then_some(value))
}

fn crumbs(line: &str) -> impl Iterator<Item = (&str, &str)> {
    line.split(';').filter_map(|crumb| crumb.trim().split_once('='))
}

/// Takes our cookie off a request. Free for one that has no cookies.
pub fn strip_own_cookie(headers: &mut HeaderMap) {
    if !headers.contains_key(header::COOKIE) || own_cookie(headers).is_none() {
        return;
    }
    let lines: Vec<_> = headers.get_all(header::COOKIE).iter().cloned().collect();
    headers.remove(header::COOKIE);
    for line in lines {
        let Ok(text) = line.to_str() else {
            headers.append(header::COOKIE, line);
            continue;
        };
        let kept = |crumb: &&str| crumb.split_once('=').is_none_or(|(name, _)| name != COOKIE);
        let rest: Vec<_> = text.split(';').map(str::trim).filter(kept).collect();
        if let Ok(value) = HeaderValue::try_from(rest.join("; "))
            && !value.is_empty()
        {
            headers.append(header::COOKIE, value);
        }
    }
}

/// Drops what a guest must not set: our cookie, and any for a domain its neighbours share.
/// Free for an answer that sets none.
pub fn drop_foreign_cookies<'a>(headers: &mut HeaderMap, suffixes: impl Iterator<Item = &'a str> + Clone) {
    if !headers.contains_key(header::SET_COOKIE) {
        return;
    }
    let lines: Vec<_> = headers.get_all(header::SET_COOKIE).iter().cloned().collect();
    headers.remove(header::SET_COOKIE);
    for line in lines {
        if is_its_own(line.as_bytes(), suffixes.clone()) {
            headers.append(header::SET_COOKIE, line);
        } else {
            tracing::debug!("a cookie for others than the sprite itself was dropped");
        }
    }
}

fn is_its_own<'a>(line: &[u8], mut suffixes: impl Iterator<Item = &'a str>) -> bool {
    let line = String::from_utf8_lossy(line);
    let mut parts = line.split(';');
    let name = parts.next().unwrap_or("").split('=').next().unwrap_or("").trim();
    // Prefixes of cookie names count in any case (RFC 6265bis §5.7).
    if name.eq_ignore_ascii_case(COOKIE) {
        return false;
    }
    let mut domains = parts
        .filter_map(|part| part.split_once('='))
        .filter(|(attribute, _)| attribute.trim().eq_ignore_ascii_case("domain"))
        .map(|(_, domain)| domain.trim().trim_matches('.').to_ascii_lowercase());
    // The last one counts (RFC 6265 §5.3); an empty one is none.
    let Some(domain) = domains.next_back().filter(|domain| !domain.is_empty()) else { return true };
    !suffixes.any(|suffix| is_at_or_above(&domain, suffix))
}

/// Whether hosts under `suffix` lie in `domain`.
fn is_at_or_above(domain: &str, suffix: &str) -> bool {
    suffix.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: header::HeaderName, lines: &[&'static str]) -> HeaderMap {
        lines.iter().map(|line| (name.clone(), HeaderValue::from_static(line))).collect()
    }

    fn lines(headers: &HeaderMap, name: header::HeaderName) -> Vec<&str> {
        headers.get_all(name).iter().map(|line| line.to_str().unwrap()).collect()
    }

    #[test]
    fn our_cookie_is_found_and_taken_off_and_others_stay() {
        let mut headers = with(header::COOKIE, &["a=1; __Host-sprite-share=g; b=2", "__Host-sprite-share=h", "c=3"]);
        assert_eq!(own_cookie(&headers), Some("g"));
        strip_own_cookie(&mut headers);
        assert_eq!(lines(&headers, header::COOKIE), ["a=1; b=2", "c=3"]);
        assert_eq!(own_cookie(&headers), None);
    }

    #[test]
    fn a_guest_sets_cookies_for_itself_only() {
        let mut headers = with(
            header::SET_COOKIE,
            &[
                "a=1",
                "b=2; Domain=me.sprites.dev; Path=/",
                "c=3; domain=.Sprites.Dev",
                "d=4; Domain=dev",
                "e=5; Domain=me.sprites.dev; Domain=sprites.dev",
                "__Host-sprite-share=forged; Path=/; Secure",
                "__host-Sprite-share=forged",
                "f=6; Domain=",
                "g=7; Domain=other.dev",
                "h=8; Domain=tes.dev",
            ],
        );
        drop_foreign_cookies(&mut headers, ["sprites.dev"].into_iter());
        let kept: String = lines(&headers, header::SET_COOKIE).iter().map(|line| &line[..1]).collect();
        assert_eq!(kept, "abfgh");
    }
}
