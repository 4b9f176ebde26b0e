//! The head of a request to a guest, written into one buffer.
//!
//! Only types that cannot hold CR, LF or NUL are taken, so no client can add a line.

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

/// How the request's body is delimited on the guest's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestFraming {
    /// No body, no `Content-Length`.
    None,
    /// `Content-Length`.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// What a head is made of.
pub struct RequestHead<'a> {
    /// Method.
    pub method: &'a Method,
    /// Target; none is `/`.
    pub target: Option<&'a PathAndQuery>,
    /// `Host`, whatever the client's own field says.
    pub host: &'a HeaderValue,
    /// The client's fields.
    pub headers: &'a HeaderMap,
    /// Body framing; the client's own framing fields are not used.
    pub framing: RequestFraming,
    /// The protocol to switch to, if the client asked for that.
    pub upgrade: Option<&'a HeaderValue>,
}

/// Appends a whole head to `out`.
///
/// Left out are hop-by-hop fields (RFC 9110 §7.6.1), those the client's `Connection`
/// nominates, and those for which `drop` is true. `TE: trailers` is asked anew. Crumbs of a
/// `Cookie` become one line (RFC 9113 §8.2.3). `extra` appends the caller's own field lines,
/// each with its CRLF, and must not append anything else.
pub fn encode_head(
    head: &RequestHead<'_>,
    drop: impl Fn(&HeaderName) -> bool,
    extra: impl FnOnce(&mut Vec<u8>),
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    push_target(head.target, out);
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    out.extend_from_slice(head.host.as_bytes());
    out.extend_from_slice(b"\r\n");
    let nominated = Nominated::of(head.headers);
    let mut cookies_done = false;
    for (name, value) in head.headers {
        if is_ours(name) || nominated.has(name) || drop(name) {
            continue;
        }
        if *name == header::COOKIE {
            if !cookies_done {
                cookies_done = true;
                push_cookies(head.headers, out);
            }
            continue;
        }
        push_field(name.as_str(), value.as_bytes(), out);
    }
    push_framing(head, out);
    extra(out);
    out.extend_from_slice(b"\r\n");
}

fn push_target(target: Option<&PathAndQuery>, out: &mut Vec<u8>) {
    let target = target.map_or("/", PathAndQuery::as_str);
    // `*` is the one target that is not a path (RFC 9112 §3.2.4).
    if !target.starts_with('/') && target != "*" {
        out.push(b'/');
    }
    out.extend_from_slice(target.as_bytes());
}

fn push_framing(head: &RequestHead<'_>, out: &mut Vec<u8>) {
    match head.framing {
        RequestFraming::None => {}
        RequestFraming::Length(length) => {
            push_field("content-length", itoa::Buffer::new().format(length).as_bytes(), out);
        }
        RequestFraming::Chunked => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            for names in head.headers.get_all(header::TRAILER) {
                push_field("trailer", names.as_bytes(), out);
            }
        }
    }
    if let Some(protocol) = head.upgrade {
        out.extend_from_slice(b"connection: upgrade\r\n");
        push_field("upgrade", protocol.as_bytes(), out);
    } else if takes_trailers(head.headers) {
        out.extend_from_slice(b"te: trailers\r\nconnection: te\r\n");
    }
}

fn push_field(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn push_cookies(headers: &HeaderMap, out: &mut Vec<u8>) {
    let mut separator: &[u8] = b"cookie: ";
    for crumb in headers.get_all(header::COOKIE) {
        out.extend_from_slice(separator);
        out.extend_from_slice(crumb.as_bytes());
        separator = b"; ";
    }
    out.extend_from_slice(b"\r\n");
}

fn takes_trailers(headers: &HeaderMap) -> bool {
    headers.get_all(header::TE).iter().any(|line| {
        let mut codings = line.as_bytes().split(|&byte| byte == b',');
        codings.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    })
}

/// Fields that concern one connection only, and those the codec writes itself.
fn is_ours(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "host"
            | "connection"
            | "content-length"
            | "transfer-encoding"
            | "te"
            | "trailer"
            | "upgrade"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "http2-settings"
    )
}

/// Field names that `Connection` nominates; empty, and then free, for nearly every request.
struct Nominated(Vec<HeaderName>);

impl Nominated {
    fn of(headers: &HeaderMap) -> Self {
        let mut names = Vec::new();
        for line in headers.get_all(header::CONNECTION) {
            for token in line.as_bytes().split(|&byte| byte == b',') {
                let token = token.trim_ascii();
                // Not field names, but in nearly every Connection line.
                if token.eq_ignore_ascii_case(b"keep-alive") || token.eq_ignore_ascii_case(b"close") {
                    continue;
                }
                names.extend(HeaderName::from_bytes(token).ok());
            }
        }
        Self(names)
    }

