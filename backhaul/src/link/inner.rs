//! The packets inside the tunnel: IPv6 and UDP, nothing else, both headers built and checked here.
//!
//! WireGuard proves who sent a packet, not what it says: the tunnel code does not look at
//! inner addresses, so a peer could speak as another one. [`parse`] is where that ends.

use std::net::Ipv6Addr;

/// IPv6 (RFC 8200 §3) and UDP headers, bytes.
pub(crate) const HEADERS_BYTES: usize = 48;
/// Next header value of UDP (RFC 768).
const UDP: u8 = 17;
/// Chosen: there is no hop inside a tunnel; 64 is what hosts send.
const HOP_LIMIT: u8 = 64;

/// Appends one packet with `payload`. Both ends use `port`.
pub(super) fn write(from: Ipv6Addr, to: Ipv6Addr, port: u16, payload: &[u8], out: &mut Vec<u8>) {
    let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
    let (length, port) = (length.to_be_bytes(), port.to_be_bytes());
    out.extend_from_slice(&[0x60, 0, 0, 0, length[0], length[1], UDP, HOP_LIMIT]);
    out.extend_from_slice(&from.octets());
    out.extend_from_slice(&to.octets());
    // UDP's length occurs twice in the checksum: in its header and in the pseudo header.
    let sum = [&from.octets()[..], &to.octets()[..], &[0, UDP], &length, &length, &port, &port, payload]
        .into_iter()
        .map(sum)
        .sum();
    out.extend_from_slice(&port);
    out.extend_from_slice(&port);
    out.extend_from_slice(&length);
    out.extend_from_slice(&checksum(sum).to_be_bytes());
    out.extend_from_slice(payload);
}

/// Where the UDP payload of `packet` lies, if it is UDP from `from` to `to` on `port`.
///
/// The checksum is not looked at: the tunnel has authenticated every bit. Padding behind
/// the packet is left out.
pub(super) fn parse(packet: &[u8], from: Ipv6Addr, to: Ipv6Addr, port: u16) -> Option<std::ops::Range<usize>> {
    let header: &[u8; HEADERS_BYTES] = packet.first_chunk()?;
    let short = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let length = usize::from(short(4));
    let fits = (8..=packet.len() - 40).contains(&length) && usize::from(short(44)) == length;
    let is_ours = header[0] >> 4 == 6
        && header[6] == UDP
        && header[8..24] == from.octets()
        && header[24..40] == to.octets()
        && short(40) == port
        && short(42) == port;
    (fits && is_ours).then_some(HEADERS_BYTES..40 + length)
}

/// Sum of 16-bit words (RFC 1071), taken as 32-bit ones: folding makes it the same.
fn sum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(4);
    let sum: u64 = words.by_ref().map(|word| u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]))).sum();
    let mut rest = [0; 4];
    rest[..words.remainder().len()].copy_from_slice(words.remainder());
    sum + u64::from(u32::from_be_bytes(rest))
}

fn checksum(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        // RFC 8200 §8.1: zero would mean that there is none.
        0 => 0xffff,
        checksum => checksum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HERE: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    const THERE: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

    #[test]
    fn a_packet_of_another_source_target_port_or_protocol_is_refused() {
        let mut packet = Vec::new();
        write(HERE, THERE, 4433, b"hello", &mut packet);
        packet.resize(64, 0);
        assert_eq!(&packet[parse(&packet, HERE, THERE, 4433).unwrap()], b"hello");
        assert!(parse(&packet, THERE, THERE, 4433).is_none());
        assert!(parse(&packet, HERE, HERE, 4433).is_none());
        assert!(parse(&packet, HERE, THERE, 4434).is_none());
        let mut tcp = packet.clone();
        tcp[6] = 6;
        assert!(parse(&tcp, HERE, THERE, 4433).is_none());
        assert!(parse(&packet[..52], HERE, THERE, 4433).is_none());
    }

    proptest! {
        /// A receiver that checks sums the same words, the sum included, to all ones.
        #[test]
        fn the_checksum_is_the_one_of_the_internet(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut packet = Vec::new();
            write(HERE, THERE, 4433, &payload, &mut packet);
            let mut seen = packet[8..].to_vec();
            seen.extend_from_slice(&[0, UDP, packet[4], packet[5]]);
            if payload.len() % 2 == 1 {
                let odd = 40 + payload.len();
                seen.insert(odd, 0);
            }
            let mut sum: u32 = seen.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            prop_assert_eq!(sum, 0xffff);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, HERE, THERE, 4433);
        }
    }
}
