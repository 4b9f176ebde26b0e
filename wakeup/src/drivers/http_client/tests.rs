use super::*;
use crate::drivers::stub::{Log, answer, serve};
use router::trust::trusting;
use rustls::RootCertStore;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio_rustls::TlsAcceptor;

const WITHIN: Duration = Duration::from_secs(20);

fn post<'a>(path: &'a str, headers: &'a [(&'static str, String)], body: &'static str) -> Call<'a> {
    Call { method: Method::POST, path, headers, body: Some(Bytes::from_static(body.as_bytes())), within: WITHIN }
}

fn get(within: Duration) -> Call<'static> {
    Call { method: Method::GET, path: "/", headers: &[], body: None, within }
}

/// Answers every request with `said`; where, and what it was asked.
async fn server(said: String) -> (SocketAddr, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, log) = (listener.local_addr().unwrap(), Log::default());
    let kept = Arc::clone(&log);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            serve(stream, &kept, &said).await;
        }
    });
    (address, log)
}

fn no_tls() -> TlsConnector {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    TlsConnector::from(Arc::new(config.with_root_certificates(RootCertStore::empty()).with_no_client_auth()))
}

fn client(url: &str, connector: &TlsConnector) -> HttpClient {
    HttpClient::url(&url.parse().unwrap(), Some(connector)).unwrap()
}

#[tokio::test]
async fn a_request_carries_path_headers_and_body_and_its_answer_is_read_whole() {
    let (address, log) = server(answer(201, r#"{"a":1}"#)).await;
    let client = client(&format!("http://{address}/base/"), &no_tls());
    let answer = client.call(post("/wake", &[("webhook-id", "msg_1".into())], r#"{"b":2}"#)).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.json()["a"].as_u64()), (201, Some(1)));
    let asked = log.lock().unwrap().remove(0);
    assert_eq!((asked.line.as_str(), asked.body.as_str()), ("POST /base/wake HTTP/1.1", r#"{"b":2}"#));
    assert_eq!((asked.header("host"), asked.header("webhook-id")), (address.to_string().as_str(), "msg_1"));
    assert_eq!(asked.header("content-type"), "application/json");
}

#[tokio::test]
async fn the_same_over_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let log = Log::default();
    let client = HttpClient::unix(path);
    let (answer, ()) = tokio::join!(client.call(get(WITHIN)), async {
        serve(listener.accept().await.unwrap().0, &log, "HTTP/1.1 204 No Content\r\n\r\n").await;
    });
    assert_eq!(answer.unwrap().status, 204);
    assert_eq!(log.lock().unwrap()[0].line, "GET / HTTP/1.1");
}

#[tokio::test]
async fn an_answer_over_its_bound_late_or_cut_short_is_none() {
    let long = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(ANSWER_BYTES_MAX + 1));
    let (address, _) = server(long).await;
    let error = client(&format!("http://{address}"), &no_tls()).call(get(WITHIN)).await.unwrap_err();
    assert!(matches!(error, HttpError::TooLong), "{error}");

    for cut in ["", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", "no http at all\r\n\r\n"] {
        let (address, _) = server(cut.into()).await;
        let error = client(&format!("http://{address}"), &no_tls()).call(get(WITHIN)).await.unwrap_err();
        assert!(matches!(error, HttpError::Broken(_)), "{cut}: {error}");
    }

    // Accepted by the kernel, answered by nobody.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let error = client(&url, &no_tls()).call(get(Duration::from_millis(50))).await.unwrap_err();
    assert!(matches!(error, HttpError::Timeout(_)), "{error}");

    // Bound, so that it is nobody else's; it does not listen.
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let url = format!("http://{}", closed.local_addr().unwrap());
    let error = client(&url, &no_tls()).call(get(WITHIN)).await.unwrap_err();
    assert!(matches!(error, HttpError::Connect { .. }), "{error}");
}

#[tokio::test]
async fn tls_trusts_the_given_ca_and_no_stranger() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    let key = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    std::fs::write(&path, key.cert.pem()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let private = rustls_pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let log = Log::default();
    let once = async || {
        if let Ok(stream) = acceptor.accept(listener.accept().await.unwrap().0).await {
            serve(stream, &log, &answer(200, "{}")).await;
        }
    };
    let trusted = client(&url, &trusting(&path).unwrap());
    let (answered, ()) = tokio::join!(trusted.call(get(WITHIN)), once());
    assert_eq!(answered.unwrap().status, 200);
    let stranger = client(&url, &no_tls());
    let (refused, ()) = tokio::join!(stranger.call(get(WITHIN)), once());
    assert!(matches!(refused, Err(HttpError::Connect { .. })), "{refused:?}");
    assert_eq!(log.lock().unwrap().len(), 1);
}

#[test]
fn a_ca_file_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    let told = |path: &Path| trusting(path).err().unwrap().to_string();
    assert!(told(&path).contains("ca.pem"));
    std::fs::write(&path, "nothing").unwrap();
    assert!(told(&path).contains("no certificate"));
}

#[test]
fn what_an_answer_says_is_short_and_plain() {
    let told = |body: &str| Answer { status: StatusCode::CONFLICT, body: body.to_owned().into() }.told(&["message"]);
    assert_eq!(told(r#"{"message":"no such\nimage"}"#), "409 no such image");
    assert_eq!(told("plain"), "409 plain");
    assert_eq!(told(""), "409");
    assert_eq!(told(&"x".repeat(9000)).len(), 204);
}
