//! One message in, one message out: no socket, no clock, nothing that waits.

use super::challenges::Challenges;
use super::codes::{IN, kind, rcode};
use super::query::{self, Edns, HEADER, Query, Unread};
use super::records::{self, RrSet};
use super::zone::{Found, Node, Place, Zone, ZoneView};

/// Longest answer over UDP, bytes: fits one packet of IPv6 without fragments (design §5; DNS Flag Day 2020).
pub const UDP_BYTES_MAX: usize = 1_232;
/// Longest answer over UDP to who says nothing of itself, bytes (RFC 1035 §4.2.1).
const UDP_BYTES_PLAIN: usize = 512;
/// Longest message over TCP, bytes: its length has 16 bits.
const TCP_BYTES_MAX: usize = 65_535;
/// An OPT without options, bytes (RFC 6891 §6.1.2).
const OPT_BYTES: usize = 11;

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram: an answer has a bound, and its address may be somebody else's.
    Udp,
    /// Over a connection.
    Tcp,
}

/// What was answered, for who sends it and who counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The type that was asked for; 0 where no question could be read.
    pub(super) kind: u16,
    /// The response code, upper bits included.
    pub(super) code: u8,
    /// It did not fit: the asker has to come by TCP.
    pub(super) truncated: bool,
    /// A challenge was asked for that is not known here: others may know it. `out` is what to say if none does.
    pub(super) missing: bool,
    /// Who asks decides over a certificate: such an answer is cut rather than dropped.
    pub(super) vital: bool,
    /// Where the question ends.
    question: usize,
    /// Bytes of the OPT at its end.
    opt: usize,
}

/// Answers `message` into `out`, which is emptied first. `None`: nothing is to be sent, and `out` is empty.
///
/// `out` is never longer than [`UDP_BYTES_MAX`] over UDP, nor than what the asker takes. Any bytes are a message: it never panics.
pub fn answer(
    message: &[u8],
    transport: Transport,
    view: &ZoneView,
    challenges: &dyn Challenges,
    out: &mut Vec<u8>,
) -> Option<Answer> {
    out.clear();
    let query = match query::read(message) {
        Ok(query) => query,
        Err(Unread::Silence) => return None,
        Err(Unread::Code(code)) => {
            let header = message.get(..HEADER)?;
            // The opcode comes back as it went (RFC 1035 §4.1.1).
            out.extend([header[0], header[1], 0x80 | header[2] & 0x79, code]);
            out.resize(HEADER, 0);
            return Some(Answer { kind: 0, code, truncated: false, missing: false, vital: false, question: 0, opt: 0 });
        }
    };
    let mut reply = Reply::begin(message, &query, transport, out);
    let missing = match refusal(&query) {
        Some(code) => {
            reply.code = code;
            false
        }
        None => reply.look(&query, view, challenges),
    };
    let truncated = reply.end();
    let vital = matches!(query.kind, kind::CAA | kind::TXT);
    let opt = if query.edns.is_some() { OPT_BYTES } else { 0 };
    Some(Answer { kind: query.kind, code: reply.code, truncated, missing, vital, question: query.end, opt })
}

/// What is not looked up at all.
fn refusal(query: &Query) -> Option<u8> {
    match (query.edns, query.kind, query.class) {
        (Some(Edns { version: 1.., .. }), ..) => Some(rcode::BAD_VERSION),
        (_, kind::OPT, _) => Some(rcode::FORM_ERROR),
        (_, kind::AXFR | kind::IXFR, _) => Some(rcode::REFUSED),
        (_, kind::TKEY | kind::TSIG | kind::MAILA | kind::MAILB, _) => Some(rcode::NOT_IMPLEMENTED),
        (.., IN) => None,
        _ => Some(rcode::REFUSED),
    }
}

impl Answer {
    /// Cuts an answer down to its question, with the bit that says "come by TCP": then it is no longer than what was asked, and of
    /// no use to who asks in another's name. Answers that are no longer anyway stay as they are.
    pub(super) fn cut(&mut self, out: &mut Vec<u8>) {
        if self.question == 0 || out.len() <= self.question + self.opt {
            return;
        }
        let opt = out.len() - self.opt;
        out.copy_within(opt.., self.question);
        out.truncate(self.question + self.opt);
        out[2] |= 0x02;
        out[6..12].copy_from_slice(&[0, 0, 0, 0, 0, u8::from(self.opt > 0)]);
        self.truncated = true;
    }
}

/// An answer while it is written.
struct Reply<'a> {
    out: &'a mut Vec<u8>,
    code: u8,
    authoritative: bool,
    question: usize,
    edns: Option<Edns>,
    /// Longest it may become.
    limit: usize,
    /// Records of the answer, beside it (authority), and more (additional).
    counts: [u16; 3],
}

