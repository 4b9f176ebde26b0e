//! What was asked. A reader of our own rather than a general one: a question needs no pointer followed and nothing allocated,
//! so that no message costs more than its own length, whoever made it.

use super::codes::{kind, rcode};
use super::name::Name;

/// The header of every message, bytes (RFC 1035 §4.1.1).
pub(super) const HEADER: usize = 12;
/// Most records behind a question (chosen: an OPT and a signature are what there is).
const EXTRA_RECORDS_MAX: u16 = 4;

/// One question that can be answered.
pub(super) struct Query {
    pub(super) name: Name,
    pub(super) kind: u16,
    pub(super) class: u16,
    /// Where the question ends in the message; it begins behind the header.
    pub(super) end: usize,
    pub(super) edns: Option<Edns>,
}

/// What the asker says of itself (RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edns {
    /// The longest answer it takes over UDP, bytes.
    pub(super) payload: u16,
    pub(super) version: u8,
    pub(super) dnssec_ok: bool,
}

/// Why there is no question to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// Nothing that wants an answer: too short for a header, or an answer itself.
    Silence,
    /// To be answered with this response code and nothing else.
    Code(u8),
}

const FORM_ERROR: Unread = Unread::Code(rcode::FORM_ERROR);

/// Reads `message`.
///
/// # Errors
/// [`Unread`]: what to do instead of answering a question.
pub(super) fn read(message: &[u8]) -> Result<Query, Unread> {
    let header: &[u8; HEADER] = message.first_chunk().ok_or(Unread::Silence)?;
    // An answer to an answer would go round for ever.
    if header[2] & 0x80 != 0 {
        return Err(Unread::Silence);
    }
    // Whatever is no query (NOTIFY, UPDATE) has sections of its own.
    if header[2] & 0x78 != 0 {
        return Err(Unread::Code(rcode::NOT_IMPLEMENTED));
    }
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    if count(4) != 1 {
        return Err(FORM_ERROR);
    }
    let name = Name::read(&message[HEADER..]).ok_or(FORM_ERROR)?;
    let mut rest = Rest { message, at: HEADER + name.len() };
    let (kind, class) = (rest.u16()?, rest.u16()?);
    let mut query = Query { name, kind, class, end: rest.at, edns: None };
    // An IXFR brings the SOA it knows (RFC 1995 §3); it is refused, not misread.
    if query.kind == kind::IXFR {
        return Ok(query);
    }
    if count(6) != 0 || count(8) != 0 || count(10) > EXTRA_RECORDS_MAX {
        return Err(FORM_ERROR);
    }
    for _ in 0..count(10) {
        if let Some(edns) = rest.extra()? {
            // More than one: RFC 6891 §6.1.1.
            if query.edns.replace(edns).is_some() {
                return Err(FORM_ERROR);
            }
        }
    }
    if rest.at == message.len() { Ok(query) } else { Err(FORM_ERROR) }
}

/// What of the message is not read yet.
struct Rest<'a> {
    message: &'a [u8],
    at: usize,
}

impl Rest<'_> {
    fn bytes(&mut self, count: usize) -> Result<&[u8], Unread> {
        let bytes = self.message.get(self.at..self.at + count).ok_or(FORM_ERROR)?;
        self.at += count;
        Ok(bytes)
    }

    fn u8(&mut self) -> Result<u8, Unread> {
        Ok(self.bytes(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, Unread> {
        let bytes = self.bytes(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A record behind the question: what an OPT says; of others only that they are whole.
    fn extra(&mut self) -> Result<Option<Edns>, Unread> {
        let root = self.skip_name()?;
        let (kind, class) = (self.u16()?, self.u16()?);
        let (_, version, flags) = (self.u8()?, self.u8()?, self.u16()?);
        let length = usize::from(self.u16()?);
        let data = self.bytes(length)?;
        if kind != kind::OPT {
            return Ok(None);
        }
        if !root || !options_are_whole(data) {
            return Err(FORM_ERROR);
        }
        Ok(Some(Edns { payload: class, version, dnssec_ok: flags & 0x8000 != 0 }))
    }

    /// Steps over a name, following no pointer; whether it is the root.
    fn skip_name(&mut self) -> Result<bool, Unread> {
        let begin = self.at;
        loop {
            match self.u8()? {
                0 => return Ok(self.at == begin + 1),
                length @ 1..=63 => drop(self.bytes(usize::from(length))?),
                192.. => {
                    self.u8()?;
                    return Ok(false);
                }
                _ => return Err(FORM_ERROR),
            }
        }
    }
}

/// Whether the data of an OPT are options from end to end (RFC 6891 §6.1.2).
fn options_are_whole(mut data: &[u8]) -> bool {
    while let Some((head, rest)) = data.split_first_chunk::<4>() {
        match rest.get(usize::from(u16::from_be_bytes([head[2], head[3]]))..) {
            Some(others) => data = others,
            None => return false,
        }
    }
    data.is_empty()
}
