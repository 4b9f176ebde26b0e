//! curl, as a visitor has it.

use crate::{Demo, within};
use std::process::Output;
use std::time::Duration;

/// One run of it.
const CURL_LIMIT: Duration = Duration::from_secs(90);

/// What curl brought.
#[derive(Clone, Debug)]
pub struct Curled {
    /// The last answer's status.
    pub status: u16,
    /// All heads, as received.
    pub head: String,
    /// The content.
    pub body: Vec<u8>,
}

impl Curled {
    /// A header line's value, or "".
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next_back().unwrap_or("")
    }

    /// The content as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Demo {
    /// `curl --cacert DIR/ca.pem --resolve NAME:PORT:127.0.0.1 ARGUMENTS URL`.
    ///
    /// # Panics
    /// When curl fails.
    pub async fn curl(&self, name: &str, path: &str, arguments: &[&str]) -> Curled {
        let output = self.try_curl(name, path, arguments).await;
        assert!(output.status.success(), "curl: {} {}", output.status, String::from_utf8_lossy(&output.stderr));
        let mut rest = output.stdout.as_slice();
        let mut head = String::new();
        // `--include` puts every head before the content, interim ones too.
        while rest.starts_with(b"HTTP/") {
            let end = rest.windows(4).position(|four| four == b"\r\n\r\n").expect("a head ends") + 4;
            head.push_str(&String::from_utf8_lossy(&rest[..end]));
            rest = &rest[end..];
        }
        let line = head.lines().rfind(|line| line.starts_with("HTTP/")).unwrap_or_default();
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
        Curled { status, head, body: rest.to_vec() }
    }

    /// The same, whatever comes of it.
    ///
    /// # Panics
    /// When curl is missing or does not end.
    pub async fn try_curl(&self, name: &str, path: &str, arguments: &[&str]) -> Output {
        let resolve = format!("{}:127.0.0.1", self.authority(name));
        let mut command = tokio::process::Command::new("curl");
        command.args(["--silent", "--show-error", "--include", "--cacert"]).arg(self.ca());
        command.args(["--resolve", &resolve]).args(arguments).arg(self.url(name, path)).kill_on_drop(true);
        within("curl", CURL_LIMIT, command.output()).await.expect("curl is installed")
    }
}