impl<'a> Reply<'a> {
    /// Header and question, the name in the letters it was asked in (0x20: who guesses answers does not know them).
    fn begin(message: &[u8], query: &Query, transport: Transport, out: &'a mut Vec<u8>) -> Self {
        out.extend(message.get(..query.end).unwrap_or_default());
        let limit = match (transport, query.edns) {
            (Transport::Tcp, _) => TCP_BYTES_MAX,
            (Transport::Udp, None) => UDP_BYTES_PLAIN,
            (Transport::Udp, Some(edns)) => usize::from(edns.payload).clamp(UDP_BYTES_PLAIN, UDP_BYTES_MAX),
        };
        let (question, edns) = (query.end, query.edns);
        Self { out, code: rcode::NO_ERROR, authoritative: false, question, edns, limit, counts: [0; 3] }
    }

    /// Writes what there is of the name; whether a challenge is not known here.
    fn look(&mut self, query: &Query, view: &ZoneView, challenges: &dyn Challenges) -> bool {
        self.authoritative = true;
        let published = || challenges.txt(&query.name.text()).map(|values| records::challenge(&values));
        match view.find(&query.name) {
            Found::Outside => {
                self.authoritative = false;
                self.code = rcode::REFUSED;
            }
            Found::NoName(zone) => self.no_name(query, zone),
            Found::Node(zone, node) if node.place == Place::Challenge => {
                let set = published();
                self.challenge(query, zone, view, set.as_ref());
                return set.is_none();
            }
            Found::Node(zone, node) => self.node(query, zone, node, view),
            Found::Id(zone) => match published() {
                None => {
                    self.no_name(query, zone);
                    return true;
                }
                set => self.challenge(query, zone, view, set.as_ref()),
            },
        }
        false
    }

    fn node(&mut self, query: &Query, zone: &Zone, node: &Node, view: &ZoneView) {
        match (query.kind, node.set(query.kind)) {
            (kind::ANY, _) if !node.is_empty() => self.put(0, &view.any),
            (_, None) => self.beside(query, zone),
            (kind, Some(set)) => {
                self.put(0, set);
                match kind {
                    kind::NS => node.glue.iter().for_each(|set| self.put_if_it_fits(set)),
                    // RFC 9460 §4.1.
                    kind::HTTPS => {
                        let addresses = [kind::A, kind::AAAA].into_iter().filter_map(|kind| node.set(kind));
                        addresses.for_each(|set| self.put_if_it_fits(set));
                    }
                    _ => {}
                }
            }
        }
    }

    /// A name that has TXT records of challenges and nothing else, or nothing at all.
    fn challenge(&mut self, query: &Query, zone: &Zone, view: &ZoneView, set: Option<&RrSet>) {
        match (query.kind, set) {
            (kind::TXT, Some(set)) => self.put(0, set),
            (kind::ANY, Some(_)) => self.put(0, &view.any),
            _ => self.beside(query, zone),
        }
    }

    fn no_name(&mut self, query: &Query, zone: &Zone) {
        self.code = rcode::NX_DOMAIN;
        self.beside(query, zone);
    }

    /// The SOA beside an answer that something is not there: it says for how long that may be believed. Its name is the end
    /// of the one that was asked for.
    fn beside(&mut self, query: &Query, zone: &Zone) {
        let begin = self.out.len();
        self.put(1, &zone.negative);
        let at = HEADER + query.name.len().saturating_sub(zone.apex);
        if let (Ok(at), Some(owner)) = (u16::try_from(at), self.out.get_mut(begin..begin + 2)) {
            owner.copy_from_slice(&(0xc000 | at).to_be_bytes());
        }
    }

    fn put(&mut self, section: usize, set: &RrSet) {
        self.out.extend(&*set.wire);
        self.counts[section] += set.count;
    }

    fn put_if_it_fits(&mut self, set: &RrSet) {
        if self.out.len() + set.wire.len() + OPT_BYTES <= self.limit {
            self.put(2, set);
        }
    }

    /// Header and OPT; whether the answer did not fit and is left out.
    fn end(&mut self) -> bool {
        let opt = if self.edns.is_some() { OPT_BYTES } else { 0 };
        let truncated = self.out.len() + opt > self.limit;
        if truncated {
            self.out.truncate(self.question);
            self.counts = [0; 3];
        }
        if let Some(edns) = self.edns {
            // Root, OPT, what we take, upper bits of the code, version 0, DO as it came (RFC 3225 §3), no options.
            self.out.extend([0, 0, kind::OPT as u8]);
            self.out.extend((UDP_BYTES_MAX as u16).to_be_bytes());
            self.out.extend([self.code >> 4, 0, u8::from(edns.dnssec_ok) << 7, 0, 0, 0]);
            self.counts[2] += 1;
        }
        if let Some(header) = self.out.first_chunk_mut::<HEADER>() {
            // Of the flags, RD alone comes back; we look nothing up for others.
            header[2] = 0x80 | u8::from(self.authoritative) << 2 | u8::from(truncated) << 1 | header[2] & 0x01;
            header[3] = self.code & 0x0f;
            for (at, count) in [6, 8, 10].into_iter().zip(self.counts) {
                header[at..at + 2].copy_from_slice(&count.to_be_bytes());
            }
        }
        truncated
    }
}
