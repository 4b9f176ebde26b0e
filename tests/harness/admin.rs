//! The operator's view: the command line on the admin socket, with `--json`.

use crate::client::{empty, whole};
use crate::{Demo, binary, until, within};
use http::{Method, Request};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::process::Output;
use std::time::Duration;
use tokio::net::UnixStream;

/// One command of the CLI (chosen: `sprite sleep --cold` may wait for a guest's grace of 2 s).
const COMMAND_LIMIT: Duration = Duration::from_secs(45);
/// A change of state the test has caused.
const STATE_LIMIT: Duration = Duration::from_secs(30);

/// Runs the program with `arguments`, to its end.
///
/// # Panics
/// When it does not start or does not end.
pub async fn run(arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(binary::edge_proxy());
    command.args(arguments).stdin(std::process::Stdio::null()).kill_on_drop(true);
    within(&format!("edge-proxy {arguments:?}"), COMMAND_LIMIT, command.output()).await.expect("the program starts")
}

impl Demo {
    /// Runs `edge-proxy --admin SOCKET ARGUMENTS --json`, whatever comes of it.
    pub async fn try_admin(&self, arguments: &[&str]) -> Output {
        let socket = self.data().join("admin.sock");
        let mut all = vec!["--admin", socket.to_str().expect("temporary paths are text")];
        all.extend(arguments);
        all.push("--json");
        run(&all).await
    }

    /// One request to the admin socket without the command line: for tests that give orders by
    /// the hundred, where a process for each would be most of the work.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn api(&self, method: Method, path: &str) -> Value {
        within(&format!("{method} {path}"), COMMAND_LIMIT, async {
            let stream = UnixStream::connect(self.data().join("admin.sock")).await.expect("the admin socket answers");
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("an HTTP server");
            tokio::spawn(async move { connection.await.is_ok() });
            let request = Request::builder().method(&method).uri(path).header("host", "admin").body(empty());
            let answer = sender.send_request(request.expect("a proper request")).await.expect("an answer");
            let answer = whole(answer).await.expect("a whole answer");
            assert!((200..300).contains(&answer.status), "{method} {path}: {answer:?}");
            answer.json()
        })
        .await
    }

    /// The sprite's row, by [`Demo::api`].
    pub async fn look(&self, name: &str) -> Value {
        self.api(Method::GET, &format!("/v1/sprites/{name}")).await
    }

    /// Waits until the sprite is in `state`, by [`Demo::api`]; its row.
    pub async fn look_until(&self, name: &str, state: &str, limit: Duration) -> Value {
        until(&format!("{name} {state}"), limit, async || {
            Some(self.look(name).await).filter(|row| row["state"] == state)
        })
        .await
    }

    /// Orders it to sleep as deep as it does unless told otherwise, and waits until it does.
    pub async fn lull(&self, name: &str) {
        self.api(Method::POST, &format!("/v1/sprites/{name}/sleep")).await;
        self.look_until(name, "asleep", STATE_LIMIT).await;
    }

    /// The same, and its JSON.
    ///
    /// # Panics
    /// When it fails.
    pub async fn admin(&self, arguments: &[&str]) -> Value {
        let output = self.try_admin(arguments).await;
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{arguments:?} failed with {}: {text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?} printed no JSON ({error}): {text:?}"))
    }

    /// Makes a sprite of a shell command.
    pub async fn create(&self, name: &str, command: &str) {
        self.admin(&["sprite", "create", name, "--public", "--command", command]).await;
    }

    /// The sprite's row of `sprite list`, by [`Demo::api`]: it is asked for again and again.
    ///
    /// # Panics
    /// When it is not listed.
    pub async fn row(&self, name: &str) -> Value {
        let list = self.api(Method::GET, "/v1/sprites").await;
        let rows = list.as_array().unwrap_or_else(|| panic!("no array: {list}"));
        rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("{name} is not in {list}")).clone()
    }

    /// Waits until the sprite is in `state`; its row.
    pub async fn wait_state(&self, name: &str, state: &str) -> Value {
        until(&format!("{name} {state}"), STATE_LIMIT, async || {
            Some(self.row(name).await).filter(|row| row["state"] == state)
        })
        .await
    }

    /// Freezes it and waits until it sleeps.
    ///
    /// # Panics
    /// When it does not sleep warm.
    pub async fn sleep_warm(&self, name: &str) {
        self.admin(&["sprite", "sleep", name]).await;
        let row = self.wait_state(name, "asleep").await;
        assert_eq!(row["warmth"], "warm", "{row}");
    }

    /// Ends its guest and waits until it sleeps.
    ///
    /// # Panics
    /// When it does not sleep cold.
    pub async fn sleep_cold(&self, name: &str) {
        self.admin(&["sprite", "sleep", name, "--cold"]).await;
        let row = self.wait_state(name, "asleep").await;
        assert_eq!(row["warmth"], "cold", "{row}");
    }

    /// Its wake receipts, by [`Demo::api`].
    ///
    /// # Panics
    /// When there is no array of them.
    pub async fn receipts(&self, name: &str) -> Vec<Value> {
        let receipts = self.api(Method::GET, &format!("/v1/sprites/{name}/receipts")).await;
        receipts.as_array().unwrap_or_else(|| panic!("no array: {receipts}")).clone()
    }

    /// Requests held at the edge at this moment, by [`Demo::api`].
    ///
    /// # Panics
    /// When `status` does not say.
    pub async fn held(&self) -> u64 {
        let status = self.api(Method::GET, "/v1/status").await;
        status["held"].as_u64().unwrap_or_else(|| panic!("no number `held` in {status}"))
    }

    /// Why its people are told that it does not wake. Asked for again where the back-off was over, or its port's time before
    /// its end was seen, when somebody looked.
    ///
    /// # Panics
    /// When visitors are told anything but that it fails.
    pub async fn why_it_failed(&self, name: &str) -> String {
        until(&format!("{name} to fail"), crate::vm::BOOT_LIMIT, async || {
            let answer = self.get(name, "/").await;
            assert!((502..=504).contains(&answer.status), "{answer:?}");
            (answer.json()["code"] == "wake_failed").then_some(())?;
            self.row(name).await["cause"].as_str().map(str::to_owned)
        })
        .await
    }

    /// Waits until that many are held.
    pub async fn wait_held(&self, count: u64) {
        until(&format!("{count} requests held"), STATE_LIMIT, async || (self.held().await == count).then_some(()))
            .await;
    }
}
