//! A headless Chromium, driven by its DevTools protocol.

use crate::within;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// From its start to its socket, and of each command (chosen: a busy machine).
const LIMIT: Duration = Duration::from_secs(60);

/// One browser with one page.
pub struct Chromium {
    child: Child,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    session: Option<String>,
    sent: u64,
    _profile: TempDir,
}

impl Chromium {
    /// Starts it with an empty profile. It resolves `*.localhost` to this machine itself.
    /// It takes any certificate: the CA is curl's to check, a browser's store is not ours to change.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start() -> Self {
        let profile = tempfile::Builder::new().prefix("chromium-").tempdir().unwrap();
        let mut child = Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--ignore-certificate-errors", "--remote-debugging-port=0"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("chromium is installed");
        let mut lines = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        let url = within("Chromium's DevTools socket", LIMIT, async {
            loop {
                let line = lines.next_line().await.unwrap().expect("chromium runs on");
                if let Some(url) = line.strip_prefix("DevTools listening on ") {
                    return url.to_owned();
                }
            }
        })
        .await;
        // Read on: a full pipe would stop it.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let (socket, _) = connect_async(url).await.expect("DevTools answers");
        let mut browser = Self { child, socket, session: None, sent: 0, _profile: profile };
        let target = browser.command("Target.createTarget", json!({ "url": "about:blank" })).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.command("Target.attachToTarget", attach).await;
        browser.session = Some(attached["sessionId"].as_str().expect("a session").to_owned());
        browser
    }

    async fn command(&mut self, method: &str, parameters: Value) -> Value {
        let answer = self.try_command(method, parameters).await;
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].clone()
    }

    async fn try_command(&mut self, method: &str, parameters: Value) -> Value {
        self.sent += 1;
        let id = self.sent;
        let mut message = json!({ "id": id, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.socket.send(Message::text(message.to_string())).await.expect("DevTools listens");
        within(method, LIMIT, async {
            loop {
                let message = self.socket.next().await.expect("DevTools is open").expect("a message");
                let Message::Text(text) = message else { continue };
                let answer: Value = serde_json::from_str(&text).expect("DevTools speaks JSON");
                if answer["id"] == id {
                    return answer;
                }
            }
        })
        .await
    }

    /// Loads a page. Returns when it is on its way, not when it is shown.
    ///
    /// # Panics
    /// When it cannot be reached.
    pub async fn navigate(&mut self, url: &str) {
        let result = self.command("Page.navigate", json!({ "url": url })).await;
        assert!(result["errorText"].is_null(), "{url}: {result}");
    }

    /// The value of a JavaScript expression in the page; null while it is being loaded.
    ///
    /// # Panics
    /// When DevTools does.
    pub async fn evaluate(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "returnByValue": true });
        // An error is a page that was left meanwhile.
        let answer = self.try_command("Runtime.evaluate", parameters).await;
        answer["result"]["result"]["value"].clone()
    }

    /// Ends it and its helpers.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn close(mut self) {
        self.session = None;
        self.command("Browser.close", json!({})).await;
        within("Chromium to end", LIMIT, self.child.wait()).await.expect("our own child");
    }
}
