//! Bodies on their way to the guest.

use super::*;
use http::header;

type Frames = StreamBody<futures_util::stream::Iter<std::vec::IntoIter<Result<http_body::Frame<Bytes>, Infallible>>>>;

fn frames(pieces: &[&'static str], trailers: Option<HeaderMap>) -> Frames {
    let data = pieces.iter().map(|piece| Ok(http_body::Frame::data(Bytes::from_static(piece.as_bytes()))));
    let frames: Vec<_> = data.chain(trailers.map(|trailers| Ok(http_body::Frame::trailers(trailers)))).collect();
    StreamBody::new(futures_util::stream::iter(frames))
}

#[test]
fn a_small_body_is_read_ahead_and_leaves_with_the_head() {
    run(async {
        let mut upload = Upload::new(Full::new(Bytes::from_static(b"hello")));
        upload.prefetch().await.unwrap();
        let framing = upload.framing(&HeaderMap::new());
        assert_eq!((framing, upload.is_complete(), upload.bytes_read()), (RequestFraming::Length(5), true, 5));
        let mut bytes = b"HEAD".to_vec();
        upload.encode_kept(framing, &mut bytes);
        assert_eq!(bytes, b"HEADhello");
        assert!(upload.can_replay());
        let (mut connection, mut guest) = pair();
        connection.send_head_and_small_body(GET, b"HEAD", b"hello").await.unwrap();
        let mut seen = [0; 64];
        assert_eq!(guest.read(&mut seen).await.unwrap(), 9);
        assert_eq!(&seen[..9], b"HEADhello");
    });
}

#[test]
fn a_body_of_unknown_length_is_chunked_with_its_trailers() {
    run(async {
        let trailers: HeaderMap = [
            (HeaderName::from_static("x-sum"), HeaderValue::from_static("9")),
            (HeaderName::from_static("x-forwarded-for"), HeaderValue::from_static("6.6.6.6")),
        ]
        .into_iter()
        .collect();
        let expected = b"5\r\nhello\r\n6\r\n world\r\n0\r\nx-sum: 9\r\n\r\n";
        let mut ahead = Upload::new(frames(&["hello", "", " world"], Some(trailers.clone())));
        ahead.prefetch().await.unwrap();
        assert_eq!(ahead.framing(&HeaderMap::new()), RequestFraming::Chunked);
        let mut wire = Vec::new();
        ahead.encode_kept(RequestFraming::Chunked, &mut wire);
        assert_eq!(wire, expected);
        let mut relayed = Vec::new();
        let upload = Upload::new(frames(&["hello", "", " world"], Some(trailers)));
        assert_eq!(upload.relay(RequestFraming::Chunked, &mut relayed).await.unwrap(), 11);
        assert_eq!(relayed, expected);
    });
}

#[test]
fn no_body_and_a_body_of_no_bytes_stay_different() {
    let upload = Upload::new(http_body_util::Empty::<Bytes>::new());
    assert_eq!(upload.framing(&HeaderMap::new()), RequestFraming::None);
    let said: HeaderMap = [(header::CONTENT_LENGTH, HeaderValue::from_static("0"))].into_iter().collect();
    assert_eq!(upload.framing(&said), RequestFraming::Length(0));
}

/// Also when all of it was read before the head was written and its length is known.
#[test]
fn a_chunked_request_stays_chunked_and_a_length_beside_it_is_not_passed_on() {
    run(async {
        let mut upload = Upload::new(Full::new(Bytes::from_static(b"abc")));
        upload.prefetch().await.unwrap();
        let said = [(header::TRANSFER_ENCODING, "chunked"), (header::CONTENT_LENGTH, "999")];
        let said: HeaderMap = said.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect();
        let framing = upload.framing(&said);
        assert_eq!((framing, upload.is_complete()), (RequestFraming::Chunked, true));
        let mut wire = Vec::new();
        upload.encode_kept(framing, &mut wire);
        assert_eq!(wire, b"3\r\nabc\r\n0\r\n\r\n");
    });
}

#[test]
fn a_body_that_does_not_keep_to_its_length_is_never_ended() {
    run(async {
        for (pieces, length) in [(&["hello", "!"][..], 5), (&["hell"], 5), (&["x"], 0)] {
            let mut wire = Vec::new();
            let upload = Upload::new(frames(pieces, None));
            let error = upload.relay(RequestFraming::Length(length), &mut wire).await.unwrap_err();
            assert!(matches!(error, UpstreamError::ClientBody(_)) && wire.len() as u64 <= length);
        }
    });
}

#[test]
fn reading_ahead_stops_at_the_replay_bound() {
    run(async {
        static BLOCK: [u8; 40_000] = [b'x'; 40_000];
        let block = std::str::from_utf8(&BLOCK).unwrap();
        let mut upload = Upload::new(frames(&[block, block, block], None));
        upload.prefetch().await.unwrap();
        assert_eq!((upload.bytes_read(), upload.is_complete(), upload.can_replay()), (80_000, false, true));
        let rest = upload.take();
        assert!(!upload.can_replay());
        let mut wire = Vec::new();
        assert_eq!(rest.relay(RequestFraming::Length(120_000), &mut wire).await.unwrap(), 120_000);
        assert_eq!(wire.len(), 40_000);
    });
}

/// The guest answers while the client has not sent everything: the answer passes, the
/// stream is not kept, and nobody waits for the rest.
#[test]
fn an_answer_before_the_request_is_whole_ends_the_stream() {
    run(async {
        let (mut connection, mut guest) = pair();
        connection.send_head_and_small_body(GET, REQUEST, b"").await.unwrap();
        let endless = StreamBody::new(futures_util::stream::pending::<Result<http_body::Frame<Bytes>, Infallible>>());
        connection.relay(Upload::new(endless), RequestFraming::Chunked);
        tokio::task::yield_now().await;
        guest.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
        let Received::Final(head) = connection.read_head().await.unwrap() else { panic!("interim") };
        let answer = Begun { head, interim: Vec::new() }.finish(connection).await.unwrap();
        assert!(answer.body == b"no" && !answer.pooled);
        let mut rest = Vec::new();
        assert_eq!(guest.read_to_end(&mut rest).await.unwrap(), REQUEST.len());
    });
}

#[test]
fn a_relayed_request_that_was_sent_whole_leaves_its_stream_reusable() {
    run(async {
        let (mut connection, mut guest) = pair();
        connection.send_head_and_small_body(GET, REQUEST, b"").await.unwrap();
        connection.relay(Upload::new(frames(&["hello"], None)), RequestFraming::Length(5));
        let mut request = vec![0; REQUEST.len() + 5];
        guest.read_exact(&mut request).await.unwrap();
        assert!(request.ends_with(b"hello"));
        guest.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        let Received::Final(head) = connection.read_head().await.unwrap() else { panic!("interim") };
        let pool = Rc::new(Pool::new());
        drop(ResponseBody::new(connection, &head, Rc::clone(&pool)));
        assert_eq!(pool.len(), 1);
        let mut connection = pool.take(&name(), |_| true).unwrap();
        connection.send_head_and_small_body(GET, REQUEST, b"").await.unwrap();
    });
}

/// A guest that stops reading must stop the client, not fill our memory.
#[test]
fn a_relay_takes_no_more_from_the_client_than_the_guest_reads() {
    run(async {
        static BLOCK: [u8; 16_384] = [b'x'; 16_384];
        let taken = Rc::new(std::cell::Cell::new(0));
        let count = Rc::clone(&taken);
        let source = futures_util::stream::repeat_with(move || {
            count.set(count.get() + 1);
            Ok::<_, Infallible>(http_body::Frame::data(Bytes::from_static(&BLOCK)))
        });
        let (mut ours, guest) = tokio::io::duplex(64 * 1024);
        let mut relay = Box::pin(Upload::new(StreamBody::new(source)).relay(RequestFraming::Chunked, &mut ours));
        assert!(relay.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert!(taken.get() <= 5, "{}", taken.get());
        drop(guest);
        assert!(matches!(relay.await, Err(UpstreamError::Io(_))));
    });
}

#[test]
fn a_send_that_was_given_up_spoils_the_stream() {
    run(async {
        let (ours, mut guest) = tokio::io::duplex(8);
        let (read, write) = split(ours);
        let mut connection = Connection::new(Halves::new(read, write), place(1));
        {
            let mut send = Box::pin(connection.send_head_and_small_body(GET, REQUEST, b""));
            let mut cx = Context::from_waker(Waker::noop());
            assert!(send.as_mut().poll(&mut cx).is_pending());
        }
        let mut some = [0; 8];
        guest.read_exact(&mut some).await.unwrap();
        let answer = guest.write_all(b"HTTP/1.1 400 Bad\r\ncontent-length: 0\r\n\r\n");
        let (head, _) = tokio::join!(connection.read_head(), answer);
        let Received::Final(head) = head.unwrap() else { panic!("interim") };
        let pool = Rc::new(Pool::new());
        drop(ResponseBody::new(connection, &head, Rc::clone(&pool)));
        assert!(pool.is_empty());
    });
}
