//! Paths the edge answers itself by the rules of a sprite's people, without waking it: health
//! checks of a monitor, a greeting of a webhook's sender, scanners' favourite paths.

use crate::body::EdgeBody;
use crate::client_class;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, header};
use router::wake::{AnswerWhen, EdgeAnswer, WakeRules};

/// Told only where the rule says so: whoever sees it knows that the sprite sleeps.
const SPRITE_STATE: &str = "sprite-state";

/// The answer of the first rule that fits; `asleep` if no running sprite is known.
#[must_use]
pub fn find(rules: &WakeRules, parts: &Parts, asleep: bool) -> Option<Response<EdgeBody>> {
    let fits = |rule: &&EdgeAnswer| {
        (rule.when == AnswerWhen::Always || asleep)
            && rule.method.as_deref().is_none_or(|method| parts.method.as_str() == method)
            && parts.uri.path().starts_with(rule.path.as_str())
            && (!rule.crawlers_only || client_class::is_crawler(parts))
    };
    rules.answers.iter().find(fits).map(|rule| answer(rule, parts.method == Method::HEAD))
}

fn answer(rule: &EdgeAnswer, head: bool) -> Response<EdgeBody> {
    let body = if head { Bytes::new() } else { Bytes::from(rule.body.clone()) };
    let mut response = Response::new(EdgeBody::full(body));
    *response.status_mut() = StatusCode::from_u16(rule.status).unwrap_or(StatusCode::NO_CONTENT);
    let headers = response.headers_mut();
    let kind = HeaderValue::from_str(&rule.content_type);
    headers.insert(header::CONTENT_TYPE, kind.unwrap_or(HeaderValue::from_static("text/plain; charset=utf-8")));
    if response.status() != StatusCode::NO_CONTENT {
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(rule.body.len()));
    }
    let headers = response.headers_mut();
    // It may be answered otherwise a moment later.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if rule.dormant && rule.when == AnswerWhen::Asleep {
        headers.insert(SPRITE_STATE, HeaderValue::from_static("dormant"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(method: &str, path: &str, agent: &str) -> Parts {
        let request = http::Request::builder().method(method).uri(path).header("user-agent", agent).body(()).unwrap();
        request.into_parts().0
    }

    #[test]
    fn the_first_rule_that_fits_answers_and_one_for_sleep_only_in_sleep() {
        let rule = |text: &str| serde_json::from_str::<EdgeAnswer>(text).unwrap();
        let rules = WakeRules {
            answers: vec![
                rule(r#"{"path":"/health","method":"GET","status":200,"body":"ok","when":"always"}"#),
                rule(r#"{"path":"/","crawlers_only":true,"status":403,"dormant":true}"#),
            ],
            ..WakeRules::default()
        };
        assert!(rules.is_bounded());
        let status = |method: &str, path: &str, agent: &str, asleep: bool| {
            find(&rules, &parts(method, path, agent), asleep).map(|answer| answer.status().as_u16())
        };
        assert_eq!(status("GET", "/healthz", "curl", false), Some(200));
        assert_eq!(status("POST", "/health", "curl", true), None);
        assert_eq!(status("GET", "/a", "GoodBot/1", true), Some(403));
        assert_eq!(status("GET", "/a", "GoodBot/1", false), None, "it runs: its own app answers");
        let dormant = find(&rules, &parts("GET", "/a", "GoodBot/1"), true).unwrap();
        assert_eq!(dormant.headers()[SPRITE_STATE], "dormant");
    }
}
