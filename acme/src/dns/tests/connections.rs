//! Connections, on a pipe and in virtual time.

use super::super::counters::Counters;
use super::super::tcp::{self, IDLE};
use super::*;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

struct Connection {
    client: DuplexStream,
    ended: JoinHandle<std::io::Result<()>>,
    stop: watch::Sender<bool>,
}

/// A connection with room for so many bytes on their way.
fn connect(authority: Arc<Authority>, room: usize) -> Connection {
    let (client, server) = duplex(room);
    let stop = watch::Sender::new(false);
    let stopped = stop.subscribe();
    let ended = tokio::spawn(async move { tcp::connection(&authority, &Counters::default(), server, stopped).await });
    Connection { client, ended, stop }
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

impl Connection {
    async fn answer(&mut self) -> Message {
        let length = self.client.read_u16().await.unwrap();
        let mut message = vec![0; length.into()];
        self.client.read_exact(&mut message).await.unwrap();
        Message::from_vec(&message).unwrap()
    }

    async fn is_over(&mut self) -> bool {
        matches!(self.client.read(&mut [0; 1]).await, Ok(0) | Err(_))
    }
}

fn asked(name: &str) -> Vec<u8> {
    framed(&question(name, RecordType::A, None))
}

#[tokio::test(start_paused = true)]
async fn questions_sent_at_once_are_all_answered_in_their_order() {
    let mut connection = connect(authority(1), 1 << 20);
    let names: Vec<_> = (0..500).map(|number| format!("n{number}.sprites.dev.")).collect();
    let all: Vec<_> = names.iter().flat_map(|name| asked(name)).collect();
    connection.client.write_all(&all).await.unwrap();
    for name in &names {
        let answer = connection.answer().await;
        assert_eq!((answer.queries[0].name.to_string(), answer.answers.len()), (name.clone(), 2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_question_may_come_byte_by_byte_but_not_for_longer_than_two_seconds() {
    let mut connection = connect(authority(1), 64);
    for byte in asked("a.sprites.dev") {
        connection.client.write_all(&[byte]).await.unwrap();
        tokio::time::sleep(IDLE / 100).await;
    }
    assert_eq!(connection.answer().await.answers.len(), 2);
    // Each byte comes soon after the last one: that is no reason to wait for ever.
    let began = Instant::now();
    for byte in asked("b.sprites.dev") {
        if connection.client.write_all(&[byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(connection.is_over().await);
    assert!(began.elapsed() < IDLE + Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_closed_after_two_seconds_and_each_answer_begins_them_anew() {
    let mut connection = connect(authority(1), 4096);
    let began = Instant::now();
    for _ in 0..5 {
        tokio::time::sleep(IDLE - Duration::from_millis(100)).await;
        connection.client.write_all(&asked("a.sprites.dev")).await.unwrap();
        connection.answer().await;
    }
    assert!(began.elapsed() > IDLE * 4);
    let silent = Instant::now();
    assert!(connection.is_over().await);
    assert!(silent.elapsed().abs_diff(IDLE) < Duration::from_millis(50), "{:?}", silent.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_does_not_take_its_answers_is_let_go() {
    let mut connection = connect(authority(1), 512);
    let many: Vec<_> = (0..100).flat_map(|_| asked("a.sprites.dev")).collect();
    // The pipe is full both ways: its writing ends when the other end does.
    assert!(connection.client.write_all(&many).await.is_err());
    assert!(connection.ended.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn what_is_no_question_ends_a_connection_after_what_was_answered() {
    for wrong in [framed(b""), framed(b"short"), vec![0x10, 0x01], vec![0xff, 0xff, 1, 2, 3]] {
        let mut connection = connect(authority(1), 4096);
        let began = Instant::now();
        connection.client.write_all(&[asked("a.sprites.dev"), wrong].concat()).await.unwrap();
        assert_eq!(connection.answer().await.answers.len(), 2);
        assert!(connection.is_over().await);
        assert!(began.elapsed() < IDLE / 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_ends_when_the_server_does() {
    let mut connection = connect(authority(1), 4096);
    connection.client.write_all(&asked("a.sprites.dev")).await.unwrap();
    connection.answer().await;
    let began = Instant::now();
    connection.stop.send_replace(true);
    assert!(connection.is_over().await);
    assert!(began.elapsed() < IDLE / 2);
}

struct Slow(Duration, std::sync::Mutex<Vec<String>>);

impl Pull for Slow {
    fn pull(&self, name: String) -> Pulling {
        self.1.lock().unwrap().push(name);
        let takes = self.0;
        Box::pin(async move {
            tokio::time::sleep(takes).await;
            vec!["learned".into()]
        })
    }
}

#[tokio::test(start_paused = true)]
async fn others_are_asked_for_a_challenge_that_is_not_known_here_for_250_ms() {
    let id = format!("{ID}.acme.sprites.dev");
    for (takes, learned) in [(Duration::from_millis(240), true), (Duration::from_millis(260), false)] {
        let (pull, published) = (Arc::new(Slow(takes, Default::default())), Arc::new(Published::default()));
        published.add("_acme-challenge.sprites.dev", "known").unwrap();
        let authority = Authority::new(view(), 1, published, Some(Arc::clone(&pull) as Arc<dyn Pull>));
        let mut connection = connect(authority, 4096);
        for (name, records) in [
            (id.as_str(), usize::from(learned)),
            ("_acme-challenge.eu.sprites.dev", usize::from(learned)),
            // Known here, or nothing that could be known.
            ("_acme-challenge.sprites.dev", 1),
            ("x.acme.sprites.dev", 0),
            ("a.sprites.dev", 0),
        ] {
            let began = Instant::now();
            connection.client.write_all(&framed(&question(name, RecordType::TXT, None))).await.unwrap();
            assert_eq!(connection.answer().await.answers.len(), records, "{name}");
            assert!(began.elapsed() < Duration::from_millis(255));
        }
        assert_eq!(*pull.1.lock().unwrap(), [id.as_str(), "_acme-challenge.eu.sprites.dev"]);
    }
}
