//! Who a client seems to be: a person, a program, or a crawler. For wake policies and
//! receipts, never for access.

use crate::respond::Reader;
use backhaul::wire::ClientClass;
use http::header;
use http::request::Parts;

/// What user agents of crawlers and link previews say about themselves, lower case. Only
/// the honest ones; the list keeps a preview from counting as a person, no more.
const CRAWLERS: [&str; 14] = [
    "bot",
    "crawl",
    "spider",
    "slurp",
    "facebookexternalhit",
    "whatsapp",
    "preview",
    "embedly",
    "skypeuripreview",
    "vkshare",
    "pinterest",
    "headlesschrome",
    "lighthouse",
    "monitor",
];

/// The class of a request.
#[must_use]
pub fn of(parts: &Parts, authenticated: bool) -> ClientClass {
    match authenticated {
        true => ClientClass::Authenticated,
        false if is_person(parts) => ClientClass::Navigation,
        false if is_crawler(parts) => ClientClass::Crawler,
        false => ClientClass::Anonymous,
    }
}

/// Whether a person seems to navigate here: fetch metadata says so, or without it (older
/// browsers) what it accepts; and its user agent does not call itself a crawler.
#[must_use]
pub fn is_person(parts: &Parts) -> bool {
    Reader::of(&parts.method, &parts.headers) == Reader::Person && !is_crawler(parts)
}

/// Whether its user agent calls itself a crawler, a preview or a monitor.
#[must_use]
pub fn is_crawler(parts: &Parts) -> bool {
    let Some(agent) = parts.headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()) else { return false };
    let agent = agent.to_ascii_lowercase();
    CRAWLERS.iter().any(|word| agent.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn parts(headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn people_programs_and_crawlers_are_told_apart() {
        let firefox = ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0");
        let html = ("accept", "text/html,*/*;q=0.8");
        for (headers, class) in [
            (vec![firefox, html, ("sec-fetch-mode", "navigate")], ClientClass::Navigation),
            (vec![firefox, html], ClientClass::Navigation),
            (vec![firefox, html, ("sec-fetch-mode", "cors")], ClientClass::Anonymous),
            (vec![("user-agent", "curl/8.17"), ("accept", "*/*")], ClientClass::Anonymous),
            (vec![], ClientClass::Anonymous),
            (vec![html, ("user-agent", "Mozilla/5.0 (compatible; Googlebot/2.1)")], ClientClass::Crawler),
            (vec![html, ("user-agent", "facebookexternalhit/1.1")], ClientClass::Crawler),
            (vec![("user-agent", "Slackbot-LinkExpanding 1.0")], ClientClass::Crawler),
        ] {
            let parts = parts(&headers);
            assert_eq!(of(&parts, false), class, "{headers:?}");
            assert_eq!(of(&parts, true), ClientClass::Authenticated);
        }
    }
}
