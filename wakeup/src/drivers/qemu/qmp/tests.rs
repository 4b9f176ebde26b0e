use super::*;
use std::io::Read;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixListener;

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"major": 7}, "package": "x"}, "capabilities": []}}"#;

/// An answer that never comes.
const SILENCE: &str = "SILENCE";

/// A QEMU that greets, takes the capabilities, and answers each further command with the next
/// of `answers`, where `ID` stands for the command's number.
async fn connected(answers: &[&str]) -> (Result<Qmp, QmpError>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join(SOCKET)).unwrap();
    let answers: Vec<String> = answers.iter().map(|answer| (*answer).to_owned()).collect();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (read, mut write) = stream.into_split();
        let mut commands = BufReader::new(read);
        write.write_all(format!("{GREETING}\r\n").as_bytes()).await.unwrap();
        let first = r#"{"return": {}, "id": ID}"#.to_owned();
        for answer in std::iter::once(first).chain(answers) {
            // Commands have no end of line, so each is read to its closing brace.
            let mut command = Vec::new();
            while serde_json::from_slice::<Value>(&command).is_err() {
                if commands.read_until(b'}', &mut command).await.unwrap() == 0 {
                    return;
                }
            }
            if answer == SILENCE {
                return std::future::pending().await;
            }
            let id = serde_json::from_slice::<Value>(&command).unwrap()["id"].to_string();
            write.write_all(answer.replace("ID", &id).as_bytes()).await.unwrap();
            write.write_all(b"\r\n").await.unwrap();
        }
    });
    (Qmp::connect(directory.path()).await, directory)
}

#[tokio::test]
async fn events_and_answers_to_others_are_skipped() {
    let answer = concat!(
        "{\"event\": \"STOP\", \"timestamp\": {}}\r\n",
        "{\"return\": {\"status\": \"running\"}, \"id\": 99}\r\n",
        "{\"event\": \"RESUME\"}\r\n",
        "{\"return\": {\"status\": \"paused\"}, \"id\": ID}"
    );
    let (qmp, _directory) = connected(&[answer]).await;
    let mut qmp = qmp.unwrap();
    assert!(qmp.version().contains("\"package\":\"x\""));
    assert_eq!(qmp.status().await.unwrap(), Status::Paused);
}

#[tokio::test]
async fn a_refusal_says_what_was_refused_and_why() {
    let (qmp, _directory) = connected(&[
        r#"{"error": {"class": "GenericError", "desc": "no room"}, "id": ID}"#,
        r#"{"return": {}, "id": ID}"#,
        r#"{"return": {"status": "internal-error"}, "id": ID}"#,
    ])
    .await;
    let mut qmp = qmp.unwrap();
    assert_eq!(qmp.execute("migrate", Value::Null).await.unwrap_err().to_string(), "it refused migrate: no room");
    // Taken, and yet it does not run.
    assert_eq!(qmp.cont().await.unwrap_err().to_string(), "it refused cont: it is internal-error");
}

#[tokio::test]
async fn a_line_without_an_end_and_a_line_that_is_no_message_end_it() {
    let endless = "x".repeat(LINE_BYTES_MAX + 1);
    for line in [endless.as_str(), "not a message"] {
        let (qmp, _directory) = connected(&[line]).await;
        let mut qmp = qmp.unwrap();
        assert!(matches!(qmp.status().await, Err(QmpError::NotQmp)));
        assert!(qmp.buffer.len() <= LINE_BYTES_MAX);
    }
}

#[tokio::test]
async fn silence_is_bounded_and_an_end_is_told() {
    let (qmp, _directory) = connected(&[SILENCE]).await;
    let mut qmp = qmp.unwrap();
    let message = qmp.message("query-status", Value::Null);
    let asked = qmp.within("query-status", Duration::from_millis(50), Send::Plain(&message)).await;
    assert_eq!(asked.unwrap_err().to_string(), "no answer to query-status in 50ms");
    let (qmp, _directory) = connected(&[r#"{"event": "SHUTDOWN"}"#]).await;
    assert!(matches!(qmp.unwrap().status().await, Err(QmpError::Closed)));
}

#[tokio::test]
async fn a_descriptor_travels_with_its_command() {
    let directory = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(directory.path().join(SOCKET)).unwrap();
    let (mut reader, writer) = io::pipe().unwrap();
    let server = std::thread::spawn(move || {
        use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
        use std::io::{IoSliceMut, Write};
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(format!("{GREETING}\n").as_bytes()).unwrap();
        for id in 1..=2 {
            let mut bytes = [0; 512];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            recvmsg(&stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::empty()).unwrap();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    for descriptor in descriptors {
                        File::from(descriptor).write_all(b"through").unwrap();
                    }
                }
            }
            stream.write_all(format!("{{\"return\": {{}}, \"id\": {id}}}\n").as_bytes()).unwrap();
        }
    });
    let mut qmp = Qmp::connect(directory.path()).await.unwrap();
    qmp.give("memory", writer.as_fd()).await.unwrap();
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    server.join().unwrap();
    assert_eq!(text, "through");
}

#[tokio::test]
async fn a_directory_of_any_length_will_do() {
    let root = tempfile::tempdir().unwrap();
    let deep = root.path().join("d".repeat(100)).join("e".repeat(100));
    std::fs::create_dir_all(&deep).unwrap();
    let handle = File::open(&deep).unwrap();
    let _listener = UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", handle.as_raw_fd())).unwrap();
    connect(&deep, SOCKET).await.unwrap();
}
