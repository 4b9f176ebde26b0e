//! What was written is read, at any split, and noise is only ever an error.

use super::*;

/// A whole answer as the guest would write it, and what must come out of it.
fn answers() -> impl Strategy<Value = (Vec<u8>, u16, Vec<u8>)> {
    let fields = proptest::collection::vec(("x-[a-z]{1,8}", "[!-~]([ -~]{0,20}[!-~])?"), 0..8);
    let body = proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..60), 0..5);
    (200_u16..204, fields, body, 0..3_u8, any::<bool>()).prop_map(|(status, fields, body, framing, hint)| {
        let mut wire = Vec::new();
        if hint {
            wire.extend_from_slice(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n");
        }
        wire.extend_from_slice(format!("HTTP/1.1 {status} Whatever\r\n").as_bytes());
        for (name, value) in &fields {
            wire.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        let whole = body.concat();
        match framing {
            0 => wire.extend_from_slice(format!("content-length: {}\r\n\r\n", whole.len()).as_bytes()),
            1 => wire.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n"),
            _ => wire.extend_from_slice(b"\r\n"),
        }
        if framing == 1 {
            body.iter().for_each(|piece| encode_chunk(piece, &mut wire));
            encode_end(None, &mut wire);
        } else {
            wire.extend_from_slice(&whole);
        }
        (wire, status, whole)
    })
}

/// `wire` cut at these places.
fn cut<'a>(wire: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
    at.sort_unstable();
    let mut pieces = Vec::new();
    let mut from = 0;
    for to in at.into_iter().chain([wire.len()]) {
        pieces.push(&wire[from..to]);
        from = to;
    }
    pieces
}

proptest! {
    #[test]
    fn an_answer_is_read_as_it_was_written_at_any_split(
        (wire, status, body) in answers(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let whole = answered(GET, &[&wire]).unwrap();
        prop_assert_eq!((whole.status, &whole.body), (status, &body));
        prop_assert_eq!(&answered(GET, &cut(&wire, &cuts)).unwrap(), &whole);
        let bytes: Vec<&[u8]> = wire.chunks(1).collect();
        prop_assert_eq!(answered(GET, &bytes).unwrap(), whole);
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_any_split_gives_the_same(
        noise in proptest::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(&b"\r\n\r\n::,, \t0159aceHTP/.-"[..])], 0..200),
        prefix in prop::sample::select(&["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length:", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"][..]),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        head in any::<bool>(),
    ) {
        let wire = [prefix.as_bytes(), &noise].concat();
        let asked = Asked { head, upgrade: false };
        // Whether bytes behind a body were already there when it ended may differ, and decides
        // only whether the stream is kept.
        let seen = |pieces: &[&[u8]]| answered(asked, pieces).map(|answer| Answer { pooled: false, ..answer });
        prop_assert_eq!(seen(&[&wire]), seen(&cut(&wire, &cuts)));
    }
}
