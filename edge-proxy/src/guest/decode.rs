//! The head of a guest's answer: status, fields, and how its body ends.

use super::UpstreamError;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use std::mem::MaybeUninit;

/// Longest head we read, bytes (chosen: twice what common servers send at most).
pub(super) const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Most fields in a head (chosen, as many as hyper allows in a request).
pub(super) const FIELDS_MAX: usize = 128;

/// How the body of an answer ends (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// There is none.
    Empty,
    /// After this many bytes.
    Length(u64),
    /// With the last chunk.
    Chunked,
    /// With the connection.
    UntilClose,
}

/// A parsed head.
#[derive(Debug)]
pub struct ResponseHead {
    /// Status.
    pub status: StatusCode,
    /// Fields without hop-by-hop ones; `Upgrade` stays in a 101.
    pub headers: HeaderMap,
    /// How the body ends.
    pub framing: BodyFraming,
    /// Whether the connection may carry another request afterwards.
    pub keep_alive: bool,
}

/// Reads one head from the front of `bytes`, which is advanced behind it; `None` while
/// it is incomplete. `method` is the request's: an answer to HEAD has no body.
///
/// # Errors
/// [`UpstreamError::HeadTooLarge`], [`UpstreamError::Malformed`].
pub(super) fn decode_head(bytes: &mut BytesMut, method: &Method) -> Result<Option<ResponseHead>, UpstreamError> {
    // A few servers end a body with a stray line break; RFC 9112 §2.2 allows skipping it.
    let mut fields = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut []);
    let parsed =
        httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, bytes, &mut fields);
    let length = match parsed {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() >= HEAD_BYTES_MAX => return Err(UpstreamError::HeadTooLarge),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(UpstreamError::HeadTooLarge),
        Err(_) => return Err(UpstreamError::Malformed("not an HTTP/1 head")),
    };
    if length > HEAD_BYTES_MAX {
        return Err(UpstreamError::HeadTooLarge);
    }
    let version = response.version.unwrap_or(0);
    let status = response
        .code
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or(UpstreamError::Malformed("status out of range"))?;

    // Where each field stands, because the borrow of `bytes` must end before it is frozen.
    let base = bytes.as_ptr() as usize;
    let range = |part: &[u8]| {
        let start = part.as_ptr() as usize - base;
        (start, start + part.len())
    };
    let mut places = [((0, 0), (0, 0)); FIELDS_MAX];
    let count = response.headers.len();
    for (place, field) in places.iter_mut().zip(response.headers.iter()) {
        *place = (range(field.name.as_bytes()), range(field.value));
    }
    let head = bytes.split_to(length).freeze();
    collect(&head, &places[..count], version, status, method).map(Some)
}

type Span = (usize, usize);

fn collect(
    head: &Bytes,
    places: &[(Span, Span)],
    version: u8,
    status: StatusCode,
    method: &Method,
) -> Result<ResponseHead, UpstreamError> {
    let mut headers = HeaderMap::with_capacity(places.len() + 4);
    let mut seen = Seen { keep_alive: version == 1, ..Seen::default() };
    for &((name_start, name_end), (value_start, value_end)) in places {
        let name =
            HeaderName::from_bytes(&head[name_start..name_end]).map_err(|_| UpstreamError::Malformed("field name"))?;
        let value = &head[value_start..value_end];
        if seen.take(&name, value, status)? {
            continue;
        }
        // SAFETY is not needed: the checked constructor validates what the slice shares.
        let value = HeaderValue::from_maybe_shared(head.slice(value_start..value_end))
            .map_err(|_| UpstreamError::Malformed("field value"))?;
        headers.append(name, value);
    }
    for name in &seen.nominated {
        headers.remove(name);
    }
    let framing = seen.framing(version, status, method)?;
    let keep_alive = seen.keep_alive && framing != BodyFraming::UntilClose;
    Ok(ResponseHead { status, headers, framing, keep_alive })
}

/// What the framing fields said so far.
#[derive(Default)]
struct Seen {
    length: Option<u64>,
    chunked: bool,
    keep_alive: bool,
    nominated: Vec<HeaderName>,
}

