//! The head of a guest's answer: status, fields, and how its body ends.
//!
//! Names are checked by `http`, values are slices of the bytes that were read. Nothing
//! that can be read in two ways is passed on.

use super::connection::Asked;
use super::{Malformed, UpstreamError};
use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use httparse::{ParserConfig, Status};
use std::mem::MaybeUninit;

/// Longest head we read, bytes (chosen: eight times the usual bound of servers).
pub const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Most fields in a head (chosen, a little above the 100 hyper allows in a request).
pub const FIELDS_MAX: usize = 128;

/// Stray line ends tolerated in front of a status line, bytes: two empty lines (chosen).
const STRAY_BYTES_MAX: u8 = 4;

/// Fields a caller usually adds; room for them saves a second allocation of the map.
const FIELDS_ADDED: usize = 4;

/// How the body of an answer ends (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// There is none.
    Empty,
    /// After this many bytes, which are not 0.
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
    /// Fields without hop-by-hop ones; `Connection` and `Upgrade` stay in a 101.
    pub headers: HeaderMap,
    /// How the body ends.
    pub framing: BodyFraming,
    /// Whether the connection may carry another request after the body.
    pub reusable: bool,
}

impl ResponseHead {
    /// Whether another head follows it (RFC 9110 §15.2).
    #[must_use]
    pub fn is_interim(&self) -> bool {
        self.status.is_informational() && self.status != StatusCode::SWITCHING_PROTOCOLS
    }
}

/// Finds heads in bytes as they arrive.
#[derive(Debug, Default)]
pub struct HeadDecoder {
    /// So many bytes of the input were parsed and hold no end of a head. The first try
    /// costs nothing extra; later ones wait for an empty line, so that a guest that sends
    /// byte by byte does not make us parse each time from the start.
    searched: usize,
    stray: u8,
}

impl HeadDecoder {
    /// Takes one head off the front of `input`; `None` while it is incomplete.
    ///
    /// # Errors
    /// [`UpstreamError::HeadTooLarge`], [`UpstreamError::Malformed`]; the connection is useless then.
    pub fn decode(&mut self, input: &mut Bytes, asked: Asked) -> Result<Option<ResponseHead>, UpstreamError> {
        while let Some(b'\r' | b'\n') = input.first() {
            // The line end some servers put behind a body (RFC 9112 §2.2 has it for requests).
            if self.stray >= STRAY_BYTES_MAX {
                return Err(Malformed::StatusLine.into());
            }
            self.stray += 1;
            input.advance(1);
        }
        if self.searched > 0 && !has_empty_line(&input[self.searched.saturating_sub(2).min(input.len())..]) {
            return self.incomplete(input);
        }
        self.parse(input, asked)
    }

    /// Looks at what there is once no more can come: an error says more than "it closed".
    ///
    /// # Errors
    /// [`UpstreamError`], always.
    pub fn fail(&mut self, input: &mut Bytes, asked: Asked) -> UpstreamError {
        let before_response = input.is_empty() && self.stray == 0;
        match self.parse(input, asked) {
            Err(error) if !input.is_empty() => error,
            _ => UpstreamError::ConnectionClosed { before_response },
        }
    }

    fn incomplete(&mut self, input: &Bytes) -> Result<Option<ResponseHead>, UpstreamError> {
        self.searched = input.len();
        if input.len() > HEAD_BYTES_MAX { Err(UpstreamError::HeadTooLarge) } else { Ok(None) }
    }

    fn parse(&mut self, input: &mut Bytes, asked: Asked) -> Result<Option<ResponseHead>, UpstreamError> {
        let mut room = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; FIELDS_MAX];
        let mut response = httparse::Response::new(&mut []);
        let length = match ParserConfig::default().parse_response_with_uninit_headers(&mut response, input, &mut room) {
            Ok(Status::Complete(length)) if length <= HEAD_BYTES_MAX => length,
            Ok(Status::Complete(_)) | Err(httparse::Error::TooManyHeaders) => {
                return Err(UpstreamError::HeadTooLarge);
            }
            Ok(Status::Partial) => return self.incomplete(input),
            Err(httparse::Error::HeaderName | httparse::Error::HeaderValue | httparse::Error::NewLine) => {
                return Err(Malformed::Field.into());
            }
            Err(_) => return Err(Malformed::StatusLine.into()),
        };
        let status = response.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Malformed::StatusLine)?;
        if status == StatusCode::SWITCHING_PROTOCOLS && !asked.upgrade {
            return Err(Malformed::UnaskedUpgrade.into());
        }
        let old = response.version != Some(1);
        let mut facts = Facts { status, old, close: old, ..Facts::default() };
        facts.irregular = self.stray > 0 || has_bare_line_feed(&input[..length], response.headers.len());
        let mut headers = HeaderMap::with_capacity(response.headers.len() + FIELDS_ADDED);
        for field in response.headers.iter() {
            let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Malformed::Field)?;
            if facts.passes(&name, field.value)? {
                let value =
                    HeaderValue::from_maybe_shared(input.slice_ref(field.value)).map_err(|_| Malformed::Field)?;
                headers.append(name, value);
            }
        }
        input.advance(length);
        *self = Self::default();
        facts.conclude(headers, asked).map(Some)
    }
}

