//! What comes out of an answer: tables of framings, of irregularities, of refusals.

use super::*;

#[test]
fn every_framing_gives_its_body_and_says_whether_the_stream_is_kept() {
    let cases: &[(Asked, &str, &str, bool)] = &[
        (GET, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", "hello", true),
        (GET, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "", true),
        (GET, "HTTP/1.1 200 \r\nContent-Length: 005\r\n\r\nhello", "hello", true),
        (GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "hello", true),
        (GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx-sum: 1\r\n\r\n", "", true),
        (GET, "HTTP/1.1 200 OK\r\n\r\nhello", "hello", false),
        (GET, "HTTP/1.0 200 OK\r\n\r\nhello", "hello", false),
        (GET, "HTTP/1.0 200 OK\r\ncontent-length: 5\r\nconnection: keep-alive\r\n\r\nhello", "hello", false),
        (GET, "HTTP/1.1 200 OK\r\nconnection: x, Close\r\ncontent-length: 5\r\n\r\nhello", "hello", false),
        (HEAD, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", "", true),
        (HEAD, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "", true),
        (HEAD, "HTTP/1.1 200 OK\r\n\r\n", "", true),
        (GET, "HTTP/1.1 204 No Content\r\n\r\n", "", true),
        (GET, "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", "", true),
        (GET, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "ok", true),
    ];
    for &(asked, wire, body, pooled) in cases {
        let answer = one(asked, wire).unwrap_or_else(|error| panic!("{wire:?}: {error}"));
        assert_eq!((String::from_utf8(answer.body).unwrap().as_str(), answer.pooled), (body, pooled), "{wire:?}");
    }
}

/// Read in one way only, so passed on; but such a stream never carries another request.
#[test]
fn an_irregular_answer_is_passed_on_and_its_stream_closed() {
    for wire in [
        // More than was announced: the start of somebody else's answer.
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nX",
        "HTTP/1.1 204 No Content\r\n\r\nok",
        "HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\n",
        "HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\n\r\nbody",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\nok",
        "\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 103 Early Hints\r\ncontent-length: 3\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 100 Continue\r\nconnection: close\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ] {
        let answer = one(GET, wire).unwrap_or_else(|error| panic!("{wire:?}: {error}"));
        assert!(!answer.pooled, "{wire:?}");
        assert!(answer.body.is_empty() || answer.body == b"ok", "{wire:?}");
        assert!(answer.fields.iter().filter(|(name, _)| name == "content-length").count() <= 1, "{wire:?}");
    }
    let head = one(HEAD, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").unwrap();
    assert!(!head.pooled && head.body.is_empty());
}

#[test]
fn what_can_be_read_in_two_ways_is_refused() {
    for fields in [
        "content-length: 3\r\ncontent-length: 4\r\n",
        "content-length: 3\r\nx: y\r\ncontent-length: 03a\r\n",
        "content-length: +3\r\n",
        "content-length: -3\r\n",
        "content-length: 0x3\r\n",
        "content-length: 3 3\r\n",
        "content-length: 3, 3\r\n",
        "content-length: 3,3\r\n",
        "content-length: 3;\r\n",
        "content-length: 3.0\r\n",
        "content-length:\r\n",
        "content-length: 99999999999999999999\r\n",
        "content-length: 18446744073709551616\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 3\r\n",
        "content-length: 3\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: chunked, gzip\r\n",
        "transfer-encoding: chunked, chunked\r\n",
        "transfer-encoding: chunked,\r\n",
        "transfer-encoding: ,chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
        "transfer-encoding: identity\r\n",
        "transfer-encoding: identity, chunked\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding: chunked;q=1\r\n",
        "transfer-encoding: \"chunked\"\r\n",
        "transfer-encoding: chunked\u{b}\r\n",
        "transfer-encoding:\r\n",
        "transfer-encoding : chunked\r\n",
        " transfer-encoding: chunked\r\n",
        "transfer-encoding\r\n",
        "transfer-encoding:\r\n chunked\r\n",
        "content-length : 3\r\n",
        "x: a\r\n folded\r\n",
        "x: a\rb\r\n",
        "x: a\0b\r\n",
        "x: a\u{7f}b\r\n",
        "x\0: a\r\n",
        "x y: a\r\n",
        ": a\r\n",
        "(x): a\r\n",
        "x\r: a\r\n",
    ] {
        let wire = format!("HTTP/1.1 200 OK\r\n{fields}\r\n3\r\nabc\r\n0\r\n\r\n");
        let refused = one(GET, &wire);
        assert!(refused.as_ref().is_err_and(|error| error.starts_with("malformed")), "{fields:?}: {refused:?}");
    }
    for wire in [
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "HTTP/1.2 200 OK\r\n\r\n",
        "http/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1 +20 OK\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        " HTTP/1.1 200 OK\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "hello\r\n\r\n",
        "\r\n\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    ] {
        let refused = one(GET, wire);
        assert!(refused.as_ref().is_err_and(|error| error.starts_with("malformed")), "{wire:?}: {refused:?}");
    }
}

#[test]
fn a_cut_answer_is_an_error_and_never_a_short_body() {
    for wire in [
        "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\nhello",
        "HTTP/1.1 200 OK\r\ncontent-le",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP",
        "H",
    ] {
        assert_eq!(
            one(GET, wire).unwrap_err(),
            "the guest closed the connection in the middle of its answer",
            "{wire:?}"
        );
    }
    for wire in ["", "HTTP/1.1 100 Continue\r\n\r\n"] {
        assert_eq!(one(GET, wire).unwrap_err(), "the guest closed the connection before it answered", "{wire:?}");
    }
}

#[test]
fn hop_by_hop_and_nominated_fields_are_not_passed_on() {
    let wire = "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\n\
                Proxy-Authenticate: x\r\nSprite-Wake: cold\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n";
    let fields = one(GET, wire).unwrap().fields;
    let mut names: Vec<_> = fields.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "set-cookie", "set-cookie"]);
}

#[test]
fn interim_answers_come_one_by_one_and_are_bounded() {
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n";
    let last = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(one(GET, &format!("{hints}{hints}{last}")).unwrap().interim, [103, 103]);
    assert_eq!(one(GET, &format!("{}{last}", hints.repeat(33))).unwrap_err(), "too many interim answers");
}

#[test]
fn a_head_is_bounded_in_bytes_and_in_fields() {
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "a".repeat(HEAD_BYTES_MAX));
    assert_eq!(one(GET, &long).unwrap_err(), "the head of the answer exceeds its bounds");
    let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "a".repeat(3 * HEAD_BYTES_MAX));
    assert_eq!(one(GET, &endless).unwrap_err(), "the head of the answer exceeds its bounds");
    let fields = |count: usize| format!("HTTP/1.1 204 No Content\r\n{}\r\n", "x: y\r\n".repeat(count));
    assert_eq!(one(GET, &fields(FIELDS_MAX)).unwrap().fields.len(), FIELDS_MAX);
    assert_eq!(one(GET, &fields(FIELDS_MAX + 1)).unwrap_err(), "the head of the answer exceeds its bounds");
}

