//! The chunked transfer coding (RFC 9112 §7.1), read as it arrives and written around data.
//!
//! Read byte by byte outside the data, so nothing is buffered but trailer fields and any
//! split of the input gives the same result. Extensions are skipped, never interpreted.

use super::{Malformed, UpstreamError};
use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Most digits of a chunk size: 15 stay below 2^60, so no sum can overflow.
const SIZE_DIGITS_MAX: u8 = 15;
/// How much longer all extensions may be than the data so far, bytes (chosen: one unused
/// feature must not make a body cost many times its length).
const EXTENSION_BYTES_MAX: u64 = 16 * 1024;
/// All trailer fields together, bytes (chosen: the bound of an HTTP/2 header list here).
const TRAILER_BYTES_MAX: usize = 16 * 1024;
/// Most trailer fields (chosen).
const TRAILERS_MAX: usize = 64;

/// What the decoder found at the front of its input.
#[derive(Debug)]
pub enum Chunk {
    /// Body bytes, not empty.
    Data(Bytes),
    /// The end, with the trailer fields that may be passed on.
    End(Option<HeaderMap>),
    /// Nothing complete yet; the input is used up.
    More,
}

/// Where in the coding the input stands.
#[derive(Debug, Default)]
pub struct ChunkDecoder {
    state: State,
    /// Bytes of extensions beyond the bytes of data.
    extensions: u64,
    trailers: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Size {
        size: u64,
        digits: u8,
    },
    /// White space behind the size.
    Padding(u64),
    Extension(u64),
    SizeEnd(u64),
    Data(u64),
    DataCr,
    DataLf,
    Trailers,
}

impl Default for State {
    fn default() -> Self {
        Self::Size { size: 0, digits: 0 }
    }
}

impl ChunkDecoder {
    /// Takes the next piece off `input`.
    ///
    /// # Errors
    /// [`UpstreamError::Malformed`]; the connection is useless then.
    pub fn decode(&mut self, input: &mut Bytes) -> Result<Chunk, UpstreamError> {
        loop {
            match self.state {
                State::Data(left) => {
                    if input.is_empty() {
                        return Ok(Chunk::More);
                    }
                    let count = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    let left = left - count as u64;
                    self.state = if left == 0 { State::DataCr } else { State::Data(left) };
                    self.extensions = self.extensions.saturating_sub(count as u64);
                    return Ok(Chunk::Data(input.split_to(count)));
                }
                State::Trailers => return self.trailers(input),
                _ => {}
            }
            if input.is_empty() {
                return Ok(Chunk::More);
            }
            self.state = self.step(input.get_u8())?;
        }
    }

    /// Whether `rest` is exactly what ends a body without trailers.
    pub(super) fn ends_with(&self, rest: &[u8]) -> bool {
        matches!(self.state, State::DataCr) && rest == b"\r\n0\r\n\r\n"
    }

    fn step(&mut self, byte: u8) -> Result<State, UpstreamError> {
        Ok(match (self.state, byte) {
            (State::Size { size, digits }, _) => match (hex_digit(byte), byte) {
                (Some(digit), _) if digits < SIZE_DIGITS_MAX => {
                    State::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
                }
                (None, b'\r') if digits > 0 => State::SizeEnd(size),
                (None, b';') if digits > 0 => State::Extension(size),
                (None, b' ' | b'\t') if digits > 0 => State::Padding(size),
                _ => return Err(Malformed::ChunkSize.into()),
            },
            (State::Padding(size) | State::Extension(size), b'\r') => State::SizeEnd(size),
            (State::Padding(size), b';') => State::Extension(size),
            // A bare LF is where parsers disagree about the end of an extension.
            (State::Extension(_), b'\n' | b'\0') => return Err(Malformed::ChunkSize.into()),
            (State::Padding(_), b' ' | b'\t') | (State::Extension(_), _) => {
                self.extensions += 1;
                if self.extensions > EXTENSION_BYTES_MAX {
                    return Err(Malformed::ChunkSize.into());
                }
                self.state
            }
            (State::SizeEnd(0), b'\n') => State::Trailers,
            (State::SizeEnd(size), b'\n') => State::Data(size),
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::default(),
            (State::Padding(_) | State::SizeEnd(_), _) => return Err(Malformed::ChunkSize.into()),
            _ => return Err(Malformed::ChunkEnd.into()),
        })
    }