impl Seen {
    /// Looks at one field; `true` when it must not be passed on.
    fn take(&mut self, name: &HeaderName, value: &[u8], status: StatusCode) -> Result<bool, UpstreamError> {
        match name.as_str().as_bytes() {
            [b'c', ..] if *name == header::CONTENT_LENGTH => {
                let length = parse_length(value)?;
                let repeated = self.length.is_some();
                if self.length.replace(length).is_some_and(|before| before != length) {
                    return Err(UpstreamError::Malformed("two lengths"));
                }
                Ok(repeated)
            }
            [b'c', ..] if *name == header::CONNECTION => {
                self.connection(value);
                Ok(status != StatusCode::SWITCHING_PROTOCOLS)
            }
            [b't', ..] if *name == header::TRANSFER_ENCODING => {
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(UpstreamError::Malformed("transfer coding"));
                }
                self.chunked = true;
                Ok(true)
            }
            [b'u', ..] if *name == header::UPGRADE => Ok(status != StatusCode::SWITCHING_PROTOCOLS),
            [b'k' | b'p' | b's', ..] => Ok(name == "keep-alive" || name == "proxy-connection" || name == "sprite-wake"),
            _ => Ok(false),
        }
    }

    fn connection(&mut self, value: &[u8]) {
        for token in value.split(|&b| b == b',').map(<[u8]>::trim_ascii) {
            if token.eq_ignore_ascii_case(b"close") {
                self.keep_alive = false;
            } else if token.eq_ignore_ascii_case(b"keep-alive") || token.eq_ignore_ascii_case(b"upgrade") {
                // An HTTP/1.0 server may ask to keep it; we do not: its framing is the weakest.
            } else if let Ok(name) = HeaderName::from_bytes(token) {
                self.nominated.push(name);
            }
        }
    }

    fn framing(&self, version: u8, status: StatusCode, method: &Method) -> Result<BodyFraming, UpstreamError> {
        if self.chunked && (self.length.is_some() || version == 0) {
            return Err(UpstreamError::Malformed("both a length and a transfer coding"));
        }
        let bodiless = status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED
            || *method == Method::HEAD;
        Ok(match self.length {
            _ if bodiless => BodyFraming::Empty,
            _ if self.chunked => BodyFraming::Chunked,
            Some(0) => BodyFraming::Empty,
            Some(length) => BodyFraming::Length(length),
            None => BodyFraming::UntilClose,
        })
    }
}

/// Digits only: `+5`, `5, 5` and an empty value are how desyncs begin.
fn parse_length(value: &[u8]) -> Result<u64, UpstreamError> {
    let malformed = UpstreamError::Malformed("content length");
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return Err(malformed);
    }
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(text: &str) -> Result<Option<ResponseHead>, UpstreamError> {
        decode_head(&mut BytesMut::from(text), &Method::GET)
    }

    #[test]
    fn a_head_is_found_at_any_split_and_what_follows_is_left() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\nhello";
        for cut in 0..text.len() - 5 {
            assert!(head(&text[..cut]).unwrap().is_none(), "{cut}");
        }
        let mut bytes = BytesMut::from(text);
        let head = decode_head(&mut bytes, &Method::GET).unwrap().unwrap();
        assert_eq!((head.status.as_u16(), head.framing, head.keep_alive), (200, BodyFraming::Length(5), true));
        assert_eq!(head.headers["x-a"], "b");
        assert!(!head.headers.contains_key("x-hop") && !head.headers.contains_key("connection"));
        assert_eq!(&bytes[..], b"hello");
    }

    #[test]
    fn framing_follows_the_rfc_and_what_can_be_read_two_ways_is_refused() {
        let framing = |fields: &str| head(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).map(|h| h.unwrap().framing);
        assert_eq!(framing("content-length: 3\r\ncontent-length: 3\r\n").unwrap(), BodyFraming::Length(3));
        assert_eq!(framing("transfer-encoding: Chunked\r\n").unwrap(), BodyFraming::Chunked);
        assert_eq!(framing("").unwrap(), BodyFraming::UntilClose);
        for refused in [
            "content-length: 3\r\ncontent-length: 4\r\n",
            "content-length: +3\r\n",
            "content-length: 3, 3\r\n",
            "content-length:\r\n",
            "content-length: 99999999999999999999\r\n",
            "transfer-encoding: chunked\r\ncontent-length: 3\r\n",
            "transfer-encoding: gzip, chunked\r\n",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            "transfer-encoding: identity\r\n",
        ] {
            assert!(matches!(framing(refused), Err(UpstreamError::Malformed(_))), "{refused}");
        }
        let old = head("HTTP/1.0 200 OK\r\ncontent-length: 1\r\nconnection: keep-alive\r\n\r\n").unwrap().unwrap();
        assert!(!old.keep_alive);
        let to_head = decode_head(&mut BytesMut::from("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"), &Method::HEAD);
        let to_head = to_head.unwrap().unwrap();
        assert_eq!(
            (to_head.framing, &to_head.headers["content-length"]),
            (BodyFraming::Empty, &HeaderValue::from_static("9"))
        );
    }

    #[test]
    fn a_head_without_end_is_refused_at_its_bound() {
        let long = format!("HTTP/1.1 200 OK\r\nx: {}", "a".repeat(HEAD_BYTES_MAX));
        assert!(matches!(head(&long), Err(UpstreamError::HeadTooLarge)));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(FIELDS_MAX + 1));
        assert!(matches!(head(&many), Err(UpstreamError::HeadTooLarge)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_head(&mut BytesMut::from(&bytes[..]), &Method::GET);
            let mut text = b"HTTP/1.1 200 OK\r\n".to_vec();
            text.extend_from_slice(&bytes);
            text.extend_from_slice(b"\r\n\r\n");
            let _ = decode_head(&mut BytesMut::from(&text[..]), &Method::GET);
        }
    }
}