#[test]
fn a_switch_of_protocols_keeps_what_came_behind_its_head() {
    run(async {
        let (mut connection, mut guest) = pair();
        guest
            .write_all(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly")
            .await
            .unwrap();
        let begun = exchange(UPGRADE, &mut connection).await.unwrap();
        assert_eq!(begun.head.status, 101);
        assert_eq!(begun.head.headers["upgrade"], "websocket");
        assert_eq!(begun.head.headers["connection"], "Upgrade");
        assert!(!begun.head.reusable);
        assert_eq!(connection.into_tunnel().1, "early");
    });
}

/// Counts how often it is asked.
struct Counted<R>(R, Rc<std::cell::Cell<usize>>);

impl<R: AsyncRead + Unpin> AsyncRead for Counted<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.1.set(self.1.get() + 1);
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

/// The warm path's cost in system calls: one read for a small answer, its end included.
#[test]
fn a_small_answer_costs_one_read_and_its_stream_is_back_before_the_end_is_asked_for() {
    for wire in [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ] {
        run(async {
            let reads = Rc::new(std::cell::Cell::new(0));
            let (ours, mut guest) = tokio::io::duplex(4096);
            let (read, write) = split(ours);
            let mut connection = Connection::new(Halves::new(Counted(read, Rc::clone(&reads)), write), place(1));
            guest.write_all(wire.as_bytes()).await.unwrap();
            let head = exchange(GET, &mut connection).await.unwrap().head;
            let pool = Rc::new(Pool::new());
            let mut body = ResponseBody::new(connection, &head, Rc::clone(&pool));
            let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!((&data[..], reads.get(), pool.len()), (&b"hello"[..], 1, 1));
            assert!(body.is_end_stream() && body.size_hint().exact() == Some(0));
            assert!(body.frame().await.is_none());
            let mut request = vec![0; REQUEST.len()];
            guest.read_exact(&mut request).await.unwrap();
            assert_eq!(request, REQUEST);
        });
    }
}

#[test]
fn a_body_without_bytes_is_over_at_once() {
    run(async {
        let (mut connection, mut guest) = pair();
        guest.write_all(b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n").await.unwrap();
        let head = exchange(GET, &mut connection).await.unwrap().head;
        assert_eq!(head.headers["content-length"], "9");
        let pool = Rc::new(Pool::new());
        let body = ResponseBody::new(connection, &head, Rc::clone(&pool));
        assert!(body.is_end_stream());
        assert_eq!((body.size_hint().exact(), pool.len()), (Some(0), 1));
    });
}

#[test]
fn dropping_an_unfinished_body_closes_the_stream() {
    run(async {
        let (mut connection, mut guest) = pair();
        guest.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello").await.unwrap();
        let head = exchange(GET, &mut connection).await.unwrap().head;
        let pool = Rc::new(Pool::new());
        let mut body = ResponseBody::new(connection, &head, Rc::clone(&pool));
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
        assert_eq!(body.size_hint().exact(), Some(45));
        drop(body);
        assert!(pool.is_empty());
        let mut request = Vec::new();
        assert_eq!(guest.read_to_end(&mut request).await.unwrap(), REQUEST.len());
    });
}

#[test]
fn a_large_body_arrives_whole_through_small_and_large_reads() {
    run(async {
        let sent: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();
        let (mut connection, mut guest) = pair();
        let expected = sent.clone();
        let writer = async move {
            guest.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
            for piece in sent.chunks(7001) {
                let mut wire = Vec::new();
                encode_chunk(piece, &mut wire);
                guest.write_all(&wire).await.unwrap();
            }
            let mut end = Vec::new();
            encode_end(None, &mut end);
            guest.write_all(&end).await.unwrap();
            guest
        };
        let reader = async move {
            let begun = exchange(GET, &mut connection).await.unwrap();
            begun.finish(connection).await.unwrap()
        };
        let (_guest, answer) = tokio::join!(writer, reader);
        assert!(answer.body == expected && answer.pooled);
    });
}