    fn trailers(&mut self, input: &mut Bytes) -> Result<Chunk, UpstreamError> {
        while !input.is_empty() {
            let byte = input.get_u8();
            self.trailers.push(byte);
            if byte == b'\n' {
                if !self.trailers.ends_with(b"\r\n") {
                    return Err(Malformed::Trailers.into());
                }
                if self.trailers.len() == 2 {
                    return Ok(Chunk::End(None));
                }
                if self.trailers.ends_with(b"\r\n\r\n") {
                    return parse_trailers(&self.trailers).map(Chunk::End);
                }
            }
            if self.trailers.len() >= TRAILER_BYTES_MAX {
                return Err(Malformed::Trailers.into());
            }
        }
        Ok(Chunk::More)
    }
}

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

fn parse_trailers(block: &[u8]) -> Result<Option<HeaderMap>, UpstreamError> {
    let mut room = [httparse::EMPTY_HEADER; TRAILERS_MAX];
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(block, &mut room) else {
        return Err(Malformed::Trailers.into());
    };
    let mut trailers = HeaderMap::new();
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Malformed::Trailers)?;
        if may_trail(&name) {
            trailers.append(name, HeaderValue::from_bytes(field.value).map_err(|_| Malformed::Trailers)?);
        }
    }
    Ok((!trailers.is_empty()).then_some(trailers))
}

/// Whether a field means anything behind a body: framing, routing, authentication, content
/// and caching fields do not (RFC 9110 §6.5.1), and one that did would bypass what was
/// decided on the head.
#[must_use]
pub fn may_trail(name: &HeaderName) -> bool {
    let name = name.as_str();
    let decided = matches!(
        name,
        "age"
            | "authorization"
            | "cache-control"
            | "connection"
            | "cookie"
            | "date"
            | "expect"
            | "expires"
            | "forwarded"
            | "host"
            | "keep-alive"
            | "location"
            | "max-forwards"
            | "pragma"
            | "range"
            | "retry-after"
            | "set-cookie"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "vary"
            | "via"
            | "warning"
            | "www-authenticate"
            | "x-real-ip"
    );
    // `content-digest` and its kin are made for trailers.
    let content = name.starts_with("content-") && name != "content-digest" && name != "content-md5";
    let families = ["client-cert", "client_cert", "if-", "proxy-", "sprite-", "x-forwarded-"];
    !decided && !content && !families.iter().any(|family| name.starts_with(family))
}

/// Longest line in front of a chunk: 16 digits and CRLF.
const SIZE_LINE_BYTES: usize = 18;

/// The line in front of a chunk of `size` bytes, in `line`.
pub(super) fn size_line(size: usize, line: &mut [u8; SIZE_LINE_BYTES]) -> &[u8] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    line[SIZE_LINE_BYTES - 2..].copy_from_slice(b"\r\n");
    let (mut at, mut left) = (SIZE_LINE_BYTES - 2, size);
    loop {
        at -= 1;
        line[at] = DIGITS[left & 15];
        left >>= 4;
        if left == 0 {
            return &line[at..];
        }
    }
}

/// Appends one chunk. An empty one would end the body, so nothing is written for it.
pub fn encode_chunk(data: &[u8], out: &mut Vec<u8>) {
    if !data.is_empty() {
        out.extend_from_slice(size_line(data.len(), &mut [0; SIZE_LINE_BYTES]));
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    }
}

