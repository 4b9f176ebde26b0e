//! wake.md, test 14: whatever bytes come over the wire, its decoder neither panics nor takes
//! more than a frame may have; damage to a real frame is an error, or another real frame.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics where it stands")]

use backhaul::wire::{
    Asleep, FRAME_BYTES_MAX, FrameError, Open, OpenReply, Opened, Refused, Reply, ToEdge, ToOwner, VERSION, decode,
    encode,
};
use proptest::prelude::*;

/// Real frames, of the kinds that a stream begins with.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let open = ("[a-z-]{0,60}", any::<u64>(), any::<Option<u64>>(), any::<u32>(), any::<bool>(), "\\PC{0,200}")
        .prop_map(|(sprite, generation, expect_run, port, wake, request_id)| {
            let open =
                Open { version: VERSION, sprite, generation, expect_run, port, wake, request_id, ..Open::default() };
            written(&open)
        });
    let reply = prop_oneof![
        any::<bool>().prop_map(|held| Reply::Asleep(Asleep { held, ..Asleep::default() })),
        (any::<u64>(), any::<u64>(), any::<i32>()).prop_map(|(generation, run, kind)| {
            Reply::Opened(Opened { generation, run, kind, ..Opened::default() })
        }),
        (any::<i32>(), any::<u32>(), "\\PC{0,300}")
            .prop_map(|(cause, retry_after_ms, detail)| { Reply::Refused(Refused { cause, retry_after_ms, detail }) }),
    ];
    prop_oneof![open, reply.prop_map(|reply| written(&OpenReply { reply: Some(reply) }))]
}

fn written<M: prost::Message>(message: &M) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(message, &mut bytes).unwrap();
    bytes
}

/// Reads `bytes` as a stream of frames of one kind, to the first that is none.
fn read<M: prost::Message + Default>(mut bytes: &[u8]) {
    loop {
        match decode::<M>(bytes) {
            Ok(Some((message, used))) => {
                assert!((2..=2 + FRAME_BYTES_MAX).contains(&used) && used <= bytes.len());
                // Whoever relays what he has read must be able to: no field outgrows its frame.
                assert!(message.encoded_len() <= 2 * FRAME_BYTES_MAX);
                bytes = &bytes[used..];
            }
            Ok(None) => return assert!(bytes.len() < 2 + FRAME_BYTES_MAX, "a whole frame was not read"),
            Err(FrameError::TooLong { length }) => return assert!(length > FRAME_BYTES_MAX),
            Err(FrameError::Malformed(_)) => return,
        }
    }
}

fn read_all(bytes: &[u8]) {
    read::<Open>(bytes);
    read::<OpenReply>(bytes);
    read::<ToOwner>(bytes);
    read::<ToEdge>(bytes);
}

/// One kind of damage.
#[derive(Clone, Debug)]
enum Damage {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Repeat(prop::sample::Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        (at(), 1_u8..).prop_map(|(at, by)| Damage::Flip(at, by)),
        at().prop_map(Damage::Cut),
        (at(), proptest::collection::vec(any::<u8>(), 1..40)).prop_map(|(at, what)| Damage::Insert(at, what)),
        at().prop_map(Damage::Repeat),
    ]
}

fn damaged(mut bytes: Vec<u8>, damages: &[Damage]) -> Vec<u8> {
    for damage in damages {
        let length = bytes.len();
        match damage {
            Damage::Flip(at, by) if length > 0 => bytes[at.index(length)] ^= by,
            Damage::Cut(at) => bytes.truncate(at.index(length + 1)),
            Damage::Insert(at, what) => {
                let at = at.index(length + 1);
                bytes.splice(at..at, what.iter().copied());
            }
            Damage::Repeat(at) => bytes.extend_from_within(at.index(length + 1)..),
            Damage::Flip(..) => {}
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn noise_is_read_to_its_end_or_to_its_first_error(bytes in proptest::collection::vec(any::<u8>(), 0..9_000)) {
        read_all(&bytes);
    }

    #[test]
    fn noise_in_a_frame_of_honest_length_is_a_message_or_an_error(
        body in proptest::collection::vec(any::<u8>(), 0..FRAME_BYTES_MAX)
    ) {
        let mut bytes = u16::try_from(body.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend(body);
        read_all(&bytes);
    }

    #[test]
    fn damage_to_real_frames_is_survived(
        frames in proptest::collection::vec(frame(), 1..6),
        damages in proptest::collection::vec(damage(), 1..6),
    ) {
        read_all(&damaged(frames.concat(), &damages));
    }
}
