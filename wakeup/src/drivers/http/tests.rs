use super::*;
use crate::drivers::WakeDriver;
use crate::drivers::stub::{Asked, Log, answer, serve};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use router::names::SpriteName;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use tokio::net::TcpListener;

/// The key is the bytes 0 to 31.
const SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

struct Bench {
    driver: HttpDriver,
    spec: SpriteSpec,
    log: Log,
    directory: tempfile::TempDir,
}

impl Bench {
    /// An orchestrator that gives `answers` one after another, then the last again.
    async fn new(answers: &[String]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/edge", listener.local_addr().unwrap());
        let (answers, log) = (answers.to_vec(), Log::default());
        let kept = Arc::clone(&log);
        tokio::spawn(async move {
            for turn in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                serve(stream, &kept, answers.get(turn).or_else(|| answers.last()).unwrap()).await;
            }
        });
        let directory = tempfile::tempdir().unwrap();
        let secret_file = directory.path().join("secret");
        std::fs::write(&secret_file, SECRET).unwrap();
        std::fs::set_permissions(&secret_file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let wake_timeout = Duration::from_secs(15);
        let settings = Settings { secret_file, wake_timeout, ..config::Drivers::default().http };
        let spec = SpriteSpec::new(SpriteName::parse("a").unwrap(), 7, DriverSpec::Http(HttpSpec { url }));
        Self { driver: HttpDriver::new(settings), spec, log, directory }
    }

    fn asked(&self) -> Vec<Asked> {
        self.log.lock().unwrap().clone()
    }
}

fn verify(asked: &Asked) {
    let signed = format!("{}.{}.{}", asked.header("webhook-id"), asked.header("webhook-timestamp"), asked.body);
    let key: Vec<u8> = (0..32).collect();
    let tag = STANDARD.decode(asked.header("webhook-signature").strip_prefix("v1,").unwrap()).unwrap();
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, &key), signed.as_bytes(), &tag).unwrap();
}

fn here() -> String {
    answer(200, r#"{"address":"10.0.0.7:8080"}"#)
}

#[tokio::test]
async fn it_asks_for_each_step_once_and_signs_it() {
    let there = answer(200, r#"{"address":"[fd00::7]:80","more":"is ignored"}"#);
    let bench = Bench::new(&[here(), answer(204, ""), there, answer(200, "{}")]).await;
    let (driver, name) = (&bench.driver, &bench.spec.name);
    assert_eq!(driver.start(&bench.spec).await.unwrap().address, "10.0.0.7:8080".parse().unwrap());
    driver.freeze(name).await.unwrap();
    driver.resume(name).await.unwrap();
    assert_eq!(driver.address(name), Some("[fd00::7]:80".parse().unwrap()));
    driver.suspend(name).await;
    // It sleeps: nothing is left to end.
    driver.end(name).await;
    let asked = bench.asked();
    let said: Vec<_> = asked.iter().map(|asked| (asked.line.as_str(), asked.body.as_str())).collect();
    assert_eq!(
        said,
        [
            ("POST /edge/wake HTTP/1.1", r#"{"action":"wake","generation":7,"resume":false,"sprite":"a"}"#),
            ("POST /edge/sleep HTTP/1.1", r#"{"action":"sleep","depth":"warm","generation":7,"sprite":"a"}"#),
            ("POST /edge/wake HTTP/1.1", r#"{"action":"wake","generation":7,"resume":true,"sprite":"a"}"#),
            ("POST /edge/sleep HTTP/1.1", r#"{"action":"sleep","depth":"cold","generation":7,"sprite":"a"}"#),
        ]
    );
    asked.iter().for_each(verify);
    let ids: std::collections::BTreeSet<_> = asked.iter().map(|asked| asked.header("webhook-id")).collect();
    assert_eq!(ids.len(), 4);
}

#[tokio::test]
async fn without_an_answer_or_with_a_failure_of_the_server_the_same_event_is_sent_again() {
    let bench = Bench::new(&[String::new(), answer(503, "busy"), here()]).await;
    bench.driver.start(&bench.spec).await.unwrap();
    let asked = bench.asked();
    assert_eq!(asked.len(), 3);
    asked.iter().for_each(verify);
    assert!(asked.iter().all(|again| again.header("webhook-id") == asked[0].header("webhook-id")));
    assert!(asked.iter().all(|again| again.body == asked[0].body));
}

#[tokio::test]
async fn an_answer_that_will_not_change_ends_it_with_its_reason() {
    for (said, reason) in [
        (answer(404, r#"{"detail":"no machine a"}"#), "its orchestrator did not wake: it answered 404 no machine a"),
        (answer(401, ""), "its orchestrator did not wake: it answered 401"),
        (answer(200, "{}"), "no {\"address\":\"IP:PORT\"}"),
    ] {
        let bench = Bench::new(&[said]).await;
        let error = bench.driver.start(&bench.spec).await.err().unwrap().to_string();
        assert!(error.contains(reason), "{error}");
        assert_eq!(bench.asked().len(), 1);
        assert_eq!(bench.driver.address(&bench.spec.name), None);
    }
}

#[tokio::test]
async fn tries_end_with_the_time_there_is() {
    let mut bench = Bench::new(&[answer(500, "broken")]).await;
    bench.driver.orchestrator_mut().settings.wake_timeout = Duration::from_secs(2);
    let began = Instant::now();
    let error = bench.driver.start(&bench.spec).await.err().unwrap().to_string();
    assert!(error.contains("500 broken"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn without_a_secret_nothing_is_asked() {
    let mut bench = Bench::new(&[here()]).await;
    std::fs::write(bench.directory.path().join("secret"), "password").unwrap();
    let error = bench.driver.start(&bench.spec).await.err().unwrap().to_string();
    assert!(error.contains("drivers.http.secret_file") && !error.contains("password"), "{error}");
    bench.driver.orchestrator_mut().settings.secret_file = "".into();
    let error = bench.driver.start(&bench.spec).await.err().unwrap().to_string();
    assert!(error.contains("is not set"), "{error}");
    assert!(bench.asked().is_empty());
}