/// Appends the last chunk and the trailer fields that may be passed on.
pub fn encode_end(trailers: Option<&HeaderMap>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        if may_trail(name) {
            out.extend_from_slice(name.as_str().as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `wire` in pieces of `step` bytes: the body, the trailers, and how much was left over.
    fn decoded(wire: &[u8], step: usize) -> Result<(Vec<u8>, Option<HeaderMap>, usize), UpstreamError> {
        let (mut decoder, mut body, mut rest) = (ChunkDecoder::default(), Vec::new(), wire);
        let mut input = Bytes::new();
        loop {
            match decoder.decode(&mut input)? {
                Chunk::Data(data) => {
                    assert!(!data.is_empty());
                    body.extend_from_slice(&data);
                }
                Chunk::End(trailers) => return Ok((body, trailers, input.len() + rest.len())),
                Chunk::More if rest.is_empty() => {
                    return Err(UpstreamError::ConnectionClosed { before_response: false });
                }
                Chunk::More => {
                    assert!(input.is_empty());
                    let (now, later) = rest.split_at(step.min(rest.len()));
                    input = Bytes::copy_from_slice(now);
                    rest = later;
                }
            }
        }
    }

    #[test]
    fn trailers_pass_without_the_fields_that_may_not_trail() {
        let wire = b"5;ext=\"1\"\r\nhello\r\n0 ;x\r\nX-Sum: 9\r\nContent-Length: 7\r\nX-Forwarded-For: 6\r\nAuthorization: x\r\n\r\nHTTP";
        for step in 1..=wire.len() {
            let (body, trailers, left) = decoded(wire, step).unwrap();
            assert_eq!((&body[..], left), (&b"hello"[..], 4));
            let trailers = trailers.unwrap();
            assert_eq!((trailers.len(), &trailers["x-sum"]), (1, &HeaderValue::from_static("9")));
        }
    }

    #[test]
    fn what_parsers_disagree_about_is_refused() {
        for wire in [
            &b"5\nhello\r\n0\r\n\r\n"[..],
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"-1\r\nhello\r\n0\r\n\r\n",
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"5 5\r\nhello\r\n0\r\n\r\n",
            b"5\rhello\r\n0\r\n\r\n",
            b"5\r\nhelloX\r\n0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5\r\nhello0\r\n\r\n",
            b"5;a\nhello\r\n0\r\n\r\n",
            b"\r\n",
            b";a\r\n",
            b"0x5\r\nhello\r\n",
            b"fffffffffffffffff\r\n",
            b"0000000000000000000005\r\nhello\r\n0\r\n\r\n",
            b"0\r\nx: 1\n\r\n",
            b"0\r\n\n",
            b"0\r\nx y: 1\r\n\r\n",
            b"0\r\n folded\r\n\r\n",
        ] {
            for step in [1, 3, 64] {
                assert!(matches!(decoded(wire, step), Err(UpstreamError::Malformed(_))), "{wire:?}");
            }
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(20_000));
        assert!(matches!(decoded(long.as_bytes(), 4096), Err(UpstreamError::Malformed(Malformed::ChunkSize))));
        let many = format!("{}0\r\n\r\n", format!("1;{}\r\na\r\n", "x".repeat(1000)).repeat(20));
        assert!(matches!(decoded(many.as_bytes(), 4096), Err(UpstreamError::Malformed(Malformed::ChunkSize))));
        let honest = format!("{}0\r\n\r\n", format!("3e8;{0}\r\n{0}\r\n", "x".repeat(1000)).repeat(40));
        assert_eq!(decoded(honest.as_bytes(), 4096).unwrap().0.len(), 40_000);
        let trailers = format!("0\r\nx: {}\r\n\r\n", "y".repeat(TRAILER_BYTES_MAX));
        assert!(matches!(decoded(trailers.as_bytes(), 4096), Err(UpstreamError::Malformed(Malformed::Trailers))));
    }

    #[test]
    fn a_size_line_is_hexadecimal() {
        for size in [1, 9, 10, 15, 16, 255, 4096, usize::MAX] {
            assert_eq!(size_line(size, &mut [0; SIZE_LINE_BYTES]), format!("{size:x}\r\n").as_bytes());
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_at_any_split(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..6),
            trailer in proptest::option::of("[!-~]{1,20}"),
            step in 1_usize..40,
        ) {
            let trailers: Option<HeaderMap> =
                trailer.map(|text| [(HeaderName::from_static("x-sum"), HeaderValue::try_from(text).unwrap())].into_iter().collect());
            let mut wire = Vec::new();
            for piece in &pieces {
                encode_chunk(piece, &mut wire);
            }
            encode_end(trailers.as_ref(), &mut wire);
            prop_assert_eq!(decoded(&wire, step).unwrap(), (pieces.concat(), trailers, 0));
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_any_split_gives_the_same(
            wire in proptest::collection::vec(prop_oneof![any::<u8>(), proptest::sample::select(&b"0015aF;\r\n\r\n \t:x"[..])], 0..200),
            step in 1_usize..20,
        ) {
            let whole = decoded(&wire, wire.len().max(1)).map_err(|error| error.to_string());
            let split = decoded(&wire, step).map_err(|error| error.to_string());
            prop_assert_eq!(whole, split);
        }
    }
}