    fn has(&self, name: &HeaderName) -> bool {
        !self.0.is_empty() && self.0.contains(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(
        fields: &[(&'static str, &'static str)],
        framing: RequestFraming,
        upgrade: Option<&'static str>,
    ) -> String {
        let headers: HeaderMap =
            fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect();
        let upgrade = upgrade.map(HeaderValue::from_static);
        let head = RequestHead {
            method: &Method::GET,
            target: Some(&PathAndQuery::from_static("/x?y")),
            host: &HeaderValue::from_static("a.test"),
            headers: &headers,
            framing,
            upgrade: upgrade.as_ref(),
        };
        let mut out = Vec::new();
        let mine = |name: &HeaderName| name.as_str().starts_with("x-forwarded-");
        encode_head(&head, mine, |out| out.extend_from_slice(b"x-forwarded-for: 1.1.1.1\r\n"), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn hop_by_hop_nominated_and_callers_fields_are_not_passed_on() {
        let fields = [
            ("host", "evil"),
            ("connection", "keep-alive, X-Mine,"),
            ("x-mine", "1"),
            ("keep-alive", "5"),
            ("proxy-connection", "close"),
            ("proxy-authorization", "secret"),
            ("te", "gzip"),
            ("trailer", "x-sum"),
            ("transfer-encoding", "chunked"),
            ("content-length", "999"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQAAP"),
            ("x-forwarded-for", "6.6.6.6"),
            ("accept", "*/*"),
        ];
        assert_eq!(
            encoded(&fields, RequestFraming::Length(3), None),
            "GET /x?y HTTP/1.1\r\nhost: a.test\r\naccept: */*\r\ncontent-length: 3\r\nx-forwarded-for: 1.1.1.1\r\n\r\n"
        );
    }

    #[test]
    fn cookie_crumbs_become_one_line() {
        let head = encoded(&[("cookie", "a=1"), ("x-b", "2"), ("cookie", "c=3")], RequestFraming::None, None);
        assert_eq!(head.matches("cookie").count(), 1, "{head}");
        assert!(head.contains("\r\ncookie: a=1; c=3\r\n"), "{head}");
    }

    #[test]
    fn trailers_are_announced_and_asked_for_on_our_own_connection() {
        let head = encoded(&[("te", "gzip, Trailers"), ("trailer", "x-sum")], RequestFraming::Chunked, None);
        assert!(head.contains("transfer-encoding: chunked\r\ntrailer: x-sum\r\nte: trailers\r\nconnection: te\r\n"));
    }

    #[test]
    fn an_upgrade_is_asked_for_on_our_own_connection() {
        let fields = [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")];
        let head = encoded(&fields, RequestFraming::None, Some("websocket"));
        assert!(head.contains("\r\nsec-websocket-version: 13\r\nconnection: upgrade\r\nupgrade: websocket\r\n"));
    }

    #[test]
    fn every_target_is_a_path_or_the_asterisk() {
        for (target, expected) in [("*", "*"), ("?q", "/?q"), ("/", "/"), ("/a", "/a")] {
            let mut out = Vec::new();
            push_target(Some(&PathAndQuery::try_from(target).unwrap()), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    proptest! {
        /// Whatever the types admit, an independent parser reads back the same target and fields.
        #[test]
        fn a_parser_reads_what_was_written(
            target in "/[ -~]{0,30}",
            fields in proptest::collection::vec(("x-[a-z0-9!#$%&'*+.^_`|~-]{1,12}", proptest::collection::vec(any::<u8>(), 0..40)), 0..20),
        ) {
            let Ok(target) = PathAndQuery::try_from(target.as_str()) else { return Ok(()) };
            let mut headers = HeaderMap::new();
            for (name, value) in &fields {
                if let Ok(value) = HeaderValue::from_bytes(value) {
                    headers.append(HeaderName::try_from(name).unwrap(), value);
                }
            }
            let head = RequestHead {
                method: &Method::PUT,
                target: Some(&target),
                host: &HeaderValue::from_static("a.test"),
                headers: &headers,
                framing: RequestFraming::Chunked,
                upgrade: None,
            };
            let mut out = Vec::new();
            encode_head(&head, |_| false, |_| {}, &mut out);
            let mut room = [httparse::EMPTY_HEADER; 32];
            let mut read = httparse::Request::new(&mut room);
            prop_assert_eq!(read.parse(&out).unwrap(), httparse::Status::Complete(out.len()));
            prop_assert_eq!(read.path, Some(target.as_str()));
            prop_assert_eq!(read.headers.len(), headers.len() + 2);
            for field in &read.headers[1..read.headers.len() - 1] {
                let is_same = |value: &HeaderValue| value.as_bytes().trim_ascii() == field.value.trim_ascii();
                prop_assert!(headers.get_all(field.name).iter().any(is_same));
            }
        }
    }
}
