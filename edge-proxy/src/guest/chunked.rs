//! The chunked transfer coding (RFC 9112 §7.1), read as it arrives and written around data.

use super::UpstreamError;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Longest chunk-size line with its extensions, bytes (chosen: extensions are unused in practice).
const LINE_BYTES_MAX: usize = 1024;
/// All trailer fields together, bytes (chosen: the bound of an HTTP/2 header list here).
const TRAILER_BYTES_MAX: usize = 16 * 1024;

/// What the decoder found at the front of its input.
#[derive(Debug)]
pub(super) enum Chunk {
    /// Body bytes.
    Data(Bytes),
    /// The end, with the trailer fields that may be passed on.
    End(Option<HeaderMap>),
    /// Nothing complete yet.
    More,
}

/// Where in the coding the input stands.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Size,
    Data(u64),
    DataEnd,
    Trailers,
}

impl Decoder {
    /// Takes the next piece off `input`.
    ///
    /// # Errors
    /// [`UpstreamError::Malformed`], [`UpstreamError::HeadTooLarge`] for trailers over their bound.
    pub(super) fn decode(&mut self, input: &mut BytesMut) -> Result<Chunk, UpstreamError> {
        loop {
            match self.state {
                State::Size => {
                    let Some(line) = take_line(input)? else { return Ok(Chunk::More) };
                    self.state = match parse_size(&line)? {
                        0 => State::Trailers,
                        size => State::Data(size),
                    };
                }
                State::Data(0) => self.state = State::DataEnd,
                State::Data(_) if input.is_empty() => return Ok(Chunk::More),
                State::Data(left) => {
                    let count = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    self.state = State::Data(left - count as u64);
                    return Ok(Chunk::Data(input.split_to(count).freeze()));
                }
                State::DataEnd => {
                    if input.len() < 2 {
                        return Ok(Chunk::More);
                    }
                    if &input.split_to(2)[..] != b"\r\n" {
                        return Err(UpstreamError::Malformed("no line end after a chunk"));
                    }
                    self.state = State::Size;
                }
                State::Trailers => return take_trailers(input),
            }
        }
    }
}

/// A line without its CRLF. A bare LF is refused: it is where parsers disagree.
fn take_line(input: &mut BytesMut) -> Result<Option<BytesMut>, UpstreamError> {
    let Some(at) = input.iter().take(LINE_BYTES_MAX).position(|&byte| byte == b'\n') else {
        return if input.len() >= LINE_BYTES_MAX { Err(UpstreamError::Malformed("chunk size line")) } else { Ok(None) };
    };
    let mut line = input.split_to(at + 1);
    if !line.ends_with(b"\r\n") {
        return Err(UpstreamError::Malformed("bare line feed in the chunked coding"));
    }
    line.truncate(at - 1);
    Ok(Some(line))
}

fn parse_size(line: &[u8]) -> Result<u64, UpstreamError> {
    let digits = line.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii_end();
    // 15 digits stay below 2^60: no overflow, and no honest chunk is larger.
    if digits.is_empty() || digits.len() > 15 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(UpstreamError::Malformed("chunk size"));
    }
    let text = std::str::from_utf8(digits).map_err(|_| UpstreamError::Malformed("chunk size"))?;
    u64::from_str_radix(text, 16).map_err(|_| UpstreamError::Malformed("chunk size"))
}

fn take_trailers(input: &mut BytesMut) -> Result<Chunk, UpstreamError> {
    if input.starts_with(b"\r\n") {
        drop(input.split_to(2));
        return Ok(Chunk::End(None));
    }
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let (length, map) = match httparse::parse_headers(input, &mut fields) {
        Ok(httparse::Status::Complete((length, fields))) => {
            let mut map = HeaderMap::new();
            for field in fields {
                let name = HeaderName::from_bytes(field.name.as_bytes())
                    .map_err(|_| UpstreamError::Malformed("trailer name"))?;
                let value =
                    HeaderValue::from_bytes(field.value).map_err(|_| UpstreamError::Malformed("trailer value"))?;
                if may_trail(&name) {
                    map.append(name, value);
                }
            }
            (length, map)
        }
        Ok(httparse::Status::Partial) if input.len() < TRAILER_BYTES_MAX => return Ok(Chunk::More),
        Ok(httparse::Status::Partial) => return Err(UpstreamError::HeadTooLarge),
        Err(_) => return Err(UpstreamError::Malformed("trailers")),
    };
    drop(input.split_to(length));
    Ok(Chunk::End((!map.is_empty()).then_some(map)))
}

/// Framing, routing and authentication fields have no meaning after a body (RFC 9110 §6.5.1).
pub(super) fn may_trail(name: &HeaderName) -> bool {
    !super::encode::is_hop_by_hop(name)
        && ![
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::CONTENT_ENCODING,
            header::CONTENT_RANGE,
            header::SET_COOKIE,
            header::HOST,
            header::CACHE_CONTROL,
        ]
        .contains(name)
}

/// Appends one chunk. An empty one would end the body, so it is skipped.
pub(super) fn encode_chunk(data: &[u8], out: &mut Vec<u8>) {
    use std::io::Write;
    if !data.is_empty() {
        // Writing to a Vec cannot fail.
        let _ = write!(out, "{:x}\r\n", data.len());
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    }
}

/// Appends the last chunk and the trailer fields that may be passed on.
pub(super) fn encode_end(trailers: Option<&HeaderMap>, out: &mut Vec<u8>) {
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

    /// Feeds `wire` in pieces of `step` bytes; the body and the trailers.
    fn decoded(wire: &[u8], step: usize) -> Result<(Vec<u8>, Option<HeaderMap>, usize), UpstreamError> {
        let (mut decoder, mut input, mut body) = (Decoder::default(), BytesMut::new(), Vec::new());
        let mut rest = wire;
        loop {
            match decoder.decode(&mut input)? {
                Chunk::Data(data) => body.extend_from_slice(&data),
                Chunk::End(trailers) => return Ok((body, trailers, input.len() + rest.len())),
                Chunk::More if rest.is_empty() => return Err(UpstreamError::ClosedMidAnswer),
                Chunk::More => {
                    let (now, later) = rest.split_at(step.min(rest.len()));
                    input.extend_from_slice(now);
                    rest = later;
                }
            }
        }
    }

    #[test]
    fn trailers_pass_without_the_fields_that_may_not_trail() {
        let wire = b"5;ext=1\r\nhello\r\n0\r\nX-Sum: 9\r\nContent-Length: 7\r\nAuthorization: x\r\n\r\nHTTP";
        for step in 1..wire.len() {
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
            b"5\r\nhelloX\r\n0\r\n\r\n",
            b"\r\n",
            b"0x5\r\nhello\r\n",
            b"fffffffffffffffff\r\n",
        ] {
            assert!(matches!(decoded(wire, 64), Err(UpstreamError::Malformed(_))), "{wire:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_at_any_split(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..6), step in 1_usize..40) {
            let mut wire = Vec::new();
            for piece in &pieces {
                encode_chunk(piece, &mut wire);
            }
            encode_end(None, &mut wire);
            prop_assert_eq!(decoded(&wire, step).unwrap().0, pieces.concat());
        }

        #[test]
        fn arbitrary_bytes_never_panic(wire in proptest::collection::vec(any::<u8>(), 0..200), step in 1_usize..20) {
            let _ = decoded(&wire, step);
        }
    }
}
