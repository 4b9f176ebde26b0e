//! What passes through a WebSocket, as far as sleep is concerned: frame headers are read
//! (RFC 6455 §5.2), payloads are skipped, nothing is changed.
//!
//! Data is activity, pings and pongs are not. Socket.IO, LiveView and their like send their
//! heartbeats as data: small frames at a steady pace, which are not activity either
//! (`wake.md` §8).

use std::time::{Duration, Instant};

/// Data frames up to this size may be heartbeats, payload bytes (`wake.md` §8).
const SMALL_BYTES: u64 = 128;
/// Shortest pace of a heartbeat (chosen: those known are 25 to 30 s apart, and nobody types so
/// slowly and evenly).
const PACE_MIN: Duration = Duration::from_secs(5);
/// By how much a steady pace may vary (chosen: timers of a busy browser are late by this much).
const JITTER: Duration = Duration::from_secs(2);

/// One direction of a WebSocket.
#[derive(Debug, Default)]
pub struct FrameWatch {
    /// The header that is being read, and how much of it is there.
    header: [u8; 14],
    have: usize,
    /// Payload bytes of the current frame that are still to come.
    rest: u64,
    heartbeat: Heartbeat,
}

impl FrameWatch {
    /// Looks at the next bytes of the direction; whether there was activity in them.
    pub fn feed(&mut self, mut bytes: &[u8], now: Instant) -> bool {
        let mut active = false;
        while !bytes.is_empty() {
            if self.rest > 0 {
                let skipped = usize::try_from(self.rest).unwrap_or(usize::MAX).min(bytes.len());
                self.rest -= skipped as u64;
                bytes = &bytes[skipped..];
                continue;
            }
            self.header[self.have] = bytes[0];
            self.have += 1;
            bytes = &bytes[1..];
            if self.have < self.header_length() {
                continue;
            }
            let length = self.payload_length();
            active |= self.is_active(length, now);
            (self.have, self.rest) = (0, length);
        }
        active
    }

    /// Whether a frame may begin here: something of ours can be put in between.
    #[must_use]
    pub const fn at_boundary(&self) -> bool {
        self.have == 0 && self.rest == 0
    }

    /// How long the header is that is being read, as far as that is known.
    const fn header_length(&self) -> usize {
        if self.have < 2 {
            return 2;
        }
        let extended = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.header[1] & 0x80 == 0 { 0 } else { 4 };
        2 + extended + mask
    }

    fn payload_length(&self) -> u64 {
        match self.header[1] & 0x7f {
            126 => u64::from(u16::from_be_bytes([self.header[2], self.header[3]])),
            127 => {
                let mut length = [0; 8];
                length.copy_from_slice(&self.header[2..10]);
                u64::from_be_bytes(length)
            }
            short => u64::from(short),
        }
    }

    fn is_active(&mut self, length: u64, now: Instant) -> bool {
        // Continuation, text and binary are data; 8 and up is control.
        if self.header[0] & 0x0f >= 8 {
            return false;
        }
        length > SMALL_BYTES || !self.heartbeat.is_next(now)
    }
}

/// Whether small frames come at a steady pace.
#[derive(Debug, Default)]
struct Heartbeat {
    last: Option<Instant>,
    pace: Option<Duration>,
}

impl Heartbeat {
    /// A small frame; whether it came when the next heartbeat was due.
    fn is_next(&mut self, now: Instant) -> bool {
        let gap = self.last.replace(now).map(|last| now.saturating_duration_since(last));
        let before = std::mem::replace(&mut self.pace, gap);
        match (before, gap) {
            (Some(before), Some(gap)) => gap >= PACE_MIN && gap.abs_diff(before) <= JITTER,
            _ => false,
        }
    }
}

/// A close frame from the server's side: 1001, "idle; retry" (`wake.md` §8).
pub const CLOSE_IDLE: &[u8] = b"\x88\x0d\x03\xe9idle; retry";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: u8 = 0x81;
    const PING: u8 = 0x89;

    fn frame(kind: u8, payload: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut bytes = vec![kind];
        match payload {
            0..126 => bytes.push(mask | payload as u8),
            126..65_536 => {
                bytes.push(mask | 126);
                bytes.extend((payload as u16).to_be_bytes());
            }
            _ => {
                bytes.push(mask | 127);
                bytes.extend((payload as u64).to_be_bytes());
            }
        }
        bytes.extend(vec![7; if masked { 4 } else { 0 }]);
        bytes.extend(vec![PING; payload]);
        bytes
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn data_is_activity_and_pings_are_not() {
        let (mut watch, now) = (FrameWatch::default(), Instant::now());
        assert!(!watch.feed(&frame(PING, 4, true), now));
        assert!(!watch.feed(&frame(0x8a, 0, false), now), "a pong");
        assert!(watch.feed(&frame(TEXT, 4, true), now));
        assert!(watch.feed(&frame(0x82, 70_000, false), now));
        assert!(watch.at_boundary());
    }

    #[test]
    fn small_frames_at_a_steady_pace_are_heartbeats_and_people_are_not() {
        let (mut watch, began) = (FrameWatch::default(), Instant::now());
        let mut at = |second: u64, payload: usize| watch.feed(&frame(TEXT, payload, true), began + seconds(second));
        assert!(at(0, 3) && at(25, 3), "nobody knows yet");
        assert!(!at(50, 3) && !at(75, 3) && !at(101, 3));
        assert!(at(102, 3), "somebody types");
        assert!(at(110, 3) && at(125, 3), "unevenly");
        assert!(at(150, 5_000), "large ones are never heartbeats");
        let mut fast = FrameWatch::default();
        let typed = (0..10).filter(|n| fast.feed(&frame(TEXT, 3, true), began + seconds(*n))).count();
        assert_eq!(typed, 10, "an even second is no heartbeat");
    }

    #[test]
    fn the_close_frame_is_one_frame_with_a_status_and_a_reason() {
        let mut watch = FrameWatch::default();
        assert!(!watch.feed(CLOSE_IDLE, Instant::now()));
        assert!(watch.at_boundary());
        assert_eq!(u16::from_be_bytes([CLOSE_IDLE[2], CLOSE_IDLE[3]]), 1001);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn frames_are_found_however_the_bytes_are_cut(
            frames in prop::collection::vec((any::<bool>(), 0..300_usize, any::<bool>()), 1..20),
            cut in 1..50_usize,
        ) {
            let now = Instant::now();
            let mut watch = FrameWatch::default();
            let bytes: Vec<u8> =
                frames.iter().flat_map(|(data, size, masked)| frame(if *data { 0x82 } else { PING }, *size, *masked)).collect();
            let mut active = false;
            for piece in bytes.chunks(cut) {
                active |= watch.feed(piece, now);
            }
            prop_assert!(watch.at_boundary());
            prop_assert_eq!(active, frames.iter().any(|(data, ..)| *data));
        }

        #[test]
        fn whatever_comes_it_goes_on(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            FrameWatch::default().feed(&bytes, Instant::now());
        }
    }
}