fn has_empty_line(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .enumerate()
        .any(|(at, &byte)| byte == b'\n' && matches!(bytes[at + 1..], [b'\n', ..] | [b'\r', b'\n', ..]))
}

/// httparse takes a lone LF for a line end, but a CR only in front of an LF: a head whose
/// lines all end in CRLF has one CR for each field, for the status and for the empty line.
fn has_bare_line_feed(head: &[u8], fields: usize) -> bool {
    head.iter().filter(|&&byte| byte == b'\r').count() != fields + 2
}

/// What the fields of a head say about its connection and its body.
#[derive(Default)]
struct Facts {
    status: StatusCode,
    /// HTTP/1.0: its body may be delimited by a length, its connection is not kept.
    old: bool,
    close: bool,
    length: Option<u64>,
    chunked: bool,
    /// Something no server should send, though it can be read in one way only.
    irregular: bool,
    nominated: Vec<HeaderName>,
}

impl Facts {
    /// Looks at one field; `false` when it must not be passed on.
    fn passes(&mut self, name: &HeaderName, value: &[u8]) -> Result<bool, Malformed> {
        match name.as_str() {
            "content-length" => {
                let length = parse_length(value)?;
                match self.length.replace(length) {
                    None => return Ok(true),
                    Some(before) if before == length => self.irregular = true,
                    Some(_) => return Err(Malformed::ContentLengths),
                }
                Ok(false)
            }
            "transfer-encoding" => {
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Malformed::TransferCoding);
                }
                self.chunked = true;
                Ok(false)
            }
            "connection" => {
                self.connection(value);
                Ok(self.status == StatusCode::SWITCHING_PROTOCOLS)
            }
            "upgrade" => Ok(self.status == StatusCode::SWITCHING_PROTOCOLS),
            "te" | "keep-alive" | "proxy-connection" | "proxy-authenticate" | "proxy-authentication-info" => Ok(false),
            // Only the edge says what a request was held for.
            "sprite-wake" => Ok(false),
            _ => Ok(true),
        }
    }

    fn connection(&mut self, value: &[u8]) {
        for token in value.split(|&byte| byte == b',') {
            let token = token.trim_ascii();
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if !token.eq_ignore_ascii_case(b"keep-alive") && !token.eq_ignore_ascii_case(b"upgrade") {
                // An HTTP/1.0 server may ask to be kept; its framing is too weak for that.
                self.nominated.extend(HeaderName::from_bytes(token).ok());
            }
        }
    }

    fn conclude(mut self, mut headers: HeaderMap, asked: Asked) -> Result<ResponseHead, UpstreamError> {
        if self.chunked && (self.length.is_some() || self.old) {
            return Err(Malformed::CodingContradicted.into());
        }
        for name in &self.nominated {
            headers.remove(name);
        }
        if self.status.is_informational() || self.status == StatusCode::NO_CONTENT {
            // RFC 9110 §8.6 forbids both; a guest that means them sends a body nobody expects.
            self.irregular |= self.chunked || self.length.is_some_and(|length| length > 0);
            headers.remove(header::CONTENT_LENGTH);
        }
        let bodiless = asked.head
            || self.status.is_informational()
            || self.status == StatusCode::NO_CONTENT
            || self.status == StatusCode::NOT_MODIFIED;
        let framing = match self.length {
            _ if bodiless => BodyFraming::Empty,
            _ if self.chunked => BodyFraming::Chunked,
            Some(0) => BodyFraming::Empty,
            Some(length) => BodyFraming::Length(length),
            None => BodyFraming::UntilClose,
        };
        let switches = self.status == StatusCode::SWITCHING_PROTOCOLS;
        let reusable = !self.close && !self.irregular && !switches && framing != BodyFraming::UntilClose;
        Ok(ResponseHead { status: self.status, headers, framing, reusable })
    }
}

/// Digits only: `+5`, `5, 5` and an empty value are how desyncs begin.
fn parse_length(value: &[u8]) -> Result<u64, Malformed> {
    // 19 digits stay below 2^64, so the sum cannot overflow.
    if value.is_empty() || value.len() > 19 {
        return Err(Malformed::ContentLength);
    }
    value.iter().try_fold(0_u64, |sum, &byte| match byte {
        b'0'..=b'9' => Ok(sum * 10 + u64::from(byte - b'0')),
        _ => Err(Malformed::ContentLength),
    })
}
