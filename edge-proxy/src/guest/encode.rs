//! The head of a request to a guest, written into one buffer.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use std::io::Write;

/// How the request's body is delimited on the guest's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body, no `Content-Length`.
    None,
    /// `Content-Length`.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// What goes into a head besides the client's own fields.
pub struct HeadParts<'a> {
    /// Method.
    pub method: &'a Method,
    /// Origin-form target.
    pub path: &'a str,
    /// `Host`, as the client wrote it.
    pub host: &'a HeaderValue,
    /// The client's fields.
    pub headers: &'a HeaderMap,
    /// Body framing.
    pub framing: Framing,
    /// The protocol to upgrade to, if the client asked for an upgrade.
    pub upgrade: Option<&'a HeaderValue>,
}

/// Appends the head without its final empty line, so that the caller can add field lines;
/// [`finish`] ends it.
///
/// Hop-by-hop fields (RFC 9110 §7.6.1) and the fields for which `drop` is true are left
/// out; the crumbs of a `Cookie` that HTTP/2 split are joined (RFC 9113 §8.2.3).
pub fn encode_head(parts: &HeadParts<'_>, drop: impl Fn(&HeaderName) -> bool, out: &mut Vec<u8>) {
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(parts.path.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    out.extend_from_slice(parts.host.as_bytes());
    out.extend_from_slice(b"\r\n");
    let nominated = Nominated::of(parts.headers);
    let mut cookies = false;
    for (name, value) in parts.headers {
        if is_hop_by_hop(name) || nominated.has(name) || drop(name) {
            continue;
        }
        if *name == header::COOKIE {
            cookies = true;
            continue;
        }
        line(out, name.as_str().as_bytes(), value.as_bytes());
    }
    if cookies {
        cookie_line(out, parts.headers);
    }
    match parts.framing {
        Framing::None => {}
        Framing::Length(length) => {
            // Writing to a Vec cannot fail.
            let _ = write!(out, "content-length: {length}\r\n");
        }
        Framing::Chunked => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            if let Some(trailer) = parts.headers.get(header::TRAILER) {
                line(out, b"trailer", trailer.as_bytes());
            }
        }
    }
    if let Some(protocol) = parts.upgrade {
        out.extend_from_slice(b"connection: upgrade\r\n");
        line(out, b"upgrade", protocol.as_bytes());
    } else if wants_trailers(parts.headers) {
        out.extend_from_slice(b"te: trailers\r\nconnection: te\r\n");
    }
}

/// Ends a head.
pub fn finish(out: &mut Vec<u8>) {
    out.extend_from_slice(b"\r\n");
}

fn line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn cookie_line(out: &mut Vec<u8>, headers: &HeaderMap) {
    out.extend_from_slice(b"cookie: ");
    for (at, crumb) in headers.get_all(header::COOKIE).iter().enumerate() {
        if at > 0 {
            out.extend_from_slice(b"; ");
        }
        out.extend_from_slice(crumb.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

fn wants_trailers(headers: &HeaderMap) -> bool {
    headers.get_all(header::TE).iter().any(|line| {
        line.to_str().is_ok_and(|line| line.split(',').any(|coding| coding.trim().eq_ignore_ascii_case("trailers")))
    })
}

/// Fields that concern one connection only, and those the codec writes itself.
pub(super) fn is_hop_by_hop(name: &HeaderName) -> bool {
    // Few fields share a first letter with these, so most leave after one comparison.
    match name.as_str().as_bytes() {
        [b'c', ..] => *name == header::CONNECTION || *name == header::CONTENT_LENGTH,
        [b'k', ..] => name == "keep-alive",
        [b'p', ..] => {
            name == "proxy-connection" || *name == header::PROXY_AUTHENTICATE || *name == header::PROXY_AUTHORIZATION
        }
        [b't', ..] => *name == header::TE || *name == header::TRAILER || *name == header::TRANSFER_ENCODING,
        [b'u', ..] => *name == header::UPGRADE,
        [b'h', ..] => *name == header::HOST || name == "http2-settings",
        _ => false,
    }
}

/// Field names that `Connection` nominates; empty for nearly every request.
struct Nominated(Vec<HeaderName>);

impl Nominated {
    fn of(headers: &HeaderMap) -> Self {
        let mut names = Vec::new();
        if headers.contains_key(header::CONNECTION) {
            let lines = headers.get_all(header::CONNECTION).iter().filter_map(|line| line.to_str().ok());
            for token in lines.flat_map(|line| line.split(',')) {
                let token = token.trim();
                // These two are not field names but are in nearly every Connection line.
                if token.eq_ignore_ascii_case("keep-alive") || token.eq_ignore_ascii_case("close") {
                    continue;
                }
                if let Ok(name) = token.parse() {
                    names.push(name);
                }
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

    fn encoded(headers: &[(&'static str, &'static str)], framing: Framing, upgrade: Option<&'static str>) -> String {
        let headers = headers.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect();
        let host = HeaderValue::from_static("a.test");
        let upgrade = upgrade.map(HeaderValue::from_static);
        let mut out = Vec::new();
        let parts = HeadParts {
            method: &Method::GET,
            path: "/x?y",
            host: &host,
            headers: &headers,
            framing,
            upgrade: upgrade.as_ref(),
        };
        encode_head(&parts, |name| name == "x-forwarded-for", &mut out);
        finish(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn hop_by_hop_and_nominated_fields_stay_here() {
        let head = encoded(
            &[
                ("host", "evil"),
                ("connection", "keep-alive, x-mine"),
                ("x-mine", "1"),
                ("keep-alive", "5"),
                ("te", "gzip"),
                ("transfer-encoding", "chunked"),
                ("content-length", "3"),
                ("upgrade", "h2c"),
                ("x-forwarded-for", "6.6.6.6"),
                ("accept", "*/*"),
            ],
            Framing::Length(3),
            None,
        );
        assert_eq!(head, "GET /x?y HTTP/1.1\r\nhost: a.test\r\naccept: */*\r\ncontent-length: 3\r\n\r\n");
    }

    #[test]
    fn cookie_crumbs_become_one_line_and_te_trailers_is_asked_anew() {
        let head = encoded(&[("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers")], Framing::Chunked, None);
        assert!(head.contains("cookie: a=1; b=2\r\n"));
        assert!(head.contains("te: trailers\r\nconnection: te\r\n"));
        assert!(head.contains("transfer-encoding: chunked\r\n"));
    }

    #[test]
    fn an_upgrade_is_asked_for_on_our_own_connection() {
        let head = encoded(&[("connection", "Upgrade"), ("upgrade", "websocket")], Framing::None, Some("websocket"));
        assert!(head.ends_with("connection: upgrade\r\nupgrade: websocket\r\n\r\n"));
    }
}
